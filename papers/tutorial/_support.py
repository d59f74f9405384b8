"""The data of `lasso.py`, and its parts 1 and 2: hypergradients where the support is identified."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from _tutorial import COMPILE_FAST
from _tutorial import inner_solution as solution_of

import bilevel
from bilevel import FISTA, tasks

STEP = 1e-5  # of the central differences
EXACT = FISTA(rtol=1e-13, max_steps=50_000)
GMRES = lx.GMRES(rtol=1e-10, atol=1e-12, restart=50, stagnation_iters=50)


class Case(NamedTuple):
    """All rows, standardised; new rows where they can be generated; the smallest alpha of a grid."""

    name: str
    x: Any
    y: Any
    x_new: Any
    y_new: Any
    smallest: float

    @property
    def largest(self) -> float:
        """The penalty from which on w is zero."""
        return float(np.abs(self.x.T @ self.y).max() / len(self.x))

    @property
    def split(self) -> Any:
        """Even rows train, odd ones are held out."""
        return [jnp.asarray(a) for a in (self.x[::2], self.y[::2], self.x[1::2], self.y[1::2])]


def standardised(name: str, x, y, smallest: float, x_new=None, y_new=None) -> Case:
    mean, scale, centre, size = x.mean(0), x.std(0), y.mean(), y.std()
    if x_new is not None:
        x_new, y_new = (x_new - mean) / scale, (y_new - centre) / size
    return Case(name, (x - mean) / scale, (y - centre) / size, x_new, y_new, smallest)


def sparse(num_rows: int, num_features: int, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    i = np.arange(num_features)
    root = np.linalg.cholesky(0.5 ** np.abs(i[:, None] - i))
    w = np.zeros(num_features)
    w[rng.permutation(num_features)[:10]] = rng.choice([-1.0, 1.0], 10)
    x = rng.normal(size=(num_rows + 10_000, num_features)) @ root.T
    signal = x @ w
    y = signal + rng.normal(size=len(x)) * signal.std() / np.sqrt(5)
    rows = slice(num_rows), slice(num_rows, None)
    name = f"generated, {num_rows} x {num_features}"
    return standardised(name, x[rows[0]], y[rows[0]], 1e-2, x[rows[1]], y[rows[1]])


def inner_solution(problem, u, w0):
    """To nearly all digits."""
    return solution_of(problem, EXACT, u, w0)


# ---- 1. central differences


def differences(case: Case) -> dict[str, float]:
    """The largest relative error of the hypergradient, over three directions each."""
    features, rng = case.x.shape[1], np.random.default_rng(0)
    l1 = np.log(case.largest / 10)
    points = {
        "lasso": (tasks.lasso, jnp.asarray(l1)),
        "elastic net": (tasks.elastic_net, (jnp.asarray(l1), jnp.asarray(-3.0))),
        "weighted": (tasks.lasso, jnp.asarray(l1 + 0.3 * rng.normal(size=features))),
    }
    found = {}
    for name, (build, u) in points.items():
        problem, w0 = build(*case.split), jnp.zeros(features)
        directions = [
            optax.tree.random_like(key, u) for key in jax.random.split(jax.random.key(0), 3)
        ]
        directions = [optax.tree.scale(STEP / optax.tree.norm(d), d) for d in directions]
        places = [optax.tree.add_scale(u, s, d) for d in directions for s in (1.0, -1.0)]

        @partial(jax.jit, compiler_options=COMPILE_FAST)
        def run(places, problem=problem, w0=w0):
            w = jax.lax.map(lambda u: inner_solution(problem, u, w0), places)
            values = jax.vmap(problem.outer, in_axes=(0, 0, None))(places, w, problem.outer_data)
            u, w = jax.tree.map(lambda a: a[0], (places, w))
            certain = tasks.reference.check_support(problem, u, w).identified
            return values[1:], bilevel.implicit_gradient(problem, u, w, GMRES).grad, certain

        values, gradient, certain = run(jax.tree.map(lambda *a: jnp.stack(a), u, *places))
        assert bool(certain)
        differences = (values[::2] - values[1::2]) / (2 * STEP)
        slopes = jnp.stack([optax.tree.vdot(gradient, d) / STEP for d in directions])
        found[name] = float(jnp.max(jnp.abs(differences - slopes)) / jnp.max(jnp.abs(slopes)))
    return found


# ---- 2. along the inner iterations


def along(case: Case, num_steps: int) -> dict[str, Any]:
    """Relative errors of w and of the hypergradient at up to 400 iterates, from w = 0."""
    problem = tasks.lasso(*case.split)
    u, w0 = jnp.log(case.largest / 20), jnp.zeros(case.x.shape[1])
    truth = jax.jit(lambda: inner_solution(problem, u, w0))()
    steps = np.unique(np.geomspace(1, num_steps, 400).astype(int))
    lengths = jnp.asarray(np.diff(steps, prepend=0))

    def ista(_, carry):
        w, *others = carry
        return problem.map(u, w, problem.inner_data), *others

    def fista(_, carry):
        w, y, t = carry
        new = problem.map(u, y, problem.inner_data)
        restart = jnp.vdot(y - new, new - w) > 0
        t_new = jnp.where(restart, 1.0, (1 + jnp.sqrt(1 + 4 * t**2)) / 2)
        return new, new + jnp.where(restart, 0.0, (t - 1) / t_new) * (new - w), t_new

    exact = tasks.reference.support_hypergradient(problem, u, truth)
    # On one support the hypergradient is affine in w: its slope is the constant of the error bound.
    slope = jax.grad(lambda w: tasks.reference.support_hypergradient(problem, u, w))(truth)
    found: dict[str, Any] = {
        "steps": steps.tolist(),
        "errors": {},
        "runs": {},
        "support": int(np.count_nonzero(truth)),
        "constant": float(jnp.linalg.norm(slope) * jnp.linalg.norm(truth) / jnp.abs(exact)),
    }
    for name, step in [("ISTA", ista), ("FISTA", fista)]:

        def iterate(carry, length, step=step):
            w, *_ = carry = jax.lax.fori_loop(0, length, step, carry)
            same = jnp.all(jnp.sign(w) == jnp.sign(truth))
            certain = tasks.reference.check_support(problem, u, w).identified
            return carry, (w, tasks.reference.support_hypergradient(problem, u, w), same, certain)

        run = jax.jit(lambda start, f=iterate: jax.lax.scan(f, start, lengths)[1])
        w, gradient, same, certain = map(np.asarray, run((w0, w0, jnp.asarray(1.0))))
        identified = int(np.flatnonzero(~same)[-1]) + 1
        error_w = np.linalg.norm(w - truth, axis=1) / np.linalg.norm(truth)
        # On a support of more features than rows there is no hypergradient.
        error = np.nan_to_num(np.abs(gradient / float(exact) - 1), nan=np.inf)
        resolved = (np.arange(len(steps)) >= identified) & (error_w > 1e-9)  # above rounding
        found["errors"][name] = error, error_w
        found["runs"][name] = {
            "identified": int(steps[identified]),
            "certain": int(steps[np.argmax(certain)]) if certain.any() else None,
            "certain_of_a_wrong_one": int((certain & ~same).sum()),
            "before": float(error[identified - 1]),
            "over_w_before": float(error[identified - 1] / error_w[identified - 1]),
            "over_w_after": float((error[resolved] / error_w[resolved]).max()),
            "last": float(error[-1]),
        }
    return found
