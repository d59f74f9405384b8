"""Faults planted in real tables: which are found by `bilevel audit`, by tabaudit and by Datalab?

Per table and seed: at most 1000 training rows, 200 trusted rows (or a quarter) and 300 hold-out rows
of a seeded permutation. Faults are planted in variants of the tables, several at once where they do
not touch each other:

- rows: 5 % of the training rows become copies of hold-out rows, as many near copies (numbers times
  1 + 1e-6 z), as many copies with one cell changed, and 10 pairs of nearly equal training rows with
  different labels;
- columns: a copy of the label, a constant, a name of each row, a row number, numbers with a decimal
  comma, and an infinite value;
- labels: one label in 20 in capitals and with a blank; 0 and 1 beside true and false; one class only;
- belonging: three rows per entity, spread over the tables; a tenth of the training rows later than
  the hold-out;
- ids: two gaps; drift: one column of the hold-out shifted by a standard deviation; order: rows sorted
  by label.

A fault is found if a finding of the right check that the clean table does not have names the column,
or nine tenths of the rows; of a program that names no rows, if it counts as many more than before; of
tabaudit a finding of any check will do. False alarms are
problems and warnings on clean tables that are no fact of the table: repeated rows, constant columns
and rare classes are looked up. Wrong labels are planted too, and counted by rows, as are labels that
are called wrong on clean tables, of which nobody knows that all are right: see `_flips.py`.

tabaudit runs with the training rows and the hold-out as its test set, without its checks of label
noise and impact, while `audit` looks for wrong labels too, for most of its time; Datalab gets the
numbers of both tables and the labels. Only faults that their documentation names are counted for
them. `pip install tabaudit cleanlab datasets` beside this; without them their columns are empty.
Tables: see `trees.py`. Results: `results/faults.json`.
"""

import itertools
import re
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _flips import RATE, flips, summary
from _measure import write
from harm import arguments, read

from bilevel.reweighting import audit

TRAIN, TRUSTED, HOLDOUT, SEEDS = 1000, 200, 300, 4
SHARE = 0.05
# The check of each fault, and what tabaudit and Datalab call it, where they look for it.
FAULTS = {
    "copies": ("leak/rows", "duplicates", "near_duplicate"),
    "near copies": ("leak/rows", None, "near_duplicate"),
    "copies with a cell changed": ("leak/rows", None, None),
    "near rows, other label": ("conflicts/near", None, None),
    "label in a column": ("leak/label", "leakage", None),
    "constant": ("columns/constant", "schema", None),
    "row names": ("columns/identifier", "leakage", None),
    "row numbers": ("columns/index", "schema", None),
    "decimal comma": ("columns/decimal-comma", "schema", None),
    "infinite": ("columns/numbers", None, None),
    "spelling": ("labels/spelling", None, None),
    "truth values": ("labels/kinds", None, None),
    "one class": ("labels/classes", None, None),
    "entities": ("leak/entity", None, None),
    "times": ("leak/time", None, None),
    "id gaps": ("ids/gaps", None, None),
    "drift": ("drift/rows", None, None),
    "order": ("order/rows", None, "non_iid"),
}


class Tables:
    """Three tables with labels, and the options for `audit`."""

    def __init__(self, X: pd.DataFrame, y: np.ndarray, order: np.ndarray, trusted: int, train: int):
        cuts = np.split(order, [trusted, trusted + train])
        self.frames = {
            name: X.iloc[rows].reset_index(drop=True)
            for name, rows in zip(("trusted", "train", "holdout"), cuts, strict=True)
        }
        self.labels = {
            name: np.array([f"class {k}" for k in y[rows]], dtype=object)
            for name, rows in zip(("trusted", "train", "holdout"), cuts, strict=True)
        }
        self.options: dict[str, Any] = {}

    def audit(self) -> list[Any]:
        """What `audit` finds, but what is in order."""
        names = ("train", "trusted", "holdout")
        parts = [x for name in names for x in (self.frames[name], self.labels[name])]
        return [f for f in audit(*parts, **self.options).findings if f.severity != "ok"]

    def labelled(self, name: str) -> pd.DataFrame:
        return self.frames[name].assign(the_label=self.labels[name])


Planted = dict[str, set[Any]]


def plant_rows(t: Tables, rng: np.random.Generator) -> Planted:
    train, holdout = t.frames["train"], t.frames["holdout"]
    number = max(3, int(SHARE * len(train)))
    number = min(number, len(holdout) // 3, len(train) // 6)
    places = rng.permutation(len(train))[: 3 * number + 20]
    sources = rng.permutation(len(holdout))[: 3 * number]
    numeric = [k for k, dtype in enumerate(train.dtypes) if pd.api.types.is_float_dtype(dtype)]
    category = pd.CategoricalDtype
    columns = {
        k: column.astype(object if isinstance(column.dtype, category) else column.dtype)
        for k, (_, column) in enumerate(train.items())
    }
    exact, near, cell = np.split(places[: 3 * number], 3)
    for group, source in zip((exact, near, cell), np.split(sources, 3), strict=True):
        for k in columns:
            columns[k].iloc[group] = holdout.iloc[source, k].to_numpy()
        t.labels["train"][group] = t.labels["holdout"][source]
    planted: Planted = {"copies": set(exact.tolist())}
    if len(numeric) >= 3:
        for k in numeric:
            factor = 1 + 1e-6 * rng.normal(size=len(near))
            columns[k].iloc[near] = columns[k].iloc[near].to_numpy() * factor
        planted["near copies"] = set(near.tolist())
    if train.shape[1] >= 5:
        informative = [k for k in columns if columns[k].nunique() > 1]
        for row in cell.tolist():
            k = int(rng.choice(informative))
            others = columns[k].dropna()
            others = others[others != columns[k].iloc[row]]
            columns[k].iloc[row] = others.iloc[int(rng.integers(len(others)))]
        planted["copies with a cell changed"] = set(cell.tolist())
    if len(numeric) >= 3:
        one, other = places[3 * number :][:10], places[3 * number + 10 :]
        for k in columns:
            columns[k].iloc[one] = columns[k].iloc[other].to_numpy()
        for k in numeric:
            columns[k].iloc[one] = columns[k].iloc[one].to_numpy() * (
                1 + 1e-6 * rng.normal(size=len(one))
            )
        classes = np.unique(t.labels["train"])
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            t.labels["train"][a] = rng.choice(classes[classes != t.labels["train"][b]])
        planted["near rows, other label"] = {
            max(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)
        }
    t.frames["train"] = pd.DataFrame({train.columns[k]: column for k, column in columns.items()})
    t.frames["train"] = t.frames["train"].astype(train.dtypes.to_dict())
    return planted


def plant_columns(t: Tables, rng: np.random.Generator) -> Planted:
    first = 0
    for name, frame in t.frames.items():
        n = len(frame)
        codes = pd.factorize(t.labels[name], sort=True)[0]
        frame["later"] = 3.0 * codes + 1
        frame["same"] = 7
        frame["key"] = [f"k{x:08x}" for x in rng.permutation(10 * n)[:n] + 10**6 * (first + 1)]
        frame["Unnamed: 0"] = np.arange(first, first + n)
        frame["comma"] = [f"{x:.3f}".replace(".", ",") for x in rng.normal(size=n)]
        x = rng.normal(size=n)
        x[0] = np.inf if name == "train" else x[0]
        frame["ratio"] = x
        first += n
    return {
        "label in a column": {"later"},
        "constant": {"same"},
        "row names": {"key"},
        "row numbers": {"Unnamed: 0"},
        "decimal comma": {"comma"},
        "infinite": {0},
    }


def plant_spelling(t: Tables, rng: np.random.Generator) -> Planted:
    y = t.labels["train"]
    some = rng.permutation(len(y))[: max(2, len(y) // 20)]
    y[some] = [f"{text.upper()} " for text in y[some]]
    return {"spelling": set(y[some].tolist())}


def plant_kinds(t: Tables, rng: np.random.Generator) -> Planted:
    most = pd.Series(t.labels["train"]).mode()[0]
    for name, y in t.labels.items():
        truth = y == most
        t.labels[name] = (
            truth.astype(int).astype(object) if name == "train" else truth.astype(object)
        )
    return {"truth values": {0, 1}}


def plant_one_class(t: Tables, rng: np.random.Generator) -> Planted:
    for name, y in t.labels.items():
        t.labels[name] = np.full(len(y), "class 0", dtype=object)
    return {"one class": {"class 0"}}


def plant_belonging(t: Tables, rng: np.random.Generator) -> Planted:
    sizes = {name: len(frame) for name, frame in t.frames.items()}
    names = rng.permutation(np.repeat(np.arange(sum(sizes.values()) // 3 + 1), 3))
    days = np.sort(rng.integers(0, 10_000, size=sum(sizes.values())))
    parts: dict[str, np.ndarray] = {}
    moments: dict[str, np.ndarray] = {}
    at = 0
    for name in ("train", "trusted", "holdout"):
        part = slice(at, at + sizes[name])
        parts[name], moments[name] = names[part], days[part].astype(float)
        at += sizes[name]
    late = rng.permutation(sizes["train"])[: sizes["train"] // 10]
    moments["train"][late] = 20_000.0
    for name, frame in t.frames.items():
        frame["who"], frame["day"] = parts[name], moments[name]
    t.options = {"entity": "who", "time": "day"}
    shared = set(parts["train"].tolist()) & set(parts["holdout"].tolist())
    return {"entities": shared, "times": set(late.tolist())}


def plant_gaps(t: Tables, rng: np.random.Generator) -> Planted:
    names = np.array([f"r{i}" for i in range(len(t.frames["train"]))], dtype=object)
    names[[2, 5]] = None
    t.frames["train"].index = pd.Index(names, dtype=object)
    return {"id gaps": {2, 5}}


def plant_drift(t: Tables, rng: np.random.Generator) -> Planted:
    frame = t.frames["holdout"]
    wide = [
        c for c in frame.columns if pd.api.types.is_float_dtype(frame[c]) and frame[c].std() > 0
    ]
    if not wide:
        return {}
    column = str(rng.choice(wide))
    frame[column] += t.frames["train"][column].std()
    return {"drift": {column}}


def plant_order(t: Tables, rng: np.random.Generator) -> Planted:
    order = np.argsort(t.labels["train"], kind="stable")
    t.frames["train"] = t.frames["train"].iloc[order].reset_index(drop=True)
    t.labels["train"] = t.labels["train"][order]
    return {"order": set()}


VARIANTS: list[Callable[[Tables, np.random.Generator], Planted]] = [
    *(plant_rows, plant_columns, plant_spelling, plant_kinds, plant_one_class, plant_belonging),
    *(plant_gaps, plant_drift, plant_order),
]


def of_audit(t: Tables) -> dict[str, set[Any]]:
    """By check all that is at fault, and the check itself."""
    found: dict[str, set[Any]] = {}
    for f in t.audit():
        found.setdefault(f.check, set()).update({*f.ids, f.check})
    return found


def of_tabaudit(t: Tables) -> dict[str, set[Any]] | None:
    """By its checks the columns, and the titles without their numbers."""
    try:
        run = import_module("tabaudit").run_audit
    except ModuleNotFoundError:
        return None
    checks = ["duplicates", "leakage", "schema", "imbalance"]
    report = run(t.labelled("train"), "the_label", test=t.labelled("holdout"), checks=checks)
    found: dict[str, set[Any]] = {}
    for f in report.findings:
        if f.severity.value != "info":
            numbers = [int(x.replace(",", "")) for x in re.findall(r"^[\d,]+", f.title)]
            said = {*f.columns, re.sub(r"[\d,.]+%?", "#", f.title)}
            found.setdefault(f.check, set()).update(said | {("rows", n) for n in numbers})
    everything = set().union(*found.values()) if found else set()
    return dict.fromkeys(checks, everything)


def of_datalab(t: Tables) -> dict[str, set[Any]] | None:
    """By its issues the places of the training rows."""
    try:
        lab_of = import_module("cleanlab").Datalab
    except (ModuleNotFoundError, ImportError, AttributeError):
        return None
    both = pd.concat([t.frames["train"], t.frames["holdout"]], ignore_index=True)
    numbers = both.select_dtypes("number").astype(float)
    texts = [c for c in both.columns if c not in numbers and pd.Series(both[c]).nunique() <= 20]
    dummies = [pd.get_dummies(both[c].astype(str), prefix=str(c)).astype(float) for c in texts]
    x = pd.concat([numbers, *dummies], axis=1)
    x = x.replace([np.inf, -np.inf], np.nan)
    x = ((x - x.mean()) / x.std().replace(0, 1)).fillna(0).to_numpy()
    given = np.concatenate([t.labels["train"], t.labels["holdout"]]).astype(str)
    labels = pd.factorize(given, sort=True)[0].tolist()
    n = len(t.frames["train"])
    lab = lab_of({"y": labels}, label_name="y", verbosity=0)
    lab.find_issues(features=x, issue_types={"near_duplicate": {}})
    twins = lab.get_issues("near_duplicate")["is_near_duplicate_issue"].to_numpy()[:n]
    lab = lab_of({"y": labels[:n]}, label_name="y", verbosity=0)
    lab.find_issues(features=x[:n], issue_types={"non_iid": {}})
    found: dict[str, set[Any]] = {"near_duplicate": set(np.flatnonzero(twins).tolist())}
    if lab.get_issue_summary("non_iid")["score"].iloc[0] < 0.05:
        found["non_iid"] = {"the table"}
    return found


def judge(planted: set[Any], found: set[Any], before: set[Any]) -> bool:
    """Whether what was planted is among what was found and is new."""
    if not planted:
        return bool(found - before)
    new = found if found & planted else found - before
    if len(planted & new) >= 0.9 * len(planted):
        return True
    more = sum(_counts(found)) - sum(_counts(before))
    return more >= 0.9 * len(planted)


def _counts(found: set[Any]) -> list[int]:
    """How many rows a program counts that names none."""
    return [x[1] for x in found if isinstance(x, tuple)]


def facts(t: Tables) -> set[str]:
    """Checks that a clean table fails because the table is so."""
    true = {"leak/ids", "labels/wrong"}  # the latter is counted by rows
    whole = pd.concat([f.assign(_y=t.labels[n]) for n, f in t.frames.items()], ignore_index=True)
    rows = whole.drop(columns="_y")
    if rows.duplicated().any():
        true |= {"leak/rows", "duplicates/rows", "conflicts/rows"}
    if (t.frames["train"].nunique(dropna=False) <= 1).any():
        true.add("columns/constant")
    counts = pd.Series(t.labels["trusted"]).value_counts()
    classes = set(np.unique(np.concatenate(list(t.labels.values()))))
    if counts.reindex(sorted(classes)).fillna(0).min() < 5 or any(
        set(y) != classes for y in t.labels.values()
    ):
        true.add("labels/classes")
    return true


PEERS: dict[str, Callable[[Tables], dict[str, set[Any]] | None]] = {
    "audit": of_audit,
    "tabaudit": of_tabaudit,
    "Datalab": of_datalab,
}


def fit(name: str, seed: int, folder: Path | None) -> list[dict[str, Any]]:
    """A line per fault and program, and one of false alarms per program."""
    X, y = read(name, folder)
    order = np.random.default_rng(seed).permutation(len(y))
    trusted = min(TRUSTED, len(y) // 4)
    train = min(TRAIN, (len(y) - trusted) * 2 // 3)
    order = order[: trusted + train + min(HOLDOUT, len(y) - trusted - train)]
    lines: list[dict[str, Any]] = []
    clean = Tables(X, y, order, trusted, train)
    before, cell = {}, {"table": name, "seed": seed}
    for program, run in PEERS.items():
        start = time.process_time()
        before[program] = run(clean)
        seconds = time.process_time() - start
        if before[program] is None:
            continue
        if program == "audit":
            true = facts(clean)
            alarms = sorted(set(before[program]) - true)
            line = {"fault": "clean", "program": program, "found": len(alarms), "cpu": seconds}
            lines.append(cell | line | {"said": " ".join(alarms)})
    for plant in VARIANTS:
        tables = Tables(X, y, order, trusted, train)
        planted = plant(tables, np.random.default_rng([seed, 1]))
        for program, run in PEERS.items():
            mine = {f: FAULTS[f][list(PEERS).index(program)] for f in planted}
            if before[program] is None or not any(mine.values()):
                continue
            start = time.process_time()
            try:
                found = run(tables) or {}
            except Exception as error:
                found = {}
                print(f"{program}: {name}, {plant.__name__}: {type(error).__name__}: {error}")
            seconds = time.process_time() - start
            for fault, check in mine.items():
                if check is not None:
                    hit = judge(
                        planted[fault], found.get(check, set()), before[program].get(check, set())
                    )
                    line = {"fault": fault, "program": program, "found": int(hit), "cpu": seconds}
                    lines.append(cell | line | {"said": ""})
    trusted_rows = clean.frames["trusted"], clean.labels["trusted"]
    wrong = flips(clean.frames["train"], clean.labels["train"], trusted_rows, seed)
    return lines + [cell | line for line in wrong]


def main() -> None:
    args, path, lines = arguments("faults", __doc__, SEEDS)
    only: list[str] = args.only
    done = {(line["table"], line["seed"]) for line in lines}
    for seed, name in itertools.product(range(args.seeds), only):
        if (name, seed) in done:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lines += fit(name, seed, args.tables)
        except (FileNotFoundError, ModuleNotFoundError) as error:
            print(f"{name} is left out: {error}")
            continue
        pd.DataFrame(lines).to_csv(path, index=False)
        mine = [x for x in lines if (x["table"], x["seed"]) == (name, seed)]
        failed = [x for x in mine if x["fault"] not in ("clean", "flips") and not x["found"]]
        missed = [f"{x['program']}: {x['fault']}" for x in failed]
        alarms = [x["said"] for x in mine if x["fault"] == "clean" and x["found"]]
        print(name, seed, "missed", missed, "alarms", alarms, flush=True)
    table = pd.DataFrame(lines)
    planted = table[~table["fault"].isin(["clean", "flips"])]
    counts: Any = planted.groupby(["fault", "program"])["found"].agg(["sum", "count"])
    clean = table[table["fault"] == "clean"]
    found: dict[str, dict[str, dict[str, int]]] = {}
    for key, hits, of in counts.itertuples():
        fault, program = key
        number = {"found": int(hits), "of": int(of)}
        found.setdefault(fault, {})[program] = number
    versions = {}
    for package in ("tabaudit", "cleanlab"):
        try:
            versions[package] = import_module(package).__version__
        except (ModuleNotFoundError, AttributeError):
            versions[package] = None
    write(
        __file__,
        {
            "settings": {"train": TRAIN, "trusted": TRUSTED, "holdout": HOLDOUT, "share": SHARE}
            | {"flips": RATE},
            "seeds": list(range(args.seeds)),
            "tables": sorted(table["table"].unique()),
            "faults": found,
            "flips": summary(pd.DataFrame(table[table["fault"] == "flips"])),
            "clean": {
                "cells": len(clean),
                "with a false alarm": int(np.sum(np.asarray(clean["found"]) > 0)),
                "alarms": sorted(x for x in map(str, clean["said"]) if x not in ("", "nan")),
            },
            "cpu": planted.groupby("program")["cpu"].median().to_dict(),
            "peers": versions,
        },
    )


if __name__ == "__main__":
    main()
