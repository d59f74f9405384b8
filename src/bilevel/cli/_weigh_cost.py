"""What `bilevel weigh` will cost: `--dry-run`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..reweighting._inputs.columns import vectorise
from ..reweighting._inputs.files import is_csv
from ..reweighting._inputs.prepare import prepare
from ..reweighting._learn import check_method, is_cross_validated
from ..reweighting._weights.flexible_models import boosted_trees_fit
from ..reweighting._weights.folds import FOLDS, MAX_ROWS
from ..reweighting._weights.label_models import MANY_CLASSES
from ..reweighting._weights.metric import Metric
from ._large import VERDICT, LargeTable, bytes_of
from ._remote import local_copies
from ._run_folder import RunFolder
from ._weigh_config import WeighConfig
from ._weigh_tables import check_tables, input_files

# Fitted to what benchmarks/growth.py measured, 1000 to 10 million rows, 10 to 300 columns and 2 to 300
# classes: evaluations of loss and gradient in a whole run of "auto", on the rows that label models are
# fitted on, and seconds per output of such a row; seconds to start; and seconds per number of a row
# that is in memory (encoded, fitted, judged), of one that is judged by parts, and of one that is read
# of a CSV file.
EVALUATIONS, PER_OUTPUT, SECONDS = 4_500, 1.2e-5, 10.0
IN_MEMORY, BY_PARTS, OF_CSV = 2.1e-6, 1.2e-7, 3e-7
# Added for what seven runs took on a slower processor, 2000 to 100 000 rows: seconds per class
# of a row for forests, and per number and class of a row for boosted trees.
FORESTS, BOOSTED = 4e-5, 4e-6


class Estimate(NamedTuple):
    """What a run will cost.

    Attributes:
        train_rows, trusted_rows, columns, outputs: the size of the problem as numbers; one output
            per class.
        seconds: of the default method, on this machine if it has nothing else to do.
        bytes: of memory at the peak.
        notes: how the files are read, where that is worth saying.
    """

    train_rows: int
    trusted_rows: int
    columns: int
    outputs: int
    seconds: float
    bytes: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = "".join(f"{note}.\n" for note in self.notes)
        return (
            f"{notes}{self.train_rows} training and {self.trusted_rows} trusted rows, "
            f"{self.columns} numeric columns, {self.outputs} outputs: about "
            f"{_duration(self.seconds)} and {self.bytes / 1e9:.1f} GB of memory with the default "
            "method. Nothing was written."
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{10 * round(seconds / 10) or 10:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"


def estimate_cost(
    x: np.ndarray, trusted: int, outputs: int, large: LargeTable | None, *, of_csv: bool
) -> Estimate:
    """Time the two matrix products of one gradient on the rows that a run would see, and count."""
    rows, columns = x.shape
    all_rows = rows if large is None else large.table.rows
    some = np.asarray(x[: min(rows, MAX_ROWS)], np.float32)
    w = np.zeros((outputs, columns), np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter(), time.process_time()
        w = w + 0 * (some @ w.T).T @ some
        passed = time.perf_counter() - start[0], time.process_time() - start[1]
        times.append(min(passed))  # the first with several threads, the second on a busy machine
    seconds = SECONDS + EVALUATIONS * min(times) + PER_OUTPUT * len(some) * outputs
    if 1 < outputs <= MANY_CLASSES:
        seconds += FORESTS * len(some) * outputs
    of_trees = outputs if outputs > 2 else 1
    if outputs <= MANY_CLASSES and boosted_trees_fit(len(some), columns, of_trees):
        seconds += BOOSTED * some.size * of_trees
    seconds += IN_MEMORY * columns * rows
    seconds += OF_CSV * columns * all_rows * of_csv
    memory = bytes_of(rows + trusted, columns, outputs)
    if large is not None:
        seconds += BY_PARTS * columns * all_rows
        memory += VERDICT * all_rows
    return Estimate(all_rows, trusted, columns, outputs, seconds, memory)


def estimate(config: WeighConfig) -> Estimate:
    """Do everything that `weigh` does before it learns, and say what the rest would cost.

    Raises:
        InputError, RunFolderError: as `weigh` would.
    """
    config.check_names()
    RunFolder.of(config.out).check(resume=False)
    with local_copies(input_files(config), Path(config.out)) as paths:
        return _estimate(config, paths)


def _estimate(config: WeighConfig, paths: Mapping[str, Path]) -> Estimate:
    tables = check_tables(config, paths)
    _, _, features = vectorise(tables.features, tables.present)
    rows = {name: (features[name], np.asarray(y)) for name, y in tables.labels.items()}
    groups = tables.beside["groups"].get("train")
    extras = {"groups": groups} | tables.columns._asdict()
    check_method(config.method, config.model, config.num_steps, extras)
    Metric.of(config.metric)
    data = prepare(
        *rows["train"],
        *rows["trusted"],
        task=config.task,
        scaler=None,
        holdout=rows.get("holdout"),
        groups=groups,
        columns=tables.columns,
        folds=FOLDS if is_cross_validated(config.method, config.model) else None,
    )
    cost = estimate_cost(
        features["train"],
        len(features["trusted"]),
        data.num_outputs,
        tables.large,
        of_csv=is_csv(paths["train"]),
    )
    return cost._replace(notes=() if config.private else tables.notes)
