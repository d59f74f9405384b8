"""Rows of a large table that are judged already: files of a run that is not complete.

A process judges some ranges of rows, and writes what it found of at most `SAVED` rows to a file that
carries its checksum. Whoever goes on with the run, by any number of processes, judges the others.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc

from .._storage import DamagedFileError, open_sealed, write_sealed
from ..reweighting._inputs.checks import check_labels
from ..reweighting._inputs.columns import tidy
from ..reweighting._inputs.csv import read_like
from ..reweighting._inputs.parts import PartedTable
from ..reweighting._inputs.prepare import Encoding
from ..reweighting._weights.coded_labels import predictions
from ..reweighting._weights.new_rows import LabelledRows, NewRowWeights
from ._run_files import RowVerdicts
from ._run_folder import JUDGED_KIND, judged_file, judged_files
from ._weigh_config import WeighConfig

SAVED = 250_000  # rows of a file at most: what is lost when a process ends
Ranges = list[tuple[int, int]]  # of rows: from the first until before the second


class RowMaker(NamedTuple):
    """How a part of the table becomes rows for the models.

    Attributes:
        columns: the features.
        encoder: fitted on the rows that the weights were learned from.
        own_encoded, given_encoded: whether the final model and the label models take numbers, and not
            a table.
    """

    columns: list[Any]
    encoder: Any
    own_encoded: bool
    given_encoded: bool

    def __call__(self, part: pd.DataFrame, y: np.ndarray, groups: Any) -> LabelledRows:
        """The rows."""
        new = tidy(pd.DataFrame(part[self.columns]), like=self.encoder)
        own = self.encoder.transform(new) if self.own_encoded else new
        return LabelledRows(own if self.given_encoded else new, own, y, groups)


class Judge(NamedTuple):
    """What says something of rows that were not learned from; any process can do it.

    Attributes:
        config: of the run.
        encoding: how labels became numbers.
        weigh: the weights of rows.
        as_rows: how they become what the models take.
        model: the final one.
        learned: a sum of what was learned; another sum would judge otherwise.
    """

    config: WeighConfig
    encoding: Encoding
    weigh: NewRowWeights
    as_rows: RowMaker
    model: Any
    learned: str

    def __call__(self, part: pd.DataFrame) -> pa.Table:
        """The columns of `weights.parquet`, but for id and rank."""
        config, classes = self.config, self.encoding.classes
        y = check_labels(part[config.label], part, f"train column {config.label}")
        y = read_like(y, classes, config.label)
        if classes is not None:
            y = classes[self.encoding.labels(y, config.label)]  # not a text of its own per row
        groups = None if config.groups is None else np.asarray(part[config.groups])
        rows = self.as_rows(part, y, groups)
        judged, weights = self.weigh(rows)
        return pa.table(
            {
                "weights": weights,
                "quality": judged.quality,
                "wrong": judged.wrong,
                "keep": judged.keep,
                "given": y,
                "predicted": predictions(self.model, rows.own),
            }
        )


def sum_of(verdicts: RowVerdicts) -> str:
    """A sha256 sum of what is said of the sample: of equal sums, the same was learned."""
    digest = hashlib.sha256()
    for column in verdicts[1:]:
        array = np.asarray(column)
        content = array.tobytes() if array.dtype != object else "\0".join(map(str, array)).encode()
        digest.update(content)
    return digest.hexdigest()


def judge_ranges(table: PartedTable, judge: Judge, ranges: Ranges, folder: Path) -> Iterator[int]:
    """Judge rows, and write files of them; yields how many, part after part."""
    for start, stop in ranges:
        found: list[pa.Table] = []
        for part in table.parts(start, stop):
            found.append(judge(part))
            end = int(part.index[-1]) + 1
            if end - start >= SAVED or end == stop:
                header = {"start": start, "stop": end, "learned": judge.learned}
                write_sealed(folder / judged_file(start), JUDGED_KIND, header, _as_bytes(found))
                start, found = end, []
            yield len(part)


def _as_bytes(tables: list[pa.Table]) -> bytes:
    content = io.BytesIO()
    with pyarrow.ipc.new_stream(content, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return content.getvalue()


def judged_ranges(folder: Path, learned: str, rows: int) -> Ranges:
    """The rows of which there are files; files that are damaged or of something else are removed.

    Args:
        folder: of the files.
        learned: the sum of what was learned.
        rows: how many the table has.
    """
    found: Ranges = []
    for path in judged_files(folder):
        try:
            header, table = _read(path)
            start, stop = header["start"], header["stop"]
            after = not found or start >= found[-1][1]
            fits = after and path.name == judged_file(start) and stop <= rows
            whole = fits and len(table) == stop - start > 0 and header["learned"] == learned
        except (DamagedFileError, LookupError, TypeError, ValueError, pa.ArrowException):
            whole, start, stop = False, 0, 0
        if whole:
            found.append((start, stop))
        else:
            path.unlink()
    return found


def read_judged(folder: Path) -> Iterator[tuple[slice, pa.Table]]:
    """The rows of each file, and what was found of them."""
    for path in judged_files(folder):
        header, table = _read(path)
        yield slice(header["start"], header["stop"]), table


def _read(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """(header, rows) of a file, which may be forged.

    Raises:
        DamagedFileError: it is not whole.
        pa.ArrowException: its rows cannot be read, or are no rows of ours.
    """
    header, content = open_sealed(path, JUDGED_KIND)
    table = pyarrow.ipc.open_stream(content).read_all()
    table.validate(full=True)
    kinds = {name: table.schema.field(name).type for name in ("weights", "quality", "wrong")}
    if set(kinds.values()) != {pa.float64()} or table.schema.field("keep").type != pa.bool_():
        raise pa.ArrowInvalid(f"{path} has other columns")
    table.select(["given", "predicted"])
    return header, table


def left(rows: int, done: Iterable[tuple[int, int]]) -> Ranges:
    """The rows that are in none of the ranges.

    >>> left(10, [(2, 4), (7, 9)])
    [(0, 2), (4, 7), (9, 10)]
    """
    start, found = 0, []
    for first, last in sorted(done):
        if start < first:
            found.append((start, first))
        start = max(start, last)
    return [*found, (start, rows)] if start < rows else found


def share(ranges: Ranges, index: int, count: int) -> Ranges:
    """What one of `count` processes takes of some ranges: about as many rows as each of the others.

    >>> share([(0, 4), (6, 12)], 1, 2)
    [(7, 12)]
    """
    sizes = [stop - start for start, stop in ranges]
    first, last = (sum(sizes) * k // count for k in (index, index + 1))
    found, before = [], 0
    for (start, _), size in zip(ranges, sizes, strict=True):
        low, high = max(first - before, 0), min(last - before, size)
        if low < high:
            found.append((start + low, start + high))
        before += size
    return found
