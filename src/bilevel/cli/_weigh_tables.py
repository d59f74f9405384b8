"""The tables of `bilevel weigh`: read and checked before anything is learned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..reweighting._inputs.checks import (
    InputError,
    check_ids,
    check_labels,
    named,
)
from ..reweighting._inputs.columns import check_values, describe
from ..reweighting._inputs.containers import as_internal
from ..reweighting._inputs.csv import Reading, read_like
from ..reweighting._inputs.dates import describe_dates
from ..reweighting._inputs.files import find_readings, read_tables, split_label, suggest
from ..reweighting._inputs.row_facts import RowColumns, check_sample_weight
from ..reweighting._inputs.scalars import check_scalars
from ..reweighting._report.thumbnails import thumbnails
from ._estimators import check_name
from ._large import LargeTable, find_large, read_csv_files
from ._probabilities import (
    check_options,
    columns_of,
    probability_files,
    read_probabilities,
    take_columns,
)
from ._tables import check_drop, check_same_names
from ._weigh_config import WeighConfig


def input_files(config: WeighConfig) -> dict[str, str]:
    """The paths of the tables that there are."""
    paths = {"train": config.train, "trusted": config.trusted, "holdout": config.holdout}
    return {name: path for name, path in paths.items() if path is not None}


class Tables(NamedTuple):
    """The tables of a run.

    Attributes:
        features: with the row ids as index.
        labels: of the rows.
        beside: by option and table, columns that are no features: groups, sample weights, ...
        images: pictures of the training rows, mapped from their file.
        notes: what is worth saying about how the files are read.
        probabilities: of the user's own model, for the training and the trusted rows.
        given: the labels that the trusted rows had before they were verified.
        others: columns of the training rows that are neither features nor labels nor ids.
        large: the training table on disk, where the training rows here are a sample of it.
        readings: of the features and the labels, if the training table is a CSV file.
        units: of numbers in the columns to show, and of the labels (None), where a CSV file has them.
    """

    features: dict[str, pd.DataFrame]
    labels: dict[str, pd.Series]
    beside: dict[str, dict[str, pd.Series]]
    images: np.ndarray | None
    notes: tuple[str, ...]
    probabilities: dict[str, Any]
    given: np.ndarray | None
    others: pd.DataFrame
    large: LargeTable | None
    readings: dict[str, Reading] | None
    units: dict[str | None, str]

    @property
    def described(self) -> pd.DataFrame:
        """The training rows as people know them: the features, and what else is said of them."""
        others = {str(name): np.asarray(self.others[name]) for name in self.others.columns}
        return self.features["train"].assign(**others)

    @property
    def columns(self) -> RowColumns:
        """What was given of the training and of the trusted rows beside features and labels."""
        return RowColumns(
            *(
                None if column is None else np.asarray(column)
                for option in ("sample_weight", "entity", "time")
                for column in (self.beside[option].get(name) for name in ("train", "trusted"))
            )
        )

    @property
    def judged_outside(self) -> dict[str, Any]:
        """What others have said of the labels, as arguments of `learn_weights`."""
        return {
            "pred_probs": self.probabilities.get("train"),
            "pred_probs_trusted": self.probabilities.get("trusted"),
            "given_labels_trusted": self.given,
        }

    @property
    def present(self) -> np.ndarray | None:
        """The training rows that count, or None for all."""
        weight = self.columns.sample_weight
        if weight is None:
            return None
        return check_sample_weight(weight, len(weight), "sample_weight") > 0


def check_tables(config: WeighConfig, paths: Mapping[str, Path]) -> Tables:
    """All checks on the tables that need no computing, and the tables, which are at `paths`."""
    if config.estimator is not None:
        check_name(config.estimator, config.allow_code)
    check_options(config)
    columns, given = columns_of(config.pred_probs), None
    read, labels, probabilities = {}, {}, {}
    beside: dict[str, dict[str, pd.Series]] = {option: {} for option in _BESIDE}
    ids = [
        c
        for c in (config.id, config.groups, config.entity, config.given_label, config.truth)
        if c is not None
    ]
    beside_rows = {getattr(config, option) for option in (*_BESIDE, "given_label")}
    unused = [c for c in config.drop if c not in beside_rows]  # which are no features
    texts = read_csv_files(config, paths)
    readings = find_readings(texts.values(), config.label, ids)
    large = find_large(config, ids, texts.get("train", paths["train"]), readings)
    loaded: dict[str, Any] = {**texts} | ({} if large is None else {"train": large.sample})
    tables = read_tables(paths, label=config.label, ids=ids, read=loaded, readings=readings)
    for name, one in tables.items():
        table, labels[name] = split_label(one.frame, config.label, config.id, name)
        if name == "train":
            check_drop(config.drop, table.columns)
        table = table.drop(columns=unused, errors="ignore")
        if columns is not None and name == "holdout":
            table = table.drop(columns=columns, errors="ignore")
        elif columns is not None:
            table, probabilities[name] = take_columns(table, columns, name)
        if config.given_label is not None:
            if name == "trusted":
                given = _labels_before(table, config.given_label, labels[name])
            table = table.drop(columns=config.given_label, errors="ignore")
        table, taken = _take_out(table, config, name)
        if "truth" in taken and (gaps := int(np.sum(np.asarray(taken["truth"].isna())))):
            raise InputError(
                f"the column {config.truth!r} (--truth) of the {name} file has {gaps} gaps; it must "
                "have the true label of every row."
            )
        for option, column in taken.items():
            beside[option][name] = column
        if table.shape[1] == 0:
            raise InputError(f"no column of the {name} file is left to learn from.")
        check_values(table, name)
        check_labels(labels[name], table, f"{name} column {config.label}")
        read[name] = table
    if config.id is not None:
        check_ids(read)
        if large is not None:
            large.check_ids(config.id, {name: t for name, t in read.items() if name != "train"})
    elif large is not None and large.row_names is not None:
        check_ids(read | {"train": pd.DataFrame(index=large.row_names)})
    train, known = read["train"], tables["train"].frame
    if unknown := [c for c in config.show if c not in known.columns]:
        raise InputError(
            f"the train file has no column {named(unknown)} (--show); "
            f"{suggest(unknown[0], known.columns)}."
        )
    told = {config.label, config.id, config.truth, *train.columns}
    others = known[[c for c in known.columns if c not in told]]
    for name, table in read.items():
        check_same_names(train, table, name)
    features = {name: table[list(train.columns)] for name, table in read.items()}
    for option, path in probability_files(config).items():
        name, flag = option.removeprefix("pred_probs_"), "--" + option.replace("_", "-")
        name = "train" if option == "pred_probs" else name
        probabilities[name] = read_probabilities(Path(path), read[name].index, config.id, flag)
    notes = tuple(note for one in tables.values() for note in one.notes)
    notes += tuple(f"train: {said}" for said in describe(features["train"]))
    notes += tuple(describe_dates({f"the {name} file": t for name, t in features.items()}))
    notes += () if large is None else large.notes
    pictures = _pictures(config.images, len(train))
    return Tables(
        features,
        labels,
        beside,
        pictures,
        notes,
        probabilities,
        given,
        pd.DataFrame(others),
        large,
        {c: readings[c] for c in (*train.columns, config.label)} if "train" in texts else None,
        _units(config, readings if "train" in texts else {}),
    )


def _units(config: WeighConfig, readings: Mapping[str, Reading]) -> dict[str | None, str]:
    found: dict[str | None, str] = {c: readings[c].unit for c in config.show if c in readings}
    if config.label in readings:
        found[None] = readings[config.label].unit
    return {name: unit for name, unit in found.items() if unit}


def _labels_before(table: pd.DataFrame, column: str, labels: pd.Series) -> np.ndarray:
    """What `--given-label` names, numbers or text as the labels are; None where it is empty."""
    if column not in table.columns:
        raise InputError(
            f"the trusted file has no column {column!r} (--given-label); "
            f"{suggest(column, table.columns)}."
        )
    what = f"trusted column {column}"
    there = table[column].notna().to_numpy()
    before = check_labels(pd.Series(table[column])[there], table[there], what)
    known = read_like(before, np.unique(labels), what)
    if there.all():
        return known
    every = np.full(len(table), None)
    every[there] = known
    return every


_BESIDE = {
    "groups": (),
    "sample_weight": (),
    "entity": ("trusted",),
    "time": ("trusted",),
    "truth": (),
}


def _take_out(
    table: pd.DataFrame, config: WeighConfig, name: str
) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """(features, columns that say something else of the rows, by option).

    Raises:
        InputError: the table must have such a column and has not.
    """
    taken = {}
    for option, needed in _BESIDE.items():
        column = getattr(config, option)
        if column is None:
            continue
        if column in table.columns:
            taken[option] = pd.Series(table[column])
            flag = option.replace("_", "-")
            check_scalars(taken[option], f"the column {column!r} (--{flag}) of the {name} file")
        elif name == "train" or name in needed:
            raise InputError(
                f"the {name} file has no column {column!r} (--{option.replace('_', '-')}); its "
                f"columns are {named(list(table.columns), 20)}."
            )
    return table.drop(columns=list({getattr(config, option) for option in taken})), taken


def _pictures(path: str | None, n: int) -> np.ndarray | None:
    """One for each training row, of a shape that can be drawn; checked before anything is learned."""
    if path is None:
        return None
    images = as_internal(Path(path), "images")
    if not isinstance(images, np.ndarray) or images.ndim == 0 or images.dtype.kind not in "biuf":
        raise InputError(f"--images {path} is not an array of numbers; save one by `np.save`.")
    if len(images) != n:
        raise InputError(
            f"--images {path} has {len(images)} pictures, the train file {n} rows; give one picture "
            "for each row, in the same order."
        )
    try:
        thumbnails(images, [0])
    except ValueError as error:
        raise InputError(f"--images {path} cannot be drawn: {error}") from error
    return images
