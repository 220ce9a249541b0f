"""Benchmark of packed soft targets against dense ones: their size, and the gradients that they give a student."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multas_ray.checkpoint.weights import load_network
from multas_ray.config import DistillConfig, Task
from multas_ray.data.collate import make_eval_batch
from multas_ray.data.index import read_index
from multas_ray.data.plan import EvaluationPlan
from multas_ray.tasks.detection import packed as detection
from multas_ray.tasks.detection.distillation import detection_distillation
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.segmentation import packed as segmentation
from multas_ray.tasks.segmentation.distillation import segmentation_distillation

SIZE = 320
IMAGES = 64
BATCH = 16


@torch.no_grad()
def compare_packed(path: str, det: str, seg: str, student: str) -> dict[str, float]:
    """Compare packed with dense answers of two teachers, on the first 64 validation images at 320 pixels.

    Args:
        path: folder of the data set.
        det: run folder of the detection teacher.
        seg: run folder of the segmentation teacher.
        student: run folder of the student.

    Returns:
        Kilobytes an image as `dense_kb_per_image` (float16) and `packed_kb_per_image`; as `class_grad_error`,
        `box_grad_error` and `seg_grad_error` the relative L2 difference of the default distillation losses' gradients
        with respect to the student's outputs.
    """
    networks = {name: load_network(run)[0] for name, run in (("det", det), ("seg", seg), ("student", student))}
    plan = EvaluationPlan(read_index(path, "val"), BATCH, SIZE)
    students: list[dict[str, Tensor]] = []
    answers: list[dict[str, Tensor]] = []
    packed: dict[str, list[bytes]] = {"det": [], "seg": []}
    for step in range(IMAGES // BATCH):
        images = torch.tensor(make_eval_batch(plan.index, plan.part(step, 0, 1)).images)
        students.append(_by_name(networks["student"](images)))
        answer = networks["det"](images) | networks["seg"](images)
        answers.append({name: value.half() for name, value in _by_name(answer).items()})
        packed["det"] += detection.pack(answers[-1]["cls"], answers[-1]["box"])
        packed["seg"] += segmentation.pack(answers[-1]["seg"])
    dense = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    device = torch.device("cpu")
    cls, box = detection.unpack(packed["det"], device)
    unpacked = {"cls": cls, "box": box, "seg": segmentation.unpack(packed["seg"], device)}
    outputs = {name: torch.cat([output[name] for output in students]) for name in students[0]}
    exact = _gradients(outputs, {name: value.float() for name, value in dense.items()})
    approximate = _gradients(outputs, unpacked)
    count = len(packed["det"])
    errors = {name: float((approximate[name] - exact[name]).norm() / exact[name].norm()) for name in exact}
    return {
        "dense_kb_per_image": sum(value.numel() * 2 for value in dense.values()) / count / 1000,
        "packed_kb_per_image": float(np.sum([len(row) for rows in packed.values() for row in rows])) / count / 1000,
        **{f"{kind}_grad_error": errors[name] for kind, name in (("class", "cls"), ("box", "box"), ("seg", "seg"))},
    }


def _by_name(outputs: Mapping[Task, Any]) -> dict[str, Tensor]:
    """Name the outputs of a network: cls, box, seg."""
    return {"cls": outputs["det"].cls, "box": outputs["det"].box, "seg": outputs["seg"]}


@torch.enable_grad()
def _gradients(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the gradients of the default distillation losses with respect to a student's outputs, by their names."""
    leaves = {name: value.clone().requires_grad_() for name, value in outputs.items()}
    config = DistillConfig()
    pair = [DetectionOutput(values["cls"], values["box"]) for values in (leaves, targets)]
    terms = detection_distillation(pair[0], pair[1], None, config.det)
    terms |= segmentation_distillation(leaves["seg"], targets["seg"], config.seg)
    torch.stack([term.divided() for term in terms.values()]).sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
