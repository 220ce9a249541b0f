"""Several data sets in one run: one label space, one index, and rows in the run's classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multas_ray.config import TASK_MASKS, DataConfig
from multas_ray.config_file import parse_config
from multas_ray.data.collate import make_eval_batch, make_train_batch
from multas_ray.data.index import Index
from multas_ray.data.plan import EvaluationPlan, lay_plan
from multas_ray.data.read import read_sample
from multas_ray.data.sources import read_sources
from multas_ray.data.writer import write_dataset
from multas_ray.errors import UserError
from multas_ray.train.provenance import describe_attempt
from tests.support.rows import make_row, source_of

STREET_DET, SCENES_SEG = ["pedestrian", "rider", "van", "dog"], ["background", "person", "sky"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`street` has boxes of four classes; `scenes` has masks of two, and boxes of dogs in its images for validation."""
    at = tmp_path_factory.mktemp("sources")
    street = []
    for number in range(7):
        row = make_row(f"a/{number}", [[1, 2, 10, 12], [3, 3, 9, 9], [0, 0, 20, 15], [5, 5, 25, 18]]).only("det")
        row.labels = np.arange(4, dtype=np.int32)
        if number == 6:
            row.unlabelled = {"det": (1,)}
        street.append(row)
    write_dataset(at / "street", source_of({"train": street[:5], "val": street[5:]}, STREET_DET, []))
    scenes = [make_row(f"a/{number}", []).only("seg") for number in range(6)]
    write_dataset(at / "scenes", source_of({"train": scenes[:4], "val": scenes[4:]}, ["dog"], SCENES_SEG))
    return {"street": str(at / "street"), "scenes": str(at / "scenes")}


def data_of(folders: dict[str, str], **changes) -> DataConfig:
    """Persons of two names are one class; vans are ignored."""
    classes = {"street": {"pedestrian": "person", "rider": "person", "van": None}}
    sources = {name: {"path": path, "classes": classes.get(name, {})} for name, path in folders.items()}
    tree = {"data": {"sources": sources, "size": 32} | changes, "train": {"run": "-", "steps": 1, "batch_size": 4}}
    return parse_config(tree).data


def test_classes_are_joined_by_name_and_the_background_is_first(folders):
    info = read_sources(data_of(folders)).info
    assert info.det_classes == ["person", "dog"]
    assert info.seg_classes == SCENES_SEG
    reordered = read_sources(data_of(folders, det_classes=["dog", "cat", "person"])).info
    assert reordered.det_classes == ["dog", "cat", "person"]


def test_rows_come_in_the_classes_of_the_run(folders):
    index = read_sources(data_of(folders, det_classes=["dog", "cat", "person"])).index("train")
    assert len(index) == 9
    values, sample = read_sample(index, 0)
    assert values["image_id"] == "street/a/0"
    # A box of a van is a difficult one of all that street lists.
    assert sample["labels"].tolist() == [2, 2, 0, 0, 2]
    assert sample["difficult"].tolist() == [False, False, False, True, True]
    assert sample["boxes"][3:].tolist() == [[0, 0, 20, 15]] * 2
    assert values["det_unlabelled"].tolist() == [1]
    assert not values["has_seg"]
    values, sample = read_sample(index, 5)
    assert values["image_id"] == "scenes/a/0"
    assert set(np.unique(sample["mask"])) == {0, 2, 255}
    assert values["seg_unlabelled"].tolist() == []
    in_val = read_sources(data_of(folders)).index("val")
    # Of persons nobody looked for the riders.
    assert [read_sample(in_val, row)[0]["det_unlabelled"].tolist() for row in (0, 1)] == [[], [0]]


def test_objects_of_a_class_that_is_background_are_none(folders):
    classes = {"pedestrian": "person", "rider": "background", "van": None}
    sources = {"street": {"path": folders["street"], "classes": classes}}
    read = read_sources(data_of(folders, sources=sources))
    assert read.info.det_classes == ["person", "dog"]
    values, sample = read_sample(read.index("train"), 0)
    # The rider's box is gone, the van's is a difficult one of both classes.
    assert sample["labels"].tolist() == [0, 1, 0, 1]
    assert sample["difficult"].tolist() == [False, False, True, True]
    assert values["det_unlabelled"].tolist() == []
    # Nobody looked for riders in this image, which says nothing of persons.
    values, _ = read_sample(read.index("val"), 1)
    assert values["det_unlabelled"].tolist() == []
    sources = {"scenes": {"path": folders["scenes"], "classes": {"sky": "background", "dog": "background"}}}
    read = read_sources(data_of(folders, sources=sources))
    assert (read.info.det_classes, read.info.seg_classes) == ([], ["background", "person"])
    values, sample = read_sample(read.index("train"), 0)
    assert set(np.unique(sample["mask"])) == {0, 255}


def test_what_a_source_does_not_list_is_unlabelled_in_the_batch(folders):
    index = read_sources(data_of(folders, seg_classes=["background", "person", "sky", "road"])).index("train")
    plan = lay_plan(index, usable=TASK_MASKS, mixing=None, batch_size=9, steps=1, seed=0, sizes=[32], window=16)
    batch = make_train_batch(index, plan.part(0, 0, 1), data_of(folders).augment)
    assert len(batch.unlabelled["seg"].rows) == 4
    assert batch.unlabelled["seg"].values.tolist() == [[False, False, False, True]] * 4
    # Street lists all boxes' classes.
    assert not len(batch.unlabelled["det"].rows)
    assert {image_id.split("/")[0] for image_id in batch.ids} == {"street", "scenes"}


def test_the_joined_index_says_what_the_rows_are(folders):
    index = read_sources(data_of(folders, det_classes=["dog", "cat", "person"])).index("val")
    batch = make_eval_batch(index, EvaluationPlan(index, 4, 32).part(0, 0, 1))
    assert batch.sources == ("street", "street", "scenes", "scenes")
    kinds = index.kind(np.arange(4))
    assert [bool(kind & 4) for kind in kinds] == [row in batch.unlabelled["det"].rows for row in range(4)]
    assert [TASK_MASKS[mask] for mask in index.task_mask(np.arange(4))] == ["det", "det", "seg", "seg"]


def test_a_source_whose_classes_are_all_ignored_for_a_task_is_not_annotated_for_it(folders):
    classes = dict.fromkeys(STREET_DET[:3])
    sources = {
        "street": {"path": folders["street"], "classes": classes | {"dog": None}},
        "scenes": {"path": folders["scenes"]},
    }
    with pytest.raises(UserError, match=r"data\.sources\.street: all its classes are ignored \(pedestrian, rider, van"):
        read_sources(data_of(folders, sources=sources))
    sources["scenes"]["classes"] = dict.fromkeys(SCENES_SEG)
    del sources["street"]
    index = read_sources(data_of(folders, sources=sources)).index("train")
    assert len(index.rows(["none"])) == len(index) == 4
    values, sample = read_sample(index, 0)
    assert not values["has_seg"]
    assert set(sample) >= {"image"}


def test_rows_of_a_task_mask_or_of_a_source_are_mixed(folders):
    index = read_sources(data_of(folders)).index("train")
    for mixing in ({"street": 3, "scenes": 1}, {"det": 3, "seg": 1}):
        plan = lay_plan(index, usable=TASK_MASKS, mixing=mixing, batch_size=4, steps=9, seed=0, sizes=[32], window=2)
        for step in range(9):
            assert sorted(plan.part(step, 0, 1).rows >= 5) == [False, False, False, True]
            shared = [plan.part(step, rank, 2).rows for rank in range(2)]
            assert sorted(np.concatenate(shared)) == sorted(plan.part(step, 0, 1).rows)
    with pytest.raises(UserError, match=r"data\.mixing\.scenes: 1 rows a batch, but its split has none of them"):
        lay_plan(index, usable=["det"], mixing={"scenes": 1}, batch_size=1, steps=1, seed=0, sizes=[32], window=2)


def test_an_attempt_has_the_digest_of_each_data_set(folders):
    sources = read_sources(data_of(folders))
    splits = {"train": sources.index("train"), "val": sources.index("val")}
    data = describe_attempt(0, splits, {}, "float32")["data"]
    assert list(data) == ["train/street", "train/scenes", "val/street", "val/scenes"]
    assert len(set(data.values())) == 4


def test_the_digest_changes_with_the_classes(folders):
    def digest(**changes) -> str:
        return read_sources(data_of(folders, **changes)).index("train").digest

    assert digest() == digest()
    assert digest() != digest(det_classes=["dog", "person"])


def test_a_source_may_be_for_training_alone(folders):
    sources = {name: {"path": path} for name, path in folders.items()}
    sources["scenes"]["val"] = None
    joined = read_sources(data_of(folders, sources=sources))
    assert [origin.name for origin in joined.index("val").origins] == ["street"]
    assert joined.splits("val") == "split 'val' of street"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"det_classes": ["dog", "person"], "street": {"van": "lorry"}},
            r"det class 'pedestrian' is none of the run's",
        ),
        ({"det_classes": ["background", "dog", "person"]}, "data.det_classes: background is no class of objects"),
        ({"det_classes": ["dog"]}, r"'person' is none .*; street has pedestrian, rider, van, dog, .*_classes are dog;"),
        (
            {"street": {"lorry": None}},
            r"data\.sources\.street\.classes: 'lorry' is no class of .*, which has pedestrian",
        ),
    ],
)
def test_classes_that_do_not_fit_are_refused_with_both_lists(folders, changes, words):
    street = changes.pop("street", None)
    data = data_of(folders, **changes)
    if street is not None:
        changed = data.sources["street"].model_copy(update={"classes": street})
        data = data.model_copy(update={"sources": data.sources | {"street": changed}})
    with pytest.raises(UserError, match=words):
        read_sources(data)


def test_one_data_set_reads_as_it_did(folders):
    sources = read_sources(DataConfig(path=folders["street"]))
    index = sources.index("train")
    values, sample = read_sample(index, 0)
    assert (values["image_id"], sample["labels"].tolist()) == ("a/0", [0, 1, 2, 3])
    assert isinstance(index, Index)
    taken = index.take([3, 1])
    assert [read_sample(taken, row)[0]["image_id"] for row in (0, 1)] == ["a/3", "a/1"]


def test_rows_of_a_joined_index_can_be_taken(folders):
    index = read_sources(data_of(folders)).index("train")
    taken = index.take([8, 0])
    assert [read_sample(taken, row)[0]["image_id"] for row in (0, 1)] == ["scenes/a/3", "street/a/0"]
    assert replace(taken).path == f"{folders['street']}, {folders['scenes']}"


def test_data_sets_lie_on_different_filesystems(folders, tmp_path: Path):
    sources = {"street": {"path": f"file://{folders['street']}"}, "scenes": {"path": folders["scenes"]}}
    index = read_sources(data_of(folders, sources=sources)).index("train")
    assert [str(index.shard(row)).startswith(("file://", "/")) for row in (0, 5)] == [True, True]
    assert read_sample(index, 0)[0]["image_id"] == "street/a/0"


def test_more_classes_of_pixels_than_masks_hold_are_refused(tmp_path):
    for name, count in (("a", 150), ("b", 171)):
        names = ["background", *(f"{name}{number}" for number in range(count - 1))]
        row = make_row("1", []).only("seg")
        write_dataset(tmp_path / name, source_of({"train": [row], "val": [row]}, [], names))
    sources = {name: {"path": str(tmp_path / name)} for name in ("a", "b")}
    tree = {"data": {"sources": sources, "size": 32}, "train": {"run": "-", "steps": 1, "batch_size": 4}}
    with pytest.raises(UserError, match=r"^data\.sources: 320 classes of pixels together, and masks hold 255"):
        read_sources(parse_config(tree).data)
