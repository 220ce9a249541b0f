"""The classes of public data sets of masks, and what their files are called."""

from collections.abc import Mapping
from dataclasses import dataclass

from multas_ray.formats.masks_values import MaskClasses
from multas_ray.tasks.segmentation.rows import IGNORE

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""The classes that Cityscapes scores, in the order of their trainIds 0..18."""
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Their labelIds."""
ADE20K = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven",
    "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
    "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier",
    "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
"""The classes of ADE20K's scene parsing challenge, in the order of their values 1..150; 0 is everything else."""
CAMVID = {
    "Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bicyclist": (0, 128, 192), "Bridge": (0, 128, 64),
    "Building": (128, 0, 0), "Car": (64, 0, 128), "CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128), "Fence": (64, 64, 128), "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64), "Misc_Text": (128, 128, 64), "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64), "ParkingBlock": (64, 192, 128), "Pedestrian": (64, 64, 0), "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192), "SignSymbol": (192, 128, 128), "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192), "TrafficCone": (0, 0, 64), "TrafficLight": (0, 64, 64), "Train": (192, 64, 128),
    "Tree": (128, 128, 0), "Truck_Bus": (192, 128, 192), "Tunnel": (64, 0, 64), "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}  # fmt: skip
"""The colours of CamVid's classes; black is void."""


@dataclass(frozen=True)
class Preset:
    """A public data set of masks."""

    classes: MaskClasses
    image_suffix: str = ""
    """End of the names of its images, before `.png` or the like."""
    mask_suffix: str = ""
    """End of the names of their masks in its place."""


def _ids(name: str, names: tuple[str, ...], values: Mapping[int, int]) -> MaskClasses:
    return MaskClasses(names, values, {}, f"--preset {name}")


PRESETS = {
    "cityscapes-labelids": Preset(
        _ids(
            "cityscapes-labelids",
            CITYSCAPES,
            # 0..33, of which the others are not scored.
            dict.fromkeys(range(34), IGNORE) | {label_id: value for value, label_id in enumerate(LABEL_IDS)},
        ),
        "_leftImg8bit",
        "_gtFine_labelIds",
    ),
    "cityscapes-trainids": Preset(
        _ids("cityscapes-trainids", CITYSCAPES, {value: value for value in range(len(CITYSCAPES))}),
        "_leftImg8bit",
        "_gtFine_labelTrainIds",
    ),
    "ade20k": Preset(
        _ids("ade20k", ADE20K, {0: IGNORE} | {value + 1: value for value in range(len(ADE20K))}),
    ),
    "camvid": Preset(
        MaskClasses(
            tuple(CAMVID),
            {},
            {(0, 0, 0): IGNORE} | {colour: value for value, colour in enumerate(CAMVID.values())},
            "--preset camvid",
        ),
        mask_suffix="_L",
    ),
}
"""By the names that `--preset` has for them."""
