"""Checks of rows: those that tables share, that repeat, and equal ones with different labels."""

from typing import Any

import numpy as np
import pandas as pd

from .._inputs import checks
from .._inputs.checks import PROSE
from .duplicates import COMMON, group_conflicts, group_equal
from .finding import Finding, Severity, counted, listed
from .view import View

LIKENESS = {
    "near": "in their numbers",
    "cell": "in all columns but one",
    "text": "in most of a text",
}


def shared_rows(view: View) -> list[Finding]:
    """Rows that stand in two tables, exactly or nearly."""
    return [finding for pair in view.between() for finding in _overlap(view, *pair)]


def _overlap(view: View, one: str, other: str) -> list[Finding]:
    title = f"{PROSE[one]} rows among the {PROSE[other]} rows"
    shared, ids, others = (view.pairs[one, other], view.tables[one].ids, view.tables[other].ids)
    row, place = shared["row"].to_numpy(), shared["other"].to_numpy()
    differ = _differ(view, one, other, shared)
    kind, note = shared["kind"].to_numpy(), shared.attrs["note"]
    remove = f"Remove them from the {PROSE[one]} rows, unless distinct rows can be so alike."
    kinds: list[tuple[np.ndarray, Severity, str, str]] = [
        (kind == "exact", "problem", "equal to", "a row must not judge itself"),
        (kind == "near", "warning", "nearly equal to", f"perhaps copies; {note}"),
        (kind == "cell", "warning", "but for one cell equal to", _copies(shared)),
        (kind == "text", "warning", "with nearly the text of", "perhaps copies"),
    ]
    found = []
    if (alike := kind == "common").any():
        detail = (
            f"{counted(row[alike], PROSE[one] + ' row')} equal to a {PROSE[other]} row, but so many "
            "rows are equal that chance explains it: the columns do not tell them apart."
        )
        found.append(Finding("warning", title, detail, table=one))
    for which, severity, what, why in kinds:
        if which.any():
            at_fault = tuple(ids[row[which]])
            detail = (
                f"{counted(at_fault, PROSE[one] + ' row')} {what}"
                f" a {PROSE[other]} row ({why}), {int(differ[which].sum())} with another label: "
                f"{listed(at_fault)} (there: {listed(others[place[which]])}). {remove}"
            )
            found.append(Finding(severity, title, detail, at_fault, table=one))
    return found or [Finding("ok", title, f"none ({note}).")]


def _copies(pairs: pd.DataFrame) -> str:
    """What is said of rows that are equal but for one cell."""
    usual = pairs.attrs["by_chance"]
    if not usual:
        return "perhaps copies"
    return f"chance explains about {usual:.0f}, so the others are perhaps copies"


def _differ(view: View, one: str, other: str, pairs: pd.DataFrame) -> np.ndarray:
    """Whether the labels of each pair of rows differ; with a missing one they do not."""
    a, b = (
        view.labels[name].to_numpy(dtype=object)[pairs[column].to_numpy()]
        for name, column in ((one, "row"), (other, "other"))
    )
    return (a != b) & ~pd.isna(a) & ~pd.isna(b)


def shared_ids(view: View) -> list[Finding]:
    """Ids that stand in two tables."""
    found = []
    for one, other in view.between():
        index, others = view.frames[one].index, view.frames[other].index
        if isinstance(index, pd.RangeIndex) or isinstance(others, pd.RangeIndex):
            continue  # they were counted, not given
        title = f"ids of {PROSE[one]} and {PROSE[other]} rows"
        ids = tuple(checks.shared_ids(index.dropna().unique(), others.dropna()))
        if not ids:
            found.append(Finding("ok", title, "no id occurs in both."))
            continue
        detail = (
            f"{counted(ids, 'id')} in both tables: {listed(ids)}. If they name the same thing, "
            f"remove it from the {PROSE[one]} rows; if not, give the tables distinct ids."
        )
        found.append(Finding("warning", title, detail, ids, table=one))
    return found


def repeated_ids(view: View) -> list[Finding]:
    """Ids of several rows of one table."""
    found = []
    for name, frame in view.frames.items():
        index = frame.index
        if ids := tuple(index[index.duplicated() & index.notna()].unique()):
            detail = f"{counted(ids, 'id')} of several rows: {listed(ids)}. Give each row its own."
            title = f"ids of the {PROSE[name]} rows"
            found.append(Finding("warning", title, detail, ids, table=name))
    return found


def missing_ids(view: View) -> list[Finding]:
    """Rows without an id, where others have one."""
    found = []
    for name, frame in view.frames.items():
        places = tuple(np.flatnonzero(frame.index.isna()).tolist())
        if places:
            detail = (
                f"{counted(places, 'row')} without one, at the places {listed(places)} (the first "
                "row is 0): nobody could find them again. Give every row an id."
            )
            title = f"missing ids of the {PROSE[name]} rows"
            found.append(Finding("problem", title, detail, places, table=name))
    return found


def repeated_rows(view: View) -> list[Finding]:
    """Rows that stand in one table twice."""
    found = []
    for name, table in view.tables.items():
        title = f"repeated {PROSE[name]} rows"
        duplicates, n = group_equal(table.ids, view.codes[name]), len(table.ids)
        later = tuple(duplicates.loc[duplicates["group"].duplicated(), "id"])
        if not later:
            found.append(Finding("ok", title, f"the {n} rows differ from each other."))
            continue
        detail = (
            f"{counted(later, 'row')} ({len(later) / n:.1%}) equal to an earlier row: "
            f"{listed(later)}. Each of them counts again; remove them unless they were measured "
            "again, or distinct rows can be so alike."
        )
        found.append(Finding("warning", title, detail, later, table=name))
    return found


def near_rows(view: View) -> list[Finding]:
    """Training rows that are nearly equal to an earlier one."""
    title, pairs = "nearly equal training rows", view.pairs["train", "train"]
    ids = view.tables["train"].ids
    if not len(pairs):
        return [Finding("ok", title, f"none ({pairs.attrs['note']}).")]
    found = []
    for kind, rows in pairs.groupby("kind", sort=False):
        later = tuple(ids[rows["row"].to_numpy()])
        detail = (
            f"{counted(later, 'row')} equal to an earlier row {LIKENESS[str(kind)]}: {listed(later)} "
            f"(earlier: {listed(ids[rows['other'].to_numpy()])}). Perhaps they are copies: remove "
            "them, unless distinct rows can be so alike."
        )
        found.append(Finding("warning", title, detail, later))
    return found


def conflicts(view: View) -> list[Finding]:
    """Equal rows of one table with different labels.

    Where more than 5 rows of all tables are equal, the columns do not tell the classes apart, and no
    row is at fault.
    """
    found = []
    counts = np.bincount(np.concatenate([*view.codes.values()]))
    for name, table in view.tables.items():
        title = f"equal {PROSE[name]} rows with different labels"
        codes, labels = view.codes[name], view.labels[name]
        common = counts[codes] > COMMON
        few, many = (
            group_conflicts(table.ids[rows], codes[rows], pd.Series(labels[rows]), view.regression)
            for rows in (~common, common)
        )
        if len(few):
            detail, ids = _at_odds(few)
            detail += " At least one label is wrong, unless distinct rows can be so alike"
            detail += (
                ": weights will tell which."
                if name == "train"
                else ", and these must be right: verify them."
            )
            severity: Severity = "warning" if name == "train" else "problem"
            found.append(Finding(severity, title, detail, ids, table=name))
        if len(many):
            detail = (
                f"{_at_odds(many)[0]} More than {COMMON} rows are equal in each group: the columns do "
                "not tell the classes apart there. Add columns that do, if there are any."
            )
            found.append(Finding("warning", title, detail, table=name))
        if not len(few) + len(many):
            found.append(Finding("ok", title, "none."))
    return found


def _at_odds(groups: pd.DataFrame) -> tuple[str, tuple[Any, ...]]:
    """(what is said of groups of equal rows, their ids)."""
    ids, first = tuple(i for group in groups["ids"] for i in group), groups.iloc[0]
    detail = (
        f"{counted(groups, 'group')} of together {len(ids)} rows; the rows "
        f"{listed(first['ids'])} are labelled {listed(first['labels'])}."
    )
    if "spread" in groups:
        detail += f" The targets of equal rows differ by up to {first['spread']:.4g}."
    return detail, ids


def near_conflicts(view: View) -> list[Finding]:
    """Rows that are nearly equal, in one table or in two, with different labels.

    Rows that agree in all columns but one are left out: that column may be what tells them apart.
    """
    if view.regression:  # targets of rows that are nearly equal may differ
        return []
    found, title = [], "nearly equal rows with different labels"
    for one, other in (("train", "train"), *view.between()):
        everything: Any = view.pairs[one, other]
        pairs: Any = everything[
            everything["kind"].isin(["near", "text"]) & _differ(view, one, other, everything)
        ]
        if not len(pairs):
            continue
        ids = tuple(view.tables[one].ids[pairs["row"].to_numpy()])
        beside = tuple(view.tables[other].ids[pairs["other"].to_numpy()])
        labels = [
            view.labels[name].iloc[int(pairs[column].iloc[0])]
            for name, column in ((one, "row"), (other, "other"))
        ]
        where = f"{PROSE[one]} rows beside {PROSE[other]} rows" if one != other else "training rows"
        detail = (
            f"{counted(ids, 'pair')} of {where}: {listed(ids)} (with {listed(beside)}); the first "
            f"two are labelled {listed(labels)}. One label of each pair is probably wrong: look at "
            "them."
        )
        found.append(Finding("warning", title, detail, ids, table=one))
    return found or [Finding("ok", title, "none.")]
