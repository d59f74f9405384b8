"""Free weights, one per row: the bilevel problem on the simplex, and checks of its solution."""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pandas as pd
from jaxtyping import PyTree

from ..._algorithm.base import AbstractAlgorithm, State
from ..._analysis.retrain import retrain_check
from ..._analysis.weight_statistics import effective_sample_size, entropy
from ..._callback import AbstractCallback, Chunk, Logger, read_lines
from ..._checkpoint import Checkpoint
from ..._inner.minimiser import MinimiserInner
from ..._problem import BilevelProblem, num_rows
from ..._processes import refuse_forked
from ..._sampler import FullBatch, Stream
from ..._solution import RESULTS, Solution
from ..._solve import solve
from ..._storage import DamagedFileError
from ...tasks import reweighting, uniform_weights
from ...tasks.models import Model, linear_model, mlp_model, softmax_cross_entropy, squared_error
from .._inputs.prepare import Prepared
from .diagnostics import check_free_weights
from .features import centred_ranks
from .methods import build_method
from .result import Learned
from .row_weights import row_weights

KEPT = 16  # kinds of problems whose compiled programs are kept
_kinds: set[tuple[Any, ...]] = set()
_RETRAIN = MinimiserInner(optx.LBFGS(rtol=1e-4, atol=1e-6), max_steps=1000)


class _History(AbstractCallback):
    """Collects the trace, with the weights' entropy and effective sample size, chunk by chunk.

    With a path it also appends every row to that file, and starts from the rows that an interrupted
    run left there up to `first_step`.
    """

    def __init__(self, path: Path | None, first_step: int):
        self._logger = None if path is None else Logger(path)
        earlier = [] if path is None else read_history(path)
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
            self._logger(Chunk(*chunk[:3], columns, start=chunk.start))
            self._logger.sync()  # before the checkpoint, which counts on it

    def close(self):
        """Close the file."""
        if self._logger is not None:
            self._logger.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history; none if a line of the file is no such row."""
    try:
        rows = [json.loads(line) for line in read_lines(path)]
    except (ValueError, RecursionError):
        return []
    alike = all(isinstance(row, dict) and row.keys() == rows[-1].keys() for row in rows)
    numbers = alike and all(isinstance(x, int | float) for row in rows for x in row.values())
    return rows if numbers and all("step" in row for row in rows) else []


def bound_programs(*kind: Any) -> None:
    """Give up what JAX has compiled, before it is for more than `KEPT` kinds of problems.

    Each kind takes 80 MB or so, and a process that fits tables of ever other sizes would grow for
    ever. Functions of the user's are compiled anew as well, the next time they are called.
    """
    if kind not in _kinds and len(_kinds) >= KEPT:
        _kinds.clear()
        jax.clear_caches()
    _kinds.add(kind)


def free_weights(
    tables: Prepared,
    *,
    model: Any,
    method: str | AbstractAlgorithm,
    num_steps: int | None,
    l2: float,
    seed: int,
    callbacks: Sequence[AbstractCallback],
    folder: str | os.PathLike | None,
) -> Learned:
    """One weight per row, by a bilevel algorithm on the simplex; arguments as in `learn_weights`."""
    refuse_forked()
    regression = tables.classes is None
    w0, predict = _build_model(model, tables.train.features.shape[1], tables.num_outputs, seed)
    loss = squared_error if regression else softmax_cross_entropy
    parts = tables.train, tables.trusted, tables.holdout
    numbers = [None if part is None else part.numbers for part in parts]
    (x, y), (x_trusted, y_trusted), holdout = jax.tree.map(_as_jax, numbers)
    shapes = None if holdout is None else holdout[0].shape
    bound_programs(x.shape, x_trusted.shape, shapes, str(y.dtype), tables.num_outputs, str(method))
    problem = reweighting(x, y, x_trusted, y_trusted, predict, loss=loss, l2=l2)
    solution, history, stats = _run(
        problem, w0, method, num_steps, model == "linear", seed, callbacks, folder
    )

    n = len(tables.train)
    weights, trusted_weight = final = row_weights(np.asarray(solution.u))
    fits = {
        name: _retrain(problem, jnp.asarray(p, x.dtype), w0)
        for name, p in [("uniform", np.full(n, 1 / n)), ("capped", weights / n)]
    }
    retrained = retrain_check(
        problem, solution, uniform_weights(n), lambda _: w0, inner=_RETRAIN, num_inits=1
    )
    models = {name: w for name, (w, _) in fits.items()}
    models |= {"warm": solution.w, "retrained": jax.tree.map(lambda a: a[0], retrained.w)}
    all_trained = retrained.converged and all(
        bool(result == RESULTS.successful) for _, result in fits.values()
    )
    scores = _score_models(problem, models, predict, loss, holdout)
    scores = scores.loc[["uniform", "warm", "retrained", "capped"]]
    raw_ess = effective_sample_size(np.asarray(solution.u))
    return Learned(
        weights=weights,
        trusted_weight=trusted_weight,
        scale=1.0,
        label_quality=(centred_ranks(weights) + 1) / 2,
        keep=final.keep,
        wrong=None,
        noise=None,
        winner="weights",
        candidates=None,
        effective_sample_size=effective_sample_size(weights),
        entropy=entropy(weights),
        checks=check_free_weights(scores, retrained, raw_ess, n, tables.num_outputs, all_trained),
        scores=scores,
        parameters=models["capped"],
        history=history,
        stats=stats,
        group_weights=None,
        scorer=None,
        opinions=None,
    )


def _as_jax(a: np.ndarray) -> jax.Array:
    """Class codes as they are, numbers in the floating type of JAX."""
    return jnp.asarray(a, float if a.dtype.kind == "f" else None)


def _build_model(model: Any, num_features: int, num_outputs: int, seed: int) -> Model:
    if isinstance(model, Model):
        return model
    if model == "linear":
        return linear_model(num_features, num_outputs)
    if model == "mlp":
        return mlp_model(num_features, num_outputs, key=jax.random.key(seed))
    raise ValueError(
        f"`model` must be 'linear', 'mlp' or a `bilevel.tasks.models.Model`, got {model!r}."
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
        state = _saved_state(
            folder, checkpoint, algorithm.init(problem, u0, w0, key), problem, algorithm
        )
        if state is None:
            path.unlink(missing_ok=True)
        elif int(state.step) > num_steps:
            raise ValueError(
                f"`folder` {folder} holds a run that has made {int(state.step)} steps already; "
                f"got num_steps={num_steps}. Ask for at least as many, or pass another folder."
            )
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


def _saved_state(
    folder: Path,
    checkpoint: Checkpoint,
    like: State,
    problem: BilevelProblem,
    algorithm: AbstractAlgorithm,
) -> State | None:
    """What the run goes on from; None for a new one. A damaged file counts as absent, with a warning.

    Raises:
        ValueError: the checkpoint is that of another run.
    """
    foreign = ValueError(
        f"`folder` {folder} holds the checkpoint of a run on other data or with other settings. "
        "Repeat that call to go on with it, or pass another folder."
    )
    try:
        state = checkpoint.load(like, problem, algorithm)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        warnings.warn(f"{error} The run starts from the beginning.", UserWarning, stacklevel=5)
        return None
    except ValueError as error:
        raise foreign from error
    if not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(like.key)):
        raise foreign
    steps = [row["step"] for row in read_history(folder / "history.jsonl")]
    if int(state.step) and int(state.step) not in steps:
        warnings.warn(
            f"the history {folder / 'history.jsonl'} was cut short or changed. The run starts from "
            "the beginning.",
            UserWarning,
            stacklevel=5,
        )
        return None
    return state


@eqx.filter_jit
def _retrain(problem: BilevelProblem, u: jax.Array, w0: PyTree) -> tuple[PyTree, RESULTS]:
    """The model trained from its fresh start on the final weights, to convergence."""
    stream = Stream(FullBatch(), problem.inner_data, ())
    w, _, _, stats = _RETRAIN.solve(problem, u, w0, (), stream)
    return w, stats.result


def _score_models(
    problem: BilevelProblem, models: dict[str, PyTree], predict: Any, loss: Any, holdout: Any
) -> pd.DataFrame:
    """Losses, and scores (accuracy or R2), of the weighting model under several parameters."""
    table: dict[str, dict[str, float]] = {name: {} for name in models}
    for name, w in models.items():
        for part, rows in [("trusted", problem.outer_data), ("holdout", holdout)]:
            if rows is not None:
                measured = _evaluate(predict, loss, w, *rows)
                table[name] |= {f"{part}_{key}": float(x) for key, x in measured.items()}
    return pd.DataFrame.from_dict(table, orient="index")


@eqx.filter_jit
def _evaluate(
    predict: Any, loss: Any, w: PyTree, x: jax.Array, y: jax.Array
) -> dict[str, jax.Array]:
    outputs = predict(w, x)
    if jnp.issubdtype(y.dtype, jnp.integer):
        score = jnp.mean(jnp.argmax(outputs, axis=1).astype(y.dtype) == y)
    else:
        score = 1 - jnp.mean((outputs[:, 0] - y) ** 2) / jnp.var(y)
    return {"loss": jnp.mean(loss(outputs, y)), "score": score}
