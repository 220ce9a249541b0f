"""The library's functions against the reference implementation's numbers: what each golden file holds, recomputed."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multas_ray.config import LossConfig, ModelConfig
from multas_ray.data.batch import mapped
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.reference import load_reference_state_dict
from multas_ray.tasks.detection.anchors import anchors, corners, decode, encode
from multas_ray.tasks.detection.distillation import (
    defeat,
    feature_mse,
    foreground_cells,
    pdf_distil,
    soft_boxes,
    soft_classes,
)
from multas_ray.tasks.detection.head import cells
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.detection.matching import iou_match, mutual_guidance, overlaps
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.tasks.detection.scored import IOUS, ScoredImage
from multas_ray.tasks.detection.voc_ap import voc_ap
from multas_ray.tasks.segmentation.metric import SegmentationMetric
from multas_ray.tasks.terms import Term, scaled
from multas_ray.train.optim import ema_decay, learning_rate

Arrays = Mapping[str, np.ndarray]
Found = Iterator[tuple[str, object]]
"""Entries of a file, with what the library makes of the file's inputs."""


@dataclass(frozen=True)
class Result:
    """One entry, compared."""

    entry: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


def check_file(file: Path) -> Iterator[Result]:
    """Compare every entry of a golden file that is an output.

    An entry or file of unknown meaning does not pass; nor does a file with objects, which only unpickling could read.
    """
    kind = next((kind for kind in KINDS if re.fullmatch(kind, file.name)), None)
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except ValueError:
        kind = None
    if kind is None:
        yield Result(file.name, float("nan"), 0)
        return
    recompute, inputs, tolerance, relative = KINDS[kind]
    pending = {name for name in arrays if not re.fullmatch(inputs, name)}
    for name, value in recompute(arrays, file):
        if name in pending:
            pending.remove(name)
            yield Result(f"{file.stem}/{name}", *_error(value, arrays[name], tolerance, relative))
    for name in sorted(pending):
        yield Result(f"{file.stem}/{name}", float("nan"), tolerance)


def _error(value: object, expected: np.ndarray, tolerance: float, relative: bool) -> tuple[float, float]:
    """The error of a value, and what it may be: integers and text are exact."""
    found = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if found.shape != expected.shape:
        return float("inf"), tolerance
    if expected.dtype.kind not in "f":
        return float((found != expected).sum()), 0.0
    if not expected.size or not np.array_equal(np.isnan(found), np.isnan(expected)):
        return (float("inf") if expected.size else 0.0), tolerance
    difference = np.nanmax(np.abs(found - expected), initial=0.0)
    scale = np.nanmax(np.abs(expected), initial=0.0) if relative else 1.0
    return float(difference / scale if scale else difference), tolerance


def _anchors(arrays: Arrays, file: Path) -> Found:
    for name in arrays:
        base, size = (int(number) for number in re.findall(r"\d+", name))
        yield name, anchors(size, size, levels=5 if base >= 512 else 4)


def _ground_truth(arrays: Arrays) -> tuple[Tensor, Tensor]:
    """Padded boxes (B, M, 4) and labels (B, M), from 0, -1 for padding; label 0 where the file has none."""
    count = sum(name.startswith("gt_boxes_") for name in arrays)
    boxes = [torch.from_numpy(arrays[f"gt_boxes_{i}"]).reshape(-1, 4) for i in range(count)]
    labels = [
        torch.from_numpy(arrays[f"gt_labels_{i}"]) - 1 if f"gt_labels_{i}" in arrays else torch.zeros(len(own)).long()
        for i, own in enumerate(boxes)
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(boxes, batch_first=True), pad(labels, batch_first=True, padding_value=-1)


def _detection(arrays: Arrays, file: Path) -> Found:
    grid, codes, logits = (torch.from_numpy(arrays[name]) for name in ("anchors_cxcywh", "pred_loc", "pred_logits"))
    boxes, labels = _ground_truth(arrays)
    valid = labels >= 0
    decoded = decode(codes, grid)
    ious = overlaps(boxes, valid, corners(grid))
    matched = iou_match(ious, valid)
    columns = labels.clamp(min=0)[:, None].expand(-1, len(grid), -1)
    probabilities = logits.sigmoid().gather(2, columns).transpose(1, 2)
    classify, regress = mutual_guidance(ious, overlaps(boxes, valid, decoded), probabilities, valid)
    for i in range(len(codes)):
        yield f"iou_match_overlap_{i}", matched.score[i]
        yield f"iou_match_label_{i}", labels[i, matched.index[i]] + 1
        yield f"iou_match_box_{i}", boxes[i, matched.index[i]]
        yield f"mg_cls_score_{i}", classify.score[i]
        yield f"mg_label_{i}", labels[i, classify.index[i]] + 1
        yield f"mg_reg_score_{i}", regress.score[i]
        yield f"mg_box_{i}", boxes[i, regress.index[i]]
        yield f"encoded_{i}", encode(boxes[i, matched.index[i]], grid)
        yield f"decoded_{i}", decoded[i]

    truth = UnitBoxes(boxes, labels, torch.zeros_like(valid))
    for matching, long in (("iou", "iou"), ("mutual", "mutual_guidance")):
        for classification, form in (("focal", "focal"), ("gfocal", "generalized_focal")):
            config = LossConfig.model_validate({"matching": long, "classification": form})
            leaves = {"logits": logits.clone().requires_grad_(), "loc": codes.clone().requires_grad_()}
            terms = detection_losses(DetectionOutput(leaves["logits"], leaves["loc"]), truth, grid, config)
            values = {"box": terms["det_box"].divided(), "cls": terms["det_cls"].divided()}
            sum(values.values()).backward()  # type: ignore[union-attr]  # sum of tensors
            for name, value in values.items():
                yield f"{matching}_{classification}_loss_{name}", value
            for name, leaf in leaves.items():
                yield f"{matching}_{classification}_grad_{name}", leaf.grad


def _distillation(arrays: Arrays, file: Path) -> Found:
    boxes, labels = _ground_truth(arrays)
    foreground = foreground_cells(boxes, labels, torch.from_numpy(arrays["anchors_cxcywh"]))
    yield "fg_mask", foreground.float()

    def output(role: str) -> DetectionOutput:
        """The output of `teacher` or `student`."""
        return DetectionOutput(*(torch.from_numpy(arrays[f"{role}_{name}"]) for name in ("logits", "loc", "feature")))

    teacher = output("teacher")
    losses: dict[str, Callable[[DetectionOutput], dict[str, Term]]] = {
        "soft": lambda student: soft_classes(student, teacher) | soft_boxes(student, teacher),
        "mse": lambda student: feature_mse(student, teacher),
        "pdf": lambda student: pdf_distil(student, teacher),
        "def": lambda student: defeat(student, teacher, foreground),
        "def256": lambda student: scaled(defeat(student, teacher, foreground), 1 / 256),
    }
    for loss, terms_of in losses.items():
        student = mapped(output("student"), lambda values: values.clone().requires_grad_())
        values = {name: term.divided() for name, term in terms_of(student).items()}
        total = torch.stack(list(values.values())).sum()
        total.backward()
        yield f"{loss}_loss_kd", total
        if loss == "soft":
            yield "soft_loss_l", values["kd_det_soft_box"]
            yield "soft_loss_c", values["kd_det_soft_cls"]
        for name, public in (("box", "loc"), ("cls", "conf"), ("feature", "feature_d")):
            gradient = getattr(student, name).grad
            yield f"{loss}_grad_{public}", float("nan") if gradient is None else gradient


def _voc_ap(arrays: Arrays, file: Path) -> Found:
    for case in _cases(arrays):
        truth, found = arrays[f"{case}_gt"], arrays[f"{case}_det"]
        classes = next(len(value) for name, value in arrays.items() if name.startswith(f"{case}_ap_"))
        # Inclusive corners to continuous ones.
        far = np.array([0.0, 0.0, 1.0, 1.0])
        images = []
        for image in np.union1d(truth[:, 0], found[:, 0]):
            gt, det = truth[truth[:, 0] == image], found[found[:, 0] == image]
            images.append(
                ScoredImage(
                    det_boxes=det[:, 2:6] + far,
                    det_scores=det[:, 6],
                    det_labels=det[:, 1].astype(int),
                    gt_boxes=gt[:, 2:6] + far,
                    gt_labels=gt[:, 1].astype(int),
                    gt_difficult=gt[:, 6].astype(bool),
                )
            )
        for name, eleven in (("11point", True), ("area", False)):
            for threshold, values in zip(IOUS, voc_ap(images, classes, eleven), strict=True):
                yield f"{case}_ap_{name}_iou{threshold:.2f}", values


def _seg_metrics(arrays: Arrays, file: Path) -> Found:
    for case in _cases(arrays):
        classes = [str(number) for number in range(int(arrays[f"{case}_num_classes"]))]
        metric = SegmentationMetric(classes)
        for predicted, truth in zip(arrays[f"{case}_pred"], arrays[f"{case}_gt"], strict=True):
            metric.add_labels(predicted, truth)
        values = metric.compute()
        for name in ("mIoU", "fwIoU", "mACC", "pACC"):
            yield f"{case}_{name}", values[f"seg/{name}"]
        yield f"{case}_iou_per_class", [values.get(f"seg/IoU/{name}", float("nan")) for name in classes]


def _schedule(arrays: Arrays, file: Path) -> Found:
    base, warmup, total = (arrays[name].item() for name in ("base_lr", "warmup_steps", "total_steps"))
    yield "lr", [learning_rate(int(step), base, warmup, total) for step in arrays["steps"]]
    yield "ema_decay", [ema_decay(int(updates), 0.9998, 2000) for updates in arrays["ema_updates"]]


def _model(arrays: Arrays, file: Path) -> Found:
    _, _, backbone, neck, tasks = file.stem.split("_", 4)
    weights = published_weights(arrays, int(arrays["fill_seed"]))
    adapter = weights.get("dist.0.weight")
    config = ModelConfig.model_validate(
        {
            "preset": "paper",
            "backbone": backbone,
            "neck": neck,
            "tasks": tasks.split("+"),
            "pretrained": False,
            "levels": sum(bool(re.fullmatch(r"neck\.lateral_convs\.\d+\.conv\.weight", key)) for key in weights),
            "adapter": None if adapter is None else len(adapter),
        }
    )
    det_classes = range(arrays["conf_shape"][2]) if "conf_shape" in arrays else ()
    seg_classes = range(arrays["seg_shape"][1]) if "seg_shape" in arrays else ()
    network = MultiTaskNet(config, {"det": list(map(str, det_classes)), "seg": list(map(str, seg_classes))}).eval()
    try:
        load_reference_state_dict(network, weights)
    except UserError:
        return
    # All keys and shapes fit, else they had been refused.
    yield "keys", arrays["keys"]
    yield "shapes", arrays["shapes"]
    pixels = np.random.RandomState(int(arrays["input_seed"])).standard_normal((1, 3, 320, 320))
    images = torch.from_numpy(pixels).float()
    with torch.inference_mode():
        outputs = network(images)
        pyramid = network.pyramid(images)
        plain = cells(pyramid)
        adapted = None
        if network.adapters is not None:
            adapted = cells([adapter(level) for adapter, level in zip(network.adapters, pyramid, strict=True)])
    published = {
        "loc": outputs["det"].box if "det" in outputs else None,
        "conf": outputs["det"].cls if "det" in outputs else None,
        "seg": outputs.get("seg"),
        "feature": plain,
        "feature_s": plain,
        "feature_d": adapted,
    }
    for name, value in published.items():
        if value is not None and f"{name}_index" in arrays:
            yield f"{name}_shape", np.array(value.shape)
            yield f"{name}_value", value.flatten()[torch.from_numpy(arrays[f"{name}_index"])]
            yield f"{name}_mean", value.double().mean()
            yield f"{name}_std", value.double().std()


def published_weights(arrays: Arrays, seed: int) -> dict[str, Tensor]:
    """The state dict of a golden network: its keys and shapes, filled by the golden files' recipe."""
    weights = {}
    for number, (name, text) in enumerate(zip(arrays["keys"], arrays["shapes"], strict=True)):
        key, shape = str(name), tuple(int(side) for side in re.findall(r"\d+", str(text)))
        random = np.random.RandomState(seed * 100003 + number)
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.zeros(shape, dtype=torch.long)
            continue
        if key.endswith("running_var"):
            values = 1 + 0.2 * random.rand(*shape)
        elif key.endswith("running_mean"):
            values = 0.1 * random.standard_normal(shape)
        elif len(shape) == 1 and key.endswith("weight") and ("bn" in key or "downsample.1" in key):
            values = 1 + 0.1 * random.standard_normal(shape)
        elif len(shape) == 1:
            values = 0.05 * random.standard_normal(shape)
        else:
            values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(np.asarray(values)).float()
    return weights


def _cases(arrays: Arrays) -> list[str]:
    return sorted({name.split("_")[0] for name in arrays})


KINDS: dict[str, tuple[Callable[[Arrays, Path], Found], str, float, bool]] = {
    r"anchors\.npz": (_anchors, "", 1e-6, True),
    r"detection\.npz": (_detection, r"anchors_cxcywh|pred_loc|pred_logits|gt_(boxes|labels)_\d+", 1e-4, True),
    r"distillation\.npz": (
        _distillation,
        r"(teacher|student)_(loc|logits|feature)|anchors_cxcywh|gt_(boxes|labels)_\d+",
        1e-4,
        True,
    ),
    r"voc_ap\.npz": (_voc_ap, r"case\d+_(gt|det)", 1e-6, True),
    r"seg_metrics\.npz": (_seg_metrics, r"case\d+_(pred|gt|num_classes)", 1e-6, True),
    r"schedule\.npz": (_schedule, "base_lr|warmup_steps|total_steps|steps|ema_updates", 1e-9, True),
    r"model_(student|teacher)_.*\.npz": (_model, r".*_index|fill_seed|input_seed", 1e-3, False),
}
"""By file name: what recomputes it, which entries are inputs, the tolerance, and whether it is relative."""
