"""The candidates: weights that are judged on the trusted rows that each has not seen."""

import os
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, PyTree

from ..._analysis.weight_statistics import effective_sample_size, entropy
from ..._callback import AbstractCallback
from .._inputs.fingerprint import check_fingerprint, fingerprint
from .._inputs.prepare import Prepared, PreparedTable
from .baselines import BASELINES, SIMPLEST
from .diagnostics import check_choice, check_transfer
from .features import centred_ranks
from .judge import judge_with
from .labels import mean_outputs
from .result import CrossValidatedWeights, Learned
from .row_weights import allowed, free_row_weights
from .weight_function import FOLDS, Folds, Path, effective_weights

CLEAR = 0.5  # standard errors by which "all rows + trusted" must be beaten
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


class Candidate(NamedTuple):
    """Weights of all training rows, for each fold and for all trusted rows; and of a trusted row."""

    weights: Float[np.ndarray, "folds n"]
    trusted: Float[np.ndarray, " folds"]

    def fit_weights(self, data: Folds) -> Float[np.ndarray, "folds all"]:
        """The weights of the rows that models are fitted on, for each fold."""
        training = data.inflate * self.weights[:, data.sub]
        return np.hstack([training, self.trusted[:, None] * data.others])

    def with_neutral_rows(self, unjudged: Bool[np.ndarray, " n"]) -> "Candidate":
        """Rows whose class no trusted row has get the mean weight of the others."""
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

    @property
    def table(self) -> pd.DataFrame:
        """How the candidates did, see `candidate_table`."""
        return candidate_table(self.judged)

    @property
    def history(self) -> pd.DataFrame:
        """The trace of the path learned on all folds, with the weights' size and entropy."""
        z = self.data.described[FOLDS].features
        weights = [at(u, z) for u in self.path.us]
        return self.path.trace.assign(
            effective_sample_size=[effective_sample_size(w) for w in weights],
            entropy=[entropy(w) for w in weights],
        )


def candidate_table(judged: dict[str, tuple[np.ndarray, float]]) -> pd.DataFrame:
    """The table of candidates: loss, score, and the difference of the loss to the simplest one's.

    The standard error is of the paired difference.
    """
    simplest = judged[SIMPLEST][0]
    return pd.DataFrame(
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


def best_candidate(table: pd.DataFrame) -> str:
    """The one with the least loss, if it is clearly better than "all rows + trusted"; else that.

    Clearly: by more than half a standard error of the paired difference.
    """
    best = str(table["loss"].idxmin())
    clear = table.loc[best, "difference"] < -CLEAR * table.loc[best, "standard_error"]
    return best if clear else SIMPLEST


def at(u: dict[str, Any], z: np.ndarray) -> Float[np.ndarray, " n"]:
    """The weight function with these coefficients, of these features."""
    z = z[:, : len(u["slope"])]
    return np.asarray(
        effective_weights(jax.tree.map(jnp.asarray, u), jnp.asarray(z, u["slope"].dtype)),
        np.float64,
    )


def effective(weights: Float[np.ndarray, "folds n"]) -> Float[np.ndarray, "folds n"]:
    """Scaled, for each fold, to sum to the effective sample size."""
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
    data: Folds,
    callbacks: Sequence[AbstractCallback] = (),
    folder: str | os.PathLike | None = None,
    seed: int = 0,
) -> Search:
    """Build the candidates and judge them on the trusted rows that each has not seen.

    With ten trusted rows or more for each parameter of the model, free row weights are one too.

    Experts of "weights": the best rows by what models say of their labels, at eight shares and by two
    rankings; the points along the path of the learned weight function; and three baselines. Where the
    trusted rows are distributed otherwise, also the rankings times the density ratio.

    A `folder` keeps the learned paths, for an equal call (with this `seed`) to go on with.
    """
    folder = None if folder is None else FilePath(folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = [data.x, data.y, data.x_trusted, data.y_trusted]
        arrays += [] if data.groups is None else [data.groups]
        check_fingerprint(folder, fingerprint(("auto", seed), arrays))
    fits = FOLDS + 1
    one, none = np.ones(fits), np.zeros(fits)
    everything = np.ones((fits, data.n))
    candidates = {
        "uniform": Candidate(everything, none),
        SIMPLEST: Candidate(everything, one),
        "trusted only": Candidate(0 * everything, one),
        "filter": Candidate(np.stack([d.agree for d in data.described]).astype(float), one),
    }
    judged: dict[str, tuple[np.ndarray, float]] = {}

    def judge(some: dict[str, Candidate]) -> None:
        for name in some:
            some[name] = some[name].with_neutral_rows(data.unjudged)
            if name not in judged:
                judged[name] = data.judge(some[name].fit_weights(data))

    judge(candidates)
    a, _, c, d = np.moveaxis(np.stack([d.fits for d in data.described]), 1, 0)
    rankings = {"early": a + d, "late": c + d}
    ranks = {
        name: np.stack([(centred_ranks(values) + 1) / 2 for values in q])
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
        indicators = [np.eye(data.groups.max() + 1)[data.groups]] * fits
        _, points = _path(data, indicators, None, callbacks, folder, "groups")
        judge(points)
        deviance = {name: data.kind.deviance(judged[name][0]) for name in points}
        candidates["groups"], _ = mixture(points, deviance)
    if allowed(data):
        free = [free_row_weights(data, k, callbacks) for k in range(fits)]
        candidates["row weights"] = Candidate(
            np.stack([w for w, _ in free]), np.array([t for _, t in free])
        )
    judge(candidates)
    table = pd.DataFrame(
        {"loss": {e: judged[e][0].mean() for e in experts}, "share": share.to_dict()}
    )
    final = {name: judged[name] for name in candidates}
    return Search(data, candidates, final, table, path)


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


def choose(
    found: Search, tables: Prepared | None = None, judge: Any = None
) -> CrossValidatedWeights:
    """Judge the candidates and return the weights of the one to use.

    The linear model that found the candidates has judged them already; a `judge`, any scikit-learn
    estimator, judges them all again.
    """
    table = found.table
    if tables is not None and judge is not None:
        names = [*BASELINES, *(name for name in found.judged if name not in BASELINES)]
        table = candidate_table(
            {
                n: judge_with(
                    judge, tables, found.data, found.candidates[n].fit_weights(found.data)
                )
                for n in names
            }
        )
    winner = best_candidate(table)
    chosen, folds = found.candidates[winner], found.data
    weights, trusted = chosen.weights[FOLDS], float(chosen.trusted[FOLDS])
    scale = float(weights.mean()) or 1.0
    return CrossValidatedWeights(
        weights=weights / scale,
        trusted_weight=trusted / scale,
        scale=scale,
        winner=winner,
        candidates=table,
        experts=found.experts,
        label_quality=folds.described[FOLDS].quality,
        keep=folds.kind.agrees(folds.described[FOLDS].outputs, folds.y) | folds.unjudged,
        shifted=folds.shift is not None,
    )


def explain(found: Search, chosen: CrossValidatedWeights, tables: Prepared, judge: Any) -> Learned:
    """The chosen weights, the weighting model that they give, and the questions asked of them."""
    weights = chosen.weights
    scores = _score_weighting_model(found, chosen.winner, tables.holdout)
    parameters = _weighting_model(found, chosen.winner)
    size = effective_sample_size(weights) if weights.any() else 0.0
    checks = check_choice(
        chosen.winner, chosen.candidates, size, len(weights), scores, tables.num_outputs
    )
    checks += [] if judge is None else [check_transfer(judge, found.table, chosen.candidates)]
    group_weights = None
    if tables.groups is not None:
        names, codes = np.unique(tables.groups, return_inverse=True)
        group_weights = pd.Series(np.bincount(codes, weights) / np.bincount(codes), names)
    return Learned(
        weights=weights,
        trusted_weight=chosen.trusted_weight,
        scale=chosen.scale,
        label_quality=chosen.label_quality,
        keep=chosen.keep,
        winner=chosen.winner,
        candidates=chosen.candidates,
        effective_sample_size=size,
        entropy=entropy(weights) if weights.any() else 0.0,
        checks=checks,
        scores=scores,
        parameters=parameters,
        history=found.history,
        stats={"num_steps": found.path.steps[-1]},
        group_weights=group_weights,
        scorer=found.data.described[FOLDS].scorer,
    )


def _score_weighting_model(
    found: Search, winner: str, holdout: PreparedTable | None
) -> pd.DataFrame:
    """The weighting model on uniform weights, as the path left it, retrained there, and as chosen."""
    folds, path = found.data, found.path
    end = Candidate(
        np.stack([at(path.us[-1], d.features) for d in folds.described]),
        np.full(FOLDS + 1, np.exp(path.us[-1]["log_trusted"])),
    )
    models = {
        "uniform": folds.fit(found.candidates["uniform"].fit_weights(folds)),
        "warm": path.w,
        "retrained": folds.fit(end.fit_weights(folds)),
        "chosen": folds.fit(found.candidates[winner].fit_weights(folds)),
    }
    table: dict[str, dict[str, float]] = {}
    for name, w in models.items():
        losses, score = folds.judge_models(w)
        table[name] = {"trusted_loss": float(losses.mean()), "trusted_score": score}
        if holdout is not None:
            # The model of all trusted rows; the path leaves one per fold, whose outputs are averaged.
            last = {key: value[FOLDS:] if len(value) > FOLDS else value for key, value in w.items()}
            outputs = mean_outputs(last, holdout.features)
            losses, score = folds.kind.judge(outputs, holdout.targets)
            table[name] |= {"holdout_loss": float(losses.mean()), "holdout_score": score}
    return pd.DataFrame.from_dict(table, orient="index")


def _weighting_model(found: Search, winner: str) -> PyTree:
    """The parameters of the weighting model, trained from scratch on the winner's weights."""
    fit_weights = found.candidates[winner].fit_weights(found.data)
    models = found.data.fit(fit_weights[FOLDS:])
    return {name: value[0] for name, value in models.items()}
