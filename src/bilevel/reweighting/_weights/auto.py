"""`method="auto"`: candidates judged on held-out trusted rows, and checks of the choice."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge

from ..._analysis.weight_statistics import effective_sample_size, entropy
from ..._callback import AbstractCallback
from .._inputs.containers import like
from .._inputs.fingerprint import check_fingerprint, fingerprint
from .._inputs.prepare import Prepared, PreparedTable
from .baselines import fit_weighted, stack_rows, take_rows
from .cross_validated import BASELINES, SIMPLEST, Candidate, Search, at, choose, make_folds, search
from .diagnostics import Check
from .labels import mean_outputs
from .result import WeightsResult, holdout_check
from .weight_function import FOLDS, Folds

LEAST = 1e-3  # the least probability that a candidate's model may give


def auto_weights(
    tables: Prepared,
    *,
    estimator: Any,
    seed: int,
    callbacks: Sequence[AbstractCallback],
    folder: str | os.PathLike | None,
    compare: Callable[[np.ndarray, float], pd.DataFrame | None],
) -> WeightsResult:
    """Search with the linear model; choose with it, or with the `estimator` if there is one.

    `compare` makes the table of baselines from the weights and the weight of a trusted row.
    """
    groups = tables.groups
    names, codes = (None, None) if groups is None else np.unique(groups, return_inverse=True)
    folds = make_folds(*tables.train.numbers, *tables.trusted.numbers, codes, seed)
    if folder is not None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = [*tables.train.numbers, *tables.trusted.numbers]
        arrays += [] if codes is None else [codes]
        check_fingerprint(folder, fingerprint(("auto", seed), arrays))
    found = search(folds, callbacks, folder)
    linear, winner = choose(found.judged)
    table, transfer = linear, None
    if estimator is not None and not _is_the_linear_model(estimator):
        finalists = [*BASELINES, *(name for name in found.judged if name not in BASELINES)]
        judged = {
            name: judge_with(estimator, tables, folds, found.candidates[name]) for name in finalists
        }
        table, winner = choose(judged)
        transfer = _transfer(estimator, linear, table)
    chosen = found.candidates[winner]
    weights, trusted = chosen.weights[FOLDS], float(chosen.trusted[FOLDS])
    scale = float(weights.mean()) or 1.0
    weights, trusted = weights / scale, trusted / scale
    baselines = compare(scale * weights, scale * trusted)
    final = folds.fit(chosen.lines(folds)[FOLDS:])
    described = folds.described[FOLDS]
    scores = _scores(found, winner, tables.holdout)
    checks = [_choice(table, winner), *_checks(found, scores, weights, tables.num_outputs)]
    checks += [] if transfer is None else [transfer]
    checks += [] if baselines is None else [holdout_check(baselines, winner, judged=True)]
    group_weights = None
    if names is not None and codes is not None:
        group_weights = pd.Series(np.bincount(codes, weights) / np.bincount(codes), names)
    return WeightsResult(
        weights=like(weights, tables.given, "weight"),
        trusted_weight=trusted,
        keep=folds.kind.agrees(described.outputs, folds.y) | folds.unjudged,
        effective_sample_size=effective_sample_size(weights) if weights.any() else 0.0,
        entropy=entropy(weights) if weights.any() else 0.0,
        history=found.history,
        scores=scores,
        baselines=baselines,
        checks=checks,
        parameters={name: value[0] for name, value in final.items()},
        stats={"num_steps": found.path.steps[-1]},
        winner=winner,
        candidates=table,
        label_quality=like(found.label_quality, tables.given, "label_quality"),
        scale=scale,
        group_weights=group_weights,
        scorer=described.scorer,
        encoding=tables.encoding,
    )


def _scores(found: Search, winner: str, holdout: PreparedTable | None) -> pd.DataFrame:
    """The weighting model on uniform weights, as the path left it, retrained there, and as chosen."""
    folds, path = found.data, found.path
    end = Candidate(
        np.stack([at(path.us[-1], d.features) for d in folds.described]),
        np.full(FOLDS + 1, np.exp(path.us[-1]["log_trusted"])),
    )
    models = {
        "uniform": folds.fit(found.candidates["uniform"].lines(folds)),
        "warm": path.w,
        "retrained": folds.fit(end.lines(folds)),
        "chosen": folds.fit(found.candidates[winner].lines(folds)),
    }
    table: dict[str, dict[str, float]] = {}
    for name, w in models.items():
        losses, score = folds.judge_models(w)
        table[name] = {"trusted_loss": float(losses.mean()), "trusted_score": score}
        if holdout is not None:
            # Of the model of all trusted rows; the path leaves one a fold, whose outputs are averaged.
            last = {key: value[FOLDS:] if len(value) > FOLDS else value for key, value in w.items()}
            outputs = mean_outputs(last, holdout.features)
            losses, score = folds.kind.judge(outputs, holdout.targets)
            table[name] |= {"holdout_loss": float(losses.mean()), "holdout_score": score}
    return pd.DataFrame.from_dict(table, orient="index")


def _is_the_linear_model(estimator: Any) -> bool:
    """Whether it is the penalised linear model that learns the weights; its solver does not matter."""
    if type(estimator) not in (LogisticRegression, Ridge):
        return False
    free = {"max_iter", "tol", "solver", "random_state", "n_jobs", "verbose", "warm_start"}
    usual = type(estimator)().get_params()
    return all(usual[k] == v for k, v in estimator.get_params().items() if k not in free)


def judge_with(
    estimator: Any, tables: Prepared, folds: Folds, candidate: Candidate
) -> tuple[np.ndarray, float]:
    """Held-out losses of the trusted rows, and accuracy or R2, of any estimator fitted a fold."""
    lines = candidate.lines(folds)
    X = stack_rows(take_rows(tables.train.X, folds.sub), tables.trusted.X)
    y = stack_rows(take_rows(tables.train.y, folds.sub), tables.trusted.y)
    outputs = np.full((folds.m, tables.num_outputs), np.log(LEAST))
    for k in range(FOLDS):
        held_out = folds.fold == k
        model = fit_weighted(estimator, X, y, lines[k])
        part = take_rows(tables.trusted.X, np.flatnonzero(held_out))
        outputs[held_out] = _outputs(model, part, tables)
    return folds.kind.judge(outputs, folds.y_trusted)


def _outputs(model: Any, X: Any, tables: Prepared) -> np.ndarray:
    """Log-probabilities in the order of `tables.classes`, or predictions in units of the targets."""
    if tables.classes is None:
        target = np.asarray(tables.trusted.y, float)
        return ((model.predict(X) - target.mean()) / (target.std() or 1.0))[:, None]
    outputs = np.full((len(X), len(tables.classes)), np.log(LEAST))
    if hasattr(model, "predict_proba"):
        where = np.searchsorted(tables.classes, model.classes_)
        outputs[:, where] = np.log(np.maximum(model.predict_proba(X), LEAST))
    else:
        outputs[np.arange(len(X)), np.searchsorted(tables.classes, model.predict(X))] = 0.0
    return outputs


def _choice(table: pd.DataFrame, winner: str) -> Check:
    """What was chosen, against the best of the others that a user could have without weights."""
    name = "the choice on held-out trusted rows"
    rivals = [b for b in BASELINES if b in table.index and b != winner]
    best = str(table.loc[rivals, "loss"].idxmin())
    numbers = (
        f"held-out loss {table.loc[winner, 'loss']:.4g}, score {table.loc[winner, 'score']:.4f}; "
        f"the best other baseline ({best}) has {table.loc[best, 'loss']:.4g} and "
        f"{table.loc[best, 'score']:.4f}"
    )
    if winner == SIMPLEST:
        return Check(name, True, f"no weights are clearly better than {SIMPLEST}: {numbers}")
    return Check(name, True, f"{winner}: {numbers}")


def _checks(found: Search, scores: pd.DataFrame, weights: np.ndarray, outputs: int) -> list[Check]:
    n = len(weights)
    least = min(max(10 * outputs, 0.02 * n), n / 2)
    ess = effective_sample_size(weights) if weights.any() else 0.0
    uniform, warm, again = scores["trusted_loss"].loc[["uniform", "warm", "retrained"]]
    checks = []
    if weights.any():
        detail = f"effective sample size {ess:.0f} of {n} rows (asked for: {least:.0f} or more)"
        checks.append(Check("the weights did not collapse", bool(ess >= least), detail))
    kept = again <= warm + 1e-3 or uniform - again >= 0.9 * (uniform - warm)
    detail = (
        f"held-out loss {warm:.4g} of the models as the run left them, {again:.4g} retrained from "
        "scratch on its last weights"
    )
    return [*checks, Check("retraining keeps the gain", bool(kept), detail)]


def _transfer(estimator: Any, linear: pd.DataFrame, table: pd.DataFrame) -> Check:
    """Whether what the linear model finds better is better for the estimator too."""
    name = type(estimator).__name__
    ours = [c for c in table.index if c not in BASELINES]
    best = str(linear.loc[ours, "loss"].idxmin())
    gains = [t.loc[best, "difference"] for t in (linear, table)]
    detail = (
        f"{best} against {SIMPLEST}, held-out loss: {gains[0]:+.4g} with the linear model that "
        f"learned it, {gains[1]:+.4g} (standard error {table.loc[best, 'standard_error']:.2g}) with "
        f"{name}; all candidates were judged with {name}"
    )
    carried = gains[0] >= 0 or gains[1] < table.loc[best, "standard_error"]
    return Check(f"the weights transfer to {name}", bool(carried), detail)
