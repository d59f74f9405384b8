"""Several algorithms on one problem, the same seeds and batches: a table and a figure."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
from jaxtyping import Array, PyTree, Scalar

from .._algorithm.base import AbstractAlgorithm, State
from .._checks import check_call
from .._chunk import Row, RunOptions, Status, Tolerances, run_chunk
from .._ending import Ran, ending, ending_of_short
from .._problem import Problem
from .._solution import NAMES, RESULTS
from .._solve import _own, _with_formulas
from .._variables import as_arrays

Metric = Callable[[PyTree, PyTree], Scalar]

TRACE_POINTS = 50
CALLS = ("outer_grads", "inner_grads", "hvps", "mixed")
LOG_RATIO = 10.0  # an axis is logarithmic where its largest value is this many times the smallest

_CODES = {name: code for code, name in NAMES.items()}
_NOT_TAKEN = ("nonfinite", "linear_divergence")
_FAILURES = (*_NOT_TAKEN, "outer_divergence", "inner_divergence")
_COLUMNS = ("algorithm", "seed", "cpu_seconds", *(x for x in Row._fields if x != "live"))


def compare(
    algorithms: Mapping[str, AbstractAlgorithm],
    problem: Problem,
    u0: PyTree,
    w0: PyTree,
    *,
    num_steps: int | Mapping[str, int],
    seeds: int | Iterable[int] = 10,
    trace_every: int | None = None,
    metrics: Mapping[str, Metric] | None = None,
    vmap: bool = True,
    path: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Run several algorithms from one start on the same seeds; what each reached, and its cost.

    Args:
        algorithms: by the names that the table and the figure use.
        problem, u0, w0: as in `solve`; all runs start from the same `u0`, `w0`.
        num_steps: outer steps, of all algorithms or by name. A step of one method may cost ten of
            another: compare along the oracle calls or the CPU time, and give a cheap method more.
        seeds: the runs' seeds; n stands for 0, ..., n - 1.
        trace_every: the number of steps from one row to the next; the last step has a row, too. By
            default a run has about 50 rows.
        metrics: functions `(u, w) -> scalar` (that jax can compile), evaluated at the trace points
            on top of the default `objective`, which is F(u, w) on all outer data. It is not
            Phi(u) = F(u, w*(u)): a w that is not solved for, or has seen the outer data, can make
            F look good. A metric named `objective` takes its place.
        vmap: all seeds at once. If False one after the other, each as `solve` would run it: the
            same numbers to rounding, less memory, and the CPU time of a single run.
        path: where to save `draw_comparison` of the table.

    A run with seed s is that of `solve(..., key=s)`. So with one seed all algorithms have the same
    key, and the k-th batch that they draw is the same where their samplers are.

    Returns:
        A row for each algorithm, seed and trace point, the start (step 0) included:

        `algorithm`, `seed`, `step`: whose row it is, and the steps made.
        `outer_value`, `outer_residual`, `inner_residual`, `linear_residual`, `step_ratio`, `move`: as
            in `Solution.trace`: of the step's own batches, at the point that the step started from;
            NaN at step 0.
        `outer_grads`, `inner_grads`, `hvps`, `mixed`: oracle calls so far, as in `Calls`.
        `cpu_seconds`: CPU time so far of `init` and all steps (process time, all threads), of one
            seed: with `vmap` that of all together, divided. The metrics are not in it.
        `objective` and the other metrics: at the point after the step.
        `result`: the name of the step's `RESULTS`. A run that meets a non-finite number ends with
            the row of that step, which was not taken; the other seeds go on, and nothing is raised.
            The last row of a run that blew up has `outer_divergence`, as in `solve`.

        `frame.attrs`: `compile_seconds` (CPU time by algorithm, in no row), `num_steps` by
        algorithm, `vmap`, and the names of the `metrics` given.

    With `vmap` the CPU time is that of batched code: a branch costs both its sides (`"auto"` steps),
    and a large table in the state (`SABA`) is copied at every step, which has cost 25 times the
    step. Publish times measured without it. Work on an accelerator is no CPU time.

    Cost: that of the runs, one compilation per algorithm, and the metrics at each trace point.
    Memory: with `vmap` as many states as seeds, and the metrics of all seeds at once.

    Raises:
        ValueError: no algorithm or seed; a seed twice; a count below 1; `num_steps` with other names
            than `algorithms`; a metric that is no scalar or has a column's name; and as `solve`.
        TypeError: an entry that is no algorithm; and as `solve`.
        ImportError: `path` is given and matplotlib is missing.

    What an algorithm itself refuses is raised as it is, with the entry's name as a note.

    >>> import jax.numpy as jnp
    >>> from bilevel import SOBA, AmIGO, BilevelProblem
    >>> problem = BilevelProblem(  # Phi(u) = (u - 1)^2 / 2, through w*(u) = u
    ...     outer=lambda u, w, _: 0.5 * (w - 1.0) ** 2, inner=lambda u, w, _: 0.5 * (w - u) ** 2
    ... )
    >>> methods = {"SOBA": SOBA(0.5, 0.5, 0.1), "AmIGO": AmIGO(0.5, 0.5, 0.1)}
    >>> start = jnp.array(0.0), jnp.array(0.0)
    >>> frame = compare(methods, problem, *start, num_steps=100, seeds=2, trace_every=50)
    >>> last = frame[frame.step == 100]
    >>> last[["algorithm", "seed", "hvps"]].values.tolist()
    [['SOBA', 0, 100], ['SOBA', 1, 100], ['AmIGO', 0, 1100], ['AmIGO', 1, 1100]]
    >>> bool(last.objective.max() < 1e-4)
    True
    """
    if path is not None:
        _figure_class()  # rather now than after the runs
    steps = _check_algorithms(algorithms, num_steps)
    seeds = _check_seeds(seeds)
    every = {name: min(trace_every or -(-n // TRACE_POINTS), n) for name, n in steps.items()}
    metrics = {} if metrics is None else dict(metrics)
    given = as_arrays(problem, u0, w0, ("u0", "w0"))
    size = 0.0
    for n in steps.values():
        _, size = check_call(problem, u0, w0, n, 1 if trace_every is None else trace_every, 1)
    _check_metrics(metrics, u0, w0)

    @eqx.filter_jit
    def measure(problem: Problem, u: PyTree, w: PyTree) -> dict[str, Array]:
        def at_one(u: PyTree, w: PyTree) -> dict[str, Array]:
            values = {
                name: jnp.asarray(metric(*given.restore(u, w))) for name, metric in metrics.items()
            }
            if "objective" not in metrics:
                values["objective"] = problem.outer(u, w, problem.outer_data)
            return values

        return (jax.vmap(at_one) if vmap else at_one)(u, w)

    def named(name: str, function: Callable, *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            error.add_note(f"This was {name!r} among the algorithms of `compare`.")
            raise

    keys = jnp.stack([jr.key(seed) for seed in seeds])
    groups = [(seeds, keys)] if vmap else [([s], key) for s, key in zip(seeds, keys, strict=True)]
    # All are compiled first, so that a wrong one is refused before any has run.
    problem, call = given.problem, (given.problem, given.u, given.w)
    programs = {
        name: named(
            name,
            _compile,
            _with_formulas(algorithm, given),
            call,
            groups[0][1],
            steps[name],
            every[name],
        )
        for name, algorithm in algorithms.items()
    }
    frames = []
    for name, program in programs.items():
        for group, key in groups:
            frames.append(named(name, _run, program, group, key, partial(measure, problem)))
            frames[-1].insert(0, "algorithm", name)
            frames[-1] = _with_endings(frames[-1], size, "objective" not in metrics)
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs = {
        "compile_seconds": {name: program.seconds for name, program in programs.items()},
        "num_steps": steps,
        "vmap": vmap,
        "metrics": list(metrics),
    }
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        draw_comparison(frame).savefig(path, dpi=150)
    return frame


class _Program(NamedTuple):
    """An algorithm on a problem, compiled: `init(key)` and `chunk((state, status))`."""

    init: Callable[[Array], tuple[State, Status]]
    chunk: Callable[[tuple[State, Status]], tuple[State, Status, Row]]
    seconds: float


def _compile(
    algorithm: AbstractAlgorithm,
    call: tuple[Problem, PyTree, PyTree],
    key: Array,
    num_steps: int,
    chunk_size: int,
) -> _Program:
    """The program for `call = (problem, u0, w0)` and one key, or for an array of them at once."""
    began = time.process_time()
    arrays, static = eqx.partition((algorithm, call), eqx.is_array)
    options = RunOptions(
        jnp.asarray(num_steps, jnp.int32),
        jnp.asarray(chunk_size, jnp.int32),
        jax.tree.map(jnp.asarray, Tolerances(-1.0, -1.0, -1.0)),
    )

    def over_seeds(function: Callable) -> Callable:
        return jax.vmap(function) if key.ndim else function

    def init(arrays: Any, key: Array) -> tuple[State, Status]:
        algorithm, (problem, u0, w0) = eqx.combine(arrays, static)

        def one(key: Array) -> tuple[State, Status]:
            state = jax.tree.map(_own, algorithm.init(problem, u0, w0, key))
            return state, Status(jnp.zeros((), bool), RESULTS.outer_max_steps_reached)

        return over_seeds(one)(key)

    def chunk(
        arrays: Any, options: RunOptions, changing: tuple[State, Status]
    ) -> tuple[State, Status, Row]:
        algorithm, (problem, _, _) = eqx.combine(arrays, static)

        def one(changing: tuple[State, Status]) -> tuple[State, Status, Row]:
            return run_chunk(problem, algorithm, options, *changing, chunk_size=chunk_size)

        return over_seeds(one)(changing)

    first = jax.jit(init).lower(arrays, key).compile()
    changing = jax.eval_shape(init, arrays, key)
    further = jax.jit(chunk, donate_argnums=2).lower(arrays, options, changing).compile()
    # The first call of each costs more than the others, some 30 ms; here it is one of one step.
    once = options._replace(num_steps=jnp.ones((), jnp.int32))
    jax.block_until_ready(further(arrays, once, first(arrays, key)))
    return _Program(
        partial(first, arrays), partial(further, arrays, options), time.process_time() - began
    )


def _run(
    program: _Program, seeds: Sequence[int], key: Array, measure: Callable[..., dict[str, Array]]
) -> pd.DataFrame:
    """The rows of one algorithm, for seeds that run together."""
    spent, parts = 0.0, []

    def timed(function: Callable, *args: Any) -> Any:
        nonlocal spent
        began = time.process_time()
        value = jax.block_until_ready(function(*args))
        spent += time.process_time() - began
        return value

    def record(state: State, columns: dict[str, Any]) -> None:
        live = columns.pop("live")
        names = [NAMES[int(code)] for code in columns.pop("result")]
        columns |= {"cpu_seconds": spent / len(seeds)}
        for name, values in measure(state.u, state.w).items():
            columns[name] = np.asarray(values).reshape(len(seeds))
        table = pd.DataFrame({"seed": seeds, **columns, "result": names})[live]
        parts.append(table.astype(dict.fromkeys(table.select_dtypes("floating"), "float64")))

    state, status = timed(program.init, key)
    calls = jax.tree.map(lambda x: np.asarray(x).reshape(len(seeds)), state.calls)
    unknown = {name: np.full(len(seeds), np.nan) for name in Row._fields}
    counted = zip(CALLS, (calls.outer_grad, calls.inner_grad, calls.hvp, calls.mixed), strict=True)
    zero = {name: np.zeros(len(seeds), int) for name in ("step", "result")}
    record(state, unknown | zero | dict(counted) | {"live": np.ones(len(seeds), bool)})
    while not np.all(status.over):
        state, status, rows = timed(program.chunk, (state, status))
        by_seed = {k: np.asarray(x).reshape(len(seeds), -1) for k, x in rows._asdict().items()}
        # A chunk is as long as the distance between trace points, so it has one, at its end.
        last = np.argmax(by_seed["live"], axis=1)
        record(state, {k: x[np.arange(len(seeds)), last] for k, x in by_seed.items()})
    return pd.concat(parts).sort_values(["seed", "step"], kind="stable")


def _with_endings(rows: pd.DataFrame, size: float, objective_is_outer: bool) -> pd.DataFrame:
    """The rows, where the last one of a seed that blew up says so."""
    rows = rows.reset_index(drop=True)
    for _, run in rows[rows.step > 0].groupby("seed"):
        trace = {str(name): np.asarray(run[name]) for name in run.select_dtypes("number")}
        trace["result"] = run.result.map(_CODES).to_numpy()
        last = run.index[-1]
        if rows.loc[last, "result"] not in _FAILURES:
            ran = Ran(trace, size, float(trace["move"].max()))
            found = ending(RESULTS.successful, ran)
            if objective_is_outer:  # of which it has one value more than the trace
                found = ending_of_short(found.result, ran, [], [trace["objective"][-1]])
            told = NAMES[int(found.result._value)]
            rows.loc[last, "result"] = told if told != "successful" else rows.loc[last, "result"]
    return rows


def _check_algorithms(
    algorithms: Mapping[str, AbstractAlgorithm], num_steps: int | Mapping[str, int]
) -> dict[str, int]:
    """How many steps each makes."""
    if not algorithms:
        raise ValueError('`algorithms` is empty; pass e.g. `{"SOBA": bilevel.SOBA()}`.')
    for name, algorithm in algorithms.items():
        if not isinstance(algorithm, AbstractAlgorithm):
            raise TypeError(
                f"`algorithms[{name!r}]` must be an algorithm such as `bilevel.SOBA()`, got "
                f"{algorithm!r}."
            )
    if not isinstance(num_steps, Mapping):
        return dict.fromkeys(algorithms, num_steps)
    if set(num_steps) != set(algorithms):
        raise ValueError(
            f"`num_steps` must have the names of `algorithms`, {list(algorithms)}, got "
            f"{list(num_steps)}."
        )
    return {name: num_steps[name] for name in algorithms}


def _check_seeds(seeds: int | Iterable[int]) -> list[int]:
    seeds = [int(seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds)]
    if not seeds:
        raise ValueError("`seeds` must be at least one seed, got none; an integer n stands for n.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must differ from each other, got {seeds}.")
    return seeds


def _check_metrics(metrics: Mapping[str, Metric], u0: PyTree, w0: PyTree) -> None:
    for name, metric in metrics.items():
        if name in (*_COLUMNS, "calls"):
            raise ValueError(f"`metrics` has {name!r}, which is a column of its own; rename it.")
        value = eqx.filter_eval_shape(metric, u0, w0)
        if not isinstance(value, bool | int | float) and getattr(value, "shape", None) != ():
            got = getattr(value, "shape", type(value).__name__)
            raise ValueError(f"the metric {name!r} must return a scalar, got {got}.")


_LABELS = {
    "calls": "oracle calls",
    "cpu_seconds": "CPU seconds per seed",
    "step": "outer steps",
    "outer_value": "F(u, w) on the step's batch",
}


def draw_comparison(
    frame: pd.DataFrame, *, y: str = "objective", x: str | Sequence[str] = ("calls", "cpu_seconds")
) -> Any:
    """Draw what `compare` returned: a line for each algorithm, a panel for each `x`.

    A line is the median over the seeds at each trace point, against the median of `x` there; the
    band is between the quartiles. The y axis is logarithmic if all is positive and the largest value
    ten times the smallest, an x axis if the longest line is ten times the shortest. Seeds that ended
    on a non-finite number are drawn up to there and counted in the legend.

    Args:
        frame: from `compare`; parts of it (some algorithms, some steps) will do.
        y: a column: a metric, a residual, `outer_value`.
        x: a column or several, or `calls`, the sum of the four kinds of oracle call. They differ in
            cost: a Hessian-vector product is some two to three inner gradients.

    Returns:
        A `matplotlib.figure.Figure`, for `.savefig(path)`; its `axes` are the panels.

    Raises:
        ValueError: no such column, or nothing finite in it.
        ImportError: matplotlib is missing (it comes with `pip install 'bilevel[viz]'`).

    >>> import pandas as pd
    >>> steps = pd.DataFrame({"step": [0, 5], "objective": [1.0, 0.1], "result": "successful"})
    >>> frame = steps.assign(algorithm="mine", seed=0, outer_grads=1, inner_grads=5, hvps=5, mixed=1)
    >>> figure = draw_comparison(frame, x=["step", "calls"])
    >>> figure.axes[0].lines[0].get_xydata().tolist()
    [[0.0, 1.0], [5.0, 0.1]]
    """
    figure_class = _figure_class()
    names = [x] if isinstance(x, str) else list(x)
    frame = frame.assign(calls=frame[list(CALLS)].sum(axis=1))
    for name in (y, *names):
        if name not in frame or not pd.api.types.is_numeric_dtype(frame[name]):
            known = [column for column in frame if pd.api.types.is_numeric_dtype(frame[column])]
            raise ValueError(f"the table has no numeric column {name!r}; it has {known}.")

    labels, lines = [], []
    for algorithm, rows in frame.groupby("algorithm", sort=False):
        ends = rows.groupby("seed").result.last()
        failed = int(ends.isin(_FAILURES).sum())
        note = f" ({failed} of {len(ends)} seeds failed)" if failed else ""
        labels.append(f"{algorithm}{note}")
        # The step that met a number that is not finite was not taken.
        rows = rows[np.isfinite(rows[y]) & ~rows.result.isin(_NOT_TAKEN)]
        at_steps = rows.groupby("step")
        quartiles = at_steps[y].quantile(np.array([0.25, 0.5, 0.75])).unstack()
        lines.append((quartiles, at_steps[names].median()))
    drawn = np.concatenate([quartiles.to_numpy().ravel() for quartiles, _ in lines])
    if not drawn.size:
        raise ValueError(f"the column {y!r} has no finite value.")

    figure = figure_class(figsize=(1 + 4.5 * len(names), 4.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, panel in zip(names, panels, strict=True):
        for i, (label, (quartiles, along)) in enumerate(zip(labels, lines, strict=True)):
            style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}
            marker = "o" if len(along) == 1 else None
            panel.plot(along[name], quartiles[0.5], label=label, marker=marker, **style)
            panel.fill_between(
                along[name], quartiles[0.25], quartiles[0.75], color=style["color"], alpha=0.2, lw=0
            )
        if _spans_decades(np.array([along[name].iloc[-1] for _, along in lines if len(along)])):
            panel.set_xscale("log")
        vmapped = name == "cpu_seconds" and frame.attrs.get("vmap")
        panel.set_xlabel(_LABELS.get(name, name) + (", all seeds at once" if vmapped else ""))
        panel.grid(alpha=0.3)
    if _spans_decades(drawn):
        panels[0].set_yscale("log")
    given = "objective" in frame.attrs.get("metrics", ["objective"])
    is_default = y == "objective" and not given
    panels[0].set_ylabel("F(u, w) on all outer data" if is_default else _LABELS.get(y, y))
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))
    return figure


def _spans_decades(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() > LOG_RATIO * values.min())


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing a comparison needs matplotlib: `pip install 'bilevel[viz]'`."
        ) from error
    return Figure
