"""Which validation images are drawn, and that they are drawn as photographs."""

import numpy as np
import torch
from PIL import Image

from multas_ray.config import TASK_MASKS, EvaluateConfig, ModelConfig
from multas_ray.data.index import read_index
from multas_ray.data.pillow import encode
from multas_ray.data.row import Row
from multas_ray.data.writer import write_dataset
from multas_ray.model.network import MultiTaskNet
from multas_ray.report.overlays import choose_samples, draw_samples
from tests.support.rows import source_of
from tests.support.shards import damage_rows

CLASSES = ["cat", "dog"]


def wide_row(number: int, task: str) -> Row:
    """A wide photograph whose right half is a cat."""
    image = encode(Image.new("RGB", (200, 100), (50, 100, 50)), "PNG")
    det, seg = task in ("det", "both"), task in ("seg", "both")
    boxes = np.array([[100, 0, 200, 100]] * det, np.float32).reshape(-1, 4)
    mask = np.repeat(np.array([[0, 1]], np.uint8), 100, 0).repeat(100, 1) if seg else None
    labels = np.zeros(len(boxes), np.int32)
    return Row(f"{task}{number}", image, 100, 200, det, seg, boxes, labels, np.zeros(len(boxes), bool), mask)


def network_of(tasks):
    torch.manual_seed(0)
    config = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16, norm="group", tasks=tasks)
    return MultiTaskNet(config, {"det": CLASSES, "seg": ["background", *CLASSES]}).eval()


def masks_of(index):
    return [TASK_MASKS[mask] for mask in index.task_mask(np.arange(len(index)))]


def test_samples_are_of_both_kinds_always_the_same_and_of_the_photographs_shape(tmp_path):
    # First come many of one kind.
    rows = [wide_row(number, task) for task in ("det", "none", "seg", "both") for number in range(9)]
    write_dataset(tmp_path / "wide", source_of({"val": rows}, CLASSES, ["background", *CLASSES]))
    index = read_index(str(tmp_path / "wide"), "val")
    chosen = choose_samples(index, ["det", "seg"], 8)
    masks = masks_of(chosen)
    assert sorted(masks) == ["both"] * 2 + ["det"] * 3 + ["seg"] * 3
    assert set(masks_of(choose_samples(index, ["seg"], 8))) == {"seg", "both"}

    network = network_of(["det", "seg"])
    samples = draw_samples(network, chosen, 64, EvaluateConfig(score_threshold=0.001))
    again = draw_samples(network, choose_samples(index, ["det", "seg"], 8), 64, EvaluateConfig(score_threshold=0.001))
    few_at_a_time = draw_samples(network, chosen, 64, EvaluateConfig(score_threshold=0.001, batch_size=3))
    assert samples.image_ids == again.image_ids == few_at_a_time.image_ids
    assert [name[:-1] for name in samples.image_ids] == masks
    assert samples.picture() == again.picture()
    cat = samples.palette.colors["cat"]
    for mask, (truth, found) in zip(masks, samples.rows, strict=True):
        assert truth.pixels.shape == found.pixels.shape == (3, 200, 400)
        assert truth.classes == {"cat"}
        # The edge of the box or of the mask: in the middle of the photograph.
        assert tuple(truth.pixels[:, 100, 200].tolist()) == cat, mask
        assert tuple(truth.pixels[:, 100, 100].tolist()) == (50, 100, 50)


def test_a_sample_that_cannot_be_decoded_is_left_out(tmp_path):
    rows = [wide_row(number, "det") for number in range(4)]
    write_dataset(tmp_path / "wide", source_of({"val": rows}, CLASSES, CLASSES))
    damage_rows(tmp_path / "wide", "val", (1, "image", b"no image"))
    index = read_index(str(tmp_path / "wide"), "val")
    samples = draw_samples(network_of(["det"]), choose_samples(index, ["det"], 4), 64, EvaluateConfig())
    assert sorted(samples.image_ids) == ["det0", "det2", "det3"]
    empty = draw_samples(network_of(["det"]), choose_samples(index, ["det"], 0), 64, EvaluateConfig())
    assert empty.picture() is None
