"""A table on disk that is too large for memory: read by parts, and a sample of its rows."""

import abc
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int

from ..._reading import ReadError, Rows, read_file, stream_file
from ..._reading.tables import NOTES
from .checks import InputError
from .files import (
    FOLDER,
    NO_NAME,
    check_unique,
    check_unique_ids,
    is_parquet,
    suggest,
    with_named_index,
)

PART = 50_000  # rows that are read at a time
HEAD = 2_000  # rows by which a table is told
FEWEST = 20  # rows of a class in the sample, if there are as many


class AbstractRows(abc.ABC):
    """What of a table on disk is read.

    Attributes:
        rows: how many there are.
        names: of the columns.
        notes: what is worth saying about how they are read.
    """

    rows: int
    names: list[str]
    notes: list[str]

    @abc.abstractmethod
    def frames(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[pd.DataFrame]:
        """The rows from `start` until before `stop` in their order, at most `size` at a time."""

    @abc.abstractmethod
    def column(self, name: str) -> pa.ChunkedArray:
        """One of the columns in `names`, of all rows."""

    @abc.abstractmethod
    def row_names(self) -> pd.Index | None:
        """Of all rows, where a data frame was saved with one that says more than their number."""


class PartedTable:
    """A table on disk, of which a part is in memory at a time.

    Args:
        source: what is read.
        what: how messages name it.
    """

    def __init__(self, source: AbstractRows, what: str):
        self.source, self.what, self.rows = source, what, source.rows

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[pd.DataFrame]:
        """The rows from `start` until before `stop` in their order, with their positions as index."""
        for part in self.source.frames(PART, start, stop):
            part.index = pd.RangeIndex(start, start + len(part))
            part.columns = part.columns.astype(str)
            start += len(part)
            if len(part):
                yield part

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows.

        Raises:
            InputError: there is none of this name.
        """
        if name in self.source.names:
            return self.source.column(name)
        if name not in self.head.columns:
            raise InputError(
                f"{self.what} has no column {name!r}; {suggest(name, self.source.names)}."
            )
        return pa.chunked_array([pa.array(part[name]) for part in self.parts()])

    def check_ids(self, column: str) -> None:
        """Refuse ids that are missing or repeat.

        Raises:
            InputError: with the ids.
        """
        ids = self.column(column)
        if ids.null_count or len(ids.unique()) < len(ids):
            check_unique_ids(ids.to_pandas(), self.what, column)

    @cached_property
    def head(self) -> pd.DataFrame:
        """The first rows."""
        return next(self.parts(), pd.DataFrame()).head(HEAD)

    def take(
        self, positions: Int[np.ndarray, " sample"], check: Callable[[pd.DataFrame], None]
    ) -> pd.DataFrame:
        """The rows at these increasing positions; every part is checked on the way.

        Raises:
            InputError: repeated column names, or by `check`.
        """
        taken = []
        for part in self.parts():
            check_unique(part, self.what)
            check(part)
            first, last = np.searchsorted(positions, [part.index[0], part.index[-1] + 1])
            taken.append(part.loc[positions[first:last]])
        return pd.concat(taken)


class ParquetRows(AbstractRows):
    """A Parquet file, or a folder of them, read in a process of its own.

    Args:
        path: of it.
        name: of the table.
        named_rows: columns that may be the named index of a data frame that was saved.

    Raises:
        InputError: it cannot be read, also by methods.
    """

    def __init__(self, path: Path, name: str, named_rows: Sequence[str] = ()):
        self.path, self.what, self.named_rows = path, f"the {name} file {path}", tuple(named_rows)
        self.source = f"the {name} folder {path}" if path.is_dir() else self.what
        with _in_words():
            schema, tables = self._stream(size=PART, start=0, stop=0)
            deque(tables)  # whether it has ended well
        self.rows, self.names = json.loads(schema.metadata[NOTES]), schema.names
        self.notes, self.saved = [], _saved_index(schema)

    @classmethod
    def of(cls, path: Path, name: str, named_rows: Sequence[str] = ()) -> "ParquetRows | None":
        """The rows, if these are Parquet files.

        Raises:
            InputError: they cannot be read.
        """
        return cls(path, name, named_rows) if is_parquet(path) else None

    def frames(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[pd.DataFrame]:
        """Some rows in their order; what is before them in their row group is read too."""
        with _in_words():
            for table in self._stream(size=size, start=start, stop=stop).tables:
                part = with_named_index(table.to_pandas(), self.named_rows)
                wanted = [c for c in self.named_rows if c in part.index.names]
                yield part.reset_index(wanted) if wanted else part

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        format, kind = ("folder", FOLDER) if self.path.is_dir() else ("parquet", "parquet")
        with _in_words():
            return read_file(format, self.path, self.source, kind, columns=[name]).column(0)

    def row_names(self) -> pd.Index | None:
        """A single column, or row numbers that do not begin at 0."""
        if len(self.saved) != 1 or self.saved[0] in self.named_rows:
            return None
        (one,) = self.saved
        if isinstance(one, dict):
            ends = [one.get(key) for key in ("start", "stop", "step")]
            if not all(isinstance(end, int) for end in ends) or not ends[2]:
                return None
            numbers = pd.RangeIndex(ends[0], ends[1], ends[2])
            plain = numbers.equals(pd.RangeIndex(self.rows))
            return numbers if len(numbers) == self.rows and not plain else None
        if one not in self.names:
            return None
        name = None if one == NO_NAME[0] else one
        return pd.Index(self.column(one).to_pandas(), name=name)

    def _stream(self, **options: Any) -> Rows:
        format, kind = ("folder rows", FOLDER) if self.path.is_dir() else ("rows", "parquet")
        return stream_file(format, self.path, self.source, kind, **options)


def _saved_index(schema: pa.Schema) -> list[Any]:
    """What pandas wrote of the index of a data frame: names of columns, or a range of numbers."""
    try:
        found = (schema.pandas_metadata or {}).get("index_columns")
    except ValueError:  # anybody may have written it
        return []
    return found if isinstance(found, list) else []


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except ReadError as error:
        raise InputError(str(error)) from error


def draw_sample(
    labels: np.ndarray, size: int, seed: int, *, classes: bool = True
) -> Int[np.ndarray, " sample"]:
    """Positions of a random sample, in increasing order, in which labels are as frequent as in all.

    The rows are sorted by label, those of one label at random, and every (n / size)-th is taken: of a
    class, and of a range of targets, the sample has its share of rows, rounded. If the labels are
    `classes`, they are sorted by who comes first, whatever their names, and the sample has at least
    20 rows of each, or all that there are.
    """
    n, rng = len(labels), np.random.default_rng(seed)
    if n <= size:
        return np.arange(n)
    codes, values = pd.factorize(labels, sort=not classes)
    order = np.lexsort((rng.random(n), codes))
    taken = order[np.floor((np.arange(size) + rng.random()) * (n / size)).astype(int)]
    if not classes:
        return np.sort(taken)
    numbers, ends = np.bincount(codes[taken], minlength=len(values)), np.cumsum(np.bincount(codes))
    few = np.flatnonzero(numbers < FEWEST)
    more = [order[ends[code - 1] if code else 0 : ends[code]][:FEWEST] for code in few]
    return np.sort(np.concatenate([taken[~np.isin(codes[taken], few)], *more]))
