"""What is in a run folder: its tables, models and summary, written and read; nothing is unpickled."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from .._storage import DamagedFileError, checksum, read_regular, whole_file, write_bytes, write_text
from .._text import for_spreadsheet, to_json
from ..reweighting._inputs.checks import InputError, named
from ..reweighting._inputs.files import read_parquet
from ..reweighting._weights.result import WeightsResult
from ._run_folder import CONFIG, FILES, LOCK, PASSING, SUMMARY
from ._weigh_config import LARGEST_TEXT, odd_settings, read_toml

WORST = 1000  # rows in worst.csv
PAGE = "report.html"
TASKS = ("auto", "classification", "regression")


def read_settings(run: Path) -> dict[str, Any]:
    """What is in the `config.toml` of a run, which may be a private one.

    Raises:
        InputError: it is no run folder.
    """
    path = run / CONFIG
    if not path.is_file():
        raise InputError(f"{run} is not a run folder of `bilevel weigh`: it has no config.toml.")
    return read_toml(path)


def tables_of(run: Path) -> list[str]:
    """The tables that a run was made from.

    Raises:
        InputError: as `read_config`.
    """
    config = read_config(run)
    return [config[name] for name in ("train", "trusted", "holdout") if name in config]


def read_config(run: Path) -> dict[str, Any]:
    """The settings of a run that is not private, from its `config.toml`.

    Raises:
        InputError: it is no run folder, it is private, or the file is not the one that the run wrote.
    """
    path, config = run / CONFIG, read_settings(run)
    if config.get("private") is True:
        raise InputError(
            f"the run in {run} is private: it keeps no models, nor names of files, columns or rows. "
            "Its page is report.html; for more, weigh without --private."
        )
    if missing := sorted({"train", "label", "trusted", "task", "seed", "sha256"} - config.keys()):
        raise InputError(
            f"{run} is not a run folder of `bilevel weigh`: its config.toml has no {named(missing)}."
        )
    sums = config["sha256"]
    wrong = set(odd_settings(config))
    if not isinstance(sums, dict) or not {"train", "trusted"} <= sums.keys():
        wrong.add("sha256")
    if config["task"] not in TASKS:
        wrong.add("task")
    if "seed" not in wrong and not 0 <= config["seed"] < 2**32:
        wrong.add("seed")
    if wrong:
        raise InputError(
            f"{path} cannot be used: {named(sorted(wrong))} is not what a run writes there. It was "
            "changed or damaged; bring back a copy, or weigh again."
        )
    return config


def write_summary(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`summary.json`, the last file of a run, with the sha256 sums of the others.

    All but the page, which `bilevel report` writes again from `report.json`.

    Returns:
        The summary with `files`.
    """
    names = sorted(FILES - {SUMMARY, LOCK, *PASSING, PAGE})
    sums = {name: checksum(folder / name) for name in names if (folder / name).is_file()}
    summary = summary | {"files": sums}
    write_json(summary, folder / SUMMARY)
    return summary


def read_summary(run: Path) -> dict[str, Any]:
    """`summary.json`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        found = json.loads(read_regular(run / SUMMARY, LARGEST_TEXT))
    except (OSError, DamagedFileError, ValueError, RecursionError) as error:
        raise InputError(
            f"{run / SUMMARY} cannot be read ({error}): {run} is not a complete run folder of "
            "`bilevel weigh`, or it was damaged."
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise InputError(
            f"{run / SUMMARY} is not the summary of a run: it has no sums of its files."
        )
    return found


def check_unchanged(run: Path, *names: str) -> None:
    """Refuse files of a run that are not those that it wrote.

    Raises:
        InputError: with the file.
    """
    sums = read_summary(run)["files"]
    for name in names:
        path = run / name
        if name not in sums and not path.exists():
            continue
        if not path.is_file():
            raise InputError(f"{path} is missing: bring back a copy of {run}, or weigh again.")
        if name not in sums or checksum(path) != sums[name]:
            raise InputError(
                f"{path} has changed since the run was made: its sha256 sum is not the one in "
                f"{SUMMARY}. Bring back a copy of {run}, or weigh again."
            )


class RowVerdicts(NamedTuple):
    """What a run says of the training rows.

    Attributes:
        ids: an array, or a column of an Arrow table.
        weights, quality, keep, wrong: as in `WeightsResult`.
        given, predicted: labels; None where they are private.
    """

    ids: Any
    weights: np.ndarray
    quality: np.ndarray
    keep: np.ndarray
    wrong: np.ndarray | None
    given: np.ndarray | None
    predicted: np.ndarray | None

    @classmethod
    def of(
        cls, result: WeightsResult, ids: np.ndarray, given: np.ndarray, predicted: np.ndarray
    ) -> "RowVerdicts":
        """Of the rows that the weights were learned from."""
        weights, quality = np.asarray(result.weights), np.asarray(result.label_quality)
        return cls(ids, weights, quality, result.keep, result.wrong, given, predicted)


def write_weights(rows: RowVerdicts, folder: Path) -> None:
    """`weights.parquet`, one line per training row; `worst.csv`, the flagged rows, worst first."""
    rank = pd.Series(rows.weights).rank(ascending=False, method="first").astype(int)
    columns: dict[str, Any] = {
        "id": rows.ids,
        "weight": rows.weights,
        "rank": np.asarray(rank),
        "label_quality": rows.quality,
        "keep": rows.keep,
        **({} if rows.wrong is None else {"wrong": rows.wrong}),
        **({} if rows.given is None else {"given_label": rows.given}),
        **({} if rows.predicted is None else {"predicted_label": rows.predicted}),
    }
    table = pa.table(columns)
    write_parquet(table, folder / "weights.parquet")
    flagged = np.flatnonzero(~rows.keep)
    worst = flagged[np.argsort(rows.quality[flagged], kind="stable")][:WORST]
    write_csv(table.take(worst).drop_columns("rank").to_pandas(), folder / "worst.csv")


def read_quality(run: Path, rows: int) -> np.ndarray:
    """The label quality of the training rows, from `weights.parquet`.

    Raises:
        InputError: it cannot be read, or is not of this run.
    """
    quality = read_verdicts(run, ["label_quality"])["label_quality"]
    if len(quality) != rows:
        raise unusable(run, f"it has {len(quality)} rows, and the training table {rows}")
    return np.asarray(quality, np.float64)


def read_verdicts(run: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """What `write_weights` wrote; `columns=None` is all of it.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    path = run / "weights.parquet"
    if path.is_dir():
        raise InputError(f"{path} is a folder, and no file of a run.")
    try:
        table = read_parquet(path, str(path), columns)
    except InputError as error:
        raise unusable(run, str(error)) from error
    for name, column in table.items():
        kind = pd.api.types
        numbers = name in ("weight", "label_quality", "wrong", "rank")
        if numbers and not (
            kind.is_numeric_dtype(column.dtype) and np.isfinite(np.asarray(column, float)).all()
        ):
            raise unusable(run, f"the column {name!r} must hold finite numbers")
        if name == "keep" and not kind.is_bool_dtype(column.dtype):
            raise unusable(run, "the column 'keep' must hold true or false")
        if not numbers and len(column) and not kind.is_hashable(column.iloc[0]):
            raise unusable(run, f"the column {name!r} must hold one value per row")
    return table


def unusable(run: Path, why: str) -> InputError:
    """What to say of the `weights.parquet` of a run that is not what it was."""
    return InputError(
        f"{run / 'weights.parquet'} cannot be read ({why[:300]}): it is damaged, or does not belong "
        f"to the other files of {run}. Bring back a copy, or weigh again."
    )


def write_csv(table: pd.DataFrame, path: Path, *, verbatim: bool = False) -> None:
    """For a spreadsheet: no cell is a formula, nor becomes two where others separate by `;`.

    With `verbatim`, for programs: cells are what they are.
    """
    safe = table if verbatim else table.map(for_spreadsheet).rename(columns=for_spreadsheet)
    with whole_file(path) as file:
        safe.to_csv(
            file, index=False, quoting=csv.QUOTE_NONNUMERIC, mode="wb", errors="backslashreplace"
        )


def write_parquet(table: pd.DataFrame | pa.Table, path: Path) -> None:
    """Parquet, the whole file or nothing."""
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    with whole_file(path) as file:
        pyarrow.parquet.write_table(table, file)


def write_model(model: Any, path: Path) -> None:
    """A model as a skops file."""
    import skops.io  # which imports all of scikit-learn

    write_bytes(path, skops.io.dumps(model))


def write_json(value: dict[str, Any], path: Path) -> None:
    """Indented, in UTF-8; what is no finite number is null."""
    write_text(path, to_json(value) + "\n")
