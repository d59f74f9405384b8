"""What is in a run folder: its tables, models and summary, written and read; nothing is unpickled."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from sklearn.pipeline import Pipeline

from .._storage import DamagedFileError, checksum, read_regular, whole_file, write_bytes, write_text
from .._text import for_spreadsheet, to_json
from ..reweighting._inputs.archives import check_archive
from ..reweighting._inputs.checks import InputError, check_labels, named
from ..reweighting._inputs.columns import check_values, tidy
from ..reweighting._inputs.csv import read_like
from ..reweighting._inputs.files import read_parquet
from ..reweighting._inputs.prepare import Encoding
from ..reweighting._inputs.probabilities import check_new_probabilities
from ..reweighting._inputs.saved import load_model, load_trusted
from ..reweighting._weights.labels import Classes, Numbers
from ..reweighting._weights.pool import ClassPool, NumberPool
from ..reweighting._weights.result import WeightsResult
from ..reweighting._weights.scorer import Doubt, LinearOutputs, OwnModel, RowScorer
from ._estimators import SAVED_TYPES
from ._run_folder import CONFIG, FILES, LOCK, PASSING, SUMMARY
from ._weigh_config import LARGEST_TEXT, odd_settings, read_toml

WORST = 1000  # rows in worst.csv
PAGE = "report.html"
TASKS = ("auto", "classification", "regression")


def read_settings(run: Path) -> dict[str, Any]:
    """What is in the `config.toml` of a run, which may be a private one.

    Raises:
        InputError: it is no run folder.
    """
    path = run / CONFIG
    if not path.is_file():
        raise InputError(f"{run} is not a run folder of `bilevel weigh`: it has no config.toml.")
    return read_toml(path)


def tables_of(run: Path) -> list[str]:
    """The tables that a run was made from.

    Raises:
        InputError: as `read_config`.
    """
    config = read_config(run)
    return [config[name] for name in ("train", "trusted", "holdout") if name in config]


def read_config(run: Path) -> dict[str, Any]:
    """The settings of a run that is not private, from its `config.toml`.

    Raises:
        InputError: it is no run folder, it is private, or the file is not the one that the run wrote.
    """
    path, config = run / CONFIG, read_settings(run)
    if config.get("private") is True:
        raise InputError(
            f"the run in {run} is private: it keeps no models, nor names of files, columns or rows. "
            "Its page is report.html; for more, weigh without --private."
        )
    if missing := sorted({"train", "label", "trusted", "task", "seed", "sha256"} - config.keys()):
        raise InputError(
            f"{run} is not a run folder of `bilevel weigh`: its config.toml has no {named(missing)}."
        )
    sums = config["sha256"]
    wrong = set(odd_settings(config))
    if not isinstance(sums, dict) or not {"train", "trusted"} <= sums.keys():
        wrong.add("sha256")
    if config["task"] not in TASKS:
        wrong.add("task")
    if "seed" not in wrong and not 0 <= config["seed"] < 2**32:
        wrong.add("seed")
    if wrong:
        raise InputError(
            f"{path} cannot be used: {named(sorted(wrong))} is not what a run writes there. It was "
            "changed or damaged; bring back a copy, or weigh again."
        )
    return config


def write_summary(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`summary.json`, the last file of a run, with the sha256 sums of the others.

    All but the page, which `bilevel report` writes again from `report.json`.

    Returns:
        The summary with `files`.
    """
    names = sorted(FILES - {SUMMARY, LOCK, *PASSING, PAGE})
    sums = {name: checksum(folder / name) for name in names if (folder / name).is_file()}
    summary = summary | {"files": sums}
    write_json(summary, folder / SUMMARY)
    return summary


def read_summary(run: Path) -> dict[str, Any]:
    """`summary.json`.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        found = json.loads(read_regular(run / SUMMARY, LARGEST_TEXT))
    except (OSError, DamagedFileError, ValueError, RecursionError) as error:
        raise InputError(
            f"{run / SUMMARY} cannot be read ({error}): {run} is not a complete run folder of "
            "`bilevel weigh`, or it was damaged."
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise InputError(
            f"{run / SUMMARY} is not the summary of a run: it has no sums of its files."
        )
    return found


def check_unchanged(run: Path, *names: str) -> None:
    """Refuse files of a run that are not those that it wrote.

    Raises:
        InputError: with the file.
    """
    sums = read_summary(run)["files"]
    for name in names:
        path = run / name
        if name not in sums and not path.exists():
            continue
        if not path.is_file():
            raise InputError(f"{path} is missing: bring back a copy of {run}, or weigh again.")
        if name not in sums or checksum(path) != sums[name]:
            raise InputError(
                f"{path} has changed since the run was made: its sha256 sum is not the one in "
                f"{SUMMARY}. Bring back a copy of {run}, or weigh again."
            )


class RowVerdicts(NamedTuple):
    """What a run says of the training rows.

    Attributes:
        ids: an array, or a column of an Arrow table.
        weights, quality, keep, wrong: as in `WeightsResult`.
        given, predicted: labels; None where they are private.
    """

    ids: Any
    weights: np.ndarray
    quality: np.ndarray
    keep: np.ndarray
    wrong: np.ndarray | None
    given: np.ndarray | None
    predicted: np.ndarray | None

    @classmethod
    def of(
        cls, result: WeightsResult, ids: np.ndarray, given: np.ndarray, predicted: np.ndarray
    ) -> "RowVerdicts":
        """Of the rows that the weights were learned from."""
        weights, quality = np.asarray(result.weights), np.asarray(result.label_quality)
        return cls(ids, weights, quality, result.keep, result.wrong, given, predicted)


def write_weights(rows: RowVerdicts, folder: Path) -> None:
    """`weights.parquet`, one line per training row; `worst.csv`, the flagged rows, worst first."""
    rank = pd.Series(rows.weights).rank(ascending=False, method="first").astype(int)
    columns: dict[str, Any] = {
        "id": rows.ids,
        "weight": rows.weights,
        "rank": np.asarray(rank),
        "label_quality": rows.quality,
        "keep": rows.keep,
        **({} if rows.wrong is None else {"wrong": rows.wrong}),
        **({} if rows.given is None else {"given_label": rows.given}),
        **({} if rows.predicted is None else {"predicted_label": rows.predicted}),
    }
    table = pa.table(columns)
    write_parquet(table, folder / "weights.parquet")
    flagged = np.flatnonzero(~rows.keep)
    worst = flagged[np.argsort(rows.quality[flagged], kind="stable")][:WORST]
    write_csv(table.take(worst).drop_columns("rank").to_pandas(), folder / "worst.csv")


def read_quality(run: Path, rows: int) -> np.ndarray:
    """The label quality of the training rows, from `weights.parquet`.

    Raises:
        InputError: it cannot be read, or is not of this run.
    """
    quality = read_verdicts(run, ["label_quality"])["label_quality"]
    if len(quality) != rows:
        raise unusable(run, f"it has {len(quality)} rows, and the training table {rows}")
    return np.asarray(quality, np.float64)


def read_verdicts(run: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """What `write_weights` wrote; `columns=None` is all of it.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    path = run / "weights.parquet"
    if path.is_dir():
        raise InputError(f"{path} is a folder, and no file of a run.")
    try:
        table = read_parquet(path, str(path), columns)
    except InputError as error:
        raise unusable(run, str(error)) from error
    for name, column in table.items():
        kind = pd.api.types
        numbers = name in ("weight", "label_quality", "wrong", "rank")
        if numbers and not (
            kind.is_numeric_dtype(column.dtype) and np.isfinite(np.asarray(column, float)).all()
        ):
            raise unusable(run, f"the column {name!r} must hold finite numbers")
        if name == "keep" and not kind.is_bool_dtype(column.dtype):
            raise unusable(run, "the column 'keep' must hold true or false")
        if not numbers and len(column) and not kind.is_hashable(column.iloc[0]):
            raise unusable(run, f"the column {name!r} must hold one value per row")
    return table


def unusable(run: Path, why: str) -> InputError:
    """What to say of the `weights.parquet` of a run that is not what it was."""
    return InputError(
        f"{run / 'weights.parquet'} cannot be read ({why[:300]}): it is damaged, or does not belong "
        f"to the other files of {run}. Bring back a copy, or weigh again."
    )


def write_csv(table: pd.DataFrame, path: Path, *, verbatim: bool = False) -> None:
    """For a spreadsheet: no cell is a formula, nor becomes two where others separate by `;`.

    With `verbatim`, for programs: cells are what they are.
    """
    safe = table if verbatim else table.map(for_spreadsheet).rename(columns=for_spreadsheet)
    with whole_file(path) as file:
        safe.to_csv(
            file, index=False, quoting=csv.QUOTE_NONNUMERIC, mode="wb", errors="backslashreplace"
        )


def write_parquet(table: pd.DataFrame | pa.Table, path: Path) -> None:
    """Parquet, the whole file or nothing."""
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    with whole_file(path) as file:
        pyarrow.parquet.write_table(table, file)


def write_model(model: Any, path: Path) -> None:
    """A model as a skops file."""
    import skops.io  # which imports all of scikit-learn

    write_bytes(path, skops.io.dumps(model))


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


def write_scorer(result: WeightsResult, folder: Path) -> bool:
    """`scorer.npz`, if the result can judge new rows; models that are not linear in `scorer.skops`."""
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
    except Exception as error:  # of many kinds: the bytes may say anything
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:200]}): it is damaged, or "
            f"does not belong to the other files of {folder}. Bring back a copy, or weigh again."
        ) from error
    return Scorer(model, scorer, encoding)


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


def write_json(value: dict[str, Any], path: Path) -> None:
    """Indented, in UTF-8; what is no finite number is null."""
    write_text(path, to_json(value) + "\n")
