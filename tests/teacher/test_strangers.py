"""Teachers from outside: what they find in the classes and in the form of a student."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from multas_ray.config import TeacherConfig
from multas_ray.data.schema import DatasetInfo
from multas_ray.errors import UserError
from multas_ray.tasks import PARTS
from multas_ray.tasks.detection.anchors import anchors, decode
from multas_ray.teacher import loader_of, own
from multas_ray.teacher.ensemble import joint_spec
from multas_ray.teacher.feed import InlineTeachers, with_soft_targets
from multas_ray.teacher.labels import place_classes
from multas_ray.teacher.specs import teacher_specs
from multas_ray.teacher.teacher import Answer, StudentTerms, TeacherSpec, to_tensors
from multas_ray.train.trainer import Trainer
from tests.support import foreign
from tests.support.batches import CLASSES, DET, SEG, SIZE, batch_of, config_of, made_for
from tests.support.teachers import images, with_terms

BOXES, PIXELS = (f"python:tests.support.foreign:{name}" for name in ("one_box", "half_and_half"))
TERMS = {"det": StudentTerms(tuple(DET), 24, 4), "seg": StudentTerms(tuple(SEG), 24, 4)}
PUPPY = {"puppy": "dog"}


def spec_of(task, source, **settings) -> TeacherSpec:
    config = TeacherConfig(source=source, **settings)
    return TeacherSpec(task, loader_of(source).describe(config, task, TERMS[task]), TERMS[task], config)


def answer_of(spec, batch=None) -> torch.Tensor:
    answer = spec.load("cpu")(images() if batch is None else batch)
    return to_tensors({spec.task: answer}, torch.device("cpu"))[spec.task]


def test_a_box_is_brought_to_the_anchors_that_overlap_it():
    spec = spec_of("det", BOXES, classes=PUPPY)
    assert spec.known.tolist() == [True, True, False]
    output = answer_of(spec)
    grid = anchors(SIZE, SIZE, 24, "cpu", 4)
    p = output.cls.sigmoid()
    seen = p[0, :, 1] > 0.5
    assert 1 <= seen.sum() < 20
    torch.testing.assert_close(p[0, seen], torch.tensor([0.1, 0.9, 0]).expand(int(seen.sum()), 3), rtol=0, atol=2e-3)
    boxes = decode(output.box[0], grid)[seen]
    torch.testing.assert_close(boxes, torch.tensor([0.1, 0.2, 0.6, 0.9]).expand_as(boxes), rtol=0, atol=2e-3)


@pytest.mark.parametrize("settings", [{"size": 96}, {"batch_size": 1}, {"size": 32, "batch_size": 3}])
def test_the_size_and_number_of_images_at_a_time_change_no_box(settings):
    whole, other = (answer_of(spec_of("det", BOXES, classes=PUPPY, **each)) for each in ({}, settings))
    # The second box lies a pixel beside the first: suppressed at every size.
    torch.testing.assert_close(other.cls, whole.cls, rtol=0, atol=1e-3)
    torch.testing.assert_close(other.box, whole.box, rtol=0, atol=0.02)


def test_scores_of_any_resolution_and_sum_become_distributions():
    """A puppy is a dog, and a lorry, which the run does not have, is background."""
    p = answer_of(spec_of("seg", PIXELS, classes=PUPPY)).softmax(dim=1)
    assert p.shape == (4, 4, SIZE // 4, SIZE // 4)
    left, right = p[0, :, 0, 0].tolist(), p[0, :, -1, -1].tolist()
    assert left == pytest.approx([0.1, 0.1, 0.8, 0], abs=2e-3)
    assert right == pytest.approx([0.8, 0.1, 0.1, 0], abs=2e-3)


def test_null_leaves_a_class_out():
    p = answer_of(spec_of("seg", PIXELS, classes=PUPPY | {"lorry": None})).softmax(dim=1)
    assert p[0, 1:3, 0, 0].tolist() == pytest.approx([1 / 9, 8 / 9], abs=2e-3)
    assert p[0, 1:3, -1, -1].tolist() == pytest.approx([0.5, 0.5], abs=3e-3)


def test_a_temperature_divides_the_logits():
    logits = {t: answer_of(spec_of("det", BOXES, classes=PUPPY, temperature=t)).cls for t in (1, 2)}
    seen = logits[1][..., 1].sigmoid() > 0.5
    torch.testing.assert_close(logits[2][seen][:, :2], logits[1][seen][:, :2] / 2, rtol=1e-2, atol=1e-2)
    # A surely absent class stays absent.
    assert (logits[2][seen][:, 2] < -15).all()
    p = {t: answer_of(spec_of("seg", PIXELS, classes=PUPPY, temperature=t)).softmax(dim=1) for t in (1, 2)}
    expected = torch.tensor([0.1, 0.8, 0.1]).sqrt() / torch.tensor([0.1, 0.8, 0.1]).sqrt().sum()
    assert p[2][0, [1, 2, 0], 0, 0].tolist() == pytest.approx(expected.tolist(), abs=3e-3)


@pytest.mark.parametrize("task", ["det", "seg"])
def test_a_packed_answer_has_a_few_kilobytes(task):
    whole = spec_of(task, BOXES if task == "det" else PIXELS, classes=PUPPY)
    packed = with_terms(whole, packed=True).load("cpu")(images())
    assert max(map(len, packed.packed)) < 2000
    unpacked = to_tensors({task: packed}, torch.device("cpu"))[task]
    if task == "det":
        torch.testing.assert_close(unpacked.cls.sigmoid(), answer_of(whole).cls.sigmoid(), rtol=0, atol=1e-3)
    else:
        torch.testing.assert_close(unpacked.softmax(dim=1), answer_of(whole).softmax(dim=1), rtol=0, atol=0.03)


@pytest.mark.parametrize("changes", [{"anchor_base": 16}, {"levels": 5}])
def test_an_own_teacher_of_other_anchors_teaches_by_its_boxes(specs, changes):
    """What it is sure of is found where it found it."""
    settings = TeacherConfig(source=specs["det"].description.source, temperature=4)
    terms = replace(specs["det"].terms, **changes)
    description = own.describe(settings, "det", terms)
    assert not description.every_anchor
    moved, whole = (
        answer_of(spec)
        for spec in (
            TeacherSpec("det", description, terms, settings),
            replace(specs["det"], settings=settings),
        )
    )
    count = len(anchors(SIZE, SIZE, terms.anchor_base, "cpu", terms.levels))
    assert moved.cls.shape[:2] == (4, count)
    surest = whole.cls.sigmoid().amax(dim=(1, 2))
    torch.testing.assert_close(moved.cls.sigmoid().amax(dim=(1, 2)), surest, rtol=0, atol=5e-3)


def test_a_step_learns_from_teachers_from_outside():
    config = config_of(
        teachers={"det": {"source": BOXES, "classes": PUPPY}, "seg": {"source": PIXELS, "classes": PUPPY}}
    )
    info = DatasetInfo(name="memory", det_classes=DET, seg_classes=SEG)
    specs = teacher_specs(config, info)
    teachers = InlineTeachers({task: spec.load("cpu") for task, spec in specs.items()})
    batch = made_for(batch_of(["seg", "both", "det", "none"]), config, {t: s.known for t, s in specs.items()})
    [fed] = with_soft_targets([batch], teachers, 0)
    outcome = Trainer(config, CLASSES, torch.device("cpu")).step(fed.batch, fed.soft, 0, 1)
    assert outcome.status == "taken"
    assert outcome.shares["kd_det_guided_cls"] > 0
    assert outcome.shares["kd_seg_kl"] > 0


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        ("python:tests.support.foreign", {}, "write it as python:MODULE:FACTORY"),
        (
            "python:tests.support.nowhere:x",
            {},
            "No module named 'tests.support.nowhere'; the module must be importable",
        ),
        ("python:tests.support.foreign:nothing", {}, "has no attribute 'nothing'"),
        ("python:tests.support.foreign:unnamed", {}, "needs `classes`, a list of names"),
        (BOXES, {"classes": {"wolf": "dog"}}, "classes has 'wolf', and its own are puppy, cat, lorry"),
        (BOXES, {"classes": {"puppy": "wolf"}}, "makes 'puppy' a 'wolf', and those of the run are cat, dog, cow"),
        (BOXES, {"classes": {"cat": None}}, "none of them is among those of the run"),
        ("hg:owner/name", {}, "no kind of teacher 'hg:'; there are hf:, torchvision:, onnx:, python:"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(source, settings, words):
    with pytest.raises(UserError, match=words):
        spec_of("det", source, **settings)


def test_an_answer_of_another_form_is_named():
    with pytest.raises(
        UserError, match=r"teachers\.seg\.source python:.*misshapen: it answers with \(1, 3, 10, 20\); needed are"
    ):
        spec_of("seg", "python:tests.support.foreign:misshapen")
    with pytest.raises(UserError, match=r"needed are 1 pairs of boxes \(k, 4\) and probabilities \(k, 3\)"):
        spec_of("det", "python:tests.support.foreign:half_and_half", classes=PUPPY)


@pytest.mark.parametrize("task", ["det", "seg"])
@pytest.mark.parametrize("original", [False, True])
def test_a_teacher_from_outside_that_answers_with_nan_is_named(monkeypatch, task, original):
    """It must not pass for one that finds nothing."""
    spec = with_terms(spec_of(task, BOXES if task == "det" else PIXELS, classes=PUPPY), original=original)
    teacher = spec.load("cpu")
    answer = teacher.model.model
    spoiled = {
        "det": lambda some: [(boxes, p * torch.nan) for boxes, p in answer(some)],
        "seg": lambda some: answer(some) * torch.nan,
    }
    monkeypatch.setattr(teacher.model, "model", spoiled[task])
    with pytest.raises(UserError, match=rf"^teachers\.{task}\.source python:.*: it answers with NaN"):
        teacher(images())


def test_a_teacher_that_has_changed_is_refused(monkeypatch):
    spec = spec_of("seg", PIXELS, classes=PUPPY)
    monkeypatch.setattr(foreign.HalfAndHalf, "digest", "second")
    with pytest.raises(UserError, match="it has changed since the job began"):
        spec.load("cpu")


def test_everything_that_an_answer_depends_on_is_in_its_digest():
    whole = spec_of("det", BOXES, classes=PUPPY)
    others = [spec_of("det", BOXES, classes=PUPPY, **each) for each in ({"size": 96}, {"temperature": 2})]
    assert len({whole.digest, *(other.digest for other in others), spec_of("det", BOXES).digest}) == 4
    assert spec_of("det", BOXES, classes=PUPPY, batch_size=2).digest == whole.digest
    assert spec_of("det", BOXES).digest == spec_of("det", BOXES).description.digest


@pytest.mark.parametrize("loss", ["soft_cls", "mse"])
def test_losses_that_compare_every_anchor_are_refused(loss):
    config = config_of(teachers={"det": {"source": BOXES, "classes": PUPPY}}, distill={"det": {"on": "all", loss: 1}})
    info = DatasetInfo(name="memory", det_classes=DET, seg_classes=SEG)
    with pytest.raises(UserError, match=rf"it answers with boxes, .* distill\.det\.{loss} compares every anchor alike"):
        teacher_specs(config, info)


def test_a_class_of_a_run_without_background_that_no_teacher_has_is_left_out():
    columns = place_classes("x", ["cat", "lorry"], TeacherConfig(source=""), "seg", ["road", "cat"])
    assert columns == [1, None]


def test_a_class_is_taught_by_those_that_know_it():
    """Two teachers: one knows cat and dog, the other dog and cow."""

    def knows(task, first, known, p):
        names = TERMS[task].classes
        rows = torch.full((2, len(names), 1, 1), 1e-7)
        for name, value in p.items():
            rows[:, names.index(name)] = value
        spec = spec_of(task, BOXES if task == "det" else PIXELS, classes=PUPPY)
        description = replace(spec.description, source=first, classes=known)
        return replace(spec, description=description), rows

    one, p_one = knows("seg", "a", ("background", "cat", "dog"), {"background": 0.2, "cat": 0.6, "dog": 0.2})
    two, p_two = knows("seg", "b", ("background", "dog", "cow"), {"background": 0.3, "dog": 0.4, "cow": 0.3})
    spec = joint_spec([one, two])
    assert spec.known.all()
    assert spec.digest not in (one.digest, two.digest)
    known = np.stack([one.known, two.known])
    merged = PARTS["seg"].network.merge([p_one.log(), p_two.log()], known).float().softmax(dim=1)[0, :, 0, 0]
    # cat 0.6, dog (0.2 + 0.4) / 2, cow 0.3: 1.2 in all, so that nothing is left for the background.
    assert merged.tolist() == pytest.approx([0, 0.5, 0.25, 0.25], abs=1e-3)
    det = [torch.tensor([[[0.6, 0.2, 0.9]]]).logit(), torch.tensor([[[0.9, 0.4, 0.3]]]).logit()]
    output = type(answer_of(spec_of("det", BOXES, classes=PUPPY)))
    boxes = [torch.tensor([[[0.0, 0, 0, 0]]]), torch.tensor([[[1.0, 1, 1, 1]]])]
    known = np.array([[True, True, False], [False, True, True]])
    answers = [output(cls, box) for cls, box in zip(det, boxes, strict=True)]
    merged = PARTS["det"].network.merge(answers, known)
    assert merged.cls.float().sigmoid()[0, 0].tolist() == pytest.approx([0.6, 0.3, 0.3], abs=1e-3)
    # By confidence in what each knows: 0.6 and 0.4.
    assert merged.box[0, 0].tolist() == pytest.approx([0.4] * 4, abs=1e-3)


def test_several_teachers_answer_as_one():
    config = config_of(
        teachers={"seg": [{"source": PIXELS, "classes": PUPPY}, {"source": PIXELS, "classes": {"puppy": "cow"}}]}
    )
    info = DatasetInfo(name="memory", det_classes=DET, seg_classes=SEG)
    spec = teacher_specs(config, info)["seg"]
    assert spec.known.all()
    answer = spec.load("cpu")(images())
    assert isinstance(answer, Answer)
    p = torch.tensor(answer.dense).float().softmax(dim=1)[0, :, 0, 0]
    # cat 0.1 by both, dog 0.8 by one, cow 0.8 by the other.
    assert p.tolist() == pytest.approx([0, 0.1 / 1.7, 0.8 / 1.7, 0.8 / 1.7], abs=5e-3)


def test_without_a_background_teachers_must_know_the_same(monkeypatch):
    terms = {task: replace(each, classes=("road", "cat", "dog")) for task, each in TERMS.items()}
    monkeypatch.setitem(TERMS, "seg", terms["seg"])
    members = [spec_of("seg", PIXELS, classes=each) for each in (PUPPY, {})]
    with pytest.raises(UserError, match=r"knows other classes than .*, and the run has no class 'background'"):
        joint_spec(members)


def translated(scores, columns, classes, temperature=1.0) -> list[float]:
    """The distribution that scores of one pixel become."""
    p = PARTS["seg"].network.translate(torch.tensor(scores)[None, :, None, None], columns, classes, temperature, False)
    return p[0, :, 0, 0].tolist()


def test_where_nothing_was_found_is_background_if_there_is_one():
    nothing = [1e-5, 1e-5, 1e-5]
    assert translated(nothing, [0, 1, 2], ["background", "cat", "dog"])[0] > 0.95
    assert translated(nothing, [0, 1, 2], ["road", "cat", "dog"]) == pytest.approx([1 / 3] * 3)
    assert translated([0, 1e-5], [1, 2], ["background", "cat", "dog"]) == pytest.approx([0, 0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.001, 4])
@pytest.mark.parametrize(
    "scores", [[1e-6, 1e-4, 1e-6], [0.119, *[0.881 / 149] * 149], [2.4, 0.3, 0.3]], ids=["nothing", "many", "sums to 3"]
)
def test_a_temperature_is_one_of_the_student_s_classes(scores, temperature):
    """Also of what nothing was found of, and where many classes are one: what is fitted is what is taught."""
    columns = [min(place, 2) for place in range(len(scores))]
    classes = ["background", "cat", "dog"]
    plain = torch.tensor(translated(scores, columns, classes), dtype=torch.float64)
    expected = (plain.log() / temperature).softmax(dim=0)
    assert translated(scores, columns, classes, temperature) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("task", ["det", "seg"])
def test_each_of_several_teachers_has_its_number_of_images_at_a_time(task, monkeypatch):
    source = BOXES if task == "det" else PIXELS
    spec = joint_spec([spec_of(task, source, classes=PUPPY, batch_size=size) for size in (2, 3)])
    seen: list[int] = []
    for original in (False, True):
        form = with_terms(spec, original=original)
        teacher = form.load("cpu")
        for member in teacher.members:
            model = member.model.model
            monkeypatch.setattr(
                member.model, "model", lambda some, model=model: (seen.append(len(some)), model(some))[1]
            )
        teacher(images(4))
        assert seen == [2, 2, 3, 1]
        seen.clear()


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        ("fails_at_once", {}, r"fails_at_once fails \(FileNotFoundError: weights\.pt is missing\)"),
        ("fails_on_images", {}, r"does not answer for an image of 224 x 224 pixels alone \(ZeroDivisionError"),
        ("half_and_half", {"names": ["cat", "dog"]}, r"needed are scores \(1, 2, h, w\)"),
        ("half_and_half", {"names": ["cat", "dog", "cow", "x"]}, r"needed are scores \(1, 4, h, w\)"),
    ],
)
def test_a_model_that_fails_or_has_other_names_is_refused_in_a_line(source, settings, words):
    with pytest.raises(UserError, match=rf"^teachers\.seg\.source python:.*{words}"):
        spec_of("seg", f"python:tests.support.foreign:{source}", **settings)


def test_names_of_the_configuration_count():
    spec = spec_of("seg", PIXELS, names=["dog", "cat", "cow"])
    assert spec.known.tolist() == [False, True, True, True]


def test_a_changed_source_file_changes_the_digest(tmp_path, monkeypatch):
    """Of a function that is made of others too, whose type is Python's own."""
    monkeypatch.syspath_prepend(tmp_path)
    text = """
import functools
import torch

def score(images, lit):
    scores = torch.full((len(images), 2, 4, 4), 0.1)
    scores[:, lit] = 1
    return scores

def made(device):
    model = functools.partial(score, lit=LIT)
    model.classes = ["cat", "dog"]
    return model
"""
    found = []
    for name, lit in (("one", 0), ("two", 1)):
        (tmp_path / f"seg_{name}.py").write_text(text.replace("LIT", str(lit)))
        found.append(spec_of("seg", f"python:seg_{name}:made").description.digest)
    assert found[0] != found[1]


def test_an_own_network_tells_its_names(specs):
    settings = TeacherConfig(source=specs["det"].description.source, names=["a"])
    with pytest.raises(UserError, match=r"teachers\.det\.names: a network of this project tells its classes"):
        own.describe(settings, "det", specs["det"].terms)
