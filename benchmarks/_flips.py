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
from sklearn.metrics import average_precision_score, roc_auc_score

from bilevel import datasets, learn_weights
from bilevel.reweighting._audit.view import make_view
from bilevel.reweighting._audit.wrong_labels import judge_labels, number_listed

RATE = 0.03


class Flagged(NamedTuple):
    """The rows that a program flags, and of each row, how much it doubts its label."""

    rows: np.ndarray
    doubt: np.ndarray


def _judged(tables: dict[str, Any], seed: int) -> Flagged:
    """The rows and probabilities of the check "labels/wrong" of `audit`, alone."""
    judged = judge_labels(make_view(tables, "classification", None, None, seed), ())
    doubt = np.zeros(len(tables["train"][1]))
    if judged is not None:
        doubt[judged.rows] = judged.doubt.wrong
    order = np.argsort(-doubt, kind="stable")
    flagged = np.zeros(len(doubt), bool)
    flagged[order[: number_listed(doubt[order])]] = True
    return Flagged(flagged, doubt)


def of_audit(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> Flagged:
    """Without trusted rows."""
    return _judged({"train": (X, y)}, seed)


def of_audit_with_trusted(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> Flagged:
    """The trusted rows teach its models."""
    return _judged({"train": (X, y), "trusted": trusted}, seed)


def of_weigh(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> Flagged:
    """The rows to look at of `learn_weights`, with the trusted rows."""
    found = learn_weights(X, y, *trusted, seed=seed)
    return Flagged(~np.asarray(found.keep), -np.asarray(found.label_quality))


def of_tabaudit(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> Flagged | None:
    """The rows that it calls likely mislabelled, and how little its model believes each label."""
    try:
        audit, check = import_module("tabaudit.audit"), import_module("tabaudit.checks.label_noise")
    except ModuleNotFoundError:
        return None
    labelled = X.assign(the_label=[f"class {label}" for label in y])
    task = audit.infer_task(labelled["the_label"])
    context = audit.AuditContext(df=labelled, target="the_label", task=task, max_rows=50_000)
    found, doubt = check.out_of_fold_probs(context), np.zeros(len(y))
    if found is None:
        return Flagged(doubt > 0, doubt)
    rows, codes, _, p = found
    doubt[np.asarray(rows)] = 1 - p[np.arange(len(codes)), codes]
    return Flagged(doubt > 1 - check.LIKELY_MAX_SELF_CONFIDENCE, doubt)


PEER = "tabaudit"
PROGRAMS: dict[str, Callable[..., Flagged | None]] = {
    "audit, no trusted rows": of_audit,
    "audit, trusted rows": of_audit_with_trusted,
    "weigh, trusted rows": of_weigh,
    PEER: of_tabaudit,
}


class Ranking(NamedTuple):
    """How well doubts rank wrong labels first, whatever threshold makes a list of them."""

    area: float
    average_precision: float
    best_f1: float

    @classmethod
    def of(cls, doubt: np.ndarray, wrong: np.ndarray) -> "Ranking":
        """`best_f1`: of the first part of the ranking for which it is greatest, in hindsight."""
        hits = np.cumsum(wrong[np.argsort(-doubt, kind="stable")])
        best = 2 * hits / (np.arange(1, len(hits) + 1) + wrong.sum())
        area = float(roc_auc_score(wrong, doubt))
        return cls(area, float(average_precision_score(wrong, doubt)), float(best.max()))


def flips(X: pd.DataFrame, y: np.ndarray, trusted: Any, seed: int) -> list[dict[str, Any]]:
    """A line per program; labels are texts."""
    names, codes = np.unique(y, return_inverse=True)
    flipped = datasets.flip_to_different(codes, RATE, seed=seed)
    given, wrong = names[np.asarray(flipped[0])], np.asarray(flipped[1])
    found, seconds = {}, {}
    for program, run in PROGRAMS.items():
        start = time.process_time()
        found[program] = run(X, given, trusted, seed)
        seconds[program] = time.process_time() - start
    peer, lines = found[PEER], []
    asked = 0 if peer is None else int((peer.rows & wrong).sum())
    for program, run in PROGRAMS.items():
        mine, clean = found[program], run(X, y, trusted, seed)
        if mine is None or clean is None:
            continue
        flagged, own = mine.rows, clean.rows & ~wrong
        lines.append(
            {
                "fault": "flips",
                "program": program,
                "found": int((flagged & wrong).sum()),
                "cpu": seconds[program],
                "said": "",
                "of": int(wrong.sum()),
                "flagged": int(flagged.sum()),
                "flagged new": int((flagged & ~own).sum()),
                "clean": int(clean.rows.sum()),
                "rows": len(y),
                "asked": asked,
                "new at asked": _as_many(mine.doubt, clean.doubt, wrong, asked),
            }
            | Ranking.of(mine.doubt, wrong)._asdict()
        )
    return lines


def _as_many(doubt: np.ndarray, clean: np.ndarray, wrong: np.ndarray, asked: int) -> int:
    """How many rows the shortest first part with so many wrong ones has, without its own."""
    order, before = (np.argsort(-d, kind="stable") for d in (doubt, clean))
    length = 0 if asked == 0 else int(np.flatnonzero(np.cumsum(wrong[order]) >= asked)[0]) + 1
    first, own = np.zeros(len(wrong), bool), np.zeros(len(wrong), bool)
    first[order[:length]], own[before[:length]] = True, True
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
            **{key: float(lines[key].mean()) for key in Ranking._fields},
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
