"""Detectors and segmentation networks of Hugging Face transformers as teachers: `hf:NAME-OR-FOLDER`.

Object detection of every family that `AutoModelForObjectDetection` builds, semantic segmentation, and universal
segmentation (MaskFormer and its like). Weights are safetensors, and code of a repository is never run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multas_ray.config import Task, TeacherConfig
from multas_ray.errors import UserError, first_line
from multas_ray.tasks.detection.found import Found
from multas_ray.tasks.task import General
from multas_ray.teacher.strangers import network_digest, stretched
from multas_ray.teacher.teacher import digest_of

AUTO: dict[Task, tuple[str, ...]] = {
    "det": ("AutoModelForObjectDetection",),
    "seg": ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"),
}
"""Classes of transformers that build the networks of a task."""
SOFTMAX = ("detr", "yolos", "table-transformer")
"""Model types whose objects are of one class or of none, the last column; the others' classes are sigmoids."""
LONGEST = 640
"""Side in pixels at which a detector works whose processor tells the shortest edge alone, mostly 800 of a photograph: a
square of so many pixels has less than half of them."""


@dataclass(frozen=True)
class Preparation:
    """What a model expects of its images."""

    size: int | None
    """Side of the square in pixels; None: any."""
    scale: float
    mean: Sequence[float]
    std: Sequence[float]
    """In the order of the channels that the model takes."""
    bgr: bool = False
    """Whether it takes blue, green, red."""

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images (n, 3, h, w) uint8 RGB."""
        pixels = stretched(images, self.size).float() * self.scale
        if self.bgr:
            pixels = pixels.flip(1)
        mean, std = (torch.tensor(each, device=images.device)[:, None, None] for each in (self.mean, self.std))
        return (pixels - mean) / std


class HuggingFaceModel:
    """Network of transformers, see `strangers.Model`."""

    def __init__(
        self, source: str, network: nn.Module, prepare: Preparation, task: Task, names: Sequence[str] | None = None
    ) -> None:
        """Take a network in evaluation mode; `names` are its classes, None: its configuration tells them."""
        self.source, self.network, self.prepare, self.task = source, network, prepare, task
        config: Any = network.config
        labels = {int(number): str(name) for number, name in config.id2label.items()}
        self.names = names or [labels.get(number, "") for number in range(max(labels) + 1)]
        self.exclusive = config.model_type in SOFTMAX
        self.digest = digest_of(network_digest(network), repr(self.names), repr(prepare), config.model_type)
        self.size = prepare.size

    def __call__(self, images: Tensor) -> General:
        """Run the network, and read its raw outputs."""
        prepared = self.prepare(images)
        outputs = self.network(pixel_values=prepared)
        if self.task == "det":
            return detr_objects(outputs.logits, outputs.pred_boxes, self.exclusive)
        if hasattr(outputs, "class_queries_logits"):
            return mask_scores(outputs.class_queries_logits, outputs.masks_queries_logits)
        if hasattr(outputs, "pred_masks"):
            return mask_scores(outputs.logits, outputs.pred_masks)
        return outputs.logits.float().softmax(dim=1)


def detr_objects(logits: Tensor, boxes: Tensor, softmax: bool) -> Found:
    """Read the outputs of a detector of DETR's kind.

    Args:
        logits: (n, Q, C), or with a softmax (n, Q, C + 1), whose last column is that of no object.
        boxes: (n, Q, 4) cx cy w h, as fractions of the sides.
        softmax: whether the columns exclude one another; else each is a sigmoid of its own.
    """
    p = logits.float().softmax(dim=-1)[..., :-1] if softmax else logits.float().sigmoid()
    centre, half = boxes[..., :2].float(), boxes[..., 2:].float() / 2
    return Found(torch.cat([centre - half, centre + half], dim=-1), p)


def mask_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Sum up the masks of a mask model by class (Cheng et al., NeurIPS 2021).

    Args:
        classes: (n, Q, C + 1) logits; the last column is that of no object.
        masks: (n, Q, h, w) logits.

    Returns:
        (n, C, h, w) scores, 0 or larger. They do not add up to one.
    """
    p = classes.float().softmax(dim=-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", p, masks.float().sigmoid())


def open_model(settings: TeacherConfig, task: Task, device: str) -> HuggingFaceModel:
    """Load a network and what it expects of images, see `strangers.Opener`."""
    place = f"teachers.{task}.source {settings.source}"
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"{place}: needs the package transformers: pip install 'multas-ray[hf]', or teachers.runtime_env: "
            "{pip: [transformers]}"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name = settings.source.partition(":")[2]
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder.resolve())
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{place}: no such folder, and no name of a model, which is OWNER/NAME")
    network = _network(place, transformers, name, task)
    prepare = _preparation(place, transformers, name, settings, task)
    network = network.eval().requires_grad_(False).to(device)
    return HuggingFaceModel(f"hf:{name}", network, prepare, task, settings.names)


def _network(place: str, transformers: Any, name: str, task: Task) -> nn.Module:
    config = _attempt(place, lambda: transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))
    options = {"config": config, "trust_remote_code": False, "use_safetensors": True, "dtype": torch.float32}
    options["output_loading_info"] = True
    for builder in (getattr(transformers, auto) for auto in AUTO[task]):
        if type(config) in builder._model_mapping:
            network, loaded = _attempt(place, partial(builder.from_pretrained, name, **options))
            missing = sorted(loaded["missing_keys"])
            if missing:
                raise UserError(
                    f"{place}: its file lacks {len(missing)} of the weights of {type(network).__name__}, such as "
                    f"{missing[0]}: it was trained for something else"
                )
            whole: nn.Module = network
            return whole
    wanted = "object detection" if task == "det" else "semantic or universal segmentation"
    raise UserError(f"{place}: a model of the type {config.model_type}, of which transformers has none for {wanted}")


def _preparation(place: str, transformers: Any, name: str, settings: TeacherConfig, task: Task) -> Preparation:
    """Read size and normalisation from the model's preprocessor_config.json.

    What that leaves out has defaults in the class of the processor, which differ between families.
    """
    load = transformers.AutoImageProcessor.from_pretrained
    processor = _attempt(place, lambda: load(name, trust_remote_code=False))

    def read() -> Preparation:
        scale = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if getattr(processor, "do_normalize", True):
            mean, std = ([float(value) for value in each] for each in (processor.image_mean, processor.image_std))
        bgr = bool(getattr(processor, "do_flip_channel_order", False))
        return Preparation(settings.size or _side(dict(processor.size or {}), task), scale, mean, std, bgr)

    preparation: Preparation = _attempt(place, read)
    return preparation


def _side(size: Mapping[str, int], task: Task) -> int | None:
    """Return the side of a square that has about the pixels of the size that a processor prescribes."""
    if "height" in size and "width" in size:
        return int((int(size["height"]) * int(size["width"])) ** 0.5)
    shortest = size.get("shortest_edge")
    if shortest is None:
        return None
    return min(shortest, LONGEST) if task == "det" else shortest


def _attempt(place: str, load: Callable[[], Any]) -> Any:
    """Call a function of transformers; what it raises is an error of one line."""
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # of a broken file or configuration anything
        raise UserError(f"{place}: cannot be loaded ({first_line(error)})") from None
