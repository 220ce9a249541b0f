"""A network with both tasks, and pictures of several sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multas_ray.checkpoint.folder import Meta
from multas_ray.checkpoint.weights import write_checkpoint
from multas_ray.config import EvaluateConfig, ModelConfig
from multas_ray.formats import scenes
from multas_ray.model.network import MultiTaskNet


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, whose adapter is a distilled student's; many boxes pass its low threshold."""
    torch.manual_seed(3)
    config = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16, norm="group", adapter=8)
    network = MultiTaskNet(config, {"det": scenes.CLASSES, "seg": ["background", *scenes.CLASSES]})
    with torch.no_grad():
        for parameter in network.det_head.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    meta = Meta(
        step=1,
        model=config,
        det_classes=list(network.det_classes),
        seg_classes=list(network.seg_classes),
        size=64,
        evaluate=EvaluateConfig(score_threshold=0.001, batch_size=4, max_detections=20),
        metrics={},
    )
    folder = tmp_path_factory.mktemp("both") / "checkpoint"
    write_checkpoint(folder, network.state_dict(), {}, meta)
    return str(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five PNGs of several sizes and modes, one of them in a subfolder, and one file that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    (folder / "more").mkdir()
    for number, (height, width) in enumerate([(64, 64), (48, 90), (100, 70), (33, 41)]):
        scene = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((width, height))
        scene.save(folder / f"photo{number}.png")
    scene.convert("L").save(folder / "more" / "grey.png")
    (folder / "broken.jpg").write_bytes((folder / "photo0.png").read_bytes()[:200])
    return folder
