#!/usr/bin/env python
"""Kill and fail `bilevel weigh` at every call that changes a file: what is left, and is it right?

    tests/faults/torture.py [--short] [--kills N] [--mutations N] [--minutes M] [--go-on]

After each fault the run folder must be in one of the five states, the next command must end well, and
the results must be those of an undisturbed run, bit for bit. The cases of all parts take turns, and
the counts go to benchmarks/results/reliability.json every few seconds, also when SIGTERM or SIGINT
ends it: docs/reliability.md is made of them. With `--go-on` it continues from the counts in that file,
which tell how many cases each day and commit has; with `--anew` it keeps them too, but those of the
chosen `--parts` and `--names`. Several may run beside each other, with other parts or names.
A case is told by its part, its name and its number, so that any of them can be repeated:
`--only "mutated tables" wide.csv 17`.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from allocations import Reading  # noqa: E402
from cases import Part  # noqa: E402
from disturbed import METHODS, EveryCall, OneAllocation, RandomMoments, TooLittleMemory  # noqa: E402
from hostile_pages import Pages  # noqa: E402
from long_lives import LongLives  # noqa: E402
from mutations import Folders, OddTables, Tables  # noqa: E402
from server import Server, build_shim  # noqa: E402

from browser import CHROMIUM, DRIVER  # noqa: E402

RESULTS = HERE.parents[1] / "benchmarks" / "results" / "reliability.json"
PACKAGES = ("bilevel", "numpy", "pandas", "pyarrow", "jax", "scikit-learn", "skops")
PAUSE = 20.0  # seconds between two writings of the counts


class Counts:
    """What was counted, in memory and in a file.

    Args:
        path: the file.
        go_on: whether to add to what it holds.
        begins_anew: whether the counts of a part and a name begin at nothing all the same.

    Raises:
        SystemExit: what it holds was counted with other versions.
    """

    def __init__(self, path: Path, go_on: bool, begins_anew: Callable[[str, str], bool]):
        self.path, self.written, self.mine = path, time.monotonic(), set[tuple[str, str]]()
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        self.origin = f"{today}, {commit()}"
        self.content: dict[str, Any] = {
            "date": today,
            "versions": {
                **{name: version(name) for name in PACKAGES},
                "python": platform.python_version(),
            },
        }
        if not go_on:
            path.unlink(missing_ok=True)
        elif path.exists():
            before = json.loads(path.read_text())
            if before["versions"] != self.content["versions"]:
                sys.exit(f"{path} was counted with {before['versions']}")
            self.content = before | {"date": today}
            for part in before.keys() - {"date", "versions"}:
                gone = {name for name in before[part] if begins_anew(part, name)}
                self.mine |= {(part, name) for name in gone}
                self.content[part] = {k: v for k, v in before[part].items() if k not in gone}

    def number(self, part: str, name: str) -> int:
        """How many cases there are of this name."""
        return self.content.get(part, {}).get(name, {}).get("cases", 0)

    def add(self, part: str, name: str, ended: str, wrong: list[str]) -> None:
        """One case more."""
        group = self.content.setdefault(part, {}).setdefault(
            name, {"cases": 0, "ends": {}, "wrong": {}}
        )
        self.mine.add((part, name))
        group["cases"] += 1
        counted = group.setdefault("counted", {})
        counted[self.origin] = counted.get(self.origin, 0) + 1
        group["ends"][ended] = group["ends"].get(ended, 0) + 1
        for word in wrong:
            group["wrong"][word] = group["wrong"].get(word, 0) + 1
        if time.monotonic() - self.written > PAUSE:
            self.write()

    def write(self) -> None:
        """The file, whole; other names in it may be those of another process."""
        there = json.loads(self.path.read_text()) if self.path.exists() else {}
        for part in there.keys() - {"date", "versions"}:
            for name, group in there[part].items():
                if (part, name) not in self.mine:
                    self.content.setdefault(part, {})[name] = group
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)
        self.written = time.monotonic()

    @property
    def wrong(self) -> int:
        """How much was wrong."""
        parts = [part for name, part in self.content.items() if name not in ("date", "versions")]
        return sum(sum(group["wrong"].values()) for part in parts for group in part.values())


def commit() -> str:
    """The commit that is tortured, with a plus if it was changed since."""
    asked = [["rev-parse", "--short=7", "HEAD"], ["status", "--porcelain", "--", "src", "tests"]]
    try:
        head, changes = (
            subprocess.run(
                ["git", *words], cwd=HERE.parents[1], check=True, capture_output=True, text=True
            ).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return head + "+" * bool(changes)


def take_turns(
    parts: dict[str, Part], counts: Counts, until: float, beginnings: tuple[str, ...]
) -> None:
    """A case of each name that begins so in turn, those furthest behind their goal first."""
    while time.monotonic() < until:
        shares = [
            (counts.number(part, name) / goal, part, name)
            for part, one in parts.items()
            for name, goal in one.goals.items()
            if counts.number(part, name) < goal and name.startswith(beginnings)
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
    parser.add_argument("--kills", type=int, default=500, help="random SIGKILLs per kind of run")
    parser.add_argument("--mutations", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="and no longer")
    parser.add_argument("--parts", nargs="+", help="by name; all by default")
    parser.add_argument("--names", nargs="+", default=[""], help="of cases, by their beginning")
    parser.add_argument("--go-on", action="store_true", help="add to the counts of the file")
    parser.add_argument("--anew", action="store_true", help="keep its counts of other cases only")
    parser.add_argument("--only", nargs=3, metavar=("PART", "NAME", "K"), help="repeat one case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    kills, mutations = (10, 400) if asked.short else (asked.kills, asked.mutations)
    beginnings = tuple(asked.names)

    def chosen(part: str, name: str) -> bool:
        return (not asked.parts or part in asked.parts) and name.startswith(beginnings)

    counts = Counts(
        asked.out, asked.go_on or asked.anew, lambda *which: asked.anew and chosen(*which)
    )
    methods = [m for m in METHODS if any(m.startswith(x.partition(":")[0]) for x in beginnings)]

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
            steps = {method: steps[method] for method in methods}
            makers: dict[str, Callable[[], Part]] = {
                "mutated tables": lambda: Tables(server, folder, mutations * 5 // 16),
                "odd tables": lambda: OddTables(server, folder, mutations * 2 // 16),
                "mutated run folders": lambda: Folders(server, folder, mutations * 9 // 16),
                "at random moments": lambda: RandomMoments(server, folder, kills),
                "too little memory": lambda: TooLittleMemory(server, folder, kills // 5, methods),
                "long lives": lambda: LongLives(100 if asked.short else 1000),
            }
            if shim is None:
                print("no C compiler, so no faults at single calls")
            else:
                makers |= {
                    "allocations of the reader": lambda: Reading(shim, folder),
                    "allocations of weigh": lambda: OneAllocation(
                        server, folder, kills // 5, methods
                    ),
                    "at every call": lambda: EveryCall(server, folder, steps),
                }
            if CHROMIUM is None or DRIVER is None:
                print("no browser, so no pages")
            else:
                makers["hostile texts in a browser"] = lambda: Pages(folder, stack)
            parts = {
                part: maker()
                for part, maker in makers.items()
                if not asked.parts or part in asked.parts
            }
            print({part: one.goals for part, one in parts.items()}, flush=True)
            if asked.only:
                print(parts[asked.only[0]].case(asked.only[1], int(asked.only[2])))
                return 0
            until = time.monotonic() + 60 * asked.minutes
            take_turns(parts, counts, until, beginnings)
    counts.write()
    return int(counts.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
