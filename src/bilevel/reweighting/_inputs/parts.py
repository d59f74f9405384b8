"""A table on disk that is too large for memory: read by parts, and a sample of its rows."""

import abc
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Int

from ..._reading.formats import Dataset
from .checks import InputError
from .files import check_unique, check_unique_ids, parquet_dataset, suggest, with_named_index

PART = 50_000  # rows that are read at a time
HEAD = 2_000  # rows by which a table is told
FEWEST = 20  # rows of a class in the sample, if there are as many
BUFFER = 1 << 16  # bytes of a column that are read at a time


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
    """A Parquet file, or a folder of them.

    Args:
        dataset: what is read.
        what: how messages name it.
        named_rows: columns that may be the named index of a data frame that was saved.
    """

    def __init__(self, dataset: Dataset, what: str, named_rows: Sequence[str] = ()):
        self.dataset, self.what, self.named_rows = dataset, what, tuple(named_rows)
        self.rows, self.names, self.notes = dataset.count_rows(), dataset.schema.names, []

    @classmethod
    def of(cls, path: Path, name: str, named_rows: Sequence[str] = ()) -> "ParquetRows | None":
        """The rows, if these are Parquet files.

        Raises:
            InputError: they cannot be read.
        """
        dataset = parquet_dataset(path, name)
        return None if dataset is None else cls(dataset, f"the {name} file {path}", named_rows)

    def frames(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[pd.DataFrame]:
        """Some rows in their order; what is before them in their row group is read too."""
        for table in self._tables(size, start, self.rows if stop is None else stop):
            part = with_named_index(table.to_pandas(), self.named_rows)
            wanted = [c for c in self.named_rows if c in part.index.names]
            yield part.reset_index(wanted) if wanted else part

    def _tables(self, size: int, start: int, stop: int) -> Iterator[pa.Table]:
        """File by file, page by page: a scan of the dataset would hold a whole group of rows.

        (Up to version 22, pyarrow holds one here too.)
        """
        from pyarrow.dataset import get_partition_keys  # imported where a dataset is there

        schema = self.dataset.schema
        for fragment in self.dataset.get_fragments():
            from_path, rows = (
                get_partition_keys(fragment.partition_expression),
                fragment.count_rows(),
            )
            for batch in self._batches(fragment.path, size, max(start, 0), min(stop, rows)):
                columns = [
                    batch.column(field.name).cast(field.type)
                    if field.name in batch.schema.names
                    else pa.repeat(pa.scalar(from_path[field.name], field.type), len(batch))
                    for field in schema
                ]
                yield pa.Table.from_arrays(columns, schema=schema)
            start, stop = start - rows, stop - rows

    def _batches(self, path: str, size: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows of one file from `start` until before `stop`."""
        if start >= stop:
            return
        try:
            file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
            groups, end = range(file.metadata.num_row_groups), 0
            ends = [end := end + file.metadata.row_group(k).num_rows for k in groups]
            wanted = [k for k in groups if ends[k] > start and (k == 0 or ends[k - 1] < stop)]
            position = ends[wanted[0] - 1] if wanted[0] else 0
            for batch in file.iter_batches(size, row_groups=wanted):
                first, last = max(start - position, 0), min(stop - position, len(batch))
                position += len(batch)
                if first < last:
                    yield batch.slice(first, last - first)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.what} cannot be read as parquet: {error}") from error

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        return self.dataset.to_table(columns=[name]).column(0)


def draw_sample(
    labels: np.ndarray, size: int, seed: int, *, classes: bool = True
) -> Int[np.ndarray, " sample"]:
    """Positions of a random sample, in increasing order, in which labels are as frequent as in all.

    The rows are sorted by label, those of one label at random, and every (n / size)-th is taken: of a
    class, and of a range of targets, the sample has its share of rows, rounded. If the labels are
    `classes`, it has at least 20 rows of each, or all that there are.
    """
    n, rng = len(labels), np.random.default_rng(seed)
    if n <= size:
        return np.arange(n)
    codes, values = pd.factorize(labels, sort=True)
    order = np.lexsort((rng.random(n), codes))
    taken = order[np.floor((np.arange(size) + rng.random()) * (n / size)).astype(int)]
    if not classes:
        return np.sort(taken)
    numbers, ends = np.bincount(codes[taken], minlength=len(values)), np.cumsum(np.bincount(codes))
    few = np.flatnonzero(numbers < FEWEST)
    more = [order[ends[code - 1] if code else 0 : ends[code]][:FEWEST] for code in few]
    return np.sort(np.concatenate([taken[~np.isin(codes[taken], few)], *more]))
