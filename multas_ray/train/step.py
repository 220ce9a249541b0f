"""One training step's loss: of any mixture of task masks, divided by counts of the whole global batch."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from multas_ray.config import Config, Task, select_rows
from multas_ray.errors import UserError
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks.bombo.rows import weak_rows, weak_tasks
from multas_ray.tasks.bombo.targets import weak_targets
from multas_ray.tasks.detection.distillation import detection_distillation, foreground_cells, segmentation_distillation
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.segmentation.loss import segmentation_loss
from multas_ray.tasks.terms import Term

Batch = Mapping[str, np.ndarray]


def distilled_rows(batch: Batch, config: Config) -> dict[Task, np.ndarray]:
    """Rows of the batch that each distilled task is distilled on."""
    # A row without an id stands in where no row of the part can be decoded.
    real = batch["ids"] != b""
    if config.distill.start and batch["step"] < config.distill.start * config.train.steps:
        real &= False
    rows: dict[Task, np.ndarray] = {}
    for task in config.distilled_tasks():
        rows[task] = np.flatnonzero(select_rows(getattr(config.distill, task).on, batch[f"has_{task}"]) & real)
    return rows


def loss_terms(
    model: nn.Module,
    batch: Batch,
    distilled: Mapping[Task, np.ndarray],
    soft: Mapping[str, Tensor],
    config: Config,
    anchors: Tensor,
) -> dict[str, Term]:
    """Forward pass and this worker's share of every loss. Heads run only on rows that some loss uses.

    Args:
        model: a `MultiTaskNet`, wrapped for DDP or not.
        batch: of the data stream.
        distilled: rows to distil, of each distilled task.
        soft: the teachers' answers for these rows, in their order; nothing for a task without rows.
        anchors: (A, 4) of the batch's image size.

    Raises:
        UserError: a teacher's answer has another shape than the student's.
    """
    device = anchors.device
    tasks = config.model.tasks
    annotated = {task: np.flatnonzero(batch[f"has_{task}"]) for task in tasks}
    nothing = np.zeros(0, np.int64)
    weak = {task: rows for task, rows in weak_rows(batch).items() if task in weak_tasks(config)}
    used = {
        task: reduce(np.union1d, (annotated[task], distilled.get(task, nothing), weak.get(task, nothing)))
        for task in tasks
    }

    def put(array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=device)

    compared = ["cls", "box"] + ["feature"] * (config.model.adapter is not None)
    rows_of_heads = (put(used[task]) if task in used else None for task in ("det", "seg"))
    outputs = model(put(batch["images"]), *rows_of_heads, features="feature" in compared)

    def pick(name: str, task: Task, rows: np.ndarray) -> Tensor:
        return outputs[name][put(np.searchsorted(used[task], rows))]

    terms: dict[str, Term] = {}
    if "det" in tasks:
        rows = annotated["det"]
        targets = {name: put(batch[name][rows]) for name in ("boxes", "labels", "difficult")}
        terms |= detection_losses(pick("cls", "det", rows), pick("box", "det", rows), anchors, targets, config.loss)
    if "seg" in tasks:
        terms |= segmentation_loss(pick("seg", "seg", annotated["seg"]), put(batch["masks"]))
    if "det" in weak:
        cls, box = pick("cls", "det", weak["det"]), pick("box", "det", weak["det"])
        targets = weak_targets(put(batch["weak_boxes"]), put(batch["weak_labels"]), cls, box, anchors)
        losses = detection_losses(cls, box, anchors, targets, config.loss)
        terms |= {f"weak_{name}": term for name, term in losses.items()}
    if "seg" in weak:
        terms["weak_seg"] = segmentation_loss(pick("seg", "seg", weak["seg"]), put(batch["weak_masks"]))["seg"]
    if "det" in distilled:
        rows = distilled["det"]
        student = {name: pick(name, "det", rows) for name in compared}
        teacher = {name: _target(soft, name, like, like.shape, config) for name, like in student.items()}
        foreground = None
        if config.distill.det.defeat:
            foreground = foreground_cells(put(batch["boxes"][rows]), put(batch["labels"][rows]), anchors)
            foreground[put(~batch["has_det"][rows])] = -1
        terms |= detection_distillation(student, teacher, foreground, config.distill.det)
    if "seg" in distilled:
        logits = pick("seg", "seg", distilled["seg"])
        height, width = batch["images"].shape[-2:]
        shape = (*logits.shape[:2], height // 4, width // 4)
        terms |= segmentation_distillation(logits, _target(soft, "seg", logits, shape, config), config.distill.seg)
    return terms


def _target(soft: Mapping[str, Tensor], name: str, like: Tensor, shape: Sequence[int], config: Config) -> Tensor:
    """A teacher's answer; without rows, the student's own."""
    if name not in soft:
        return like.detach()
    if soft[name].shape != tuple(shape):
        task: Task = "seg" if name == "seg" else "det"
        teacher = config.teachers.of(task)
        raise UserError(
            f"teachers.{task}.checkpoint {teacher.checkpoint if teacher else ''}: its answer '{name}' has the shape "
            f"{tuple(soft[name].shape)}, the student needs {tuple(shape)}"
        )
    return soft[name]


def term_weights(config: Config) -> dict[str, float]:
    """Weight of each published loss in the total."""
    return {
        "det_box": config.loss.det,
        "det_cls": config.loss.det,
        "seg": config.loss.seg,
        "weak_det": config.loss.det * config.loss.weak_det,
        "weak_seg": config.loss.seg * config.loss.weak_seg,
        "kd_det": config.distill.det.weight,
        "kd_feature": config.distill.det.weight,
        "kd_seg": config.distill.seg.weight,
    }


def published(term: str) -> str:
    """The name a term is published under: kd_det_guided_cls, say, is part of kd_det."""
    return "_".join(term.split("_")[:2]) if term.startswith(("kd_", "weak_")) else term


def total_loss(
    terms: Mapping[str, Term], weights: Mapping[str, float], workers: int
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss to run backward from, each term's share of its global value, and the number of workers one of whose
    terms is not finite.

    Every term is this worker's sum divided by the count over all workers. DDP takes the mean of the workers'
    gradients, so the total is multiplied by their number: the result is the gradient of the whole batch's loss.
    """
    # Every worker has the same terms in the same order: the configuration alone decides.
    counts = [at_least_float32(term.count.detach()).reshape(-1) for term in terms.values()]
    bad = ~torch.stack([term.sum.detach().isfinite().all() for term in terms.values()]).all()
    sums = torch.cat([*counts, bad.reshape(1).to(counts[0].dtype)])
    if workers > 1:
        dist.all_reduce(sums)
    *totals, bad_workers = sums.split([len(count) for count in counts] + [1])
    shares = {name: term.divided(count) for (name, term), count in zip(terms.items(), totals, strict=True)}
    total = torch.stack([weights[published(name)] * share for name, share in shares.items()]).sum()
    return total * workers, {name: share.detach() for name, share in shares.items()}, bad_workers[0]


def named_losses(shares: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The total, and the losses that make it up under their published names."""
    losses: dict[str, Any] = {"loss/total": sum(weights[published(name)] * value for name, value in shares.items())}
    for name, value in shares.items():
        public = f"loss/{published(name)}"
        losses[public] = losses.get(public, 0.0) + value
    return losses
