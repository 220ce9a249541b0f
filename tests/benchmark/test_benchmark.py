"""What a benchmark compares must be the same, and its figures must be kept."""

import json
from pathlib import Path

import torch

from multas_ray.benchmark import published
from multas_ray.benchmark.timing import alternate, write_figures
from multas_ray.config import LossConfig
from multas_ray.loss.detection import detection_losses
from multas_ray.model.anchors import anchors


def test_the_published_way_computes_the_same_losses_and_gradients() -> None:
    torch.manual_seed(0)
    grid = anchors(96, 96)
    torch.testing.assert_close(published.listed_anchors(96), grid)
    corner = torch.rand(2, 3, 2) * 0.5
    boxes, labels = torch.cat([corner, corner + 0.1 + 0.4 * torch.rand(2, 3, 2)], dim=2), torch.randint(0, 5, (2, 3))
    targets = {"boxes": boxes, "labels": labels, "difficult": torch.zeros(2, 3, dtype=torch.bool)}
    grads = []
    for batched in (True, False):
        torch.manual_seed(1)
        cls, box = torch.randn(2, len(grid), 5, requires_grad=True), torch.randn(2, len(grid), 4, requires_grad=True)
        if batched:
            terms = detection_losses(cls, box, grid, targets, LossConfig())
            total = terms["det_box"].divided() + terms["det_cls"].divided()
        else:
            total = torch.stack(published.losses(cls, box, 96, list(boxes), list(labels))).sum()
        total.backward()
        grads.append((total, cls.grad, box.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_variants_take_turns() -> None:
    turns: list[str] = []
    seconds = alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repeats=2, rounds=2)
    assert "".join(turns) == "ab" + "aabb" * 2
    assert seconds.keys() == {"a", "b"}


def test_figures_are_added_to_those_of_other_benchmarks(tmp_path: Path) -> None:
    write_figures(tmp_path / "out", "loss", {"x": 1.0})
    write_figures(tmp_path / "out", "data", {"y": 2.0})
    file = write_figures(tmp_path / "out", "loss", {"z": 3.0})
    assert json.loads(file.read_text()) == {"loss": {"z": 3.0}, "data": {"y": 2.0}}
