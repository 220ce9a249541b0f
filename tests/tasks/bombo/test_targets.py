"""Boxes of mask components, split and joined as predictions suggest."""

import pytest
import torch

from multas_ray.tasks.bombo.targets import MAX_PREDICTIONS, correct, sure_boxes, weak_targets
from multas_ray.tasks.detection.anchors import anchors, encode
from multas_ray.tasks.detection.output import DetectionOutput

LEFT, RIGHT = [0.0, 0.0, 0.4, 0.5], [0.4, 0.0, 0.8, 0.5]
WHOLE = [0.0, 0.0, 0.8, 0.5]


def run(components: list, labels: list, predicted: list, names: list) -> list[tuple[list[float], int]]:
    boxes, kept = correct(
        torch.tensor([components]), torch.tensor([labels]), torch.tensor([predicted]), torch.tensor([names])
    )
    assert boxes.isfinite().all()
    return sorted(
        ([round(v, 4) for v in box.tolist()], int(label))
        for box, label in zip(boxes[0], kept[0], strict=True)
        if label >= 0
    )


def test_components_without_predictions_stay():
    assert run([LEFT, RIGHT], [1, 2], [WHOLE], [-1]) == [(LEFT, 1), (RIGHT, 2)]


def test_two_components_of_one_object_are_joined():
    assert run([LEFT, RIGHT], [1, 1], [[0.0, 0.0, 0.82, 0.5]], [1]) == [(WHOLE, 1)]


@pytest.mark.parametrize(
    ("labels", "predicted", "name"),
    [
        ([1, 2], [0.0, 0.0, 0.8, 0.5], 1),  # one is of another class
        ([1, 1], [0.0, 0.0, 0.8, 0.5], 2),  # both are
        ([1, 1], [0.0, 0.0, 1.0, 1.0], 1),  # the prediction is much larger than what it would join
        ([1, 1], [0.0, 0.0, 0.6, 0.5], 1),  # holds one of them only
    ],
)
def test_components_that_do_not_belong_together_stay(labels, predicted, name):
    assert run([LEFT, RIGHT], labels, [predicted], [name]) == [(LEFT, labels[0]), (RIGHT, labels[1])]


def test_a_component_of_two_objects_is_split():
    assert run([WHOLE], [1], [LEFT, RIGHT], [1, 1]) == [(LEFT, 1), (RIGHT, 1)]


@pytest.mark.parametrize(
    ("predicted", "names"),
    [
        ([LEFT, RIGHT], [1, 2]),  # one is of another class
        ([LEFT, RIGHT], [1, -1]),  # only one of them
        ([[0.0, 0.0, 0.2, 0.2], [0.2, 0.0, 0.4, 0.2]], [1, 1]),  # they do not make it up
        ([LEFT, [0.0, 0.0, 0.78, 0.5]], [1, 1]),  # one of them is the whole
    ],
)
def test_a_component_that_is_one_object_stays(predicted, names):
    assert run([WHOLE], [1], predicted, names) == [(WHOLE, 1)]


def outputs(boxes: list[list[float]], labels: list[int], size: int = 128) -> tuple[torch.Tensor, ...]:
    """Logits and codes of a network that sees just these, each at the anchor that overlaps it most."""
    own = anchors(size, size, 24.0, torch.device("cpu"), 4)
    cls, box = torch.full((1, len(own), 3), -8.0), torch.zeros(1, len(own), 4)
    for number, (corners, label) in enumerate(zip(boxes, labels, strict=True)):
        place = 7 * number + 100
        cls[0, place, label] = 3.0 - 0.1 * number
        box[0, place] = encode(torch.tensor([corners]), own[place : place + 1])[0]
    return cls, box, own


def test_sure_boxes_are_the_networks_own_without_doubles():
    near = [0.01, 0.0, 0.41, 0.5]
    boxes, labels = sure_boxes(*outputs([LEFT, near, RIGHT], [1, 1, 1]))
    assert boxes.shape == (1, MAX_PREDICTIONS, 4)
    found = [box.tolist() for box, label in zip(boxes[0], labels[0], strict=True) if label >= 0]
    assert found == [pytest.approx(LEFT, abs=1e-5), pytest.approx(RIGHT, abs=1e-5)]


def test_targets_are_as_wide_as_the_fullest_row():
    cls, box, own = outputs([LEFT, RIGHT], [1, 1])
    components = torch.tensor([[WHOLE, [0.9, 0.9, 1.0, 1.0]], [LEFT, [0.0] * 4]])
    labels = torch.tensor([[1, 2], [0, -1]])
    nothing = torch.full_like(cls, -8.0)
    targets = weak_targets(components, labels, DetectionOutput(torch.cat([cls, nothing]), torch.cat([box, box])), own)
    assert targets.boxes.shape == (2, 3, 4)
    assert sorted(targets.labels[0].tolist()) == [1, 1, 2]
    assert targets.labels[1].tolist() == [0, -1, -1]
    assert targets.boxes[1, 0].tolist() == pytest.approx(LEFT)
    assert not targets.difficult.any()


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_learn_from_is_no_error(rows):
    cls, box, own = outputs([], [])
    empty = torch.zeros(rows, 0, 4), torch.zeros(rows, 0, dtype=torch.long)
    targets = weak_targets(*empty, DetectionOutput(cls[:rows], box[:rows]), own)
    assert targets.labels.shape == (rows, 0)
