"""Row of a data set: one image with its annotation as a reader delivers it, and the checks that it must pass."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from multas_ray.config import TASK_MASKS, TASKS, Task, TaskMask
from multas_ray.data.footer import HAS, UNLABELLED
from multas_ray.data.reject import Reject
from multas_ray.tasks import PARTS

if TYPE_CHECKING:
    from multas_ray.data.image import Stored


@dataclass
class Row:
    """One image with its annotation as a reader delivers it: nothing is checked yet."""

    image_id: str
    image: bytes
    """Bytes of the encoded file."""
    height: int | None
    """Height in pixels as the annotation states it; None if it does not."""
    width: int | None
    """Width in pixels as the annotation states it; None if it does not."""
    has_det: bool = False
    has_seg: bool = False
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """(N, 4) float32: boxes x1 y1 x2 y2 in pixels, continuous."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """(N,) int32: class of each box."""
    difficult: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) bool: boxes that are not scored and not penalised."""
    mask: np.ndarray | None = None
    """(H, W) uint8: class ids of the pixels; None where has_seg is false."""
    notes: Counter[str] = field(default_factory=Counter)
    """Repairs, omissions and assumptions, counted over a split: phrase -> number of objects."""
    exif: bool = True
    """Whether to turn the image as its EXIF says. Images of a data set are upright already."""
    unlabelled: Mapping[Task, tuple[int, ...]] = field(default_factory=dict)
    """Classes of each task that nobody looked for in this image, ascending; their absence says nothing."""

    @property
    def task_mask(self) -> TaskMask:
        """Tasks that the row is annotated for."""
        return TASK_MASKS[self.has_det + 2 * self.has_seg]

    @property
    def kind(self) -> int:
        """Tasks that the row is annotated for, and of which of them some classes are unlabelled: see data/footer.py."""
        has = {"det": self.has_det, "seg": self.has_seg}
        partial = {task: bool(self.unlabelled.get(task)) for task in TASKS}
        return sum(HAS[task] * has[task] + UNLABELLED[task] * partial[task] for task in TASKS)

    def only(self, task: Task | None) -> "Row":
        """Return the row with the annotation of one task only, or of none."""
        row = replace(self)
        if task != "seg":
            row.has_seg, row.mask = False, None
        if task != "det":
            row.has_det = False
            row.boxes, row.labels, row.difficult = self.boxes[:0], self.labels[:0], self.difficult[:0]
        row.unlabelled = {each: classes for each, classes in self.unlabelled.items() if each == task}
        return row


def attempt(image_id: str, read: Callable[[], Row]) -> Row | Reject:
    """Read a row. If it cannot be used, the reason, with the image's id, is returned in its place."""
    try:
        return read()
    except Reject as reject:
        return Reject(reject.reason, reject.detail, image_id)


def check_row(row: Row, classes: Mapping[Task, int]) -> Row:
    """Make a row that keeps the data contract: upright image, boxes inside it, known classes.

    An annotation that was made on the image as its file stores it is turned upright with the image. One that fits both
    frames, as of a square image, is taken to be made on the upright image, which nearly all tools show. Repairs are
    added to the row's notes.

    Args:
        row: row as read.
        classes: number of classes of each task.

    Raises:
        Reject: the row breaks the contract in a way that cannot be repaired.
        ValueError: annotation and task mask contradict each other.
    """
    # Imported here: it imports PyTorch, which takes seconds, and the process that hands rows to others does without.
    from multas_ray.data.image import to_stored

    image = to_stored(row.image, exif=row.exif)
    upright = (image.height, image.width)
    stated = (upright[0] if row.height is None else row.height, upright[1] if row.width is None else row.width)
    if stated not in (upright, image.file_size):
        raise Reject("annotation of another size", _sizes(stated, image))
    row = replace(row, height=stated[0], width=stated[1])
    for task, count in classes.items():
        row = PARTS[task].rows.check(row, image, count)
        unknown = [number for number in row.unlabelled.get(task, ()) if not 0 <= number < count]
        if unknown:
            raise Reject("unknown class", f"{task} classes {unknown} are unlabelled, there are {count}")
    return replace(row, image=image.data, height=image.height, width=image.width)


def _sizes(stated: tuple[int, int], image: "Stored") -> str:
    turned = " (its file is turned by EXIF)" if image.file_size != (image.height, image.width) else ""
    return f"{stated[1]}x{stated[0]}, the image has {image.width}x{image.height}{turned}"
