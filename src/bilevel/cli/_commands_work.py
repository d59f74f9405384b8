"""What the commands beside `weigh` do: from files to tables."""

from pathlib import Path

import pandas as pd

from ..reweighting._audit.suggest import suggest
from ..reweighting._inputs.checks import InputError
from ..reweighting._inputs.columns import tidy, vectorise
from ..reweighting._inputs.files import digest, read_table, read_tables, split_label, watch
from ..reweighting._inputs.saved import load_model
from ..reweighting._report.page import ENDINGS, Report
from ._app import note, owner_only
from ._estimators import SAVED_TYPES
from ._probabilities import columns_of, read_probabilities, take_columns
from ._run_files import (
    check_unchanged,
    read_config,
    read_quality,
    read_settings,
    write_csv,
    write_parquet,
)
from ._scorer_files import read_scorer


def score_table(
    run: Path,
    table: Path,
    label: str | None,
    identifier: str | None,
    pred_probs: str | None = None,
) -> pd.DataFrame:
    """What a run says of the labels in a table of rows it has not seen, see `Scorer`."""
    config = read_config(run)
    check_unchanged(run, "config.toml", "model.skops", "scorer.npz", "scorer.skops")
    scorer = read_scorer(run)
    usual = config.get("id")
    ids = [c for c in (identifier, usual) if c]
    target: str = label or config["label"]
    readings = {**scorer.readings, **scorer.reading_of_labels(config["label"], target)}
    found = read_table(table, "new", label=target, ids=ids, readings=readings)
    for said in found.notes:
        note(f"{said}.")
    read = found.frame
    identifier = identifier or (usual if usual in read.columns else None)
    features, labels = split_label(read, target, identifier, "new")
    features = features.drop(columns=config.get("drop", []), errors="ignore")
    probabilities = None
    used = config.get("pred_probs")
    given = pred_probs or (used if columns_of(used) is not None else None)
    columns = columns_of(given)
    if columns is not None:
        features, probabilities = take_columns(features, columns, "new")
    elif given is not None:
        usual = features.index.name
        name = None if usual is None else str(usual)
        probabilities = read_probabilities(Path(given), features.index, name, "--pred-probs")
    for said in scorer.strange(features):
        note(f"{said}.")
    try:
        return scorer(features, labels, probabilities)
    except InputError:
        raise
    except Exception as error:  # models of a folder that somebody else has made may do anything
        raise InputError(
            f"the models in {run} cannot judge these rows ({type(error).__name__}: {error}): they do "
            "not fit each other. Bring back a copy of the folder, or weigh again."
        ) from error


def suggest_rows(run: Path, budget: int) -> pd.DataFrame:
    """The training rows of a run whose verification would help most, see `suggest`.

    Raises:
        InputError: the tables of the run have changed since.
    """
    config = read_config(run)
    check_unchanged(run, "config.toml", "model.skops", "weights.parquet")
    tables, labels = {}, {}
    model = load_model(run / "model.skops", SAVED_TYPES)
    paths = {name: Path(config[name]) for name in ("train", "trusted")}
    check_unchanged_files = watch(paths)
    for name, path in paths.items():
        if not (path.is_file() or path.is_dir()):
            raise InputError(f"the {name} file {path} that this run was made from is not there.")
        if digest(path) != config["sha256"][name]:
            raise InputError(
                f"the {name} file {path} has changed since this run was made from it; weigh again."
            )
    ids = [c for c in (config.get("id"), config.get("groups")) if c]
    for name, read in read_tables(paths, label=config["label"], ids=ids).items():
        table, labels[name] = split_label(read.frame, config["label"], config.get("id"), name)
        tables[name] = tidy(table, like=model)
    check_unchanged_files()
    _, tidied, matrices = vectorise(tables)
    features = {name: pd.DataFrame(x, tidied[name].index) for name, x in matrices.items()}
    quality = read_quality(run, len(features["train"]))
    return suggest(
        quality,
        features["train"],
        labels["train"],
        features["trusted"],
        labels["trusted"],
        budget=budget,
        task=config["task"],
        seed=config["seed"],
    )


def write_report(run: Path, output: Path | None) -> Path:
    """The report of a run, from its `report.json`.

    Raises:
        InputError: it is no run folder, has no report, or the output ends in neither .html nor .json.
    """
    private = read_settings(run).get("private") is True
    path = run / "report.json"
    if not path.is_file():
        raise InputError(f"{run} has no report.json: it was weighed with --no-report.")
    check_unchanged(run, "config.toml", "report.json")
    target = output or run / "report.html"
    if target.suffix.lower() not in ENDINGS:
        raise InputError(f"a report is saved as .html or .json, got {target.name!r}.")
    try:
        with owner_only(private):
            return Report.load(path).save(target)
    except OSError:
        raise
    except Exception as error:  # what somebody else's file holds may be of any kind
        raise InputError(
            f"{path} is not a report of this version ({type(error).__name__}: {error}). Weigh again."
        ) from error


def write_table(table: pd.DataFrame, path: Path, *, verbatim: bool) -> None:
    """CSV (formulas made harmless, but for `verbatim`) or Parquet, by the ending.

    Raises:
        InputError: another ending.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        write_parquet(table, path)
    elif path.suffix.lower() == ".csv":
        write_csv(table, path, verbatim=verbatim)
    else:
        raise InputError(f"--out {path} must end in .csv or .parquet.")
