"""The command line in process, and the run folder that `bilevel weigh` wrote, read."""

import dataclasses
import functools
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from typer.testing import CliRunner

from bilevel.cli import _weigh_work, app
from bilevel.cli._run_files import write_summary
from bilevel.reweighting._inputs.saved import load_model
from digits import TRAIN, arguments, digits, plain_table, write_table
from schema import faults

FORMULAS = [
    *("=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-x", "  =1+1", " \t =2", "\t@x", "\tx", "\n=3"),
    *("\N{FULLWIDTH EQUALS SIGN}1+1", '="a","b"', "a;=1+1", "a-b", "3=3"),
]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def squeezed(self) -> str:
        """What is on stderr without its spaces: the console wraps lines."""
        return "".join(self.stderr.split())


@dataclasses.dataclass(frozen=True)
class Run(Said):
    """What `bilevel weigh` printed, and its run folder."""

    out: Path

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir())

    @property
    def weights(self) -> pd.DataFrame:
        return pd.read_parquet(self.out / "weights.parquet")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))

    @property
    def config(self) -> dict[str, Any]:
        return tomllib.loads((self.out / "config.toml").read_text(encoding="utf-8"))

    def model(self) -> Pipeline:
        return load_model(self.out / "model.skops")


def bilevel(*arguments: str | Path) -> Said:
    """Run a command; an exception that it lets through is raised here."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def weigh(arguments: list[str], out: Path) -> Run:
    said = bilevel(*arguments, "--out", out)
    assert said.code or faults(out / "summary.json") == []
    return Run(said.code, said.stdout, said.stderr, out)


def seal(folder: Path) -> None:
    """Make the files of a run folder those that its summary knows, as somebody who forges it would."""
    write_summary(json.loads((folder / "summary.json").read_text(encoding="utf-8")), folder)


def interrupt_at(call: int) -> type:
    """An `Activity` that is interrupted when it is told of a step for the `call`th time."""
    count = 0

    class Interrupting(_weigh_work.Activity):
        def __call__(self, chunk):
            nonlocal count
            count += 1
            if count == call:
                raise KeyboardInterrupt
            super().__call__(chunk)

    return Interrupting


def record(seen: list[int]) -> type:
    """An `Activity` that notes the steps that it is told of."""

    class Recording(_weigh_work.Activity):
        def __call__(self, chunk):
            seen.append(chunk.step)
            super().__call__(chunk)

    return Recording


def sources() -> np.ndarray:
    """The source of each training row: of "guesses" 120 labels of 136 are wrong, of "a", "b" 15 %."""
    wrong, rows = digits().wrong, np.arange(TRAIN)
    source = np.where(rows % 2 == 0, "a", "b").astype(object)
    source[np.flatnonzero(wrong)[:120]] = "guesses"
    source[np.flatnonzero(~wrong)[:16]] = "guesses"
    return source


def formula_ids() -> list[str]:
    """Of the training rows; the first are what a spreadsheet would take for formulas."""
    return [*FORMULAS, *(f"r{i}" for i in range(len(FORMULAS), TRAIN))]


def write_sources(folder: Path) -> list[str]:
    """The tables of `digits`, with the ids of formulas and a column of sources; the command."""
    data = digits()
    train = plain_table(data.X, data.y).assign(row=formula_ids(), source=sources())
    write_table(train, folder / "train.csv")
    write_table(plain_table(data.X_trusted, data.y_trusted, 10_000), folder / "trusted.csv")
    write_table(plain_table(*data.holdout, 20_000), folder / "holdout.csv")
    return [*arguments(folder), "--id", "row", "--groups", "source"]


@functools.cache
def full_run(folder: Path) -> Run:
    """A run on `write_sources` with the default method and a report: one for all tests."""
    (folder / "full").mkdir()
    return weigh([*write_sources(folder / "full"), "--json"], folder / "full" / "run")
