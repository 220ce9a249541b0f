"""Segmentation metrics from a confusion matrix of pixels at the images' own resolution."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multas_ray.evaluate.arrays import to_numpy
from multas_ray.tasks.segmentation.rows import BACKGROUND, IGNORE

MAX_VALUES = 16_000_000
"""Largest number of values interpolated at a time (64 MB): 81 classes at the 12 million pixels of a photograph would be
4 GB."""


def label_map(logits: Tensor, height: int, width: int) -> Tensor:
    """Interpolate logits (C, h, w) and take the class of the largest at each pixel: (height, width) uint8."""
    best = torch.full((height, width), -torch.inf, device=logits.device)
    labels = torch.zeros((height, width), dtype=torch.uint8, device=logits.device)
    step = max(1, MAX_VALUES // (height * width))
    for first in range(0, len(logits), step):
        some = logits[None, first : first + step].float()
        values, places = F.interpolate(some, (height, width), mode="bilinear", align_corners=False)[0].max(dim=0)
        better = values > best
        labels[better] = (places[better] + first).to(torch.uint8)
        best = torch.maximum(best, values)
    return labels


class SegmentationMetric:
    """Confusion matrix of pixels over images; shards that were counted apart add up exactly."""

    def __init__(self, classes: Sequence[str]) -> None:
        """Create an empty metric.

        Args:
            classes: names of the C pixel classes, `background` first if there is one; index = mask value.
        """
        self.classes = list(classes)
        self._confusion = np.zeros((len(self.classes) + 1, len(self.classes)), dtype=np.int64)
        self._images = np.zeros(len(self.classes), dtype=np.int64)

    def add(self, logits: Tensor, mask: Tensor | np.ndarray, unlabelled: np.ndarray | None = None) -> None:
        """Add an image's prediction.

        Args:
            logits: (C, h, w) of any size; resized to the mask's size before the class is chosen, so that the metric
                does not depend on the network's resolution.
            mask: (H, W) uint8 class ids of the original image, 255 = ignore.
            unlabelled: (C,) bool: classes that nobody looked for in the image; None for none.
        """
        height, width = mask.shape
        self.add_labels(label_map(logits, height, width), mask, unlabelled)

    def add_labels(
        self, pred: Tensor | np.ndarray, mask: Tensor | np.ndarray, unlabelled: np.ndarray | None = None
    ) -> None:
        """Add an image's label map.

        Where classes are unlabelled, a pixel of background may be of any of them, and one of theirs of the background:
        it counts against the other classes, which it certainly is not of, and for nothing else.

        Args:
            pred: (H, W) class ids, 0..C-1 wherever the mask is not 255.
            mask: (H, W) uint8 class ids, 255 = ignore.
            unlabelled: (C,) bool: classes that nobody looked for in the image; None for none.
        """
        true, predicted = to_numpy(mask), to_numpy(pred)
        counted = true != IGNORE
        size = len(self.classes)
        pairs = true[counted].astype(np.int64) * size + predicted[counted]
        pixels = np.bincount(pairs, minlength=size * size).reshape(size, size)
        if unlabelled is None or not unlabelled.any():
            self._confusion[:-1] += pixels
            self._images += 1
            return
        self._images += ~unlabelled
        if self.classes[0] == BACKGROUND:
            possible = unlabelled.copy()
            possible[0] = True
            self._confusion[-1] += np.where(possible, 0, pixels[possible].sum(axis=0))
            pixels[possible] = 0
        self._confusion[:-1] += pixels

    def images(self) -> dict[str, int]:
        """Return the number of images in which each class was looked for."""
        return dict(zip(self.classes, self._images.tolist(), strict=True))

    def state(self) -> dict[str, np.ndarray]:
        """Return the counts for `merge`.

        confusion: (C + 1, C) int64 pixels, by true and predicted class; the last row are pixels that are certainly not
        of the predicted class, and not known otherwise. images: (C,) int64.
        """
        return {"confusion": self._confusion.copy(), "images": self._images.copy()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the counts of another metric, from its `state`."""
        self._confusion += state["confusion"]
        self._images += state["images"]

    def compute(self) -> dict[str, float]:
        """Compute metrics in percent: seg/mIoU, seg/fwIoU, seg/mACC, seg/pACC and seg/IoU/<class>.

        A class without a true pixel, or that was looked for in no image, has no IoU: its key is left out, and the means
        are over the others (its false pixels still count against the classes they cover). Without any pixel there is no
        metric: an empty dict.
        """
        known = self._confusion[:-1]
        truth = known.sum(1)
        present = (truth > 0) & (self._images > 0)
        if not present.any():
            return {}
        hits = known.diagonal()
        union = truth + self._confusion.sum(0) - hits
        iou = 100 * hits[present] / union[present]
        names = [name for name, there in zip(self.classes, present, strict=True) if there]
        return {
            "seg/mIoU": float(iou.mean()),
            "seg/fwIoU": float(np.average(iou, weights=truth[present])),
            "seg/mACC": float((100 * hits[present] / truth[present]).mean()),
            "seg/pACC": float(100 * hits.sum() / truth.sum()),
            **{f"seg/IoU/{name}": float(value) for name, value in zip(names, iou, strict=True)},
        }
