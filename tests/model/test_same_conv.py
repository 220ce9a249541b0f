import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from multas_ray.model.same_conv import same_conv2d


def plain(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    k = weight.shape[-1]
    before, after = (k - stride) // 2, (k - stride + 1) // 2
    padded = F.pad(x, (before, after, before, after))
    return F.conv2d(padded, weight, None, stride, groups=x.shape[1] // weight.shape[1])


@pytest.mark.parametrize(("k", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [2, 8, 40])
@pytest.mark.parametrize("depthwise", [True, False])
def test_same_as_padding_and_convolving(k: int, stride: int, size: int, depthwise: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, size, size + 4).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(7, 1 if depthwise else 7, k, k, requires_grad=True)
    expected = plain(x, weight, stride)
    assert expected.shape[-2:] == (size // stride, (size + 4) // stride)
    gradient = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, (x, weight), gradient)
    output = same_conv2d(x, weight, stride)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(output, (x, weight), gradient)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=2e-4)
    with torch.no_grad():
        torch.testing.assert_close(same_conv2d(x, weight, stride), output)


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_bfloat16_gradients(k: int, stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 8, 8, requires_grad=True)
    weight = torch.randn(16, 1, k, k, requires_grad=True)
    expected = plain(x, weight, stride)
    gradient = torch.randn_like(expected)
    with torch.autocast("cpu", torch.bfloat16):
        output = same_conv2d(x, weight, stride)
    assert output.dtype == torch.bfloat16
    found = torch.autograd.grad(output, (x, weight), gradient.bfloat16())
    for a, b in zip(found, torch.autograd.grad(expected, (x, weight), gradient), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


def test_frozen_weight() -> None:
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    same_conv2d(x, torch.randn(8, 1, 5, 5), 1).sum().backward()
    assert x.grad is not None
