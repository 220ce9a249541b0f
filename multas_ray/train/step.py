"""Loss of a training step: for any mixture of task masks, divided by counts of the whole global batch."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from multas_ray.config import Config, Task
from multas_ray.data.batch import Some, TrainBatch, mapped, marked
from multas_ray.model.precision import at_least_float32
from multas_ray.tasks import PARTS
from multas_ray.tasks.bombo.losses import weak_loss
from multas_ray.tasks.terms import Term


def loss_terms(
    model: nn.Module, batch: TrainBatch, soft: Mapping[Task, Any], config: Config, device: torch.device
) -> dict[str, Term]:
    """Run the forward pass, and compute this worker's share of every loss. Heads run only on rows that a loss uses.

    Args:
        model: `MultiTaskNet`, wrapped for DDP or not.
        batch: batch of the training stream.
        soft: answers of each task's teacher for the rows `batch.distil`, as tensors; absent without such rows.
        config: configuration of the run.
        device: device of the model.

    Raises:
        UserError: a teacher's answer has another shape than the student's.
    """
    size = (batch.images.shape[-2], batch.images.shape[-1])
    used = {task: _used_rows(batch, task) for task in config.model.tasks}
    outputs = model(
        torch.tensor(batch.images, device=device),
        {task: torch.tensor(rows, device=device) for task, rows in used.items()},
        features=config.model.adapter is not None,
    )
    supervised: dict[str, Term] = {}
    weak: dict[str, Term] = {}
    distilled: dict[str, Term] = {}
    for task, rows in used.items():
        network = PARTS[task].network
        output = Some(rows, outputs[task])
        truth = _on_device(batch.truth[task], device)
        unlabelled = _marks(batch.unlabelled.get(task), truth.rows, device)
        supervised |= network.loss(output.at(truth.rows), truth.values, unlabelled, config, size)
        if task in batch.weak:
            annotation = _on_device(batch.weak[task], device)
            unlabelled = _marks(batch.weak_unlabelled.get(task), annotation.rows, device)
            weak |= weak_loss(task, output.at(annotation.rows), annotation.values, unlabelled, config, size)
        if task in batch.distil:
            chosen = batch.distil[task]
            # Rows without an answer are an error, not a student that is compared with itself.
            answer = soft[task] if len(chosen.rows) else None
            distilled |= network.distil(output.at(chosen.rows), answer, chosen, truth, config, size)
    return supervised | weak | distilled


def _used_rows(batch: TrainBatch, task: Task) -> np.ndarray:
    """Return the rows of a batch that some loss of a task uses, (n,) int64."""
    weak = [batch.weak[task].rows] if task in batch.weak else []
    distilled = [batch.distil[task].rows] if task in batch.distil else []
    rows: np.ndarray = reduce(np.union1d, (*weak, *distilled), batch.truth[task].rows)
    return rows


def _marks(some: Some[np.ndarray] | None, rows: np.ndarray, device: torch.device) -> Tensor | None:
    """Return the unlabelled classes (k, C) of some rows on a device; None where every row has all classes labelled."""
    marks = marked(some, rows)
    return None if marks is None else torch.tensor(marks, device=device)


def _on_device(some: Some[Any], device: torch.device) -> Some[Any]:
    return Some(some.rows, mapped(some.values, lambda values: torch.tensor(values, device=device)))


def term_weights(config: Config) -> dict[str, float]:
    """Return the weight of each published loss in the total."""
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


def public_name(term: str) -> str:
    """Return the name under which a term is published: kd_det_guided_cls, for instance, is part of kd_det."""
    return "_".join(term.split("_")[:2]) if term.startswith(("kd_", "weak_")) else term


def total_loss(
    terms: Mapping[str, Term], weights: Mapping[str, float], workers: int
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Add up the terms, each divided by its count over all workers; all workers call it.

    DDP takes the mean of the workers' gradients, so the total is multiplied by their number: the result is the gradient
    of the whole batch's loss.

    Args:
        terms: this worker's terms.
        weights: weight of each published loss.
        workers: number of workers.

    Returns:
        Loss to run backward from; each term's share of its global value, without gradient; number of workers with a
        term that is not finite.
    """
    # Every worker has the same terms in the same order: the configuration alone decides.
    counts = [at_least_float32(term.count.detach()).reshape(-1) for term in terms.values()]
    bad = ~torch.stack([term.sum.detach().isfinite().all() for term in terms.values()]).all()
    sums = torch.cat([*counts, bad.reshape(1).to(counts[0].dtype)])
    if workers > 1:
        dist.all_reduce(sums)
    *totals, bad_workers = sums.split([len(count) for count in counts] + [1])
    shares = {name: term.divided(count) for (name, term), count in zip(terms.items(), totals, strict=True)}
    total = torch.stack([weights[public_name(name)] * share for name, share in shares.items()]).sum()
    return total * workers, {name: share.detach() for name, share in shares.items()}, bad_workers[0]


def named_losses(shares: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the total, and the losses that make it up under their published names.

    Args:
        shares: value of each term.
        weights: weight of each published loss.
    """
    losses: dict[str, float] = {"loss/total": sum(weights[public_name(name)] * value for name, value in shares.items())}
    for name, value in shares.items():
        public = f"loss/{public_name(name)}"
        losses[public] = losses.get(public, 0.0) + value
    return losses
