"""The run folder: made, checked, written and read; nothing in its files is unpickled."""

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import skops.io
from sklearn.pipeline import Pipeline

from ..reweighting._inputs.checks import InputError, check_labels, named
from ..reweighting._inputs.columns import check_values, load_model, load_trusted, tidy
from ..reweighting._inputs.prepare import Encoding
from ..reweighting._inputs.probabilities import check_new_probabilities
from ..reweighting._weights.labels import Classes, Numbers
from ..reweighting._weights.pool import ClassPool, NumberPool
from ..reweighting._weights.result import WeightsResult
from ..reweighting._weights.scorer import LinearOutputs, OwnModel, RowScorer
from ._app import RunFolderError
from ._estimators import SAVED_TYPES

WORST = 1000  # rows in worst.csv
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the same in full width


@dataclasses.dataclass(frozen=True)
class WeighConfig:
    """What `bilevel weigh` was asked to do; written to `config.toml`, but for leave to run code."""

    train: str
    label: str
    trusted: str
    out: str
    holdout: str | None = None
    id: str | None = None
    groups: str | None = None
    drop: tuple[str, ...] = ()
    images: str | None = None
    pred_probs: str | None = None
    pred_probs_trusted: str | None = None
    given_label: str | None = None
    estimator: str | None = None
    allow_code: bool = False
    task: str = "auto"
    method: str = "auto"
    model: str = "linear"
    num_steps: int | None = None
    l2: float = 1e-2
    precision: float | None = None
    sample_weight: str | None = None
    entity: str | None = None
    time: str | None = None
    metric: str | None = None
    report: bool = True
    control: bool = False
    seed: int = 0

    def to_toml(self, digests: dict[str, str]) -> str:
        """The settings and the inputs' sha256 sums as TOML (whose scalars are written as JSON's)."""
        settings = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        del settings["allow_code"]  # which is said each time
        lines = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()
        ]
        lines += ["", "[sha256]", *(f"{k} = {json.dumps(v)}" for k, v in digests.items())]
        return "\n".join(lines) + "\n"


def check_folder(out: Path, partial: Path, resume: bool) -> None:
    if out.exists():
        raise RunFolderError(
            f"the run folder {out} exists; its results are not overwritten. Choose another --out, "
            "or remove it."
        )
    if resume and not (partial / "config.toml").exists():
        raise RunFolderError(
            f"there is no interrupted run to resume in {partial}; start it without --resume."
        )
    if not resume and partial.exists():
        raise RunFolderError(
            f"an interrupted run is in {partial}: continue it with --resume, or remove that folder "
            "to start again."
        )
    parent = next(p for p in (partial, *partial.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunFolderError(
            f"the folder {partial} cannot be written ({parent} is "
            f"{'read-only' if parent.is_dir() else 'a file'}); choose another --out."
        )


def check_same_run(path: Path, toml: str) -> None:
    before, now = tomllib.loads(path.read_text(encoding="utf-8")), tomllib.loads(toml)
    different = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if different:
        raise RunFolderError(
            f"the interrupted run in {path.parent} differs from this call in {named(different)}: "
            f"{ {k: before.get(k) for k in different} } then, { {k: now.get(k) for k in different} } "
            "now. Repeat the call that was interrupted, or remove that folder."
        )


def create_folder(partial: Path, new_parents: list[Path], toml: str) -> None:
    """Make the folder with its `config.toml`, or nothing."""
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise RunFolderError(
            f"the folder {partial} cannot be written ({error.strerror}); choose another --out."
        ) from error
    try:
        (partial / "config.toml").write_text(toml, encoding="utf-8")
    except OSError as error:
        remove_folder(partial, new_parents)
        raise RunFolderError(
            f"the folder {partial} cannot be written ({error.strerror}); choose another --out."
        ) from error


def remove_folder(partial: Path, new_parents: list[Path]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for folder in new_parents:
        with contextlib.suppress(OSError):  # it is in use by another run
            folder.rmdir()


def checkpoints(folder: Path) -> list[Path]:
    return [*folder.glob("checkpoint.eqx")]


def read_config(run: Path) -> dict[str, Any]:
    """The settings of a run, from its `config.toml`.

    Raises:
        InputError: it is no run folder.
    """
    path = run / "config.toml"
    if not path.is_file():
        raise InputError(f"{run} is not a run folder of `bilevel weigh`: it has no config.toml.")
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if missing := sorted({"train", "label", "trusted", "task", "seed", "sha256"} - config.keys()):
        raise InputError(
            f"{run} is not a run folder of `bilevel weigh`: its config.toml has no {named(missing)}."
        )
    return config


def write_weights(
    result: WeightsResult, ids: np.ndarray, given: np.ndarray, predicted: np.ndarray, folder: Path
) -> None:
    """`weights.parquet`, one line per training row; `worst.csv`, the flagged rows, worst first."""
    weights = np.asarray(result.weights)
    rank = pd.Series(weights).rank(ascending=False, method="first").astype(int)
    table = pd.DataFrame(
        {
            "id": ids,
            "weight": weights,
            "rank": np.asarray(rank),
            "label_quality": np.asarray(result.label_quality),
            "keep": result.keep,
            **({} if result.wrong is None else {"wrong": result.wrong}),
            "given_label": given,
            "predicted_label": predicted,
        }
    )
    table.to_parquet(folder / "weights.parquet", index=False)
    flagged: Any = table[~table["keep"]]
    worst = flagged.sort_values("label_quality", kind="stable").head(WORST)
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
        quality, right = self.scorer(x, self.encoding.labels(y, name), own, given)
        return pd.DataFrame(
            {
                "label_quality": quality,
                "keep": right,
                "given_label": y,
                "predicted_label": self.encoding.decode(self.scorer.predict(x, own, given)),
            },
            features.index.rename("id"),
        )


def read_like(labels: np.ndarray, classes: np.ndarray | None, name: str) -> np.ndarray:
    """Numbers where the classes are, text where they are: a column of few rows may look otherwise."""
    if classes is None or (classes.dtype.kind in "iuf") == (labels.dtype.kind in "iuf"):
        return labels
    if classes.dtype.kind not in "iuf":
        return labels.astype(str)
    numbers = np.asarray(pd.to_numeric(pd.Series(labels), errors="coerce"))
    if len(unread := np.unique(labels[np.isnan(numbers)].astype(str))):
        raise InputError(
            f"`{name}` has labels that are not numbers, as those of the training rows are: "
            f"{named(unread)}. Remove these rows or mend the labels."
        )
    return numbers


def write_scorer(result: WeightsResult, folder: Path) -> bool:
    """`scorer.npz`, if the result can judge new rows; models that are not linear in `scorer.skops`."""
    if result.scorer is None:
        return False
    scorer, encoding = result.scorer, result.encoding
    arrays: dict[str, Any] = {
        f"pool {name}": np.asarray(value) for name, value in scorer.pool._asdict().items()
    }
    own: dict[str, list[Any]] = {}
    for k, member in enumerate(scorer.members):
        linear = [model for model in member or () if isinstance(model, LinearOutputs)]
        if linear:
            arrays[f"member {k} weight"] = np.stack([model.weight for model in linear])
            arrays[f"member {k} bias"] = np.stack([model.bias for model in linear])
        elif member is not None:
            own[str(k)] = [model.fitted for model in member if isinstance(model, OwnModel)]
    if own:
        models = {"members": own, "pipeline": encoding.pipeline, "scaler": encoding.scaler}
        skops.io.dump(models, folder / "scorer.skops")
    if encoding.classes is not None:
        arrays["classes"] = _plain(encoding.classes)
    np.savez(folder / "scorer.npz", **arrays, numbers=np.array([encoding.centre, encoding.spread]))
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
    saved_models: dict[str, Any] = {"members": {}, "pipeline": None, "scaler": None}
    if (folder / "scorer.skops").is_file():
        saved_models = load_trusted(folder / "scorer.skops", SAVED_TYPES)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        centre, spread = (float(x) for x in arrays["numbers"])
        classes = arrays.get("classes")
        kind = NumberPool if classes is None else ClassPool
        fields = {name: arrays[f"pool {name}"] for name in kind._fields}
        numbers: Any = {name: x if x.ndim else float(x) for name, x in fields.items()}
        pool = kind(**numbers)
        plain = None if classes is None else np.asarray(classes)

        def member(k: int) -> list[LinearOutputs | OwnModel] | None:
            if f"member {k} weight" in arrays:
                both = arrays[f"member {k} weight"], arrays[f"member {k} bias"]
                return [LinearOutputs(weight, bias) for weight, bias in zip(*both, strict=True)]
            if str(k) not in saved_models["members"]:
                return None  # what the user's own model says
            fitted = saved_models["members"][str(k)]
            return [OwnModel(model, plain, centre, spread) for model in fitted]

        members = [member(k) for k in range(len(pool.coefficients))]
        scorer = RowScorer(Numbers() if classes is None else Classes(len(classes)), members, pool)
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    encoding = Encoding(saved_models["pipeline"], saved_models["scaler"], classes, centre, spread)
    return Scorer(model, scorer, encoding)


def write_json(value: dict[str, Any], path: Path) -> None:
    """Indented, in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
