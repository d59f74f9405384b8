"""G2: penalties by hypergradients, from 1 to 784 of them, against searches that use values alone.

Grazzi & Pontil, the section on hyperparameter optimization: ridge regression

    w*(u) = argmin_w mean_i (x_i'w - y_i)^2 / 2 + 1/2 sum_j exp(u_(group of j)) w_j^2
    Phi(u) = mean over validation rows of (x_j'w*(u) - y_j)^2 / 2

with one penalty, one a feature, or anything between.

1. The hypergradient and the optimum against the closed form.
2. Equal CPU time for L-BFGS-B on hypergradients, a grid, random search and Optuna (its TPE), with
   h penalties, each shared by a block of pixels: the validation loss that each reaches. All know
   the same box and evaluate the same compiled Phi; compiling is not counted.
3. One penalty a pixel on odd against even digits, least squares and logistic: the CPU time.
4. One a feature against one for all on rows that took no part in choosing, over 12 splits; and
   `penalties="auto"`, which chooses between the two by nested cross-validation.

--quick takes scikit-learn's digits (8 x 8), --full MNIST (28 x 28, 5000 training, 5000 validation
and 10000 test rows).
"""

import itertools
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib as mpl
import numpy as np
from scipy.optimize import minimize, minimize_scalar
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import bilevel
from bilevel.tasks import ridge, ridge_solution

sys.path.insert(0, str(Path(__file__).parents[1]))
from _frame import Claim, run_script

BOX = (-14.0, 3.0)  # of all log-penalties
SEARCHES = ("hypergradients", "grid", "random", "Optuna")


class Digits(NamedTuple):
    """Odd against even: training, validation and test rows, and the side of an image."""

    train: tuple[np.ndarray, np.ndarray]
    val: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    side: int
    name: str


def rows_of(load: Any) -> tuple[np.ndarray, np.ndarray]:
    """`(X, y)` of one of scikit-learn's data sets."""
    return load(return_X_y=True)


def small_digits() -> Digits:
    """A third of scikit-learn's digits each."""
    x, y = rows_of(load_digits)
    x, y = x / 16, np.where(y % 2 == 1, 1.0, -1.0)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order] - x[order[:599]].mean(0), y[order]
    train, val, test = ((x[i : i + 599], y[i : i + 599]) for i in (0, 599, 1198))
    return Digits(train, val, test, 8, "digits (scikit-learn)")


def mnist() -> Digits:
    """The first 10000 training images, and the test split."""
    images, labels = bilevel.datasets.mnist("train")
    test_images, test_labels = bilevel.datasets.mnist("test")
    x, y = images[:10000].reshape(10000, -1) / 255, np.where(labels[:10000] % 2 == 1, 1.0, -1.0)
    mean = x[:5000].mean(0)
    test = test_images.reshape(len(test_images), -1) / 255 - mean
    test_y = np.where(test_labels % 2 == 1, 1.0, -1.0)
    x = x - mean
    return Digits((x[:5000], y[:5000]), (x[5000:], y[5000:]), (test, test_y), 28, "MNIST")


# -- 1. against the closed form ----------------------------------------------------------------------


def closed_form(x, y, x_val, y_val) -> Callable[[Any], Any]:
    """Phi, through the normal equations."""

    def phi(u):
        w = ridge_solution(u, (x, y))
        return 0.5 * jnp.mean((x_val @ w - y_val) ** 2)

    return jax.jit(jax.value_and_grad(phi))


def against_closed_form() -> dict[str, float]:
    """Diabetes, half of the rows judging: relative errors of the hypergradient and of the optimum."""
    x, y = rows_of(load_diabetes)
    x, y = jnp.asarray(StandardScaler().fit_transform(x)), jnp.asarray((y - y.mean()) / y.std())
    data = x[::2], y[::2], x[1::2], y[1::2]
    problem, phi = ridge(*data), closed_form(*data)
    errors = {}
    for name, shape in (("one penalty", ()), ("one a feature", (10,))):
        worst = 0.0
        for seed in range(10):
            u = jnp.asarray(np.random.default_rng(seed).uniform(-6, 1, shape))
            w = ridge_solution(u, (x[::2], y[::2]))
            for solver in (lx.Cholesky(), bilevel.CG(rtol=1e-12)):
                grad = bilevel.implicit_gradient(problem, u, w, solver).grad
                truth = phi(u)[1]
                worst = max(worst, float(jnp.linalg.norm(grad - truth) / jnp.linalg.norm(truth)))
        errors[f"hypergradient, {name}"] = worst
        ours = bilevel.tasks.reference_solution(problem, jnp.full(shape, -2.0), jnp.zeros(10))
        if shape == ():
            found: Any = minimize_scalar(
                lambda u: float(phi(jnp.asarray(u))[0]), bounds=BOX, options={"xatol": 1e-12}
            )
        else:
            found = minimize(
                lambda u: [np.asarray(part, float) for part in phi(jnp.asarray(u))],
                np.asarray(ours.u),  # there are other stationary points
                jac=True,
                method="BFGS",
                options={"gtol": 1e-10},
            )
        errors[f"optimum, {name}"] = abs(ours.value - float(found.fun)) / float(found.fun)
    return errors


# -- 2. equal CPU time -------------------------------------------------------------------------------


class Race(NamedTuple):
    """Phi of h log-penalties, with and without its hypergradient; the same compiled pieces."""

    value: Callable[[np.ndarray], float]
    value_and_grad: Callable[[np.ndarray], tuple[float, np.ndarray]]
    test_accuracy: Callable[[np.ndarray], float]
    number: int


def blocks(side: int, per_side: int) -> np.ndarray:
    """The number of the block that each pixel is in, `per_side^2` blocks."""
    at = np.arange(side) * per_side // side
    return (at[:, None] * per_side + at[None, :]).ravel()


def race(digits: Digits, per_side: int) -> Race:
    """The rows enter by their Gram matrices, so that an evaluation costs no pass over them."""
    codes = blocks(digits.side, per_side)
    (x, y), (x_val, y_val) = digits.train, digits.val
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
        _, cross = jax.vjp(lambda u: jax.grad(problem.inner, 1)(u, w, inner_data), u)
        return f, grad_u - cross(v)[0]

    def test_accuracy(u):
        w, _ = solution(jnp.asarray(u), *inner_data)
        x, y = digits.test
        return float(np.mean(np.sign(x @ np.asarray(w)) == y))

    check = jnp.full(per_side**2, -3.0)
    w, _ = solution(check, *inner_data)
    known = bilevel.implicit_gradient(problem, check, w, lx.Cholesky()).grad
    ours = value_and_grad(check)[1]
    assert float(jnp.linalg.norm(ours - known)) <= 1e-8 * float(jnp.linalg.norm(known))
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
    """L-BFGS-B from 9 shared penalties' best; when it has converged, from random points."""
    rng = np.random.default_rng(seed)
    starts = [np.full(race.number, c) for c in np.linspace(*BOX, 9)]
    values = [clock(race.value_and_grad, start)[0] for start in starts]
    start = starts[int(np.argmin(values))]
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
    """Grids of 2, 3, 5, 9, ... points a penalty, each in random order; a shared grid comes first."""
    rng = np.random.default_rng(seed)
    for c in np.linspace(*BOX, 9):
        clock(race.value, np.full(race.number, c))
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
    for c in np.linspace(*BOX, 9):
        clock(race.value, np.full(race.number, c))
    while True:
        clock(race.value, rng.uniform(*BOX, race.number))


def by_optuna(race: Race, clock: Clock, seed: int) -> None:
    """Optuna's default sampler (TPE), told of 9 shared penalties first."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    names = [f"u{j}" for j in range(race.number)]
    for c in np.linspace(*BOX, 9):
        study.enqueue_trial(dict.fromkeys(names, c))

    def objective(trial) -> float:
        return clock(race.value, np.array([trial.suggest_float(name, *BOX) for name in names]))

    study.optimize(objective, n_trials=None)


RUNNERS = dict(zip(SEARCHES, (by_hypergradients, by_grid, by_random, by_optuna), strict=True))


def compare(digits: Digits, sides: list[int], seconds: float, seeds: int) -> list[dict[str, Any]]:
    """The best validation loss of each search, for each number of penalties and seed."""
    rows = []
    for per_side in sides:
        instance = race(digits, per_side)
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


# -- 3. one penalty a pixel --------------------------------------------------------------------------


def one_a_pixel(digits: Digits) -> dict[str, dict[str, float]]:
    """The estimators on one split into training and validation rows, with their CPU time."""
    x = np.vstack([digits.train[0], digits.val[0]])
    y = np.append(digits.train[1], digits.val[1])
    n = len(digits.train[1])
    split = [(np.arange(n), np.arange(n, len(y)))]
    found = {}
    models: dict[str, Any] = {
        "least squares": (bilevel.RidgeBilevelCV, {}),
        "logistic": (bilevel.LogisticRegressionBilevelCV, {"max_iter": 15, "tol": 1e-3}),
    }
    for name, (kind, options) in models.items():
        for penalties in ("shared", "feature"):
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = kind(penalties=penalties, cv=split, **options).fit(x, y)
            seconds = time.process_time() - start
            decided = np.sign(model.predict(digits.test[0]))
            found[f"{name}, {penalties}"] = {
                "cpu_seconds": seconds,
                "validation_loss": model.cv_loss_,
                "hypergradient_norm": model.hypergradient_norm_,
                "outer_steps": model.n_iter_,
                "test_accuracy": float(np.mean(decided == digits.test[1])),
            }
    return found


# -- 4. on rows that took no part --------------------------------------------------------------------


def held_out(splits: int) -> dict[str, dict[str, Any]]:
    """The loss of one penalty minus that of one a feature, on a third of the rows, in percent."""
    tables = {
        "diabetes": (load_diabetes, bilevel.RidgeBilevelCV),
        "breast cancer": (load_breast_cancer, bilevel.LogisticRegressionBilevelCV),
    }
    found = {}
    for name, (load, kind) in tables.items():
        x, y = rows_of(load)
        x, gains, chosen = StandardScaler().fit_transform(x), {"feature": [], "auto": []}, []
        for seed in range(splits):
            classes = y if name == "breast cancer" else None
            a, b, c, d = train_test_split(
                x, y, test_size=1 / 3, random_state=seed, stratify=classes
            )
            losses = {}
            for penalties in ("shared", "feature", "auto"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    model = kind(penalties=penalties, cv=4, max_iter=30).fit(a, c)
                if name == "diabetes":
                    losses[penalties] = np.mean((model.predict(b) - d) ** 2)
                else:
                    losses[penalties] = -np.mean(model.predict_log_proba(b)[np.arange(len(d)), d])
                if penalties == "auto":
                    chosen.append(np.ndim(model.alpha_) == 1)
            for each in gains:
                gains[each].append(100 * (1 - losses[each] / losses["shared"]))
        found[name] = {
            "splits": splits,
            "chosen_one_a_feature": int(np.sum(chosen)),
            **{
                each: {
                    "percent_less_loss": float(np.mean(gain)),
                    "standard_error": float(np.std(gain, ddof=1) / np.sqrt(splits)),
                }
                for each, gain in gains.items()
            },
        }
    return found


# -- the figure and the claims -----------------------------------------------------------------------


def medians(rows: list[dict[str, Any]], key: str) -> dict[str, dict[int, float]]:
    """search -> number of penalties -> median over seeds."""
    table: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        table.setdefault(row["search"], {}).setdefault(row["penalties"], []).append(row[key])
    return {s: {h: float(np.median(v)) for h, v in each.items()} for s, each in table.items()}


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Validation loss and test accuracy against the number of penalties."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    styles: dict[str, str] = dict(zip(SEARCHES, ("C3o-", "C0s--", "C2^--", "C1D--"), strict=True))
    labels = {"validation_loss": "best validation loss", "test_accuracy": "test accuracy"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for search, values in medians(rows, key).items():
            axis.semilogx(list(values), list(values.values()), styles[search], label=search, ms=5)
        numbers = sorted({row["penalties"] for row in rows})
        axis.set_xticks(numbers, [str(h) for h in numbers])
        axis.minorticks_off()
        axis.set(xlabel="number of penalties", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(full: bool, out: Path) -> tuple[dict[str, Any], list[Claim]]:
    """Measure, draw, judge."""
    jax.config.update("jax_enable_x64", True)
    digits = small_digits()
    if full:
        try:
            digits = mnist()
        except FileNotFoundError as missing:
            print(f"MNIST is missing, scikit-learn's digits are taken in its place: {missing}")
    sides = [1, 2, 4, 7, 14, 28] if digits.side == 28 else [1, 2, 4, 8]
    seconds, seeds, splits = (5.0, 3, 12) if full else (0.7, 3, 6)
    errors = against_closed_form()
    rows = compare(digits, sides, seconds, seeds)
    pixels = one_a_pixel(digits)
    unseen = held_out(splits)
    title = f"{digits.name}, odd against even, ridge: {seconds:g} CPU seconds each, {seeds} seeds"
    draw(rows, title, out / "hyperparameters.png")

    best = medians(rows, "validation_loss")
    numbers = [side**2 for side in sides]
    others = [name for name in best if name != "hypergradients"]
    margins = {
        h: min(best[name][h] for name in others) / best["hypergradients"][h] - 1 for h in numbers
    }
    wins = [h for h in numbers if margins[h] > 1e-3]
    claims = [
        Claim(
            "G2",
            f"{name}: relative error against the closed form",
            "exact",
            f"{error:.1e}",
            error <= 1e-8,
        )
        for name, error in errors.items()
    ]
    claims.append(
        Claim(
            "G2",
            "from some number of penalties on gradients reach a lower validation loss (.1 % or more)",
            "many hyperparameters need gradients",
            f"at {wins} of {numbers}; margins "
            + ", ".join(f"{h}: {100 * margin:.1f} %" for h, margin in margins.items()),
            bool(wins) and wins == numbers[-len(wins) :],
        )
    )
    number = digits.side**2
    for name in ("least squares", "logistic"):
        run = pixels[f"{name}, feature"]
        claims.append(
            Claim(
                "G2",
                f"{number} penalties on odd against even, {name}: within 30 CPU seconds",
                "<= 30 s",
                f"{run['cpu_seconds']:.1f} s",
                run["cpu_seconds"] <= 30,
                f"test accuracy {run['test_accuracy']:.4f}, with one penalty "
                f"{pixels[f'{name}, shared']['test_accuracy']:.4f}",
            )
        )
    for name, table in unseen.items():
        for kind, text in (("feature", "one penalty a feature"), ("auto", "the nested choice")):
            gain, error = table[kind]["percent_less_loss"], table[kind]["standard_error"]
            holds = gain > 2 * error if kind == "feature" else gain > -2 * error - 0.5
            claims.append(
                Claim(
                    "G2",
                    f"{name}: {text} {'beats' if kind == 'feature' else 'is no worse than'} one for "
                    "all on rows that took no part in choosing",
                    "d penalties help",
                    f"{gain:+.2f} +- {error:.2f} % less loss",
                    holds,
                    ""
                    if holds
                    else "d penalties follow the rows that judge: chosen by cross-validation they "
                    "overfit it. `penalties='auto'` notices (it took one a feature in "
                    f"{table['chosen_one_a_feature']} of {table['splits']} splits).",
                )
            )
    settings = {"data": digits.name, "seconds": seconds, "seeds": seeds, "box": list(BOX)}
    return {
        "settings": settings,
        "errors": errors,
        "race": rows,
        "one_a_pixel": pixels,
        "held_out": unseen,
    }, claims


if __name__ == "__main__":
    run_script(__file__, main)
