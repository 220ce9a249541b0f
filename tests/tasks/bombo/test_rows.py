"""Weak annotations: boxes from masks, masks from boxes."""

import numpy as np
import pytest

from jobs.prepare import main
from multas_ray.data.collate import make_eval_batch, make_train_batch
from multas_ray.data.index import read_index
from multas_ray.data.plan import EvaluationPlan, Part
from multas_ray.data.schema import read_info
from multas_ray.errors import UserError
from multas_ray.tasks.bombo.rows import WeakAnnotations, box_mask, component_boxes
from tests.support.shared import shared_path


def test_the_smallest_box_over_a_pixel_gives_its_class():
    boxes = np.array([[0, 0, 0.75, 0.5], [0.25, 0, 0.5, 0.5], [0.9, 0.9, 0.95, 1.0]])
    mask = box_mask(boxes, [2, 1, 3], 4)
    # The last covers no pixel's centre: 0.875 is left of it.
    assert mask.tolist() == [[2, 1, 2, 0], [2, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert not box_mask(np.zeros((0, 4)), [], 4).any()


def test_components_touch_at_corners_and_have_exact_boxes():
    mask = np.zeros((10, 20), np.uint8)
    mask[0:3, 0:4] = 5
    mask[3:6, 4:8] = 5  # touches the one above at a corner
    mask[0:4, 15:20] = 5
    mask[6:10, 0:5] = 7
    mask[9, 10:20] = 5  # a line
    mask[6:8, 10:14] = 9  # no class of detection
    mask[5, 12:16] = 255
    boxes, labels = component_boxes(mask, {5: 0, 7: 1})
    assert labels.tolist() == [0, 0, 1]
    expected = [[0, 0, 8, 6], [15, 0, 20, 4], [0, 6, 5, 10]]
    np.testing.assert_allclose(boxes * [20, 10, 20, 10], expected, atol=1e-5)


def test_small_components_count_only_where_there_is_no_other():
    mask = np.zeros((320, 320), np.uint8)
    mask[10:15, 10:15] = 1
    assert len(component_boxes(mask, {1: 0})[0]) == 1
    mask[100:140, 100:140] = 1
    assert component_boxes(mask, {1: 0})[0].tolist() == [[0.3125, 0.3125, 0.4375, 0.4375]]
    assert component_boxes(np.zeros((8, 8), np.uint8), {1: 0})[0].shape == (0, 4)


def test_a_batch_gets_what_each_annotation_says_of_the_other(make_config, scenes_path):
    config = make_config(loss={"weak_det": 0.5, "weak_seg": 0.5})
    index, info = read_index(scenes_path, "train"), read_info(scenes_path)
    rows = np.sort(np.concatenate([index.rows([mask]).at(np.arange(2)) for mask in ("none", "det", "seg", "both")]))
    part = Part(0, 0, 64, rows, rows * 0, rows * 0, rows.astype(np.uint64))
    batch = WeakAnnotations(config, info)(make_train_batch(index, part, config.data.augment))
    boxes, masks = batch.truth["det"], batch.truth["seg"]
    seg_only, det_only = np.setdiff1d(masks.rows, boxes.rows), np.setdiff1d(boxes.rows, masks.rows)
    assert len(seg_only) == len(det_only) == 2
    assert batch.weak["det"].rows.tolist() == seg_only.tolist()
    assert batch.weak["seg"].rows.tolist() == det_only.tolist()
    for boxes_of, labels, mask in zip(*boxes.at(det_only)[:2], batch.weak["seg"].values, strict=True):
        real = labels >= 0
        names = {info.seg_classes.index(info.det_classes[label]) for label in labels[real]} | {0}
        assert set(np.unique(mask)) <= names
        # What is not covered by any box is background.
        sides = boxes_of[:, 2:] - boxes_of[:, :2]
        assert 0 < (mask > 0).mean() <= sides.prod(axis=1).sum() + 0.05
    components, labels_of, _ = batch.weak["det"].values
    for mask, found, labels in zip(masks.at(seg_only), components, labels_of, strict=True):
        real = labels >= 0
        assert real.any(), "a scene has an object"
        for (x1, y1, x2, y2), label in zip((found[real] * 64).round().astype(int), labels[real], strict=True):
            own = mask[y1:y2, x1:x2] == info.seg_classes.index(info.det_classes[label])
            assert own.any(axis=0).all() or own.any(axis=1).all()

    ignoring = make_config(loss={"weak_seg": 1, "weak_inside": "ignore"})
    ignored = WeakAnnotations(ignoring, info)(batch).weak
    assert set(np.unique(ignored["seg"].values)) == {0, 255}
    assert "det" not in ignored


def test_classes_of_one_task_alone_are_refused(make_config, scenes_path):
    info = read_info(scenes_path)
    fewer = info.model_copy(update={"seg_classes": info.seg_classes[:-1]})
    missing = info.seg_classes[-1]
    with pytest.raises(UserError, match=rf"loss.weak_det: needs every detection class .*; {missing} is not among"):
        WeakAnnotations(make_config(loss={"weak_det": 1}), fewer)
    WeakAnnotations(make_config(loss={"weak_seg": 1}), fewer)


@pytest.mark.long
def test_real_masks_give_boxes_like_the_drawn_ones(tmp_path):
    """Of VOC's images that show one object: the box of its mask is the box that was drawn."""
    root = shared_path("data", "voc2012-animals", "VOC2012")
    main(["voc", "--root", str(root), "--val", "Main/val", "--out", str(tmp_path)])
    info = read_info(str(tmp_path))
    plan = EvaluationPlan(read_index(str(tmp_path), "val"), 445, 128)
    truth = make_eval_batch(plan.index, plan.part(0, 0, 1)).truth
    det_of_seg = {info.seg_classes.index(name): number for number, name in enumerate(info.det_classes)}
    ious = []
    for drawn, mask in zip(truth["det"].values, truth["seg"].values, strict=True):
        boxes, labels = component_boxes(mask, det_of_seg)
        if len(drawn.boxes) == len(boxes) == 1 and labels[0] == drawn.labels[0]:
            scale = np.array(mask.shape[::-1] * 2)
            a, b = boxes[0] * scale, drawn.boxes[0]
            sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            both = sides.clip(0).prod()
            ious.append(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))
    assert len(ious) > 80
    assert np.median(ious) > 0.9
