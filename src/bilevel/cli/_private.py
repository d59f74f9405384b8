"""Private runs: tables whose names are replaced by ours before anything is learned of them."""

from typing import Any

import numpy as np
import pandas as pd

from ..reweighting._inputs.checks import InputError
from ._weigh_config import WeighConfig
from ._weigh_tables import Tables


def without_names(tables: Tables, regression: bool) -> Tables:
    """The same tables with names of ours: "column 3", "class 2", "group 5", and rows by their place.

    Classes and groups keep their order. The values of features stay, as they are learned from; no
    file of a private run holds any.
    """
    columns = {c: f"column {k + 1}" for k, c in enumerate(tables.features["train"].columns)}
    features = {
        name: table.rename(columns=columns).reset_index(drop=True)
        for name, table in tables.features.items()
    }
    labels = {name: y.reset_index(drop=True).rename("label") for name, y in tables.labels.items()}
    given, probabilities = tables.given, tables.probabilities
    if not regression:
        before = [] if given is None else [pd.Series(given)]
        classes = _numbered("class", [*labels.values(), *before])
        labels = {name: y.map(classes) for name, y in labels.items()}
        if given is not None:
            given = pd.Series(given).map(classes).to_numpy(dtype=object)
            given[pd.isna(given)] = None
        probabilities = {
            name: p.rename(columns=_like(classes, p.columns)) if isinstance(p, pd.DataFrame) else p
            for name, p in probabilities.items()
        }
    beside = {name: dict(parts) for name, parts in tables.beside.items()}
    for option in ("groups", "entity"):
        names = _numbered(option.removesuffix("s"), list(beside[option].values()))
        beside[option] = {table: x.map(names) for table, x in beside[option].items()}
    return tables._replace(
        features=features,
        labels=labels,
        beside=beside,
        notes=(),
        units={},
        given=given,
        probabilities=probabilities,
        others=tables.others.iloc[:, :0],
    )


def _numbered(word: str, columns: list[pd.Series]) -> dict[Any, str]:
    """A name for each value, whose order is that of the values."""
    if not columns:
        return {}
    values = pd.unique(pd.concat([c.astype(object) for c in columns]).dropna())
    try:
        values = sorted(values)
    except TypeError:
        values = sorted(values, key=str)
    width = len(str(len(values)))
    return {value: f"{word} {k + 1:0{width}}" for k, value in enumerate(values)}


def _like(classes: dict[Any, str], columns: Any) -> dict[Any, str]:
    """Names of columns that are those of the classes."""
    named = {str(value): name for value, name in classes.items()}
    return {c: named[str(c)] for c in columns if str(c) in named}


def check_private(config: WeighConfig, resume: bool) -> None:
    """Refuse what a private run cannot keep to itself.

    Raises:
        InputError: with the option.
    """
    for option, given in {
        "--show": bool(config.show),
        "--images": config.images is not None,
        "--truth": config.truth is not None,
        "--resume": resume,
        "--allow-code": config.allow_code,
        "--control": config.control,
    }.items():
        if given:
            raise InputError(f"{option} does not go with --private.")
    if config.method != "auto" or config.model != "linear":
        raise InputError("--private needs --method auto and --model linear.")


def private_evidence(evidence: dict[str, Any]) -> dict[str, Any]:
    """The same without what values of the tables could be in.

    Those are targets of rows in a regression, and their means, parts of the rows in words, and the
    parameters of the estimator.
    """
    worst, changed = dict(evidence["worst"]), evidence["before_after"]
    if evidence["task"] == "regression":
        nothing = {"given": None, "suggested": None, "opinions": None}
        worst["rows"] = [line | nothing for line in worst["rows"]]
        changed = None if changed is None else changed | {"calibration": None}
    provenance = evidence["provenance"] | {"estimator": "not said"}
    said = {"worst": worst, "before_after": changed, "provenance": provenance}
    return evidence | said | {"clusters": None}


def places(rows: int) -> np.ndarray:
    """What rows are called: their places in the file, from 1."""
    return np.array([f"row {i + 1}" for i in range(rows)], dtype=object)
