"""The golden numbers as tensors."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load(file: Path) -> dict[str, Tensor]:
    with np.load(file) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def detection_targets(file: Path) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The numbers, and their ground truth as padded boxes (B, M, 4) and labels (B, M), from 0, -1 for padding."""
    golden = load(file)
    rows = [(golden[f"gt_boxes_{i}"], golden[f"gt_labels_{i}"] - 1) for i in range(len(golden["pred_loc"]))]
    boxes = torch.nn.utils.rnn.pad_sequence([boxes for boxes, _ in rows], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence([labels for _, labels in rows], batch_first=True, padding_value=-1)
    return golden, boxes, labels


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
