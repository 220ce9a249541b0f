"""Networks of transformers as teachers, from raw outputs to the losses of a step."""

import json

import numpy as np
import pytest
import torch

from multas_ray.config import TeacherConfig
from multas_ray.data.schema import DatasetInfo
from multas_ray.errors import UserError
from multas_ray.teacher.feed import InlineTeachers, with_soft_targets
from multas_ray.teacher.huggingface import detr_objects, mask_scores, open_model
from multas_ray.teacher.specs import teacher_specs
from multas_ray.train.trainer import Trainer
from tests.support.batches import CLASSES, DET, SEG, SIZE, batch_of, config_of, made_for

pytest.importorskip("transformers")
from tests.support.huggingface import DETECTORS, SEGMENTERS, SIDES, save

PUPPY = {"puppy": "dog"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a small network, made once for each family."""
    made: dict[str, str] = {}

    def make(family: str) -> str:
        if family not in made:
            made[family] = save(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


@pytest.mark.long
@pytest.mark.parametrize("family", [*DETECTORS, *SEGMENTERS])
def test_a_step_learns_from_every_family(folder, family):
    """The whole path: described, loaded, run on the step's pixels, packed, unpacked, compared."""
    task = "det" if family in DETECTORS else "seg"
    teacher = {"source": f"hf:{folder(family)}", "classes": PUPPY, "temperature": 3}
    config = config_of(teachers={task: teacher}, distill={"targets": "packed", task: {"on": "all"}})
    info = DatasetInfo(name="memory", det_classes=DET, seg_classes=SEG)
    specs = teacher_specs(config, info)
    description = specs[task].description
    assert description.size == SIDES.get(family, SIZE)
    assert set(description.classes) - {"background"} == {"cat", "dog"}
    batch = made_for(batch_of(["seg", "both", "det"]), config, {task: specs[task].known})
    [fed] = with_soft_targets([batch], InlineTeachers({task: specs[task].load("cpu")}), 0)
    assert max(map(len, fed.soft[task].packed)) < 8000
    outcome = Trainer(config, CLASSES, torch.device("cpu")).step(fed.batch, fed.soft, 0, 1)
    assert outcome.status == "taken"
    name = "kd_det_guided_cls" if task == "det" else "kd_seg_kl"
    assert outcome.shares[name].isfinite()
    assert outcome.shares[name] > 0


def test_every_detector_answers_as_its_own_post_processing(folder):
    """Raw outputs are read as transformers reads them: the same boxes, scores and classes above a threshold."""
    import transformers

    for family, processor in {
        "detr": transformers.DetrImageProcessor,
        "conditional_detr": transformers.ConditionalDetrImageProcessor,
        "rt_detr": transformers.RTDetrImageProcessor,
        "yolos": transformers.YolosImageProcessor,
    }.items():
        model = open_model(TeacherConfig(source=f"hf:{folder(family)}"), "det", "cpu")
        images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
        with torch.inference_mode():
            found = model(images)
            raw = model.network(pixel_values=model.prepare(images))
        sizes = torch.tensor([[1, 1], [1, 1]])
        for row, each in enumerate(processor().post_process_object_detection(raw, 0.0, sizes)):
            order = each["scores"].argsort(descending=True)[:3]
            for place in order.tolist():
                label, score = int(each["labels"][place]), each["scores"][place]
                same = (found.probabilities[row, :, label] - score).abs() < 1e-5
                assert same.any(), family
                distance = (found.boxes[row][same] - each["boxes"][place]).abs().amax(dim=1)
                assert distance.min() < 1e-5, family


def test_softmax_leaves_out_the_column_of_nothing():
    logits = torch.tensor([[[2.0, 0.0, 1.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    found = detr_objects(logits, boxes, softmax=True)
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=-1)[..., :2])
    torch.testing.assert_close(found.boxes, torch.tensor([[[0.4, 0.3, 0.6, 0.7]]]))
    torch.testing.assert_close(detr_objects(logits, boxes, softmax=False).probabilities, logits.sigmoid())


def test_masks_of_a_class_add_up():
    classes = torch.tensor([[[5.0, -5, -5], [5, -5, -5], [-5, -5, 5]]])
    masks = torch.full((1, 3, 2, 2), -9.0)
    masks[0, 0, 0, 0] = masks[0, 1, 0, 0] = masks[0, 1, 1, 1] = 9.0
    scores = mask_scores(classes, masks)
    np.testing.assert_allclose(scores[0, 0], [[2, 0], [0, 1]], atol=2e-3)
    assert scores[0, 1].max() < 1e-3


def test_images_are_prepared_as_its_processor_says(tmp_path):
    source = save(tmp_path, "segformer", do_normalize=True, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
    model = open_model(TeacherConfig(source=f"hf:{source}"), "seg", "cpu")
    white = torch.full((1, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    torch.testing.assert_close(model.prepare(white)[0, :, 0, 0], torch.tensor([2.5, 3.0, 7.0]))
    assert open_model(TeacherConfig(source=f"hf:{source}", size=96), "seg", "cpu").prepare(white).shape[-1] == 96


@pytest.mark.parametrize("family", [*DETECTORS, *SEGMENTERS])
@pytest.mark.parametrize("told", [True, False])
def test_images_are_prepared_as_its_own_processor_prepares_them(tmp_path, family, told):
    """Also where its file leaves all to the defaults of the processor's class, which differ between families."""
    import json

    import transformers

    task = "det" if family in DETECTORS else "seg"
    source = save(tmp_path, family)
    if not told:
        file = tmp_path / "preprocessor_config.json"
        kept = ("size", "image_processor_type")
        file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key in kept}))
    model = open_model(TeacherConfig(source=f"hf:{source}"), task, "cpu")
    pixels = torch.randint(0, 256, (1, 3, model.size, model.size), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(source)
    # MobileViT's also cuts the centre out.
    whole = {"do_center_crop": False} if family == "mobilevit" else {}
    expected = processor(images=list(pixels), return_tensors="pt", **whole)["pixel_values"]
    torch.testing.assert_close(model.prepare(pixels), expected, rtol=0, atol=1e-4)


def test_everything_that_its_answers_depend_on_is_in_its_digest(tmp_path):
    import json

    source = save(tmp_path, "segformer", image_mean=[0.5, 0.4, 0.3])
    settings = TeacherConfig(source=f"hf:{source}")

    def digest() -> str:
        return open_model(settings, "seg", "cpu").digest

    found = [digest()]
    assert digest() == found[0]
    for name, key, value in (
        ("preprocessor_config.json", "image_mean", [0.1, 0.4, 0.3]),
        ("preprocessor_config.json", "size", {"height": 96, "width": 96}),
        ("config.json", "id2label", {"0": "cat", "1": "puppy", "2": "lorry"}),
    ):
        file = tmp_path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        found.append(digest())
    assert len(set(found)) == len(found)


def test_a_network_without_a_head_is_refused(tmp_path):
    """A classifier's weights open as a segmentation network, with a head of random weights."""
    import transformers

    source = save(tmp_path, "segformer")
    config = transformers.AutoConfig.from_pretrained(source)
    transformers.SegformerForImageClassification(config).save_pretrained(source)
    words = r"lacks \d+ of the weights of SegformerForSemanticSegmentation, such as decode_head"
    with pytest.raises(UserError, match=words):
        open_model(TeacherConfig(source=f"hf:{source}"), "seg", "cpu")


@pytest.mark.parametrize(
    ("size", "side"), [({"shortest_edge": 800, "longest_edge": 1333}, 640), ({"height": 64, "width": 100}, 80)]
)
def test_the_size_is_that_of_a_square_with_about_its_pixels(tmp_path, size, side):
    source = save(tmp_path, "yolos", size=size)
    assert open_model(TeacherConfig(source=f"hf:{source}"), "det", "cpu").size == side


@pytest.mark.parametrize(
    ("change", "task", "words"),
    [
        (lambda folder: f"{folder}/nowhere", "det", "no such folder, and no name of a model"),
        (lambda folder: "rtdetr", "det", "no such folder, and no name of a model, which is OWNER/NAME"),
        (lambda folder: folder, "seg", "a model of the type yolos, of which transformers has none for semantic"),
        (lambda folder: (folder / "config.json").write_text("{}") and folder, "det", "cannot be loaded"),
        (lambda folder: (folder / "preprocessor_config.json").unlink() or folder, "det", "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink() or folder, "det", "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half") and folder, "det", "cannot be loaded"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("[]") and folder, "det", "cannot be loaded"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text('{"rescale_factor": "abc"}') and folder,
            "det",
            "cannot be loaded",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_line(tmp_path, change, task, words):
    save(tmp_path, "yolos")
    with pytest.raises(UserError, match=words):
        open_model(TeacherConfig(source=f"hf:{change(tmp_path)}"), task, "cpu")


def test_code_of_a_repository_is_never_run(tmp_path):
    """Neither code that its configuration names, nor a pickle of weights."""
    source = tmp_path / "net"
    save(source, "yolos")
    ran = tmp_path / "ran"
    (source / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((source / "config.json").read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForObjectDetection": "evil.Evil"}
    (source / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "evil"}))
    with pytest.raises(UserError, match="cannot be loaded"):
        open_model(TeacherConfig(source=f"hf:{source}"), "det", "cpu")
    assert not ran.exists()
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    torch.save({"a": Bomb()}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_model(TeacherConfig(source=f"hf:{source}"), "det", "cpu")
    assert not ran.exists()
