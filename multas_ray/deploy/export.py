"""Export of a trained network: weights and description, and an ONNX graph that is checked against PyTorch."""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from multas_ray.checkpoint.folder import MANIFEST, META, MODEL, write_files
from multas_ray.checkpoint.weights import load_network
from multas_ray.config import Task
from multas_ray.errors import RunError, UserError
from multas_ray.model.network import MultiTaskNet, count_parameters
from multas_ray.storage import Location, StoragePath
from multas_ray.tasks.detection.anchors import decode

ONNX = "model.onnx"
OPSET = 18
TOLERANCE = 1e-3
"""Largest absolute difference allowed between the graph's outputs and PyTorch's."""
OUTPUTS: dict[Task, list[str]] = {"det": ["scores", "boxes"], "seg": ["logits"]}
"""Names of a graph's outputs, in order."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Graph(nn.Module):
    """Network as an ONNX graph: everything but non-maximum suppression.

    Inputs:
        images: (B, 3, size, size) uint8 RGB, resized as in evaluation (bilinear, antialiased, not keeping the aspect).

    Outputs, for the tasks that the network has:
        scores: (B, A, C) probability of each detection class, independent of the other classes.
        boxes: (B, A, 4) x1 y1 x2 y2 as fractions of the image's width and height, in [0, 1].
        logits: (B, C', size/s, size/s); brought to the image's size (bilinear), the largest is the pixel's class.
    """

    def __init__(self, network: MultiTaskNet, size: int) -> None:
        """Wrap a network for inputs of a side of `size` pixels."""
        super().__init__()
        self.network = network
        self.anchors: Tensor
        self.register_buffer("anchors", network.anchors(size, size).clone())

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in order."""
        return [name for task in self.network.tasks for name in OUTPUTS[task]]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs for (B, 3, size, size) uint8 RGB."""
        outputs: list[Tensor] = []
        for task, output in self.network(images).items():
            if task == "det":
                outputs += [output.cls.sigmoid(), decode(output.box, self.anchors).clamp(0, 1)]
            else:
                outputs.append(output)
        return tuple(outputs)


def export(checkpoint: Location, out: Location, *, onnx: bool = True) -> dict[str, Any]:
    """Write a folder for `multas_ray.load` and for other programs.

    It has model.safetensors, meta.json, model.onnx and a manifest of checksums, but no teacher, optimiser or adapter.

    Args:
        checkpoint: run folder, whose best checkpoint is taken, checkpoint folder or export.
        out: folder of the export; an earlier export in it is replaced.
        onnx: whether the ONNX graph is made.

    Returns:
        `parameters` (their number), `size` (side of the input in pixels) and, with the ONNX graph, `difference` (the
        largest absolute difference between its outputs and PyTorch's).

    Raises:
        UserError: there is no whole checkpoint, packages for ONNX are missing, or the folder holds something else.
        RunError: the graph's outputs differ by more than TOLERANCE.
    """
    folder = StoragePath(out)
    if not set(folder.names()) <= {MODEL, META, ONNX, MANIFEST}:
        raise UserError(f"{folder}: holds something else than an export; choose another folder")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if onnx and missing:
        raise UserError(f"ONNX needs the package {missing[0]}: pip install -e '.[export]', or say --no-onnx")
    network, meta = load_network(checkpoint)
    network.adapters = None
    meta = meta.model_copy(update={"model": meta.model.model_copy(update={"adapter": None, "pretrained": False})})
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    files: dict[str, Callable[[BinaryIO], object]] = {
        MODEL: lambda stream: stream.write(safetensors.torch.save(weights)),
        META: lambda stream: stream.write(meta.model_dump_json(indent=1).encode()),
    }
    facts: dict[str, Any] = {"parameters": count_parameters(network), "size": meta.size}
    if onnx:
        graph = Graph(network, meta.size).eval()
        model = to_onnx(graph, meta.size)
        facts["difference"] = difference(graph, model, meta.size)
        if not facts["difference"] <= TOLERANCE:
            raise RunError(f"ONNX: outputs differ from PyTorch's by {facts['difference']:.2g}, allowed is {TOLERANCE}")
        files[ONNX] = lambda stream: stream.write(model)
    write_files(folder, files)
    return facts


def to_onnx(graph: Graph, size: int) -> bytes:
    """Convert the graph to an ONNX model for batches of any size; the axis of the batch is named `batch`.

    Its metadata are JSON: size (pixels), det_classes and seg_classes (lists of names), and stride (input pixels along
    a pixel of the logits; null without the task seg).

    Args:
        graph: graph in evaluation mode.
        size: side of the input in pixels.

    Returns:
        Serialised model.
    """
    import onnx

    network = graph.network
    stream = io.BytesIO()
    # Two images: the exporter takes a batch of one for a constant.
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with _quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.onnx.export(
            program,
            f=stream,  # type: ignore[arg-type]
            input_names=["images"],
            output_names=graph.outputs,
            opset_version=OPSET,
            external_data=False,
            # Runtimes optimise the graph for their own device.
            optimize=False,
            verbose=False,
        )
    model = onnx.load_from_string(stream.getvalue())
    # The exporter numbers its symbols, whatever name they are given.
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for axis in value.type.tensor_type.shape.dim[:1]:
            if axis.dim_param:
                axis.dim_param = "batch"
    metadata = {
        "size": size,
        "det_classes": list(network.det_classes),
        "seg_classes": list(network.seg_classes),
        "stride": network.head("seg").stride if "seg" in network.tasks else None,
    }
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    return bytes(model.SerializeToString())


def difference(graph: Graph, model: bytes, size: int) -> float:
    """Compare ONNX Runtime on the CPU with PyTorch on random images, in batches of one and of three.

    Args:
        graph: graph in evaluation mode.
        model: serialised ONNX model of the graph.
        size: side of the input in pixels.

    Returns:
        Largest absolute difference between the outputs; infinite if one is not finite.

    Raises:
        RunError: an output has another shape.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    worst = 0.0
    for count in (1, 3):
        images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)
        with torch.inference_mode():
            expected = graph(images)
        outputs = session.run(graph.outputs, {"images": images.numpy()})
        for output, reference in zip(outputs, expected, strict=True):
            if output.shape != tuple(reference.shape):
                raise RunError(f"ONNX: an output is {output.shape}, PyTorch's {tuple(reference.shape)}")
            largest = float(np.abs(output - reference.numpy()).max())
            worst = max(worst, largest if np.isfinite(largest) else np.inf)
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
