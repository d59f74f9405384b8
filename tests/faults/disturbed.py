"""Runs of `bilevel weigh` that are disturbed, and what is left of them."""

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import Part, write_small_tables
from server import KILL, MODES, TORN, Server

from bilevel.cli._run_folder import RunFolder, State

SAME = ("weights.parquet", "worst.csv", "scorer.npz")  # files that are equal bit for bit
METHODS = {"auto": [], "soba": ["--method", "soba", "--num-steps", "512"]}
SIGNALS = {"SIGKILL": 10, "SIGINT": 2, "SIGTERM": 2}  # of so many cases in turn
SERIES = 8  # signals that one run meets, one after the other


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
        (self.calls, self.allocations), self.cpu = counts, done["cpu"]

    def count_warm(self) -> int:
        """How many calls there are in a process that has run the command before."""
        counts: list[int] = []
        for _ in range(2):
            done = self.server.run(*self.command, folder=self.folder, mode=0, warm=True)
            assert done["code"] == 0, done["stderr"]
            self.clear()
            counts.append(done["calls"])
        return counts[1]

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
        """(the state that was left, what is wrong) of a run with a fault, and the next command."""
        state, wrong = self.strike(State.absent, **how)
        return state.value, wrong + self.end(state)

    def disturb_often(self, faults: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
        """The same of a run that meets one fault after the other, each as it goes on from the last.

        The results are compared where the run is complete, and after the last fault.
        """
        state, found = State.absent, []
        for k, how in enumerate(faults):
            state, wrong = self.strike(state, **how)
            found.append((state.value, wrong))
            if state in (State.complete, State.foreign) or k == len(faults) - 1:
                wrong += self.end(state)
                state = State.absent
        return found

    def strike(self, before: State, **how: Any) -> tuple[State, list[str]]:
        """(the state that is left, what is wrong) of a command with a fault."""
        wrong: list[str] = []
        done = self.server.run(*self.command, *_resume(before), known=self.known, **how)
        state = RunFolder.of(self.folder / "run").state()
        if "Traceback" in done["stderr"]:
            wrong.append("traceback")
        if done["code"] is None:
            wrong.append("hang")
        if state is State.foreign:
            wrong.append("no state of ours")
        if wrong:
            print(how, done["code"], state, wrong, done["stderr"][-700:], flush=True)
        return state, wrong

    def end(self, state: State) -> list[str]:
        """What is wrong once the next command has ended; back to the tables alone."""
        wrong: list[str] = []
        remembered = self.known or self.keeps_nothing
        how = {"known": True} if remembered else {"warm": True}
        done = self.server.run(*self.command, *_resume(state), **how)
        if done["code"] != 0:
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
            print(state, done["code"], wrong, names, done["stderr"][-700:], flush=True)
        self.clear()
        return wrong


def _resume(state: State) -> list[str]:
    """How the command goes on."""
    return [] if state is State.absent else ["--resume"]


class EveryCall(Part):
    """Each way to fail, at every call, or at one in so many of the methods that are given.

    A process that is killed is a new one. Where calls fail and what was learned is not remembered, the
    command runs in a process that has run others before it, and has no programs to compile.
    """

    def __init__(self, server: Server, folder: Path, steps: dict[str, int]):
        self.benches = {
            method: Bench(server, folder / method, METHODS[method], known=method == "auto")
            for method in steps
        }
        for bench in self.benches.values():
            if not bench.known:
                assert bench.calls == bench.count_warm()
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
        warm = not bench.known and MODES[mode] not in (KILL, TORN)
        how = {"folder": bench.folder, "at": k * self.steps[method], "mode": MODES[mode]}
        return bench.disturb(**how, **({"warm": True} if warm else {}))


class RandomMoments(Part):
    """Signals at moments drawn uniformly over the time that the processor gives to a run.

    Of the default method the most is learning, in which no file is touched. In runs called "files"
    what was learned is remembered, so that the moments fall where files are read and written.
    """

    def __init__(self, server: Server, folder: Path, kills: int):
        self.server, self.folder = server, folder
        self.goals = {
            f"{kind}: {name}": kills * share // SIGNALS["SIGKILL"]
            for kind in (*METHODS, "files")
            for name, share in SIGNALS.items()
        }
        self._benches: dict[str, Bench] = {}
        self._series: dict[str, tuple[int, list[tuple[str, list[str]]]]] = {}

    def bench(self, kind: str) -> Bench:
        """The one of a kind of runs, made when it is first asked for."""
        if kind not in self._benches:
            options = METHODS.get(kind, [])
            how = {"known": kind == "files", "keeps_nothing": kind == "auto"}
            self._benches[kind] = Bench(
                self.server, self.folder / f"{kind} signals", options, **how
            )
        return self._benches[kind]

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """One signal of a series: the first of a series sends them all."""
        kind, _, sent = name.partition(": ")
        series, place = divmod(k, SERIES)
        if self._series.get(name, (-1,))[0] != series:
            bench, rng = self.bench(kind), np.random.default_rng([*name.encode(), series])
            moments = rng.uniform(0, bench.cpu, SERIES).tolist()
            number = int(vars(signal)[sent])
            faults = [{"cpu": moment, "signal": number} for moment in moments]
            self._series[name] = series, bench.disturb_often(faults)
        return self._series[name][1][place]


class TooLittleMemory(Part):
    """So many bytes more than the process has at the start, and no more."""

    def __init__(self, server: Server, folder: Path, number: int, methods: Sequence[str]):
        self.benches = {
            method: Bench(
                server,
                folder / f"{method} memory",
                METHODS[method],
                keeps_nothing=method == "auto",
            )
            for method in methods
        }
        self.goals = {f"{method}: memory": max(1, number // len(METHODS)) for method in methods}

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """From nothing to what is enough."""
        rng = np.random.default_rng([*name.encode(), k])
        least, most = (1 << 16, 1 << 30) if k % 2 else (1 << 20, 1 << 27)
        memory = int(np.exp(rng.uniform(np.log(least), np.log(most))))
        return self.benches[name.partition(":")[0]].disturb(memory=memory)


class OneAllocation(Part):
    """One allocation of memory of `weigh` fails, drawn at random of all that are large."""

    def __init__(self, server: Server, folder: Path, number: int, methods: Sequence[str]):
        self.benches = {
            method: Bench(
                server,
                folder / f"{method} allocations",
                METHODS[method],
                keeps_nothing=method == "auto",
            )
            for method in methods
        }
        self.goals = {f"{method}: one allocation": number for method in methods}

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Fail at one of them."""
        bench = self.benches[name.partition(":")[0]]
        rng = np.random.default_rng([*name.encode(), k])
        return bench.disturb(allocation=int(rng.integers(bench.allocations)))
