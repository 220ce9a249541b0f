"""Generated scenes of shapes.

Textured shapes overlap on textured backgrounds, with exact boxes and masks.

A class is a shape with its texture: the outline tells an object, the texture tells its pixels, so that both tasks are
learnt in minutes. Colour, size and rotation are drawn alike for all classes.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from multas_ray.errors import UserError
from multas_ray.formats.partial_annotation import PartialOptions, partially_annotated
from multas_ray.formats.source import Source, Split, with_background

if TYPE_CHECKING:
    from multas_ray.data.row import Row

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
MAX_OBJECTS = 5
SMALLEST, LARGEST = 28 / 128, 72 / 128
"""Diameter of an object as a share of the image's side."""
TILT = 0.5
"""Largest rotation in radians either way: a square never looks like a diamond."""
MIN_VISIBLE_SHARE = 0.25
MIN_VISIBLE_PIXELS = 30
"""An object of which less is seen is not drawn at all, so that boxes and mask always agree."""
CONTRAST = 110.0
"""Smallest distance of an object's colour from the background's, in RGB units of 0..255."""


class Options(PartialOptions):
    """How many scenes, and of which size."""

    train: int = Field(1000, ge=0)
    """training scenes"""
    val: int = Field(200, ge=0)
    """validation scenes, annotated with both"""
    size: int = Field(128, ge=16, le=4096)
    """side in pixels, 16 to 4096"""


def read(options: Options) -> Source:
    """List scenes. The two splits are drawn from one sequence, so they share none; `partial` is of the training split.

    Raises:
        UserError: neither split has a scene.
    """
    draw = partial(_read_scene, options.seed, options.size)
    numbers = {"train": range(options.train), "val": range(options.train, options.train + options.val)}
    splits: dict[str, Split[Any]] = {name: Split(items, draw) for name, items in numbers.items() if items}
    if not splits:
        raise UserError("scenes: nothing to make; give --train or --val a number above 0")
    if options.partial and "train" in splits:
        ids = [scene_id(number) for number in numbers["train"]]
        splits["train"] = partially_annotated(splits["train"], ids, options.partial, options.seed)
    about = f"scenes: seed {options.seed}, size {options.size}"
    return Source("scenes", with_background(CLASSES), splits, about)


def _read_scene(seed: int, size: int, number: int) -> "Row":
    """A scene as a row with both tasks annotated."""
    from PIL import Image

    from multas_ray.data.pillow import encode
    from multas_ray.data.row import Row

    image, boxes, labels, mask = scene(seed, number, size)
    data = encode(Image.fromarray(image), "JPEG")
    return Row(scene_id(number), data, size, size, True, True, boxes, labels, np.zeros(len(labels), bool), mask)


class Scene(NamedTuple):
    """One scene."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    boxes: np.ndarray
    """(N, 4) float32 x1 y1 x2 y2: the tight box of the object's visible pixels."""
    labels: np.ndarray
    """(N,) int32, index into CLASSES."""
    mask: np.ndarray
    """(H, W) uint8: 0 background, 1 + label of the object in front."""


class _Object(NamedTuple):
    label: int
    centre: np.ndarray
    """(2,) x y in pixels."""
    radius: float
    angle: float


def scene(seed: int, index: int, size: int = 128) -> Scene:
    """A scene of size x size pixels with up to MAX_OBJECTS objects: a function of its arguments alone."""
    rng = np.random.default_rng((seed, index))
    owner, objects = _arrange(rng, size)
    base = rng.uniform(30, 225, 3)
    image = _background(rng, base, size)
    for number, thing in enumerate(objects):
        inside = owner == number
        image[inside] = _paint(rng, thing, _colour_unlike(rng, base), size)[inside]
    image += rng.normal(0, 6, image.shape)
    labels = np.array([thing.label for thing in objects], np.int32)
    mask = np.append(labels + 1, 0).astype(np.uint8)[owner]  # owner -1, the background, takes the last entry
    boxes = np.array([_tight_box(owner == number) for number in range(len(objects))], np.float32).reshape(-1, 4)
    return Scene(image.clip(0, 255).astype(np.uint8), boxes, labels, mask)


def scene_id(index: int) -> str:
    """The image id of a scene."""
    return f"scene_{index:07d}"


def _arrange(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[_Object]]:
    """Which object is in front at each pixel, (H, W) int with -1 for the background, and the objects, back to front."""
    objects = []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        label = int(rng.integers(len(CLASSES)))
        diameter = size * SMALLEST * (LARGEST / SMALLEST) ** rng.random()
        centre = rng.uniform(0.12, 0.88, 2) * size
        objects.append(_Object(label, centre, diameter / 2, rng.uniform(-TILT, TILT)))
    shapes = [_silhouette(thing, size) for thing in objects]
    areas = np.array([shape.sum() for shape in shapes])
    owner = _stack(shapes, size)
    visible = np.bincount(owner.ravel() + 1, minlength=len(shapes) + 1)[1:]
    # Taking hidden objects away only uncovers others, so one pass is enough.
    shown = np.flatnonzero((visible >= MIN_VISIBLE_PIXELS) & (visible >= MIN_VISIBLE_SHARE * areas))
    return _stack([shapes[i] for i in shown], size), [objects[i] for i in shown]


def _stack(shapes: list[np.ndarray], size: int) -> np.ndarray:
    """Lay silhouettes (H, W) over each other, later ones in front."""
    owner = np.full((size, size), -1)
    for number, shape in enumerate(shapes):
        owner[shape] = number
    return owner


def _silhouette(thing: _Object, size: int) -> np.ndarray:
    """(H, W) bool: pixels whose middle lies in the shape."""
    u, v = _local(thing, size)
    return SHAPES[CLASSES[thing.label]](u / thing.radius, v / thing.radius)


def _local(thing: _Object, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The middles of all pixels, (H, W) each, along the axes of an object and from its centre, in pixels."""
    middle = np.arange(size, dtype=np.float32) + 0.5
    x, y = (middle - thing.centre[0])[None, :], (middle - thing.centre[1])[:, None]
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return cos * x + sin * y, cos * y - sin * x


def _polar(u: np.ndarray, v: np.ndarray, corners: int) -> tuple[np.ndarray, np.ndarray]:
    """A point's coordinates along and across the ray to the nearest of evenly spread corners."""
    sector = 2 * np.pi / corners
    angle = np.abs((np.arctan2(v, u) + sector / 2) % sector - sector / 2)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    along, across = _polar(u, v, 5)
    # The edge leads from the corner (1, 0) to the notch at radius 0.45, half a sector further on.
    notch_x, notch_y = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    return (along - 1) * notch_y + across * (1 - notch_x) <= 0


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: u**2 + v**2 <= 0.9**2,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.75,
    "triangle": lambda u, v: _polar(v, u, 3)[0] <= 0.5,
    "star": _star,
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= 0.3) & (np.maximum(np.abs(u), np.abs(v)) <= 0.95),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) <= 0.22,
}
"""Whether points of the plane, scaled to a radius of 1, lie in the shape."""


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: np.zeros_like(u),
    "square": lambda u, v: np.sign(np.sin(u / 2) * np.sin(v / 2)),
    "triangle": lambda u, v: np.sin(v),
    "star": lambda u, v: np.sin(np.hypot(u, v)),
    "cross": lambda u, v: np.sin(u),
    "ring": lambda u, v: np.sign(np.cos(u) + np.cos(v) - 0.8),
}
"""The texture of a shape in -1..1: plain, checked, striped across, ringed, striped along, dotted. A wave is 2 pi long,
in pixels of a scene of 128."""


def _background(rng: np.random.Generator, base: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) float32: a gradient with soft blobs or stripes, around the colour `base`."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :, None], axis[:, None, None]
    image = base.astype(np.float32) + x * _shade(rng, 25) + y * _shade(rng, 25)
    if rng.random() < 0.5:
        for _ in range(6):
            cx, cy = rng.uniform(-1, 1, 2)
            width = rng.uniform(0.02, 0.12)
            # A Gaussian is separable: an outer product of two rows costs less than an exponential a pixel.
            image += np.exp(-((x - cx) ** 2) / width) * np.exp(-((y - cy) ** 2) / width) * _shade(rng, 35)
    else:
        image += _stripes(rng, x, y) * _shade(rng, 25)
    return image


def _paint(rng: np.random.Generator, thing: _Object, colour: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) float32: the texture of an object around a colour."""
    u, v = _local(thing, size)
    wave = TEXTURES[CLASSES[thing.label]](u * 128 / size, v * 128 / size)
    return (colour + wave[..., None] * rng.uniform(25, 50, 3)).astype(np.float32)


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W, 1) in -1..1: waves of a random direction and length."""
    direction, frequency = rng.uniform(0, np.pi), rng.uniform(12, 40)
    return np.sin(frequency * (np.cos(direction) * x + np.sin(direction) * y) + rng.uniform(0, 2 * np.pi))


def _shade(rng: np.random.Generator, strength: float) -> np.ndarray:
    return rng.uniform(-strength, strength, 3).astype(np.float32)


def _colour_unlike(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """A colour (3,) at least CONTRAST away from `base`."""
    while True:
        colour = rng.uniform(20, 235, 3)
        if np.linalg.norm(colour - base) >= CONTRAST:
            return colour


def _tight_box(inside: np.ndarray) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 around the true pixels of (H, W); the last pixel lies within."""
    columns, lines = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    return columns[0], lines[0], columns[-1] + 1, lines[-1] + 1
