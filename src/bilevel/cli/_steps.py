"""The steps of a run, shown by an `Activity`."""

from typing import Any

from .._callback import AbstractCallback


class Steps(AbstractCallback):
    """A callback for `solve` that tells an `Activity` of every chunk.

    Args:
        activity: what shows it.
    """

    def __init__(self, activity: Any):
        self._activity = activity

    def __call__(self, chunk: Any) -> None:
        """The run has come to a step."""
        self._activity(chunk)

    def close(self) -> None:
        """The run has ended."""
        self._activity.close()
