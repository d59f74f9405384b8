"""The tables of the estimators that choose their penalties."""

import json
from pathlib import Path
from typing import Any

import numpy as np

REPORT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "penalties.json"
SAME = 0.01  # relative difference of two losses that counts as neither won nor lost


def penalty_times() -> str:
    """CPU time and cross-validated loss of each estimator, beside scikit-learn's."""
    head = ["problem", "ms", "scikit-learn, ms", "ratio", "loss", "scikit-learn, loss"]
    lines = [
        [
            name,
            f"{1e3 * found['seconds']:.0f}",
            f"{1e3 * found['scikit_learn_seconds']:.0f}",
            f"{found['ratio']:.2f}" if found["ratio"] > 0.1 else f"{found['ratio']:.3f}",
            f"{found['loss']:.5g}",
            f"{found['scikit_learn_loss']:.5g}",
        ]
        for name, found in _report()["beside"].items()
    ]
    return _table(head, lines)


def many_penalties() -> str:
    """The mean loss on test rows, for each data set and number of penalties."""
    rows = _report()["many"]
    searches = list(dict.fromkeys(row["search"] for row in rows))
    cases = dict.fromkeys((row["data"], row["penalties"]) for row in rows)
    lines = []
    for data, number in cases:
        chosen = [row for row in rows if (row["data"], row["penalties"]) == (data, number)]
        losses = {name: _mean(chosen, name, "test_loss") for name in searches}
        best = min(losses.values())
        seconds = _mean(chosen, "hypergradients", "seconds")
        cells = [f"**{loss:.3f}**" if loss == best else f"{loss:.3f}" for loss in losses.values()]
        lines.append([data, str(number), f"{seconds:.2f}", *cells])
    return _table(["data", "penalties", "CPU s each", *searches], lines)


def many_penalties_wins() -> str:
    """How often hypergradients end lower or higher than each search, over data sets and splits."""
    rows = _report()["many"]
    others = list(dict.fromkeys(row["search"] for row in rows))[1:]
    lines = []
    for number in dict.fromkeys(row["penalties"] for row in rows):
        chosen = [row for row in rows if row["penalties"] == number]
        cells = [_record(chosen, name, kind) for kind in ("loss", "test_loss") for name in others]
        lines.append([str(number), *cells])
    head = [f"{place}, {name}" for place in ("judging rows", "test rows") for name in others]
    return _table(["penalties", *head], lines)


def _record(rows: list[dict[str, Any]], other: str, kind: str) -> str:
    """`won / equal / lost` of the hypergradients."""
    ours, theirs = (
        np.array([row[kind] for row in rows if row["search"] == name])
        for name in ("hypergradients", other)
    )
    won, lost = np.sum(ours < (1 - SAME) * theirs), np.sum(ours * (1 - SAME) > theirs)
    return f"{won} / {len(ours) - won - lost} / {lost}"


def _mean(rows: list[dict[str, Any]], search: str, kind: str) -> float:
    return float(np.mean([row[kind] for row in rows if row["search"] == search]))


def _report() -> dict[str, Any]:
    return json.loads(REPORT.read_text())


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
