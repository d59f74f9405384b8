"""Columns of dates and of times: which texts are dates, whether the day or the month comes first."""

import contextlib
import datetime
import numbers
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .checks import InputError, named
from .scalars import settled

# skrub takes a second to import: it is imported where it is needed.

COULD_BE = "the column .* holds dates such as"  # how `describe_dates` begins
WRITE = "Write dates like 2024-03-30"
_UTC = r"Z|UTC|GMT|[+-]00:?00"
_ZONE = re.compile(rf".*\d{{1,2}}:\d{{2}}.*?(?P<zone>{_UTC}|[+-]\d{{2}}:?\d{{2}})\s*")


def dates_in(texts: pd.Series) -> bool:
    """Whether all texts are dates of one format."""
    return _format_of(texts) is not None


def _format_of(texts: pd.Series) -> str | None:
    """The format that all texts have, if they are dates."""
    known = texts.dropna()
    if not len(known) or not any(c.isdigit() for c in str(known.iloc[0])):
        return None  # most categories; this saves importing skrub for them
    from skrub import ToDatetime
    from skrub.core import RejectColumn

    try:
        return ToDatetime().fit(texts).format_
    except RejectColumn:
        return None


def read_dates(column: pd.Series, parser: Any) -> pd.Series:
    """Read by `parser`; texts in a format of their own by that, if all of them have it.

    Raises:
        InputError: a format of their own in which the day or the month may come first.
    """
    given = without_zone(column)
    texts = given.dtype == object
    if texts and parser.format_ is None:  # it was fitted on datetime64
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats; what cannot be read is refused
            dates = pd.Series(pd.to_datetime(given, utc=True, errors="coerce"))
    else:
        dates = parser.transform(given)
    if texts and (parser.format_ is None or (dates.isna() & given.notna()).any()):
        own = _format_of(given)
        if own is not None and (both := _both_ways(given, own)) is not None:
            raise InputError(
                f"the column {column.name!r} holds dates such as {both}, and those of the training "
                "rows are written otherwise: day and month cannot be told. Write them as they are "
                "there, or like 2024-03-30."
            )
        if own is not None:
            dates = _read(given, own)
    dates = dates.dt.tz_convert(None) if dates.dt.tz is not None else dates
    if parser.format_ is None:
        return parser.transform(dates)
    if parser.output_time_zone_ is not None:
        return dates
    # Texts stay texts, all of one format, which the pipeline finds again.
    return dates.dt.strftime(parser.format_).astype(object).where(dates.notna(), np.nan)


def without_zone(column: pd.Series) -> pd.Series:
    """Dates as datetime64 in UTC, without the zone; texts as they are."""
    if not pd.api.types.is_datetime64_any_dtype(column):
        column = column.astype(object).where(column.notna(), None)
        if any(isinstance(value, str) for value in column):
            return column
    return pd.Series(pd.to_datetime(column, utc=True)).dt.tz_localize(None)


def describe_dates(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A sentence per column whose days and months could be exchanged, or that has zones in part.

    The first table decides how its dates are read; with days up to 12 alone, it says nothing of what
    comes first.

    Raises:
        InputError: another table says that the first one is read wrongly.
    """
    first, *others = tables
    said = []
    for c in tables[first].columns:
        columns = {name: pd.Series(table[c]) for name, table in tables.items() if c in table}
        zones = {name: _zone_of(column) for name, column in columns.items()}
        if {"zone", "none"} <= {*zones.values()}:
            have, lack = (
                ", ".join(name for name, zone in zones.items() if zone == wanted)
                for wanted in ("zone", "none")
            )
            said.append(
                f"the column {str(c)!r} has times with a time zone in {have} and without one in "
                f"{lack}: those without are taken for UTC"
            )
        own = _texts(columns[first])
        format = _format_of(own)
        both = None if format is None else _both_ways(own, format)
        if format is None or both is None:
            continue
        texts = {name: distinct for name, x in columns.items() if len(distinct := _texts(x))}
        other = _swapped(format)
        by = {n: (_fit(texts[n], format), _fit(texts[n], other)) for n in others if n in texts}
        if told := [name for name, (one, two) in by.items() if two and not one]:
            raise InputError(
                f"the column {str(c)!r} holds dates such as {both} in {first}, and in "
                f"{', '.join(told)} day and month stand in the other order. {WRITE} in all tables."
            )
        if any(one and not two for one, two in by.values()):
            continue
        which = "day" if format.startswith("%d") else "month"
        said.append(
            f"the column {str(c)!r} holds dates such as {both}: the {which} is taken to come first; "
            f"{WRITE[0].lower()}{WRITE[1:]} where it does not"
        )
    return said


def _texts(column: pd.Series) -> pd.Series:
    """The distinct texts of a column of nothing but texts; none of any other."""
    kinds = pd.api.types
    if kinds.is_numeric_dtype(column) or kinds.is_datetime64_any_dtype(column):
        return pd.Series(dtype=object)
    with contextlib.suppress(TypeError):  # of lists and maps
        distinct = pd.Series(column.dropna().unique()).astype(object)
        if all(isinstance(x, str) for x in distinct):
            return distinct
    return pd.Series(dtype=object)


def _zone_of(column: pd.Series) -> str | None:
    """Of dates and times "zone", "UTC", or "none"; None of what is neither."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return "UTC" if str(column.dtype.tz) in ("UTC", "tzutc()", "UTC+00:00") else "zone"
    if pd.api.types.is_datetime64_any_dtype(column):
        return "none"
    if pd.api.types.is_numeric_dtype(column):
        return None
    known = column.notna().to_numpy()
    one = column.iloc[int(np.argmax(known))] if known.any() else None
    if isinstance(one, datetime.datetime):
        return "none" if one.tzinfo is None else "zone" if one.utcoffset() else "UTC"
    if not isinstance(one, str) or not dates_in(pd.Series([one])):
        return None
    found = _ZONE.fullmatch(one)
    return "none" if found is None else "UTC" if re.fullmatch(_UTC, found["zone"]) else "zone"


def _swapped(format: str) -> str:
    """Day and month exchanged, where the format begins with either of them."""
    if not format.startswith(("%d", "%m")) or not {"%d", "%m"} <= set(re.findall("%.", format)):
        return format
    return format.replace("%d", "\0").replace("%m", "%d").replace("\0", "%m")


def _read(texts: pd.Series, format: str) -> pd.Series:
    return pd.Series(pd.to_datetime(texts, format=format, errors="coerce", utc=True))


def _fit(texts: pd.Series, format: str) -> bool:
    return bool(_read(texts, format).notna().all())


def _both_ways(texts: pd.Series, format: str) -> str | None:
    """A text, quoted, that is another date with day and month exchanged, if all can be read so."""
    other = _swapped(format)
    distinct = pd.Series(texts.dropna().unique())
    if other == format or not len(distinct):
        return None
    one, two = _read(distinct, format), _read(distinct, other)
    if two.isna().any() or not (differ := (one != two).to_numpy()).any():
        return None
    return repr(distinct[int(np.argmax(differ))])


# --- times


def read_times(columns: Mapping[str, Any], what: str) -> dict[str, pd.Series]:
    """Times of several tables that can be compared: numbers as they are, or dates in UTC.

    Texts of all tables are read in one way, so that 03/04/2024 means the same in all rows; gaps stay.

    Args:
        columns: by the name of the table.
        what: how messages name the argument.

    Raises:
        InputError: neither numbers nor dates, or numbers in one table and dates in another one.
    """
    found = {name: _numbers_dates_or_texts(column, what) for name, column in columns.items()}
    texts = {name: x for name, x in found.items() if x.dtype == object}
    if texts:
        dates = _read_all(pd.concat(list(texts.values()), ignore_index=True), what)
        ends = np.cumsum([len(x) for x in texts.values()])
        for name, end in zip(texts, ends, strict=True):
            part = dates.iloc[end - len(texts[name]) : end]
            found[name] = part.reset_index(drop=True)
    if {"zone", "none"} <= {_zone_of(pd.Series(column).dropna()) for column in columns.values()}:
        warnings.warn(
            f"`{what}` has a time zone in one table and none in another: times without one are taken "
            "for UTC.",
            UserWarning,
            stacklevel=5,
        )
    kinds = {pd.api.types.is_numeric_dtype(x) for x in found.values()}
    if len(kinds) > 1:
        raise InputError(
            f"`{what}` must hold numbers or dates, of one kind in all tables; one has numbers, and "
            "another one has dates."
        )
    return found if kinds == {True} else dict(zip(found, _in_one_unit(found.values()), strict=True))


def _in_one_unit(columns: Any) -> Iterator[pd.Series]:
    """Dates in nanoseconds, or in microseconds where one is too far for that, such as 9999-12-31."""
    dates = [pd.Series(x) for x in columns]
    try:
        yield from [x.dt.as_unit("ns") for x in dates]
    except pd.errors.OutOfBoundsDatetime:
        yield from [x.dt.as_unit("us") for x in dates]


def _numbers_dates_or_texts(column: Any, what: str) -> pd.Series:
    """Numbers, dates in UTC, or texts as objects.

    Raises:
        InputError: anything else.
    """
    values = pd.Series(settled(column)).reset_index(drop=True)
    values = values.infer_objects() if values.dtype == object else values
    kinds = pd.api.types
    if isinstance(values.dtype, pd.PeriodDtype):
        values = values.dt.to_timestamp()
    if kinds.is_timedelta64_dtype(values):
        return values.dt.as_unit("ns").astype("int64")
    if kinds.is_numeric_dtype(values) and not kinds.is_bool_dtype(values):
        return values
    present = values.dropna()
    if kinds.is_string_dtype(present) and all(isinstance(x, str) for x in present):
        return values.astype(object)
    try:
        if kinds.is_bool_dtype(values) or any(isinstance(x, numbers.Number) for x in present):
            raise TypeError("it holds other values too")
        return pd.Series(pd.to_datetime(values, utc=True))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`{what}` must hold numbers or dates, of one kind in all tables: {error}."
        ) from error


def _read_all(texts: pd.Series, what: str) -> pd.Series:
    """Dates in UTC, in the one format that all texts have, or as pandas reads them."""
    distinct = pd.Series(texts.dropna().unique()).astype(object)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats; what cannot be read is refused
            format = _format_of(distinct)
            if format is None and len({_ZONE.fullmatch(x) is not None for x in distinct}) == 1:
                format = "ISO8601"  # with hours in part
            dates = pd.Series(pd.to_datetime(texts, utc=True, format=format))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`{what}` must hold numbers or dates, and its texts are not dates of one format: "
            f"{named(list(distinct))}. Write them like 2024-03-30 or 2024-03-30T12:00."
        ) from error
    if format is not None and (both := _both_ways(distinct, format)) is not None:
        which = "day" if format.startswith("%d") else "month"
        warnings.warn(
            f"`{what}` holds dates such as {both}: the {which} is taken to come first. {WRITE} where "
            "it does not.",
            UserWarning,
            stacklevel=6,
        )
    return dates
