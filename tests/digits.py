"""scikit-learn's digits with corrupted labels, as arrays and as tables on disk.

Every split has the same shapes, and the mixed table encodes to the same number of columns as there
are pixels: all classifications in the suite share one compilation.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from bilevel import datasets, learn_weights

TRAIN, TRUSTED, RATE = 400, 150, 0.4


class Digits(NamedTuple):
    """Noisy training rows, trusted rows, a hold-out, and which training labels are wrong."""

    X: np.ndarray
    y: np.ndarray
    X_trusted: np.ndarray
    y_trusted: np.ndarray
    X_holdout: np.ndarray
    y_holdout: np.ndarray
    wrong: np.ndarray

    @property
    def learnable(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self[:4]

    @property
    def holdout(self) -> tuple[np.ndarray, np.ndarray]:
        return self.X_holdout, self.y_holdout


@functools.cache
def digits(seed: int = 0) -> Digits:
    bunch: Any = load_digits()
    X, y = bunch.data, bunch.target
    order = np.random.default_rng(seed).permutation(len(y))
    train, trusted, rest = np.split(order, [TRAIN, TRAIN + TRUSTED])
    noisy, wrong = datasets.flip_to_different(y[train], RATE, seed=seed)
    return Digits(X[train], noisy, X[trusted], y[trusted], X[rest], y[rest], wrong)


@functools.cache
def learned(method: str = "auto") -> Any:
    """The weights of these rows by `method`, with the hold-out: one result for all tests."""
    data = digits()
    return learn_weights(*data.learnable, holdout=data.holdout, method=method)


def plain_table(X: np.ndarray, y: np.ndarray, first_id: int = 0) -> pd.DataFrame:
    """64 numeric columns, integer labels, text ids."""
    table = pd.DataFrame(X, columns=[f"p{i}" for i in range(64)]).astype(int)
    table.insert(0, "row", [f"r{first_id + i}" for i in range(len(y))])
    return table.assign(digit=y)


def mixed_table(X: np.ndarray, y: np.ndarray, first_id: int = 0) -> pd.DataFrame:
    """Numbers with gaps, a boolean, categories with gaps, text, text labels: 64 encoded columns.

    58 numbers + 1 boolean + 2 flags for columns with gaps, one empty + 3 (text: a, b, missing).
    """
    table = plain_table(X, y, first_id)
    rows = np.arange(len(y))
    table["p10"] = table["p10"].astype(float).mask(rows % 7 == 0)
    table["bright"] = table["p20"] > 8
    table["side"] = np.where(table["p28"] > table["p35"], "a", "b").astype(object)
    table.loc[rows % 5 == 0, "side"] = None
    table["empty"] = np.nan
    table["digit"] = [f"class {k}" for k in y]
    return table.drop(columns=[f"p{i}" for i in (0, 8, 16, 24, 32, 40, 48)])


def write_tables(folder: Path, make=plain_table, suffix: str = ".csv", seed: int = 0) -> list[str]:
    """Write train, trusted and holdout; returns the arguments of `bilevel weigh` but --out."""
    data = digits(seed)
    parts = {
        "train": (data.X, data.y),
        "trusted": (data.X_trusted, data.y_trusted),
        "holdout": data.holdout,
    }
    for k, (name, part) in enumerate(parts.items()):
        write_table(make(*part, first_id=10_000 * k), folder / f"{name}{suffix}")
    return arguments(folder, suffix)


def arguments(folder: Path, suffix: str = ".csv") -> list[str]:
    train, trusted, holdout = (
        str(folder / f"{name}{suffix}") for name in ("train", "trusted", "holdout")
    )
    return ["weigh", train, "--label", "digit", "--trusted", trusted, "--holdout", holdout]


def write_table(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path
