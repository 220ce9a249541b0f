import hashlib
import io
import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from multas_ray.checkpoint.folder import (
    MANIFEST,
    META,
    MODEL,
    STATE,
    Meta,
    find_checkpoint,
    newest_checkpoint,
    newest_written,
    prune,
    step_folder,
)
from multas_ray.checkpoint.weights import load_network, load_state, write_checkpoint
from multas_ray.config import ModelConfig
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.storage import StoragePath
from tests.support.networks import by_name

CONFIG = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16)


def write(run: Path, step: int, score: float | None = None) -> MultiTaskNet:
    torch.manual_seed(step)
    network = MultiTaskNet(CONFIG, {"det": ["cat", "dog"], "seg": ["background", "cat"]}).eval()
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
        outputs = by_name(loaded(images))
        for name, value in by_name(network(images)).items():
            assert torch.equal(value, outputs[name])
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


# --- files of strangers -----------------------------------------------------------------------------------------------


def put(folder: Path, **files: bytes) -> None:
    """Write files of a checkpoint anew, and what its manifest says of them."""
    named = {"model": MODEL, "state": STATE, "meta": META}
    digests = json.loads((folder / MANIFEST).read_text())
    for key, content in files.items():
        (folder / named[key]).write_bytes(content)
        digests[named[key]] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(digests))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    write(tmp_path, 3)
    return Path(step_folder(tmp_path, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights, key: {key: weights[key] * float("nan")}, "'{key}' has values that are not finite"),
        (lambda weights, key: {key: weights[key].half()}, "'{key}' is of float16, the network's of float32"),
        (lambda weights, key: {key: weights[key].long()}, "'{key}' is of int64, the network's of float32"),
        (lambda weights, key: {key: weights[key][None]}, r"'{key}' is \(1, .*, the network's"),
        (lambda weights, key: {"x\n": weights[key].clone()}, r"holds 'x\\n', which the network has not"),
    ],
    ids=["nan", "half", "integers", "shape", "another"],
)
def test_weights_that_are_not_the_network_s_are_refused_by_name(folder, change, words):
    weights = load_file(folder / MODEL)
    key = next(key for key in sorted(weights) if key.endswith("weight"))
    put(folder, model=save(weights | change(weights, key)))
    with pytest.raises(UserError, match=rf"^{folder}/{MODEL}: {words.format(key=key)}"):
        load_network(folder)


def header(content: dict) -> bytes:
    """A file of safetensors that is all header."""
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        (2**60).to_bytes(8, "little") + b"{}",
        header({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**40]}}),
        header({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        header({"x": {"dtype": "F4", "shape": [0], "data_offsets": [0, 0]}}),
        header({"x": {"dtype": "Q9", "shape": [0], "data_offsets": [0, 0]}}),
        header({"x": [[[]]]}),
    ],
    ids=range(8),
)
def test_what_is_no_safetensors_is_refused(folder, content):
    put(folder, model=content)
    with pytest.raises(UserError, match=rf"^{folder}/{MODEL}: (not readable|lacks|holds)"):
        load_network(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"width": 16 * 2**40}}, "no such network can be"),
        ({"model": {"width": 16 * 10**30}}, "no such network can be"),
        ({"model": {"width": 160_000}}, rf"{MODEL}: '.*' is .*, the network's"),
        ({"model": {"adapter": 10**9}}, rf"{MODEL}: lacks 'adapters"),
        ({"model": {"backbone": "resnet9000"}}, r"meta\.json: model\.backbone: "),
        ({"det_classes": []}, "has det, but the data set has no det_classes"),
        ({"size": 2**40}, r"meta\.json: size: "),
        ({"step": -1}, r"meta\.json: step: "),
        ({"seconds": float("inf")}, r"meta\.json: seconds: "),
        ({"colour": 1}, r"meta\.json: colour: no such key"),
    ],
    ids=str,
)
def test_a_description_of_no_network_is_refused_and_takes_no_memory(folder, change, words, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: pytest.fail("built"))
    meta = json.loads((folder / META).read_text())
    inside = meta["model"] | change.get("model", {})
    put(folder, meta=json.dumps(meta | change | {"model": inside}).encode())
    with pytest.raises(UserError, match=words):
        load_network(folder)


@pytest.mark.parametrize("name", [META, MANIFEST])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"a": 1}', b"null", b"[" * 100_000, b"9" * 5000])
def test_a_description_that_is_none_is_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{folder}/(step_00000003/)?{name}: |^{folder}/{META}: not what was written"):
        load_network(folder)
    assert find_checkpoint(folder) == StoragePath(folder)
    newest, broken = newest_checkpoint(folder.parent.parent)
    assert newest is None
    assert "step_00000003 is broken" in broken[0]


@pytest.mark.parametrize("name", ["../../../secret", "/dev/zero", "..", ""])
def test_a_manifest_names_files_of_its_folder_alone(folder, name):
    digests = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(digests | {name: "0"}))
    with pytest.raises(UserError, match=rf"^{folder}/{MANIFEST}: "):
        load_network(folder)
    assert newest_checkpoint(folder.parent.parent)[0] is None


def test_a_run_s_other_checkpoints_and_folders_are_passed_over(tmp_path):
    for step, score in ((10, 5.0), (20, 9.0)):
        write(tmp_path, step, score)
    (Path(step_folder(tmp_path, 20)) / META).write_text("rubbish")
    odd = tmp_path / "checkpoints" / "step_x"
    odd.mkdir()
    (odd / MANIFEST).write_text("{}")
    assert find_checkpoint(tmp_path) == step_folder(tmp_path, 10)
    assert newest_written(tmp_path) == 20


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_state_that_is_none_is_one_line_and_runs_no_code(folder, tmp_path):
    stream = io.BytesIO()
    torch.save({"model": Marker(tmp_path / "ran")}, stream)
    foreign = "other things than tensors and plain values"
    contents = {
        stream.getvalue(): foreign,
        pickle.dumps(Marker(tmp_path / "ran")): foreign,
        b"": "not readable as tensors",
        b"PK\x03\x04 and no more": "not readable as tensors",
        stream.getvalue()[:300]: "not readable as tensors",
    }
    for content, words in contents.items():
        put(folder, state=content)
        with pytest.raises(UserError, match=rf"^{folder}/{STATE}: .*{words}"):
            load_state(StoragePath(folder), torch.device("cpu"))
    stream = io.BytesIO()
    torch.save([1], stream)
    put(folder, state=stream.getvalue())
    with pytest.raises(UserError, match="not a run's state: it holds a list"):
        load_state(StoragePath(folder), torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.long
def test_changed_bytes_of_a_checkpoint_are_found_or_refused(folder):
    """By its manifest; and by what they are, where that has been written anew."""
    chosen = random.Random(1)
    whole = {name: (folder / name).read_bytes() for name in (MODEL, STATE, META)}
    found = {"loaded": 0, "refused": 0}
    for number in range(40):
        name = (MODEL, STATE, META)[number % 3]
        data = bytearray(whole[name])
        # Headers and descriptions, not only the many bytes of weights, of which any other ones are weights too.
        place = chosen.randrange(min(len(data), 2000))
        data[place : place + chosen.choice([0, 1, 30])] = bytes([chosen.randrange(256)])
        put(folder, **{{MODEL: "model", STATE: "state", META: "meta"}[name]: bytes(data)})
        try:
            load_network(folder)
            load_state(StoragePath(folder), torch.device("cpu"))
            found["loaded"] += 1
        except UserError as error:
            found["refused"] += str(error).isprintable()
        (folder / name).write_bytes(data + b"x")
        assert newest_checkpoint(folder.parent.parent)[0] is None
        put(folder, **{{MODEL: "model", STATE: "state", META: "meta"}[name]: whole[name]})
    assert sum(found.values()) == 40
    assert min(found.values()) > 0
