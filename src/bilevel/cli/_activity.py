"""What a long job is doing, on stderr: something moves all the time, and says what."""

import threading
from typing import Any

from ._signals import in_background

TURN = 0.1  # seconds between two pictures of the spinner


class Activity:
    """A spinner with the time elapsed, what is being done, and the step of a run.

    A context manager; `Steps` makes it a callback for `solve`. The spinner moves in a thread of its
    own, so it does while a long compiled computation runs too.

    Args:
        description: what is being done at first.
        visible: whether to show anything.
    """

    def __init__(self, description: str, visible: bool = True):
        self._description = description
        self._visible = visible
        self._progress: Any = None
        self._ended = threading.Event()
        self._runs = 0

    def __enter__(self) -> "Activity":
        """Start to spin."""
        if self._visible:
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
            console = Console(stderr=True)
            self._progress = Progress(*columns, console=console, auto_refresh=False)
            self._progress.start()
            self._task = self._progress.add_task(self._description, total=None)
            in_background(_turn, self._progress, self._ended)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last line on the screen."""
        self._ended.set()
        if self._progress is not None:
            self._progress.stop()

    def say(self, description: str) -> None:
        """Another thing is being done now."""
        self._description, self._runs = description, 0
        if self._progress is not None:
            self._progress.update(self._task, description=description)

    def __call__(self, chunk: Any) -> None:
        """The run has come to a step."""
        if self._progress is None:
            return
        run = f"run {self._runs + 1}, " if self._runs else ""
        text = f"{self._description}: {run}step {chunk.step} of {chunk.num_steps}"
        values = chunk.rows.get("outer_value", ())
        text += f", outer value {values[-1]:.4g}" if len(values) else ""
        self._progress.update(self._task, description=text)

    def close(self) -> None:
        """A run has ended; another may follow."""
        self._runs += 1


def _turn(progress: Any, ended: threading.Event) -> None:
    while not ended.wait(TURN):
        progress.refresh()
