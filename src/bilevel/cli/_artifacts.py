"""The files of a run folder: Parquet, CSV, NPZ, JSON, HTML and skops; nothing in them is unpickled."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from ..reweighting._inputs.checks import InputError, check_labels, named
from ..reweighting._inputs.columns import check_values, load_model, tidy
from ..reweighting._inputs.prepare import Encoding
from ..reweighting._weights.labels import Classes, Numbers, RowScorer
from ..reweighting._weights.result import WeightsResult

WORST = 1000  # rows in worst.csv
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the same in full width


def write_weights(
    result: WeightsResult, ids: np.ndarray, given: np.ndarray, predicted: np.ndarray, folder: Path
) -> None:
    """`weights.parquet`, a line a training row in order, and `worst.csv`, the lowest label quality."""
    weights = np.asarray(result.weights)
    rank = pd.Series(weights).rank(ascending=False, method="first").astype(int)
    table = pd.DataFrame(
        {
            "id": ids,
            "weight": weights,
            "rank": np.asarray(rank),
            "label_quality": np.asarray(result.label_quality),
            "keep": result.keep,
            "given_label": given,
            "predicted_label": predicted,
        }
    )
    table.to_parquet(folder / "weights.parquet", index=False)
    worst = table.sort_values("label_quality", kind="stable").head(WORST)
    write_csv(worst.drop(columns="rank"), folder / "worst.csv")


def harmless(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it.

    >>> harmless("=1+1"), harmless("fine"), harmless(-2.0)
    ("'=1+1", 'fine', -2.0)
    """
    if not isinstance(value, str):
        return value
    formula = value.lstrip().startswith(_FORMULA) or value.startswith(("\t", "\r", "\n"))
    return f"'{value}" if formula else value


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """For a spreadsheet: no cell is a formula, nor becomes two where others separate by `;`."""
    table.map(harmless).to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


class Scorer(NamedTuple):
    """A run's model and what judges labels, read from its folder."""

    model: Pipeline
    scorer: RowScorer
    encoding: Encoding

    def __call__(self, features: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
        """A line a row, with its id as index: weight of evidence against the label first.

        Raises:
            InputError: columns or labels that the training rows had not.
        """
        rows = tidy(features, like=self.model)
        check_values(rows, "new")
        x = self.encoding.features(self.model[:-1].transform(rows), "the new rows")
        name = str(labels.name)
        y = _read_like(check_labels(labels, features, name), self.encoding.classes, name)
        quality, undisputed = self.scorer(x, self.encoding.labels(y, name))
        return pd.DataFrame(
            {
                "label_quality": quality,
                "keep": undisputed,
                "given_label": y,
                "predicted_label": self.encoding.decode(self.scorer.predict(x)),
            },
            features.index.rename("id"),
        )


def _read_like(labels: np.ndarray, classes: np.ndarray | None, name: str) -> np.ndarray:
    """Numbers where the classes are, text where they are: a column of few rows may look otherwise."""
    if classes is None or (classes.dtype.kind in "iuf") == (labels.dtype.kind in "iuf"):
        return labels
    if classes.dtype.kind not in "iuf":
        return labels.astype(str)
    numbers = np.asarray(pd.to_numeric(pd.Series(labels), errors="coerce"))
    if len(unread := np.unique(labels[np.isnan(numbers)].astype(str))):
        raise InputError(
            f"`{name}` has labels that are no numbers as those of the training rows: {named(unread)}. "
            "Remove these rows or mend the labels."
        )
    return numbers


def write_scorer(result: WeightsResult, folder: Path) -> bool:
    """`scorer.npz`, if the result can judge new rows."""
    if result.scorer is None:
        return False
    scorer, encoding = result.scorer, result.encoding
    models = {
        f"{part} {name}": value
        for part, model in zip(("first", "best"), scorer.models, strict=True)
        for name, value in model.items()
    }
    if encoding.classes is not None:
        models["classes"] = _plain(encoding.classes)
    arrays: dict[str, Any] = models
    np.savez(
        folder / "scorer.npz",
        **arrays,
        first_fits=scorer.fits[0],
        best_fits=scorer.fits[1],
        sums=scorer.sums,
        numbers=np.array([scorer.spread, encoding.centre, encoding.spread]),
    )
    return True


def _plain(classes: np.ndarray) -> np.ndarray:
    return classes.astype(str) if classes.dtype == object else classes


def read_scorer(folder: Path) -> Scorer:
    """Raises `InputError` if the folder holds no run that can judge new rows."""
    path = folder / "scorer.npz"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no scorer.npz: it is no run folder of `bilevel weigh` with "
            "method='auto'. Free weights say nothing of new rows."
        )
    model = load_model(folder / "model.skops")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        spread, centre, target_spread = (float(x) for x in arrays["numbers"])
        classes = arrays.get("classes")
        models = tuple(
            {name: arrays[f"{part} {name}"] for name in ("weight", "bias")}
            for part in ("first", "best")
        )
        scorer = RowScorer(
            Numbers() if classes is None else Classes(len(classes)),
            (models[0], models[1]),
            (arrays["first_fits"], arrays["best_fits"]),
            arrays["sums"],
            spread,
        )
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return Scorer(model, scorer, Encoding(None, None, classes, centre, target_spread))


def write_json(value: dict[str, Any], path: Path) -> None:
    """Indented, in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
