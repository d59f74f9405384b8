"""The race of `hyperparameters.py`: equal CPU time for gradients, a grid, random search and Optuna."""

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from _tutorial import relative
from scipy.optimize import minimize

import bilevel

BOX = (-14.0, 3.0)  # of all log-penalties
SEARCHES = ("hypergradients", "grid", "random", "Optuna")


class Digits(NamedTuple):
    """Odd against even: training, validation and test rows, and the side of an image."""

    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    side: int
    name: str


class Race(NamedTuple):
    """Phi of h log-penalties, with and without its hypergradient; the same compiled pieces."""

    value: Callable[[np.ndarray], float]
    value_and_grad: Callable[[np.ndarray], tuple[float, np.ndarray]]
    test_accuracy: Callable[[np.ndarray], float]
    number: int

    @property
    def shared(self) -> list[np.ndarray]:
        """Where all searches begin: 9 values, each for all penalties."""
        return [np.full(self.number, value) for value in np.linspace(*BOX, 9)]


def race(data: Digits, per_side: int) -> Race:
    """The rows enter by their Gram matrices, so that an evaluation costs no pass over them."""
    at = np.arange(data.side) * per_side // data.side
    codes = (at[:, None] * per_side + at[None, :]).ravel()  # the block of each pixel
    (x, y), (x_val, y_val) = data.train, data.val
    inner_data = jnp.asarray(x.T @ x / len(y)), jnp.asarray(x.T @ y / len(y))
    outer_data = (
        jnp.asarray(x_val.T @ x_val / len(y_val)),
        jnp.asarray(x_val.T @ y_val / len(y_val)),
    )
    constant = float(np.mean(y_val**2)) / 2

    def quadratic(w, data):
        gram, right = data
        return 0.5 * w @ gram @ w - right @ w

    problem = bilevel.BilevelProblem(
        outer=lambda u, w, data: quadratic(w, data) + constant,
        inner=lambda u, w, data: quadratic(w, data) + 0.5 * jnp.sum(jnp.exp(u[codes]) * w**2),
        outer_data=outer_data,
        inner_data=inner_data,
    )

    def solution(u, gram, right):
        factor = jax.scipy.linalg.cho_factor(gram + jnp.diag(jnp.exp(u[codes])))
        return jax.scipy.linalg.cho_solve(factor, right), factor

    @jax.jit
    def value(u):
        w, _ = solution(u, *inner_data)
        return problem.outer(u, w, outer_data)

    @jax.jit
    def value_and_grad(u):
        # The factor serves both systems, which is what makes the hypergradient nearly free.
        w, factor = solution(u, *inner_data)
        f, (grad_u, grad_w) = jax.value_and_grad(problem.outer, (0, 1))(u, w, outer_data)
        v = jax.scipy.linalg.cho_solve(factor, grad_w)
        _, mixed = jax.vjp(lambda u: jax.grad(problem.inner, 1)(u, w, inner_data), u)
        return f, grad_u - mixed(v)[0]

    def test_accuracy(u):
        w, _ = solution(jnp.asarray(u), *inner_data)
        x, y = data.test
        return float(np.mean(np.sign(x @ np.asarray(w)) == y))

    check = jnp.full(per_side**2, -3.0)
    w, _ = solution(check, *inner_data)
    known = bilevel.implicit_gradient(problem, check, w, lx.Cholesky()).grad
    assert relative(value_and_grad(check)[1], known) <= 1e-8
    value(check).block_until_ready()

    def both(u: np.ndarray) -> tuple[float, np.ndarray]:
        f, grad = value_and_grad(jnp.asarray(u))
        return float(f), np.asarray(grad)

    return Race(lambda u: float(value(jnp.asarray(u))), both, test_accuracy, per_side**2)


class OutOfTimeError(Exception):
    """The budget is spent."""


class Clock:
    """Calls a function as long as there is CPU time, and remembers the best point."""

    def __init__(self, seconds: float):
        self.end = time.process_time() + seconds
        self.best, self.u, self.calls = np.inf, np.zeros(0), 0

    def __call__(self, function: Callable[[np.ndarray], Any], u: np.ndarray) -> Any:
        if time.process_time() >= self.end:
            raise OutOfTimeError
        found = function(u)
        value = found[0] if isinstance(found, tuple) else found
        self.calls += 1
        if value < self.best:
            self.best, self.u = value, np.array(u)
        return found


def by_hypergradients(race: Race, clock: Clock, seed: int) -> None:
    """L-BFGS-B from the best of 9 shared penalties; when it has converged, from random points."""
    rng = np.random.default_rng(seed)
    values = [clock(race.value_and_grad, u)[0] for u in race.shared]
    start = race.shared[int(np.argmin(values))]
    while True:
        minimize(
            lambda u: clock(race.value_and_grad, u),
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[BOX] * race.number,
            options={"maxiter": 10_000, "ftol": 1e-10},
        )
        start = rng.uniform(*BOX, race.number)


def by_grid(race: Race, clock: Clock, seed: int) -> None:
    """Grids of 3, 5, 9, ... points per penalty, each in random order; a shared grid comes first."""
    rng = np.random.default_rng(seed)
    for u in race.shared:
        clock(race.value, u)
    for points in (3, 5, 9, 17, 33, 65, 129, 257, 513, 1025):
        levels = np.linspace(*BOX, points)
        if points**race.number <= 100_000:
            for u in rng.permutation(list(itertools.product(levels, repeat=race.number))):
                clock(race.value, u)
        else:
            while True:
                clock(race.value, rng.choice(levels, race.number))


def by_random(race: Race, clock: Clock, seed: int) -> None:
    """Uniform in the box, after 9 shared penalties."""
    rng = np.random.default_rng(seed)
    for u in race.shared:
        clock(race.value, u)
    while True:
        clock(race.value, rng.uniform(*BOX, race.number))


def by_optuna(race: Race, clock: Clock, seed: int) -> None:
    """Optuna's default sampler (TPE), told of 9 shared penalties first."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    names = [f"u{j}" for j in range(race.number)]
    for u in race.shared:
        study.enqueue_trial(dict(zip(names, u.tolist(), strict=True)))

    def objective(trial) -> float:
        return clock(race.value, np.array([trial.suggest_float(name, *BOX) for name in names]))

    study.optimize(objective, n_trials=None)


RUNNERS = dict(zip(SEARCHES, (by_hypergradients, by_grid, by_random, by_optuna), strict=True))


def compare(data: Digits, sides: list[int], seconds: float, seeds: int) -> list[dict[str, Any]]:
    """The best validation loss of each search, for each number of penalties and seed."""
    rows = []
    for per_side in sides:
        instance = race(data, per_side)
        for (name, runner), seed in itertools.product(RUNNERS.items(), range(seeds)):
            clock = Clock(seconds)
            try:
                runner(instance, clock, seed)
            except OutOfTimeError:
                pass
            except ModuleNotFoundError as missing:
                print(f"{name} is left out: {missing}")
                continue
            rows.append(
                {
                    "penalties": instance.number,
                    "search": name,
                    "seed": seed,
                    "validation_loss": clock.best,
                    "test_accuracy": instance.test_accuracy(clock.u),
                    "evaluations": clock.calls,
                }
            )
    return rows
