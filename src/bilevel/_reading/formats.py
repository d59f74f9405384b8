"""What is read of a file, as Arrow tables. Imports little: the process that reads has only this.

A format is a function that takes a path, how messages name the file, and its options. It gives groups
of columns, one after the other: their schema, and the tables that hold their rows. The metadata of the
first schema may hold notes.
"""

import contextlib
import csv
import gzip
import io
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from .._text import named

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset
else:
    Dataset = Any

pc: Any = pyarrow.compute  # whose functions are made when it is imported
SEPARATORS, PARQUET = ",;\t|", (".parquet", ".pq")
BLOCK = 1 << 23  # bytes of a CSV file that are parsed at a time
BUFFER = 1 << 16  # bytes of a column that are read at a time where rows are
mapped = False  # whether files are mapped: one that is cut short meanwhile ends the process then
NOTES, NAMELESS = b"bilevel", b"bilevel_nameless"  # the keys of our metadata
Columns = tuple[pa.Schema, Iterable[pa.Table]]


class RefusedError(ValueError):
    """The content cannot be used; the message is for the user."""


def read_csv(path: Path, what: str, separator: str | None) -> Iterator[Columns]:
    """The cells of a CSV file as texts, block by block; with `separator=None` the header tells it.

    Columns without a name are called `Unnamed: 3` after their position, and the metadata names them:
    where all their cells are empty, they are a separator at each line's end and no columns.

    Raises:
        RefusedError: no or repeated column names; another encoding than UTF-8; rows that repeat the
            header, or have more or fewer fields; cells that hold whole rows, between stray quote
            marks. All but those of names also while blocks are taken.
    """
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    notes = []
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file, _in_utf8(what):
        text = header_of(file)
    if separator is None:
        separator = separator_of(text)
        if separator != ",":
            notes.append(f"the columns of {what} are separated by {separator!r}")
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error:  # a field of 131,072 characters or more
        names, text = [], '"'
    if text.count('"') % 2:
        raise RefusedError(
            f"a quote mark in the first line of {what} is never closed. Remove it, or write it twice "
            "within double quotes."
        )
    if not names:
        raise RefusedError(
            f"the first line of {what} is empty, and must name the columns. Remove it."
        )
    repeated = [name for name, times in Counter(names).items() if name and times > 1]
    if repeated:
        raise RefusedError(f"{what} has repeated column names: {named(repeated)}.")

    def refused(row: Any) -> RefusedError:
        return RefusedError(
            f"a row of {what} has {row.actual_columns} fields; the first line names {fields} "
            f"columns: {row.text[:80]!r}. Name every column, and put text that holds a "
            f"{separator!r} in double quotes."
        )

    fields = len(names)
    lines = len(list(io.StringIO(text, newline=None)))  # which end in \n, \r or both, as Arrow's do
    reader, bad = _open(path, separator, fields, lines, what)
    one_more = bad[0] if bad and bad[0].actual_columns == fields + 1 else None
    if one_more is not None:
        names = [*names, ""]
        reader, bad = _open(path, separator, fields + 1, lines, what)
        notes.append(f"every row of {what} ends in one {separator!r} too many, which is ignored")
    nameless = [k for k, name in enumerate(names) if not name]
    called = as_called(names)
    schema = pa.schema(
        [(name, pa.large_string()) for name in called],
        metadata={NOTES: json.dumps(notes), NAMELESS: json.dumps(nameless)},
    )

    def following() -> pa.RecordBatch | None:
        with _in_utf8(what):
            return next(reader, None)

    def blocks() -> Iterator[pa.Table]:
        rows = 0
        while (batch := following()) is not None and not bad:
            if one_more is not None and not pc.all(pc.equal(batch.columns[-1], "")).as_py():
                raise refused(one_more)
            _check_quotes(names, batch, separator, what)
            _check_header(names, batch, rows, what)
            rows += len(batch)
            if len(batch):
                yield pa.Table.from_arrays(batch.columns, schema=schema)
        if bad:
            raise refused(one_more or bad[0])

    yield schema, blocks()


def header_of(file: Iterable[str]) -> str:
    """The text of the first record of these lines, which may have line breaks within quotes."""
    lines, quotes = [], 0
    for line in file:
        lines.append(line)
        quotes += line.count('"')
        if quotes % 2 == 0:
            break
    return "".join(lines)


def separator_of(header: str) -> str:
    """What separates the columns of a CSV file."""
    return "," if "," in header else next((s for s in SEPARATORS if s in header), ",")


def as_called(names: Sequence[str]) -> list[str]:
    """The columns of a header; those without a name are called after their position."""
    return [name or f"Unnamed: {k}" for k, name in enumerate(names)]


@contextlib.contextmanager
def _in_utf8(what: str) -> Iterator[None]:
    """Text in another encoding is refused in words."""
    try:
        yield
    except (UnicodeError, pa.ArrowInvalid) as error:
        if isinstance(error, UnicodeError) or "UTF8" in str(error):
            raise RefusedError(
                f"{what} cannot be read as csv: it is not text in UTF-8. Save it in UTF-8 "
                "(spreadsheets offer it as a format, and `iconv -f LATIN1 -t UTF-8` converts Latin-1)."
            ) from error
        raise


def _check_quotes(names: list[str], batch: pa.RecordBatch, separator: str, what: str) -> None:
    """Refuse cells that hold whole rows, as those between two stray quote marks do.

    Raises:
        RefusedError: with the first such cell.
    """
    for name, column in zip(names, batch.columns, strict=True):
        for cell in column.filter(pc.match_substring(column, "\n")).to_pylist():
            inner = cell.split("\n")[1:-1]  # lines that are within the quotes from end to end
            if len(inner) >= 2 and all(x.count(separator) == len(names) - 1 > 0 for x in inner):
                raise RefusedError(
                    f"a cell of the column {name!r} of {what} holds {len(inner)} lines that look like "
                    f"rows, from {inner[0][:60]!r} on: a quote mark before it is never closed, or was "
                    "not meant as one. Remove it, or write it twice within double quotes."
                )


def _text(value: str) -> pa.Scalar:
    """As `pa.scalar` makes it, which imports pandas first: a fifth of a second in every reading."""
    data = value.encode()
    buffers = [None, pa.py_buffer(struct.pack("=qq", 0, len(data))), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), 1, buffers)[0]


def _check_header(names: list[str], batch: pa.RecordBatch, before: int, what: str) -> None:
    """Refuse rows that are the header again, as where files with headers were joined.

    Raises:
        RefusedError: with the first such row.
    """
    if len(names) < 2:
        return
    same = pc.equal(batch.columns[0], _text(names[0]))
    for name, column in zip(names[1:], batch.columns[1:], strict=True):
        if not pc.any(same).as_py():
            return
        same = pc.and_(same, pc.equal(column, _text(name)))
    if (k := pc.index(same, True).as_py()) >= 0:
        raise RefusedError(
            f"row {before + k + 1} of {what} is the header again ({named(names)}): files were joined "
            "with their headers, or the first line is a row and no header. Remove that line, or name "
            "the columns."
        )


def _open(path: Path, separator: str, fields: int, skip: int, what: str) -> tuple[Any, list[Any]]:
    """(the rows, block by block; the rows with another number of fields that it has come upon)."""
    bad = []

    def note(row: Any) -> str:
        bad.append(row)
        return "skip"

    names = [str(k) for k in range(fields)]
    with _in_utf8(what):
        reader = pyarrow.csv.open_csv(
            path,
            pyarrow.csv.ReadOptions(
                column_names=names, skip_rows=skip, block_size=BLOCK, use_threads=False
            ),
            pyarrow.csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=note
            ),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_string()), strings_can_be_null=False
            ),
        )
    return reader, bad


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


def prepare(format: str) -> None:
    """Import what a format needs beyond this module: `pyarrow.dataset` imports pandas."""
    if format.startswith("folder"):
        import pyarrow.dataset  # noqa: F401


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


FORMATS: dict[str, Callable[..., Iterator[Columns]]] = {
    "csv": read_csv,
    "parquet": read_parquet,
    "folder": read_folder,
    "rows": read_rows,
    "folder rows": read_folder_rows,
}


def write_tables(format: str, path: Path, what: str, options: dict[str, Any], sink: Any) -> None:
    """Read a file and write it to `sink`: per group of columns a stream of Arrow's IPC format.

    Raises:
        RefusedError: the content cannot be used.
        Exception: it cannot be parsed.
    """
    for schema, tables in FORMATS[format](path, what, **options):
        with pa.ipc.new_stream(sink, schema) as stream:
            for table in tables:
                stream.write_table(table)


def beside(parts: Sequence[pa.Table]) -> pa.Table:
    """One table of groups of columns.

    Raises:
        pa.ArrowInvalid: one has more rows than another.
    """
    if len(parts) == 1:
        return parts[0]
    schema = pa.schema([field for part in parts for field in part.schema], parts[0].schema.metadata)
    table = pa.Table.from_arrays(
        [column for part in parts for column in part.columns], schema=schema
    )
    table.validate()
    return table
