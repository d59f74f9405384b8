"""Checks of columns: names and kinds, numbers, and columns that hold nothing to learn."""

import re
from typing import Any

import numpy as np
import pandas as pd

from .._inputs.checks import LARGEST, PROSE
from .._inputs.columns import number_texts
from .._inputs.number_texts import FATE
from .._inputs.scalars import spelled_alike
from .duplicates import is_number
from .finding import Finding, counted, listed
from .view import View

FEWEST = 50  # rows from which a column can be told to name them
CATEGORIES = 200  # distinct values up to which a column of text holds categories
_COMMA = re.compile(r"\s*[+-]?\d{1,3}(\.?\d{3})*,\d+\s*|\s*[+-]?\d+\s*")
_HASH = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{16,}")
_INDEX = re.compile(
    r"(Unnamed: \d+(\.\d+)*|__index_level_\d+__|level_\d+|index|row_?(id|number)?)?"
)


def names(view: View) -> list[Finding]:
    """Columns that tables lack, and columns of numbers in one table and of text in another."""
    train, title = view.frames["train"], "columns"
    found = []
    for name, frame in list(view.frames.items())[1:]:
        missing = [c for c in train.columns if c not in frame.columns]
        extra = [c for c in frame.columns if c not in train.columns]
        if missing or extra:
            parts = [f"the {PROSE[name]} rows lack {listed(missing)}"] * bool(missing)
            parts += [f"only the {PROSE[name]} rows have {listed(extra)}"] * bool(extra)
            detail = "; ".join(parts) + ". Mend the names, or drop these columns."
            found.append(Finding("problem", title, detail, (*missing, *extra), table=name))
        common = [c for c in train.columns if c in frame.columns]
        mixed = [
            c
            for c in common
            if {is_number(pd.Series(f[c])) for f in (train, frame)} == {True, False}
        ]
        if mixed:
            detail = (
                f"{counted(mixed, 'column')} of numbers in one and text in the other of training and "
                f"{PROSE[name]} rows: {listed(mixed)}. Look for stray text (a decimal comma, 'n/a')."
            )
            found.append(Finding("warning", title, detail, tuple(mixed), table=name))
    detail = f"all tables have the same {train.shape[1]} columns, of the same kinds."
    return found or [Finding("ok", title, detail)]


def numbers(view: View) -> list[Finding]:
    """Numbers that nothing can be computed with."""
    found = []
    for name, frame in view.frames.items():
        values = frame.select_dtypes("number")
        if is_number(view.given[name]):
            values = values.assign(**{"the label": view.given[name].to_numpy()})
        large = np.abs(values.to_numpy(dtype=np.float64, na_value=np.nan)) > LARGEST
        ids = tuple(np.asarray(frame.index)[large.any(axis=1)].tolist())
        if not ids:
            continue
        columns = [str(c) for c in np.asarray(values.columns)[large.any(axis=0)]]
        detail = (
            f"{counted(ids, 'row')} with infinite or far too large numbers in {listed(columns)}: "
            f"{listed(ids)}. Replace them, or leave them empty."
        )
        title = f"numbers of the {PROSE[name]} rows"
        found.append(Finding("problem", title, detail, ids, table=name))
    return found


def decimal_commas(view: View) -> list[Finding]:
    """Columns of text that are numbers with a decimal comma, which become a class per value."""
    found = []
    for name, frame in view.frames.items():
        columns = []
        for column in view.tables["train"].text_names:
            texts = pd.Series(frame[column]).dropna()
            texts = [x for x in texts.head(1000).tolist() if isinstance(x, str)]
            fits = [x for x in texts if _COMMA.fullmatch(x)]
            if len(fits) >= 0.9 * len(texts) and any("," in x for x in fits):
                columns.append(column)
        if columns:
            detail = (
                f"{counted(columns, 'column')} of numbers with a decimal comma, read as text: "
                f"{listed(columns)}. Convert them: `column.str.replace(',', '.').astype(float)`."
            )
            title = f"decimal commas of the {PROSE[name]} rows"
            found.append(Finding("warning", title, detail, tuple(columns), table=name))
    return found


def texts_of_numbers(view: View) -> list[Finding]:
    """Columns of text that are numbers with something around them, in the training rows."""
    commas = {c for finding in decimal_commas(view) for c in finding.ids}
    texts = pd.DataFrame(view.frames["train"][[*view.tables["train"].text_names]])
    found = {c: text for c, text in number_texts(texts).items() if c not in commas}
    if not found:
        return []
    shown = listed([f"{column} ({text})" for column, text in found.items()])
    detail = (
        f"{counted(list(found), 'column')} of texts that look like numbers: {shown}. Each {FATE}."
    )
    return [Finding("warning", "numbers among the texts", detail, tuple(found), table="train")]


def spelling(view: View) -> list[Finding]:
    """Categories that differ only in what a reader would not take for a difference, in any table.

    Rows of a category that the training rows lack look as if they had none.
    """
    pairs = {}
    for column in view.tables["train"].text_names:
        values = set().union(*(_distinct(pd.Series(f[column])) for f in view.frames.values()))
        if len(values) <= CATEGORIES and (alike := spelled_alike(values)):
            pairs[column] = alike[0][:2]
    if not pairs:
        return []
    shown = [f"{column!r} ({a!a} and {b!a})" for column, (a, b) in pairs.items()]
    more = f" and {len(shown) - 6} more" * (len(shown) > 6)
    detail = (
        f"{counted(list(pairs), 'column')} with categories that differ only in case, in spaces, or "
        f"in what cannot be seen: {', '.join(shown[:6])}{more}. "
        "Models take them for different things: give each one spelling."
    )
    return [Finding("warning", "spelling in the columns", detail, tuple(pairs))]


def _distinct(column: pd.Series) -> list[Any]:
    try:
        return column.dropna().unique().tolist()
    except TypeError:  # lists and maps
        return []


def constant(view: View) -> list[Finding]:
    """Columns with one value."""
    table = view.tables["train"]
    columns = [*table.number_names, *table.text_names]
    values = np.hstack([table.numbers, table.codes])
    same = ((values == values[:1]) | (np.isnan(values) & np.isnan(values[:1]))).all(axis=0)
    at_fault = tuple(name for name, s in zip(columns, same, strict=True) if s)
    if not at_fault:
        return [Finding("ok", "constant columns", "none.")]
    detail = (
        f"{counted(at_fault, 'column')} with one value in all training rows: {listed(at_fault)}. "
        "Nothing can be learned from them: drop them, or find out why they are constant."
    )
    return [Finding("warning", "constant columns", detail, at_fault)]


def row_numbers(view: View) -> list[Finding]:
    """Columns that count the rows: an index that was saved with the table."""
    table = view.tables["train"]
    columns = [
        name
        for j, name in enumerate(table.number_names)
        if counts_rows(table.numbers[:, j])
        or (_INDEX.fullmatch(str(name)) and _names_rows_by_number(table.numbers[:, j]))
    ]
    if not columns:
        return []
    detail = (
        f"{counted(columns, 'column')} that number the rows: {listed(columns)}. A model would learn "
        "the order of the file: drop them, or give one as --id."
    )
    return [Finding("warning", "row numbers among the columns", detail, tuple(columns))]


def identifiers(view: View) -> list[Finding]:
    """Columns with another value in each row, which name the rows."""
    table, frame = view.tables["train"], view.frames["train"]
    columns = [
        name
        for j, name in enumerate(table.number_names)
        if _names_rows_by_number(table.numbers[:, j]) and not counts_rows(table.numbers[:, j])
    ]
    for j, name in enumerate(table.text_names):
        code = table.codes[:, j]
        if len(code) >= FEWEST and (code >= 0).all() and len(np.unique(code)) == len(code):
            texts = pd.Series(frame[name]).astype(str).head(1000)
            if _HASH.fullmatch(texts.iloc[0]) or (
                texts.str.len().median() <= 40 and (~texts.str.contains(" ")).mean() > 0.9
            ):
                columns.append(name)
    if not columns:
        return []
    detail = (
        f"{counted(columns, 'column')} with another value in each row: {listed(columns)}. They name "
        "the rows, and nothing can be learned from names: drop them, or give one as --id."
    )
    return [Finding("warning", "columns that name the rows", detail, tuple(columns))]


def counts_rows(x: np.ndarray) -> bool:
    """Whether a column goes up by one, or down by one, from row to row."""
    step = np.diff(x)
    return len(x) >= FEWEST and bool((step == 1).all() or (step == -1).all())


def _names_rows_by_number(x: np.ndarray) -> bool:
    """Whole numbers, each once, and most of those between the least and the largest.

    That many numbers of a feature that counts something, drawn at random from twice as many, are all
    different with a probability below `2 exp(-n / 4)`.
    """
    if len(x) < FEWEST or not np.isfinite(x).all() or (x != np.round(x)).any():
        return False
    return len(np.unique(x)) == len(x) and bool(np.ptp(x) + 1 <= 2 * len(x))
