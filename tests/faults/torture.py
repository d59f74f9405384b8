#!/usr/bin/env python
"""Kill and fail `bilevel weigh` at every call that changes a file: what is left, and is it right?

    tests/faults/torture.py [--short] [--kills N] [--mutations N] [--minutes M] [--go-on]

After each fault the run folder must be in one of the five states, the next command must end well, and
the results must be those of an undisturbed run, bit for bit. The cases of all parts take turns, and
the counts go to benchmarks/results/reliability.json every few seconds, also when SIGTERM or SIGINT
ends it: docs/reliability.md is made of them. With `--go-on` it continues from the counts in that file.
A case is told by its part, its name and its number, so that any of them can be repeated:
`--only "mutated tables" wide.csv 17`.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from allocations import Reading  # noqa: E402
from cases import Part, write_small_tables  # noqa: E402
from hostile_pages import Pages  # noqa: E402
from mutations import Folders, OddTables, Tables  # noqa: E402
from server import MODES, Server, build_shim  # noqa: E402

from bilevel.cli._run_folder import RunFolder, State  # noqa: E402
from browser import CHROMIUM, DRIVER  # noqa: E402

RESULTS = HERE.parents[1] / "benchmarks" / "results" / "reliability.json"
SAME = ("weights.parquet", "worst.csv", "scorer.npz")  # files that are equal bit for bit
METHODS = {"auto": [], "soba": ["--method", "soba", "--num-steps", "512"]}
PACKAGES = ("bilevel", "numpy", "pandas", "pyarrow", "jax", "scikit-learn", "skops")
SIGNALS = {"SIGKILL": 10, "SIGINT": 2, "SIGTERM": 2}  # of so many cases in turn
PAUSE = 20.0  # seconds between two writings of the counts


class Bench:
    """A folder with tables, and the results of an undisturbed run to compare with.

    Args:
        server: what runs commands.
        folder: a new one.
        options: of the command.
        known: whether disturbed runs take what was learned from memory, and so do those after them.
            Where nothing learned outlives a run (the default method has no checkpoint), the latter can
            do so all the same.
    """

    def __init__(
        self,
        server: Server,
        folder: Path,
        options: list[str],
        *,
        known: bool = False,
        keeps_nothing: bool = False,
    ):
        folder.mkdir()
        self.server, self.folder = server, folder
        self.command = [*write_small_tables(folder), *options, "--out", folder / "run"]
        self.mine = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.known, self.keeps_nothing = known, keeps_nothing
        self.right: dict[str, bytes] = {}
        if known or keeps_nothing:
            assert server.run(*self.command, remember=True)["code"] == 0
            self.right = self.results()
            self.clear()
        counts: list[int] = []
        for more in ({}, {"allocation": -1}):  # the second finds its programs compiled
            done = server.run(*self.command, folder=folder, at=-1, mode=0, known=known, **more)
            assert done["code"] == 0, done["stderr"]
            assert self.right in ({}, self.results())
            self.right = self.results()
            self.clear()
            counts.append(done["calls"])
        (self.calls, self.allocations), self.seconds = counts, done["seconds"]

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
        done = self.server.run(*self.command, known=self.known, **how)
        state = RunFolder.of(self.folder / "run").state()
        if "Traceback" in done["stderr"]:
            wrong.append("traceback")
        if done["code"] is None:
            wrong.append("hang")
        if state is State.foreign:
            wrong.append("no state of ours")
        more = [] if state is State.absent else ["--resume"]
        again = self.server.run(*self.command, *more, known=self.known or self.keeps_nothing)
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


class EveryCall(Part):
    """Each way to fail, at every call, or at one in so many."""

    def __init__(self, server: Server, folder: Path, steps: dict[str, int]):
        self.benches = {
            method: Bench(server, folder / method, options, known=method == "auto")
            for method, options in METHODS.items()
        }
        self.steps = steps
        self.goals = {
            f"{method}: {mode}": len(range(0, bench.calls, steps[method]))
            for method, bench in self.benches.items()
            for mode in MODES
        }

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Fail at one call."""
        method, _, mode = name.partition(": ")
        bench = self.benches[method]
        return bench.disturb(folder=bench.folder, at=k * self.steps[method], mode=MODES[mode])


class RandomMoments(Part):
    """Signals at random moments."""

    def __init__(self, server: Server, folder: Path, kills: int):
        self.benches = {
            method: Bench(
                server, folder / f"{method} signals", options, keeps_nothing=method == "auto"
            )
            for method, options in METHODS.items()
        }
        self.goals = {
            f"{method}: {name}": kills * share // SIGNALS["SIGKILL"]
            for method in METHODS
            for name, share in SIGNALS.items()
        }

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Send one signal."""
        method, _, sent = name.partition(": ")
        bench = self.benches[method]
        rng = np.random.default_rng([*name.encode(), k])
        moment = rng.uniform(0, bench.seconds)
        return bench.disturb(seconds=float(moment), signal=int(vars(signal)[sent]))


class TooLittleMemory(Part):
    """So many bytes more than the process has at the start, and no more."""

    def __init__(self, server: Server, folder: Path, number: int):
        self.benches = {
            method: Bench(
                server, folder / f"{method} memory", options, keeps_nothing=method == "auto"
            )
            for method, options in METHODS.items()
        }
        self.goals = {f"{method}: memory": max(1, number // len(METHODS)) for method in METHODS}

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """From nothing to what is enough."""
        rng = np.random.default_rng([*name.encode(), k])
        least, most = (1 << 16, 1 << 30) if k % 2 else (1 << 20, 1 << 27)
        memory = int(np.exp(rng.uniform(np.log(least), np.log(most))))
        return self.benches[name.partition(":")[0]].disturb(memory=memory)


class OneAllocation(Part):
    """One allocation of memory of `weigh` fails, drawn at random of all that are large."""

    def __init__(self, server: Server, folder: Path, number: int):
        self.benches = {
            method: Bench(server, folder / f"{method} allocations", options, known=method == "auto")
            for method, options in METHODS.items()
        }
        self.goals = {f"{method}: one allocation": number for method in METHODS}

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Fail at one of them."""
        bench = self.benches[name.partition(":")[0]]
        rng = np.random.default_rng([*name.encode(), k])
        return bench.disturb(allocation=int(rng.integers(bench.allocations)))


class Counts:
    """What was counted, in memory and in a file.

    Args:
        path: the file.
        go_on: whether to add to what it holds.

    Raises:
        SystemExit: what it holds was counted with other versions.
    """

    def __init__(self, path: Path, go_on: bool):
        self.path, self.written = path, time.monotonic()
        self.content: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": {
                **{name: version(name) for name in PACKAGES},
                "python": platform.python_version(),
            },
        }
        if go_on and path.exists():
            before = json.loads(path.read_text())
            if before["versions"] != self.content["versions"]:
                sys.exit(f"{path} was counted with {before['versions']}")
            self.content = before | {"date": self.content["date"]}

    def number(self, part: str, name: str) -> int:
        """How many cases there are of this name."""
        return self.content.get(part, {}).get(name, {}).get("cases", 0)

    def add(self, part: str, name: str, ended: str, wrong: list[str]) -> None:
        """One case more."""
        group = self.content.setdefault(part, {}).setdefault(
            name, {"cases": 0, "ends": {}, "wrong": {}}
        )
        group["cases"] += 1
        group["ends"][ended] = group["ends"].get(ended, 0) + 1
        for word in wrong:
            group["wrong"][word] = group["wrong"].get(word, 0) + 1
        if time.monotonic() - self.written > PAUSE:
            self.write()

    def write(self) -> None:
        """The file, whole."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)
        self.written = time.monotonic()

    @property
    def wrong(self) -> int:
        """How much was wrong."""
        parts = [part for name, part in self.content.items() if name not in ("date", "versions")]
        return sum(sum(group["wrong"].values()) for part in parts for group in part.values())


def take_turns(parts: dict[str, Part], counts: Counts, until: float) -> None:
    """A case of each name in turn, those furthest behind their goal first, until all are done."""
    while time.monotonic() < until:
        shares = [
            (counts.number(part, name) / goal, part, name)
            for part, one in parts.items()
            for name, goal in one.goals.items()
            if counts.number(part, name) < goal
        ]
        if not shares:
            return
        _, part, name = min(shares)
        ended, wrong = parts[part].case(name, counts.number(part, name))
        counts.add(part, name, ended, wrong)


def main() -> int:
    """Run everything and write the counts; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="every seventh call, few mutations")
    parser.add_argument("--step", type=int, default=1, help="of free weights, one call in so many")
    parser.add_argument("--kills", type=int, default=500, help="random SIGKILLs per method")
    parser.add_argument("--mutations", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="and no longer")
    parser.add_argument("--parts", nargs="+", help="by name; all by default")
    parser.add_argument("--go-on", action="store_true", help="add to the counts of the file")
    parser.add_argument("--only", nargs=3, metavar=("PART", "NAME", "K"), help="repeat one case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    kills, mutations = (10, 400) if asked.short else (asked.kills, asked.mutations)
    counts = Counts(asked.out, asked.go_on)

    def stop(number: int, _: FrameType | None) -> None:
        counts.write()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shim = build_shim(folder)
        with (
            Server(shim, "bilevel.reweighting._weights.free_weights") as server,
            contextlib.ExitStack() as stack,
        ):
            steps = {"auto": 7, "soba": 20} if asked.short else {"auto": 1, "soba": asked.step}
            makers: dict[str, Callable[[], Part]] = {
                "mutated tables": lambda: Tables(server, folder, mutations * 5 // 16),
                "odd tables": lambda: OddTables(server, folder, mutations * 2 // 16),
                "mutated run folders": lambda: Folders(server, folder, mutations * 9 // 16),
                "at random moments": lambda: RandomMoments(server, folder, kills),
                "too little memory": lambda: TooLittleMemory(server, folder, kills // 5),
            }
            if shim is None:
                print("no C compiler, so no faults at single calls")
            else:
                makers |= {
                    "allocations of the reader": lambda: Reading(shim, folder),
                    "allocations of weigh": lambda: OneAllocation(server, folder, kills // 5),
                    "at every call": lambda: EveryCall(server, folder, steps),
                }
            if CHROMIUM is None or DRIVER is None:
                print("no browser, so no pages")
            else:
                makers["hostile texts in a browser"] = lambda: Pages(folder, stack)
            chosen = [name for name in makers if not asked.parts or name in asked.parts]
            parts = {name: makers[name]() for name in chosen}
            print({part: one.goals for part, one in parts.items()}, flush=True)
            if asked.only:
                print(parts[asked.only[0]].case(asked.only[1], int(asked.only[2])))
                return 0
            take_turns(parts, counts, time.monotonic() + 60 * asked.minutes)
    counts.write()
    return int(counts.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
