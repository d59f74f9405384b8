"""Estimators that choose their penalties: CPU time beside scikit-learn's, and many penalties at once.

1. The CPU time of each estimator over that of scikit-learn's one for the same penalties, and the
   cross-validated loss that each reaches. One process, in turn, medians, one thread.
2. Ridge regression with 1, 10, 100 and 1000 penalties, each for a block of columns, chosen on a third
   of the rows and judged on another third: `RidgeBilevelCV` against a grid, random search and
   Optuna's TPE, each of which gets the CPU time that the estimator took. All evaluate the same
   function, in the same box, and begin with the same 9 shared penalties. The columns are products of
   the standardised features, by rising degree, until there are 1000.

The data sets are those that come with scikit-learn. Optuna is left out where it is not installed.
"""

import argparse
import contextlib
import importlib.util
import itertools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from _measure import cpu_seconds, write
from sklearn import datasets, linear_model
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

import bilevel
from bilevel.penalties._parts import Source, make_part
from bilevel.penalties._ridge import _Normal  # pyright: ignore[reportPrivateUsage]
from bilevel.penalties._tuning import PenaltyMap, penalty_map

COLUMNS, ROWS = 1000, 600
LEAST, MOST = 1e-6, 1e2  # of penalties, as parts of a column's sum of squares
RATIOS = [0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0]  # that scikit-learn's manual suggests
SEARCHES = ("hypergradients", "grid", "random", "Optuna")


# -- 1. beside scikit-learn --------------------------------------------------------------------------


class Pair(NamedTuple):
    """What is compared: two estimators, the data, and the loss of scikit-learn's one."""

    ours: Any
    theirs: Any
    data: tuple[np.ndarray, np.ndarray]
    loss: Callable[[Any], float]


def pairs() -> dict[str, Pair]:
    """The comparisons, by name."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(60, 200))
    wide = wide, wide[:, :5] @ [3.0, -2.0, 1.0, 1.0, 1.0] + rng.normal(size=60)
    diabetes, digits = tables()["diabetes"], arrays(datasets.load_digits)
    digits = StandardScaler().fit_transform(digits[0]), digits[1]

    def squares(model: Any) -> float:
        return float(model.mse_path_.mean(axis=-1).min())

    net = bilevel.ElasticNetBilevelCV
    nets: Any = linear_model.ElasticNetCV  # whose stubs know no list of ratios
    ridge: Any = linear_model.RidgeCV
    alphas = np.geomspace(1e-3, 1e3, 100)
    return {
        "ridge, 442 x 10, a grid of 100": Pair(
            bilevel.RidgeBilevelCV(penalties="shared"),
            ridge(alphas, cv=5, scoring="neg_mean_squared_error"),
            diabetes,
            lambda model: -float(model.best_score_),
        ),
        "lasso, 442 x 10": Pair(net(l1_ratio=1.0), linear_model.LassoCV(cv=5), diabetes, squares),
        "lasso, 60 x 200": Pair(net(l1_ratio=1.0), linear_model.LassoCV(cv=5), wide, squares),
        "elastic net, both penalties, 60 x 200, 7 ratios": Pair(
            net(), nets(cv=5, l1_ratio=RATIOS), wide, squares
        ),
        "elastic net, both penalties, 60 x 200, against 1 ratio": Pair(
            net(), nets(cv=5), wide, squares
        ),
        "elastic net, ratio 0.5, 60 x 200": Pair(
            net(l1_ratio=0.5), nets(cv=5, l1_ratio=0.5), wide, squares
        ),
        "logistic regression, digits, 10 classes": Pair(
            bilevel.LogisticRegressionBilevelCV(penalties="shared"),
            linear_model.LogisticRegressionCV(cv=5, scoring="neg_log_loss"),
            digits,
            lambda model: (
                -float(next(iter(model.scores_.values())).mean(axis=0).max())
                if isinstance(model.scores_, dict)
                else -float(model.scores_.mean(axis=0).max())
            ),
        ),
    }


def beside_scikit_learn(repeats: int) -> dict[str, dict[str, float]]:
    """Times and losses of each pair."""
    found = {}
    warnings.simplefilter("ignore", FutureWarning)  # scikit-learn's, of its defaults
    warnings.simplefilter("ignore", ConvergenceWarning)  # of its rough solutions
    for name, pair in pairs().items():
        both = (lambda: pair.ours.fit(*pair.data)), (lambda: pair.theirs.fit(*pair.data))
        ours, theirs = cpu_seconds(*both, repeats=repeats)
        found[name] = {
            "seconds": ours,
            "scikit_learn_seconds": theirs,
            "ratio": ours / theirs,
            "loss": float(pair.ours.cv_loss_),
            "scikit_learn_loss": pair.loss(pair.theirs),
        }
        print(name, found[name])
    return found


# -- 2. many penalties -------------------------------------------------------------------------------


def arrays(load: Any) -> tuple[np.ndarray, np.ndarray]:
    return load(return_X_y=True)


def tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features, and targets as numbers; classes become -1 and 1."""
    found = {"diabetes": arrays(datasets.load_diabetes)}
    classes = {
        "breast cancer": (datasets.load_breast_cancer, lambda y: y == 1),
        "wine": (datasets.load_wine, lambda y: y == 1),
        "digits": (datasets.load_digits, lambda y: y % 2 == 1),
        "iris": (datasets.load_iris, lambda y: y == 1),
    }
    for name, (load, positive) in classes.items():
        X, y = arrays(load)
        found[name] = X, np.where(positive(y), 1.0, -1.0)
    return found


def products(X: np.ndarray) -> np.ndarray:
    """`(rows, 1000)`: products of standardised features, of rising degree, standardised."""
    X = StandardScaler().fit_transform(X)
    X = X[:, np.ptp(X, axis=0) > 0]
    columns = []
    for degree in itertools.count(1):
        for chosen in itertools.combinations_with_replacement(range(X.shape[1]), degree):
            columns.append(X[:, chosen].prod(axis=1))
            if len(columns) == COLUMNS:
                return StandardScaler().fit_transform(np.column_stack(columns))
    raise AssertionError


class OutOfTimeError(Exception):
    """The CPU time is spent."""


class Clock:
    """Values of Phi as long as there is CPU time, and the best point."""

    def __init__(self, problem: _Normal, penalties: PenaltyMap, seconds: float):
        self.problem, self.penalties = problem, penalties
        self.end = time.process_time() + seconds
        self.best, self.u, self.calls = np.inf, np.zeros(penalties.number), 0

    def __call__(self, u: np.ndarray) -> float:
        if self.calls and time.process_time() >= self.end:
            raise OutOfTimeError
        value = self.problem.value(u, self.penalties)
        self.calls += 1
        if value < self.best:
            self.best, self.u = value, np.array(u)
        return value

    def share(self) -> None:
        """The 9 shared penalties that all searches begin with."""
        for part in np.geomspace(MOST, LEAST, 9):
            self(np.full(self.penalties.number, np.mean(self.penalties.log_scale) + np.log(part)))

    def at(self, part: np.ndarray) -> np.ndarray:
        """A point of the box, from numbers in [0, 1]."""
        return self.penalties.log_scale + np.log(LEAST) + part * np.log(MOST / LEAST)


def by_grid(clock: Clock, seed: int) -> None:
    """Grids of 3, 5, 9, ... points per penalty, each in random order."""
    rng, number = np.random.default_rng(seed), clock.penalties.number
    clock.share()
    for points in (2**k + 1 for k in itertools.count(1)):
        levels = np.linspace(0, 1, points)
        if points**number > 100_000:
            while True:
                clock(clock.at(rng.choice(levels, number)))
        for part in rng.permutation(list(itertools.product(levels, repeat=number))):
            clock(clock.at(part))


def by_random(clock: Clock, seed: int) -> None:
    """Uniform in the box."""
    rng = np.random.default_rng(seed)
    clock.share()
    while True:
        clock(clock.at(rng.uniform(size=clock.penalties.number)))


def by_optuna(clock: Clock, seed: int) -> None:
    """Optuna's default sampler (TPE), told of the shared penalties."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    names = [f"u{j}" for j in range(clock.penalties.number)]
    for part in np.linspace(1, 0, 9):
        study.enqueue_trial(dict.fromkeys(names, part))

    def objective(trial: Any) -> float:
        return clock(clock.at(np.array([trial.suggest_float(name, 0, 1) for name in names])))

    study.optimize(objective, n_trials=None)


def many(numbers: list[int], splits: int, max_iter: int) -> list[dict[str, Any]]:
    """Losses on the judging rows and on the test rows, of each search."""
    runners = {"grid": by_grid, "random": by_random, "Optuna": by_optuna}
    if importlib.util.find_spec("optuna") is None:
        del runners["Optuna"]
        print("Optuna is left out: it is not installed.")
    found = []
    for (name, (X, y)), number, seed in itertools.product(tables().items(), numbers, range(splits)):
        order = np.random.default_rng(seed).permutation(len(y))[:ROWS]
        X, y = products(X[order]), (y[order] - y[order].mean()) / y[order].std()
        train, judge, test = np.array_split(np.arange(len(y)), 3)
        groups = np.arange(COLUMNS) * number // COLUMNS
        source = Source(X, y, np.ones(len(y)), True)
        part = make_part(source, train, judge, float(len(judge)))
        chosen, problem = penalty_map(groups, part), _Normal(part)

        def row(search: str, u: np.ndarray, value: float, **more: float) -> dict[str, Any]:
            w = problem.solution(u[chosen.codes])
            error = (X[test] - part.X_mean) @ w + part.y_mean - y[test]
            case = {"data": name, "penalties": number, "seed": seed, "search": search}
            return {**case, "loss": value, "test_loss": float(np.mean(error**2)), **more}

        model = bilevel.RidgeBilevelCV(
            penalties=groups if number > 1 else "shared", cv=[(train, judge)], max_iter=max_iter
        )
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, y)
        seconds = time.process_time() - start
        u = np.atleast_1d(model.tuned_.u)
        found.append(row("hypergradients", u, model.cv_loss_, seconds=seconds))
        for search, runner in runners.items():
            clock = Clock(problem, chosen, seconds)
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(OutOfTimeError):
                    runner(clock, seed)
            spent = time.process_time() - start
            found.append(row(search, clock.u, clock.best, seconds=spent, calls=clock.calls))
        print(name, number, seed, {each["search"]: each["test_loss"] for each in found[-4:]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and splits")
    quick = parser.parse_args().quick
    settings = {
        "repetitions": 1 if quick else 5,
        "splits": 1 if quick else 3,
        "max_iter": 25,
        "columns": COLUMNS,
        "rows": ROWS,
        "range": [LEAST, MOST],
        "threads": os.environ["OMP_NUM_THREADS"],
    }
    measured = {
        "settings": settings,
        "seeds": list(range(settings["splits"])),
        "beside": beside_scikit_learn(settings["repetitions"]),
        "many": many([1, 10, 100, 1000], settings["splits"], settings["max_iter"]),
    }
    write(__file__, measured, full=not quick)


if __name__ == "__main__":
    main()
