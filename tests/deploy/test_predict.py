"""The prediction job: many images in, COCO JSON, label images and overlays out."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

import multas_ray
from multas_ray.data.index import read_index
from multas_ray.data.read import read_row
from multas_ray.deploy.images import find_images
from multas_ray.deploy.outputs import safe_name, voc_palette, write_coco
from multas_ray.deploy.predict import predict_images
from multas_ray.deploy.workers import Workers
from multas_ray.errors import UserError
from multas_ray.report.pictures import SHOWN_SCORE, STRIP, picture_size
from multas_ray.storage import StoragePath


def test_a_folder_of_photos_becomes_coco_json_masks_and_overlays(started_ray, checkpoint, photos, tmp_path):
    out, told = tmp_path / "out", []
    counts = predict_images(
        checkpoint,
        str(photos),
        str(out),
        workers=Workers(2),
        batch_size=2,
        progress=lambda done, total: told.append((done, total)),
    )
    names = ["more/grey.png", "photo0.png", "photo1.png", "photo2.png", "photo3.png"]
    assert (counts["images"], counts["rejected"], told[-1]) == (5, 1, (6, 6))
    assert [json.loads(line)["image_id"] for line in (out / "rejected.jsonl").read_text().splitlines()] == ["broken"]

    coco = COCO(out / "predictions.json")
    assert sorted(image["file_name"] for image in coco.dataset["images"]) == names
    assert coco.loadRes(coco.dataset["annotations"]).getAnnIds() == list(range(1, counts["detections"] + 1))
    predictor = multas_ray.load(checkpoint, "cpu")
    for image in coco.dataset["images"]:
        (expected,) = predictor.predict([photos / image["file_name"]])
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        x, y, width, height = np.array([line["bbox"] for line in found]).T
        np.testing.assert_allclose(np.stack([x, y, x + width, y + height], 1), expected.boxes, atol=0.02)
        assert [line["category_id"] - 1 for line in found] == expected.labels.tolist()
        np.testing.assert_allclose([line["score"] for line in found], expected.scores, atol=1e-4)
        with Image.open(out / "masks" / image["file_name"]) as mask:
            assert mask.mode == "P"
            assert (np.array(mask) == expected.mask).mean() > 0.999
        with Image.open(out / "overlays" / image["file_name"]) as overlay:
            width, height = overlay.size
        drawn_height, drawn_width = picture_size(image["height"], image["width"])
        assert width >= drawn_width
        assert height >= drawn_height + STRIP, "with a legend"


def test_only_detections_of_a_score_are_written_and_drawn(started_ray, checkpoint, photos, tmp_path):
    answer = multas_ray.load(checkpoint, "cpu").predict(photos / "photo1.png")
    # All are far below what is drawn by default.
    least = float(answer.scores[2])
    assert answer.scores[0] < SHOWN_SCORE
    pictures = {}
    for name, score in (("all", None), ("some", least)):
        out = tmp_path / name
        counts = predict_images(checkpoint, str(photos / "photo1.png"), str(out), score=score)
        found = json.loads((out / "predictions.json").read_text())["annotations"]
        assert counts["detections"] == len(found)
        pictures[name] = Image.open(out / "overlays" / "photo1.png").convert("RGB").tobytes()
        if score is None:
            assert len(found) == len(answer.scores)
        else:
            assert len(found) == (answer.scores >= least).sum() < len(answer.scores)
    assert pictures["all"] != pictures["some"], "boxes are drawn from this score on"
    with pytest.raises(UserError, match="scores from 0 to 1"):
        predict_images(checkpoint, str(photos / "photo1.png"), str(tmp_path / "none"), score=30)


def test_a_data_set_a_glob_and_parquet_files_are_sources_too(started_ray, checkpoint, scenes_path, photos, tmp_path):
    index = read_index(scenes_path, "val")
    ids = {read_row(index, row)["image_id"] for row in range(len(index))}
    counts = predict_images(checkpoint, scenes_path, str(tmp_path / "a"), overlays=False)
    assert counts["images"] == len(ids)
    images = json.loads((tmp_path / "a" / "predictions.json").read_text())["images"]
    assert {image["file_name"] for image in images} == ids
    assert not (tmp_path / "a" / "overlays").exists()
    assert find_images(f"{scenes_path}/val/*.parquet", "val").count == len(ids)
    assert find_images(str(photos / "photo?.png"), "val").count == 4
    (tmp_path / "photos [2024]").mkdir()
    Image.open(photos / "photo0.png").save(tmp_path / "photos [2024]" / "a.png")
    assert find_images(str(tmp_path / "photos [2024]"), "val").count == 1
    found = find_images(str(photos / "photo[12].*"), "val")
    assert [row["image_id"] for row in found.rows.take_all()] == ["photo1", "photo2"]


def test_images_that_differ_by_suffix_keep_it(started_ray, photos, tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        Image.open(photos / "photo0.png").save(tmp_path / name)
    rows = find_images(str(tmp_path), "").rows.take_all()
    assert [row["image_id"] for row in rows] == ["a.jpg", "a.png", "b"]
    assert [row["file_name"] for row in rows] == ["a.jpg", "a.png", "b.png"]


def test_sources_without_images_are_refused(started_ray, checkpoint, scenes_path, photos, tmp_path):
    with pytest.raises(UserError, match="no image"):
        find_images(str(tmp_path), "val")
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        find_images(scenes_path, "test")
    with pytest.raises(UserError, match="none of 1 images can be decoded"):
        predict_images(checkpoint, str(photos / "broken.jpg"), str(tmp_path / "out"))


def test_parquet_files_of_other_types_are_refused(started_ray, tmp_path):
    pq.write_table(pa.table({"image_id": [1], "image": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"image_id \(int64\), image \(binary\); image_id \(string\)"):
        find_images(str(tmp_path), "val")


def test_what_was_predicted_before_stays_until_all_is_there(tmp_path):
    def rows():
        yield {"file_name": "a", "height": 1, "width": 1, "boxes": [], "labels": [], "scores": []}
        raise OSError("lost")

    (tmp_path / "predictions.json").write_text("{}")
    with pytest.raises(OSError, match="lost"):
        write_coco(StoragePath(tmp_path / "predictions.json"), ["cat"], rows())
    assert (tmp_path / "predictions.json").read_text() == "{}"


def test_more_than_there_is_room_for_is_refused(started_ray, checkpoint, photos, tmp_path):
    with pytest.raises(UserError, match=r"--workers and --gpus: 1 x {CPU: 1, GPU: 1}: no room"):
        predict_images(checkpoint, str(photos), str(tmp_path / "out"), workers=Workers(1, gpus=1))


def test_names_stay_below_their_folder():
    assert safe_name("../../etc/passwd") == "etc/passwd"
    assert safe_name("/a/b.c") == "a/b.c"
    assert safe_name("..") == "_"


def test_the_palette_is_vocs():
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3).tolist()
    assert colours[0] == [0, 0, 0]
    assert colours[1] == [128, 0, 0]
    assert colours[15] == [192, 128, 128]
    assert colours[255] == [224, 224, 192]
