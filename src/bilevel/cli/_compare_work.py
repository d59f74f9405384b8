"""What `bilevel report RUN OTHER` does: two run folders, read and compared."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..reweighting._inputs.checks import InputError
from ..reweighting._inputs.columns import tidy
from ..reweighting._inputs.csv import as_texts
from ..reweighting._inputs.files import digest, read_tables, split_label
from ..reweighting._inputs.saved import load_model
from ..reweighting._report.compared import Comparison, compare_runs
from ._estimators import SAVED_TYPES
from ._run_files import check_unchanged, read_config, write_json

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
        table = pd.read_parquet(run / "weights.parquet", columns=COLUMNS)
        weights.append(table.assign(id=as_texts(pd.Series(table["id"]))))
    if configs[0]["task"] != configs[1]["task"]:
        raise InputError(f"{first} and {second} are of different tasks; nothing can be compared.")
    if not set(weights[0]["id"]) & set(weights[1]["id"]):
        raise InputError(f"{first} and {second} have no row in common, by their ids.")
    found = compare_runs((configs[0], configs[1]), (weights[0], weights[1]), _scores(runs, configs))
    if out is not None:
        write_json(found.to_dict(), out)
    return found


def _scores(
    runs: tuple[Path, Path], configs: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Per row of the hold-out of both runs, how well each final model does; None if they differ."""
    sums = [config["sha256"].get("holdout") for config in configs]
    path = Path(configs[0].get("holdout") or "")
    if sums[0] is None or sums[0] != sums[1] or configs[0]["label"] != configs[1]["label"]:
        return None
    if not path.exists() or digest(path) != sums[0]:
        return None
    losses = []
    for run, config in zip(runs, configs, strict=True):
        check_unchanged(run, "model.skops")
        model = load_model(run / "model.skops", SAVED_TYPES)
        # The training file is read too, as it says how the columns of a CSV file are read.
        paths = {name: Path(config[name]) for name in ("train", "holdout")}
        if not paths["train"].exists() or digest(paths["train"]) != config["sha256"]["train"]:
            return None
        ids = [c for c in (config.get("id"), config.get("groups"), config.get("entity")) if c]
        read = read_tables(paths, label=config["label"], ids=ids)["holdout"].frame
        table, labels = split_label(read, config["label"], config.get("id"), "holdout")
        predicted = np.asarray(model.predict(tidy(table, like=model)))
        if predicted.dtype.kind == "f" and pd.api.types.is_float_dtype(labels):
            y = labels.to_numpy(float)
            losses.append(-((predicted - y) ** 2) / (np.var(y) or 1.0))
        else:
            told = as_texts(pd.Series(predicted)).to_numpy()
            losses.append((told == as_texts(labels).to_numpy()).astype(float))
    return losses[0], losses[1]
