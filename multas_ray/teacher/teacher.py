"""The frozen teacher: a batch of images in, soft targets out, wherever it is placed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.checkpoint.folder import find_checkpoint, weights_digest
from multas_ray.checkpoint.weights import load_network
from multas_ray.config import Config, Task
from multas_ray.data.schema import DatasetInfo, read_info
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.precision import autocast
from multas_ray.tasks.detection import packed as codec

SoftTargets = dict[str, np.ndarray]
"""What a teacher answers, in the order of the rows it was asked for. `det.digest` or `seg.digest` (n,) uint64, the
`digests` of the images, and either dense, float16: of a detection teacher `cls` (n, A, C) logits, `box` (n, A, 4) codes
and, if asked for, `feature` (n, A/6, F), of a segmentation teacher `seg` (n, C, size/4, size/4) logits, averaged if
finer; or packed: `det.packed` or `seg.packed` (bytes,) uint8 with `det.ends` or `seg.ends` (n,) int64, where each row's
bytes end."""

Rows = Mapping[Task, np.ndarray]
"""Rows of a batch that each task is distilled on."""
Answer = Callable[[np.ndarray], SoftTargets]
"""Soft targets of images (n, 3, size, size) uint8, n >= 1."""


@dataclass(frozen=True)
class TeacherSpec:
    """Which teacher, and how it answers: two of the same answer alike."""

    task: Task
    checkpoint: str
    """A run folder or a checkpoint folder."""
    digest: str
    """Of the checkpoint's weights."""
    classes: tuple[str, ...]
    """What the student tells apart."""
    precision: str = "float32"
    """Type of its autocast."""
    features: bool = False
    """Whether a detection teacher returns its features too."""
    packed: bool = False
    """Whether it packs its answers."""

    def load(self, device: str) -> "Teacher":
        """The teacher itself.

        Raises:
            UserError: its checkpoint cannot be read, was not trained for the task, or has other classes.
        """
        network, _ = load_network(self.checkpoint)
        where = f"teachers.{self.task}.checkpoint {self.checkpoint}"
        if self.task not in network.tasks:
            raise UserError(f"{where}: trained for {', '.join(network.tasks)}, not {self.task}")
        own = network.det_classes if self.task == "det" else network.seg_classes
        if own != self.classes:
            raise UserError(f"{where}: its classes are {', '.join(own)}; the data set's are {', '.join(self.classes)}")
        return Teacher(self, network.requires_grad_(False).to(device))


def teacher_specs(config: Config, data: DatasetInfo) -> dict[Task, TeacherSpec]:
    """The teachers of the distilled tasks, as configured, for the classes of the data set; none where the network
    teaches itself.

    Raises:
        UserError: a teacher has no checkpoint.
    """
    if config.teachers.placement == "ema":
        return {}
    classes: dict[Task, list[str]] = {"det": data.det_classes, "seg": data.seg_classes}
    specs: dict[Task, TeacherSpec] = {}
    for task in config.distilled_tasks():
        teacher = config.teachers.of(task)
        assert teacher is not None
        folder = find_checkpoint(teacher.checkpoint)
        specs[task] = TeacherSpec(
            task,
            folder.uri,
            weights_digest(folder),
            tuple(classes[task]),
            config.train.precision,
            task == "det" and config.distill.det.features,
            config.packed(task),
        )
    return specs


def some_teacher_specs(config: Config) -> dict[Task, TeacherSpec]:
    """As `teacher_specs`, for what is done for teachers alone.

    Raises:
        UserError: also where no task is distilled, or there is no data set.
    """
    specs = teacher_specs(config, read_info(config.data.path))
    if not specs:
        raise UserError("teachers: no teacher of a task that is distilled; set teachers.det or teachers.seg")
    return specs


class Teacher:
    """A network that answers for one task, in evaluation mode, without gradients."""

    def __init__(self, spec: TeacherSpec, network: MultiTaskNet) -> None:
        """Args: network, which may have other tasks too."""
        self.spec = spec
        self.network = network
        self.device = network.mean.device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> SoftTargets:
        """Soft targets of images (n, 3, size, size) uint8.

        Raises:
            UserError: it answers with values that are not finite.
        """
        task, spec = self.spec.task, self.spec
        everything, nothing = None, torch.zeros(0, dtype=torch.long, device=self.device)
        rows = (everything, nothing) if task == "det" else (nothing, everything)
        with autocast(self.device, spec.precision):
            outputs = self.network(torch.tensor(images, device=self.device), *rows, features=spec.features)
        if task == "seg":
            height, width = images.shape[-2:]
            outputs["seg"] = F.adaptive_avg_pool2d(outputs["seg"], (height // 4, width // 4))
        names = ["seg"] if task == "seg" else ["cls", "box"] + ["feature"] * spec.features
        answer = {name: outputs[name].half() for name in names}
        if not all(bool(value.isfinite().all()) for value in answer.values()):
            raise UserError(f"teachers.{task}.checkpoint {spec.checkpoint}: it answers with NaN or infinite values")
        targets = {f"{task}.digest": digests(images)}
        if not spec.packed:
            return targets | {name: value.cpu().numpy() for name, value in answer.items()}
        pack = codec.pack_detection if task == "det" else codec.pack_segmentation
        return targets | joined(task, pack(*answer.values()))


def itself_as_teachers(config: Config, average: MultiTaskNet) -> dict[Task, Teacher]:
    """The moving average of a network's weights, which goes on being updated, as teacher of the distilled tasks
    (Tarvainen and Valpola, NeurIPS 2017)."""
    classes = {"det": average.det_classes, "seg": average.seg_classes}
    specs = (TeacherSpec(task, "ema", "", classes[task], config.train.precision) for task in config.distilled_tasks())
    return {spec.task: Teacher(spec, average) for spec in specs}


def digests(images: np.ndarray) -> np.ndarray:
    """(n,) uint64: a digest of each image's pixels, by which a target is known to be that image's."""
    each = [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(each), np.uint64)


def joined(task: Task, packed: Sequence[bytes]) -> SoftTargets:
    """Packed answers of some rows as arrays."""
    ends = np.cumsum([len(row) for row in packed], dtype=np.int64)
    return {f"{task}.packed": np.frombuffer(b"".join(packed), np.uint8), f"{task}.ends": ends}


def split(task: Task, soft: Mapping[str, np.ndarray]) -> list[bytes]:
    """The packed answers of each row: the inverse of `joined`."""
    data, ends = soft[f"{task}.packed"].tobytes(), soft[f"{task}.ends"].tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def to_tensors(soft: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Soft targets as the losses take them: float32 cls, box, feature and seg of the tasks that are there."""
    dense = ("cls", "box", "feature", "seg")
    tensors = {name: torch.tensor(soft[name], device=device).float() for name in dense if name in soft}
    if "det.packed" in soft:
        tensors["cls"], tensors["box"] = codec.unpack_detection(split("det", soft), device)
    if "seg.packed" in soft:
        tensors["seg"] = codec.unpack_segmentation(split("seg", soft), device)
    return tensors
