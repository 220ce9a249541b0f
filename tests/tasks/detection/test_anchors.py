import pytest
import torch

from multas_ray.tasks.detection.anchors import anchors, count_anchors, decode, encode


def test_oblong_inputs() -> None:
    found = anchors(64, 128)
    assert len(found) == 6 * (8 * 16 + 4 * 8 + 2 * 4 + 1 * 2)
    assert [len(anchors(96, 96, levels=levels)) for levels in (4, 5)] == [count_anchors(96, 4), count_anchors(96, 5)]
    torch.testing.assert_close(found[0], torch.tensor([4 / 128, 4 / 64, 24 / 128, 24 / 64]))
    torch.testing.assert_close(found[6, :2], torch.tensor([12 / 128, 4 / 64]))  # the next cell is to the right


def test_cache_serves_training_after_inference() -> None:
    with torch.inference_mode():
        anchors(96, 32)
    codes = torch.zeros(len(anchors(96, 32)), 4, requires_grad=True)
    decode(codes, anchors(96, 32)).sum().backward()
    assert anchors(96, 32) is anchors(96, 32)


def test_decode_inverts_encode() -> None:
    boxes = torch.rand(5, len(anchors(64, 64)), 4).sort(dim=-1).values[..., [0, 1, 2, 3]] + torch.tensor(
        [0, 0, 0.1, 0.1]
    )
    torch.testing.assert_close(decode(encode(boxes, anchors(64, 64)), anchors(64, 64)), boxes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_codes_stay_finite(value: float) -> None:
    assert decode(torch.full((6 * 85, 4), value), anchors(64, 64)).isfinite().all()
