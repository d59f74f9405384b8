"""A long table of annotations: who gave which label to which row, checked and as codes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from .checks import InputError, named
from .containers import as_internal
from .scalars import check_scalars, check_spelling, settled


class LongTable(NamedTuple):
    """Annotations whose rows are known.

    Attributes:
        row: the position of the row that each label was given to.
        annotator: who gave it, as the user names them.
        label: the label, as the user writes it.
    """

    row: Int[np.ndarray, " labels"]
    annotator: np.ndarray
    label: np.ndarray


def read_annotations(
    annotations: Any, columns: tuple[str, str, str], ids: np.ndarray, name: str, *, every: bool
) -> LongTable:
    """The columns of a long table, its rows found among `ids`.

    Args:
        annotations: a data frame of any kind, with one line per label.
        columns: the names of its columns: row, annotator, label.
        ids: the names of the rows.
        name: what the argument is called.
        every: whether each row must have a label.

    Raises:
        InputError: no table, or without these columns; gaps; a row that is not there, or of a name
            that several rows have; two labels of one annotator for one row; rows without a label.
    """
    if len(set(columns)) < len(columns):
        raise InputError(
            f"`columns` must name three different columns (row, annotator, label), got "
            f"{named(columns)}."
        )
    names = pd.Index(ids)
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise InputError(
            f"`{name}` finds its rows by the index of the data frame, in which {named(repeated)} "
            "repeat; give each row a name of its own."
        )
    table = as_internal(annotations, name)
    if not isinstance(table, pd.DataFrame):
        raise InputError(
            f"`{name}` must be a table with one line per label and the columns {named(columns)}, got "
            f"{type(annotations).__name__}."
        )
    if missing := [c for c in columns if c not in table.columns]:
        raise InputError(
            f"`{name}` has no column {named(missing)}; it has {named(list(table.columns), 20)}. Give "
            "their names by `columns=(row, annotator, label)`."
        )
    table = table[list(columns)]
    if (gaps := np.asarray(table.isna()).any(axis=1)).any():
        raise InputError(
            f"`{name}` has gaps in the lines {named(np.flatnonzero(gaps))}; leave out a line that has "
            "no label."
        )
    for c in columns:
        check_scalars(table[c], f"the column {c!r} of `{name}`")
    row, annotator, label = (np.asarray(settled(table[c])) for c in columns)
    position = names.get_indexer(row)
    if (unknown := position < 0).any():
        raise InputError(
            f"`{name}` labels the rows {named(pd.unique(row[unknown]))}, which are not there; rows "
            "are named by the index of a data frame, or by their number from 0."
        )
    pairs = pd.DataFrame({"row": row, "annotator": annotator})
    if (twice := pairs.duplicated().to_numpy()).any():
        raise InputError(
            f"`{name}` has more than one label of one annotator for the rows {named(row[twice])}; "
            "keep one."
        )
    if every and len(without := np.setdiff1d(np.arange(len(ids)), position)):
        raise InputError(
            f"the rows {named(np.asarray(ids)[without])} have no line in `{name}`; leave out rows "
            "that nobody labelled, and judge them later by `score_rows`."
        )
    return LongTable(position, annotator, label)


def distinct(columns: Sequence[np.ndarray], what: str) -> np.ndarray:
    """The values of these columns, sorted, each once.

    Raises:
        InputError: texts beside numbers, or texts that look alike.
    """
    check_spelling(*columns, what=f"the {what}")
    values = np.concatenate([column.astype(object) for column in columns])
    texts, others = ([x for x in values if isinstance(x, str) == text] for text in (True, False))
    if texts and others:
        raise InputError(
            f"the {what} are texts in some lines ({named(list(dict.fromkeys(texts)))}) and no texts "
            f"in others ({named(list(dict.fromkeys(others)))}); make them all texts."
        )
    return np.unique(np.concatenate(columns))
