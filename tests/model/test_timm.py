"""Backbones of timm, of each shape of family, without weights."""

import pytest
import safetensors.torch
import torch
from torch import nn

from multas_ray.config import ModelConfig
from multas_ray.errors import UserError
from multas_ray.model.backbones import BackboneSettings, build_backbone
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.timm_backbones import weights_licence

timm = pytest.importorskip("timm")

PLAIN = BackboneSettings(pretrained=False, norm="batch")
SHAPES = {
    "five levels": "timm/mobilenetv4_conv_small_050.e3000_r224_in1k",
    "four levels": "timm/convnext_atto",
    "channels last": "timm/swin_tiny_patch4_window7_224",
    "one stride": "timm/vit_tiny_patch16_224",
    "one stride of 14": "timm/vit_small_patch14_dinov2",
    "rotary": "timm/vit_small_patch16_dinov3",
}


@pytest.mark.long
@pytest.mark.parametrize("name", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("size", [(64, 96), (128, 128)])
def test_maps_have_the_strides_8_16_and_32(name, size):
    backbone = build_backbone(name, PLAIN).eval()
    with torch.inference_mode():
        maps = backbone(torch.randn(2, 3, *size))
    assert [tuple(each.shape) for each in maps] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]
    assert all(each.isfinite().all() for each in maps)
    assert not any(isinstance(part, timm.layers.DropPath) for part in backbone.modules())
    assert not any(part.p for part in backbone.modules() if isinstance(part, nn.Dropout))


@pytest.mark.parametrize("name", [SHAPES["five levels"], SHAPES["one stride"]])
def test_a_network_trains_on_one(name):
    config = ModelConfig(backbone=name, pretrained=False, width=16)
    network = MultiTaskNet(config, {"det": ["a"], "seg": ["background", "a"]})
    outputs = network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    (outputs["det"].cls.sum() + outputs["det"].box.sum() + outputs["seg"].sum()).backward()
    without = [key for key, value in network.named_parameters() if value.grad is None]
    assert not without
    again = MultiTaskNet(config, {"det": ["a"], "seg": ["background", "a"]})
    again.load_state_dict(network.state_dict())


def test_mean_and_deviation_are_those_of_its_pretraining():
    assert build_backbone("timm/vit_tiny_patch16_224.augreg_in21k", PLAIN).mean == (0.5, 0.5, 0.5)
    assert build_backbone(SHAPES["four levels"], PLAIN).std == pytest.approx((0.229, 0.224, 0.225))


def test_norms():
    name = SHAPES["five levels"]
    frozen = build_backbone(name, PLAIN._replace(norm="frozen"))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in frozen.modules())
    assert any("FrozenBatchNorm" in type(part).__name__ for part in frozen.modules())
    sync = build_backbone(name, PLAIN._replace(norm="sync"))
    assert any(isinstance(part, nn.SyncBatchNorm) for part in sync.modules())
    with pytest.raises(UserError, match=r"model\.norm: group, but timm/mobilenetv4.* has batch statistics"):
        build_backbone(name, PLAIN._replace(norm="group"))
    # One without batch statistics is what it is.
    build_backbone(SHAPES["four levels"], PLAIN._replace(norm="group"))


def test_weights_from_a_file(tmp_path):
    name = SHAPES["five levels"]
    torch.manual_seed(0)
    whole = timm.create_model(name.removeprefix("timm/"), pretrained=False)
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(whole.state_dict(), file)
    backbone = build_backbone(name, BackboneSettings(True, "batch", weights=str(file)))
    own = backbone.network.state_dict()
    common = {key: value for key, value in whole.state_dict().items() if key.replace("blocks.", "blocks_") in own}
    common |= {key: value for key, value in whole.state_dict().items() if key in own}
    assert len(common) > 0.5 * len(own)
    for key, value in common.items():
        torch.testing.assert_close(own[key if key in own else key.replace("blocks.", "blocks_")], value)
    renamed = {f"model.{key}": value for key, value in whole.state_dict().items()}
    for foreign in ({"nothing.weight": torch.ones(3)}, renamed):
        wrong = tmp_path / "wrong.safetensors"
        safetensors.torch.save_file(foreign, wrong)
        with pytest.raises(UserError, match=r"model\.weights: .*wrong\.safetensors has \d+% of the weights of timm/"):
            build_backbone(name, BackboneSettings(True, "batch", weights=str(wrong)))
    other = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), other)
    with pytest.raises(UserError, match=r"weights are read from \.safetensors files alone"):
        build_backbone(name, BackboneSettings(True, "batch", weights=str(other)))
    with pytest.raises(UserError, match=r"model\.pretrained: the weights of .* could not be had from .*nowhere"):
        build_backbone(name, BackboneSettings(True, "batch", weights=str(tmp_path / "nowhere.safetensors")))
    with pytest.raises(UserError, match=r"model\.weights: is for timm's backbones, and model\.backbone is resnet18"):
        build_backbone("resnet18", BackboneSettings(False, "batch", weights=str(file)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/convnext_tinny", "timm has no model 'convnext_tinny'; near are convnext_tiny"),
        ("timm/mixer_s16_224", "cannot be built .it works at the one size of its pretraining"),
        (
            "timm/convmixer_768_32",
            r"has no maps of the strides 8, 16 and 32 \(it has \[7, 7, .*, and is no plain ViT; ",
        ),
        ("timm/inception_v3", r"has maps \[.*\] of 128 x 192 pixels; needed are \[\(288, 16, 24\), "),
        ("timm/crossvit_9_240", r"has no maps of the strides 8, 16 and 32 .*; those of the families convnext"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        build_backbone(name, PLAIN)


def test_a_licence_that_asks_for_more_than_the_code_s_is_named():
    assert weights_licence("timm/convnext_tiny.dinov3_lvd1689m") == "dinov3-license"
    assert weights_licence("timm/mobilenetv4_conv_small.e2400_r224_in1k") is None
