"""Training tables beyond memory: weights are learned from a sample, the other rows judged by parts.

The whole job of `weigh` is done on a random sample of the training rows. Then the table is read once
more, by parts, and every other row is judged by the label models that were learned, and weighed by
the rule that won. Memory holds the sample, one part, and about 60 bytes per row for what is written.
"""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from ..reweighting._inputs.checks import (
    PROSE,
    InputError,
    as_targets,
    check_labels,
    named,
    shared_ids,
)
from ..reweighting._inputs.columns import check_values
from ..reweighting._inputs.csv import Reading, Texts
from ..reweighting._inputs.csv_parts import CsvRows
from ..reweighting._inputs.files import read_texts
from ..reweighting._inputs.parts import ParquetRows, PartedTable, draw_sample
from ..reweighting._inputs.prepare import is_regression
from ..reweighting._inputs.scalars import check_scalars
from ..reweighting._weights.fits import in_order, number_of_processes
from ..reweighting._weights.flexible_models import FOREST_ROWS
from ..reweighting._weights.label_models import MANY_CLASSES
from ._activity import Activity
from ._judged import Judge, Ranges, judge_ranges, judged_ranges, left, read_judged, share
from ._run_files import RowVerdicts
from ._together import Team
from ._weigh_config import WeighConfig

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BASE = 4e8  # bytes of the interpreter, the libraries and the trusted rows
COPIES = 10  # of the sample as float64 numbers at the peak, measured on 100 columns
OUTPUTS = 128  # bytes per row and class: of each label model, for each choice of trusted rows
LEAVES = 2400  # bytes of forests per class and row that they are grown on
VERDICT = 60  # bytes per row of the table: what is written of it, with its label and its id
SMALLEST = 20_000  # rows of a sample: as many as label models are fitted on
AS_TEXTS = 5  # bytes of cells in memory per byte of a CSV file, at most
UNPACKED = 10  # bytes of a CSV file per byte of one that is packed, about
PIECES = 4  # of the rows per process: whoever is done takes the next one
WIDEST = 50  # numbers that a column of text becomes, at most


def parse_memory(text: str) -> float:
    """Bytes: `500MB`, `4GB`, or a number of bytes.

    Raises:
        ValueError: it is neither.
    """
    number, factor = text.strip(), 1.0
    for unit, size in UNITS.items():
        if number.upper().endswith(unit):
            number, factor = number[: -len(unit)], size
    try:
        found = float(number) * factor
    except ValueError:
        found = -1.0
    if not BASE < found < 1e18:
        raise ValueError(f"{text!r} is not an amount of memory above 400MB, such as 500MB or 4GB.")
    return found


def bytes_of(rows: float, width: float, outputs: float) -> float:
    """What a run needs at its peak.

    Args:
        rows: training rows in memory.
        width: numbers that each becomes.
        outputs: numbers that a model says of each: one per class.
    """
    leaves = min(rows, FOREST_ROWS) * outputs if outputs <= MANY_CLASSES else 0
    return BASE + rows * (8.0 * COPIES * width + OUTPUTS * outputs) + LEAVES * leaves


class LargeTable(NamedTuple):
    """A training table of which only a sample is in memory.

    Attributes:
        table: on disk.
        positions: of the rows of the sample, increasing.
        sample: these rows, with their positions as index.
        needed: bytes that all rows would need, about.
        regression: whether the labels are numbers to predict, by all of them.
        path: of the table, or None of a CSV file.
        row_names: of all rows, if the table was saved with one and there is no column of ids.
    """

    table: PartedTable
    positions: Int[np.ndarray, " sample"]
    sample: pd.DataFrame
    needed: float
    regression: bool
    path: Path | None
    row_names: pd.Index | None

    def check_ids(self, column: str, tables: Mapping[str, pd.DataFrame]) -> None:
        """Refuse rows of other tables whose id a training row has, whether it is in the sample or not.

        Raises:
            InputError: with the ids.
        """
        chunks = [pd.Index(chunk.to_pandas()) for chunk in self.table.column(column).chunks]
        for name, table in tables.items():
            if shared := [id_ for chunk in chunks for id_ in shared_ids(chunk, table.index)]:
                raise InputError(
                    f"{len(shared)} {PROSE['train']} rows have the id of {PROSE[name]} rows "
                    f"({named(shared)}): a row must not judge itself. Remove them from the "
                    "training rows."
                )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it."""
        return (
            *(f"train: {note}" for note in self.table.source.notes),
            f"train: {self.table.rows} rows would need about {self.needed / 1e9:.1f} GB, more than "
            f"--memory: the weights were learned from a random sample of {len(self.positions)} rows, "
            "and the other rows judged by the models that were learned there; models, baselines and "
            "report are of the sample",
        )


def read_csv_files(config: WeighConfig, paths: Mapping[str, Path]) -> dict[str, Texts]:
    """The texts of those tables that are CSV files; what may be much beside `--memory` is on disk.

    Raises:
        InputError: one cannot be read.
    """
    memory, folder, found = parse_memory(config.memory), Path(config.out).absolute().parent, {}
    folder = next(one for one in (folder, *folder.parents) if one.is_dir())
    for name, path in paths.items():
        size = path.stat().st_size if path.is_file() else 0
        size *= UNPACKED if path.suffix.lower() == ".gz" else 1
        texts = read_texts(path, name, folder if size * AS_TEXTS > memory / 2 else None)
        if texts is not None:
            found[name] = texts
    return found


def find_large(
    config: WeighConfig, ids: Sequence[str], train: Path | Texts, readings: dict[str, Reading]
) -> LargeTable | None:
    """The training table, if it needs more than `--memory`.

    Args:
        config: of the run.
        ids: columns that stay text in CSV files.
        train: the table: its path, or the texts of a CSV file.
        readings: of labels and ids in CSV files; those of the columns of `train` are added.

    Raises:
        InputError: it cannot be used, or the run asks for what needs all rows in memory.
    """
    if isinstance(train, Path):
        source = ParquetRows.of(train, "train", [config.label, *ids])
    elif train.rows <= SMALLEST:
        return None
    else:
        source = CsvRows(train, readings, {config.label, *ids})
    if source is None or source.rows <= SMALLEST:
        return None
    table = PartedTable(source, f"the train file {config.train}")
    memory, width = parse_memory(config.memory), _width(table.head, config)
    labels = table.column(config.label).to_pandas()
    check_scalars(table.head[config.label], f"the label column {config.label!r} of the train file")
    labels = check_labels(labels, pd.DataFrame(index=labels.index), f"train column {config.label}")
    regression = is_regression(config.task, labels)
    outputs = 1 if regression else len(pd.unique(labels))
    needed = bytes_of(table.rows, width, outputs)
    if needed <= memory:
        return None
    _check_options(config, table, needed)
    if config.id is not None:
        table.check_ids(config.id)
    if regression:
        as_targets(labels, f"train column {config.label}")
    each, left = (needed - BASE) / table.rows, memory - BASE - VERDICT * table.rows
    if left < SMALLEST * each:
        least = (memory - left + SMALLEST * each) / 1e9
        raise InputError(
            f"{table.what} cannot be weighed in --memory {config.memory}: a sample of {SMALLEST} "
            f"of its rows, and what is written of all {table.rows}, need {least:.1f} GB."
        )
    positions = draw_sample(labels, int(left / each), config.seed, classes=not regression)
    sample = table.take(positions, lambda part: _check(part, config))
    path = train if isinstance(train, Path) else None
    row_names = None if config.id is not None else source.row_names()
    if row_names is not None:
        sample.index = row_names[positions]
    return LargeTable(table, positions, sample, needed, regression, path, row_names)


def _check_options(config: WeighConfig, table: PartedTable, needed: float) -> None:
    """Refuse what needs all training rows in memory."""
    asked = {
        "--images": config.images is not None,
        "--pred-probs": config.pred_probs is not None,
        "--private": config.private,
        "--method and --model other than auto and linear": (config.method, config.model)
        != ("auto", "linear"),
    }
    if at_fault := [option for option, given in asked.items() if given]:
        raise InputError(
            f"{table.what} has {table.rows} rows, more than fit in --memory {config.memory}, and "
            f"{named(at_fault)} cannot be had of a part of them. Give more --memory (all rows need "
            f"about {needed / 1e9:.1f} GB), or leave it out."
        )


def _check(part: pd.DataFrame, config: WeighConfig) -> None:
    """The checks of a table that need one row at a time."""
    features = _features(part, config)
    if config.id is not None:
        features = features.set_axis(pd.Index(part[config.id]), axis=0)
    check_values(features, "training")


def _features(part: pd.DataFrame, config: WeighConfig) -> pd.DataFrame:
    beside = {config.label, config.id, config.groups, config.entity, config.time}
    beside |= {config.sample_weight, config.given_label, config.truth, *config.drop}
    return part.drop(columns=[c for c in part.columns if c in beside])


def _width(head: pd.DataFrame, config: WeighConfig) -> int:
    """How many numbers each row becomes, about."""
    rows = _features(head, config)

    def of_column(column: pd.Series) -> int:
        if pd.api.types.is_numeric_dtype(column):
            return 1
        first = column.dropna()
        if len(first) and isinstance(first.iloc[0], (list, tuple, np.ndarray)):
            return np.size(first.iloc[0])
        return min(column.astype(str).nunique(), WIDEST)

    return sum(of_column(pd.Series(rows[c])) for c in rows.columns) or 1


def judge_all(
    large: LargeTable,
    judge: Judge,
    sample: RowVerdicts,
    folder: Path,
    activity: Activity,
    team: Team,
) -> RowVerdicts:
    """What `weights.parquet` says of all rows: of the sample as learned, of the others as judged.

    Files of judged rows that an interrupted run has left in the folder are used.
    """
    n, start, source = large.table.rows, time.monotonic(), large.table.source
    rest = left(n, judged_ranges(folder, judge.learned, n))
    mine = share(rest, team.index, team.count)
    if isinstance(source, ParquetRows) and large.path is not None:
        job = Share(judge, rest, folder, large.path, source.named_rows, large.table.what)
        team.tell(job)
        parts = job.judge_rows(mine, large.table)
    elif team.count == 1:
        parts = judge_ranges(large.table, judge, mine, folder)
    else:
        raise InputError(
            f"{large.table.what} has {n} rows, and several processes cannot share a CSV file, whose "
            "columns are read by what is in all of their cells. Save it as Parquet, or start one "
            "process."
        )
    done, size = 0, sum(stop - first for first, stop in mine)
    whose = "all rows" if team.count == 1 else f"the share of one of {team.count} processes"
    activity.say(f"judging {whose}")
    for rows in parts:
        done += rows
        seconds = (time.monotonic() - start) * (size / done - 1)
        activity.say(f"judging {whose}: {done} of {size}, about {seconds:.0f} s left")
    activity.say("waiting for the other processes")
    team.part()
    numbers = {name: np.empty(n) for name in ("weights", "quality", "wrong")}
    keep, given, predicted = np.empty(n, bool), [], []
    for here, found in read_judged(folder):
        for name, column in numbers.items():
            column[here] = found[name].to_numpy()
        keep[here] = found["keep"].to_numpy()
        given.append(found["given"].to_pandas().to_numpy())
        predicted.append(found["predicted"].to_pandas().to_numpy())
    at = large.positions
    numbers["weights"][at], numbers["quality"][at], keep[at] = (
        sample.weights,
        sample.quality,
        sample.keep,
    )
    if sample.wrong is not None:
        numbers["wrong"][at] = sample.wrong
    id_ = judge.config.id
    names = np.arange(n) if large.row_names is None else np.asarray(large.row_names)
    ids = names if id_ is None else large.table.column(id_)
    return RowVerdicts(
        ids=ids,
        keep=keep,
        given=np.concatenate(given),
        predicted=np.concatenate(predicted),
        **numbers,
    )


class Share(NamedTuple):
    """The judging of rows that are shared among processes: of a team, of one machine, or of both.

    Attributes:
        judge: what judges rows.
        rest: the rows that all of them judge.
        folder: where they write.
        train: the training table.
        named_rows: columns that may be its named index.
        what: how messages name it.
    """

    judge: Judge
    rest: Ranges
    folder: Path
    train: Path
    named_rows: tuple[str, ...]
    what: str

    def do(self, team: Team) -> None:
        """Judge what falls to this process of a team."""
        for _ in self.judge_rows(share(self.rest, team.index, team.count)):
            pass

    def judge_rows(self, ranges: Ranges, table: PartedTable | None = None) -> Iterator[int]:
        """Judge rows by the processes of this machine that share fits; yields how many, part by part.

        `table`: if it is open already.
        """
        number = number_of_processes()
        if number == 1:
            opened = table or _open(self.train, self.named_rows, self.what)
            yield from judge_ranges(opened, self.judge, ranges, self.folder)
            return
        pieces = number * PIECES
        shares = (share(ranges, k, pieces) for k in range(pieces))
        yield from in_order(_judge, ((self._replace(rest=one),) for one in shares if one))


def _judge(job: Share) -> int:
    """Judge all its rows; returns how many they are."""
    table = _open(job.train, job.named_rows, job.what)
    return sum(judge_ranges(table, job.judge, job.rest, job.folder))


@functools.lru_cache(1)  # of many shares that a process judges
def _open(train: Path, named_rows: tuple[str, ...], what: str) -> PartedTable:
    source = ParquetRows.of(train, "train", named_rows)
    assert source is not None
    return PartedTable(source, what)
