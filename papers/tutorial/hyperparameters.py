"""G2: penalties by hypergradients, from 1 to 784 of them, against searches that use values alone.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], section on hyperparameter optimization: ridge regression

    w*(u) = argmin_w mean_i (x_i'w - y_i)^2 / 2 + 1/2 sum_j exp(u_(group of j)) w_j^2
    Phi(u) = mean over validation rows of (x_j'w*(u) - y_j)^2 / 2

with one penalty, one per feature, or anything between.

1. The hypergradient and the optimum against the closed form.
2. Equal CPU time for L-BFGS-B on hypergradients, a grid, random search and Optuna (its TPE), with h
   penalties, each shared by a block of pixels: the validation loss that each reaches. All know the
   same box and evaluate the same compiled Phi; compiling is not counted.
3. One penalty per pixel on odd against even digits, least squares and logistic: the CPU time.
4. One penalty per feature against one for all, on rows that took no part in choosing, over several
   splits; and `penalties="auto"`, which chooses between the two by nested cross-validation.

The quick run takes scikit-learn's digits (8 x 8) and 3 splits, the full run MNIST (28 x 28, 5000
training, 5000 validation and 10000 test rows) and 12 splits.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from _race import BOX, SEARCHES, Digits, compare
from _tutorial import Claim, Measured, digits, fast, mnist, panels, relative
from _tutorial import run as frame
from scipy.optimize import minimize, minimize_scalar
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import bilevel
from bilevel.tasks import ridge
from bilevel.tasks.reference import ridge_solution


def rows_of(load: Any) -> tuple[np.ndarray, np.ndarray]:
    """`(X, y)` of one of scikit-learn's data sets."""
    return load(return_X_y=True)


def odd_digits() -> Digits:
    """A third of scikit-learn's digits each."""
    x, y = digits()
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order] - x[order[:599]].mean(0), signs(y[order])
    train, val, test = ((x[i : i + 599], y[i : i + 599]) for i in (0, 599, 1198))
    return Digits(train, val, test, 8, "digits (scikit-learn)")


def odd_mnist() -> Digits:
    """The first 10000 training images, and the test split."""
    (x, y), (test, test_y) = mnist("train", slice(10000)), mnist("test")
    mean = x[:5000].mean(0)
    x, y, test = x - mean, signs(y), test - mean
    return Digits((x[:5000], y[:5000]), (x[5000:], y[5000:]), (test, signs(test_y)), 28, "MNIST")


def signs(codes: np.ndarray) -> np.ndarray:
    """1 for odd digits, -1 for even ones."""
    return np.where(codes % 2 == 1, 1.0, -1.0)


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

    @fast
    def gradients(u):
        w = ridge_solution(u, (x[::2], y[::2]))
        solvers = lx.Cholesky(), bilevel.CG(rtol=1e-12)
        return [bilevel.implicit_gradient(problem, u, w, solver).grad for solver in solvers]

    for name, shape in (("one penalty", ()), ("one penalty per feature", (10,))):
        worst = 0.0
        for seed in range(10):
            u = jnp.asarray(np.random.default_rng(seed).uniform(-6, 1, shape))
            worst = max(worst, *(relative(grad, phi(u)[1]) for grad in gradients(u)))
        errors[f"hypergradient, {name}"] = worst
        ours = bilevel.tasks.reference.reference_solution(
            problem, jnp.full(shape, -2.0), jnp.zeros(10)
        )
        if shape == ():
            found: Any = minimize_scalar(
                lambda u: float(phi(jnp.asarray(u))[0]), bounds=BOX, options={"xatol": 1e-12}
            )
        else:
            found = minimize(
                lambda u: [np.asarray(part, float) for part in phi(jnp.asarray(u))],
                np.asarray(ours.u),  # There are other stationary points.
                jac=True,
                method="BFGS",
                options={"gtol": 1e-10},
            )
        errors[f"optimum, {name}"] = abs(ours.value - float(found.fun)) / float(found.fun)
    return errors


# -- 3. one penalty per pixel ------------------------------------------------------------------------


def one_per_pixel(data: Digits) -> dict[str, dict[str, float]]:
    """The estimators on one split into training and validation rows, with their CPU time."""
    x = np.vstack([data.train[0], data.val[0]])
    y = np.append(data.train[1], data.val[1])
    n = len(data.train[1])
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
            decided = np.sign(model.predict(data.test[0]))
            found[f"{name}, {penalties}"] = {
                "cpu_seconds": seconds,
                "validation_loss": model.cv_loss_,
                "hypergradient_norm": model.hypergradient_norm_,
                "outer_steps": model.n_iter_,
                "test_accuracy": float(np.mean(decided == data.test[1])),
            }
    return found


# -- 4. on rows that took no part --------------------------------------------------------------------


def held_out(splits: int) -> dict[str, dict[str, Any]]:
    """How much less loss than one penalty has on a third of the rows, in percent."""
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
            "chosen_one_per_feature": int(np.sum(chosen)),
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


def measure(full: bool) -> Measured:
    """All four parts."""
    sides = [1, 2, 4, 7, 14, 28] if full else [1, 2, 8]
    seconds, seeds, splits = (5.0, 3, 12) if full else (0.2, 3, 3)
    with jax.enable_x64(True):
        data = odd_mnist() if full else odd_digits()
        found = {
            "errors": against_closed_form(),
            "race": compare(data, sides, seconds, seeds),
            "one_per_pixel": one_per_pixel(data),
            "held_out": held_out(splits),
        }
    settings = {"data": data.name, "penalties": data.side**2, "seconds": seconds, "box": BOX}
    return {"settings": settings, "seeds": list(range(seeds)), **found}


def draw(measured: Measured):
    """Validation loss and test accuracy against the number of penalties."""
    rows, settings = measured["race"], measured["settings"]
    figure, axes = panels(1, 2, (10, 4.2))
    styles: dict[str, str] = dict(zip(SEARCHES, ("C3o-", "C0s--", "C2^--", "C1D--"), strict=True))
    labels = {"validation_loss": "best validation loss", "test_accuracy": "test accuracy"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for search, values in medians(rows, key).items():
            axis.semilogx(list(values), list(values.values()), styles[search], label=search, ms=5)
        numbers = sorted({row["penalties"] for row in rows})
        axis.set_xticks(numbers, [str(h) for h in numbers])
        axis.minorticks_off()
        axis.set(xlabel="number of penalties", ylabel=label)
    axes[0].legend(fontsize=9)
    figure.suptitle(
        f"{settings['data']}, odd against even, ridge: {settings['seconds']:g} CPU seconds for each, "
        f"{len(measured['seeds'])} seeds",
        fontsize=11,
    )
    return figure


def claims(measured: Measured) -> list[Claim]:
    """One claim for each part and case."""
    return [
        Claim(
            "G2",
            "With {1} the {0} is that of the closed form.".format(*name.split(", ")),
            "exact",
            f"relative error {error:.1e}",
            error <= 1e-8,
        )
        for name, error in measured["errors"].items()
    ] + [
        claim_of_race(measured["race"]),
        *claims_of_time(measured["one_per_pixel"], measured["settings"]["penalties"]),
        *claims_of_held_out(measured["held_out"]),
    ]


def claim_of_race(rows: list[dict[str, Any]]) -> Claim:
    """How much lower a validation loss gradients reach than the best of the other searches."""
    best = medians(rows, "validation_loss")
    numbers = sorted({row["penalties"] for row in rows})
    others = [name for name in best if name != "hypergradients"]
    margins = {
        h: min(best[name][h] for name in others) / best["hypergradients"][h] - 1 for h in numbers
    }
    wins = [h for h in numbers if margins[h] > 1e-3]
    return Claim(
        "G2",
        "From some number of penalties on, gradients reach a validation loss that is lower by 0.1 % "
        "or more.",
        "many hyperparameters need gradients",
        f"at {wins} of {numbers}; margins "
        + ", ".join(f"{h}: {100 * margin:.1f} %" for h, margin in margins.items()),
        bool(wins) and wins == numbers[-len(wins) :],
    )


def claims_of_time(pixels: dict[str, Any], number: int) -> Iterator[Claim]:
    """Many penalties in little time."""
    for name in ("least squares", "logistic"):
        run, shared = pixels[f"{name}, feature"], pixels[f"{name}, shared"]
        yield Claim(
            "G2",
            f"{number} penalties on odd against even, {name}, take at most 30 CPU seconds.",
            "<= 30 s",
            f"{run['cpu_seconds']:.1f} s",
            run["cpu_seconds"] <= 30,
            f"The test accuracy is {run['test_accuracy']:.4f}; with one penalty it is "
            f"{shared['test_accuracy']:.4f}.",
        )


def claims_of_held_out(unseen: dict[str, Any]) -> Iterator[Claim]:
    """On rows that took no part in choosing."""
    for name, table in unseen.items():
        feature, auto = table["feature"], table["auto"]
        gain, error = feature["percent_less_loss"], feature["standard_error"]
        yield Claim(
            "G2",
            f"On rows of {name} that took no part in choosing, one penalty per feature beats one for "
            "all.",
            "d penalties help",
            f"{gain:+.2f} +- {error:.2f} % less loss",
            gain > 2 * error,
            ""
            if gain > 2 * error
            else "Chosen by cross-validation, d penalties overfit the rows that judge them. "
            "`penalties='auto'` notices: it took one per feature in "
            f"{table['chosen_one_per_feature']} of {table['splits']} splits.",
        )
        gain, error = auto["percent_less_loss"], auto["standard_error"]
        yield Claim(
            "G2",
            f"On rows of {name} that took no part in choosing, the nested choice is no worse than one "
            "penalty for all.",
            "d penalties help",
            f"{gain:+.2f} +- {error:.2f} % less loss",
            gain > -2 * error - 0.5,
        )


if __name__ == "__main__":
    frame(__file__, measure, draw, claims)
