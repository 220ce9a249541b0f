"""Parquet files from any source, read as data: the columns of a contract, in plain types, and nothing else."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from multas_ray.errors import UserError, first_line, quoted
from multas_ray.storage import StoragePath

Result = TypeVar("Result")
VALUES_A_BYTE = 16
"""Largest number of values of list columns per byte of a file. Images lie beside them: a file of fewer bytes has a
false footer, and memory would be taken for what it claims."""

BYTES_A_BYTE = 1000
"""Largest number of bytes that a byte of a file unpacks to: it consists mostly of images, which do not shrink
further."""

types = pa.types
SAME: tuple[tuple[Callable[[pa.DataType], bool], tuple[Callable[[pa.DataType], bool], ...]], ...] = (
    (types.is_string, (types.is_string, types.is_large_string, types.is_string_view)),
    (types.is_binary, (types.is_binary, types.is_large_binary, types.is_binary_view)),
    (types.is_boolean, (types.is_boolean,)),
    (types.is_integer, (types.is_integer,)),
    (types.is_floating, (types.is_floating,)),
)
"""Predicates of a plain type, and of the types that other programs write for the same values."""
LISTS = (types.is_list, types.is_large_list, types.is_fixed_size_list)


def read_parquet(
    file: StoragePath,
    columns: pa.Schema,
    read: Callable[[pq.ParquetFile], Result],
    *,
    optional: Collection[str] = (),
    groups: Sequence[int] | None = None,
) -> Result:
    """Open a Parquet file, check that it has these columns, and read it.

    The types are checked before any value: an Arrow extension type may stand for pickled objects, which run code where
    a value is looked at in a process that has imported Ray Data. Bits that have changed since a file was written with
    checksums are found.

    Args:
        file: the Parquet file.
        columns: columns that it must have, in these types or others that hold the same values. Other columns of the
            file are ignored.
        read: takes values out of the open file.
        optional: names of columns that may be missing.
        groups: numbers of the row groups that are read, and that must exist, () for the footer alone; default: all.

    Returns:
        The result of `read`.

    Raises:
        UserError: the file is broken, or lacks columns.
        OSError: there is no such file, or the storage fails.
    """

    def checked(source: pa.NativeFile) -> Result:
        try:
            with pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True) as parquet:
                check_types(parquet.schema_arrow, file, columns, optional)
                _check_extent(parquet, source.size(), file, columns, groups)
                return read(parquet)
        # Broken files bring all of Arrow's errors about.
        except (pa.ArrowException, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
            raise _unreadable(file, error) from None

    try:
        with file.open() as source:
            return checked(source)
    except FileNotFoundError:
        raise
    except OSError:
        # The storage, or the file? What cannot be read where all its bytes are there is broken.
        data = file.read_bytes()
    try:
        return checked(pa.BufferReader(data))
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: StoragePath, error: Exception) -> UserError:
    return UserError(f"{file}: not a readable Parquet file ({first_line(error)})")


def check_types(schema: pa.Schema, file: StoragePath, columns: pa.Schema, optional: Collection[str] = ()) -> None:
    """Check that a file has columns, by its schema; see `read_parquet`.

    Raises:
        UserError: a column is missing, stands twice, or is of a type that holds other values.
    """
    for column in columns:
        places = schema.get_all_field_indices(column.name)
        if len(places) > 1:
            raise UserError(f"{file}: has {len(places)} columns '{column.name}'")
        if places and not holds(schema.field(places[0]).type, column.type):
            shown = quoted(str(schema.field(places[0]).type))
            raise UserError(f"{file}: column '{column.name}' is of the type {shown}, needed is '{column.type}'")
        if not places and column.name not in optional:
            raise UserError(f"{file}: has no column '{column.name}' ({column.type})")


def holds(stored: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values stored in one type are values of the other type, at most in another encoding.

    A struct may have further fields: they are not looked at, whatever their types.
    """
    if types.is_struct(wanted):
        return types.is_struct(stored) and all(
            stored.get_field_index(part.name) >= 0 and holds(stored.field(part.name).type, part.type) for part in wanted
        )
    if any(is_list(wanted) for is_list in LISTS):
        fixed = types.is_fixed_size_list(stored) and types.is_fixed_size_list(wanted)
        if fixed and stored.list_size != wanted.list_size:
            return False
        return any(is_list(stored) for is_list in LISTS) and holds(stored.value_type, wanted.value_type)
    if types.is_dictionary(stored) and types.is_string(wanted):
        stored = stored.value_type
    return any(is_wanted(wanted) and any(same(stored) for same in others) for is_wanted, others in SAME)


def _check_extent(
    parquet: pq.ParquetFile, size: int, file: StoragePath, columns: pa.Schema, groups: Sequence[int] | None
) -> None:
    """Refuse a footer that claims more rows and bytes than a file of this size can hold: memory is taken for them.

    Lists with too many values in the row groups that are read are refused too.
    """
    footer = parquet.metadata
    for number in groups or ():
        if number >= footer.num_row_groups:
            raise UserError(f"{file}: has {footer.num_row_groups} row groups, number {number} is gone")
    claimed = [footer.row_group(number) for number in groups or range(footer.num_row_groups)]
    rows, unpacked = sum(each.num_rows for each in claimed), sum(each.total_byte_size for each in claimed)
    if rows > size or unpacked > BYTES_A_BYTE * size:
        raise UserError(f"{file}: broken: {size} bytes cannot be {rows} rows, of {unpacked} bytes")
    lists = [column.name for column in columns if any(is_list(column.type) for is_list in LISTS)]
    if not lists or groups == ():
        return
    places = [n for n in range(len(parquet.schema)) if parquet.schema.column(n).path.partition(".")[0] in lists]
    # The footer's entry of a column is read only after Arrow has used it: some changed bits in it are an error there,
    # and would end the process here.
    if groups is None:
        # Goes through the pages of all row groups, a few values at a time.
        parquet.scan_contents(lists)
    for number in groups or ():
        # Begins to read the row group, in batches of no rows: there is none.
        next(parquet.reader.iter_batches(0, [number], places), None)
    values = sum(each.column(place).num_values for each in claimed for place in places)
    if values > VALUES_A_BYTE * size:
        raise UserError(f"{file}: broken: {size} bytes cannot be lists of {values} values")
