import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.tasks.segmentation.loss import segmentation_loss


def sample(batch: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (batch, 32, 32), dtype=torch.uint8, generator=g)
    masks[:, :5] = 255
    return torch.randn(batch, 5, 8, 8, generator=g).requires_grad_(), masks


def test_is_cross_entropy_over_annotated_pixels() -> None:
    logits, masks = sample(3)
    term = segmentation_loss(logits, masks)["seg"]
    full = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(term.sum / term.count, F.cross_entropy(full, masks.long(), ignore_index=255))


def test_terms_of_parts_add_up_in_any_order() -> None:
    logits, masks = sample(5)
    whole = segmentation_loss(logits, masks)["seg"]
    parts = [segmentation_loss(logits[rows], masks[rows])["seg"] for rows in ([4, 0], [2, 3, 1])]
    torch.testing.assert_close(parts[0].sum + parts[1].sum, whole.sum)
    assert parts[0].count + parts[1].count == whole.count


def test_row_of_ignored_pixels_changes_nothing() -> None:
    logits, masks = sample(3)
    masks[1] = 255
    rows = [0, 2]
    with_row, without = segmentation_loss(logits, masks)["seg"], segmentation_loss(logits[rows], masks[rows])["seg"]
    torch.testing.assert_close(with_row.sum, without.sum)
    assert with_row.count == without.count


def test_nothing_annotated() -> None:
    for batch in (0, 2):
        logits, masks = sample(batch)
        term = segmentation_loss(logits, masks.fill_(255))["seg"]
        assert term[:2] == (0, 0)
        term.sum.backward()
        assert logits.grad is not None
        assert not logits.grad.any()


def test_extreme_and_bfloat16_logits() -> None:
    logits, masks = sample(2)
    term = segmentation_loss(logits * 1e4, masks)["seg"]
    term.sum.backward()
    assert term.sum.isfinite()
    assert logits.grad.isfinite().all()
    low = segmentation_loss(logits.bfloat16(), masks)["seg"]
    assert low.sum.dtype == torch.float32
    torch.testing.assert_close(low.sum, segmentation_loss(logits, masks)["seg"].sum, rtol=0.01, atol=0)
