"""Networks into checkpoint folders, and out of them."""

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

    Raises:
        OSError: it cannot be written; nothing is left of it then.
    """
    network = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    files: dict[str, Callable[[BinaryIO], object]] = {
        MODEL: lambda stream: stream.write(safetensors.torch.save(network)),
        STATE: lambda stream: torch.save(dict(state), stream),
        META: lambda stream: stream.write(meta.model_dump_json(indent=1).encode()),
    }
    write_files(StoragePath(folder), files)


def load_state(folder: StoragePath, device: torch.device) -> dict[str, Any]:
    """What `write_checkpoint` got as the state.

    Raises:
        UserError: the checkpoint is broken, or holds no such thing.
    """
    (data,) = read_files(folder, STATE)
    state = load_tensors(data, folder / STATE, device)
    if not isinstance(state, dict):
        raise UserError(f"{folder / STATE}: not a run's state: it holds a {type(state).__name__}")
    return state


def load_tensors(data: bytes, source: object, device: torch.device | str = "cpu") -> Any:
    """What `torch.save` has written: tensors and plain values, and nothing that is run.

    Raises:
        UserError: it is something else, or broken.
    """
    try:
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    # A broken file brings about whatever PyTorch's reader and unpickler come across.
    except Exception as error:
        foreign = isinstance(error, pickle.UnpicklingError)
        reason = "other things than tensors and plain values are in it" if foreign else first_line(error)
        raise UserError(f"{source}: not readable as tensors ({reason})") from None


def load_network(path: Location) -> tuple[MultiTaskNet, Meta]:
    """The network of a checkpoint (see `find_checkpoint`), on the CPU, in evaluation mode.

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
        # Without memory: what the description says may be any number.
        with torch.device("meta"):
            expected = build().state_dict()
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / META}: no such network can be ({first_line(error)})") from None
    check_weights(expected, weights, folder / MODEL)
    model = build()
    model.load_state_dict(weights)
    return model.eval(), meta


def load_weights(model: nn.Module, weights: object, source: object) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        UserError: see `check_weights`.
    """
    model.load_state_dict(check_weights(model.state_dict(), weights, source))


def check_weights(own: Mapping[str, Tensor], weights: object, source: object) -> Mapping[str, Tensor]:
    """The weights, if they are those of a network with these tensors, and finite.

    Raises:
        UserError: names the source and the first key that does not fit.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise UserError(f"{source}: holds no tensors by name where a network's are needed")
    for key in sorted(own.keys() | weights.keys()):
        if key not in weights:
            raise UserError(f"{source}: lacks '{key}' ({len(own.keys() - weights.keys())} tensors missing in all)")
        if key not in own:
            raise UserError(f"{source}: holds {quoted(key)}, which the network has not")
        check_tensor(weights[key], own[key], f"{source}: '{key}'")
    return weights


def check_tensor(found: object, like: Tensor, name: str) -> None:
    """Refuse what is no tensor of this one's shape and type, or is not finite.

    Raises:
        UserError
    """
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.is_meta:
        raise UserError(f"{name} is no tensor with values")
    if found.shape != like.shape:
        raise UserError(f"{name} is {tuple(found.shape)}, the network's {tuple(like.shape)}")
    if found.dtype != like.dtype:
        raise UserError(f"{name} is of {_name(found.dtype)}, the network's of {_name(like.dtype)}")
    if not bool(found.isfinite().all()):
        raise UserError(f"{name} has values that are not finite")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
