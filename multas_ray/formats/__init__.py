"""Data formats: a module each, by the name that it has as a subcommand of `prepare`.

A format is added by a module with `Options` and `read` (see `multas_ray.formats.source`), and by a line below.
"""

from types import ModuleType

from multas_ray.formats import bdd100k, coco, holdout, huggingface, masks, scenes, voc, yolo

FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "coco": coco,
    "yolo": yolo,
    "masks": masks,
    "bdd100k": bdd100k,
    "huggingface": huggingface,
    "scenes": scenes,
    "holdout": holdout,
}
