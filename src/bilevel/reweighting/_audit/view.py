"""The tables as the checks see them: made once, and read by all checks."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .._inputs.checks import PROSE, InputError, as_vector
from .._inputs.prepare import is_regression
from .duplicates import Table, as_frame, as_labels, encode, match_rows, row_codes, scale
from .finding import listed
from .near import altered_rows, near_within

PAIRS = (("train", "trusted"), ("train", "holdout"), ("trusted", "holdout"))


class View(NamedTuple):
    """What the checks look at; the keys are "train", and "trusted" and "holdout" where they are given.

    Attributes:
        frames: the rows, without the columns of entities and times.
        labels: as they are compared: what is missing or infinite is missing.
        given: the labels as they were given.
        tables: the columns that all frames share, as numbers.
        codes: a number for each distinct row.
        pairs: of two tables, the rows of the first that occur in the second: `row`, `other`,
            `distance`, and the `kind` of likeness: "exact", "common" (equal, as chance explains),
            "near" (numbers), "cell" (all columns but one) or "text"; `attrs["note"]`;
            `attrs["by_chance"]`: how many of kind "cell" chance explains. Of ("train", "train"):
            those that are nearly equal.
        entity, time: the columns that say of which person, and of when a row is, by table.
        regression: whether the labels are numbers to be predicted.
        rng: for the rows that a check draws.
    """

    frames: dict[str, pd.DataFrame]
    labels: dict[str, pd.Series]
    given: dict[str, pd.Series]
    tables: dict[str, Table]
    codes: dict[str, Int[np.ndarray, " rows"]]
    pairs: dict[tuple[str, str], pd.DataFrame]
    entity: dict[str, pd.Series]
    time: dict[str, pd.Series]
    regression: bool
    rng: np.random.Generator

    def between(self) -> list[tuple[str, str]]:
        """The pairs of tables that there are."""
        return [pair for pair in PAIRS if self.tables.keys() >= set(pair)]


def make_view(
    given: dict[str, tuple[Any, Any]], task: str, entity: str | None, time: str | None, seed: int
) -> View:
    """Check the tables, and make of them what the checks look at.

    Raises:
        InputError: see `audit`.
    """
    frames = {name: as_frame(rows) for name, (rows, _) in given.items()}
    for name, frame in frames.items():
        if len(frame) == 0:
            raise InputError(
                f"there are zero {PROSE[name]} rows; nothing can be learned from them."
            )
    labels = {
        name: as_labels(values, frames[name], f"{PROSE[name]} labels")
        for name, (_, values) in given.items()
    }
    raw = {name: pd.Series(as_vector(values)) for name, (_, values) in given.items()}
    beside: list[dict[str, pd.Series]] = []
    for column, option in ((entity, "entity"), (time, "time")):
        lacking = [PROSE[name] for name, frame in frames.items() if column not in frame.columns]
        if column is not None and lacking:
            raise InputError(
                f"the {lacking[0]} rows have no column {column!r} (`{option}`); their columns are "
                f"{listed(frames['train'].columns, 20)}."
            )
        beside.append(
            {} if column is None else {n: pd.Series(f[column]) for n, f in frames.items()}
        )
    frames = {
        name: frame.drop(columns=[c for c in (entity, time) if c is not None])
        for name, frame in frames.items()
    }
    common = [c for c in frames["train"].columns if all(c in f.columns for f in frames.values())]
    if not common:
        raise InputError("the tables have no column in common; check that they belong together.")
    shared = [pd.DataFrame(f[common]) for f in frames.values()]
    tables = dict(zip(frames, encode(*shared), strict=True))
    codes = dict(zip(tables, row_codes(*tables.values()), strict=True))
    pairs = {}
    for one, other in PAIRS:
        if one in tables and other in tables:
            found = match_rows(tables[one], tables[other], codes[one], codes[other])
            more = altered_rows(tables[one], tables[other], frames[one], frames[other])
            pairs[one, other] = _together(found, more)
    within = near_within(tables["train"], codes["train"])
    more = altered_rows(tables["train"], None, frames["train"], None)
    pairs["train", "train"] = _together(within, more)
    return View(
        frames,
        labels,
        raw,
        tables,
        codes,
        pairs,
        beside[0],
        beside[1],
        is_regression(task, labels["train"].dropna()),
        np.random.default_rng(seed),
    )


def _together(found: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Pairs of several searches; of each row the first."""
    both = pd.concat([found, more], ignore_index=True).drop_duplicates("row")
    both = both.sort_values("row", ignore_index=True)
    both.attrs["note"] = found.attrs["note"]
    both.attrs["by_chance"] = more.attrs["by_chance"]
    return both


def as_matrix(tables: list[Table], rng: np.random.Generator) -> list[Float[np.ndarray, "n k"]]:
    """Tables as the numbers that a linear model takes: scaled, gaps marked, frequent texts as 0, 1."""
    sizes = np.cumsum([len(t.ids) for t in tables])[:-1]
    gaps = np.concatenate([~np.isfinite(t.numbers) for t in tables]).astype(float)
    x = [np.concatenate(scale(tables, rng)), gaps[:, np.ptp(gaps, axis=0) > 0]]
    for column in np.concatenate([t.codes for t in tables]).T:
        value, count = np.unique(column, return_counts=True)
        x.append(column[:, None] == value[np.argsort(-count)[:20]])
    return np.split(np.hstack(x), sizes)
