"""ONNX graphs as teachers: `onnx:FILE`, of this project's export or of its layout (docs/guide/teachers.md).

Input: images (batch, 3, h, w), uint8, or float in 0..1. Outputs for detection: `boxes` (batch, K, 4) x1 y1 x2 y2 as
fractions of the sides, and `scores` (batch, K, C), probabilities, or `logits` of which each is a sigmoid of its own.
For segmentation: `logits` (batch, C, h', w'), or `scores`, 0 or larger. Names of classes are the metadata `det_classes`
and `seg_classes`, JSON lists, or `names` in the configuration.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multas_ray.config import Task, TeacherConfig
from multas_ray.documents import parse_json
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.tasks.detection.found import Found
from multas_ray.tasks.task import General
from multas_ray.teacher.strangers import stretched
from multas_ray.teacher.teacher import digest_of

LAYOUT: dict[Task, tuple[str, ...]] = {"det": ("boxes",), "seg": ()}
"""Outputs that a graph must have for each task, besides `scores` or `logits`."""


class Graph:
    """Graph in ONNX Runtime, see `strangers.Model`."""

    exclusive = False

    def __init__(self, source: str, names: Sequence[str], digest: str, session: Any, task: Task) -> None:
        """Take a session whose inputs and outputs have been checked."""
        self.source, self.names, self.digest = source, names, digest
        self.session, self.task = session, task
        outputs = [output.name for output in session.get_outputs()]
        self.scores = _scores_of(outputs, task)
        [images] = session.get_inputs()
        self.type = np.uint8 if images.type == "tensor(uint8)" else np.float32
        batch, _, *sides = images.shape
        self.batch = batch if isinstance(batch, int) else None
        self.size = sides[0] if isinstance(sides[0], int) else None

    def __call__(self, images: Tensor) -> General:
        """Run the graph; a batch of a fixed size is run as often as needed."""
        pixels = stretched(images, self.size).cpu().numpy()
        if self.type == np.float32:
            pixels = pixels.astype(np.float32) / 255
        names = [*LAYOUT[self.task], self.scores]
        parts = [
            self._run(names, pixels[start : start + (self.batch or len(pixels))]) for start in self._starts(pixels)
        ]
        found = [
            torch.as_tensor(np.concatenate(each), device=images.device).float() for each in zip(*parts, strict=True)
        ]
        logits = self.scores == "logits"
        if self.task == "det":
            return Found(found[0], found[1].sigmoid() if logits else found[1])
        return found[0].softmax(dim=1) if logits else found[0]

    def _starts(self, pixels: np.ndarray) -> range:
        return range(0, len(pixels), self.batch or len(pixels))

    def _run(self, names: Sequence[str], pixels: np.ndarray) -> list[np.ndarray]:
        given = len(pixels)
        if self.batch and given < self.batch:
            pixels = np.concatenate([pixels, np.zeros((self.batch - given, *pixels.shape[1:]), pixels.dtype)])
        return [output[:given] for output in self.session.run(names, {self.session.get_inputs()[0].name: pixels})]


def open_model(settings: TeacherConfig, task: Task, device: str) -> Graph:
    """Open a graph, see `strangers.Opener`."""
    place = f"teachers.{task}.source {settings.source}"
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{place}: needs the package onnxruntime: pip install 'multas-ray[export]'") from None
    file = Path(settings.source.partition(":")[2]).expanduser().resolve()
    wanted = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        wanted = "CPUExecutionProvider"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        # A large graph keeps its weights in files beside it, called FILE.data, FILE_data, …
        beside = sorted(each for each in file.parent.glob(f"{glob.escape(file.name)}*") if each.is_file())
        digest = digest_of(*(each.read_bytes() for each in {file: None} | dict.fromkeys(beside)))
        session = onnxruntime.InferenceSession(str(file), options, providers=[wanted])
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from None
    except Exception as error:
        raise UserError(f"{place}: no graph that ONNX Runtime can run ({first_line(error)})") from None
    _check(place, session, task)
    names = settings.names or _names(place, session.get_modelmeta().custom_metadata_map, task)
    return Graph(f"onnx:{file}", names, digest, session, task)


def _check(place: str, session: Any, task: Task) -> None:
    """Raise a UserError where inputs or outputs are not of the layout."""
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(uint8)", "tensor(float)"):
        shown = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise UserError(f"{place}: one input (batch, 3, h, w) uint8 or float is needed; it has {shown}")
    _, channels, *sides = inputs[0].shape
    fixed = [side for side in sides if isinstance(side, int)]
    if (isinstance(channels, int) and channels != 3) or len(set(fixed)) > 1 or len(fixed) == 1:
        raise UserError(f"{place}: its input {inputs[0].shape} is no square of 3 channels, (batch, 3, side, side)")
    missing = [name for name in LAYOUT[task] if name not in outputs]
    if missing or not _scores_of(outputs, task):
        wanted = " and ".join([*(quoted(name) for name in LAYOUT[task]), "'scores' or 'logits'"])
        raise UserError(f"{place}: for {task} its outputs need {wanted}; it has {', '.join(outputs)}")


def _scores_of(outputs: Sequence[str], task: Task) -> str:
    """Return the output that tells the classes; an export of this project with both tasks has `scores` of objects."""
    order = ("scores", "logits") if task == "det" else ("logits", "scores")
    return next((name for name in order if name in outputs), "")


def _names(place: str, metadata: Mapping[str, str], task: Task) -> list[str]:
    key = f"{task}_classes"
    names = parse_json(metadata[key], f"{place}: {key}") if key in metadata else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{place}: it does not tell its classes ({key}, a JSON list in its metadata); give them as `names`"
        )
    return names
