"""The rows of a CSV file, by parts: cells are texts on disk, and become values as they are asked for.

How a column is read is decided by all of its cells, one column after the other, by the rules of
`csv.py`; then any part of the rows has the values that it has in the table as a whole.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute

from .csv import (
    BOOLEAN,
    GAPS,
    NUMBER,
    TEXT,
    Reading,
    Texts,
    are_digits,
    read_distinct,
    without_gaps,
    words_for_gaps,
)
from .files import add_readings
from .parts import AbstractRows

pc: Any = pyarrow.compute  # whose functions are made when it is imported


class Plan(NamedTuple):
    """How the cells of a column become values, in whichever part of it they are.

    Attributes:
        reading: how they are read.
        type: of plain numbers; else None.
        gaps: texts that stand for a missing value.
        complete: whether none is missing.
    """

    reading: Reading
    type: pa.DataType | None
    gaps: tuple[str, ...]
    complete: bool

    @classmethod
    def of(cls, texts: pa.ChunkedArray, reading: Reading, *, verbatim: bool) -> "Plan":
        """By all cells; `verbatim`, for labels and ids: only an empty cell is a gap."""
        gaps = ("",) if verbatim else GAPS
        if reading.kind == "text":
            return cls(reading, None, gaps, complete=False)
        complete, type = True, pa.int64() if reading == NUMBER else None
        for chunk in texts.chunks:
            present = without_gaps(pc.utf8_trim_whitespace(chunk), gaps)
            complete = complete and present.null_count == 0
            if type == pa.int64() and not (are_digits(present) and _fit(present, pa.int64())):
                type = pa.float64()
            if type == pa.float64() and not verbatim:
                break  # that they are numbers was seen when the reading was found
            if type == pa.float64() and not _fit(present, pa.float64()):
                return cls(Reading("text"), None, gaps, complete=False)
        return cls(reading, type, gaps, complete)

    def cells(self, texts: pa.ChunkedArray) -> pa.ChunkedArray:
        """The values of some cells of the column."""
        if self.reading.kind == "text":
            return without_gaps(texts, self.gaps)
        present = without_gaps(pc.utf8_trim_whitespace(texts), self.gaps)
        if self.type is not None:
            return pc.cast(present, self.type)
        values = read_distinct(present, self.reading)
        type = pa.bool_() if self.reading == BOOLEAN else pa.float64()
        return pa.chunked_array([pa.array(values, type, from_pandas=True)])

    def values(self, texts: pa.ChunkedArray) -> pd.Series:
        """The same for pandas: with the type that the column has as a whole."""
        values = self.cells(texts).to_pandas()
        return values if self.complete or self.reading != BOOLEAN else values.astype(object)


def _fit(present: Any, type: pa.DataType) -> bool:
    try:
        pc.cast(present, type)
    except pa.ArrowInvalid:
        return False
    return True


class CsvRows(AbstractRows):
    """The rows of a CSV file.

    Args:
        texts: of the file, on disk.
        readings: of its columns, as far as they are known; they grow.
        verbatim: labels and ids.
    """

    def __init__(self, texts: Texts, readings: dict[str, Reading], verbatim: Collection[str]):
        add_readings(texts, readings)
        self.texts, self.rows, self.names = texts, texts.rows, [*texts.columns]
        self.notes, self.plans = [*texts.notes], {}
        for name, cells in texts.columns.items():
            plan = self.plans[name] = Plan.of(cells, readings[name], verbatim=name in verbatim)
            if not plan.reading.plain and plan.reading.kind != "text":
                self.notes.append(plan.reading.describe(name, cells))
            texts.release()
        plain = {c: texts.columns[c] for c, p in self.plans.items() if p.reading == TEXT}
        self.notes += words_for_gaps({c: x for c, x in plain.items() if c not in verbatim})
        texts.release()

    def frames(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[pd.DataFrame]:
        """Some rows in their order."""
        stop = self.rows if stop is None else stop
        for first in range(start, stop, size):
            columns = {
                name: self.plans[name].values(cells.slice(first, min(size, stop - first)))
                for name, cells in self.texts.columns.items()
            }
            self.texts.release()
            yield pd.DataFrame(columns)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        plan, found = self.plans[name], []
        for chunk in self.texts.columns[name].chunks:
            found += plan.cells(pa.chunked_array([chunk])).chunks
        self.texts.release()
        return pa.chunked_array(found)

    def row_names(self) -> None:
        """A CSV file has none."""
