"""Training tables beyond memory: weights are learned from a sample, the other rows judged by parts.

The whole job of `weigh` is done on a random sample of the training rows. Then the table is read once
more, by parts, and every other row is judged by the label models that were learned, and weighed by
the rule that won. Memory holds the sample, one part, and about 50 bytes per row for what is written.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from ..reweighting._inputs.checks import InputError, check_labels, named
from ..reweighting._inputs.columns import check_values
from ..reweighting._inputs.parts import PartedTable, draw_sample
from ..reweighting._inputs.scalars import check_scalars
from ..reweighting._weights.new_rows import LabelledRows, NewRowWeights
from ..reweighting._weights.result import WeightsResult
from ._activity import Activity
from ._run_files import RowVerdicts, read_like
from ._run_folder import WeighConfig

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BASE = 4e8  # bytes of the interpreter, the libraries and the trusted rows
COPIES = 14  # of the sample as float64 numbers at the peak, measured on 100 columns
SMALLEST = 20_000  # rows of a sample: as many as label models are fitted on
WIDEST = 50  # numbers that a column of text becomes, at most


def parse_memory(text: str) -> float:
    """Bytes: `500MB`, `4GB`, or a number of bytes.

    Raises:
        ValueError: it is neither.
    """
    number, factor = text.strip(), 1.0
    for unit, size in UNITS.items():
        if number.upper().endswith(unit):
            number, factor = number[: -len(unit)], size
    try:
        found = float(number) * factor
    except ValueError:
        found = -1.0
    if not BASE < found < 1e18:
        raise ValueError(f"{text!r} is not an amount of memory above 400MB, such as 500MB or 4GB.")
    return found


def bytes_of(rows: float, width: float) -> float:
    """What a run needs at its peak for so many rows that become `width` numbers each."""
    return BASE + 8.0 * COPIES * rows * width


class LargeTable(NamedTuple):
    """A training table of which only a sample is in memory.

    Attributes:
        table: on disk.
        positions: of the rows of the sample, increasing.
        sample: these rows, with their positions as index.
        width: numbers that a row becomes, about.
    """

    table: PartedTable
    positions: Int[np.ndarray, " sample"]
    sample: pd.DataFrame
    width: int

    @property
    def note(self) -> str:
        """What is to be said of it."""
        needed = bytes_of(self.table.rows, self.width) / 1e9
        return (
            f"train: {self.table.rows} rows would need about {needed:.1f} GB, more than --memory: the "
            f"weights were learned from a random sample of {len(self.positions)} rows, and the other "
            "rows judged by the models that were learned there; models, baselines and report are of "
            "the sample"
        )


def find_large(config: WeighConfig) -> LargeTable | None:
    """The training table, if it is one of Parquet files that needs more than `--memory`.

    Raises:
        InputError: it cannot be used, or the run asks for what needs all rows in memory.
    """
    ids = [c for c in (config.id, config.groups, config.entity) if c is not None]
    table = PartedTable.of(Path(config.train), "train", config.label, [config.label, *ids])
    if table is None or table.rows == 0:
        return None
    width = _width(table.head, config)
    rows = int((parse_memory(config.memory) - BASE) / (8 * COPIES * width))
    if table.rows <= max(rows, SMALLEST):
        return None
    _check_options(config, table)
    labels = table.column(config.label)
    if labels.null_count == 0:  # gaps are told with their rows, below
        check_scalars(table.head[config.label], f"the label column {config.label!r}")
    if config.id is not None:
        table.check_ids(config.id)
    positions = draw_sample(labels.to_pandas().to_numpy(), max(rows, SMALLEST), config.seed)
    del labels
    sample = table.take(positions, lambda part: _check(part, config))
    return LargeTable(table, positions, sample, width)


def _check_options(config: WeighConfig, table: PartedTable) -> None:
    """Refuse what needs all training rows in memory."""
    asked = {
        "--images": config.images is not None,
        "--pred-probs": config.pred_probs is not None,
        "--method and --model other than auto and linear": (config.method, config.model)
        != ("auto", "linear"),
    }
    if at_fault := [option for option, given in asked.items() if given]:
        raise InputError(
            f"{table.what} has {table.rows} rows, more than fit in --memory {config.memory}, and "
            f"{named(at_fault)} cannot be had of a part of them. Give more --memory (all rows need "
            f"about {bytes_of(table.rows, _width(table.head, config)) / 1e9:.1f} GB), or leave it out."
        )


def _check(part: pd.DataFrame, config: WeighConfig) -> None:
    """The checks of a table that need one row at a time."""
    name = "train"
    check_labels(part[config.label], part, f"{name} column {config.label}")
    features = _features(part, config)
    if config.id is not None:
        features = features.set_axis(pd.Index(part[config.id]), axis=0)
    check_values(features, f"{name} rows'")


def _features(part: pd.DataFrame, config: WeighConfig) -> pd.DataFrame:
    beside = {config.label, config.id, config.groups, config.entity, config.time}
    beside |= {config.sample_weight, config.given_label, *config.drop}
    return part.drop(columns=[c for c in part.columns if c in beside])


def _width(head: pd.DataFrame, config: WeighConfig) -> int:
    """How many numbers a row becomes, about."""
    rows = _features(head, config)

    def of_column(column: pd.Series) -> int:
        if pd.api.types.is_numeric_dtype(column):
            return 1
        first = column.dropna()
        if len(first) and isinstance(first.iloc[0], (list, tuple, np.ndarray)):
            return np.size(first.iloc[0])
        return min(column.astype(str).nunique(), WIDEST)

    return sum(of_column(pd.Series(rows[c])) for c in rows.columns) or 1


def judge_all(
    large: LargeTable,
    config: WeighConfig,
    result: WeightsResult,
    weigh: NewRowWeights,
    as_rows: Callable[[pd.DataFrame, np.ndarray, np.ndarray | None], LabelledRows],
    predict: Callable[[Any], np.ndarray],
    activity: Activity,
) -> RowVerdicts:
    """What `weights.parquet` says of all rows: of the sample as learned, of the others as judged."""
    n, start = large.table.rows, time.monotonic()
    weights, quality, wrong = np.empty(n), np.empty(n), np.empty(n)
    keep, labels, predicted = np.empty(n, bool), [], []
    for part in large.table.parts():
        y = check_labels(part[config.label], part, f"train column {config.label}")
        y = read_like(y, result.encoding.classes, config.label)
        groups = None if config.groups is None else np.asarray(part[config.groups])
        rows = as_rows(part, y, groups)
        judged, u = weigh(rows)
        here = slice(part.index[0], part.index[-1] + 1)
        weights[here], quality[here] = u, judged.quality
        wrong[here], keep[here] = judged.wrong, judged.keep
        labels.append(y)
        predicted.append(np.asarray(predict(rows.own)))
        seconds = (time.monotonic() - start) * (n / here.stop - 1)
        activity.say(f"judging all rows: {here.stop} of {n}, about {seconds:.0f} s left")
    at = large.positions
    weights[at], quality[at] = np.asarray(result.weights), np.asarray(result.label_quality)
    keep[at] = result.keep
    if result.wrong is not None:
        wrong[at] = result.wrong
    ids = np.arange(n) if config.id is None else large.table.column(config.id)
    given = np.concatenate(labels)
    return RowVerdicts(ids, weights, quality, keep, wrong, given, np.concatenate(predicted))
