"""`--pred-probs`: probabilities of the user's own model, from a file or from columns of the tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..reweighting._inputs.checks import InputError, named
from ..reweighting._inputs.files import is_table, read_table, suggest
from ._weigh_config import WeighConfig


def columns_of(given: str | None) -> list[str] | None:
    """The names of columns in `--pred-probs`; None if it is a file, or was not given."""
    if given is None or is_file(given):
        return None
    return [column.strip() for column in given.split(",")]


def is_file(given: str) -> bool:
    """Whether it ends as a file that is read here does."""
    return given.lower().endswith(".npy") or is_table(Path(given))


def take_columns(
    table: pd.DataFrame, columns: Sequence[str], name: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the table without the columns of probabilities, these columns).

    Raises:
        InputError: a column is missing.
    """
    for column in columns:
        if column not in table.columns:
            raise InputError(
                f"the {name} file has no column {column!r} (--pred-probs); "
                f"{suggest(column, table.columns)}. A file of probabilities ends in .npy, .parquet "
                "or .csv."
            )
    return table.drop(columns=list(columns)), table.loc[:, list(columns)]


def read_probabilities(path: Path, ids: pd.Index, identifier: str | None, option: str) -> Any:
    """The probabilities in a file, in the order of the rows.

    A table that has the column of the ids is matched by them; other files have one line per row, in
    order.

    Args:
        path: `.npy` (one column per class, in sorted order), or a table whose columns are named by the
            classes.
        ids: of the rows that the probabilities are for.
        identifier: the name of the column of ids, if there is one.
        option: what the user wrote the path after.

    Raises:
        InputError: the file cannot be read, or lacks or repeats rows.
    """
    what = f"{option} {path}"
    if path.name.lower().endswith(".npy"):
        if not path.is_file():
            raise InputError(f"the file {path} ({option}) does not exist; check the path.")
        try:
            # Mapped: an array that is not as long as it says is refused before memory is taken.
            values = np.array(np.lib.format.open_memmap(path, mode="r"))
        except Exception as error:  # of many kinds: the header may say anything
            raise InputError(f"{what} cannot be read as .npy: {error}") from error
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise InputError(
                f"{what} must hold a matrix of numbers, one line per row and one column per "
                f"class; got shape {values.shape} of {values.dtype}."
            )
        return _counted(values, len(ids), what)
    table = read_table(path, "probabilities", ids=[identifier] if identifier else []).frame
    if identifier is None or identifier not in table.columns:
        return _counted(table, len(ids), what)
    repeated = table.loc[table[identifier].duplicated(), identifier]
    if len(repeated):
        raise InputError(f"the ids in {what} repeat: {named(list(pd.unique(repeated)))}.")
    table = table.set_index(table[identifier].astype(str)).drop(columns=identifier)
    ids = ids.astype(str)
    missing = ids[~ids.isin(table.index)]
    if len(missing):
        raise InputError(
            f"{what} has no line for {len(missing)} of {len(ids)} rows, those with the ids "
            f"{named(list(missing))}. Give probabilities of every row."
        )
    return table.loc[ids]


def _counted(values: Any, rows: int, what: str) -> Any:
    if len(values) != rows:
        raise InputError(
            f"{what} has {len(values)} lines, and its table {rows} rows. Give one line per row, in "
            "the same order, or a table with the column of the ids (--id)."
        )
    return values


def probability_files(config: WeighConfig) -> dict[str, str]:
    """The files of probabilities that a run reads, by option."""
    given = {name: getattr(config, name) for name in ("pred_probs", "pred_probs_trusted")}
    return {name: path for name, path in given.items() if path is not None and is_file(path)}


def check_options(config: WeighConfig) -> None:
    """`--pred-probs` is two files, or columns of both tables.

    Raises:
        InputError: with the option that is missing or too many.
    """
    one, other = config.pred_probs, config.pred_probs_trusted
    if one is None and other is not None:
        raise InputError("--pred-probs-trusted needs --pred-probs, those of the training rows.")
    if one is None:
        return
    if is_file(one) and other is None:
        raise InputError(
            f"--pred-probs {one} is a file, so the trusted rows need one too: --pred-probs-trusted."
        )
    if not is_file(one) and other is not None:
        raise InputError(
            f"--pred-probs {one} names columns, which the trusted table has too; leave "
            "--pred-probs-trusted out, or give two files (.npy, .parquet, .csv)."
        )
