from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multas_ray.config import ModelConfig
from multas_ray.errors import UserError
from multas_ray.model.checkpoint import (
    MODEL,
    Meta,
    find_checkpoint,
    newest_checkpoint,
    prune,
    step_folder,
)
from multas_ray.model.network import MultiTaskNet
from multas_ray.model.weights import load_network, write_checkpoint

CONFIG = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16)


def write(run: Path, step: int, score: float | None = None) -> MultiTaskNet:
    torch.manual_seed(step)
    network = MultiTaskNet(CONFIG, ["cat", "dog"], ["background", "cat"]).eval()
    folder = step_folder(run, step)
    metrics = {} if score is None else {"score": score}
    meta = Meta(
        step=step, model=CONFIG, det_classes=["cat", "dog"], seg_classes=["background", "cat"], size=64, metrics=metrics
    )
    write_checkpoint(folder, network.state_dict(), {"step": step}, meta)
    return network


def test_a_network_comes_back_as_it_was(tmp_path):
    network = write(tmp_path, 3)
    loaded, meta = load_network(str(tmp_path))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for name, value in network(images).items():
            assert torch.equal(value, loaded(images)[name])
    assert not loaded.training
    assert (meta.step, meta.size) == (3, 64)


def test_a_run_folder_means_its_best_checkpoint(tmp_path):
    write(tmp_path, 10, score=5.0)
    write(tmp_path, 20, score=9.0)
    write(tmp_path, 30)
    assert find_checkpoint(str(tmp_path)) == step_folder(tmp_path, 20)
    assert find_checkpoint(str(step_folder(tmp_path, 10))) == step_folder(tmp_path, 10)


@pytest.mark.parametrize("damage", ["truncate", "corrupt", "remove", "no manifest"])
def test_a_broken_newest_checkpoint_is_named_and_passed_over(tmp_path, damage):
    write(tmp_path, 10)
    write(tmp_path, 20)
    file = Path(step_folder(tmp_path, 20) / MODEL)
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "corrupt":
        content = bytearray(file.read_bytes())
        content[-50] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    else:
        Path(step_folder(tmp_path, 20) / "manifest.json").unlink()
    newest, broken = newest_checkpoint(tmp_path)
    assert newest == step_folder(tmp_path, 10)
    assert "step_00000020 is broken" in broken[0]
    assert find_checkpoint(str(tmp_path)) == step_folder(tmp_path, 10)
    with pytest.raises(UserError, match="step_00000020"):
        load_network(str(step_folder(tmp_path, 20)))


def test_without_a_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    with pytest.raises(UserError, match="no whole checkpoint here"):
        load_network(str(tmp_path / "nowhere"))


def test_weights_of_another_network_are_refused_by_key(tmp_path):
    write(tmp_path, 1)
    folder = step_folder(tmp_path, 1)
    other = tmp_path / "other"
    other.mkdir()
    weights = load_file(folder / MODEL)
    meta = Meta.model_validate_json((folder / "meta.json").read_text())
    write_checkpoint(other, weights, {}, meta.model_copy(update={"det_classes": ["cat"]}))
    with pytest.raises(UserError, match=r"'det_head\..*' is \(12,\), the network's \(6,\)"):
        load_network(str(other))


@pytest.mark.parametrize(("keep", "left"), [(1, [20, 50]), (2, [20, 40, 50]), (9, [10, 20, 30, 40, 50])])
def test_pruning_keeps_the_newest_and_the_best(tmp_path, keep, left):
    for step, score in ((10, 7.0), (20, 9.0), (30, 8.0), (40, None), (50, None)):
        write(tmp_path, step, score)
    prune(tmp_path, keep)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"step_{s:08d}" for s in left]
