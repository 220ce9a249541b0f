"""What is fuzzed: each kind makes a good input, makes it wrong, gives it to an entry point, and looks at what came."""

from tests.fuzz import pictures, sources, stored, written
from tests.fuzz.harness import Kind

KINDS: dict[str, Kind] = {
    "config": written.config,
    "override": written.override,
    "study": written.study,
    "search": written.search,
    "dataset": written.dataset_json,
    "flags": written.flags,
    "image": pictures.image,
    "pillow": pictures.pillow,
    "mask": pictures.mask,
    "coco": sources.coco,
    "roboflow": sources.roboflow,
    "panoptic": sources.panoptic,
    "stuff": sources.stuff,
    "voc": sources.voc,
    "yolo": sources.yolo,
    "masks": sources.masks,
    "bdd100k": sources.bdd100k,
    "huggingface": sources.huggingface,
    "masks_beside": sources.masks_beside,
    "list": sources.images_list,
    "predict": sources.predict_rows,
    "shard": stored.shard,
    "store": stored.store,
    "originals": stored.originals,
    "checkpoint": stored.checkpoint,
    "run": stored.run_folder,
    "results": stored.results,
}
