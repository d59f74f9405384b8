"""Everything that the report says, computed once, as plain data that JSON can hold."""

import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from .._weights.diagnostics import holdout_check
from .._weights.result import WeightsResult
from .._weights.scorer import LinearOutputs
from .before_after import before_and_after, effects_by, fit_both
from .clusters import find_clusters
from .confusions import confusions
from .first_rows import first_rows, is_wrong
from .refits import Rows, overfitting, removal
from .suspects import DOUBT, KINDS, Suspects, judge_suspects
from .verdict import give_advice, give_verdict
from .work import work
from .worst import worst_rows

FORMAT = "bilevel report 4"


def gather_evidence(
    estimator: Any,
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    result: WeightsResult,
    *,
    holdout: tuple[Any, Any] | None = None,
    ids: Any = None,
    groups: Any = None,
    holdout_groups: Any = None,
    images: Any = None,
    table: pd.DataFrame | None = None,
    show: Sequence[str] = (),
    units: Mapping[str | None, str] = MappingProxyType({}),
    trusted_ids: Any = None,
    minutes_per_check: float | None = None,
    truth: Any = None,
    shared: Mapping[str, Mapping[str, Any]] | None = None,
    control: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
    seconds: float | None = None,
    peak_memory: float | None = None,
    table_rows: int | None = None,
) -> dict[str, Any]:
    """Compute what the report shows about a `WeightsResult`.

    Args:
        estimator: the final estimator, any scikit-learn one that accepts `sample_weight`; cloned.
        X, y: the n training rows and their given labels, as they were weighted.
        X_trusted, y_trusted: the m trusted rows.
        result: the `WeightsResult`.
        holdout: `(X, y)` never used in learning. Without it scores that need fresh rows are left
            out, and the verdict rests on held-out folds of the trusted rows.
        ids: a name for each training row; by default the index of a data frame, or the row number.
        groups, holdout_groups: a group for each training row, and for each row of the hold-out.
        images: pictures of the training rows, shape `(n, h, w)`, `(n, h, w, 1 | 3 | 4)` or
            `(n, h * h)`; shown beside the worst rows, darkest value black.
        table: the training rows as people know them, whose columns describe where the suspect rows
            are; by default `X`, if it is a data frame.
        show: columns of `table` to print beside each suspect row.
        units: of the numbers in these columns, by name, and of the labels, by None: they are printed
            above the numbers.
        trusted_ids: a name for each trusted row; by default as for the training rows.
        minutes_per_check: how long a person takes to check a row, for the work that the list saves,
            and the score against the number of verified rows (24 fits more).
        truth: the true label of each training row, where it is known: how many of the suspect labels
            are wrong is then counted too.
        shared: what `find_shared_rows` found, by pair of tables, such as
            `{"trusted/holdout": {"exact": 2, "near": 1, "ids": ["r1", "r7", "r9"]}}`.
        control: learns weights as `result` was learned, but against the trusted labels it is given,
            which are shuffled; it completes the overfitting check, and costs as much as the first run.
        seed: for random removal and the shuffle.
        seconds, peak_memory: of the run, peak memory in bytes.
        table_rows: of the table that the training rows are a sample of, if they are.

    Returns:
        A dictionary of floats, integers, strings, lists and dictionaries; what is not known, and
        NaN, is `None`. `Report(evidence)` shows it.

    Raises:
        ValueError: `ids`, `groups`, `holdout_groups` or `images` do not match the rows.

    Cost: 31 fits of `estimator` on at most n + m rows, with a hold-out 33, and 5 more if `result` has
    no table of baselines then. Those for the suggested labels and the removal curve use at most 20000
    training rows.
    """
    n, m = len(y), len(y_trusted)
    rows = Rows(estimator, X, np.asarray(y), X_trusted, np.asarray(y_trusted), result)
    ids, trusted_ids = _names(ids, X, n, "ids"), _names(trusted_ids, X_trusted, m, "trusted_ids")
    groups, holdout_groups = _as_text(groups), _as_text(holdout_groups)
    for name, given, wanted in [
        ("groups", groups, n),
        ("holdout_groups", holdout_groups, 0 if holdout is None else len(holdout[1])),
        ("images", images, n),
    ]:
        if given is not None and len(given) != wanted:
            raise ValueError(
                f"`{name}` must have one entry for each of {wanted} rows, got {len(given)}."
            )
    baselines, checks = result.baselines, list(result.checks)
    holdout_rows, fits = None, None
    if holdout is not None:
        holdout = holdout[0], np.asarray(holdout[1])
        holdout_rows, fits = len(holdout[1]), fit_both(rows, holdout)
        if baselines is None:
            baselines = rows.compare_baselines(*holdout)
            checks.append(holdout_check(baselines, result.winner, result.candidates is not None))

    classes = None if rows.regression else rows.y
    holdout_classes = None if rows.regression or holdout is None else holdout[1]
    effects = {
        kind: None if inside is None else effects_by(rows, kind, inside, fits, inside_holdout)
        for kind, inside, inside_holdout in [
            ("classes", classes, holdout_classes),
            ("groups", groups, holdout_groups),
        ]
    }
    leaks = None if shared is None else _leaks(shared)
    weights = weights_of(rows)
    noise = None if result.noise is None else result.noise.to_dict(ids)
    verdict = give_verdict(result, baselines, rows, holdout_rows)
    suspects = judge_suspects(rows, seed)
    wrong = is_wrong(truth, rows)
    return jsonable(
        {
            "format": FORMAT,
            "task": "regression" if rows.regression else "classification",
            "score": rows.metric,
            "train_rows": n,
            "trusted_rows": m,
            "holdout_rows": holdout_rows,
            "winner": result.winner,
            "verdict": verdict,
            "advice": give_advice(rows, verdict, noise, holdout_rows),
            "alarms": _alarms(weights, result, effects, leaks),
            "checks": [check._asdict() for check in checks],
            "baselines": _table(baselines),
            "candidates": _table(result.candidates),
            "scores": _table(result.scores),
            "weights": weights,
            "noise": noise,
            "first_rows": first_rows(rows, wrong),
            "kinds": _kinds(suspects, rows, wrong),
            "confusions": confusions(rows, suspects),
            "clusters": _clusters(rows, table, groups, seed),
            "work": work(rows, noise, minutes_per_check, holdout, seed),
            "history": _history(result.history),
            "leaks": leaks,
            "overfitting": overfitting(rows, holdout, control, seed),
            "worst": worst_rows(
                rows, suspects, ids, trusted_ids, groups, images, table, show, units
            ),
            "effects": effects,
            "before_after": before_and_after(rows, fits, effects),
            "removal": removal(rows, holdout, seed),
            "provenance": {
                "seed": seed,
                "seconds": seconds,
                "peak_memory": peak_memory,
                "table_rows": table_rows,
                "estimator": str(estimator),
                "stats": result.stats,
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("bilevel", "jax", "numpy", "scikit-learn")},
                },
                "device": _device(),
            },
        }
    )


def jsonable(value: Any) -> Any:
    """Numbers, strings, `None`, lists and dictionaries of them; NaN and infinities are `None`."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray, pd.Series)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    return None if value is pd.NaT or value is pd.NA else str(value)


def _as_text(groups: Any) -> np.ndarray | None:
    return None if groups is None else np.asarray([str(group) for group in groups])


def _names(ids: Any, X: Any, n: int, name: str) -> list[str]:
    if ids is None:
        ids = X.index if isinstance(X, (pd.DataFrame, pd.Series)) else range(n)
    if len(ids) != n:
        raise ValueError(f"`{name}` must have one entry for each of {n} rows, got {len(ids)}.")
    return [str(i) for i in ids]


def _table(frame: pd.DataFrame | None) -> list[dict[str, Any]] | None:
    if frame is None:
        return None
    return [
        {"name": str(name)} | row
        for name, row in zip(frame.index, frame.to_dict("records"), strict=True)
    ]


def _history(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """At most 500 steps, first and last among them; columns of numbers only."""
    if len(frame) > 500:
        frame = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, 500).astype(int))]
    return {str(name): list(frame[name]) for name in frame.select_dtypes("number").columns}


def weights_of(rows: Rows) -> dict[str, Any]:
    """How the weights are distributed, in numbers."""
    weights, result = rows.weights, rows.result
    n, total = len(weights), weights.sum()
    top = math.ceil(n / 100)
    counts, edges = np.histogram(weights, bins=30, range=(0, max(weights.max(), 1e-12)))
    return {
        "effective_sample_size": result.effective_sample_size,
        "entropy": result.entropy,
        "greatest_entropy": math.log(n),
        "trusted_weight": result.trusted_weight,
        "scale": result.scale,
        "keep": int(np.sum(result.keep)),
        "zero": int(np.sum(weights == 0)),
        "total": total,
        "top_rows": top,
        "top_share": np.sort(weights)[n - top :].sum() / total if total else None,
        "quantiles": {f"{q}%": np.percentile(weights, q) for q in (0, 5, 25, 50, 75, 95, 100)},
        "histogram": {"edges": edges, "counts": counts},
    }


def _kinds(found: Suspects, rows: Rows, wrong: np.ndarray | None) -> list[dict[str, Any]] | None:
    """How many flagged and doubtful rows are of each kind, and the share of wrong labels among them.

    The share is the expected one and, where the truth is given, the true one.
    """
    if found.kind is None:
        return None
    flagged = ~np.asarray(rows.result.keep)[found.rows]
    expected = np.asarray(rows.result.wrong)[found.rows]
    lines = []
    for kind, meaning in KINDS.items():
        inside = (found.kind == kind) & (flagged | (expected >= DOUBT))
        line: dict[str, Any] = {"name": kind, "rows": inside.sum()}
        line |= {"flagged": (inside & flagged).sum(), "expected": None, "wrong": None}
        if inside.any():
            line["expected"] = float(expected[inside].mean())
            line["wrong"] = None if wrong is None else float(wrong[found.rows[inside]].mean())
        lines.append(line | {"meaning": meaning})
    return lines


def _clusters(
    rows: Rows, table: pd.DataFrame | None, groups: np.ndarray | None, seed: int
) -> dict[str, Any] | None:
    """Where the flagged rows are, by the columns, the group and the given label."""
    if table is None and isinstance(rows.X, pd.DataFrame):
        table = rows.X
    if table is None:
        return None
    beside = {} if groups is None else {"group": groups}
    beside |= {} if rows.regression else {"the given label": rows.y.astype(str)}
    extra = pd.DataFrame({k: v for k, v in beside.items() if k not in table.columns})
    table = pd.concat([table.reset_index(drop=True), extra], axis=1)
    return find_clusters(table, ~np.asarray(rows.result.keep), seed)


def _leaks(shared: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pairs of tables; of the ids the first twenty, listed in one string too."""
    table = []
    for pair, found in shared.items():
        ids = [str(i) for i in found.get("ids", ())]
        listed = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
        counts = {"exact": found["exact"], "near": found["near"]}
        table.append({"between": pair} | counts | {"ids": ids[:20], "listed": listed})
    return table


def _device() -> str:
    """What JAX computed on, where anything did."""
    jax = sys.modules.get("jax")
    return "cpu" if jax is None else jax.default_backend()


def _count_numbers(parameters: Any) -> int:
    """In a linear model, or in whatever JAX knows as a tree."""
    if isinstance(parameters, LinearOutputs):
        return parameters.weight.size + parameters.bias.size
    import jax

    return sum(np.size(leaf) for leaf in jax.tree.leaves(parameters))


def _alarms(
    weights: dict[str, Any],
    result: WeightsResult,
    effects: dict[str, Any],
    leaks: list[dict[str, Any]] | None,
) -> list[dict[str, Any]]:
    """What should worry a reader; each alarm gives its numbers, whether it fired or not."""
    alarms = []

    def alarm(name: str, fired: Any, detail: str) -> None:
        alarms.append({"name": name, "fired": bool(fired), "detail": detail})

    if weights["total"]:
        parameters = _count_numbers(result.parameters)
        ess, share = weights["effective_sample_size"], weights["top_share"]
        alarm(
            "few effective rows for the model",
            ess < parameters,
            f"the effective sample size is {ess:.0f}; the weighting model has {parameters} parameters",
        )
        alarm(
            "a few rows decide",
            share >= 0.5,
            f"the heaviest 1% of the rows ({weights['top_rows']}) hold {share:.1%} of the weight "
            "(alarm: 50%)",
        )
    for kind, one in [("classes", "class"), ("groups", "group")]:
        if effects[kind] is None or not weights["total"]:
            continue
        kept = {t["name"]: t["share_of_weight"] / t["share_of_rows"] for t in effects[kind]}
        gone = [t for t in effects[kind] if kept[t["name"]] < 0.1]
        said = [
            f"{one} {t['name']} has {t['share_of_rows']:.1%} of the rows and "
            f"{t['share_of_weight']:.1%} of the weight"
            for t in gone
        ]
        fine = (
            f"no {one}'s share of the weight is below {min(kept.values()):.0%} of its share of the "
            "rows (alarm: 10%)"
        )
        alarm(f"a {one} is nearly gone", gone, "; ".join(said) or fine)
        if judged := [t for t in effects[kind] if t["change"] is not None]:
            lost = [t for t in judged if t["change"] == "loses"]
            said = [
                f"{one} {t['name']} from {t['equal']:.3f} to {t['reweighted']:.3f}" for t in lost
            ]
            fine = f"of {len(judged)} with enough hold-out rows none clearly loses"
            alarm(f"a {one} scores worse", lost, "; ".join(said) or fine)
    if leaks is not None:
        said = [
            f"{leak['between']}: {leak['exact']} exact and {leak['near']} near duplicates"
            for leak in leaks
            if leak["exact"] or leak["near"]
        ]
        fine = f"no duplicates in {', '.join(leak['between'] for leak in leaks)}"
        alarm("tables share rows", said, "; ".join(said) or fine)
    return alarms
