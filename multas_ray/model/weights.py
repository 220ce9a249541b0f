"""Networks into checkpoint folders, and out of them."""

import io
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from multas_ray.errors import UserError
from multas_ray.model.checkpoint import META, MODEL, STATE, Meta, find_checkpoint, read_files, read_meta, write_files
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
        UserError: the checkpoint is broken.
    """
    (data,) = read_files(folder, STATE)
    return torch.load(io.BytesIO(data), map_location=device, weights_only=True)


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
    except SafetensorError as error:
        raise UserError(f"{folder / MODEL}: not readable ({error})") from None
    model = MultiTaskNet(meta.model.model_copy(update={"pretrained": False}), meta.det_classes, meta.seg_classes)
    load_weights(model, weights, str(folder / MODEL))
    return model.eval(), meta


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        UserError: names the source and the first key that does not fit.
    """
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        if key not in weights:
            raise UserError(f"{source}: lacks '{key}' ({len(own.keys() - weights.keys())} tensors missing in all)")
        if key not in own:
            raise UserError(f"{source}: holds '{key}', which the network has not")
        if own[key].shape != weights[key].shape:
            raise UserError(f"{source}: '{key}' is {tuple(weights[key].shape)}, the network's {tuple(own[key].shape)}")
    model.load_state_dict(weights)
