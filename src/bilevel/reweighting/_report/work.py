"""What checking rows costs, and what checked rows have been worth so far."""

from typing import Any

import numpy as np

from .._weights.baselines import agreeing_rows, stack_rows
from .._weights.coded_labels import fit_weighted, take_rows
from .._weights.fits import independent
from . import refits
from .refits import Rows, Score

DRAWS = 3
FEWEST = 10  # verified rows of a point of the curve


def work(
    rows: Rows,
    noise: dict[str, Any] | None,
    minutes: float | int | None,
    holdout: tuple[Any, np.ndarray] | None,
    seed: int,
) -> dict[str, Any] | None:
    """Hours for the flagged rows, for all and for those to verify next; the curve; None unasked."""
    if minutes is None:
        return None
    flagged = int((~np.asarray(rows.result.keep)).sum())
    precision = None if noise is None or noise["precision"] is None else noise["precision"]["value"]
    each = None if not precision else minutes / precision
    rate = None if noise is None else noise["rate"]["value"]
    following = None if noise is None or noise["verify"] is None else len(noise["verify"]["rows"])
    return {
        "minutes_per_check": minutes,
        "flagged": flagged,
        "hours": flagged * minutes / 60,
        "hours_of_all": len(rows.y) * minutes / 60,
        "minutes_per_wrong_label": each,
        "minutes_per_wrong_label_at_random": None if not rate else minutes / rate,
        "verify_rows": following,
        "verify_hours": None if following is None else following * minutes / 60,
        "curve": verified_curve(rows, minutes, holdout, seed),
    }


def verified_curve(
    rows: Rows, minutes: float | int, holdout: tuple[Any, np.ndarray] | None, seed: int
) -> dict[str, Any] | None:
    """The score against the number of verified rows, simulated by parts of the trusted rows.

    An eighth, a quarter, a half and all of the trusted rows, in 3 random orders, stand for what a
    person has verified. The final estimator is fitted on them alone, and on them and the training
    rows whose label such a fit agrees with (the filter); of more than 20000 training rows a random
    20000. Without a hold-out a random half of the trusted rows judges, and the other half is drawn
    from. The weights are not learned again, which would take as long as the run.

    None for fewer than 20 rows to draw from. Cost: 24 fits.
    """
    rng = np.random.default_rng([seed, 3])
    pool = np.arange(len(rows.y_trusted))
    if holdout is None:
        order = rng.permutation(pool)
        judge, pool = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        holdout = take_rows(rows.X_trusted, judge), rows.y_trusted[judge]
        judged = "half of the trusted rows"
    else:
        judged = "hold-out"
    if len(pool) < 2 * FEWEST:
        return None
    n = len(rows.y)
    index = np.arange(n)
    if n > refits.MAX_ROWS:
        index = np.sort(rng.choice(n, refits.MAX_ROWS, replace=False))
    train = take_rows(rows.X, index), rows.y[index], rows.result.counts[0][index]
    orders = [rng.permutation(pool) for _ in range(DRAWS)]
    sizes = sorted({max(len(pool) >> k, FEWEST) for k in range(4)})

    def verified(some: np.ndarray) -> tuple[Any, ...]:
        trusted = take_rows(rows.X_trusted, some), rows.y_trusted[some], rows.result.counts[1][some]
        return rows.estimator, rows.score, train, trusted, holdout

    asked = (verified(order[:size]) for size in sizes for order in orders)
    found_of = np.reshape(independent(_scores, asked), (len(sizes), DRAWS, 2))
    lines = []
    for size, scores in zip(sizes, found_of, strict=True):
        line: dict[str, Any] = {"verified": size, "hours": size * minutes / 60}
        for name, found in zip(("trusted_only", "filter"), scores.T, strict=True):
            known = found[np.isfinite(found)]
            ends = ("", np.mean), ("_low", np.min), ("_high", np.max)
            line |= {name + end: float(of(known)) if len(known) else None for end, of in ends}
        lines.append(line)
    return {"judged_on": judged, "draws": DRAWS, "lines": lines}


def _scores(
    estimator: Any,
    score: Score,
    train: tuple[Any, np.ndarray, np.ndarray],
    verified: tuple[Any, np.ndarray, np.ndarray],
    holdout: tuple[Any, np.ndarray],
) -> tuple[float, float]:
    """(of the verified rows alone, of the filter); NaN where they have one class only."""
    X, y, counts = verified
    if score.classes is not None and len(np.unique(y)) < 2:
        return np.nan, np.nan
    alone = fit_weighted(estimator, X, y, counts)
    agree = agreeing_rows(alone, train[0], train[1], train[2])
    both = fit_weighted(
        estimator,
        stack_rows(train[0], X),
        stack_rows(train[1], y),
        np.concatenate([train[2] * agree, counts]),
    )
    return score(alone, *holdout), score(both, *holdout)
