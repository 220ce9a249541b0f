"""Packed soft targets against whole ones."""

import pytest
import torch
from torch.nn import functional as F

from multas_ray.tasks.detection import packed as boxes
from multas_ray.tasks.detection.distillation import guided
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.tasks.segmentation import packed as pixels
from multas_ray.tasks.segmentation.distillation import class_divergence

CPU = torch.device("cpu")
ANCHORS, CLASSES = 600, 5


def detection(images: int, objects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An answer that sees something on some anchors of each image, in float16's precision."""
    generator = torch.Generator().manual_seed(images + objects)
    cls = torch.randn(images, ANCHORS, CLASSES, generator=generator) - 7
    for image in range(images):
        seen = torch.randperm(ANCHORS, generator=generator)[:objects]
        cls[image, seen, seen % CLASSES] = 3 * torch.randn(objects, generator=generator)
    box = torch.randn(images, ANCHORS, 4, generator=generator)
    return cls.half().float(), box.half().float()


@pytest.mark.parametrize("objects", [0, 1, 40, ANCHORS])
def test_what_a_detector_sees_comes_back_exactly(objects):
    cls, box = detection(3, objects)
    packed = boxes.pack(cls, box)
    assert len(packed) == 3
    back_cls, back_box = boxes.unpack(packed, CPU)
    seen = cls.sigmoid() > boxes.SEEN
    torch.testing.assert_close(back_cls[seen], cls[seen], rtol=0, atol=0)
    boxed = seen.any(dim=2)
    torch.testing.assert_close(back_box[boxed], box[boxed], rtol=0, atol=0)
    assert (back_box[~boxed] == 0).all()
    assert (back_cls[~seen].sigmoid() <= boxes.SEEN).all()


def test_the_confidence_of_an_image_adds_up_to_what_it_was():
    cls, box = detection(4, 12)
    back, _ = boxes.unpack(boxes.pack(cls, box), CPU)
    total, found = (logits.sigmoid().amax(dim=2).sum(dim=1) for logits in (cls, back))
    torch.testing.assert_close(found, total, rtol=1e-3, atol=0)


def test_images_are_packed_each_by_itself():
    cls, box = detection(5, 30)
    packed = boxes.pack(cls, box)
    assert boxes.pack(cls[2:3], box[2:3]) == packed[2:3]
    alone, together = (boxes.unpack(some, CPU)[0] for some in ([packed[3]], packed))
    torch.testing.assert_close(alone[0], together[3], rtol=0, atol=0)
    maps = smooth_logits(3, 4, 16, 1)
    assert pixels.pack(maps[1:2]) == pixels.pack(maps)[1:2]


def smooth_logits(images: int, classes: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = 3 * torch.randn(images, classes, size // 4, size // 4, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def test_a_student_s_gradients_hardly_change():
    cls, box = detection(4, 40)
    maps = smooth_logits(4, 6, 32, 2)
    student = {
        "cls": cls + torch.randn_like(cls),
        "box": box + torch.randn_like(box),
        "seg": smooth_logits(4, 6, 32, 3),
    }
    back_cls, back_box = boxes.unpack(boxes.pack(cls, box), CPU)
    back_maps = pixels.unpack(pixels.pack(maps), CPU)

    def gradients(cls, box, maps) -> dict[str, torch.Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in student.items()}
        terms = guided(DetectionOutput(leaves["cls"], leaves["box"]), DetectionOutput(cls, box))
        terms |= class_divergence(leaves["seg"], maps, 1.0)
        torch.stack([term.divided() for term in terms.values()]).sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    whole, packed = gradients(cls, box, maps), gradients(back_cls, back_box, back_maps)
    for name, bound in {"cls": 0.02, "box": 0.05, "seg": 0.02}.items():
        assert (packed[name] - whole[name]).norm() < bound * whole[name].norm(), name


def test_classes_of_no_probability_survive():
    maps = torch.full((1, 3, 8, 8), -20.0)
    maps[:, 1] = 20
    back = pixels.unpack(pixels.pack(maps), CPU)
    assert back.isfinite().all()
    assert (back.exp()[:, 1] > 0.999).all()


def test_an_autocast_around_it_changes_nothing():
    maps = smooth_logits(2, 5, 32, 4)
    packed = pixels.pack(maps)
    plain = pixels.unpack(packed, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert pixels.pack(maps) == packed
        torch.testing.assert_close(pixels.unpack(packed, CPU), plain, rtol=0, atol=0)


def test_the_transform_is_orthonormal():
    basis = pixels.cosine_basis(CPU)
    torch.testing.assert_close(basis @ basis.T, torch.eye(pixels.BLOCK))
    assert basis[0].std() < 1e-6
