"""What changes on the hold-out from equal weights to these: scores, confusions, calibration."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from .._inputs.checks import InputError, check_known
from .._weights.coded_labels import fit_weighted, take_rows
from .._weights.fits import independent
from .._weights.metric import GROUPS, Metric, Said
from .confusions import PICTURED, of_first_pairs
from .refits import Rows

FEWEST = 10  # rows of a class or group whose change gets an interval
BINS = 10  # of the calibration, with equally many rows
LISTED = 20  # confusions in the table
TINY = 1e-6  # the least probability in a log loss


class Fits(NamedTuple):
    """The hold-out, and what two fits of the final estimator say of it.

    Attributes:
        X, y: the rows and their labels.
        classes: all there are; None in a regression.
        before: what the fit with equal weights says.
        after: what the fit with the learned weights says.
    """

    X: Any
    y: np.ndarray
    classes: np.ndarray | None
    before: Said
    after: Said

    @property
    def both(self) -> tuple[Said, Said]:
        return self.before, self.after


def fit_both(rows: Rows, holdout: tuple[Any, np.ndarray]) -> Fits:
    """Both fits have the training and the trusted rows.

    Raises:
        InputError: a label of the hold-out that neither of them has.
    """
    X, y = holdout
    classes = None
    if not rows.regression:
        classes = np.union1d(rows.y, rows.y_trusted)
        check_known(y, classes, "y_holdout")
    models = independent(fit_weighted, (fit() for fit in (rows.equal, rows.final)))
    before, after = (Said.of_model(model, X, classes, False) for model in models)
    return Fits(X, y, classes, before, after)


def effects_by(
    rows: Rows,
    kind: str,
    membership: np.ndarray,
    fits: Fits | None,
    inside_holdout: np.ndarray | None,
) -> list[dict[str, Any]]:
    """What weighting does to each class or group: rows, weight, and the score before and after.

    Of a class the score is its recall; of a group it is the user's metric, accuracy or R2. See
    `change_of_score` for the interval of the difference. "gains" and "loses" are said where an
    interval that holds for all classes (groups) at once, by Bonferroni's inequality, is without 0.
    """
    weights, total = rows.weights, rows.weights.sum()
    names = np.unique(membership)
    table = []
    for name in names:
        inside = membership == name
        line = {
            "name": str(name),
            "train_rows": inside.sum(),
            "mean_weight": weights[inside].mean(),
            "share_of_rows": inside.mean(),
            "share_of_weight": weights[inside].sum() / total if total else None,
            "holdout_rows": None,
        }
        line |= dict.fromkeys(("equal", "reweighted", "difference", "low", "high", "change"))
        if fits is not None and inside_holdout is not None:
            place = np.flatnonzero(inside_holdout == name)
            line["holdout_rows"] = len(place)
            if len(place):
                line |= change_of_score(rows, fits, place, kind == "classes", len(names))
        table.append(line)
    return table


def change_of_score(
    rows: Rows, fits: Fits, place: np.ndarray, recall: bool, comparisons: int = 1
) -> dict[str, Any]:
    """The score of some rows before and after, and their difference with its 95 % interval.

    The interval is paired over the rows. Of accuracies it is

        d +- z sqrt((b + c + 1) / (n + 2)^2 - d^2 / (n + 2)),      d = (b - c) / (n + 2)

    with b of the n rows right after and wrong before, and c the other way round, which holds for few
    rows too (Agresti and Min (2005), "Simple improved confidence intervals for comparing matched
    proportions" [agresti2005][]); of R2 it is that of the mean squared errors, and of a metric the
    jackknife's over 20 groups of rows. There is none for fewer than 10 rows (a metric: 40).
    """
    y = fits.y[place]
    z = norm.ppf(1 - 0.025 / np.array([1, comparisons]))
    metric = None if recall else rows.result.metric
    said = [fit.take(place) for fit in fits.both]
    if metric is not None:
        scores, found = _of_metric(metric, fits, place, said)
    elif rows.regression:
        errors = [(fit.responses["predict"] - y) ** 2 / (np.var(y) or 1.0) for fit in said]
        scores = [1 - float(e.mean()) if len(y) > 1 else np.nan for e in errors]
        gain = errors[0] - errors[1]
        enough = len(y) >= FEWEST
        found = (gain.mean(), gain.std(ddof=1) / np.sqrt(len(y))) if enough else None
    else:
        right = [np.asarray(fit.responses["predict"] == y) for fit in said]
        scores = [float(r.mean()) for r in right]
        found = _paired(*right) if len(y) >= FEWEST else None
    line: dict[str, Any] = {"equal": scores[0], "reweighted": scores[1]}
    line["difference"] = scores[1] - scores[0]
    if found is None or not np.isfinite(found).all():
        return line
    middle, error = found
    line |= {"low": middle - z[0] * error, "high": middle + z[0] * error, "change": "unclear"}
    if abs(middle) > z[1] * error:
        line["change"] = "gains" if middle > 0 else "loses"
    return line


def _paired(before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """(centre, standard error) of Agresti and Min."""
    n, b, c = len(before) + 2, int((after & ~before).sum()), int((before & ~after).sum())
    d = (b - c) / n
    return float(d), float(np.sqrt(max((b + c + 1) / n**2 - d**2 / n, 0.0)))


def _of_metric(
    metric: Metric, fits: Fits, place: np.ndarray, said: list[Said]
) -> tuple[list[float], tuple[float, float] | None]:
    """(scores, (difference, its standard error)) by the user's metric; NaN where it is undefined."""
    y = fits.y[place]
    if fits.classes is not None:
        if len(np.unique(y)) < 2:  # rankings of one class
            return [np.nan, np.nan], None
        if metric.coded:
            y = np.searchsorted(fits.classes, y)
            said = [fit.coded() for fit in said]
    X, one, unit = take_rows(fits.X, place), np.ones(len(y)), np.arange(len(y))
    try:
        if len(y) < 2 * GROUPS:
            return [metric(fit, X, y, one) for fit in said], None
        (losses, before), (others, after) = (metric.judge(fit, X, y, one, unit) for fit in said)
    except InputError:
        return [np.nan, np.nan], None
    gain = losses - others
    error = float(gain.std(ddof=1) / np.sqrt(len(gain)))
    return [before, after], (float(gain.mean()), error)


def before_and_after(
    rows: Rows, fits: Fits | None, effects: dict[str, list[dict[str, Any]] | None]
) -> dict[str, Any] | None:
    """The score, the confusions and the calibration of both fits on the hold-out; None without one.

    `sentences` say which classes and groups gain and lose.
    """
    if fits is None:
        return None
    every = change_of_score(rows, fits, np.arange(len(fits.y)), recall=False)
    return {
        "rows": len(fits.y),
        "score": every,
        "sentences": {
            kind: None if table is None else _who_gains(kind, table)
            for kind, table in effects.items()
        },
        "confusion": None if fits.classes is None else _confusion(fits),
        "calibration": _calibration(fits),
    }


def _who_gains(kind: str, table: list[dict[str, Any]]) -> str | None:
    """Which classes or groups gain and lose, in a sentence."""
    judged = [t for t in table if t["change"] is not None]
    if not judged:
        return None
    counts = []
    for change in ("gains", "loses"):
        names = [t["name"] for t in judged if t["change"] == change]
        if names:
            verb = change if len(names) == 1 else change[:-1]
            some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            counts.append(f"{len(names)} clearly {verb} ({some})")
    left = len(table) - len(judged)
    few = f" (not counting {left} with too few hold-out rows for an interval)" if left else ""
    moved = " and ".join(counts) or "none clearly gains or loses"
    others = "the other changes" if counts else "every change"
    return (
        f'Of {len(judged)} {kind}{few}, {moved}; chance could explain {others}. "Gains" and '
        f'"loses" hold for all {len(table)} {kind} at once; each interval holds for itself.'
    )


def _confusion(fits: Fits) -> dict[str, Any]:
    """Counts of (true, predicted) label before and after: of the classes with the most errors."""
    y, classes = fits.y, fits.classes
    assert classes is not None
    predicted = [fit.responses["predict"] for fit in fits.both]
    counts: dict[tuple[Any, Any], list[int]] = {}
    for side, told in enumerate(predicted):
        code = np.searchsorted(classes, y) * len(classes) + np.searchsorted(classes, told)
        pair, number = np.unique(code, return_counts=True)
        for k, n in zip(pair.tolist(), number.tolist(), strict=True):
            counts.setdefault(divmod(k, len(classes)), [0, 0])[side] = n
    present = {k for pair in counts for k in pair}
    shown = sorted(present)
    if len(present) > PICTURED:
        errors = sorted(
            (key for key in counts if key[0] != key[1]), key=lambda k: (-sum(counts[k]), k)
        )
        shown = sorted(of_first_pairs(errors))

    def line(a: int, b: int) -> dict[str, Any]:
        before, after = counts.get((a, b), (0, 0))
        return {"true": classes[a], "predicted": classes[b], "before": before, "after": after}

    wrong = sorted(
        (key for key in counts if key[0] != key[1]),
        key=lambda key: (-abs(counts[key][1] - counts[key][0]), -max(counts[key]), key),
    )
    changed = [key for key in wrong if counts[key][0] != counts[key][1]]
    return {
        "classes": len(present),
        "pictured": [classes[k] for k in shown],
        "cells": [line(a, b) for a in shown for b in shown],
        "wrong": [int(np.sum(told != y)) for told in predicted],
        "pairs": len(wrong),
        "changes": [
            line(a, b) | {"change": counts[a, b][1] - counts[a, b][0]} for a, b in changed[:LISTED]
        ],
    }


def _calibration(fits: Fits) -> dict[str, Any] | None:
    """What the fits say against what is so, in ten bins with equally many rows, and mean losses.

    Of a classifier: the probability of the label that it predicts, and the share of the rows where
    that label is right. Of two classes: the probability of the second class and its share. Of a
    regression: the prediction, and the mean target. `gap` is the mean over the rows of the absolute
    difference; even a perfect model has one, about 0.8 standard errors of a bin.
    """
    losses: dict[str, list[np.ndarray]] = {}
    said, seen = [], []
    if fits.classes is None:
        what = "the mean target, by the predicted one"
        for fit in fits.both:
            said.append(np.asarray(fit.responses["predict"], float))
            seen.append(np.asarray(fits.y, float))
            losses.setdefault("squared error", []).append((said[-1] - seen[-1]) ** 2)
    else:
        if any("predict_proba" not in fit.responses for fit in fits.both):
            return None
        place = np.searchsorted(fits.classes, fits.y)
        two = len(fits.classes) == 2
        what = (
            f'the share of "{fits.classes[1]}", by the probability that the model gives it'
            if two
            else "the share of right predictions, by the probability that the model gives them"
        )
        for fit in fits.both:
            p = np.asarray(fit.responses["predict_proba"], float)
            said.append(p[:, 1] if two else p.max(axis=1))
            seen.append((place == (1 if two else p.argmax(axis=1))).astype(float))
            truth = place[:, None] == np.arange(len(fits.classes))
            losses.setdefault("Brier score", []).append(((p - truth) ** 2).sum(axis=1))
            own = np.clip(p[np.arange(len(p)), place], TINY, 1)
            losses.setdefault("log loss", []).append(-np.log(own))
    sides = [_bins(a, b) for a, b in zip(said, seen, strict=True)]
    table = []
    for name, (before, after) in losses.items():
        gap = after - before
        error = float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else np.nan
        mean = float(gap.mean())
        low, high = mean - 1.96 * error, mean + 1.96 * error
        table.append({"name": name, "equal": before.mean(), "reweighted": after.mean()})
        table[-1] |= {"difference": mean, "low": low, "high": high}
    before, after = (
        sum(t["rows"] * abs(t["said"] - t["seen"]) for t in side) / len(fits.y) for side in sides
    )
    gap = {"name": "calibration gap", "equal": before, "reweighted": after}
    table.append(gap | {"difference": after - before, "low": None, "high": None})
    return {"what": what, "before": sides[0], "after": sides[1], "table": table}


def _bins(said: Float[np.ndarray, " n"], seen: Float[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Rows in the order of what is said, in ten parts: means, and a 95 % interval of what is seen."""
    order = np.argsort(said, kind="stable")
    parts = [p for p in np.array_split(order, min(BINS, max(len(order) // 5, 1))) if len(p)]
    share = bool(np.isin(seen, (0, 1)).all())
    lines = []
    for part in parts:
        mean, n = float(seen[part].mean()), len(part)
        # Of shares the interval of Wilson, which is no point where all are equal.
        if share:
            z2 = 1.96**2 / n
            middle = (mean + z2 / 2) / (1 + z2)
            half = 1.96 * np.sqrt(mean * (1 - mean) / n + z2 / (4 * n)) / (1 + z2)
        else:
            middle, half = mean, 1.96 * seen[part].std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        lines.append(
            {
                "said": float(said[part].mean()),
                "seen": mean,
                "low": float(middle - half),
                "high": float(middle + half),
                "rows": n,
            }
        )
    return lines
