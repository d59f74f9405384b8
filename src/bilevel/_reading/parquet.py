"""Parquet files, folders of them, and some of their rows."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet

from .._text import named
from .tables import NOTES, Columns, RefusedError

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset
else:
    Dataset = Any

PARQUET = (".parquet", ".pq")
BUFFER = 1 << 16  # bytes of a column that are read at a time where rows are
mapped = False  # whether files are mapped: one that is cut short meanwhile ends the process then


def read_parquet(path: Path, what: str, columns: Sequence[str] | None) -> Iterator[Columns]:
    """A Parquet file, column by column, which takes less memory; `columns=None` is all of them."""
    # Names of folders above the file are not columns of the table.
    file = pyarrow.parquet.ParquetFile(path, memory_map=mapped)
    schema = file.schema_arrow
    if columns is not None:
        metadata = schema.metadata
        schema = pa.schema([schema.field(name) for name in columns], metadata)

    def groups(names: Sequence[str]) -> Iterator[pa.Table]:
        for k in range(file.num_row_groups):
            # A full stop in a name also leads to a field within a column: more may have been read.
            yield _whole(file.read_row_group(k, names, use_threads=False).select(names))

    names = schema.names
    if not names or len(set(names)) < len(names):  # refused later, in words
        groups_of_rows = (
            file.read_row_group(k, use_threads=False) for k in range(file.num_row_groups)
        )
        yield schema, map(_whole, groups_of_rows)
        return
    for field in schema:
        metadata = schema.metadata if field.name == names[0] else None
        yield pa.schema([field], metadata), groups([field.name])


def read_folder(path: Path, what: str, columns: Sequence[str] | None) -> Iterator[Columns]:
    """The Parquet files of a folder, as one table; `columns=None` is all of them.

    Parts of paths like `year=2025` become columns.

    Raises:
        RefusedError: there are none, one cannot be read, or has other columns than the first.
    """
    dataset = parquet_folder(path, what)
    names = dataset.schema.names if columns is None else columns
    schema = pa.schema([dataset.schema.field(name) for name in names], dataset.schema.metadata)
    batches = dataset.to_batches(columns=columns)
    yield schema, (_whole(pa.Table.from_batches([batch])) for batch in batches)


def read_rows(path: Path, what: str, size: int, start: int, stop: int | None) -> Iterator[Columns]:
    """Rows of a Parquet file in their order, at most `size` in a table.

    The metadata tells how many rows the file has. What is before `start` in its group of rows is read
    too.
    """
    file = _open_rows(path)
    rows = file.metadata.num_rows
    stop = rows if stop is None else min(stop, rows)
    yield _noted(file.schema_arrow, rows), map(_whole, _between(file, size, start, stop))


def read_folder_rows(
    path: Path, what: str, size: int, start: int, stop: int | None
) -> Iterator[Columns]:
    """The same of the Parquet files of a folder.

    Raises:
        RefusedError: as `read_folder`.
    """
    dataset = parquet_folder(path, what)
    rows = dataset.count_rows()
    stop = rows if stop is None else min(stop, rows)
    yield _noted(dataset.schema, rows), map(_whole, _of_folder(dataset, size, start, stop))


def _noted(schema: pa.Schema, note: Any) -> pa.Schema:
    return schema.with_metadata({**(schema.metadata or {}), NOTES: json.dumps(note)})


def _of_folder(dataset: Dataset, size: int, start: int, stop: int) -> Iterator[pa.Table]:
    """File by file, page by page: a scan of the dataset would hold a whole group of rows."""
    from pyarrow.dataset import get_partition_keys

    for fragment in dataset.get_fragments():
        from_path = get_partition_keys(fragment.partition_expression)
        file = _open_rows(fragment.path)
        rows = file.metadata.num_rows
        for table in _between(file, size, max(start, 0), min(stop, rows)):
            columns = [
                table.column(field.name).cast(field.type)
                if field.name in table.column_names
                else pa.repeat(pa.scalar(from_path[field.name], field.type), len(table))
                for field in dataset.schema
            ]
            yield pa.Table.from_arrays(columns, schema=dataset.schema)
        start, stop = start - rows, stop - rows


def _open_rows(path: str | Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)


def _between(
    file: pyarrow.parquet.ParquetFile, size: int, start: int, stop: int
) -> Iterator[pa.Table]:
    """The rows of one file from `start` until before `stop`.

    Up to version 22, pyarrow holds a group of rows in memory.
    """
    if start >= stop:
        return
    groups, end = range(file.metadata.num_row_groups), 0
    ends = [end := end + file.metadata.row_group(k).num_rows for k in groups]
    wanted = [k for k in groups if ends[k] > start and (k == 0 or ends[k - 1] < stop)]
    position = ends[wanted[0] - 1] if wanted[0] else 0
    for batch in file.iter_batches(size, row_groups=wanted, use_threads=False):
        first, last = max(start - position, 0), min(stop - position, len(batch))
        position += len(batch)
        if first < last:
            yield pa.Table.from_batches([batch.slice(first, last - first)])


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below `folder`, sorted; names that start with `.` or `_` are bookkeeping."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PARQUET
        and not any(part[0] in "._" for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def parquet_folder(folder: Path, what: str) -> Dataset:
    """The files of a folder.

    Raises:
        RefusedError: as `read_folder`.
    """
    from pyarrow.dataset import dataset

    files, schemas = parquet_files(folder), []
    if not files:
        raise RefusedError(f"{what} holds no Parquet files (.parquet, .pq).")
    for path in files:
        try:
            schemas.append(pyarrow.parquet.read_schema(path))
        except Exception as error:  # parsers raise many kinds; each means the same to the user
            raise RefusedError(f"the file {path} cannot be read as parquet: {error}") from error
        lacks, has = (
            [c for c in one.names if c not in other.names]
            for one, other in [(schemas[0], schemas[-1]), (schemas[-1], schemas[0])]
        )
        if lacks or has:
            differences = [
                f"{word} {named(c)}" for word, c in [("lacks", lacks), ("has", has)] if c
            ]
            raise RefusedError(
                f"{what} holds files of different columns: {path.name} differs "
                f"from {files[0].name}, it {' and '.join(differences)}. Keep one table in a folder."
            )
    arguments: dict[str, Any] = {
        "format": "parquet",
        "partitioning": "hive",
        "partition_base_dir": str(folder),
    }
    found = dataset(files, **arguments).schema
    from_paths = pa.schema([field for field in found if field.name not in schemas[0].names])
    schema = _one_schema(files, schemas)
    schema = pa.unify_schemas([schema, from_paths])
    return dataset(files, schema=schema, **arguments)


def _one_schema(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Of all files: the widest type of each column; categories beside texts become texts.

    Raises:
        RefusedError: a column has types of different kinds.
    """
    fields = []
    for name in schemas[0].names:
        types = [schema.field(name).type for schema in schemas]
        if len({pa.types.is_dictionary(type) for type in types}) > 1:
            types = [type.value_type if pa.types.is_dictionary(type) else type for type in types]
        together = pa.schema([pa.field(name, types[0])])
        for path, type in zip(files, types, strict=True):
            try:
                one = pa.schema([pa.field(name, type)])
                together = pa.unify_schemas([together, one], promote_options="permissive")
            except pa.ArrowException as error:
                raise RefusedError(
                    f"the column {name!r} holds {together.field(name).type} in {files[0].name} and "
                    f"{type} in {path.name}. Save it with one type in all files."
                ) from error
        fields.append(together.field(name))
    return pa.schema(fields, schemas[0].metadata)


def _whole(table: pa.Table) -> pa.Table:
    """The same, if its offsets are within it and its texts are UTF-8."""
    table.validate(full=True)
    return table
