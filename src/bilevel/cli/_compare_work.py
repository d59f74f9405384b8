"""What `bilevel report RUN OTHER` does: two run folders, read and compared."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object
from sklearn.base import is_classifier

from ..reweighting._inputs.checks import InputError
from ..reweighting._inputs.columns import tidy
from ..reweighting._inputs.csv import as_texts
from ..reweighting._inputs.files import digest, read_tables, split_label, watch
from ..reweighting._inputs.saved import load_model
from ..reweighting._report.compared import Comparison, Scores, compare_runs
from ..reweighting._weights.coded_labels import predictions
from ..reweighting._weights.metric import Metric, Said
from ._estimators import SAVED_TYPES
from ._run_files import (
    check_unchanged,
    read_config,
    read_summary,
    read_verdicts,
    unusable,
    write_json,
)

_hash: Any = hash_pandas_object
COLUMNS = ["id", "weight", "label_quality", "keep"]


def compare_folders(first: Path, second: Path, out: Path | None) -> Comparison:
    """`compare_runs` of two run folders; with `out` also as JSON.

    Raises:
        InputError: no run folders, private ones, files that have changed, or no row in common.
    """
    if out is not None and out.suffix.lower() != ".json":
        raise InputError(f"a comparison is saved as .json, got {out.name!r}.")
    runs = (first, second)
    configs, weights = [], []
    for run in runs:
        configs.append(read_config(run))
        check_unchanged(run, "config.toml", "weights.parquet")
        weights.append(read_verdicts(run, COLUMNS))
    if configs[0]["task"] != configs[1]["task"]:
        raise InputError(f"{first} and {second} are of different tasks; nothing can be compared.")
    by_content = not _share_ids(configs, weights)
    if by_content:
        weights = _named_by_content(runs, configs, weights)
    weights = [table.assign(id=as_texts(pd.Series(table["id"]))) for table in weights]
    if not set(weights[0]["id"]) & set(weights[1]["id"]):
        how = "by what their columns hold" if by_content else "by their ids"
        raise InputError(f"{first} and {second} have no row in common, {how}.")
    found = compare_runs(
        (configs[0], configs[1]), (weights[0], weights[1]), _scores(runs, configs), by_content
    )
    if out is not None:
        write_json(found.to_dict(), out)
    return found


def _share_ids(configs: list[dict[str, Any]], weights: list[pd.DataFrame]) -> bool:
    """Whether an id means the same row in both runs: a number of a row does in one file only."""
    if configs[0].get("id") != configs[1].get("id"):
        return False
    if configs[0].get("id") or configs[0]["sha256"]["train"] == configs[1]["sha256"]["train"]:
        return True
    return not any(np.array_equal(table["id"], np.arange(len(table))) for table in weights)


def _named_by_content(
    runs: tuple[Path, Path], configs: list[dict[str, Any]], weights: list[pd.DataFrame]
) -> list[pd.DataFrame]:
    """The rows of the second run called as the equal rows of the first, in their order.

    Equal are rows that hold the same in all columns that both tables have, but for labels and ids.

    Raises:
        InputError: a table is no longer what it was, or is beyond memory.
    """
    way = (
        "Rows that have only numbers are compared by what they hold. Weigh both with the same --id"
    )
    paths = {name: Path(c["train"]) for name, c in zip(("first", "second"), configs, strict=True)}
    for run, path, config in zip(runs, paths.values(), configs, strict=True):
        if "sampled_rows" in read_summary(run):
            raise InputError(f"the training table of {run} is beyond memory. {way}.")
        if not path.exists() or digest(path) != config["sha256"]["train"]:
            raise InputError(f"{_elsewhere('training', path)}. {way}.")
    check_unchanged_files = watch(paths)
    frames = [table.frame for table in read_tables(paths).values()]
    check_unchanged_files()
    names = {c.get(option) for c in configs for option in ("label", "id", "given_label", "truth")}
    both = [c for c in frames[0].columns if c in frames[1].columns and c not in names]
    keys = []
    for run, frame, table in zip(runs, frames, weights, strict=True):
        if len(frame) != len(table):
            raise unusable(run, f"it has {len(table)} rows, and the training table {len(frame)}")
        numeric = {c: all(pd.api.types.is_numeric_dtype(f[c]) for f in frames) for c in both}
        held = {
            c: frame[c].to_numpy(float, na_value=np.nan)
            if numeric[c]
            else as_texts(pd.Series(frame[c])).to_numpy()
            for c in both
        }
        hashed: Any = _hash(pd.DataFrame(held), index=False)
        keys.append(pd.MultiIndex.from_arrays([hashed, hashed.groupby(hashed).cumcount()]))
    ids = as_texts(pd.Series(weights[0]["id"]))
    place = keys[0].get_indexer(keys[1])
    new = [f"{k} of the second run" for k in range(len(place))]
    called = np.where(place < 0, np.array(new, object), ids.to_numpy()[place])
    return [weights[0].assign(id=ids), weights[1].assign(id=called)]


def _scores(runs: tuple[Path, Path], configs: list[dict[str, Any]]) -> Scores | str:
    """How well each final model does on the hold-out of both runs, or why that cannot be said."""
    sums = [config["sha256"].get("holdout") for config in configs]
    path = Path(configs[0].get("holdout") or "")
    if sums[0] is None or sums[0] != sums[1]:
        return "the runs have no hold-out in common"
    if configs[0]["label"] != configs[1]["label"]:
        return "the runs have different labels (--label)"
    if not path.exists() or digest(path) != sums[0]:
        return _elsewhere("hold-out", path)
    asked = [config.get("metric") for config in configs]
    metric = Metric.of(asked[0]) if asked[0] == asked[1] else None
    parts, rows, regression = [], 0, False
    for run, config in zip(runs, configs, strict=True):
        check_unchanged(run, "model.skops")
        model = load_model(run / "model.skops", SAVED_TYPES)
        # The training file is read too, as it says how the columns of a CSV file are read.
        paths = {"train": Path(config["train"]), "holdout": path}
        check_unchanged_files = watch(paths)
        if not paths["train"].exists() or digest(paths["train"]) != config["sha256"]["train"]:
            return _elsewhere("training", paths["train"])
        ids = [c for c in (config.get("id"), config.get("groups"), config.get("entity")) if c]
        read = read_tables(paths, label=config["label"], ids=ids)["holdout"].frame
        check_unchanged_files()
        table, labels = split_label(read, config["label"], config.get("id"), "holdout")
        regression = not is_classifier(model)
        part = _per_row(model, tidy(table, like=model), labels, regression, metric)
        if part is None:
            return "a model does not know each label of the hold-out"
        parts.append(part)
        rows = len(labels)
    name = metric.name if metric else "R2" if regression else "accuracy"
    return Scores(name, rows, *parts)


def _elsewhere(what: str, path: Path) -> str:
    return f"the {what} file is no longer in {path}, as seen from here, or has changed"


def _per_row(
    model: Any, X: pd.DataFrame, labels: pd.Series, regression: bool, metric: Metric | None
) -> np.ndarray | None:
    """What each row, or group of rows, adds to the score; None where the model lacks a label."""
    predicted = predictions(model, X)
    every = np.arange(len(labels))
    if regression:
        y = labels.to_numpy(float)
        if metric is None:
            return 1 - (predicted - y) ** 2 / (np.var(y) or 1.0)
        return -metric.judge(Said(None, {"predict": predicted}), X, y, every * 0 + 1.0, every)[0]
    names, y = as_texts(pd.Series(model.classes_)).to_numpy(), as_texts(labels).to_numpy()
    if metric is None:
        return (as_texts(pd.Series(predicted)).to_numpy() == y).astype(float)
    code = pd.Index(names).get_indexer(pd.Index(y))
    if (code < 0).any():
        return None
    said = Said.of_model(model, X, np.asarray(model.classes_), coded=True)
    return -metric.judge(said, X, code, every * 0 + 1.0, every)[0]
