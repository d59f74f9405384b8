"""Everything that the report says, computed once, as plain data that JSON can hold."""

import math
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from .._weights.baselines import BASELINES, SIMPLEST
from .._weights.diagnostics import holdout_check, verdict
from .._weights.scorer import LinearOutputs
from .refits import Rows, effects_by, overfitting, removal, worst_rows

FORMAT = "bilevel report 2"
Z95 = 1.96


def gather_evidence(
    estimator: Any,
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    result: Any,
    *,
    holdout: tuple[Any, Any] | None = None,
    ids: Any = None,
    groups: Any = None,
    holdout_groups: Any = None,
    images: Any = None,
    shared: Mapping[str, Mapping[str, Any]] | None = None,
    control: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
    seconds: float | None = None,
    peak_memory: float | None = None,
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
        shared: what `find_shared_rows` found, by pair of tables, such as
            `{"trusted/holdout": {"exact": 2, "near": 1, "ids": ["r1", "r7", "r9"]}}`.
        control: learns weights as `result` was learned, but against the trusted labels it is given,
            which are shuffled; it completes the overfitting check, and costs as much as the first run.
        seed: for random removal and the shuffle.
        seconds, peak_memory: of the run, peak memory in bytes.

    Returns:
        A dictionary of floats, integers, strings, lists and dictionaries; what is not known, and
        NaN, is `None`. `Report(evidence)` shows it.

    Raises:
        ValueError: `ids`, `groups`, `holdout_groups` or `images` do not match the rows.

    Cost: 35 fits of `estimator` on at most n + m rows, and 5 more if `result` has no table of
    baselines and there is a hold-out; those for the suggested labels and the
    removal curve use at most 20000 training rows.
    """
    n, m = len(y), len(y_trusted)
    rows = Rows(estimator, X, np.asarray(y), X_trusted, np.asarray(y_trusted), result)
    ids = _names(ids, X, n)
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
    holdout_rows, models = None, None
    if holdout is not None:
        holdout = holdout[0], np.asarray(holdout[1])
        holdout_rows, models = len(holdout[1]), (rows.equal_model(), rows.final_model())
        if baselines is None:
            baselines = rows.compare_baselines(*holdout)
            checks.append(holdout_check(baselines, result.winner, result.candidates is not None))

    classes = None if rows.regression else rows.y
    holdout_classes = None if rows.regression or holdout is None else holdout[1]
    effects = {
        kind: None if inside is None else effects_by(rows, inside, holdout, inside_holdout, models)
        for kind, inside, inside_holdout in [
            ("classes", classes, holdout_classes),
            ("groups", groups, holdout_groups),
        ]
    }
    leaks = None if shared is None else _leaks(shared)
    weights = _weights(rows)
    return jsonable(
        {
            "format": FORMAT,
            "task": "regression" if rows.regression else "classification",
            "score": rows.metric,
            "train_rows": n,
            "trusted_rows": m,
            "holdout_rows": holdout_rows,
            "winner": result.winner,
            "verdict": _verdict(result, baselines, rows, holdout_rows),
            "alarms": _alarms(weights, result, effects, leaks),
            "checks": [check._asdict() for check in checks],
            "baselines": _table(baselines),
            "candidates": _table(result.candidates),
            "scores": _table(result.scores),
            "weights": weights,
            "noise": None if result.noise is None else result.noise.to_dict(ids),
            "history": _history(result.history),
            "leaks": leaks,
            "overfitting": overfitting(rows, holdout, control, seed),
            "worst": worst_rows(rows, ids, groups, images, seed),
            "effects": effects,
            "removal": removal(rows, holdout, seed),
            "provenance": {
                "seed": seed,
                "seconds": seconds,
                "peak_memory": peak_memory,
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


def _names(ids: Any, X: Any, n: int) -> list[str]:
    if ids is None:
        ids = X.index if isinstance(X, (pd.DataFrame, pd.Series)) else range(n)
    if len(ids) != n:
        raise ValueError(f"`ids` must have one entry for each of {n} rows, got {len(ids)}.")
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


def _number(x: float) -> str:
    return f"{x:+.3f}" if abs(x) >= 5e-4 else f"{x:+.1e}" if x else "0"


def _verdict(
    result: Any, baselines: pd.DataFrame | None, rows: Rows, holdout_rows: int | None
) -> dict[str, Any]:
    """Whether weighting paid, in one sentence, with a 95% interval of the gain."""
    on_holdout = baselines is not None and bool(holdout_rows)
    if baselines is not None and holdout_rows:
        found = _on_holdout(baselines, result.winner, rows, holdout_rows)
    else:
        found = _on_folds(result, rows)
    if found is None:
        return _said(
            "is not proven",
            "there is no hold-out and no comparison on held-out folds of the trusted rows. Keep a "
            "hold-out.",
        )
    gain, half, sign = found["gain"], found.pop("half"), found.pop("sign")
    found |= {"low": gain - half, "high": gain + half}
    low, high = sorted(sign * found[end] for end in ("low", "high"))
    used = result.winner not in BASELINES
    outcome = verdict(gain, found["standard_error"]) if used else "was not used"
    detail = ""
    if not used:
        why = "did clearly best on held-out folds of the trusted rows"
        if result.winner == SIMPLEST:
            why = (
                "is used, as no other choice that keeps the trusted rows did clearly better on "
                "held-out folds of the trusted rows"
            )
        detail = f'"{result.winner}" {why}; '
    detail += (
        f"{'its ' if not used else ''}{found['measure']} is {found['ours']:.3f} on "
        f"{found['where']}, against {found['theirs']:.3f} of {found.pop('rival')}: "
        f"{_number(sign * gain)} (95% interval {_number(low)} to {_number(high)}, paired over the "
        "rows)."
    )
    if outcome == "may have paid":
        detail += " Chance could explain a gain of that size."
    if outcome == "did not pay":
        detail += (
            f' "{found["against"]}" is {"as good" if found["high"] >= 0 else "better: use it"}.'
        )
    over = found.get("over_uniform")
    if used and over is not None and found["against"] != "uniform":
        change, low, high = (_number(over[key]) for key in ("gain", "low", "high"))
        detail += f" Over uniform weights it gains {change} ({low} to {high})."
    if not on_holdout:
        detail += " The same rows chose the winner, so the gain is optimistic: keep a hold-out to "
        detail += "prove it."
    return _said(outcome, detail) | found


def _said(outcome: str, detail: str) -> dict[str, Any]:
    """The sentence, and its parts for a headline and a line beneath."""
    return {
        "sentence": f"Weighting {outcome}: {detail}",
        "headline": f"Weighting {outcome}",
        "detail": detail[0].upper() + detail[1:],
        "outcome": outcome,
    }


def _on_holdout(
    baselines: pd.DataFrame, winner: str, rows: Rows, holdout_rows: int
) -> dict[str, Any]:
    """The result against the best baseline in hindsight, on the hold-out."""
    others = baselines.drop(index=["reweighted", winner], errors="ignore")
    other = "other " if winner in baselines.index else ""
    best = str(others["score"].idxmax())
    line = others.loc[best].astype(float)
    error = line["standard_error"]
    plain = baselines.loc["uniform"].astype(float)
    # Where no two predictions differ in being right: the rule of three bounds how many could.
    exact = error == 0 and not rows.regression
    return {
        "measure": rows.metric,
        "where": f"{holdout_rows} hold-out rows",
        "against": best,
        "rival": f"the best {other}baseline ({best})",
        "ours": float(baselines.loc["reweighted", "score"]),
        "theirs": line["score"],
        "gain": line["difference"],
        "standard_error": error,
        "half": 3 / holdout_rows if exact else Z95 * error,
        "over_uniform": {
            "gain": plain["difference"],
            "low": plain["difference"] - Z95 * plain["standard_error"],
            "high": plain["difference"] + Z95 * plain["standard_error"],
        },
        "sign": 1,
    }


def _on_folds(result: Any, rows: Rows) -> dict[str, Any] | None:
    """The winner against all rows + trusted, by the loss on held-out folds of the trusted rows.

    Where all rows + trusted won: against the best of the others.
    """
    table, winner = result.candidates, _line(result.candidates, result.winner)
    if winner is None or SIMPLEST not in table.index or len(table) < 2:
        return None
    rival, line, sign = SIMPLEST, winner, -1
    if result.winner == SIMPLEST:
        rival = str(table.drop(index=SIMPLEST)["loss"].idxmin())
        line, sign = table.loc[rival].to_dict(), 1
    least = 1 if result.metric is None else -1  # the loss is a metric's score with a minus
    return {
        "measure": "loss" if result.metric is None else rows.metric,
        "where": f"held-out folds of the {len(rows.y_trusted)} trusted rows",
        "against": rival,
        "rival": rival,
        "ours": least * winner["loss"],
        "theirs": least * float(table.loc[rival, "loss"]),
        "gain": sign * float(line["difference"]),
        "standard_error": float(line["standard_error"]),
        "half": Z95 * float(line["standard_error"]),
        "sign": -least,
    }


def _line(candidates: pd.DataFrame | None, winner: str) -> dict[str, float] | None:
    """The winner's line: of that name, or the best of those whose name starts with it."""
    if candidates is None:
        return None
    alike = [name for name in candidates.index if name == winner]
    alike = alike or [name for name in candidates.index if str(name).startswith(winner)]
    lines = candidates.loc[alike, ["loss", "difference", "standard_error"]].astype(float)
    return min(lines.to_dict("records"), key=lambda line: line["loss"], default=None)


def _weights(rows: Rows) -> dict[str, Any]:
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
    result: Any,
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
    if leaks is not None:
        said = [
            f"{leak['between']}: {leak['exact']} exact and {leak['near']} near duplicates"
            for leak in leaks
            if leak["exact"] or leak["near"]
        ]
        fine = f"no duplicates in {', '.join(leak['between'] for leak in leaks)}"
        alarm("tables share rows", said, "; ".join(said) or fine)
    return alarms
