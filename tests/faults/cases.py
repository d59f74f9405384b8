"""What the harness counts: cases of many kinds, each told by a name and a number."""

import abc
from pathlib import Path

import numpy as np
import pandas as pd


class Part(abc.ABC):
    """Cases of one kind.

    Attributes:
        goals: how many cases each name has.
    """

    goals: dict[str, int]

    @abc.abstractmethod
    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """(how it ended, what was wrong) in the k-th case of this name."""


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
