"""`--processes`: the fits of a run are shared, and nothing else about the run changes."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError

from bilevel.cli._app import LostProcessError
from bilevel.cli._shared import shared
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._weights import fits
from bilevel.reweighting._weights.fits import independent, number_of_processes

BEGIN = [sys.executable, "-c", "from bilevel.cli import main\nmain()"]
OWN = """
import os, signal, time, warnings
from pathlib import Path
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

class Tree(DecisionTreeClassifier):
    def fit(self, X, y, sample_weight=None):
        Path("seen", str(os.getpid())).touch()
        warnings.warn("said by a " + "tree")
        return super().fit(X, y, sample_weight)

tree = Tree(random_state=0)
forest = RandomForestClassifier(10, random_state=0)

class Killed(DecisionTreeClassifier):
    def fit(self, X, y, sample_weight=None):
        os.kill(os.getpid(), signal.SIGKILL)

class Slow(DecisionTreeClassifier):
    def fit(self, X, y, sample_weight=None):
        Path("seen", str(os.getpid())).touch()
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("raised", "wanted", "said"),
    [
        (TerminatedWorkerError("exit codes"), LostProcessError, "give fewer --processes"),
        (BrokenProcessPool("failed to un-serialize"), InputError, "or leave out --processes"),
        (pickle.PicklingError("no pickle"), InputError, "or leave out --processes"),
        (KeyError("other"), KeyError, "other"),
    ],
)
def test_what_goes_wrong_between_processes_is_said_in_words(monkeypatch, raised, wanted, said):
    monkeypatch.setenv("PYTHONSAFEPATH", "")

    def work() -> None:
        with shared(2):
            assert number_of_processes() == 2
            assert os.environ["PYTHONSAFEPATH"] == "1"
            raise raised

    with pytest.raises(wanted, match=said):
        work()
    assert number_of_processes() == 1
    assert os.environ["PYTHONSAFEPATH"] == ""


def test_only_independent_fits_are_shared(monkeypatch):
    """What a forest does within `predict_proba` is not: its sums would come in another order."""
    asked: list[dict[str, Any]] = []

    class Pool:
        def __init__(self, **options: Any):
            asked.append(options)
            self.n_jobs = options.get("n_jobs", 1)

        def __call__(self, calls: Any) -> Any:
            return ((wrapped.function(*args[1:]), []) for wrapped, args, _ in calls)

    def here(fit: Any, task: tuple[Any, ...], limits: dict[str, int]) -> tuple[Any, dict[str, int]]:
        return fit(*task), limits

    monkeypatch.setattr(fits, "Parallel", Pool)
    monkeypatch.setattr(fits, "_in_child", here)
    with shared(3):
        assert joblib.Parallel().n_jobs == 1
        with fits.few_threads(1):
            found = independent(pow, [(2, 3), (3, 2)])
    assert [value for value, _ in found] == [8, 9]
    assert [limits for _, limits in found] == [{"blas": 1, "openmp": 1}] * 2
    assert asked[0] == {
        "n_jobs": 3,
        "backend": "loky",
        "max_nbytes": None,
        "return_as": "generator",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tables, and a module with estimators that the command is allowed to run."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "own.py").write_text(OWN)
    (folder / "seen").mkdir()
    (folder / "random.py").write_text("raise AssertionError('nobody asked for this file')")
    rng = np.random.default_rng(0)
    for name, rows in [("train", 200), ("trusted", 60), ("holdout", 60)]:
        y = np.arange(rows) % 2
        columns = {f"c{j}": (y + rng.normal(size=rows)).round(3) for j in range(4)}
        wrong = rng.random(rows) < 0.2 * (name == "train")
        table = pd.DataFrame({**columns, "y": np.where(wrong, 1 - y, y)})
        table.to_csv(folder / f"{name}.csv", index_label="id")
    return folder


def start(folder: Path, out: str, *options: str) -> subprocess.Popen:
    command = ["weigh", "train.csv", "--trusted", "trusted.csv", "--holdout", "holdout.csv"]
    command += ["--label", "y", "--drop", "id", "--out", out, "--allow-code", *options]
    return subprocess.Popen(
        [sys.executable, "-P", *BEGIN[1:], *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def written(run: Path) -> dict[str, Any]:
    """What does not differ from run to run."""
    report = json.loads((run / "report.json").read_text())
    report["provenance"] |= {"seconds": None, "peak_memory": None}
    names = ("weights.parquet", "worst.csv", "scorer.npz")
    return {name: (run / name).read_bytes() for name in names} | {"report": report}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["own:tree", "own:forest"])
def test_the_run_is_that_of_one_process_to_the_last_bit(folder, estimator):
    name = estimator.removeprefix("own:")
    options = ["--estimator", estimator, "--minutes-per-check", "1"]
    for number in ("1", "2"):
        started = start(folder, f"{name}{number}", *options, "--processes", number)
        said = started.communicate(timeout=600)
        assert started.returncode == 0, said
        if name == "tree":
            assert "bilevel: said by a tree" in said[1]
            assert "own.py:" not in said[1]  # as Python would print it
            assert len(list((folder / "seen").iterdir())) == {"1": 1, "2": 4}[number]
    assert written(folder / f"{name}2") == written(folder / f"{name}1")


@pytest.mark.slow
def test_a_killed_process_ends_the_run_in_words(folder):
    started = start(folder, "killed", "--estimator", "own:Killed", "--processes", "2")
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 75, errors
    assert "give fewer --processes" in errors
    assert "the same command starts again" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_of_them_stops_all_of_them(folder, number):
    """As Ctrl-C and a service manager send it: in words, and within ten seconds."""
    for seen in (folder / "seen").iterdir():
        seen.unlink()
    started = start(folder, "stopped", "--estimator", "own:Slow", "--processes", "2")
    while len(list((folder / "seen").iterdir())) < 2:
        assert started.poll() is None
        time.sleep(0.05)
    os.killpg(started.pid, number)
    _, errors = started.communicate(timeout=30)
    assert started.returncode == 128 + number
    assert "interrupted; nothing is left" in errors
    assert "Traceback" not in errors
    for seen in (folder / "seen").iterdir():
        assert (
            not Path("/proc", seen.name).exists()
            or "Z" in Path("/proc", seen.name, "stat").read_text().split(")")[1]
        )
    assert not list(folder.glob("stopped*"))
