"""Rows that belong together, or were made at a time: leaks of entities and of times, and proposals."""

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd

from .._inputs.checks import PROSE, InputError
from .._inputs.dates import read_times
from .._inputs.row_facts import hash_names
from .duplicates import Table, is_number, scale
from .finding import Finding, Severity, counted, listed
from .view import View

PAIRS_DRAWN = 2000  # of rows, from which it is told whether rows of one value are alike
CLOSER = 0.8  # their mean distance, in units of that of any two rows
FEWEST = 20  # values of an entity
_ENTITY = re.compile(
    r"(^|[_\W])(patient|subject|person|user|customer|client|account|member|device|sensor|machine|"
    r"document|doc|session|household|family|author|speaker|store|shop|vendor|site|hospital|group|"
    r"entity|case|video|scene|slide|owner|student)([_\W]?(id|no|nr|num|number|key|code|name))?s?$",
    re.IGNORECASE,
)
_TIME = re.compile(r"(date|time|timestamp|year|month|day|_at|_on|when|epoch)$", re.IGNORECASE)
_DATE = re.compile(
    r"\s*(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([ T]\d{1,2}:\d{2}.*)?\s*"
)


def entity_leaks(view: View) -> list[Finding]:
    """Entities, named by the user, with rows in two tables."""
    found = []
    for one, other in view.between() if view.entity else []:
        title = f"entities of {PROSE[one]} and {PROSE[other]} rows"
        names, both, rows = _in_both(view.entity[one], view.entity[other])
        if not both:
            found.append(Finding("ok", title, f"none of the {names} has rows in both tables."))
            continue
        judged = other == "holdout"
        severity: Severity = "problem" if judged else "warning"
        detail = (
            f"{counted(both, 'entity', 'entities')} of {names} with rows in both tables, {rows} of "
            f"the {PROSE[one]} rows: {listed(both)}. "
        )
        detail += (
            "What was learned of them is judged on them: split by entity, or remove these rows from "
            f"the {PROSE[one]} rows."
            if judged
            else "Weigh with --entity, so that rows of one entity judge nothing about each other."
        )
        found.append(Finding(severity, title, detail, tuple(both), table=one))
    return found


def _in_both(one: pd.Series, other: pd.Series) -> tuple[int, list[Any], int]:
    """(how many entities the first table has, those in both, and their rows in the first)."""
    one, other = one.dropna(), other.dropna()
    a = hash_names(one.to_numpy(dtype=object))
    there = np.isin(a, hash_names(other.to_numpy(dtype=object)))
    return len(np.unique(a)), list(pd.unique(one[there])), int(there.sum())


def time_leaks(view: View) -> list[Finding]:
    """Training or trusted rows that are later than the hold-out begins."""
    if not view.time or "holdout" not in view.time:
        return []
    moments = read_times(view.time, "time")
    return [
        _later(moments, view.tables[name].ids, name, "problem")
        for name in ("train", "trusted")
        if name in moments
    ]


def _later(
    moments: dict[str, pd.Series], ids: np.ndarray, name: str, severity: Severity
) -> Finding:
    title = f"times of {PROSE[name]} and hold-out rows"
    begins = moments["holdout"].min()
    late = (moments[name] > begins).to_numpy()
    if not late.any():
        return Finding(
            "ok", title, f"no {PROSE[name]} row is later than {begins}, the first of the hold-out."
        )
    n, at_fault = len(late), tuple(ids[late])
    detail = (
        f"{counted(at_fault, PROSE[name] + ' row')} ({len(at_fault) / n:.1%}) later than {begins}, "
        f"when the hold-out begins: {listed(at_fault)}. A model that is used on what comes later "
        "would not have them: split by time, so that the hold-out is the last part."
    )
    return Finding(severity, title, detail, at_fault, table=name)


# --- proposals


def propose_times(view: View) -> list[Finding]:
    """Columns that look like times, if training rows would be later than the hold-out."""
    if view.time or "holdout" not in view.frames:
        return []
    found = []
    for column in view.frames["train"].columns:
        columns = {n: pd.Series(f[column]) for n, f in view.frames.items() if column in f.columns}
        if len(columns) < len(view.frames) or not all(
            _looks_like_time(c) for c in columns.values()
        ):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nobody has said that it is a time
                moments = read_times(columns, "time")
        except InputError:
            continue
        one = _later(moments, view.tables["train"].ids, "train", "warning")
        if one.severity != "ok":
            detail = f"{listed([column])} looks like a time: {one.detail} Give it as --time then."
            found.append(Finding("warning", "a column that looks like a time", detail, (column,)))
    return found


def _looks_like_time(column: pd.Series) -> bool:
    """Dates, texts that are dates, or numbers of seconds or years in a column of such a name."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return True
    present = column.dropna()
    if len(present) == 0 or present.nunique() < 3:
        return False
    if is_number(column):
        x = present.to_numpy(float)
        by_name = _TIME.search(str(column.name)) is not None
        low, high = x.min(), x.max()
        return by_name and (
            (low >= 1900 and high <= 2100 and bool((x == np.round(x)).all()))
            or any(low >= 1e8 * k and high <= 4e9 * k for k in (1, 1e3, 1e6, 1e9))
        )
    some = present.astype(str).head(500)
    return bool(some.map(lambda x: _DATE.fullmatch(x) is not None).mean() > 0.95)


def propose_entities(view: View) -> list[Finding]:
    """Columns that look like the name of an entity, if entities have rows in two tables.

    Such a column has 20 values or more, of texts or whole numbers, at most half as many as rows, and
    either its name says so, or rows of one value are alike: their mean distance in the other columns
    is below 0.8 of that of any two rows, in a sample by six standard errors, and neighbouring numbers
    are not alike, as they are for an age or a price.
    """
    if view.entity:
        return []
    found = []
    names = list(view.tables)
    for column, values in _candidates(view).items():
        distinct = len(np.unique(values))
        named = _ENTITY.search(str(column)) is not None
        if not named and not _rows_are_alike(view, column, values):
            continue
        sizes = np.cumsum([len(view.tables[name].ids) for name in names])[:-1]
        parts = dict(zip(names, np.split(values, sizes), strict=True))
        shared = {
            (one, other): len(np.intersect1d(parts[one], parts[other]))
            for one, other in view.between()
        }
        shared = {pair: count for pair, count in shared.items() if count}
        if not shared:
            continue
        said = ", ".join(
            f"{count} in {PROSE[one]} and {PROSE[other]} rows"
            for (one, other), count in shared.items()
        )
        why = "its name says so" if named else "rows of one value are alike"
        detail = (
            f"{listed([column])} looks like the name of a person, device or document ({why}): of its "
            f"{distinct} values {said}. Give it as --entity if it is one."
        )
        found.append(Finding("warning", "a column that looks like an entity", detail, (column,)))
    return found


def _candidates(view: View) -> dict[Any, np.ndarray]:
    """By column the values of all tables, one after the other, of those that could name entities."""
    tables = list(view.tables.values())
    first, n = tables[0], sum(len(t.ids) for t in tables)
    found = {}
    for j, name in enumerate(first.number_names):
        x = np.concatenate([t.numbers[:, j] for t in tables])
        if np.isfinite(x).all() and (x == np.round(x)).all():
            found[name] = x
    for j, name in enumerate(first.text_names):
        found[name] = np.concatenate([t.codes[:, j] for t in tables]).astype(float)
    return {name: x for name, x in found.items() if FEWEST <= len(np.unique(x)) <= n / 2}


def _rows_are_alike(view: View, column: Any, values: np.ndarray) -> bool:
    tables = list(view.tables.values())
    rest = [_without(table, column) for table in tables]
    rng = np.random.default_rng(0)
    z = np.concatenate(scale(rest, rng))
    codes = np.concatenate([t.codes for t in rest])
    n = len(values)
    if len(np.unique(values)) < n / 20 or z.shape[1] + codes.shape[1] < 2:
        return False  # so few values are a category

    def distance(i: np.ndarray, k: np.ndarray) -> np.ndarray:
        return np.sqrt(((z[i] - z[k]) ** 2).sum(axis=1) + (codes[i] != codes[k]).sum(axis=1))

    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order][1:] == values[order][:-1])
    if len(same) < 30:
        return False
    some = rng.permutation(same)[:PAIRS_DRAWN]
    within = distance(order[some], order[some + 1])
    i = rng.integers(n, size=PAIRS_DRAWN)
    any_two = distance(i, (i + rng.integers(1, n, size=PAIRS_DRAWN)) % n)
    error = np.sqrt(within.var() / len(within) + any_two.var() / len(any_two))
    usual = any_two.mean()
    if not (within.mean() < CLOSER * usual and within.mean() < usual - 6 * error):
        return False
    steps = np.flatnonzero(values[order][1:] != values[order][:-1])
    some = rng.permutation(steps)[:PAIRS_DRAWN]
    neighbours = distance(order[some], order[some + 1])
    return column in tables[0].text_names or bool(neighbours.mean() > 0.9 * usual)


def _without(table: Table, column: Any) -> Table:
    numbers = [j for j, name in enumerate(table.number_names) if name != column]
    texts = [j for j, name in enumerate(table.text_names) if name != column]
    return table._replace(numbers=table.numbers[:, numbers], codes=table.codes[:, texts])
