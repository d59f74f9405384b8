#!/usr/bin/env python
"""Kill and fail `bilevel weigh` at every call that changes a file: what is left, and is it right?

    tests/faults/torture.py [--short] [--kills N] [--mutations N] [--out FILE]     # make torture

After each fault the run folder must be in one of the five states, the next command must end well, and
the results must be those of an undisturbed run, bit for bit. The counts go to
benchmarks/results/reliability.json, of which docs/reliability.md is made.
"""

import argparse
import datetime
import json
import platform
import shutil
import signal
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from mutations import mutate_folders, mutate_tables  # noqa: E402
from server import MODES, Server, build_shim  # noqa: E402

from bilevel.cli._run_folder import RunFolder, State  # noqa: E402

RESULTS = HERE.parents[1] / "benchmarks" / "results" / "reliability.json"
SAME = ("weights.parquet", "worst.csv", "scorer.npz")  # files that are equal bit for bit
METHODS = {"auto": [], "soba": ["--method", "soba", "--num-steps", "512"]}


def write_small_tables(folder: Path) -> list[str | Path]:
    """Two classes, 60 training and 24 trusted rows; the command."""
    rng = np.random.default_rng(0)
    for name, rows in [("train", 60), ("trusted", 24)]:
        y = np.arange(rows) % 2
        table = pd.DataFrame({"id": [f"{name}{i}" for i in range(rows)]})
        table["a"], table["b"] = y + rng.normal(size=rows), rng.normal(size=rows)
        table["y"] = np.where(rng.random(rows) < 0.2 * (name == "train"), 1 - y, y)
        table.to_csv(folder / f"{name}.csv", index=False)
    command = ["weigh", folder / "train.csv", "--trusted", folder / "trusted.csv"]
    return [*command, "--label", "y", "--id", "id", "--no-report"]


class Bench:
    """A folder with tables, and the results of an undisturbed run to compare with."""

    def __init__(self, server: Server, folder: Path, options: list[str], *, remember: bool = False):
        folder.mkdir()
        self.server, self.folder = server, folder
        self.command = [*write_small_tables(folder), *options, "--out", folder / "run"]
        self.mine = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.right: dict[str, bytes] = {}
        if remember:
            assert server.run(*self.command, remember=True)["code"] == 0
            self.right = self.results()
            self.clear()
        self.undisturbed = server.run(*self.command, folder=folder, at=-1, mode=0)
        assert self.undisturbed["code"] == 0, self.undisturbed["stderr"]
        self.calls = self.undisturbed["calls"]
        assert self.right in ({}, self.results())
        self.right = self.results()
        self.clear()

    def results(self) -> dict[str, bytes]:
        """The files that must be equal."""
        run = self.folder / "run"
        return {name: (run / name).read_bytes() for name in SAME if (run / name).exists()}

    def clear(self) -> None:
        """Back to the tables alone."""
        for path in self.folder.iterdir():
            if path.name not in self.mine:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def disturb(self, **how: Any) -> tuple[str, list[str]]:
        """(the state that was left, what is wrong) of one run with a fault."""
        wrong: list[str] = []
        done = self.server.run(*self.command, **how)
        state = RunFolder.of(self.folder / "run").state()
        if "Traceback" in done["stderr"]:
            wrong.append("traceback")
        if done["code"] is None:
            wrong.append("hang")
        if state is State.foreign:
            wrong.append("no state of ours")
        more = [] if state is State.absent else ["--resume"]
        again = self.server.run(*self.command, *more)
        if again["code"] != 0:
            wrong.append("stuck")
        elif self.results() != self.right:
            wrong.append("wrong results")
        names = {path.name for path in self.folder.iterdir()}
        if names != {*self.mine, "run"} or any(
            (self.folder / name).read_bytes() != content for name, content in self.mine.items()
        ):
            wrong.append("something else was changed")
        if any(path.name.startswith(".") for path in (self.folder / "run").glob("*")):
            wrong.append("leftovers")
        if wrong:
            said = [done["stderr"][-700:], again["stderr"][-700:]]
            print(how, done["code"], state, wrong, said, flush=True)
        self.clear()
        return state.value, wrong


def count(found: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """States that were left, and what was wrong."""
    return {
        "cases": len(found),
        "states": dict(Counter(state for state, _ in found)),
        "wrong": dict(Counter(x for _, wrong in found for x in wrong)),
    }


def every_call(server: Server, folder: Path, steps: dict[str, int]) -> dict[str, Any]:
    """Each way to fail, at every call, or at one in so many."""
    counts: dict[str, Any] = {}
    for method, options in METHODS.items():
        bench = Bench(server, folder / method, options, remember=method == "auto")
        for name, mode in MODES.items():
            found = [
                bench.disturb(folder=bench.folder, at=k, mode=mode)
                for k in range(0, bench.calls, steps[method])
            ]
            counts[f"{method}: {name}"] = count(found) | {"calls": bench.calls}
            print(f"{method}: {name}", counts[f"{method}: {name}"], flush=True)
    return counts


def random_moments(server: Server, folder: Path, number: int) -> dict[str, Any]:
    """Signals at random moments."""
    rng, counts = np.random.default_rng(0), {}
    for method, options in METHODS.items():
        bench = Bench(server, folder / f"{method} signals", options)
        length = bench.undisturbed["seconds"]
        for name in ("SIGKILL", "SIGINT", "SIGTERM"):
            moments = rng.uniform(0, length, number if name == "SIGKILL" else number // 5)
            found = [
                bench.disturb(seconds=float(s), signal=int(vars(signal)[name])) for s in moments
            ]
            counts[f"{method}: {name}"] = count(found)
            print(f"{method}: {name}", counts[f"{method}: {name}"], flush=True)
    return counts


def write(counts: dict[str, Any], path: Path) -> None:
    """What was counted so far."""
    path.write_text(json.dumps(counts, indent=1) + "\n")
    print(f"written: {path}", flush=True)


def main() -> int:
    """Run everything and write the counts; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="every seventh call, few mutations")
    parser.add_argument("--step", type=int, default=1, help="of free weights, one call in so many")
    parser.add_argument("--kills", type=int, default=500, help="random SIGKILLs per method")
    parser.add_argument("--mutations", type=int, default=2000, help="per reader")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    kills, mutations = (10, 40) if asked.short else (asked.kills, asked.mutations)
    counts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            **{name: version(name) for name in ("bilevel", "numpy", "pandas", "pyarrow", "jax")},
            "python": platform.python_version(),
        },
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shim = build_shim(folder)
        if shim is None:
            print("no C compiler, so no faults at single calls")
        with Server(shim, "bilevel.reweighting._weights.free_weights") as server:
            # The longest comes last.
            counts["mutated tables"] = mutate_tables(server, folder, mutations)
            counts["mutated run folders"] = mutate_folders(server, folder, mutations)
            write(counts, asked.out)
            if shim is not None:
                steps = {"auto": 7, "soba": 20} if asked.short else {"auto": 1, "soba": asked.step}
                counts["at every call"] = every_call(server, folder, steps)
                write(counts, asked.out)
            counts["at random moments"] = random_moments(server, folder, kills)
    write(counts, asked.out)
    parts = [x for part in counts.values() if isinstance(part, dict) for x in part.values()]
    return int(any(x["wrong"] for x in parts if isinstance(x, dict)))


if __name__ == "__main__":
    sys.exit(main())
