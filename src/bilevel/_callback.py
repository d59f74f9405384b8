"""What may happen between two chunks of a run: show, log, stop; `_checkpoint` saves."""

import abc
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ._algorithm.base import State
from ._storage import flush, open_log


class Chunk(NamedTuple):
    """What a callback is given after each chunk.

    `rows` are the chunk's trace points, as a dict of equally long numpy arrays (the columns of
    `Solution.trace`); it is empty arrays if the chunk had none. `state` is only lent: the next
    chunk overwrites its memory, so copy what is to be kept. `problem` and `algorithm` are those that
    `solve` was given, and `start` is the number of steps that its `state` had made before.
    """

    step: int
    num_steps: int
    state: State
    rows: Mapping[str, np.ndarray]
    problem: Any = None
    algorithm: Any = None
    start: int = 0


class AbstractCallback(abc.ABC):
    """Called on the host after every chunk; returning True ends the run."""

    @abc.abstractmethod
    def __call__(self, chunk: Chunk) -> bool | None:
        """Look at the chunk; return True to stop."""

    def close(self) -> None:
        """Called once when the run ends, however it ends. Nothing by default."""
        return


class ProgressBar(AbstractCallback):
    """A progress bar on stderr with the latest outer value and residuals.

    Args:
        description: the text before the bar.
    """

    def __init__(self, description: str = "outer steps"):
        self._description = description
        self._progress: Any = None

    def __call__(self, chunk):
        """Advance the bar."""
        if self._progress is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[latest]}"),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self._description, total=chunk.num_steps, latest=""
            )
        rows, fields = chunk.rows, {}
        if len(rows["step"]):
            fields["latest"] = (
                f"F {rows['outer_value'][-1]:.4g}  residuals "
                f"{rows['outer_residual'][-1]:.1e} / {rows['inner_residual'][-1]:.1e} / "
                f"{rows['linear_residual'][-1]:.1e}"
            )
        self._progress.update(self._task, completed=chunk.step, **fields)

    def close(self):
        """Leave the finished bar on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Logger(AbstractCallback):
    """Appends the trace to a file, with one JSON object per line.

    Args:
        path: the file. Lines already in it are kept up to the step where this run starts, which is 0
            of a new one: a resumed run overwrites what its interrupted predecessor wrote past its
            last checkpoint. Read it with `pandas.read_json(path, lines=True)`.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._file: IO[str] | None = None

    def __call__(self, chunk):
        """Append the chunk's rows."""
        lines = rows_to_json(chunk.rows)
        if self._file is None and lines:
            lines_there = read_lines(self._path)
            kept = [x for x in lines_there if json.loads(x)["step"] <= chunk.start]
            self._file = open_log(self._path, "".join(line + "\n" for line in kept))
        if self._file is not None:
            self._file.writelines(line + "\n" for line in lines)
            self._file.flush()

    def sync(self) -> None:
        """Wait until every line is on the disk, so that it survives a loss of power too."""
        if self._file is not None:
            flush(self._file)

    def close(self):
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def rows_to_json(rows: Mapping[str, np.ndarray]) -> list[str]:
    """The rows of a trace as JSON objects."""
    columns = {name: column.tolist() for name, column in rows.items()}
    return [
        json.dumps(dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]


def read_lines(path: Path) -> list[str]:
    """The complete lines of a file; none if it does not exist."""
    # What follows the last newline was cut short by an interruption.
    return path.read_text().split("\n")[:-1] if path.exists() else []


class StopWhen(AbstractCallback):
    """Ends the run when a condition holds.

    Args:
        condition: takes a `Chunk`, returns True to stop.
    """

    def __init__(self, condition: Callable[[Chunk], bool]):
        self._condition = condition

    def __call__(self, chunk):
        """Ask the condition."""
        return bool(self._condition(chunk))
