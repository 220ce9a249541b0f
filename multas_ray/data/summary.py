"""Summary of what was written and rejected, and the judgement whether it is a data set."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from multas_ray.config import TASK_MASKS, TaskMask
from multas_ray.data.schema import DatasetInfo
from multas_ray.data.shard import Record
from multas_ray.errors import UserError, one_line
from multas_ray.tasks.segmentation.rows import BACKGROUND, IGNORE, VOID_PIXELS


@dataclass
class Summary:
    """Counts of the rows that were written, and of those that were rejected."""

    rows: dict[str, dict[TaskMask, int]] = field(default_factory=dict)
    """Number of rows by split and task mask."""
    boxes: Counter[tuple[str, TaskMask]] = field(default_factory=Counter)
    """Number of boxes by split and task mask."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Number of rejected rows by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """Id and detail of the first rejected row by reason."""
    notes: dict[str, Counter[str]] = field(default_factory=dict)
    """Counts by split of repairs, omissions and interpretations of annotation."""
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    """(256,) int64 number of mask pixels by value, by split."""


def summarize(records: Mapping[str, Iterable[Record]]) -> Summary:
    """Sum up the records of each split's chunks, in the order of the chunks."""
    summary = Summary()
    for split, chunks in records.items():
        rows, notes = Counter[str](), Counter[str]()
        pixels = np.zeros(256, np.int64)
        for record in chunks:
            rows.update(record.rows)
            notes.update(record.notes)
            pixels += np.array(record.pixels)
            for mask in TASK_MASKS:
                if mask in record.boxes:
                    summary.boxes[split, mask] += record.boxes[mask]
            for line in record.rejected:
                summary.rejected[line["reason"]] += 1
                summary.examples.setdefault(line["reason"], f"{line['image_id']}: {line['detail']}")
        summary.rows[split] = {mask: rows[mask] for mask in TASK_MASKS if rows[mask]}
        summary.notes[split], summary.pixels[split] = notes, pixels
    return summary


def refusal(summary: Summary, max_rejected: float) -> str | None:
    """Return why there are too many rejected rows, or too few others; None where there are not."""
    bad = summary.rejected.total()
    total = bad + sum(sum(counts.values()) for counts in summary.rows.values())
    empty = [split for split, counts in summary.rows.items() if not counts]
    if bad <= max_rejected * total and not empty:
        return None
    if not bad:
        return f"no rows for {', '.join(empty)}"
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.most_common())
    first = summary.examples[summary.rejected.most_common(1)[0][0]]
    return (
        f"{bad} of {total} rows rejected, --max-rejected {max_rejected:g} allows {int(max_rejected * total)}: "
        f"{reasons} (such as {one_line(first, 400)})"
    )


def judge_content(summary: Summary, info: DatasetInfo) -> None:
    """Refuse a split whose boxes were all dropped, or whose masks hold no class or little else than void pixels.

    Their files mean something else.

    Raises:
        UserError: there is such a split.
    """
    for split, notes in summary.notes.items():
        dropped = {name: count for name, count in notes.items() if name.startswith("boxes dropped")}
        if dropped and not sum(boxes for (of, _), boxes in summary.boxes.items() if of == split):
            reasons = ", ".join(f"{count} {name}" for name, count in dropped.items())
            raise UserError(f"{split}: no box is left ({reasons}); are they x1 y1 x2 y2 in pixels of these images?")
    first = 1 if info.seg_classes[:1] == [BACKGROUND] else 0
    for split, pixels in summary.pixels.items():
        if pixels[IGNORE] and not pixels[first:IGNORE].sum():
            raise UserError(
                f"{split}: no class is in any mask, and {pixels[IGNORE] / pixels.sum():.1%} of the pixels are ignored "
                "(255: crowds, void, classes that are not kept); do these masks mean objects by it?"
            )
        void = summary.notes[split][VOID_PIXELS]
        if 2 * void > pixels.sum():
            raise UserError(
                f"{split}: {void / pixels.sum():.1%} of the masks' pixels are void (255) in their files, which teaches "
                "nothing; do these masks mean a class by it?"
            )
