"""The VOC reader: what it makes of good and of bad annotations, and the job on the real images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import prepare as job
from multas_ray.config import Task
from multas_ray.data import voc
from multas_ray.data.row import Reject, Row
from multas_ray.errors import UserError
from tests.shared import shared_path

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


class Devkit:
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
        [row] = voc.read_rows(self.root, [(image_id, tasks)], classes.split(","))
        return row


@pytest.fixture
def devkit(tmp_path: Path) -> Devkit:
    return Devkit(tmp_path / "VOC2012")


def test_boxes_become_continuous_and_zero_based(devkit: Devkit) -> None:
    devkit.add("a", item("person", (1, 1, 40, 30)) + item("cat", (5, 6, 5, 6), difficult=1))
    row = devkit.read("a")
    assert isinstance(row, Row)
    assert row.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 5, 6]]
    assert row.labels.tolist() == [5, 0]
    assert row.difficult.tolist() == [False, True]
    assert (row.height, row.width) == (30, 40)


def test_unlisted_classes_lose_boxes_and_pixels(devkit: Devkit) -> None:
    mask = np.zeros((30, 40), np.uint8)
    for column, value in enumerate([8, 15, 1, 20, 255]):  # cat, person, aeroplane, tvmonitor, void
        mask[:, column] = value
    devkit.add("a", item("aeroplane") + item("cat"), mask)
    row = devkit.read("a", classes="person,cat")
    assert isinstance(row, Row)
    assert row.labels.tolist() == [1]
    assert row.mask is not None
    assert row.mask[0, :6].tolist() == [2, 1, 255, 255, 255, 0]


def test_a_row_has_the_annotation_of_its_tasks_only(devkit: Devkit) -> None:
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
    assert (bare.task_mask, bare.height, bare.width) == ("none", 30, 40)


def test_objects_of_no_kept_class_leave_an_empty_annotation(devkit: Devkit) -> None:
    devkit.add("a", item("boat"))
    row = devkit.read("a")
    assert isinstance(row, Row)
    assert row.has_det
    assert row.boxes.shape == (0, 4)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda kit: kit.add("bad", item("unicorn")), "unknown class"),
        (lambda kit: kit.add("bad", mask=np.full((30, 40), 21, np.uint8)), "unknown class"),
        (lambda kit: kit.add("bad", xml=BOMB), "unsafe XML"),
        (lambda kit: kit.add("bad", xml="<annotation><object>"), "broken XML"),
        (lambda kit: kit.add("bad", xml="<annotation/>"), "XML without a size"),
        (lambda kit: kit.add("bad", item("cat", (1, 1, 43, 9))), "box outside its image"),
        (lambda kit: kit.add("bad", "<object><name>cat</name></object>"), "broken box"),
        (lambda kit: kit.add("bad", mask=np.zeros((30, 41), np.uint8)), "mask of another size"),
        (lambda kit: truncate(kit.root / "JPEGImages" / "bad.jpg"), "broken image"),
        (lambda kit: truncate(kit.root / "SegmentationClass" / "bad.png"), "broken mask"),
        (lambda kit: (kit.root / "JPEGImages" / "bad.jpg").unlink(), "missing image"),
        (lambda kit: (kit.root / "Annotations" / "bad.xml").unlink(), "missing annotation"),
        (lambda kit: (kit.root / "SegmentationClass" / "bad.png").unlink(), "missing mask"),
        (lambda kit: kit.split("train", ["good", "bad", "bad"]), "duplicate id"),
    ],
)
def test_a_bad_row_is_rejected_and_the_job_goes_on(
    devkit: Devkit, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Devkit], None], reason: str
) -> None:
    devkit.add("good", item("cat"))
    devkit.add("bad", item("cat"))
    devkit.split("train", ["good", "bad"])
    harm(devkit)
    command = ["voc", "--root", str(devkit.root), "--full", "Main/train", "--out", str(tmp_path / "out")]
    job.main([*command, "--max-rejected", "0.5"])
    [record] = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert (record["image_id"], record["reason"], record["split"]) == ("bad", reason, "train")
    assert f"rejected rows: 1 {reason}" in capsys.readouterr().out

    with pytest.raises(UserError, match=f"rows rejected, --max-rejected 0.01 allows 0: 1 {reason}; see .*rejected"):
        job.main([*command, "--overwrite"])


def test_unusable_arguments_are_named(devkit: Devkit, tmp_path: Path) -> None:
    devkit.split("train", [])
    command = ["voc", "--root", str(devkit.root), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--det, --seg, --full, --unlabelled, --val"):
        job.main(command)
    with pytest.raises(UserError, match="no VOC split 'Main/none': there are Main/train"):
        job.main([*command, "--full", "Main/none"])
    with pytest.raises(UserError, match="no class 'unicorn'; allowed: aeroplane"):
        job.main([*command, "--full", "Main/train", "--classes", "cat,unicorn"])
    with pytest.raises(UserError, match="no rows for train"):
        job.main([*command, "--full", "Main/train"])
    with pytest.raises(UserError, match="fraction"):
        job.main([*command, "--full", "Main/train", "--max-rejected", "2"])
    assert not (tmp_path / "out").exists()


def test_split_files_may_have_a_second_column(devkit: Devkit) -> None:
    devkit.split("cat_train", ["2008_000001 -1", "2008_000002  1", ""])
    assert voc.read_split(devkit.root, "Main/cat_train") == ["2008_000001", "2008_000002"]


def test_some_of_the_animals(tmp_path: Path) -> None:
    """A devkit of the real files with short splits of its own: boxes and masks of an image tell the same story."""
    animals = shared_path("data", "voc2012-animals", "VOC2012")
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / name).symlink_to(animals / name)
    for role, name in [("full", "Main/val"), ("unlabelled", "Unlabelled/train")]:
        ids = voc.read_split(animals, name)[:40]
        (root / "ImageSets" / "Main" / f"{role}.txt").write_text("\n".join(ids))
    command = ["voc", "--root", str(root), "--full", "Main/full", "--unlabelled", "Main/unlabelled"]
    job.main([*command, "--classes", ANIMALS, "--out", str(tmp_path / "out")])
    records = pq.read_table(tmp_path / "out" / "train").to_pylist()
    assert [record["image_id"] for record in records] == sorted(record["image_id"] for record in records)
    full = [record for record in records if record["has_det"]]
    assert len(full) == sum(record["has_seg"] for record in records) == 40
    assert len(records) == 80
    agreeing = total = 0
    for record in full:
        row = voc._read_row(root, record["image_id"], ["seg"], ANIMALS.split(","))
        assert row.mask is not None
        for (x1, y1, x2, y2), label in zip(record["boxes"], record["labels"], strict=True):
            inside = row.mask[int(y1) : int(y2), int(x1) : int(x2)]
            agreeing += (inside == label + 1).any()
            total += 1
    assert agreeing >= 0.95 * total > 30


def test_every_animal_is_read() -> None:
    root = shared_path("data", "voc2012-animals", "VOC2012")
    both: tuple[Task, ...] = ("det", "seg")
    roles: list[tuple[str, tuple[Task, ...]]] = [
        ("MXEdet/train", ("det",)),
        ("MXEseg/train", ("seg",)),
        ("Main/val", both),
    ]
    found = []
    for name, tasks in roles:
        items = [(image_id, tasks) for image_id in voc.read_split(root, name)]
        found += [row.task_mask for row in voc.read_rows(root, items, ANIMALS.split(",")) if isinstance(row, Row)]
    assert [found.count(mask) for mask in ("det", "seg", "both")] == [828, 828, 445]


@pytest.mark.slow
def test_all_of_the_animals(tmp_path: Path) -> None:
    root = shared_path("data", "voc2012-animals", "VOC2012")
    splits = ["--det", "MXEdet/train", "--seg", "MXEseg/train", "--val", "Main/val"]
    job.main(["voc", "--root", str(root), *splits, "--classes", ANIMALS, "--out", str(tmp_path / "out")])
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["splits"] == {"train": {"det": 828, "seg": 828}, "val": {"both": 445}}
    assert info["det_classes"] == ANIMALS.split(",")
    assert (tmp_path / "out" / "rejected.jsonl").read_text() == ""
