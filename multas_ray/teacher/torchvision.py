"""torchvision's detectors and segmentation networks as teachers: `torchvision:NAME[:WEIGHTS]`.

WEIGHTS is the name of published weights (default: the best), or a file of weights (.safetensors, or .pth of tensors).
For a file, `names` lists the classes in the order of the network's outputs, the background first where it has one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from multas_ray.config import Task, TeacherConfig
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.model.backbones import IMAGENET_MEAN, IMAGENET_STD
from multas_ray.tasks.detection.distillation import SEEN
from multas_ray.tasks.detection.found import MOST, stacked
from multas_ray.tasks.task import General
from multas_ray.teacher.strangers import network_digest, stretched
from multas_ray.teacher.teacher import digest_of

PACKAGES: dict[Task, Any] = {"det": torchvision.models.detection, "seg": torchvision.models.segmentation}


class Detector:
    """Detector, which normalises and resizes images itself, see `strangers.Model`."""

    exclusive = False

    def __init__(self, source: str, names: Sequence[str], network: nn.Module, size: int | None) -> None:
        """Take a network in evaluation mode.

        Args:
            source: name of the teacher.
            names: its classes by label.
            network: the network.
            size: side in pixels at which it works; None: as it was built.
        """
        self.source, self.names, self.network = source, names, network
        self.digest = digest_of(network_digest(network), repr(list(names)))
        self.size = size or _prescribed(network)
        # It drops what it is less sure of than 0.05, mostly: those still teach something.
        parts: list[Any] = [network, getattr(network, "roi_heads", None)]
        for part in parts:
            if hasattr(part, "score_thresh"):
                part.score_thresh = SEEN
                part.detections_per_img = MOST
        transform: Any = network.transform
        if size is not None and not getattr(transform, "fixed_size", None):
            transform.min_size, transform.max_size = (size,), size

    def __call__(self, images: Tensor) -> General:
        """Find objects: torchvision tells of each the best class alone, so that the others have probability 0."""
        height, width = images.shape[-2:]
        sides = torch.tensor([width, height, width, height], device=images.device)
        found = []
        for one in self.network(list(images.float() / 255)):
            p = torch.zeros(len(one["scores"]), len(self.names), device=images.device)
            p[torch.arange(len(p)), one["labels"]] = one["scores"].float()
            found.append((one["boxes"] / sides, p))
        return stacked(found)


def _prescribed(network: nn.Module) -> int | None:
    """Return the side in pixels that a detector resizes images to."""
    transform: Any = network.transform
    fixed = getattr(transform, "fixed_size", None)
    side = fixed[0] if fixed else max(transform.min_size)
    return int(side)


class Segmenter:
    """Segmentation network, see `strangers.Model`."""

    exclusive = True

    def __init__(self, source: str, names: Sequence[str], network: nn.Module, size: int | None) -> None:
        """Take a network in evaluation mode; `size` is the side in pixels that it was trained at, None: any."""
        self.source, self.names, self.network, self.size = source, names, network, size
        self.digest = digest_of(network_digest(network), repr(list(names)))

    def __call__(self, images: Tensor) -> General:
        """Compute the probabilities of the pixels."""
        mean, std = (torch.tensor(each, device=images.device)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
        logits: Tensor = self.network((stretched(images, self.size).float() / 255 - mean) / std)["out"]
        return logits.float().softmax(dim=1)


def open_model(settings: TeacherConfig, task: Task, device: str) -> Detector | Segmenter:
    """Build a network of torchvision and load its weights, see `strangers.Opener`."""
    place = f"teachers.{task}.source {settings.source}"
    _, name, weights = [*settings.source.split(":", 2), ""][:3]
    known = torchvision.models.list_models(PACKAGES[task])
    if name not in known:
        raise UserError(f"{place}: torchvision has no network {quoted(name)} for {task}; it has {', '.join(known)}")
    file = Path(weights)
    if weights and file.is_file():
        network, names, size = _from_file(place, name, file, settings.names)
        source = f"torchvision:{name}:{file.resolve()}"
    else:
        network, published, size = _published(place, name, weights)
        source, names = settings.source, settings.names or published
        if len(names) != len(published):
            raise UserError(f"{place}: names has {len(names)}, and these weights have {len(published)} classes")
    network = network.eval().requires_grad_(False).to(device)
    if task == "det":
        return Detector(source, names, network, settings.size)
    return Segmenter(source, names, network, settings.size or size)


def _from_file(
    place: str, name: str, file: Path, names: list[str] | None
) -> tuple[nn.Module, Sequence[str], int | None]:
    if names is None:
        raise UserError(f"{place}: a file of weights has no names; give them as `names`, in the order of the outputs")
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=len(names))
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            # Tensors alone: nothing of a pickle is run.
            state = torch.load(file, map_location="cpu", weights_only=True)
        state = dict(state.get("model", state))
        # A head that only helps to train.
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("aux_classifier.")})
    except Exception as error:
        # The first line of PyTorch's messages names the network, the second what does not fit.
        reason = (str(error).splitlines()[1:2] or [first_line(error)])[0].strip()
        raise UserError(f"{place}: no weights of {name} with {len(names)} classes ({reason})") from None
    return network, names, None


def _published(place: str, name: str, weights: str) -> tuple[nn.Module, Sequence[str], int | None]:
    choices = torchvision.models.get_model_weights(name)
    if weights and weights not in choices.__members__:
        raise UserError(
            f"{place}: no file and no weights {quoted(weights)}; there are {', '.join(choices.__members__)}"
        )
    chosen = choices[weights] if weights else choices.DEFAULT
    try:
        network = torchvision.models.get_model(name, weights=chosen, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{place}: the weights could not be fetched ({first_line(error)})") from None
    [size] = getattr(chosen.transforms(), "resize_size", None) or [None]
    return network, chosen.meta["categories"], size
