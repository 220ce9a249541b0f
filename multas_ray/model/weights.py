"""Networks into checkpoint folders, and out of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multas_ray.errors import UserError
from multas_ray.model.checkpoint import META, MODEL, STATE, Meta, find_checkpoint, read_meta, verify, write_manifest
from multas_ray.model.network import MultiTaskNet


def write_checkpoint(folder: Path, weights: Mapping[str, Tensor], state: Mapping[str, Any], meta: Meta) -> None:
    """Write a checkpoint folder, its manifest last."""
    save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, folder / MODEL)
    torch.save(dict(state), folder / STATE)
    (folder / META).write_text(meta.model_dump_json(indent=1))
    write_manifest(folder)


def load_network(path: str) -> tuple[MultiTaskNet, Meta]:
    """The network of a checkpoint (see `find_checkpoint`), on the CPU, in evaluation mode.

    Raises:
        UserError: there is no checkpoint, its files are broken, or its tensors do not fit the network it describes.
    """
    folder = find_checkpoint(path)
    meta = read_meta(folder)
    problem = verify(folder)
    if problem is not None:
        raise UserError(f"{folder}: {problem}")
    try:
        weights = load_file(folder / MODEL)
    except (OSError, SafetensorError) as error:
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
