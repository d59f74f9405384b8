"""CSV files as texts."""

import contextlib
import csv
import gzip
import io
import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from .._text import named
from .tables import NAMELESS, NOTES, Columns, RefusedError

pc: Any = pyarrow.compute  # whose functions are made when it is imported
SEPARATORS = ",;\t|"
BLOCK = 1 << 23  # bytes of a CSV file that are parsed at a time


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
