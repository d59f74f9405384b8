"""Weights for training rows, learned and chosen on held-out folds of the trusted rows."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ..._analysis.weight_statistics import effective_sample_size, entropy
from ..._callback import AbstractCallback
from .._inputs.checks import InputError, check_trusted_count
from .features import centred_ranks
from .labels import Classes, Numbers
from .row_weights import allowed, free_row_weights
from .weight_function import FOLDS, Folds, Path, effective_weights

SIMPLEST = "all rows + trusted"
BASELINES = ("uniform", SIMPLEST, "trusted only", "filter")
CLEAR = 0.5  # standard errors by which "all rows + trusted" must be beaten
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


class CrossValidatedWeights(NamedTuple):
    """What `cross_validated_weights` returns.

    Attributes:
        weights: one a training row, mean 1; all zero if the trusted rows alone are best.
        trusted_weight: what a trusted row weighs beside them.
        scale: fit the final model with `scale * weights` and `scale * trusted_weight`: then the
            training rows count as their effective sample size, which a penalised model notices.
        winner: the candidate that was chosen.
        candidates: a table with a line a candidate: `loss` and `score` (accuracy or R2) on the trusted
            rows, each judged by models that have not seen it, and the `difference` of the loss to
            "all rows + trusted" with its `standard_error`, paired over the rows.
        experts: what "weights" is a mixture of: held-out `loss` of each, and its `share`.
        label_quality: in [0, 1], one a training row; the lowest are most likely to be wrong. It is
            there whichever candidate won.
        shifted: whether the trusted rows are distributed otherwise than the training rows.
    """

    weights: Float[np.ndarray, " rows"]
    trusted_weight: float
    scale: float
    winner: str
    candidates: pd.DataFrame
    experts: pd.DataFrame
    label_quality: Float[np.ndarray, " rows"]
    shifted: bool

    def __str__(self) -> str:
        row = self.candidates.loc[self.winner]
        return (
            f"{self.winner}: held-out loss {row['loss']:.4g}, {row['difference']:+.4g} (standard "
            f"error {row['standard_error']:.2g}) against {SIMPLEST}"
        )


class Candidate(NamedTuple):
    """Weights of all training rows, one line a fold and one of all; and of a trusted row."""

    weights: Float[np.ndarray, "folds n"]
    trusted: Float[np.ndarray, " folds"]

    def lines(self, data: Folds) -> Float[np.ndarray, "folds all"]:
        """The weights of the rows that models are fitted on."""
        training = data.inflate * self.weights[:, data.sub]
        return np.hstack([training, self.trusted[:, None] * data.others])

    def neutral(self, unjudged: Bool[np.ndarray, " n"]) -> "Candidate":
        """With the mean weight of the others for rows whose class no trusted row has."""
        weights = self.weights
        if unjudged.any():
            mean = weights[:, ~unjudged].mean(axis=1, keepdims=True)
            weights = np.where(unjudged, mean, weights)
        return Candidate(weights, self.trusted)


class Search(NamedTuple):
    """The data with their folds; the candidates and how they did; what they were made of."""

    data: Folds
    candidates: dict[str, Candidate]
    judged: dict[str, tuple[Float[np.ndarray, " trusted"], float]]
    experts: pd.DataFrame
    path: Path
    label_quality: Float[np.ndarray, " n"]

    @property
    def history(self) -> pd.DataFrame:
        """The trace of the path learned on all folds, with the weights' size and entropy."""
        z = self.data.described[FOLDS].features
        weights = [at(u, z) for u in self.path.us]
        return self.path.trace.assign(
            effective_sample_size=[effective_sample_size(w) for w in weights],
            entropy=[entropy(w) for w in weights],
        )


def at(u: dict[str, Any], z: np.ndarray) -> Float[np.ndarray, " n"]:
    """The weight function with these coefficients, of these features."""
    z = z[:, : len(u["slope"])]
    return np.asarray(
        effective_weights(jax.tree.map(jnp.asarray, u), jnp.asarray(z, u["slope"].dtype)),
        np.float64,
    )


def effective(weights: Float[np.ndarray, "folds n"]) -> Float[np.ndarray, "folds n"]:
    """Each line scaled to sum to its effective sample size."""
    return weights * (weights.sum(1) / np.sum(weights**2, axis=1))[:, None]


def mixture(experts: dict[str, Candidate], judged: dict[str, float]) -> tuple[Candidate, pd.Series]:
    """`sum_e p_e w_e`, `p_e ~ exp(-deviance_e)`: exponential weights on held-out losses."""
    deviance = pd.Series(judged)
    share = np.exp(deviance.min() - deviance)
    share /= share.sum()
    return (
        Candidate(
            sum(p * experts[name].weights for name, p in share.items()),  # pyright: ignore
            sum(p * experts[name].trusted for name, p in share.items()),  # pyright: ignore
        ),
        share,
    )


def search(
    data: Folds, callbacks: Sequence[AbstractCallback] = (), folder: FilePath | None = None
) -> Search:
    """Build the candidates and judge them on the trusted rows that each has not seen.

    With ten trusted rows or more for each parameter of the model, free row weights are one too.

    Experts of "weights": the best rows by what models say of their labels, at eight shares and by two
    rankings; the points along the path of the learned weight function; and three baselines. Where the
    trusted rows are distributed otherwise, also the rankings times the density ratio.
    """
    lines = FOLDS + 1
    one, none = np.ones(lines), np.zeros(lines)
    everything = np.ones((lines, data.n))
    candidates = {
        "uniform": Candidate(everything, none),
        SIMPLEST: Candidate(everything, one),
        "trusted only": Candidate(0 * everything, one),
        "filter": Candidate(np.stack([d.agree for d in data.described]).astype(float), one),
    }
    judged: dict[str, tuple[np.ndarray, float]] = {}

    def judge(some: dict[str, Candidate]) -> None:
        for name in some:
            some[name] = some[name].neutral(data.unjudged)
            if name not in judged:
                judged[name] = data.judge(some[name].lines(data))

    judge(candidates)
    a, _, c, d = np.moveaxis(np.stack([d.fits for d in data.described]), 1, 0)
    rankings = {"early": a + d, "late": c + d}
    ranks = {
        name: np.stack([(centred_ranks(line) + 1) / 2 for line in q])
        for name, q in rankings.items()
    }
    ranked = {
        f"best {share:.0%}, {name}": Candidate((q >= 1 - share).astype(float), one)
        for name, q in ranks.items()
        for share in SHARES
    }
    experts = {name: candidates[name] for name in (SIMPLEST, "trusted only", "filter")} | ranked
    start = data.start()
    if data.shift is not None:
        ratio = np.stack([np.exp(2 * half) for half in data.shift])
        candidates["density ratio"] = Candidate(effective(ratio), one)
        judge({"density ratio": candidates["density ratio"]})
        experts |= {
            f"{name}, by density ratio": Candidate(effective(e.weights * ratio), one)
            for name, e in ranked.items()
        } | {"density ratio": candidates["density ratio"]}
        gain = judged[SIMPLEST][0] - judged["density ratio"][0]
        if gain.mean() > gain.std(ddof=1) / np.sqrt(data.m):
            start = data.start(ratio=True)

    features = [d.features for d in data.described]
    path, points = _path(data, features, start, callbacks, folder, "features")
    experts |= points
    judge(experts)
    deviance = {name: data.kind.deviance(judged[name][0]) for name in experts}
    candidates["weights"], share = mixture(experts, deviance)
    if data.groups is not None:
        indicators = [np.eye(data.groups.max() + 1)[data.groups]] * lines
        _, points = _path(data, indicators, None, callbacks, folder, "groups")
        judge(points)
        deviance = {name: data.kind.deviance(judged[name][0]) for name in points}
        candidates["groups"], _ = mixture(points, deviance)
    if allowed(data):
        free = [free_row_weights(data, k, callbacks) for k in range(lines)]
        candidates["row weights"] = Candidate(
            np.stack([w for w, _ in free]), np.array([t for _, t in free])
        )
    judge(candidates)
    table = pd.DataFrame(
        {"loss": {e: judged[e][0].mean() for e in experts}, "share": share.to_dict()}
    )
    final = {name: judged[name] for name in candidates}
    return Search(data, candidates, final, table, path, data.described[FOLDS].quality)


def _path(
    data: Folds,
    features: list[np.ndarray],
    start: dict[str, Any] | None,
    callbacks: Sequence[AbstractCallback],
    folder: FilePath | None,
    name: str,
) -> tuple[Path, dict[str, Candidate]]:
    """The path learned on all folds, and its points; those of a fold are of the path without it."""
    start = data.start(features[0].shape[1]) if start is None else start
    paths = []
    for k in (*range(FOLDS), None):
        file = None if folder is None else folder / f"path-{name}-{k}.npz"
        if file is not None and file.exists():
            paths.append(Path.load(file))
            continue
        paths.append(data.path(features, k, start, callbacks))
        if file is not None:
            paths[-1].save(file)
    points = {}
    for t, step in enumerate(paths[-1].steps):
        us = [path.us[t] for path in paths]
        points[f"{name}, step {step}"] = Candidate(
            np.stack([at(u, z) for u, z in zip(us, features, strict=True)]),
            np.array([np.exp(u["log_trusted"]) for u in us], float),
        )
    return paths[-1], points


def choose(judged: dict[str, tuple[np.ndarray, float]]) -> tuple[pd.DataFrame, str]:
    """The table of candidates, and the best if it is clearly better than "all rows + trusted".

    Clearly: by more than half a standard error of the paired difference.
    """
    simplest = judged[SIMPLEST][0]
    table = pd.DataFrame(
        {
            name: {
                "loss": losses.mean(),
                "score": score,
                "difference": (losses - simplest).mean(),
                "standard_error": (losses - simplest).std(ddof=1) / np.sqrt(len(losses)),
            }
            for name, (losses, score) in judged.items()
        }
    ).T
    best = str(table["loss"].idxmin())
    clear = table.loc[best, "difference"] < -CLEAR * table.loc[best, "standard_error"]
    return table, best if clear else SIMPLEST


def cross_validated_weights(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    groups: Any = None,
    seed: int = 0,
    callbacks: Sequence[AbstractCallback] = (),
) -> CrossValidatedWeights:
    """Weights of rows by what models say of their labels, chosen on folds of the trusted rows.

        a, b, c, d = what models that have not seen the row say of its label: trained on all rows, on
                     the trusted rows, on those and the rows that agree, on those and the best half
        "weights"  = sum_e p_e w_e,   p_e ~ exp(-sum_j loss_j(w_e))       over held-out trusted rows j

    with the experts `w_e`: the best 90, 80, ..., 20 % of the rows by a + d, and by c + d; the rows
    that agree with the trusted model, all rows, and none; and five points along a learned path,

        s_i = sigmoid(x_0 + <x, z_i>),   w_i ~ s_i,   trusted rows weigh e^tau
        f(u, w) = sum_k [ sum_i w_i loss_i(w_k) + e^tau sum_{j not in fold k} loss_j(w_k)
                          + ||w_k||^2 / 2 ]
        F(u, w) = mean over folds k and trusted rows j in k of loss_j(e^t w_k)

    with u = (x_0, x, tau, t), learned by near-exact hypergradients in 25 Adam steps from uniform
    weights, z of a, b, c and d. The rankings, features and models of a fold have not seen its trusted
    rows; nor has the path whose points are judged on them. Where a classifier can tell the trusted
    rows from the training rows, the density ratio is a feature, a factor of experts and a candidate.

    The mixture is a candidate beside the four baselines: uniform, all rows + trusted, trusted only,
    and the filter; a mixture along a path of group weights; and, with ten trusted rows or more for
    each parameter of the model, free row weights. "All rows + trusted" is kept unless the best one is
    better by more than half a standard error of the paired difference.

    Args:
        X, y: training rows `(rows, features)`, scaled to order one, and class codes 0, 1, ...
            (integers), or targets scaled to order one (floating).
        X_trusted, y_trusted: the trusted rows; at least 3 of each class that matters.
        groups: codes 0, 1, ... of the groups that the training rows belong to.
        seed: of the folds.
        callbacks: for each of the four runs.

    Cost: four paths of three models (of 25 steps with at most 20 gradients and 10 Hessian-vector
    products each), and about 120 fits of a linear model, all on at most 20000 training rows.

    Raises:
        InputError: fewer than 6 trusted rows, or codes that are no codes.

    The nested choice is slightly optimistic: the models of the other folds, which the coefficients
    are fitted to, have trained on the fold's rows.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(400, 2)); y = (X[:, 0] > 0).astype(int)
    >>> noisy = np.where(np.arange(300) < 100, 1 - y[:300], y[:300])  # the first hundred are wrong
    >>> found = cross_validated_weights(X[:300], noisy, X[300:], y[300:])
    >>> bool(found.weights[:100].mean() < 0.2), round(float(found.weights.mean()), 6)
    (True, 1.0)
    """
    y, y_trusted = np.asarray(y), np.asarray(y_trusted)
    data = make_folds(X, y, X_trusted, y_trusted, groups, seed)
    found = search(data, callbacks)
    table, winner = choose(found.judged)
    chosen = found.candidates[winner]
    weights, trusted = chosen.weights[FOLDS], float(chosen.trusted[FOLDS])
    scale = float(weights.mean()) or 1.0
    return CrossValidatedWeights(
        weights=weights / scale,
        trusted_weight=trusted / scale,
        scale=scale,
        winner=winner,
        candidates=table,
        experts=found.experts,
        label_quality=found.label_quality,
        shifted=data.shift is not None,
    )


def make_folds(
    X: Any, y: np.ndarray, X_trusted: Any, y_trusted: np.ndarray, groups: Any, seed: int
) -> Folds:
    """Check what only this method needs, and fit the models that describe the rows.

    Raises:
        InputError: fewer than 6 trusted rows, or codes that are no codes.
    """
    check_trusted_count(len(y_trusted), FOLDS)
    kinds = y.dtype.kind + y_trusted.dtype.kind
    if kinds == "ff":
        kind: Classes | Numbers = Numbers()
    elif set(kinds) <= set("iu") and min(y.min(), y_trusted.min()) >= 0:
        kind = Classes(int(max(y.max(), y_trusted.max())) + 1)
    else:
        raise InputError(
            "`y` and `y_trusted` must both be class codes 0, 1, ... or both floating targets, got "
            f"{y.dtype} and {y_trusted.dtype} from {min(y.min(), y_trusted.min())}; "
            "`sklearn.preprocessing.LabelEncoder` makes codes."
        )
    floating = jax.dtypes.canonicalize_dtype(float)
    x, x_trusted = np.asarray(X, floating), np.asarray(X_trusted, floating)
    codes = None if groups is None else np.asarray(groups)
    return Folds(x, y, x_trusted, y_trusted, kind, codes, np.random.default_rng(seed))
