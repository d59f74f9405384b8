"""The command line in process, and the run folder that `bilevel weigh` wrote, read."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.pipeline import Pipeline
from typer.testing import CliRunner

from bilevel.cli import app
from bilevel.reweighting import _run
from bilevel.reweighting._table import load_model


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
    return Run(said.code, said.stdout, said.stderr, out)


def interrupt_at(call: int) -> type:
    """An `Activity` that is interrupted when it is told of a step for the `call`th time."""
    count = 0

    class Interrupting(_run.Activity):
        def __call__(self, chunk):
            nonlocal count
            count += 1
            if count == call:
                raise KeyboardInterrupt
            super().__call__(chunk)

    return Interrupting


def record(seen: list[int]) -> type:
    """An `Activity` that notes the steps that it is told of."""

    class Recording(_run.Activity):
        def __call__(self, chunk):
            seen.append(chunk.step)
            super().__call__(chunk)

    return Recording
