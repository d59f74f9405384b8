"""Independent fits are the same where joblib runs them: in threads, in processes, on a cluster."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import threadpoolctl
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

from bilevel.reweighting import WeightsResult, compare_baselines, learn_weights
from bilevel.reweighting._weights.fits import few_threads, independent


def where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def test_results_come_in_the_order_of_the_tasks():
    tasks = [(k,) for k in range(20)]
    expected = [(k, os.getpid()) for k in range(20)]
    assert independent(where, tasks) == expected
    with joblib.parallel_config(backend="threading", n_jobs=3):
        assert independent(where, iter(tasks)) == expected


def test_alone_no_library_is_asked_for_its_threads(monkeypatch):
    """It takes milliseconds for each fit, and nobody looks at the answer."""

    def asked() -> None:
        raise AssertionError

    monkeypatch.setattr(threadpoolctl, "threadpool_info", asked)
    assert independent(where, [(3,)]) == [(3, os.getpid())]
    with joblib.parallel_config(backend="threading", n_jobs=2), pytest.raises(AssertionError):
        independent(where, [(3,)])


def threads(kind: str) -> set[int]:
    return {x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == kind}


@pytest.mark.parametrize(
    ("entries", "products", "trees"), [(100_000, 1, 1), (100_001, 1, 2), (2_000_001, 2, 2)]
)
def test_threads_that_would_wait_for_each_other_are_not_started(entries, products, trees):
    with threadpoolctl.threadpool_limits(2), few_threads(entries):
        assert threads("blas") == {products}
        assert threads("openmp") == {trees}


@contextlib.contextmanager
def processes() -> Iterator[None]:
    with joblib.parallel_config(backend="loky", n_jobs=2):
        yield


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as local,
        distributed.Client(local),
        joblib.parallel_config(backend="dask"),
    ):
        yield


def learned(estimator: RandomForestClassifier | None) -> WeightsResult:
    X, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    train, trusted, holdout = order[:350], order[350:430], order[430:]
    noisy = np.where(rng.random(len(y)) < 0.2, 1 - y, y)
    return learn_weights(
        X[train],
        noisy[train],
        X[trusted],
        y[trusted],
        holdout=(X[holdout], y[holdout]),
        estimator=estimator,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of the cluster
@pytest.mark.parametrize("elsewhere", [processes, cluster])
@pytest.mark.parametrize("estimator", [None, RandomForestClassifier(20, random_state=0, n_jobs=1)])
def test_weights_are_equal_to_the_last_bit(elsewhere, estimator):
    here = learned(estimator)
    with elsewhere():
        ids = {process for _, process in independent(where, [(k,) for k in range(8)])}
        there = learned(estimator)
    assert os.getpid() not in ids
    for name in ("weights", "label_quality", "keep"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert here.winner == there.winner
    assert isinstance(here.baselines, pd.DataFrame)
    for name in ("candidates", "baselines"):
        pd.testing.assert_frame_equal(getattr(there, name), getattr(here, name), check_exact=True)


@pytest.mark.slow
def test_baselines_on_ray_are_equal_to_the_last_bit():
    """Ray starts its processes anew for each group of fits: a whole run of them would take minutes."""
    started: Any = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    X, y = load_breast_cancer(return_X_y=True)
    weights = np.random.default_rng(0).random(400)
    forest = RandomForestClassifier(20, random_state=0, n_jobs=1)
    rows = X[:400], y[:400], X[400:480], y[400:480], weights, 1.0, X[480:], y[480:]
    here = compare_baselines(forest, *rows)
    places = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    started.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=places)
    try:
        with joblib.parallel_config(backend="ray", n_jobs=2):
            there = compare_baselines(forest, *rows)
    finally:
        started.shutdown()
    pd.testing.assert_frame_equal(there, here, check_exact=True)
