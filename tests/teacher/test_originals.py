"""The store of answers for original images: filled by a Ray Data job, and augmented with the images."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from multas_ray.config import TASK_MASKS, AugmentConfig, TeacherConfig
from multas_ray.data.collate import make_train_batch
from multas_ray.data.geometry import Geometry
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.run_folder import read_metrics
from multas_ray.tasks import PARTS
from multas_ray.tasks.detection import original as objects
from multas_ray.tasks.detection.found import Found
from multas_ray.tasks.segmentation import original as pixels
from multas_ray.teacher.precompute import best_size, for_originals, precompute
from multas_ray.teacher.selection import SelectDistilled
from multas_ray.teacher.specs import teacher_specs
from multas_ray.teacher.store import StoreReader
from multas_ray.teacher.teacher import to_tensors
from multas_ray.train.run import plan_run, train
from tests.support.configs import changed
from tests.support.teachers import images

WHOLE = Geometry()
HALF = Geometry(scale=(-2.0, 2.0), shift=(1.0, -0.5))
"""Flipped: the left half of the image's width, and the middle half of its height."""
SMALL = Geometry(scale=(0.5, 0.5), shift=(0.25, 0.25))
"""The image in the middle of a canvas twice its size."""
PLAIN = {"crop": 0.0, "zoom_out": 0.0, "flip": 0.0, "photometric": False}


def packed_objects() -> bytes:
    boxes = torch.tensor([[0.1, 0.4, 0.3, 0.6], [0.6, 0.4, 0.9, 0.6], [0.0, 0.0, 0.0, 0.0]])
    p = torch.tensor([[0.9, 0.0, 2e-4], [0.1, 0.8, 0.0], [0, 0, 0]])
    [packed] = objects.pack(Found(boxes[None], p[None]))
    return packed


def test_objects_are_moved_and_those_cut_off_are_gone():
    boxes, p = objects.follow(packed_objects(), WHOLE, 64, False)
    np.testing.assert_allclose(boxes, [[0.1, 0.4, 0.3, 0.6], [0.6, 0.4, 0.9, 0.6]], atol=1e-4)
    np.testing.assert_allclose(p, [[0.9, 0, 0], [0.1, 0.8, 0]], atol=1e-3)
    boxes, p = objects.follow(packed_objects(), HALF, 64, False)
    np.testing.assert_allclose(boxes, [[0.4, 0.3, 0.8, 0.7]], atol=1e-4)
    np.testing.assert_allclose(p, [[0.9, 0, 0]], atol=1e-3)
    boxes, _ = objects.follow(packed_objects(), SMALL, 64, False)
    np.testing.assert_allclose(boxes[1], [0.55, 0.45, 0.7, 0.55], atol=1e-4)
    # An object of less than a pixel.
    assert not len(objects.follow(packed_objects(), Geometry((0.01, 0.01), (0.5, 0.5)), 64, False)[0])


def quarters() -> torch.Tensor:
    """Distributions over three classes: left half the second, right half the third; a row of twenty pixels each way."""
    p = torch.zeros(1, 3, 64, 64)
    p[:, 1, :, :32] = 0.9
    p[:, 2, :, 32:] = 0.9
    p[:, 0] = 0.1
    return p


def test_distributions_are_moved_and_what_lies_outside_is_background():
    [packed] = pixels.pack(quarters())
    assert len(packed) < 2000
    whole = np.exp(pixels.follow(packed, WHOLE, 256, True).astype(np.float32))
    np.testing.assert_allclose(whole, quarters()[0].numpy(), atol=0.03)
    half = np.exp(pixels.follow(packed, HALF, 64, True).astype(np.float32))
    assert half.shape == (3, 16, 16)
    np.testing.assert_allclose(half.sum(axis=0), 1, atol=5e-3)
    # Flipped: what was the image's middle is at the left edge.
    np.testing.assert_allclose(half[:, 8, 4:], np.array([0.1, 0.9, 0])[:, None].repeat(12, 1), atol=0.03)
    small = np.exp(pixels.follow(packed, SMALL, 64, True).astype(np.float32))
    np.testing.assert_allclose(small[:, 0, 0], [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(small[:, 8, 6], [0.1, 0.9, 0], atol=0.03)
    other = np.exp(pixels.follow(packed, SMALL, 64, False).astype(np.float32))
    np.testing.assert_allclose(other[:, 0, 0], [1 / 3] * 3, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_goes_where_its_annotation_goes(scenes_path, seed):
    """Boxes and masks of scenes as if a teacher had found them: moved, they are what the augmentation made of them."""
    from multas_ray.data.index import read_index
    from multas_ray.data.plan import Part, mix
    from multas_ray.data.read import read_sample

    index = read_index(scenes_path, "train")
    rows = np.arange(len(index))
    rows = rows[index.task_mask(rows) == TASK_MASKS.index("both")][:12]
    seeds = mix(seed, rows * 0, rows)
    batch = make_train_batch(index, Part(0, 0, 64, rows, rows * 0, rows * 0, seeds), AugmentConfig(zoom_out=0.5))
    assert len(batch.geometry) == len(rows)
    compared = 0
    for place, row in enumerate(rows.tolist()):
        _, sample = read_sample(index, row)
        height, width = sample["image"].height, sample["image"].width
        boxes = sample["boxes"] / [width, height, width, height]
        moved = batch.geometry[place].boxes(boxes.astype(np.float32))
        truth = batch.truth["det"]
        found = truth.values.boxes[place][truth.values.labels[place] >= 0]
        for box in found:
            inner = (box > 0.02) & (box < 0.98)
            distance = np.where(inner, np.abs(np.clip(moved, 0, 1) - box), 0).max(axis=1)
            assert distance.min() < 0.02
            compared += inner.any()
        mask = batch.truth["seg"].values[place]
        given = sample["mask"]
        one_hot = np.stack([given == k for k in range(index.classes["seg"])]).astype(np.float32)
        maps, share = batch.geometry[place].resampled(one_hot, 64)
        inside = (share > 0.99) & (mask != 255)
        assert (maps.argmax(axis=0) == mask)[inside].mean() > 0.93
        # A canvas is ignored by the annotation, and no part of the answer; of a row and a column at the edges of the
        # image the nearest pixel may be the canvas's.
        assert (mask[share == 0] == 255).all()
        assert (share[mask == 255] >= 0.6).sum() <= 2 * 64
    assert compared > 5


@pytest.mark.parametrize("task", ["det", "seg"])
def test_an_own_teacher_says_of_a_whole_image_what_it_says_of_a_batch(specs, task):
    # Networks of random weights are sure of nothing.
    spec = replace(specs[task], settings=TeacherConfig(source="", temperature=4 if task == "det" else 1))
    whole = spec.load("cpu")(images())
    answer = for_originals(spec).load("cpu")(images())
    assert len(answer.packed) == 4
    original, names = PARTS[task].original, specs[task].terms.classes
    for each in answer.packed:
        original.check(each, len(names))
    moved = original.stack([original.follow(each, WHOLE, 64, task == "seg") for each in answer.packed])
    if task == "seg":
        p, expected = (torch.tensor(values).float().softmax(dim=1) for values in (moved, whole.dense))
        torch.testing.assert_close(p, expected, rtol=0, atol=0.05)
    else:
        assert moved.boxes.shape[1] <= 100
        surest = torch.tensor(whole.dense.cls).float().sigmoid().amax(dim=(1, 2))
        torch.testing.assert_close(torch.tensor(moved.probabilities).amax(dim=(1, 2)), surest, rtol=0, atol=2e-3)


def specs_of(config):
    return teacher_specs(config, read_info(config.data.path))


@pytest.mark.ray
def test_a_run_of_several_sizes_trains_from_original_images(started_ray, stored, tmp_path):
    torch.set_num_threads(1)
    config = stored()
    done = precompute(config, "original")
    assert (done["files"], done["images"], done["views"]) == (1, 38, "original")
    assert done["kb_per_image"] < 20
    # Another seed, other sizes and another augmentation: the same answers.
    other = {"data": {"path": config.data.path, "size": [32, 64], "augment": {"crop": 0.9}}}
    config = stored(train={"run": str(tmp_path / "run"), "steps": 6, "batch_size": 8, "seed": 3}, **other)
    plan = plan_run(config, specs_of(config))
    assert plan.replay is None
    reader, select = StoreReader(config.teachers.store, plan.index), SelectDistilled(config, plan.index.names, {})
    part = plan.part(0, 0, 1)
    batch = reader(select(make_train_batch(plan.index, part, config.data.augment)))
    soft = to_tensors(batch.soft, torch.device("cpu"))
    assert isinstance(soft["det"], Found)
    side = part.size // 4
    assert soft["seg"].shape[1:] == (len(plan.index.names["seg"]), side, side)
    assert train(config)["steps"] == 6
    lines = [line for line in read_metrics(tmp_path / "run") if "loss/kd_seg" in line]
    assert lines
    assert all(line["loss/kd_seg"] > 0 and line["loss/kd_det"] > 0 for line in lines)
    # A second call has nothing to do, and a store of views is another thing.
    assert precompute(stored(), "original")["files"] == 0
    with pytest.raises(UserError, match="made with original images True, but this run has False"):
        precompute(stored(), 2)


@pytest.mark.ray
def test_answers_for_other_images_are_refused(started_ray, stored, tmp_path):
    config = stored()
    precompute(config, "original")
    reader = StoreReader(config.teachers.store, plan_run(config, specs_of(config)).index)
    plan = plan_run(config, specs_of(config))
    select = SelectDistilled(config, plan.index.names, {})
    batch = select(make_train_batch(plan.index, plan.part(0, 0, 1), config.data.augment))
    [file] = (tmp_path / "store" / "original").iterdir()
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    wrong = table.set_column(3, table.schema.field(3), pa.array(table["digest"].to_numpy() ^ 1))
    shutil.copy(file, tmp_path / "kept")
    pq.write_table(wrong, file)
    with pytest.raises(UserError, match=r"original/000000.parquet: image '.*' is another; delete the file"):
        reader(batch)


def test_each_teacher_gets_images_of_its_own_best_size(make_config, random_teachers, specs):
    config = make_config(teachers=random_teachers)
    assert best_size(specs["det"], config) == 64
    source = random_teachers["det"]["checkpoint"]
    larger = changed(config, **{"teachers.det": [TeacherConfig(source=source, size=96).model_dump()]})
    spec = specs_of(larger)["det"]
    assert best_size(spec, larger) == 96
    assert not spec.description.every_anchor
