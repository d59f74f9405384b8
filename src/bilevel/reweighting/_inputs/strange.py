"""What new rows have that no training row had: values of categories, and numbers far from theirs."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from .checks import named
from .columns import encoders_of
from .scalars import as_spelled

FEW = 3  # values outside, up to which a column alone is chance


def strange(rows: pd.DataFrame, pipeline: Pipeline) -> list[str]:
    """A sentence per column of `rows` (after `tidy`) that is unlike that of the training rows.

    Of numbers, if more than half of the values lie outside of the range of the training rows, and
    more than a few do, or more than half of all numbers: most likely the unit is another one; or if
    none is left. Of categories, if a value is new: a model knows nothing of it.

    Args:
        rows: the new ones.
        pipeline: of ours, fitted on the training rows.
    """
    encoders = encoders_of(pipeline)
    ranges = _ranges(encoders)
    low, high = np.reshape([*ranges.values()], (-1, 2)).T
    return [*beyond(rows[list(ranges)], low, high), *_new(rows, encoders)]


def beyond(rows: Any, low: np.ndarray, high: np.ndarray) -> list[str]:
    """Of numbers, given the range of each column."""
    frame = pd.DataFrame(rows)
    values = frame.to_numpy(np.float64)
    known, outside = np.isfinite(values), (values < low) | (values > high)
    many = outside.sum() > known.sum() / 2
    empty = [*frame.columns[np.flatnonzero(~known.any(axis=0))]] * (len(frame) > FEW)
    said = [f"no row has a value of {named(empty)}, and training rows have"] * bool(empty)
    for j in np.flatnonzero(outside.sum(axis=0) > known.sum(axis=0) / 2):
        count = int(outside[:, j].sum())
        if count > FEW or many:
            example = values[outside[:, j], j][0]
            said.append(
                f"{count} of {int(known[:, j].sum())} values of {frame.columns[j]!r}, such as "
                f"{example:g}, lie outside of those of the training rows ({low[j]:g} to {high[j]:g}): "
                "check that they are in the same unit"
            )
    return said


def _ranges(encoders: dict[str, tuple[Any, list[str]]]) -> dict[str, tuple[float, float]]:
    """The least and the greatest number of each column; of no column where trees take the numbers."""
    encoder, _ = encoders.get("numbers", (None, []))
    if not isinstance(encoder, Pipeline):
        return {}
    parts, scaler = encoder.steps[0][1], encoder.steps[1][1]
    found = {}
    for name, _, columns in parts.transformers_:
        start = parts.output_indices_[name].start  # after the columns themselves, flags of gaps
        for k, c in enumerate(columns, start):
            found[c] = float(scaler.data_min_[k]), float(scaler.data_max_[k])
    return found


def mostly_unknown(rows: pd.DataFrame, pipeline: Pipeline) -> list[str]:
    """A sentence per column of categories in which most rows have a value that no training row has.

    Or any row, if a value of the training rows differs from it in case, blanks or Unicode form alone.
    """
    return _new(rows, encoders_of(pipeline), at_least=max(len(rows) // 2, FEW) + 1)


def _new(
    rows: pd.DataFrame, encoders: dict[str, tuple[Any, list[str]]], at_least: int = 1
) -> list[str]:
    encoder, columns = encoders.get("categories", (None, []))
    said = []
    for c, known in zip(columns, () if encoder is None else encoder.categories_, strict=True):
        column = pd.Series(rows[c])
        new = column.notna() & ~column.isin(list(known))
        if not new.any():
            continue
        values: list[Any] = [*pd.unique(column[new])]
        spelled = {as_spelled(x): x for x in list(known) if isinstance(x, str)}
        alike = [spelled[as_spelled(x)] for x in values if as_spelled(x) in spelled]
        if new.sum() < at_least and not alike:
            continue
        hint = f" (training rows have {named(alike)}: write them alike)" if alike else ""
        said.append(
            f"{int(new.sum())} of {len(rows)} rows have a value of {c!r} that no training row "
            f"has: {named(values)}{hint}"
        )
    return said
