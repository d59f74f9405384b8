"""R10, Figure 5: SOBA on MNIST hyper-cleaning, one inner step, outer steps over many decades.

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", section 4.2.
Of 8000 training rows 90 % have a wrong label, 5000 outer rows are clean; the model is linear and
the inner step rho = 1e-3. The paper draws training curves and sorted weights: with too large an
outer step eta the weights end on a few rows and the model is sub-optimal, with too small a one the
run is slow, and the range that works is "very narrow". It names neither the outer steps, nor the
batches, nor the number of iterations.

Here eta goes through five decades, for 12000 iterations with batches of 64. It is the step along
*unbiased* directions, so that on average log w_i moves by eta Psi_i per iteration, as in Algorithm
2 of the paper, and eta / rho is the ratio of the two time scales of its equation (8). Counted by
visits, as in `hyper_cleaning.py`, the same steps are n / |B| = 125 times as large.

Curves and accuracies called "validation" are of rows that are disjoint from the outer ones, as in the
paper. We add what the paper does not report: test accuracy of the model left behind and of a model
retrained on the final weights, and how narrow the range is, in decades. And everything runs twice.
A uniform batch sees a row that dominates n / |B| times as heavy as it is, and then the inner
iteration explodes at this step, which is not what the theory is about. Inner batches drawn by
weight do not.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hyper_cleaning import L2, RATE, Cleaning, N, accuracies, baselines, cleaning, train_model
from jaxtyping import Array, Float, PyTree
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from sklearn.metrics import f1_score, roc_auc_score

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels

RHO, STEPS, BATCH = 1e-3, 12_000, 64
ETAS = 10.0 ** (np.arange(-20, 1) / 4)
QUICK = ETAS[::5]
MARKS = np.unique(np.geomspace(10, STEPS, 31).astype(int))
NEAR, FAR = 0.02, 0.05  # below the accuracy of the perfect weights: still good, no longer good
SPARSE = 0.1  # a sparse solution has an effective sample size below this share of the clean rows

Way = Callable[[Array, Array, int], bilevel.AbstractAlgorithm]


def full_batch(eta: Array, rho: Array, n: int) -> bilevel.AbstractAlgorithm:
    """All rows at every step."""
    return bilevel.SOBA(rho, rho, eta)


def by_weight(eta: Array, rho: Array, n: int) -> bilevel.AbstractAlgorithm:
    """Inner batches drawn by weight; `u` still moves without bias, see `bilevel.WeightedSampler`."""
    outer = bilevel.Shuffled(BATCH)
    return bilevel.ImportanceSampling(
        bilevel.SOBA(rho, rho, eta, bilevel.WeightedSampler(BATCH), outer)
    )


def uniform(eta: Array, rho: Array, n: int) -> bilevel.AbstractAlgorithm:
    """Uniform batches, one epoch after the other."""
    return bilevel.SOBA(rho, rho, eta, bilevel.Shuffled(BATCH), bilevel.Shuffled(BATCH))


WAYS: dict[str, Way] = {"drawn by weight": by_weight, "drawn uniformly": uniform}


class Runs(NamedTuple):
    """One run for each pair of step sizes, along axis 0 of `u` and of all leaves of `w`.

    `steps` counts the steps that each made: fewer than the last mark if it met a number that was not
    finite, and then `u` and `w` are the last good ones. `curves` are `(marks, runs)`.
    """

    u: np.ndarray
    w: PyTree
    steps: np.ndarray
    curves: dict[str, np.ndarray]


def num_rows(problem: bilevel.BilevelProblem) -> int:
    """How many training rows there are."""
    return jax.tree.leaves(problem.inner_data)[0].shape[0]


@eqx.filter_jit
def _start(problem: Any, w0: Any, way: Way, etas: Array, rhos: Array, key: Array) -> Any:
    n = num_rows(problem)
    u0 = tasks.uniform_weights(n, jax.tree.leaves(w0)[0].dtype)
    return jax.vmap(lambda eta, rho: way(eta, rho, n).init(problem, u0, w0, key))(etas, rhos)


def finite_step(algorithm: bilevel.AbstractAlgorithm, problem: Any, state: Any) -> Any:
    """The state after a step, or before it if the step met a number that is not finite."""
    following = algorithm.step(problem, state)[0]
    good = jnp.isfinite(optax.tree.sum((following.u, following.w)))
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), following, state)


@eqx.filter_jit
def _advance(
    problem: bilevel.BilevelProblem,
    way: Way,
    etas: Array,
    rhos: Array,
    states: Any,
    num_steps: Array,
) -> Any:
    n = num_rows(problem)

    def run(eta: Array, rho: Array, state: Any) -> Any:
        algorithm = way(eta, rho, n)

        def step(_: Array, state: Any) -> Any:
            return finite_step(algorithm, problem, state)

        return jax.lax.fori_loop(0, num_steps, step, state)

    return jax.vmap(run)(etas, rhos, states)


@eqx.filter_jit
def _look(
    problem: bilevel.BilevelProblem, predict: Any, held_out: tuple[Array, Array], states: Any
) -> dict[str, Array]:
    x, y = held_out

    def one(u: Array, w: Any) -> dict[str, Array]:
        right = jnp.argmax(predict(w, x), axis=1).astype(y.dtype) == y
        return {
            "loss": problem.outer(u, w, problem.outer_data),
            "validation": jnp.mean(right, dtype=u.dtype),
            "entropy": -jnp.sum(jax.scipy.special.xlogy(u, u)),
            "ess": 1 / jnp.vdot(u, u),
            "heaviest": jnp.argmax(u),
        }

    return jax.vmap(one)(states.u, states.w)


def run_grid(
    data: Cleaning,
    way: Way,
    etas: Float[np.ndarray, " runs"],
    rhos: Float[np.ndarray, " runs"],
    marks: Sequence[int] | np.ndarray,
    key: Array,
) -> Runs:
    """All pairs of step sizes in one compiled loop, up to the last mark, with a look at each mark.

    Vmapped, so that the products with the data, which do not depend on the step sizes, are one matrix
    product for all runs. As in `bilevel.solve`, a step that meets a number that is not finite is not
    taken and ends its run.
    """
    problem, model = data.problem, data.model
    held_out = data.X_validation, jnp.asarray(data.y_validation, jnp.int32)
    dtype = jax.tree.leaves(model.w0)[0].dtype
    eta, rho = jnp.asarray(etas, dtype), jnp.asarray(rhos, dtype)
    states = _start(problem, model.w0, way, eta, rho, key)
    looks, done = [], 0
    for mark in marks:
        states = _advance(problem, way, eta, rho, states, jnp.asarray(mark - done, jnp.int32))
        looks.append(jax.device_get(_look(problem, model.predict, held_out, states)))
        done = mark
    curves = {name: np.stack([look[name] for look in looks]) for name in looks[0]}
    u, w, made = jax.device_get((states.u, states.w, states.step))
    return Runs(u, w, made, curves)


def drop_empty_pixels(data: Cleaning) -> Cleaning:
    """Without the pixels that are zero in all training and outer rows.

    A model that starts at zero never uses them, so every number stays the same, on other rows too.
    """
    problem = data.problem
    (X, y, _), (X_outer, y_outer) = problem.inner_data, problem.outer_data  # pyright: ignore[reportGeneralTypeIssues]
    used = np.flatnonzero(np.any(X != 0, axis=0) | np.any(X_outer != 0, axis=0))
    model = tasks.models.linear_model(len(used), 10, bias=False)
    narrow = tasks.reweighting(X[:, used], y, X_outer[:, used], y_outer, model.predict, l2=L2)
    held_out = {key: getattr(data, key)[:, used] for key in ("X_validation", "X_test")}
    return data._replace(problem=narrow, model=model, **held_out)


def judge(data: Cleaning, u: np.ndarray, w: Any) -> dict[str, Any]:
    """The model left behind, the one retrained on the weights, and what the weights know.

    A row counts as found noisy if its weight is below 1 / n, where it started. The positive class is
    the noisy rows in `f1_noisy` and `auroc`, the clean ones in `f1_clean`. (With nine rows in ten
    noisy, weights on a single row have f1_noisy = 0.947 and f1_clean = 0.002.)
    """
    retrained = train_model(data.problem, jnp.asarray(u), data.model.w0)
    weights = np.asarray(u, np.float64)
    low = weights < 1 / len(weights)
    return {
        "as_left": accuracies(data, w),
        "retrained": accuracies(data, retrained),
        "entropy": bilevel.entropy(weights),
        "ess": bilevel.effective_sample_size(weights),
        "weight_on_clean_rows": float(weights[data.clean].sum()),
        "f1_noisy": float(f1_score(~data.clean, low)),
        "f1_clean": float(f1_score(data.clean, ~low)),
        "auroc": float(roc_auc_score(~data.clean, -weights)),
    }


def judge_all(data: Cleaning, runs: Runs) -> list[dict[str, Any]]:
    """`judge` for each run, with the number of steps it made."""
    return [
        {"steps": int(runs.steps[k])}
        | judge(data, runs.u[k], jax.tree.map(lambda x: jnp.asarray(x[k]), runs.w))  # noqa: B023
        for k in range(len(runs.u))
    ]


def widest(good: Sequence[bool], grid: np.ndarray) -> tuple[float, float] | None:
    """The ends of the longest stretch of neighbours on a grid that are all good."""
    best: tuple[int, int] | None = None
    first = 0
    for k, is_good in enumerate([*good, False]):
        if not is_good:
            if k > first and (best is None or k - first > best[1] - best[0] + 1):
                best = (first, k - 1)
            first = k + 1
    if best is None:
        return None
    return float(grid[best[0]]), float(grid[best[1]])


def run_seed(seed: int, etas: np.ndarray) -> dict[str, Any]:
    """Baselines and both ways of drawing batches, on one draw of the data."""
    data = drop_empty_pixels(cleaning(seed))
    outcome: dict[str, Any] = baselines(data)
    for name, way in WAYS.items():
        key = jax.random.key(seed)
        rhos = np.full_like(etas, RHO)
        runs = run_grid(data, way, etas, rhos, MARKS, key)
        outcome[name] = {
            "runs": judge_all(data, runs),
            "curves": {k: np.round(x.T.astype(float), 5).tolist() for k, x in runs.curves.items()},
            "sorted_weights": np.sort(runs.u, axis=1)[:, ::-1][:, :1500],
        }
    return outcome


def measure(full: bool) -> dict[str, Any]:
    """Three seeds and a grid of quarter decades in full; one seed and whole decades in quick."""
    seeds, etas = range(3 if full else 1), ETAS if full else QUICK
    outcomes = [run_seed(seed, etas) for seed in seeds]
    weights = [{way: outcome[way].pop("sorted_weights") for way in WAYS} for outcome in outcomes]
    settings = {
        "n": N,
        "rate": RATE,
        "l2": L2,
        "rho": RHO,
        "etas": etas,
        "batch": BATCH,
        "marks": MARKS,
    }
    return {"settings": settings, "seeds": list(seeds), "runs": outcomes, "figure": weights[0]}


def ranges(outcome: dict[str, Any], way: str, etas: np.ndarray, near: float) -> dict[str, Any]:
    """The outer steps that end within `near` of the perfect weights, lowest and highest; or None."""
    runs, perfect = outcome[way]["runs"], outcome["perfect"]
    left = [run["as_left"]["validation"] >= perfect["validation"] - near for run in runs]
    again = [run["retrained"]["test"] >= perfect["test"] - near for run in runs]
    both = [a and b for a, b in zip(left, again, strict=True)]
    return {
        name: widest(good, etas)
        for name, good in [("as_left", left), ("retrained", again), ("both", both)]
    }


def decades(ends: tuple[float, float] | None, etas: np.ndarray) -> float:
    """How wide a stretch of the grid is: each of its points stands for one spacing."""
    if ends is None:
        return 0.0
    return float(np.round(np.log10(ends[1] / ends[0]) + np.log10(etas[1] / etas[0]), 4))


def draw(measured: dict[str, Any]) -> Figure:
    """Training curves and sorted weights, blue for small and red for large outer steps."""
    outcome, etas = measured["runs"][0], measured["settings"]["etas"]
    figure, axes = panels(3, 2, (11, 10), sharey="row")
    shade = ScalarMappable(LogNorm(etas[0], etas[-1]), "coolwarm")
    for k, way in enumerate(WAYS):
        loss, accuracy, weights = axes[:, k]
        found = outcome[way]
        for j, eta in enumerate(etas):
            colour = shade.to_rgba(eta)
            loss.plot(MARKS, found["curves"]["loss"][j], color=colour)
            accuracy.plot(MARKS, found["curves"]["validation"][j], color=colour)
            weights.plot(np.maximum(measured["figure"][way][j], 1e-9), color=colour)
        accuracy.axhline(outcome["perfect"]["validation"], color="k", ls="--", label="perfect")
        accuracy.axhline(outcome["uniform"]["validation"], color="k", ls=":", label="uniform")
        weights.axhline(1 / (N * (1 - RATE)), color="k", ls="--", label="perfect")
        weights.axhline(1 / N, color="k", ls=":", label="uniform")
        loss.set(title=f"inner batches {way}", xscale="log", yscale="log", ylim=(0.4, 8))
        accuracy.set(xlabel="iterations", xscale="log", ylim=(0, 1))
        weights.set(xlabel="row, by weight", yscale="log", ylim=(1e-7, 2))
        accuracy.legend(loc="center left")
        weights.legend(loc="upper right")
    for axis, label in zip(axes[:, 0], ["outer loss F", "accuracy", "weight"], strict=True):
        axis.set_ylabel(label if label != "accuracy" else "validation accuracy")
    figure.colorbar(shade, ax=axes, label="outer step $\\eta$", shrink=0.6)
    return figure


def shown(values: Iterable[float]) -> list[float]:
    """Three decimals."""
    return [round(float(x), 3) for x in values]


def claims(measured: dict[str, Any]) -> list[Claim]:
    """What the paper says of its Figure 5, for each way of drawing inner batches."""
    outcomes, etas = measured["runs"], measured["settings"]["etas"]
    clean = N * (1 - RATE)
    judged = []
    for way in WAYS:
        runs = [outcome[way]["runs"] for outcome in outcomes]
        perfect = [outcome["perfect"] for outcome in outcomes]

        def gap(k: int, model: str, runs: Any = runs, perfect: Any = perfect) -> list[float]:
            pairs = zip(runs, perfect, strict=True)
            return shown([run[k][model]["test"] - best["test"] for run, best in pairs])

        sparse = [[run["ess"] <= SPARSE * clean for run in table] for table in runs]
        ess = max(table[-1]["ess"] for table in runs)
        rows = len(set(outcomes[0][way]["curves"]["heaviest"][-1]))
        is_clean = runs[0][-1]["weight_on_clean_rows"] > 0.5
        first = [float(f"{etas[row.index(True)]:.2g}") if any(row) else None for row in sparse]
        judged += [
            Claim(
                "R10",
                f"Batches {way}: with too large an outer step the weights end very sparse.",
                "very sparse solutions",
                f"effective sample size at most {ess:.2f} at eta = {etas[-1]:g}",
                ess <= SPARSE * clean,
                f"It is below {SPARSE * clean:.0f} from eta = {first} on; the entropy at the "
                f"largest eta is {shown(table[-1]['entropy'] for table in runs)}.",
            ),
            Claim(
                "R10",
                f"Batches {way}: with too large an outer step the model left behind is "
                "sub-optimal.",
                "sub-optimal performance",
                "test accuracy minus that of the perfect weights "
                f"{gap(-1, 'as_left')} at eta = {etas[-1]:g}",
                max(gap(-1, "as_left")) <= -FAR,
                f"The lowest over all sparse runs is {_lowest(runs, sparse, perfect)}. The weight "
                f"is on one row at a time, on {rows} different rows at {len(MARKS)} looks, of "
                f"which the last is {'clean' if is_clean else 'noisy'}.",
            ),
            Claim(
                "R10",
                f"Batches {way}: with too large an outer step a model retrained on the weights is "
                "sub-optimal.",
                None,
                "test accuracy minus that of the perfect weights "
                f"{gap(-1, 'retrained')} at eta = {etas[-1]:g}",
                max(gap(-1, "retrained")) <= -FAR,
            ),
            _slow(way, outcomes, etas, gap(0, "as_left")),
            _narrow(way, outcomes, etas),
        ]
    return judged


def _lowest(runs: Any, sparse: list[list[bool]], perfect: list[dict[str, float]]) -> list[float]:
    return shown(
        min(run["as_left"]["test"] for run, is_sparse in zip(table, row, strict=True) if is_sparse)
        - best["test"]
        for table, row, best in zip(runs, sparse, perfect, strict=True)
        if any(row)
    )


def _slow(way: str, outcomes: list[dict[str, Any]], etas: np.ndarray, gap: list[float]) -> Claim:
    loss = np.array([outcome[way]["curves"]["loss"][0] for outcome in outcomes])
    falls = (loss[:, -1] - loss[:, -2]).tolist()
    return Claim(
        "R10",
        f"Batches {way}: with a small outer step the run is slow and has not converged.",
        "converges to a good solution, but slowly",
        f"test accuracy minus that of the perfect weights {gap} at eta = {etas[0]:g}; F still "
        f"changes by {shown(falls)} from iteration {MARKS[-2]} to {MARKS[-1]}",
        max(gap) <= -FAR and max(falls) < -1e-3,
    )


def _narrow(way: str, outcomes: list[dict[str, Any]], etas: np.ndarray) -> Claim:
    found = [ranges(outcome, way, etas, NEAR) for outcome in outcomes]
    wide = [ranges(outcome, way, etas, FAR) for outcome in outcomes]

    def widths(tables: list[dict[str, Any]], name: str) -> list[float]:
        return [decades(table[name], etas) for table in tables]

    both = widths(found, "both")
    spacing = float(np.log10(etas[1] / etas[0]))
    return Claim(
        "R10",
        f"Batches {way}: the range of outer steps that reach a good solution is very narrow "
        f"(within {NEAR} of the perfect weights, as left on validation rows and retrained on test "
        "rows).",
        "very narrow",
        f"{both} decades: eta from {'; '.join(_ends(table['both']) for table in found)}",
        0 < max(both) <= max(1.0, spacing + 1e-3),
        f"The points of the grid are {spacing:.3g} decades apart, and each counts as that much. "
        f"The model as left alone has {widths(found, 'as_left')} decades, the retrained one alone "
        f"{widths(found, 'retrained')}; within {FAR} both have {widths(wide, 'both')}, as left "
        f"{widths(wide, 'as_left')}, retrained {widths(wide, 'retrained')}.",
    )


def _ends(stretch: tuple[float, float] | None) -> str:
    return "nowhere" if stretch is None else f"{stretch[0]:.2g} to {stretch[1]:.2g}"


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
