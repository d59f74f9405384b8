"""What the commands check of the columns of their tables."""

from collections.abc import Collection, Iterable
from typing import Any

import pandas as pd

from ..reweighting._inputs.checks import InputError, check_same_columns, named


def check_drop(drop: Iterable[str], columns: Collection[Any]) -> None:
    """Refuse `--drop` of a column that the train file does not have.

    Raises:
        InputError: with the columns.
    """
    if unknown := [c for c in drop if c not in columns]:
        raise InputError(f"the train file has no column {named(unknown)} to --drop.")


def check_same_names(train: pd.DataFrame, other: pd.DataFrame, name: str) -> None:
    """Refuse a table with other columns than the training rows; their order does not matter.

    Raises:
        InputError: with what is missing, and what is too much.
    """
    ordered = [c for c in train.columns if c in other.columns]
    ordered += [c for c in other.columns if c not in train.columns]
    check_same_columns(train, other[ordered], "train", name)
