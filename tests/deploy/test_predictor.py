"""multas_ray.load: images in whatever form, answers in their own pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import multas_ray
from multas_ray.errors import UserError
from multas_ray.evaluate.evaluator import predict
from multas_ray.tasks.segmentation.metric import label_map


def test_every_form_of_an_image_gives_the_same_answer_in_its_own_pixels(checkpoint, photos):
    predictor = multas_ray.load(checkpoint, "cpu")
    path = photos / "photo1.png"
    image = Image.open(path)
    forms = [path, str(path), image, np.array(image), torch.tensor(np.array(image)).permute(2, 0, 1)]
    answers = predictor.predict(forms, batch_size=2)
    assert len(answers[0].scores) > 5
    assert (np.diff(answers[0].scores) <= 0).all()
    assert answers[0].boxes[:, 2].max() > 64, "boxes are in pixels of the 90 x 48 image, not of the network's input"
    assert (answers[0].boxes <= [90, 48, 90, 48]).all()
    assert answers[0].mask.shape == (48, 90)
    assert len(np.unique(answers[0].mask)) > 1
    for answer in answers[1:]:
        for name in ("boxes", "labels", "scores", "mask"):
            np.testing.assert_allclose(getattr(answer, name), getattr(answers[0], name), atol=1e-4)


def test_one_image_has_one_answer_and_a_list_a_list(checkpoint, photos):
    predictor = multas_ray.load(checkpoint, "cpu")
    path = photos / "photo1.png"
    image = Image.open(path)
    (expected,) = predictor.predict([path])
    for form in (path, str(path), image, np.array(image), torch.tensor(np.array(image)).permute(2, 0, 1)):
        answer = predictor.predict(form)
        np.testing.assert_allclose(answer.boxes, expected.boxes, atol=1e-4)
        np.testing.assert_array_equal(answer.mask, expected.mask)
    assert predictor.predict([]) == []
    assert len(predictor.predict((path, path))) == 2


def test_detections_below_a_score_are_left_out(checkpoint, photos):
    predictor = multas_ray.load(checkpoint, "cpu")
    every = predictor.predict(photos / "photo1.png")
    least = float(every.scores[3])
    some = predictor.predict(photos / "photo1.png", score=least)
    assert 3 < len(some.scores) == (every.scores >= least).sum() < len(every.scores)
    np.testing.assert_array_equal(some.boxes, every.boxes[: len(some.boxes)])
    np.testing.assert_array_equal(some.mask, every.mask)
    for wrong in (-0.1, 30, float("nan")):
        with pytest.raises(UserError, match="scores from 0 to 1"):
            predictor.predict(photos / "photo1.png", score=wrong)


def test_an_image_of_the_networks_size_is_not_changed_on_its_way(checkpoint, photos):
    predictor = multas_ray.load(checkpoint, "cpu")
    pixels = torch.tensor(np.array(Image.open(photos / "photo0.png"))).permute(2, 0, 1)
    (raw,) = predict(predictor.network, pixels[None], predictor.settings)
    (answer,) = predictor.predict([pixels])
    np.testing.assert_allclose(answer.boxes, 64 * raw["det"].boxes.numpy(), rtol=1e-6)
    assert len(answer.scores) <= 20, "max_detections of the checkpoint's own settings"


def test_a_pixel_has_the_class_of_its_largest_logit():
    logits = torch.randn(7, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], (50, 30), mode="bilinear")[0].argmax(0)
    assert label_map(logits, 50, 30).dtype == torch.uint8
    assert torch.equal(label_map(logits, 50, 30).long(), expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\)"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), r"torch.uint8 \(1, 4, 4\)"),
        (7, "int"),
        ("nowhere.jpg", "nowhere.jpg: not readable"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_is(checkpoint, image, words):
    with pytest.raises(UserError, match=words):
        multas_ray.load(checkpoint, "cpu").predict([image])
    with pytest.raises(UserError, match=words):
        multas_ray.load(checkpoint, "cpu").predict(image)


def test_a_stack_of_images_is_no_image(checkpoint):
    stack = np.zeros((2, 4, 4, 3), np.uint8)
    for wrong in (stack, torch.tensor(stack), b"an encoded image", {"a": 1}, iter([stack[0]])):
        with pytest.raises(UserError, match=r"several are a list of them; this is (\w|\.)+"):
            multas_ray.load(checkpoint, "cpu").predict(wrong)
