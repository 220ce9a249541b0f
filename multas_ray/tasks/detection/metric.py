"""Detection metrics: images are added one by one and scored together by the rules of a benchmark."""

from collections.abc import Mapping, Sequence

import numpy as np

from multas_ray.config import Protocol
from multas_ray.data.batch import AnnotatedImage
from multas_ray.evaluate.arrays import to_numpy
from multas_ray.tasks.detection.coco_ap import coco_ap
from multas_ray.tasks.detection.postprocess import Detections
from multas_ray.tasks.detection.rows import PixelBoxes
from multas_ray.tasks.detection.scored import ScoredImage
from multas_ray.tasks.detection.voc_ap import judge_image, voc_ap

_EMPTY = ScoredImage(
    det_boxes=np.empty((0, 4)),
    det_scores=np.empty(0),
    det_labels=np.empty(0, dtype=np.int64),
    gt_boxes=np.empty((0, 4)),
    gt_labels=np.empty(0, dtype=np.int64),
    gt_difficult=np.empty(0, dtype=np.bool_),
)
_DET = ("det_boxes", "det_scores", "det_labels")
_GT = ("gt_boxes", "gt_labels", "gt_difficult")


class DetectionMetric:
    """Detections and ground truth of images; the result depends on neither the order of images nor their sharding."""

    def __init__(self, classes: Sequence[str], protocol: Protocol = "coco") -> None:
        """Create an empty metric.

        Args:
            classes: names of the object classes; index = label.
            protocol: coco, voc2007 (11-point) or voc2012 (area).
        """
        self.classes = list(classes)
        self.protocol = protocol
        self._images: dict[str, ScoredImage] = {}
        self._looked_for: dict[str, np.ndarray] = {}

    def add(self, image: AnnotatedImage, detections: Detections) -> None:
        """Add an image. An image that is added again replaces itself, so that none counts twice.

        Args:
            image: image with its `PixelBoxes`. Detecting a difficult object is not rewarded, missing it not penalised;
                nothing of an unlabelled class counts.
            detections: detections in the image.
        """
        truth: PixelBoxes = image.truth
        height, width = image.size
        scale = np.array([width, height, width, height], dtype=np.float64)
        looked_for = np.ones(len(self.classes), bool) if image.unlabelled is None else ~image.unlabelled
        found, true = (looked_for[to_numpy(labels)] for labels in (detections.labels, truth.labels))
        self._looked_for[image.image_id] = looked_for
        self._images[image.image_id] = ScoredImage(
            det_boxes=to_numpy(detections.boxes)[found].astype(np.float64).reshape(-1, 4) * scale,
            det_scores=to_numpy(detections.scores)[found].astype(np.float64),
            det_labels=to_numpy(detections.labels)[found].astype(np.int64),
            gt_boxes=truth.boxes[true].astype(np.float64).reshape(-1, 4),
            gt_labels=truth.labels[true].astype(np.int64),
            gt_difficult=truth.difficult[true].astype(np.bool_),
        )

    def images(self) -> dict[str, int]:
        """Return the number of images in which each class was looked for."""
        counts = sum(self._looked_for.values(), np.zeros(len(self.classes), np.int64))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def state(self) -> dict[str, np.ndarray]:
        """Return all images for `merge`: their arrays concatenated, and the counts by which to split them."""
        images = list(self._images.values())
        state = {name: np.concatenate([getattr(image, name) for image in [_EMPTY, *images]]) for name in _DET + _GT}
        state["image_ids"] = np.array(list(self._images), dtype=np.str_)
        state["looked_for"] = np.array(list(self._looked_for.values()), bool).reshape(len(images), len(self.classes))
        state["det_counts"] = np.array([len(image.det_scores) for image in images], dtype=np.int64)
        state["gt_counts"] = np.array([len(image.gt_labels) for image in images], dtype=np.int64)
        return state

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the images of another metric, from its `state`."""
        parts = {}
        for names, counts in ((_DET, state["det_counts"]), (_GT, state["gt_counts"])):
            bounds = np.cumsum(counts)[:-1]
            parts.update({name: np.split(state[name], bounds) for name in names})
        for index, image_id in enumerate(state["image_ids"]):
            self._looked_for[str(image_id)] = state["looked_for"][index]
            self._images[str(image_id)] = ScoredImage(**{name: arrays[index] for name, arrays in parts.items()})

    def statements(self, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Judge the detections in all images, without those of difficult objects.

        Args:
            threshold: IoU with an object of its class above which a detection is right, if no better-scored one is.

        Returns:
            Scores (m,), labels (m,) and whether each is right (m,).
        """
        judged = [(image, *judge_image(image, threshold)) for image in self._images.values()]
        return (
            np.concatenate([np.zeros(0), *(image.det_scores[counted] for image, _, counted in judged)]),
            np.concatenate([np.zeros(0, int), *(image.det_labels[counted] for image, _, counted in judged)]),
            np.concatenate([np.zeros(0, bool), *(right[counted] for _, right, counted in judged)]),
        )

    def compute(self) -> dict[str, float]:
        """Compute metrics in percent: det/AP (mean over IoU .50:.95), det/AP50, det/AP75 and det/AP/<class>.

        A class without an object that counts has no AP: its key is left out, and the means are over the others.
        Without any such object there is no metric: an empty dict.
        """
        images = [self._images[image_id] for image_id in sorted(self._images)]
        if self.protocol == "coco":
            by_class = coco_ap(images, len(self.classes))
        else:
            by_class = voc_ap(images, len(self.classes), eleven_points=self.protocol == "voc2007")
        known = np.flatnonzero(~np.isnan(by_class[0]))
        if not known.size:
            return {}
        by_class = 100 * by_class[:, known]
        by_iou = by_class.mean(axis=1)
        return {
            "det/AP": float(by_iou.mean()),
            "det/AP50": float(by_iou[0].mean()),
            "det/AP75": float(by_iou[5].mean()),
            **{
                f"det/AP/{self.classes[k]}": float(value) for k, value in zip(known, by_class.mean(axis=0), strict=True)
            },
        }
