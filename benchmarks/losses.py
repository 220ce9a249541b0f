"""Benchmark of the detection loss, against the published way and against its floor, and of the two model presets."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from benchmarks import published
from benchmarks.timing import alternate
from multas_ray.config import Config, LossConfig
from multas_ray.config_file import parse_config
from multas_ray.data.batch import Some, TrainBatch
from multas_ray.data.plan import Part
from multas_ray.model.network import MultiTaskNet, count_gmacs, count_parameters
from multas_ray.model.precision import autocast
from multas_ray.resolve import resolve_precision
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.loss import detection_losses
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.detection.rows import UnitBoxes
from multas_ray.train.optim import build_optimizer
from multas_ray.train.step import loss_terms, term_weights, total_loss

SIZE = 320
CLASSES = 20
OBJECTS = (3, 9)
"""Least and largest number of objects of an image; six on average."""
STEP_BATCH = 4


def compare_losses(batch: int, repeats: int) -> dict[str, float]:
    """Measure the seconds of the detection loss, forward and backward, with anchors and matching.

    Args:
        batch: number of images.
        repeats: calls in a row that are timed together.

    Returns:
        Seconds of `batched` (ours), `per image` (the published way) and `focal loss alone` (torchvision's, on ready
        targets).
    """
    generator = torch.Generator().manual_seed(0)
    grid = anchors(SIZE, SIZE)
    cls = torch.randn(batch, len(grid), CLASSES, generator=generator) - 4
    box = torch.randn(batch, len(grid), 4, generator=generator)
    boxes, labels = _objects(batch, generator)
    padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
    truth = UnitBoxes(
        torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True), padded, torch.zeros_like(padded, dtype=torch.bool)
    )
    empty = torch.zeros_like(cls)
    config = LossConfig()

    def batched(cls: Tensor, box: Tensor) -> Tensor:
        terms = detection_losses(DetectionOutput(cls, box), truth, anchors(SIZE, SIZE), config)
        return terms["det_box"].divided() + terms["det_cls"].divided()

    def per_image(cls: Tensor, box: Tensor) -> Tensor:
        return torch.stack(published.losses(cls, box, SIZE, boxes, labels)).sum()

    def focal_alone(cls: Tensor, box: Tensor) -> Tensor:
        total: Tensor = sigmoid_focal_loss(cls, empty, reduction="sum")
        return total

    def trained(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            leaves = cls.detach().requires_grad_(), box.detach().requires_grad_()
            value = loss(*leaves)
            value.backward()
            return value.detach()

        return call

    variants = {"batched": batched, "per image": per_image, "focal loss alone": focal_alone}
    calls = {name: trained(loss) for name, loss in variants.items()}
    torch.testing.assert_close(calls["batched"](), calls["per image"](), rtol=1e-4, atol=0)
    return alternate(calls, repeats)


def compare_presets() -> dict[str, dict[str, float]]:
    """Compare the two presets: ResNet-18, 320 px, both tasks, the same batch, type and threads, no teacher.

    Returns:
        For each preset: `million_parameters`, `gmacs` of an image's forward pass, and `step_s`, seconds of a whole
        training step (forward, backward, optimiser).
    """
    batch = _batch()
    facts: dict[str, dict[str, float]] = {}
    steps = {}
    for preset in ("paper", "default"):
        config = parse_config(
            {
                "data": {"path": "memory", "size": SIZE},
                "model": {"preset": preset, "backbone": "resnet18", "pretrained": False},
                "optim": {"name": "sgd", "lr": 1e-3},
                "train": {"run": "memory", "steps": 1, "batch_size": STEP_BATCH},
            }
        )
        config = resolve_precision(config)
        torch.manual_seed(0)
        classes = [str(label) for label in range(CLASSES + 1)]
        network = MultiTaskNet(config.model, {"det": classes[1:], "seg": classes})
        facts[preset] = {
            "million_parameters": count_parameters(network) / 1e6,
            "gmacs": count_gmacs(network, SIZE),
        }
        steps[preset] = _step(network, config, batch)
    for preset, seconds in alternate(steps, repeats=1).items():
        facts[preset]["step_s"] = seconds
    return facts


def _step(network: MultiTaskNet, config: Config, batch: TrainBatch) -> Callable[[], None]:
    """Return a function that takes a training step."""
    optimizer = build_optimizer(network, config.optim)
    weights = term_weights(config)
    network.train()

    def step() -> None:
        with autocast(torch.device("cpu"), config.train.precision):
            terms = loss_terms(network, batch, {}, config, torch.device("cpu"))
        total_loss(terms, weights, workers=1)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _objects(batch: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Draw boxes (N, 4), x1 y1 x2 y2 in [0, 1], and labels (N,) of each image."""
    boxes, labels = [], []
    for _ in range(batch):
        count = int(torch.randint(OBJECTS[0], OBJECTS[1] + 1, (), generator=generator))
        sides = 0.05 + 0.45 * torch.rand(count, 2, generator=generator)
        corner = torch.rand(count, 2, generator=generator) * (1 - sides)
        boxes.append(torch.cat([corner, corner + sides], dim=1))
        labels.append(torch.randint(0, CLASSES, (count,), generator=generator))
    return boxes, labels


def _batch() -> TrainBatch:
    """Make a batch of noise in which every row is annotated for both tasks."""
    random = np.random.default_rng(0)
    boxes, labels = _objects(STEP_BATCH, torch.Generator().manual_seed(0))
    pad = torch.nn.utils.rnn.pad_sequence
    padded = pad(labels, batch_first=True, padding_value=-1).numpy()
    rows = np.arange(STEP_BATCH)
    truth = UnitBoxes(pad(boxes, batch_first=True).numpy(), padded, np.zeros_like(padded, dtype=bool))
    masks = random.integers(0, CLASSES + 1, (STEP_BATCH, SIZE, SIZE), dtype=np.uint8)
    return TrainBatch(
        part=Part(0, 0, SIZE, rows, np.zeros_like(rows), np.zeros_like(rows), rows.astype(np.uint64)),
        ids=tuple(map(str, rows)),
        images=random.integers(0, 256, (STEP_BATCH, 3, SIZE, SIZE), dtype=np.uint8),
        truth={"det": Some(rows, truth), "seg": Some(rows, masks)},
    )
