"""Networks and training states, written to checkpoint folders and read from them."""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from multas_ray.checkpoint.folder import META, MODEL, STATE, Meta, find_checkpoint, read_files, read_meta, write_files
from multas_ray.errors import UserError, first_line, quoted
from multas_ray.model.network import MultiTaskNet
from multas_ray.storage import Location, StoragePath


def write_checkpoint(folder: Location, weights: Mapping[str, Tensor], state: Mapping[str, Any], meta: Meta) -> None:
    """Write a checkpoint folder, its manifest last.

    Args:
        folder: checkpoint folder; an existing one is replaced.
        weights: weights of the network to use.
        state: training state, see `load_state`.
        meta: description of the network.

    Raises:
        OSError: the folder cannot be written; it is deleted then.
    """
    network = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    files: dict[str, Callable[[BinaryIO], object]] = {
        MODEL: lambda stream: stream.write(safetensors.torch.save(network)),
        STATE: lambda stream: torch.save(dict(state), stream),
        META: lambda stream: stream.write(meta.model_dump_json(indent=1).encode()),
    }
    write_files(StoragePath(folder), files)


def load_state(folder: StoragePath, device: torch.device) -> dict[str, Any]:
    """Load the training state of a checkpoint: raw weights, optimiser, moving average, scaler.

    Raises:
        UserError: the checkpoint is broken, or holds no training state.
    """
    (data,) = read_files(folder, STATE)
    state = load_tensors(data, folder / STATE, device)
    if not isinstance(state, dict):
        raise UserError(f"{folder / STATE}: not a run's state: it holds a {type(state).__name__}")
    return state


def load_tensors(data: bytes, source: object, device: torch.device | str = "cpu") -> Any:
    """Load what `torch.save` wrote, if it holds tensors and plain values only: no code is run.

    Args:
        data: bytes of the file.
        source: name of the file in messages.
        device: device of the tensors.

    Raises:
        UserError: the data is broken, or holds anything else.
    """
    try:
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    # A broken file can make PyTorch's reader and unpickler raise anything.
    except Exception as error:
        foreign = isinstance(error, pickle.UnpicklingError)
        reason = "other things than tensors and plain values are in it" if foreign else first_line(error)
        raise UserError(f"{source}: not readable as tensors ({reason})") from None


def load_network(path: Location) -> tuple[MultiTaskNet, Meta]:
    """Load the network of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: see `find_checkpoint`.

    Raises:
        UserError: there is no checkpoint, its files are broken, or its tensors do not fit the network it describes.
    """
    folder = find_checkpoint(path)
    meta = read_meta(folder)
    (data,) = read_files(folder, MODEL)
    try:
        weights = safetensors.torch.load(data)
    except (SafetensorError, LookupError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / MODEL}: not readable ({first_line(error)})") from None

    def build() -> MultiTaskNet:
        return MultiTaskNet(meta.model.model_copy(update={"pretrained": False}), meta.classes)

    try:
        # On the meta device, which takes no memory: the description may hold any number.
        with torch.device("meta"):
            expected = build().state_dict()
    except UserError as error:
        raise UserError(f"{folder / META}: {error}") from None
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / META}: no such network can be ({first_line(error)})") from None
    check_weights(expected, weights, folder / MODEL)
    model = build()
    model.load_state_dict(weights)
    return model.eval(), meta


def load_weights(model: nn.Module, weights: object, source: object) -> None:
    """Load a state dict that must fit a network exactly.

    Args:
        model: the network.
        weights: the state dict.
        source: name of its file in messages.

    Raises:
        UserError: see `check_weights`.
    """
    model.load_state_dict(check_weights(model.state_dict(), weights, source))


def check_weights(expected: Mapping[str, Tensor], weights: object, source: object) -> Mapping[str, Tensor]:
    """Check that weights are finite and have the names, shapes and types that a network expects.

    Args:
        expected: state dict of the network.
        weights: weights to check.
        source: name of their file in messages.

    Returns:
        `weights`.

    Raises:
        UserError: names the source and the first key that does not fit.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise UserError(f"{source}: holds no tensors by name where a network's are needed")
    for key in sorted(expected.keys() | weights.keys()):
        if key not in weights:
            missing = len(expected.keys() - weights.keys())
            raise UserError(f"{source}: lacks '{key}' ({missing} tensors missing in all)")
        if key not in expected:
            raise UserError(f"{source}: holds {quoted(key)}, which the network has not")
        check_tensor(weights[key], expected[key], f"{source}: '{key}'")
    return weights


def check_tensor(value: object, like: Tensor, name: str) -> None:
    """Check that a value is a finite tensor of the shape and type of another.

    Args:
        value: value to check.
        like: tensor that it must resemble.
        name: name of the value in messages.

    Raises:
        UserError: names the value and the difference.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise UserError(f"{name} is no tensor with values")
    if value.shape != like.shape:
        raise UserError(f"{name} is {tuple(value.shape)}, the network's {tuple(like.shape)}")
    if value.dtype != like.dtype:
        raise UserError(f"{name} is of {_name(value.dtype)}, the network's of {_name(like.dtype)}")
    if not bool(value.isfinite().all()):
        raise UserError(f"{name} has values that are not finite")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
