"""The VOC reader: what it makes of good and of bad annotations, and the job on the real images."""

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import prepare as job
from multas_ray.config import Task
from multas_ray.data.pillow import encode
from multas_ray.data.reject import Reject
from multas_ray.data.row import Row
from multas_ray.errors import UserError
from multas_ray.formats.class_maps import MaskClasses, read_mask, voc_colours, voc_palette
from multas_ray.formats.voc_classes import CLASSES, choose_classes
from multas_ray.formats.voc_folder import VocFolder, VocImage
from multas_ray.formats.voc_rows import RowReader
from tests.support.shared import shared_path

ANIMALS = "cat,cow,dog,horse,sheep,person"
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"
OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)
BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'


def item(name: str, box: Sequence[float] = (1, 1, 20, 10), difficult: int = 0) -> str:
    """The XML of an object."""
    return OBJECT.format(name=name, box=box, difficult=difficult)


class Kit:
    """A VOC2012 folder in the making; its images are 40 pixels wide and 30 high."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
            (root / name).mkdir(parents=True)

    def add(self, image_id: str, objects: str = "", mask: np.ndarray | None = None, xml: str | None = None) -> None:
        """Write an image with its annotation."""
        Image.new("RGB", (40, 30), (90, 120, 40)).save(self.root / "JPEGImages" / f"{image_id}.jpg")
        text = f"<annotation>{SIZE}{objects}</annotation>" if xml is None else xml
        (self.root / "Annotations" / f"{image_id}.xml").write_text(text)
        picture = Image.fromarray(np.zeros((30, 40), np.uint8) if mask is None else mask).convert("P")
        picture.save(self.root / "SegmentationClass" / f"{image_id}.png")

    def split(self, name: str, lines: Sequence[str]) -> None:
        """Write ImageSets/Main/<name>.txt."""
        (self.root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))

    def read(self, image_id: str, tasks: Sequence[Task] = ("det", "seg"), classes: str = ANIMALS) -> Row | Reject:
        """One image as the reader returns it."""
        folder, image = VocFolder(self.root), VocImage(image_id, tuple(tasks))
        return RowReader(folder, choose_classes(folder, [image], classes.split(","), remarks=[])).read(image)

    def prepare(self, *arguments: str) -> list[dict[str, Any]]:
        """Run the job, and return the training rows that it wrote."""
        out = self.root.parent / "out"
        job.main(["voc", "--root", str(self.root), "--out", str(out), *arguments])
        return pq.read_table(out / "train").to_pylist()


@pytest.fixture
def devkit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "VOC2012")


def test_boxes_become_continuous_and_zero_based(devkit: Kit) -> None:
    devkit.add("a", item("person", (1, 1, 40, 30)) + item("cat", (5, 6, 5, 6), difficult=1))
    row = devkit.read("a")
    assert isinstance(row, Row)
    assert row.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 5, 6]]
    assert row.labels.tolist() == [5, 0]
    assert row.difficult.tolist() == [False, True]
    assert (row.height, row.width) == (30, 40)


def test_unlisted_classes_lose_boxes_and_pixels(devkit: Kit) -> None:
    mask = np.zeros((30, 40), np.uint8)
    for column, value in enumerate([8, 15, 1, 20, 255]):  # cat, person, aeroplane, tvmonitor, void
        mask[:, column] = value
    devkit.add("a", item("aeroplane") + item("cat"), mask)
    row = devkit.read("a", classes="person,cat")
    assert isinstance(row, Row)
    assert row.labels.tolist() == [1]
    assert row.notes["boxes left out: of other classes"] == 1
    assert row.mask is not None
    assert row.mask[0, :6].tolist() == [2, 1, 255, 255, 255, 0]


def test_a_row_has_the_annotation_of_its_tasks_only(devkit: Kit) -> None:
    devkit.add("a", item("cat"))
    (devkit.root / "SegmentationClass" / "a.png").unlink()
    det = devkit.read("a", ["det"])
    assert isinstance(det, Row)
    assert (det.task_mask, len(det.boxes), det.mask) == ("det", 1, None)
    devkit.add("b", xml="not needed")
    seg = devkit.read("b", ["seg"])
    assert isinstance(seg, Row)
    assert (seg.task_mask, len(seg.boxes)) == ("seg", 0)
    bare = devkit.read("b", [])
    assert isinstance(bare, Row)
    assert bare.task_mask == "none"


def test_objects_of_no_kept_class_leave_an_empty_annotation(devkit: Kit) -> None:
    devkit.add("a", item("boat"))
    row = devkit.read("a")
    assert isinstance(row, Row)
    assert row.has_det
    assert row.boxes.shape == (0, 4)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def link(path: Path) -> None:
    """Put a link to another file, which is a good one, in a file's place."""
    elsewhere = path.parents[2] / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda kit: kit.add("bad", mask=np.full((30, 40), 21, np.uint8)), "unknown class"),
        (lambda kit: kit.add("bad", xml=BOMB), "unsafe XML"),
        (lambda kit: kit.add("bad", xml="<annotation><object>"), "broken XML"),
        (lambda kit: kit.add("bad", xml="<a>" * 100_000), "broken XML"),
        (lambda kit: kit.add("bad", xml="<annotation><object/></annotation>"), "broken annotation"),
        (lambda kit: kit.add("bad", "<object><name>cat</name></object>"), "broken box"),
        (lambda kit: kit.add("bad", item("cat", (1, 1, float("nan"), 9))), "broken box"),
        (lambda kit: kit.add("bad", item("cat", (1, 1, float("1e300"), 9))), "broken box"),
        (lambda kit: kit.add("bad", mask=np.zeros((30, 41), np.uint8)), "mask of another size"),
        (lambda kit: truncate(kit.root / "JPEGImages" / "bad.jpg"), "broken image"),
        (lambda kit: truncate(kit.root / "SegmentationClass" / "bad.png"), "broken mask"),
        (lambda kit: (kit.root / "JPEGImages" / "bad.jpg").unlink(), "missing file"),
        (lambda kit: (kit.root / "Annotations" / "bad.xml").unlink(), "missing annotation"),
        (lambda kit: (kit.root / "SegmentationClass" / "bad.png").unlink(), "missing mask"),
        (lambda kit: link(kit.root / "JPEGImages" / "bad.jpg"), "outside its folder"),
        (lambda kit: link(kit.root / "Annotations" / "bad.xml"), "outside its folder"),
        (lambda kit: link(kit.root / "SegmentationClass" / "bad.png"), "outside its folder"),
        (lambda kit: kit.split("train", ["good", "../bad"]), "outside its folder"),
    ],
)
def test_a_bad_row_is_rejected_and_the_job_goes_on(
    devkit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Kit], None], reason: str
) -> None:
    devkit.add("good", item("cat"))
    devkit.add("bad", item("cat"))
    devkit.split("train", ["good", "bad"])
    harm(devkit)
    command = ["voc", "--root", str(devkit.root), "--full", "Main/train", "--out", str(tmp_path / "out")]
    job.main([*command, "--max-rejected", "0.5"])
    [record] = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert (record["image_id"].removeprefix("../"), record["reason"], record["split"]) == ("bad", reason, "train")
    assert f"rejected rows: 1 {reason}" in capsys.readouterr().out

    with pytest.raises(
        UserError,
        match=rf"rows rejected, --max-rejected 0.01 allows 0: 1 {reason} \(such as .*bad: .*\); see .*rejected",
    ):
        job.main([*command, "--overwrite"])


def test_unusable_arguments_are_named(devkit: Kit, tmp_path: Path) -> None:
    devkit.split("train", [])
    command = ["voc", "--root", str(devkit.root), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--det, --seg, --full, --unlabelled, --val"):
        job.main(command)
    with pytest.raises(UserError, match="no VOC split 'Main/none': there are Main/train"):
        job.main([*command, "--full", "Main/none"])
    with pytest.raises(UserError, match="no class 'unicorn'; the files have aeroplane"):
        job.main([*command, "--det", "Main/train", "--classes", "cat,unicorn"])
    for names in ("cat,cat", "cat,,dog", ""):
        with pytest.raises(UserError, match=r"--classes|stands twice"):
            job.main([*command, "--full", "Main/train", "--classes", names])
    with pytest.raises(UserError, match="no rows for train"):
        job.main([*command, "--full", "Main/train"])
    with pytest.raises(UserError, match="fraction"):
        job.main([*command, "--full", "Main/train", "--max-rejected", "2"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_people_write_them(devkit: Kit, encoding: str) -> None:
    lines = ["2008_000001 -1", "2008_000002  1  ", "", "WhatsApp Image 2024", "day1/x.y", "img.jpg", "2008_000001"]
    (devkit.root / "ImageSets" / "Main" / "train.txt").write_bytes("\r\n".join(lines).encode(encoding))
    folder = VocFolder(devkit.root)
    remarks: list[str] = []
    expected = ["2008_000001", "2008_000002", "WhatsApp Image 2024", "day1/x.y", "img"]
    assert folder.read_list("Main/train", remarks) == expected
    assert "1 images stand twice" in remarks[0]
    (devkit.root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xe9\n")
    with pytest.raises(UserError, match=r"train.txt: not text in UTF-8 \(byte 0\)"):
        folder.read_list("Main/train", remarks)


def test_every_image_is_taken_where_there_are_no_lists(devkit: Kit) -> None:
    """As LabelImg and Roboflow write it: in two folders, or side by side in one."""
    devkit.add("a", item("cat"))
    devkit.add("b", item("dog"))
    with pytest.raises(UserError, match="`all` in its place takes every image"):
        devkit.prepare("--det", "Main/train")
    assert [row["image_id"] for row in devkit.prepare("--det", "all")] == ["a", "b"]
    flat = Kit(devkit.root.parent / "flat")
    for file in [*devkit.root.glob("JPEGImages/*"), *devkit.root.glob("Annotations/*")]:
        file.rename(flat.root / file.name)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (flat.root / folder).rmdir()
    assert [row["labels"] for row in flat.prepare("--det", "all", "--overwrite")] == [[7], [11]]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".webp"])
def test_images_have_whatever_suffix(devkit: Kit, suffix: str) -> None:
    devkit.add("a", item("cat"))
    path = devkit.root / "JPEGImages" / "a.jpg"
    Image.open(path).save(path.with_suffix(suffix))
    path.unlink()
    devkit.split("train", ["a"])
    assert [row["image_id"] for row in devkit.prepare("--full", "Main/train")] == ["a"]


def test_classes_are_those_of_the_files(devkit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    devkit.add("a", item("helmet") + item("Vest") + item("vest"))
    devkit.add("b", item("vest"))
    devkit.split("train", ["a", "b"])
    assert [row["labels"] for row in devkit.prepare("--det", "Main/train")] == [[0, 1, 1], [1]]
    assert "classes taken from the XML: helmet, vest" in capsys.readouterr().out
    info = json.loads((devkit.root.parent / "out" / "dataset.json").read_text())
    assert info["det_classes"] == ["helmet", "vest"]
    named = devkit.prepare("--det", "Main/train", "--classes", "vest", "--overwrite")
    assert [row["labels"] for row in named] == [[0, 0], [0]]
    # What masks hold, nobody can guess.
    with pytest.raises(UserError, match=r"not VOC's: 'vest' \(2\), 'helmet' \(1\), .*--classes, in the order"):
        devkit.prepare("--full", "Main/train", "--overwrite")


def test_capitals_and_namespaces_make_no_other_class(devkit: Kit) -> None:
    space = f'<annotation xmlns="urn:x">{SIZE}{item("Person")}{item("person")}</annotation>'
    devkit.add("a", xml=space)
    row = devkit.read("a")
    assert isinstance(row, Row)
    assert row.labels.tolist() == [5, 5]


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_the_size_is_the_images_where_the_xml_has_none(devkit: Kit, size: str) -> None:
    devkit.add("a", xml=f"<annotation>{size}{item('cat', (1, 1, 43, 9))}</annotation>")
    devkit.split("train", ["a"])
    [row] = devkit.prepare("--full", "Main/train")
    assert (row["height"], row["width"], row["boxes"]) == (30, 40, [[0, 0, 40, 9]])


@pytest.mark.parametrize(
    ("empty", "masks"), [("background", ["det", "det"]), ("unlabelled", ["det", "none"]), ("skip", ["det"])]
)
def test_images_without_xml(devkit: Kit, empty: str, masks: list[str]) -> None:
    devkit.add("a", item("cat"))
    devkit.add("b")
    (devkit.root / "Annotations" / "b.xml").unlink()
    devkit.split("train", ["a", "b"])
    with pytest.raises(UserError, match=r"1 missing annotation .*--empty background"):
        devkit.prepare("--det", "Main/train")
    rows = sorted(devkit.prepare("--det", "Main/train", "--empty", empty), key=lambda row: row["image_id"])
    assert ["det" if row["has_det"] else "none" for row in rows] == masks
    assert [len(row["boxes"]) for row in rows] == [1, 0][: len(masks)]


def test_an_image_of_two_lists_has_both_annotations(devkit: Kit) -> None:
    for name in ("a", "b"):
        devkit.add(name, item("cat"), np.full((30, 40), 8, np.uint8))
    devkit.split("boxes", ["a", "b"])
    devkit.split("masks", ["b"])
    rows = devkit.prepare("--det", "Main/boxes", "--seg", "Main/masks")
    assert [(row["has_det"], row["has_seg"]) for row in rows] == [(True, False), (True, True)]


def test_links_out_of_the_folder_are_followed_where_asked(devkit: Kit) -> None:
    devkit.add("a", item("cat"))
    link(devkit.root / "JPEGImages" / "a.jpg")
    devkit.split("train", ["a"])
    with pytest.raises(UserError, match=r"outside its folder .*--follow-links"):
        devkit.prepare("--full", "Main/train")
    assert len(devkit.prepare("--full", "Main/train", "--follow-links")) == 1


VALUES = np.zeros((30, 40), np.uint8)
VALUES[3:9, 4:12], VALUES[10:20, 10:20], VALUES[25:, :5] = 8, 15, 255  # cat, person, void
OF_VOC = MaskClasses(list(CLASSES), ["person", "cat"], voc_colours(20))
EXPECTED = np.choose(np.digitize(VALUES, [8, 15, 255]), [0, 2, 1, 255])


def mask_of(mode: str) -> bytes:
    """VALUES in one of the forms in which tools write them."""
    palette = voc_palette()
    image = Image.fromarray(VALUES)
    if mode in ("RGB", "RGBA"):
        image = Image.fromarray(palette[VALUES]).convert(mode)
    if mode == "P":
        image.putpalette(palette.tobytes())
    if mode == "sorted":  # a paint program's: the colours that occur, in the order of their frequency
        image = Image.fromarray(palette[VALUES]).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
        assert sorted(set(np.asarray(image).ravel().tolist())) == [0, 1, 2, 3]
    if mode == "grey palette":
        image = image.convert("P")
    return encode(image, "PNG")


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "sorted", "grey palette"])
def test_masks_as_tools_write_them(mode: str) -> None:
    np.testing.assert_array_equal(read_mask(mask_of(mode), OF_VOC, Counter()), EXPECTED)


def test_what_means_nothing_in_a_mask_is_refused() -> None:
    strange = Image.fromarray(voc_palette()[VALUES])
    strange.putpixel((20, 25), (1, 2, 3))
    palette = voc_palette().copy()
    palette[[8, 15]] = palette[[15, 8]]
    palette[7] = 9, 9, 9
    swapped = Image.fromarray(np.where(VALUES == 0, 7, VALUES).astype(np.uint8))
    swapped.putpalette(palette.tobytes())
    for image, problem in [
        (strange, "unknown colour.*#010203"),
        (swapped, "unknown palette.*none at 7"),
        (Image.fromarray(VALUES + np.uint8(20)), "mask values 20?"),
        (Image.new("F", (4, 4)), "found mode F"),
    ]:
        with pytest.raises(Reject, match=problem):
            read_mask(encode(image, "TIFF" if image.mode == "F" else "PNG"), OF_VOC, Counter())


def test_a_list_of_classes_and_colours(devkit: Kit) -> None:
    """CVAT's `Segmentation mask 1.1`."""
    (devkit.root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:10,20,30::\ncar:200,0,0::\n"
    )
    devkit.add("a", item("car"))
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[:10], picture[10:12] = (10, 20, 30), (200, 0, 0)
    Image.fromarray(picture).save(devkit.root / "SegmentationClass" / "a.png")
    devkit.split("train", ["a"])
    [row] = devkit.prepare("--full", "Main/train")
    assert row["labels"] == [1]
    mask = np.asarray(Image.open(io.BytesIO(row["mask"])))
    assert np.bincount(mask.ravel()).tolist() == [18 * 40, 10 * 40, 2 * 40]
    [row] = devkit.prepare("--full", "Main/train", "--classes", "car", "--overwrite")
    assert np.bincount(np.asarray(Image.open(io.BytesIO(row["mask"]))).ravel())[[0, 1, 255]].tolist() == [720, 80, 400]
    # In another case, as boxes find their classes too.
    [row] = devkit.prepare("--full", "Main/train", "--classes", "Road,Car", "--overwrite")
    assert row["labels"] == [1]
    values = np.bincount(np.asarray(Image.open(io.BytesIO(row["mask"]))).ravel())
    assert values.tolist() == [18 * 40, 10 * 40, 2 * 40]
    for text, problem in [
        ("road", "write a class as"),
        ("road:1,2::", "write a class as"),
        ("a:1,1,1::\na:2,2,2::", "twice"),
    ]:
        (devkit.root / "labelmap.txt").write_text(text)
        with pytest.raises(UserError, match=problem):
            devkit.prepare("--full", "Main/train", "--overwrite")


def test_own_classes_are_the_values_of_masks_in_their_order(devkit: Kit) -> None:
    devkit.add("a", item("road"), np.full((30, 40), 2, np.uint8))
    devkit.split("train", ["a"])
    [row] = devkit.prepare("--full", "Main/train", "--classes", "car,road")
    assert row["labels"] == [1]
    assert set(np.asarray(Image.open(io.BytesIO(row["mask"]))).ravel().tolist()) == {2}


def test_masks_that_mean_objects_by_255_are_refused(devkit: Kit) -> None:
    devkit.add("a", mask=np.where(VALUES, 255, 0).astype(np.uint8))
    devkit.split("train", ["a"])
    with pytest.raises(UserError, match=r"train: no class is in any mask, and 14\.\d% of the pixels are ignored"):
        devkit.prepare("--seg", "Main/train")


def test_some_of_the_animals(tmp_path: Path) -> None:
    """A devkit of the real files with short splits of its own: boxes and masks of an image tell the same story."""
    animals = shared_path("data", "voc2012-animals", "VOC2012")
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / name).symlink_to(animals / name)
    folder = VocFolder(root, follow_links=True)
    for role, name in [("full", "Main/val"), ("unlabelled", "Unlabelled/train")]:
        ids = VocFolder(animals).read_list(name, remarks=[])[:40]
        (root / "ImageSets" / "Main" / f"{role}.txt").write_text("\n".join(ids))
    command = ["voc", "--root", str(root), "--full", "Main/full", "--unlabelled", "Main/unlabelled"]
    job.main([*command, "--classes", ANIMALS, "--follow-links", "--out", str(tmp_path / "out")])
    reader = RowReader(folder, choose_classes(folder, [], ANIMALS.split(","), remarks=[]))
    records = pq.read_table(tmp_path / "out" / "train").to_pylist()
    full = [record for record in records if record["has_det"]]
    assert len(full) == sum(record["has_seg"] for record in records) == 40
    assert len(records) == 80
    agreeing = total = 0
    for record in full:
        row = reader.read(VocImage(record["image_id"], ("seg",)))
        assert isinstance(row, Row)
        assert row.mask is not None
        for (x1, y1, x2, y2), label in zip(record["boxes"], record["labels"], strict=True):
            inside = row.mask[int(y1) : int(y2), int(x1) : int(x2)]
            agreeing += (inside == label + 1).any()
            total += 1
    assert agreeing >= 0.95 * total > 30


@pytest.mark.long
def test_every_animal_is_read() -> None:
    root = shared_path("data", "voc2012-animals", "VOC2012")
    both: tuple[Task, ...] = ("det", "seg")
    roles: list[tuple[str, tuple[Task, ...]]] = [
        ("MXEdet/train", ("det",)),
        ("MXEseg/train", ("seg",)),
        ("Main/val", both),
    ]
    masks = []
    folder = VocFolder(root)
    for name, tasks in roles:
        images = [VocImage(image_id, tasks) for image_id in folder.read_list(name, remarks=[])]
        reader = RowReader(folder, choose_classes(folder, images, ANIMALS.split(","), remarks=[]))
        masks += [row.task_mask for row in map(reader.read, images) if isinstance(row, Row)]
    assert [masks.count(mask) for mask in ("det", "seg", "both")] == [828, 828, 445]


@pytest.mark.slow
def test_all_of_the_animals(tmp_path: Path) -> None:
    root = shared_path("data", "voc2012-animals", "VOC2012")
    splits = ["--det", "MXEdet/train", "--seg", "MXEseg/train", "--val", "Main/val"]
    job.main(["voc", "--root", str(root), *splits, "--classes", ANIMALS, "--out", str(tmp_path / "out")])
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["splits"] == {"train": {"det": 828, "seg": 828}, "val": {"both": 445}}
    assert info["det_classes"] == ANIMALS.split(",")
    assert (tmp_path / "out" / "rejected.jsonl").read_text() == ""
