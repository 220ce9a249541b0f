import pytest
import torch
from torch import Tensor

from multas_ray.config import ModelConfig
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet, count_parameters
from tests.support.networks import by_name

DET = ("cat", "cow", "dog")
SEG = ("background", "cat", "cow", "dog")
SIZE = 64
ANCHORS = 6 * (64 + 16 + 4 + 1)


def network(**changes: object) -> MultiTaskNet:
    torch.manual_seed(0)
    settings = {"backbone": "resnet18", "pretrained": False, "width": 32, "norm": "frozen"} | changes
    return MultiTaskNet(ModelConfig.model_validate(settings), {"det": DET, "seg": SEG})


def pixels(batch: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["resnet18", "swin_t", "efficientnet_lite0"])
def test_shapes(backbone: str) -> None:
    net = network(backbone=backbone)
    outputs = by_name(net(pixels(2)))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "cls": (2, ANCHORS, 3),
        "box": (2, ANCHORS, 4),
        "seg": (2, 4, 16, 16),
    }
    assert net.anchors(SIZE, SIZE).shape == (ANCHORS, 4)
    assert all(output.dtype == torch.float32 for output in outputs.values())


def test_single_task() -> None:
    det, seg = network(tasks=["det"]), network(tasks=["seg"])
    assert set(det(pixels())) == {"det"}
    assert set(seg(pixels())) == {"seg"}
    assert det.seg_classes == ()
    assert seg.det_classes == ()
    assert count_parameters(det) < count_parameters(network())
    with pytest.raises(UserError, match="det_classes"):
        MultiTaskNet(ModelConfig(pretrained=False), {"det": [], "seg": SEG})


def test_starts_at_the_prior() -> None:
    outputs = network(backbone="efficientnet_lite0", norm="batch")(pixels())
    assert outputs["det"].cls.sigmoid().mean().item() == pytest.approx(0.01, rel=0.2)
    assert outputs["det"].box.abs().mean() < 1
    assert outputs["seg"].softmax(dim=1).amax() < 0.99


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_heads_run_on_their_rows_only(backbone: str) -> None:
    net = network(backbone=backbone).eval()
    det_rows, seg_rows = torch.tensor([2, 0]), torch.tensor([1])
    seen = {}
    net.det_head.cls.register_forward_hook(lambda *call: seen.__setitem__("det", len(call[2])))
    net.seg_head.classify.register_forward_hook(lambda *call: seen.__setitem__("seg", len(call[2])))
    every = net(pixels())
    some = net(pixels(), {"det": det_rows, "seg": seg_rows})
    assert seen == {"det": 2, "seg": 1}
    torch.testing.assert_close(some["det"].cls, every["det"].cls[det_rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some["det"].box, every["det"].box[det_rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some["seg"], every["seg"][seg_rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("det", [[], [1]])
@pytest.mark.parametrize("seg", [[], [0, 2]])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_empty_rows_are_connected(det: list[int], seg: list[int], precision: torch.dtype) -> None:
    net = network(backbone="efficientnet_lite0", norm="batch")
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        rows = {task: torch.tensor(chosen, dtype=torch.long) for task, chosen in (("det", det), ("seg", seg))}
        outputs = by_name(net(pixels(), rows))
    assert outputs["cls"].shape == (len(det), ANCHORS, 3)
    assert outputs["box"].shape == (len(det), ANCHORS, 4)
    assert outputs["seg"].shape == (len(seg), 4, 16, 16)
    assert all(output.dtype == torch.float32 for output in outputs.values())
    sum(output.sum() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    for head, rows in ((net.det_head, det), (net.seg_head, seg)):
        assert any(parameter.grad.any() for parameter in head.parameters()) == bool(rows)
    assert any(parameter.grad.any() for parameter in net.backbone.parameters()) == bool(det or seg)


def test_empty_rows_of_non_finite_features() -> None:
    net = network()
    with torch.no_grad():
        net.det_head.cls.weight.fill_(float("inf"))
    outputs = net(pixels(), {"det": torch.tensor([], dtype=torch.long), "seg": None})
    (outputs["seg"].sum() + outputs["det"].cls.sum()).backward()
    assert not net.det_head.cls.weight.grad.any()


def test_state_dict_holds_no_derived_buffers() -> None:
    net = network()
    assert not {"mean", "std"} & set(net.state_dict())
    other = network()
    other.load_state_dict(net.state_dict())


def test_memory_format_does_not_matter() -> None:
    net = network().eval()
    plain = by_name(net(pixels()))
    net.to(memory_format=torch.contiguous_format)
    other = by_name(net(pixels().contiguous(memory_format=torch.channels_last)))
    assert other.keys() == plain.keys() == {"cls", "box", "seg"}
    for name, output in other.items():
        torch.testing.assert_close(output, plain[name], rtol=1e-4, atol=1e-5)
