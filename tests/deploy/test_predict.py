"""The prediction job: many images in, COCO JSON, label images and overlays out."""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from pycocotools.coco import COCO
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

import multas_ray
from multas_ray.data.index import read_index
from multas_ray.data.pillow import encode
from multas_ray.data.read import read_row
from multas_ray.deploy.images import find_images
from multas_ray.deploy.outputs import safe_name, write_coco
from multas_ray.deploy.predict import predict_images
from multas_ray.deploy.workers import Workers
from multas_ray.errors import UserError
from multas_ray.formats.class_maps import voc_palette
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


PNG = encode(Image.new("RGB", (40, 30), (90, 120, 40)), "PNG")


@pytest.mark.parametrize(
    ("ids", "images"),
    [
        (pa.array(["a", "b"], pa.large_string()), pa.array([PNG, PNG], pa.large_binary())),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array([PNG, PNG], pa.binary())),
        (pa.array([1, 2], pa.int64()), pa.array([{"bytes": PNG, "path": "x"}] * 2)),
    ],
    ids=["polars", "pandas", "hugging face"],
)
def test_parquet_as_other_tools_write_it(started_ray, checkpoint, tmp_path, ids, images):
    pq.write_table(pa.table({"image_id": ids, "image": images, "more": [{"a": [1]}, None]}), tmp_path / "a.parquet")
    out = tmp_path / "out"
    assert predict_images(checkpoint, str(tmp_path / "a.parquet"), str(out), overlays=False)["images"] == 2
    names = sorted(str(name) for name in ids.to_pylist())
    assert sorted(image["file_name"] for image in json.loads((out / "predictions.json").read_text())["images"]) == names
    assert sorted(file.stem for file in (out / "masks").iterdir()) == names


def test_a_parquet_row_without_name_or_image_is_rejected(started_ray, checkpoint, tmp_path):
    table = pa.table({"image_id": ["a", None, "c"], "image": [PNG, PNG, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    counts = predict_images(checkpoint, str(tmp_path / "a.parquet"), str(tmp_path / "out"), overlays=False)
    assert (counts["images"], counts["rejected"]) == (1, 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {(line["image_id"], line["detail"]) for line in lines} == {("", "image_id is null"), ("c", "image is null")}


def test_images_of_a_broken_row_group_are_named_and_all_others_predicted(started_ray, checkpoint, tmp_path):
    file = tmp_path / "a.parquet"
    table = pa.table({"image_id": ["a", "b", "c"], "image": [PNG, PNG, PNG]})
    pq.write_table(table, file, row_group_size=2, compression="zstd", use_dictionary=False)
    data = bytearray(file.read_bytes())
    # Of the first row group, behind the page of names.
    page = data.index(b"\x28\xb5\x2f\xfd", pq.read_metadata(file).row_group(0).column(1).data_page_offset)
    data[page] ^= 0xFF
    file.write_bytes(data)
    counts = predict_images(checkpoint, str(file), str(tmp_path / "out"), overlays=False)
    assert (counts["images"], counts["rejected"]) == (1, 2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {(line["image_id"], line["reason"]) for line in lines} == {
        ("a", "broken Parquet file"),
        ("b", "broken Parquet file"),
    }
    assert "a.parquet: row group 0: ZSTD" in lines[0]["detail"]
    assert [mask.name for mask in (tmp_path / "out" / "masks").iterdir()] == ["c.png"]


@pytest.mark.parametrize("ids", [["a", "a"], ["../a", "a"], ["/a", "a"], ["a", "a.png/b"], ["a\n", "a\t"]], ids=repr)
def test_names_of_which_one_would_overwrite_the_other_are_refused(started_ray, tmp_path, ids):
    pq.write_table(pa.table({"image_id": ids, "image": [PNG, PNG]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"one image only|is a file"):
        find_images(str(tmp_path / "a.parquet"), "val")


def test_parquet_files_of_other_columns_are_refused(started_ray, tmp_path):
    file = tmp_path / "a.parquet"
    for columns, has in [
        ({"image_id": [1.5], "image": [b"x"]}, r"image_id \(double\), image \(binary\); image_id \(a string"),
        ({"image_id": ["a"], "image": ["x"]}, r"image \(string\)"),
        ({"name": ["a"]}, r"has columns name \(string\)"),
    ]:
        pq.write_table(pa.table(columns), file)
        with pytest.raises(UserError, match=has):
            find_images(str(tmp_path), "val")
    pq.write_table(pa.table({"image_id": ["naïve"], "image": [b"x"]}), file, compression="none", use_dictionary=False)
    file.write_bytes(file.read_bytes().replace("naïve".encode(), b"na\xff\xffve"))
    with pytest.raises(UserError, match=r"a.parquet: not a readable Parquet file \('utf-8' codec"):
        find_images(str(tmp_path), "val")
    file.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"a.parquet: not a readable Parquet file"):
        find_images(str(tmp_path), "val")


def test_a_parquet_file_runs_no_program(started_ray, tmp_path):
    """Ray Data reads values of this type by unpickling them."""
    marker = tmp_path / "marker"
    ray.data.from_items([{"image": b"x"}]).materialize()
    kind = ArrowPythonObjectType()
    harmful = pa.ExtensionArray.from_storage(kind, pa.array([pickle.dumps(Touches(marker))], pa.large_binary()))
    for columns in ({"image_id": harmful, "image": pa.array([PNG])}, {"image_id": pa.array(["a"]), "image": harmful}):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(UserError, match="are needed"):
            find_images(str(tmp_path / "a.parquet"), "val")
    assert not marker.exists()


class Touches:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_every_file_of_a_folder_is_tried_or_named(started_ray, checkpoint, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    image = Image.new("RGB", (40, 30), (90, 120, 40))
    for name, format in [("a.jfif", "JPEG"), ("b.heic", "PNG"), ("no suffix", "BMP"), ("c.avif", "PNG")]:
        image.save(folder / name, format)
    image.save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to("../secret.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / "d.heic").write_bytes(b"\0\0\0\x18ftypheic")
    os.mkfifo(folder / "pipe.jpg")
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(PNG)
    predict_images(checkpoint, str(folder), str(out), overlays=False)
    predicted = {image["file_name"] for image in json.loads((out / "predictions.json").read_text())["images"]}
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    rejected = {line["image_id"]: line["reason"] for line in lines}
    assert predicted == {"a.jfif", "b.heic", "no suffix", "c.avif"}
    assert rejected == {
        "link.png": "outside its folder",
        "notes.txt": "not tried",
        "d": "broken image",
        "pipe.jpg": "not a regular file",
        "\\udcff.jpg": "not tried",
    }
    assert find_images(str(folder), "", follow_links=True).count == 6


def test_photographs_are_seen_as_viewers_show_them(started_ray, checkpoint, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "photos" / "a.png", exif=exif)
    predict_images(checkpoint, str(tmp_path / "photos"), str(tmp_path / "out"))
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(image["height"], image["width"]) for image in document["images"]] == [(48, 72)]
    predictor = multas_ray.load(checkpoint, "cpu")
    expected = predictor.predict(upright)
    with Image.open(tmp_path / "photos" / "a.png") as photograph:
        for given in (tmp_path / "photos" / "a.png", photograph):
            found = predictor.predict(given)
            np.testing.assert_allclose(found.boxes, expected.boxes)
            np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose([line["bbox"][0] for line in document["annotations"]], expected.boxes[:, 0], atol=0.02)
    assert Image.open(tmp_path / "out" / "masks" / "a.png").size == (72, 48)


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
    assert safe_name("a\0b/c\nd") == "a_b/c_d"
    long = safe_name("x" * 300), safe_name("x" * 299 + "y"), safe_name("\u00e9" * 300)
    assert len(set(long)) == 3
    assert all(len(name.encode()) < 200 for name in long)


def test_the_palette_is_vocs():
    colours = voc_palette().tolist()
    assert colours[0] == [0, 0, 0]
    assert colours[1] == [128, 0, 0]
    assert colours[15] == [192, 128, 128]
    assert colours[255] == [224, 224, 192]
