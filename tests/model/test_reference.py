"""Weights of the published code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from multas_ray.config import ModelConfig
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.reference import load_reference_state_dict
from tests.golden.__main__ import NUMBERS
from tests.golden.checks import published_weights

pytestmark = pytest.mark.long
DET, SEG = [str(c) for c in range(20)], [str(c) for c in range(21)]


def network(**changes: object) -> MultiTaskNet:
    settings = {"preset": "paper", "backbone": "resnet50", "neck": "pafpn", "pretrained": False, "tasks": ["det"]}
    return MultiTaskNet(ModelConfig.model_validate(settings | changes), {"det": DET, "seg": SEG})


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Weights under the names of a published detection teacher."""
    with np.load(NUMBERS / "model_teacher_resnet50_pafpn_det.npz", allow_pickle=False) as golden:
        return published_weights(golden, 3)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_loads_with_or_without_the_key_model(
    published: dict[str, Tensor], wrapped: bool, tmp_path: Path
) -> None:
    torch.save({"model": published} if wrapped else published, tmp_path / "teacher.pth")
    model = network()
    load_reference_state_dict(model, tmp_path / "teacher.pth")
    assert torch.equal(model.state_dict()["det_head.box.2.2.bias"], published["loc.2.2.bias"])
    assert torch.equal(model.state_dict()["neck.shrink.0.norm.bias"], published["neck.downsample_convs.0.bn.bias"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"neck": "fpn"}, "not in the network: neck.downsample_convs.0.conv.weight, .*, …"),
        ({"tasks": ["seg"]}, "missing: seg_head"),
        ({"backbone": "resnet18"}, r"of another shape: .*backbone.layer1.0.conv1.weight \(64, 64, 1, 1\)"),
        ({"levels": 5}, "missing: det_head.box.4.0.conv.bias"),
    ],
)
def test_what_does_not_fit_is_named(published: dict[str, Tensor], changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_reference_state_dict(network(**changes), published)
    assert "\n" not in str(caught.value)


def test_swin_is_refused() -> None:
    with pytest.raises(UserError, match="Swin"):
        load_reference_state_dict(network(), {"backbone.patch_embed.proj.weight": torch.zeros(1)})


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"model": Path("code")}, tmp_path / "pickle.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {"epoch": 3}}, tmp_path / "odd.pth")
    for name in ("pickle.pth", "text.pth", "list.pth", "odd.pth", "absent.pth"):
        with pytest.raises(UserError, match=name) as caught:
            load_reference_state_dict(network(), tmp_path / name)
        assert "\n" not in str(caught.value)
