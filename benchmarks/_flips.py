"""Wrong labels planted in real tables: who finds them, by the protocol of tabaudit.

3 % of the training labels become another class. A program flags rows of the table with these labels,
and of the table with its own. What it flags in the latter, and was not flipped, is counted neither for
nor against it in "precision without own": it may be an error that the table came with.

Lists of different lengths are compared where they find equally much: of our programs, which rank all
rows, the shortest first part of the ranking that holds as many flipped rows as tabaudit's list; what
the first part of that length holds on the table with its own labels is left out likewise.
"""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bilevel import datasets, learn_weights
from bilevel.reweighting._audit.audit import audit
from bilevel.reweighting._audit.view import make_view
from bilevel.reweighting._audit.wrong_labels import judge_labels

RATE = 0.03


class Flagged(NamedTuple):
    """The rows that a program flags, and all rows, the likeliest to be wrong first, if it says so."""

    rows: np.ndarray
    order: np.ndarray | None = None


def of_audit(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> Flagged:
    """Without trusted rows."""
    flagged = np.zeros(len(y), bool)
    for finding in audit(X, y, seed=seed).findings:
        if finding.check == "labels/wrong":
            flagged[list(finding.ids)] = True
    return Flagged(flagged)


def rank(X: pd.DataFrame, y: np.ndarray, seed: int) -> np.ndarray:
    """All rows by the probabilities from which `audit` takes its list."""
    judged = judge_labels(make_view({"train": (X, y)}, "classification", None, None, seed), ())
    wrong = np.zeros(len(y))
    if judged is not None:
        wrong[judged.rows] = judged.doubt.wrong
    return np.argsort(-wrong, kind="stable")


def of_weigh(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> Flagged:
    """The rows to look at of `learn_weights`, with the trusted rows."""
    found = learn_weights(X, y, *trusted, seed=seed)
    order = np.argsort(np.asarray(found.label_quality), kind="stable")
    return Flagged(~np.asarray(found.keep), order)


def of_tabaudit(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> Flagged | None:
    """The rows that it calls likely mislabelled."""
    try:
        run = import_module("tabaudit").run_audit
    except ModuleNotFoundError:
        return None
    flagged = np.zeros(len(y), bool)
    for finding in run(X.assign(the_label=y), "the_label", checks=["label_noise"]).findings:
        flagged[finding.evidence.get("rows_likely", [])] = True
    return Flagged(flagged)


PEER = "tabaudit"
PROGRAMS: dict[str, Callable[..., Flagged | None]] = {
    "audit, no trusted rows": of_audit,
    "weigh, trusted rows": of_weigh,
    PEER: of_tabaudit,
}


def flips(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> list[dict[str, Any]]:
    """A line per program; labels are texts."""
    names, codes = np.unique(y, return_inverse=True)
    flipped = datasets.flip_to_different(codes, RATE, seed=seed)
    given, wrong = names[np.asarray(flipped[0])], np.asarray(flipped[1])
    peer = of_tabaudit(X, given, trusted, seed)
    asked = 0 if peer is None else int((peer.rows & wrong).sum())
    lines = []
    for program, run in PROGRAMS.items():
        start = time.process_time()
        found = run(X, given, trusted, seed)
        seconds = time.process_time() - start
        clean = run(X, y, trusted, seed)
        if found is None or clean is None:
            continue
        flagged, own = found.rows, clean.rows & ~wrong
        line = {
            "fault": "flips",
            "program": program,
            "found": int((flagged & wrong).sum()),
            "cpu": seconds,
            "said": "",
            "of": int(wrong.sum()),
            "flagged": int(flagged.sum()),
            "flagged new": int((flagged & ~own).sum()),
            "clean": int(clean.rows.sum()),
            "rows": len(y),
            "asked": asked,
        }
        orders = [found.order, clean.order]
        if run is of_audit:
            orders = [rank(X, labels, seed) for labels in (given, y)]
        if orders[0] is not None and orders[1] is not None:
            line["new at asked"] = _as_many(orders[0], orders[1], wrong, asked)
        lines.append(line)
    return lines


def _as_many(order: np.ndarray, clean: np.ndarray, wrong: np.ndarray, asked: int) -> int:
    """How many rows the shortest first part with so many wrong ones has, without its own."""
    length = 0 if asked == 0 else int(np.flatnonzero(np.cumsum(wrong[order]) >= asked)[0]) + 1
    first, own = np.zeros(len(wrong), bool), np.zeros(len(wrong), bool)
    first[order[:length]], own[clean[:length]] = True, True
    return int((first & ~(own & ~wrong)).sum())


def summary(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Per program: precision and recall over all rows of all tables, and the mean of the tables."""
    found = {}
    for program, part in table.groupby("program", sort=False):
        lines: Any = part
        hits, of = lines["found"].sum(), lines["of"].sum()
        some, asked = lines[lines["flagged new"] > 0], lines[lines["asked"] > 0]
        new = asked["flagged new" if program == PEER else "new at asked"]
        found[str(program)] = {
            "precision": float(hits / max(lines["flagged"].sum(), 1)),
            "precision without own": float(hits / max(lines["flagged new"].sum(), 1)),
            "recall": float(hits / of),
            "F1": float(2 * hits / (lines["flagged"].sum() + of)),
            "mean precision without own": float((some["found"] / some["flagged new"]).mean()),
            "mean recall": float((lines["found"] / lines["of"]).mean()),
            "flagged on clean tables": float(lines["clean"].sum() / lines["rows"].sum()),
            "cells": len(lines),
            "cells without a flag": len(lines) - len(some),
            "cpu": float(lines["cpu"].median()),
            "at the recall of tabaudit": {
                "cells": len(asked),
                "mean precision without own": float((asked["asked"] / new).mean()),
                "precision without own": float(asked["asked"].sum() / max(new.sum(), 1)),
            },
            "by table": {
                str(name): {
                    "precision without own": float(
                        t["found"].sum() / max(t["flagged new"].sum(), 1)
                    ),
                    "recall": float(t["found"].sum() / t["of"].sum()),
                }
                for name, t in lines.groupby("table", sort=False)
            },
        }
    return found
