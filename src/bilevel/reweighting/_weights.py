"""`learn_weights`: from arrays to weights, with what is needed to judge them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pandas as pd
import scipy.sparse
from jaxtyping import PyTree
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from .._algorithm.base import AbstractAlgorithm
from .._callback import AbstractCallback, Checkpoint, Chunk, Logger, read_lines
from .._inner import MinimiserInner
from .._problem import BilevelProblem, num_rows
from .._retrain import retrain_check
from .._sampler import FullBatch, Stream
from .._solution import RESULTS, Solution
from .._solve import solve
from ..tasks import (
    Model,
    linear_model,
    mlp_model,
    reweighting,
    softmax_cross_entropy,
    squared_error,
    uniform_weights,
)
from ._baselines import check_estimator_fits, compare_baselines
from ._data import (
    InputError,
    as_features,
    as_targets,
    check_labels,
    check_overlap,
    check_same_columns,
    find_classes,
    named,
)
from ._diagnostics import effective_sample_size, entropy, row_weights
from ._methods import build_method
from ._result import WeightsResult, ask, score_models

_MIN_MAX = object()
_RETRAIN = MinimiserInner(optx.LBFGS(rtol=1e-4, atol=1e-6), max_steps=1000)


class _History(AbstractCallback):
    """Collects the trace, with the weights' entropy and effective sample size, chunk by chunk.

    With a path it also appends every row to that file, and starts from the rows that an interrupted
    run left there up to `first_step`.
    """

    def __init__(self, path: Path | None, first_step: int):
        self._logger = None if path is None else Logger(path)
        earlier = [] if path is None else [json.loads(line) for line in read_lines(path)]
        self.rows = [row for row in earlier if row["step"] <= first_step]

    def __call__(self, chunk):
        """Add the chunk's last row: the weights are known at its end."""
        if not len(chunk.rows["step"]):
            return
        u = np.asarray(chunk.state.u)
        row = {name: column[-1].item() for name, column in chunk.rows.items()}
        row |= {"effective_sample_size": effective_sample_size(u), "entropy": entropy(u)}
        self.rows.append(row)
        if self._logger is not None:
            columns = {name: np.asarray([value]) for name, value in row.items()}
            self._logger(Chunk(chunk.step, chunk.num_steps, chunk.state, columns))

    def close(self):
        """Close the file."""
        if self._logger is not None:
            self._logger.close()


def learn_weights(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    task: Literal["auto", "classification", "regression"] = "auto",
    model: Literal["linear", "mlp"] | Model = "linear",
    method: str | AbstractAlgorithm = "near-exact",
    num_steps: int | None = None,
    l2: float = 1e-2,
    scaler: Any = _MIN_MAX,
    holdout: tuple[Any, Any] | None = None,
    estimator: Any = None,
    overlap: Literal["error", "keep"] = "error",
    seed: int = 0,
    callbacks: Sequence[AbstractCallback] = (),
    folder: str | os.PathLike | None = None,
) -> WeightsResult:
    """Learn what each training row is worth, judged by the loss on trusted rows.

    Solves the bilevel problem of `bilevel.tasks.reweighting`: the weights on the simplex for which
    a model trained with them does best on the trusted rows. The default method has no step size.

    Args:
        X: the training rows, a numeric matrix `(rows, features)` or data frame.
        y: their labels, or targets; noisy ones are what this is for.
        X_trusted, y_trusted: rows whose labels are right and whose distribution is the one that
            counts. With fewer than some hundred of them, weights fitted to their loss overfit it:
            keep a hold-out, and read the comparison with the baselines before using the weights.
        task: classification, regression, or `"auto"`: regression if `y` holds numbers that are not
            integers, or more than 50 distinct ones that on average occur less than ten times.
        model: the differentiable model whose loss is used: `"linear"` (softmax, or least squares),
            `"mlp"`, or any `bilevel.tasks.Model`.
        method: `"near-exact"`, `"soba"`, or a configured algorithm such as `bilevel.SOBA(...)`.
        num_steps: outer steps; by default 20 near-exact ones, with 1000 trusted rows or more 60, or
            10000 of SOBA.
        l2: strength of the model's l2 penalty; the features lie in [0, 1] at this point.
        scaler: a scikit-learn transformer for the features, fitted on the training rows; by default
            `MinMaxScaler()`. `None` takes the features as they are.
        holdout: `(X, y)` never used in learning; brings the table of baselines and the verdict.
        estimator: what the baselines are fitted with, any scikit-learn estimator that accepts
            `sample_weight`; by default `LogisticRegression` or `Ridge` on scaled features.
        overlap: what to do about training rows that also occur among the trusted rows: refuse
            (`"error"`), or go on (`"keep"`).
        seed: for batches and initial parameters. Equal calls with equal seeds give equal results.
        callbacks: more callbacks for `solve`, such as `bilevel.ProgressBar()`.
        folder: where to keep a checkpoint and the history; if it holds those of an equal call,
            interrupted or complete, that is gone on with (also for more `num_steps`).

    Returns:
        A `WeightsResult`.

    Raises:
        ValueError: about the data (an `InputError`: with the rows or columns at fault), or about
            an argument.
        BilevelError: the run met a non-finite number.

    Cost of the default: 20 (60) outer steps of at most 20 function-and-gradient evaluations and 20
    Hessian-vector products each, every one about two matrix products with X; memory a few times X.

    >>> import numpy as np
    >>> from sklearn.datasets import load_wine
    >>> X, y = load_wine(return_X_y=True)
    >>> trusted = np.arange(len(y)) % 2 == 0
    >>> noisy = y[~trusted].copy()
    >>> noisy[::4] = (noisy[::4] + 1) % 3  # every fourth label is made wrong
    >>> result = learn_weights(X[~trusted], noisy, X[trusted], y[trusted])
    >>> bool(result.weights[::4].max() < result.weights.mean())
    True
    >>> round(float(np.mean(result.weights)), 6)
    1.0
    """
    X, y, X_trusted, y_trusted = _as_given(X, y, X_trusted, y_trusted)
    regression = is_regression(task, y)
    if estimator is not None:
        check_estimator_fits(estimator, regression)
    check_same_columns(X, X_trusted, "X", "X_trusted")
    features, trusted_features = as_features(X, "X"), as_features(X_trusted, "X_trusted")
    labels = check_labels(y, X, "y")
    trusted_labels = check_labels(y_trusted, X_trusted, "y_trusted")
    if overlap == "error":
        check_overlap(X, X_trusted, "training", "trusted")
    elif overlap != "keep":
        raise ValueError(f"`overlap` must be 'error' or 'keep', got {overlap!r}.")

    held = None
    if holdout is not None:
        held = _check_holdout(holdout, X, X_trusted, labels, regression, overlap)

    if regression:
        target = as_targets(trusted_labels, "y_trusted")
        centre, spread = target.mean(), target.std() or 1.0

        def encode(values: Any) -> np.ndarray:
            return (as_targets(np.asarray(values), "y") - centre) / spread

        num_outputs = 1
    else:
        classes = find_classes(labels, trusted_labels)

        def encode(values: Any) -> np.ndarray:
            return np.searchsorted(classes, values).astype(np.int32)

        num_outputs = len(classes)

    if scaler is _MIN_MAX:
        scaler = MinMaxScaler()
    if scaler is not None:
        fresh: Any = clone(scaler)
        scaler = fresh.fit(features)
    scale = (lambda a: a) if scaler is None else scaler.transform
    floating = jax.dtypes.canonicalize_dtype(float)

    def rows(a: np.ndarray, b: Any) -> tuple[jax.Array, jax.Array]:
        codes = encode(b)
        return (
            jnp.asarray(np.asarray(scale(a)), floating),
            jnp.asarray(codes, floating if regression else jnp.int32),
        )

    held_rows = None if held is None else rows(as_features(held[0], "holdout X"), held[1])
    w0, predict = _build_model(model, features.shape[1], num_outputs, seed)
    loss = squared_error if regression else softmax_cross_entropy
    problem = reweighting(
        *rows(features, labels), *rows(trusted_features, trusted_labels), predict, loss=loss, l2=l2
    )
    solution, history, stats = _run(
        problem, w0, method, num_steps, model == "linear", seed, callbacks, folder
    )

    n = len(features)
    weights, trusted_weight = final = row_weights(np.asarray(solution.u))
    ess = effective_sample_size(weights)

    fits = {
        name: _retrain(problem, jnp.asarray(p, floating), w0)
        for name, p in [
            ("uniform", np.full(n, 1 / n)),
            ("capped", weights / n),
        ]
    }
    retrained = retrain_check(
        problem, solution, uniform_weights(n), lambda _: w0, inner=_RETRAIN, num_inits=1
    )
    models = {name: w for name, (w, _) in fits.items()}
    models |= {"warm": solution.w, "retrained": jax.tree.map(lambda a: a[0], retrained.w)}
    all_trained = retrained.converged and all(
        bool(result == RESULTS.successful) for _, result in fits.values()
    )
    scores = score_models(problem, models, predict, loss, held_rows)
    scores = scores.loc[["uniform", "warm", "retrained", "capped"]]
    baselines = None
    if held is not None:
        baselines = compare_baselines(
            default_estimator(regression) if estimator is None else estimator,
            X,
            y,
            X_trusted,
            y_trusted,
            weights,
            trusted_weight,
            *held,
        )
    raw_ess = effective_sample_size(np.asarray(solution.u))
    checks = ask(scores, baselines, retrained, raw_ess, n, num_outputs, all_trained)
    if isinstance(X, pd.DataFrame):
        weights = pd.Series(weights, index=X.index, name="weight")
    return WeightsResult(
        weights=weights,
        trusted_weight=trusted_weight,
        keep=final.keep,
        effective_sample_size=ess,
        entropy=entropy(np.asarray(weights)),
        history=history,
        scores=scores,
        baselines=baselines,
        checks=checks,
        parameters=models["capped"],
        stats=stats,
    )


def default_estimator(regression: bool) -> Any:
    """What weights are compared on, and finally fitted with, when the user names no estimator."""
    if regression:
        return make_pipeline(MinMaxScaler(), Ridge())
    return make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=1000))


def _as_given(*arrays: Any) -> list[Any]:
    # Data frames and series keep their index; everything else becomes an array once.
    kept = (pd.DataFrame, pd.Series)
    return [a if isinstance(a, kept) or scipy.sparse.issparse(a) else np.asarray(a) for a in arrays]


def is_regression(task: str, y: Any) -> bool:
    """Whether the labels are numbers to predict; see `task` of `learn_weights`."""
    if task not in ("auto", "classification", "regression"):
        raise ValueError(f"`task` must be 'auto', 'classification' or 'regression', got {task!r}.")
    if task != "auto":
        return task == "regression"
    values = np.asarray(y)
    if not np.issubdtype(values.dtype, np.number):
        return False
    values = values[np.isfinite(values)]
    return bool(np.any(values != np.floor(values))) or len(np.unique(values)) > max(
        50, len(values) / 10
    )


def _build_model(model: Any, num_features: int, num_outputs: int, seed: int) -> Model:
    if isinstance(model, Model):
        return model
    if model == "linear":
        return linear_model(num_features, num_outputs)
    if model == "mlp":
        return mlp_model(num_features, num_outputs, key=jax.random.key(seed))
    raise ValueError(
        f"`model` must be 'linear', 'mlp' or a `bilevel.tasks.Model(w0, predict)`, got {model!r}."
    )


def _run(
    problem: BilevelProblem,
    w0: PyTree,
    method: str | AbstractAlgorithm,
    num_steps: int | None,
    convex: bool,
    seed: int,
    callbacks: Sequence[AbstractCallback],
    folder: str | os.PathLike | None,
) -> tuple[Solution, pd.DataFrame, dict[str, Any]]:
    """Run the algorithm, from its checkpoint in `folder` if there is one."""
    u0 = uniform_weights(num_rows(problem.inner_data))
    problem, algorithm, default_steps, chunk_size = build_method(method, problem, u0, w0, convex)
    num_steps = default_steps if num_steps is None else num_steps
    key = jax.random.key(seed)
    state, checkpoint, path = None, None, None
    if folder is not None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint, path = Checkpoint(folder / "checkpoint.eqx"), folder / "history.jsonl"
        if (folder / "checkpoint.eqx").exists():
            _check_fingerprint(folder, problem, method, seed)
            state = checkpoint.load(algorithm.init(problem, u0, w0, key))
            if int(state.step) > num_steps:
                raise ValueError(
                    f"`folder` {folder} holds a run that has made {int(state.step)} steps already; "
                    f"got num_steps={num_steps}. Ask for at least as many, or pass another folder."
                )
        else:
            path.unlink(missing_ok=True)
            (folder / "fingerprint").write_text(_fingerprint(problem, method, seed))
    history = _History(path, 0 if state is None else int(state.step))
    solution = solve(
        problem,
        algorithm,
        u0,
        w0,
        num_steps=num_steps,
        key=key,
        state=state,
        trace_every=chunk_size,
        chunk_size=chunk_size,
        # The checkpoint comes last: what it holds, the history holds too.
        callbacks=[*callbacks, history, *([checkpoint] if checkpoint else [])],
    )
    return solution, pd.DataFrame(history.rows), solution.stats


def _fingerprint(problem: BilevelProblem, method: str | AbstractAlgorithm, seed: int) -> str:
    """A digest of the data as the run sees them and of what the checkpoint itself cannot tell."""
    settings = eqx.tree_pformat((method, seed, problem.inner), short_arrays=False)
    digest = hashlib.sha256(settings.encode())
    for array in jax.tree.leaves((problem.inner_data, problem.outer_data)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _check_fingerprint(
    folder: Path, problem: BilevelProblem, method: str | AbstractAlgorithm, seed: int
) -> None:
    path = folder / "fingerprint"
    if not path.exists() or path.read_text() != _fingerprint(problem, method, seed):
        raise ValueError(
            f"`folder` {folder} holds the checkpoint of a run on other data or with "
            "other settings. Repeat that call to go on with it, or pass another folder."
        )


@eqx.filter_jit
def _retrain(problem: BilevelProblem, u: jax.Array, w0: PyTree) -> tuple[PyTree, RESULTS]:
    """The model trained from its fresh start on the final weights, to convergence."""
    stream = Stream(FullBatch(), problem.inner_data, ())
    w, _, _, stats = _RETRAIN.solve(problem, u, w0, (), stream)
    return w, stats.result


def _check_holdout(
    holdout: tuple[Any, Any],
    X: Any,
    X_trusted: Any,
    labels: np.ndarray,
    regression: bool,
    overlap: str,
) -> tuple[Any, Any]:
    X_holdout, y_holdout = _as_given(*holdout)
    check_same_columns(X, X_holdout, "X", "holdout")
    values = check_labels(y_holdout, X_holdout, "holdout y")
    unknown = [] if regression else np.setdiff1d(values, labels)
    if len(unknown):
        raise InputError(
            f"the hold-out has labels that the training rows lack: {named(list(unknown))}. No model "
            "can predict them; remove these rows or mend the labels."
        )
    if overlap == "error":
        check_overlap(X_holdout, X_trusted, "hold-out", "trusted")
        check_overlap(X_holdout, X, "hold-out", "training")
    return X_holdout, y_holdout
