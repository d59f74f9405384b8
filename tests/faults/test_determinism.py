"""The same command gives the same weights, bit for bit, whatever the number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import write_small_tables
from disturbed import SAME
from joblib import Parallel, delayed
from sklearn.datasets import load_wine

from bilevel import learn_weights
from digits import write_tables

METHODS = {
    "auto": [],
    "trees": ["--estimator", "trees"],
    "soba": ["--method", "soba", "--num-steps", "300"],
    "near-exact": ["--method", "near-exact", "--num-steps", "3"],
}


def results(command: list[str], out: Path, threads: int) -> dict[str, bytes]:
    """What a process with so many threads has written; JAX gets as many processors."""
    number = str(threads)
    limits = {f"{name}_NUM_THREADS": number for name in ("OMP", "OPENBLAS", "MKL")}
    begin = [sys.executable, "-c", "from bilevel.cli import main\nmain()"]
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        begin[2] = f"import os\nos.sched_setaffinity(0, {cores})\n" + begin[2]
    arguments = [*command, "--no-report", "--out", str(out)]
    subprocess.run([*begin, *arguments], check=True, capture_output=True, env=os.environ | limits)
    return {name: (out / name).read_bytes() for name in SAME if (out / name).exists()}


@pytest.mark.slow  # a process per number of threads
@pytest.mark.parametrize("method", METHODS)
def test_weights_do_not_depend_on_the_number_of_threads(tmp_path, method):
    if method == "auto":
        command = [*write_tables(tmp_path), "--id", "row"]
    else:
        command = [str(x) for x in write_small_tables(tmp_path) if x != "--no-report"]
    one, *others = (
        results([*command, *METHODS[method]], tmp_path / f"run{n}", n) for n in (1, 2, 4)
    )
    assert set(one) >= {"weights.parquet", "worst.csv"}
    for other in others:
        assert other == one


def weights_of(seed: int) -> bytes:
    """Of a small problem; called in threads and in other processes."""
    X, y = load_wine(return_X_y=True)
    trusted = np.arange(len(y)) % 2 == 0
    found = learn_weights(X[~trusted], y[~trusted], X[trusted], y[trusted], seed=seed)
    return np.asarray(found.weights).tobytes()


@pytest.mark.slow  # 32 fits in threads and processes
def test_threads_and_processes_give_the_same_weights():
    """`multiprocessing` forks, after fits in this very process."""
    alone = [weights_of(seed) for seed in range(8)]
    backends = ["threading", "loky"] + ["multiprocessing"] * hasattr(os, "fork")
    for backend in backends:
        together = Parallel(n_jobs=8, backend=backend)(delayed(weights_of)(s) for s in range(8))
        assert together == alone, backend


@pytest.mark.slow  # three processes that compile
def test_weights_do_not_depend_on_the_compilation_cache(tmp_path, monkeypatch):
    command = [str(x) for x in write_small_tables(tmp_path) if x != "--no-report"]
    command += METHODS["soba"]
    without = results(command, tmp_path / "without", 2)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    filled = results(command, tmp_path / "filled", 2)
    assert any((tmp_path / "cache").iterdir())
    assert results(command, tmp_path / "used", 2) == filled == without
