"""Wrong labels planted in real tables: who finds them, by the protocol of tabaudit.

3 % of the training labels become another class. A program flags rows of the table with these labels,
and of the table with its own. What it flags in the latter, and was not flipped, is counted neither for
nor against it in "precision without own": it may be an error that the table came with.
"""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

from bilevel import datasets, learn_weights
from bilevel.reweighting import audit

RATE = 0.03


def of_audit(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> np.ndarray:
    """Without trusted rows."""
    flagged = np.zeros(len(y), bool)
    for finding in audit(X, y, seed=seed).findings:
        if finding.check == "labels/wrong":
            flagged[list(finding.ids)] = True
    return flagged


def of_weigh(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> np.ndarray:
    """The rows to look at of `learn_weights`, with the trusted rows."""
    return ~np.asarray(learn_weights(X, y, *trusted, seed=seed).keep)


def of_tabaudit(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> np.ndarray | None:
    """The rows that it calls likely mislabelled."""
    try:
        run = import_module("tabaudit").run_audit
    except ModuleNotFoundError:
        return None
    flagged = np.zeros(len(y), bool)
    for finding in run(X.assign(the_label=y), "the_label", checks=["label_noise"]).findings:
        flagged[finding.evidence.get("rows_likely", [])] = True
    return flagged


PROGRAMS: dict[str, Callable[..., np.ndarray | None]] = {
    "audit, no trusted rows": of_audit,
    "weigh, trusted rows": of_weigh,
    "tabaudit": of_tabaudit,
}


def flips(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> list[dict[str, Any]]:
    """A line per program; labels are texts."""
    names, codes = np.unique(y, return_inverse=True)
    given, wrong = datasets.flip_to_different(codes, RATE, seed=seed)
    given, wrong = names[np.asarray(given)], np.asarray(wrong)
    lines = []
    for program, run in PROGRAMS.items():
        start = time.process_time()
        flagged = run(X, given, trusted, seed)
        seconds = time.process_time() - start
        own = run(X, y, trusted, seed)
        if flagged is None or own is None:
            continue
        lines.append(
            {
                "fault": "flips",
                "program": program,
                "found": int((flagged & wrong).sum()),
                "cpu": seconds,
                "said": "",
                "of": int(wrong.sum()),
                "flagged": int(flagged.sum()),
                "flagged new": int((flagged & ~(own & ~wrong)).sum()),
                "clean": int(own.sum()),
                "rows": len(y),
            }
        )
    return lines


def summary(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Per program: precision and recall over all rows of all tables, and the mean of the tables."""
    found = {}
    for program, part in table.groupby("program", sort=False):
        lines: Any = part
        hits, of = lines["found"].sum(), lines["of"].sum()
        some = lines[lines["flagged new"] > 0]
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
