"""Columns of Hugging Face's data sets: which of them hold images, objects and masks, told by their types."""

from dataclasses import dataclass

import pyarrow as pa

from multas_ray.errors import UserError, quoted
from multas_ray.parquet import LISTS, holds

OBJECTS = "objects"
"""Name of the column of objects, where none is given."""
MASKS = ("label", "annotation", "mask")
"""Names that the column of masks may have, where none is given. `label` may also be the class of a whole image."""
CATEGORIES = ("category", "categories", "category_id", "label", "labels")
"""Names that the field of the objects' categories may have."""
IMAGE = pa.struct({"bytes": pa.binary()})
"""Type of an image: the bytes of its file. Mostly there is also a `path`."""


@dataclass(frozen=True)
class Columns:
    """Columns that are read."""

    image: str
    objects: str | None
    masks: str | None
    schema: pa.Schema
    """These columns and, where they are there, `image_id`, `height` and `width`, in the types that are read."""

    @property
    def category(self) -> str:
        """Field of the objects that holds their categories; there must be objects."""
        return next(name for name in self.fields(self.objects or "") if name in CATEGORIES)

    def fields(self, column: str) -> list[str]:
        """The fields that are read of a column of structs: others may be of any type, and are not looked at."""
        kind = self.schema.field(column).type
        return [part.name for part in (kind if pa.types.is_struct(kind) else kind.value_type)]

    def told(self, boxes: str) -> str:
        """A line for the user on what is read from where."""
        parts = [f"images from the column {quoted(self.image)}"]
        if self.objects:
            parts.append(f"boxes from {quoted(self.objects)}, as {boxes} (--boxes), classes by {quoted(self.category)}")
        if self.masks:
            parts.append(f"masks from {quoted(self.masks)}")
        return "; ".join(parts)


def find_columns(schema: pa.Schema, file: str, image: str, objects: str | None, masks: str | None) -> Columns:
    """Find the columns that are read.

    Where neither objects nor masks are named, both are looked for; else only what is named is read.

    Args:
        schema: of a Parquet file.
        file: its name in messages.
        image: column of the images.
        objects: column of the objects.
        masks: column of the masks.

    Raises:
        UserError: a column is missing, is of an unusable type, or cannot be told from another.
    """
    if objects is None and masks is None:
        objects = OBJECTS if OBJECTS in schema.names else None
        candidates = [name for name in MASKS if name in schema.names and name != image and _image(schema, name)]
        if len(candidates) > 1:
            raise UserError(f"{file}: {', '.join(map(quoted, candidates))} may hold masks: say which with --masks")
        masks = candidates[0] if candidates else None
        if objects is None and masks is None:
            raise UserError(
                f"{file}: neither a column {quoted(OBJECTS)}, nor one of images that is called "
                f"{', '.join(MASKS)}: say with --objects or --masks where the annotation is; {_present(schema)}"
            )
    fields: dict[str, pa.DataType | None] = {image: _image(schema, image)}
    if objects:
        fields[objects] = _objects(schema, objects)
    if masks:
        fields[masks] = _image(schema, masks)
    for flag, name in (("image", image), ("objects", objects), ("masks", masks)):
        if name and fields[name] is None:
            raise UserError(f"{file}: --{flag} {quoted(name)}: {NEEDED[flag]}; {_present(schema)}")
    fields |= {name: kind for name in ("image_id", "height", "width") if (kind := _number_or_name(schema, name))}
    return Columns(image, objects, masks, pa.schema(list(fields.items())))


NEEDED = {
    "image": "a column of images is needed, each a struct with its bytes",
    "objects": "a column of objects is needed, whose bbox are four numbers each, and whose category (or "
    f"{', '.join(CATEGORIES[1:])}) are whole numbers",
    "masks": "a column of masks is needed, each an image: a struct with its bytes",
}
"""What a column must be, by the flag that names it."""


def _type(schema: pa.Schema, name: str) -> pa.DataType:
    """Type of a column; null where there is none, or several."""
    return schema.field(name).type if len(schema.get_all_field_indices(name)) == 1 else pa.null()


def _image(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type in which a column of images is read; None where it is none."""
    stored = _type(schema, name)
    with_path = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return next((kind for kind in (with_path, IMAGE) if holds(stored, kind)), None)


def _objects(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type in which a column of objects is read, a struct of lists or a list of structs; None where it is none."""
    stored = _type(schema, name)
    of_structs = any(is_list(stored) for is_list in LISTS)
    item = stored.value_type if of_structs else stored
    if not pa.types.is_struct(item):
        return None
    category = next((part for part in CATEGORIES if item.get_field_index(part) >= 0), "")
    for number in (pa.float64(), pa.int64()):
        for crowd in ({"iscrowd": pa.int64()}, {"iscrowd": pa.bool_()}, {}):
            kinds = {"bbox": pa.list_(number), category: pa.int64(), **crowd}
            wanted = pa.struct(kinds if of_structs else {part: pa.list_(kind) for part, kind in kinds.items()})
            if holds(item, wanted):
                return pa.list_(wanted) if of_structs else wanted
    return None


def _number_or_name(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type in which a column of whole numbers, or of names, is read; None where it is none."""
    kinds = (pa.int64(), pa.string()) if name == "image_id" else (pa.int64(),)
    return next((kind for kind in kinds if holds(_type(schema, name), kind)), None)


def _present(schema: pa.Schema) -> str:
    return f"there are {', '.join(quoted(name) for name in schema.names)}"
