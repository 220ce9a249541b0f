"""One training step's loss: of any mixture of task masks, divided by counts of the whole global batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from multas_ray.config import Config, Task
from multas_ray.loss.detection import detection_losses
from multas_ray.loss.distillation import distill_detection, distill_segmentation
from multas_ray.loss.segmentation import segmentation_loss
from multas_ray.loss.terms import Term

Batch = Mapping[str, np.ndarray]
TERMS = ("det_box", "det_cls", "seg", "kd_det_box", "kd_det_cls", "kd_seg")
"""All losses a step may have, in the order in which workers add up their counts."""


def distilled_rows(batch: Batch, config: Config) -> dict[Task, np.ndarray]:
    """Rows of the batch that each distilled task is distilled on."""
    rows: dict[Task, np.ndarray] = {}
    for task in config.distilled():
        annotated = batch[f"has_{task}"]
        wanted = {"missing": ~annotated, "annotated": annotated, "all": np.ones_like(annotated)}
        rows[task] = np.flatnonzero(wanted[getattr(config.distill, task).on])
    return rows


def loss_terms(
    model: nn.Module,
    batch: Batch,
    distilled: Mapping[Task, np.ndarray],
    soft: Mapping[str, np.ndarray],
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
    """
    device = anchors.device
    tasks = config.model.tasks
    annotated = {task: np.flatnonzero(batch[f"has_{task}"]) for task in tasks}
    nothing = np.zeros(0, np.int64)
    used = {task: np.union1d(annotated[task], distilled.get(task, nothing)) for task in tasks}

    def put(array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=device)

    outputs = model(put(batch["images"]), *(put(used[task]) if task in used else None for task in ("det", "seg")))

    def pick(name: str, task: Task, rows: np.ndarray) -> Tensor:
        return outputs[name][put(np.searchsorted(used[task], rows))]

    terms: dict[str, Term] = {}
    if "det" in tasks:
        rows = annotated["det"]
        targets = {name: put(batch[name][rows]) for name in ("boxes", "labels", "difficult")}
        terms |= detection_losses(
            pick("cls", "det", rows),
            pick("box", "det", rows),
            anchors,
            targets,
            alpha=config.loss.focal_alpha,
            gamma=config.loss.focal_gamma,
        )
    if "seg" in tasks:
        terms |= segmentation_loss(pick("seg", "seg", annotated["seg"]), put(batch["masks"]))
    if "det" in distilled:
        cls, box = (pick(name, "det", distilled["det"]) for name in ("cls", "box"))
        terms |= distill_detection(
            cls, box, *(_target(soft, name, like) for name, like in (("cls", cls), ("box", box)))
        )
    if "seg" in distilled:
        logits = pick("seg", "seg", distilled["seg"])
        terms |= distill_segmentation(logits, _target(soft, "seg", logits), config.distill.temperature)
    return terms


def _target(soft: Mapping[str, np.ndarray], name: str, like: Tensor) -> Tensor:
    return torch.tensor(soft[name], device=like.device).float() if name in soft else like.detach()


def term_weights(config: Config) -> dict[str, float]:
    """Weight of each loss in the total."""
    return {
        "det_box": config.loss.det,
        "det_cls": config.loss.det,
        "seg": config.loss.seg,
        "kd_det_box": config.distill.det.weight,
        "kd_det_cls": config.distill.det.weight,
        "kd_seg": config.distill.seg.weight,
    }


def total_loss(
    terms: Mapping[str, Term], weights: Mapping[str, float], workers: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to run backward from, and each term's share of its global value.

    Every term is this worker's sum divided by the count over all workers. DDP takes the mean of the workers'
    gradients, so the total is multiplied by their number: the result is the gradient of the whole batch's loss.
    """
    names = [name for name in TERMS if name in terms]
    counts = torch.stack([terms[name].count.detach().float() for name in names])
    if workers > 1:
        dist.all_reduce(counts)
    shares = {name: terms[name].sum / count.clamp(min=1) for name, count in zip(names, counts, strict=True)}
    total = torch.stack([weights[name] * share for name, share in shares.items()]).sum()
    return total * workers, {name: share.detach() for name, share in shares.items()}


def named_losses(shares: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The losses under the names they are published by; both parts of detection's distillation are one."""
    losses: dict[str, Any] = {"loss/total": sum(weights[name] * value for name, value in shares.items())}
    for name, value in shares.items():
        public = "kd_det" if name.startswith("kd_det") else name
        losses[f"loss/{public}"] = losses.get(f"loss/{public}", 0.0) + value
    return losses
