"""What judges new rows, in a run folder: written and read; nothing is unpickled."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from .._storage import DamagedFileError, whole_file
from ..reweighting._inputs.archives import check_archive
from ..reweighting._inputs.checks import InputError, check_labels
from ..reweighting._inputs.columns import check_values, read_by, tidy
from ..reweighting._inputs.csv import READ_AS, TEXT, Reading, read_like
from ..reweighting._inputs.prepare import Encoding
from ..reweighting._inputs.probabilities import check_new_probabilities
from ..reweighting._inputs.saved import load_model, load_trusted
from ..reweighting._inputs.strange import strange
from ..reweighting._weights.labels import Classes, Numbers
from ..reweighting._weights.pool import ClassPool, NumberPool
from ..reweighting._weights.result import WeightsResult
from ..reweighting._weights.scorer import Doubt, LinearOutputs, OwnModel, RowScorer
from ._estimators import SAVED_TYPES
from ._run_files import write_model


class Scorer(NamedTuple):
    """A run's model and what judges labels, read from its folder.

    Attributes:
        readings: how the columns of CSV files are read, as far as the training table says it.
    """

    model: Pipeline
    scorer: RowScorer
    encoding: Encoding
    readings: dict[str, Reading]

    def __call__(
        self, features: pd.DataFrame, labels: pd.Series, probabilities: Any = None
    ) -> pd.DataFrame:
        """One line per row, with its id as index.

        Args:
            features: the rows, with their ids as index.
            labels: their labels.
            probabilities: of the user's own model, if the run had them.

        Raises:
            InputError: columns or labels that the training rows did not have, or probabilities that
                are missing or wrong.
        """
        rows = tidy(features, like=self.model)
        check_values(rows, "new")
        own: Any = rows if self.scorer.takes_tables else self.model[:-1].transform(rows)
        x = self.encoding.features(own, "the new rows")
        given = None
        if self.scorer.asks_for_probabilities:
            given = check_new_probabilities(probabilities, self.encoding.classes, len(rows))
        name = str(labels.name)
        y = read_like(check_labels(labels, features, name), self.encoding.classes, name)
        outputs = self.scorer.outputs(x, own, given)
        judged = self.scorer.judge(outputs, self.encoding.labels(y, name))
        return pd.DataFrame(
            {
                "label_quality": judged.quality,
                "keep": judged.keep,
                "wrong": judged.wrong,
                "given_label": y,
                "predicted_label": self.encoding.decode(judged.said),
            },
            features.index.rename("id"),
        )

    def reading_of_labels(self, label: str, column: str) -> dict[str, Reading]:
        """How labels in a column of new rows are read: as those of `label` in the training table."""
        if label in self.readings:
            return {column: self.readings[label]}
        classes = self.encoding.classes
        return {column: TEXT} if classes is not None and classes.dtype.kind in "UO" else {}

    def strange(self, features: pd.DataFrame) -> list[str]:
        """A sentence per column that is unlike that of the training rows."""
        rows = tidy(features, like=self.model)
        return strange(rows, self.encoding.pipeline or self.model)


def write_scorer(
    result: WeightsResult, folder: Path, readings: dict[str, Reading] | None = None
) -> bool:
    """`scorer.npz`, if the result can judge new rows; models that are not linear in `scorer.skops`.

    `readings`: of the columns, if the training table was a CSV file.
    """
    if result.scorer is None:
        return False
    scorer, encoding = result.scorer, result.encoding
    arrays: dict[str, Any] = {
        f"pool {name}": np.asarray(value) for name, value in scorer.pool._asdict().items()
    }
    arrays |= {f"doubt {name}": np.asarray(value) for name, value in scorer.doubt._asdict().items()}
    own: dict[str, list[Any]] = {}
    of_numbers = []
    for k, member in enumerate(scorer.members):
        linear = [model for model in member or () if isinstance(model, LinearOutputs)]
        if linear:
            arrays[f"member {k} weight"] = np.stack([model.weight for model in linear])
            arrays[f"member {k} bias"] = np.stack([model.bias for model in linear])
        elif member is not None:
            kept = [model for model in member if isinstance(model, OwnModel)]
            own[str(k)] = [model.fitted for model in kept]
            of_numbers += [str(k)] if any(model.of_numbers for model in kept) else []
    if own:
        models: dict[str, Any] = {"members": own, "of_numbers": of_numbers}
        if len(own) > len(of_numbers):  # else the final model's own way to numbers is enough
            models |= {"pipeline": encoding.pipeline, "scaler": encoding.scaler}
        write_model(models, folder / "scorer.skops")
    if encoding.classes is not None:
        arrays["classes"] = _plain(encoding.classes)
    if readings is not None:
        arrays["readings"] = np.array(json.dumps(readings))
    with whole_file(folder / "scorer.npz") as file:
        np.savez(file, **arrays, numbers=np.array([encoding.centre, encoding.spread]))
    return True


def _plain(classes: np.ndarray) -> np.ndarray:
    return classes.astype(str) if classes.dtype == object else classes


def read_scorer(folder: Path) -> Scorer:
    """Raises `InputError` if the folder holds no run that can judge new rows."""
    path = folder / "scorer.npz"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no scorer.npz: it is not a run folder of `bilevel weigh` with "
            "method='auto'. Free weights cannot judge new rows."
        )
    model = load_model(folder / "model.skops", SAVED_TYPES)
    found: Any = {}
    if (folder / "scorer.skops").is_file():
        found = load_trusted(folder / "scorer.skops", SAVED_TYPES)
    try:
        saved_models: Any = {"members": {}, "pipeline": None, "scaler": None, "of_numbers": []}
        saved_models |= found
        check_archive(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        scorer = _scorer_of(arrays, saved_models["members"], saved_models["of_numbers"])
        centre, spread = (float(x) for x in arrays["numbers"])
        encoding = Encoding(
            saved_models["pipeline"], saved_models["scaler"], arrays.get("classes"), centre, spread
        )
        readings = _readings_of(arrays, model)
    except Exception as error:  # of many kinds: the bytes may say anything
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}): it is damaged, or "
            f"does not belong to the other files of {folder}. Bring back a copy, or weigh again."
        ) from error
    return Scorer(model, scorer, encoding, readings)


def _readings_of(arrays: dict[str, np.ndarray], model: Pipeline) -> dict[str, Reading]:
    """As they were saved; of a table that was no CSV file, texts stay texts."""
    if "readings" not in arrays:
        return {c: TEXT for c, how in read_by(model).items() if how == "text"}
    found = {}
    for name, parts in json.loads(str(arrays["readings"])).items():
        kind, thousands, decimal, (before, after), brackets = parts
        kinds = {type(x) for x in (kind, thousands, decimal, before, after)}
        if kinds != {str} or type(brackets) is not bool or kind not in READ_AS:
            raise DamagedFileError(f"{name!r} cannot be read as {parts!r}")
        found[name] = Reading(kind, thousands, decimal, (before, after), brackets)
    return found


def _scorer_of(
    arrays: dict[str, np.ndarray], own_models: dict[str, Any], of_numbers: Sequence[str]
) -> RowScorer:
    """The scorer that the arrays describe, if they fit each other."""
    classes = arrays.get("classes")
    outputs = 1 if classes is None else len(classes)
    kind = NumberPool if classes is None else ClassPool
    known = len(arrays["pool coefficients"])
    shapes = {"coefficients": (known,), "shares": (outputs,), "noise": (outputs, outputs)}
    fields: dict[str, Any] = {
        name: _numbers(arrays, f"pool {name}", shapes.get(name, ())) for name in kind._fields
    }
    plain: Any = {name: x if x.ndim else float(x) for name, x in fields.items()}
    pool = kind(**plain)
    centre, spread = _numbers(arrays, "numbers", (2,)).tolist()
    widths = {x.shape[2] for name, x in arrays.items() if name.endswith(" weight") and x.ndim == 3}

    def member(k: int) -> list[LinearOutputs | OwnModel] | None:
        name = f"member {k} weight"
        if name in arrays:
            models = len(arrays[name])
            weights = _numbers(arrays, name, (models, outputs, min(widths)))
            biases = _numbers(arrays, f"member {k} bias", (models, outputs))
            return [LinearOutputs(w, b) for w, b in zip(weights, biases, strict=True)]
        if str(k) not in own_models:
            return None  # what the user's own model says
        models = own_models[str(k)]
        if str(k) not in of_numbers:
            return [OwnModel(model, classes, centre, spread) for model in models]
        codes = None if classes is None else np.arange(outputs)
        return [OwnModel(model, codes, 0.0, 1.0, of_numbers=True) for model in models]

    members = [member(k) for k in range(known)]
    knots = len(arrays["doubt log_odds"])
    log_odds, wrong = (
        _numbers(arrays, f"doubt {name}", (knots,)) for name in ("log_odds", "wrong")
    )
    doubt = Doubt(log_odds, wrong, float(arrays["doubt flagged"]))  # infinite where none is flagged
    return RowScorer(Numbers() if classes is None else Classes(outputs), members, pool, doubt)


def _numbers(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of finite numbers of this shape."""
    array = arrays[name]
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise DamagedFileError(
            f"{name!r} must hold finite numbers of shape {shape}; it has {array.dtype}, {array.shape}"
        )
    return array
