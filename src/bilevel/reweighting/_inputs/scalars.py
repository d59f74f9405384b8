"""Columns that name things (labels, ids, groups): one value per row, and one spelling per value."""

import datetime
import decimal
import numbers
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ..._text import seen
from .checks import InputError, named

_SCALARS = (
    *(str, bool, np.bool_, numbers.Number, decimal.Decimal),
    *(datetime.date, datetime.time, np.datetime64, type(None), type(pd.NaT), type(pd.NA)),
)


def check_scalars(values: Any, what: str) -> None:
    """Refuse values that are no text, number, boolean or date: lists, maps, bytes, durations.

    Raises:
        InputError: with what they are.
    """
    if not isinstance(values, (pd.Series, np.ndarray)) or np.ndim(values) != 1:
        return
    column = pd.Series(values)
    durations = pd.api.types.is_timedelta64_dtype(column)
    if not durations and (column.dtype.kind in "biufcM" or isinstance(values, pd.Categorical)):
        return
    kinds = {type(value) for value in column}
    foreign = sorted(kind.__name__ for kind in kinds if not issubclass(kind, _SCALARS))
    if foreign or durations:
        raise InputError(
            f"{what} holds {named(foreign or ['timedelta'])}, and must hold one text, number, boolean "
            "or date per row. Convert it: join a list to a text, decode bytes, give a duration in "
            "seconds."
        )


def settled(labels: Any) -> Any:
    """Labels of no fixed type that are all numbers, or all true or false, as such."""
    if isinstance(labels, pd.Series):
        column = labels
    elif isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "OT":
        column = pd.Series(labels.astype(object))
    else:
        return labels
    if column.dtype == object or isinstance(column.dtype, pd.ArrowDtype):
        present = column[column.notna()]
        if len(present) and all(isinstance(x, decimal.Decimal) for x in present):
            column = column.astype(object).where(column.notna(), np.nan).astype(np.float64)
        elif column.dtype == object:
            column = column.infer_objects()
    if column.dtype == object or pd.api.types.is_string_dtype(column):
        return labels.astype(object) if isinstance(labels, np.ndarray) else labels
    return column if isinstance(labels, pd.Series) else column.to_numpy()


def check_spelling(*columns: Any, what: str) -> None:
    """Refuse texts that look alike and differ, and truth values that are written in two ways.

    Raises:
        InputError: texts that differ only in how Unicode composes them, in characters that cannot be
            seen, or in blanks at their ends; 0 and 1 beside true and false.
    """
    values = [x for column in columns for x in _of_no_fixed_kind(column)]
    distinct = list(dict.fromkeys(values))
    texts = [x for x in distinct if isinstance(x, str)]
    alike: dict[str, list[str]] = {}
    for text in sorted(texts):
        alike.setdefault(seen(text), []).append(text)
    if same := [text for group in alike.values() if len(group) > 1 for text in group]:
        raise InputError(
            f"{what} are written in several ways that look alike: {', '.join(map(ascii, same[:6]))}. "
            "They differ in blanks at the end, in characters that cannot be seen, or in how Unicode "
            "composes them. Give each one spelling."
        )
    words = {text.casefold() for text in texts}
    kinds = {isinstance(x, (bool, np.bool_)) for x in values if isinstance(x, numbers.Number)}
    if (words & {"true", "false"} and words & {"0", "1"}) or len(kinds) > 1:
        raise InputError(
            f"{what} hold truth values in two ways, as 0 and 1 and as true and false. Give them one "
            "spelling."
        )


def _of_no_fixed_kind(column: Any) -> list[Any]:
    """The values of a vector that may hold texts, or values of several kinds."""
    array = np.asarray(column)
    return array.tolist() if array.ndim == 1 and array.dtype.kind in "OUT" else []


def as_spelled(text: str) -> str:
    """The same for texts that differ only in case, blanks, Unicode form, or what cannot be seen.

    >>> as_spelled("Two \u200bWords") == as_spelled("two  words ")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", seen(text)).casefold().split())


def spelled_alike(values: Iterable[Any]) -> list[list[str]]:
    """Groups of different texts that `as_spelled` makes equal; what is no text is left out."""
    groups: dict[str, list[str]] = {}
    for text in sorted({x for x in values if isinstance(x, str)}):
        groups.setdefault(as_spelled(text), []).append(text)
    return [group for group in groups.values() if len(group) > 1]
