"""What `bilevel export` and `bilevel collect` do with the tables of a run."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from .._storage import DamagedFileError, read_regular, whole_folder, write_text
from .._text import to_json
from ..reweighting._inputs.checks import InputError, named
from ..reweighting._inputs.csv import as_texts, read_like
from ..reweighting._inputs.files import digest, read_tables, watch
from ._annotation_formats import (
    RowToCheck,
    from_argilla,
    from_label_studio,
    label_studio_config,
    to_argilla,
    to_label_studio,
)
from ._app import RunFolderError
from ._probabilities import is_file
from ._run_files import (
    check_unchanged,
    read_config,
    read_summary,
    read_verdicts,
    unusable,
    write_parquet,
)
from ._weigh_config import WeighConfig

LARGEST = 1 << 28  # bytes of an export
BY_ROW = ("images", "pred_probs", "pred_probs_trusted")  # options that may name files of rows
OTHERS = ("train", "label", "trusted", "out", "given_label")  # that are others in the next round
GIVEN = "given_label"  # the column of the label before it was verified


def _tables(run: Path, config: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The training and the trusted rows of a run, as they are in their files.

    Raises:
        InputError: one of them is not there, or has changed.
    """
    paths = {name: Path(config[name]) for name in ("train", "trusted")}
    check_unchanged_files = watch(paths)
    for name, path in paths.items():
        if not path.exists() or digest(path) != config["sha256"][name]:
            raise InputError(
                f"the {name} file {path} that this run was made from is not there, or has changed; "
                "weigh again."
            )
    ids = [c for c in (config.get("id"), config.get("groups"), config.get(GIVEN)) if c]
    read = read_tables(paths, label=config["label"], ids=ids)
    check_unchanged_files()
    return {name: table.frame for name, table in read.items()}


def _ids(frame: pd.DataFrame, config: dict[str, Any]) -> np.ndarray:
    """What the rows are called, as text."""
    column = config.get("id")
    return _one_each(frame[column] if column else frame.index)  # as in weights.parquet


def _one_each(ids: Any) -> np.ndarray:
    """Ids as texts; those of an index that repeats are row numbers."""
    texts = as_texts(pd.Series(ids))
    return texts.to_numpy() if texts.is_unique else np.arange(len(texts)).astype(str)


def export_rows(run: Path, out: Path, tool: str, count: int, verify_next: bool) -> int:
    """Write the rows to check; how many.

    Raises:
        InputError: no run folder of a classification, or its tables have changed.
    """
    config = read_config(run)
    if out.suffix.lower() != ".json":
        raise InputError(f"--out {out} must end in .json.")
    check_unchanged(run, "config.toml", "weights.parquet")
    weights = read_verdicts(run)
    if config["task"] == "regression" or "given_label" not in weights:
        raise InputError("only labels of a classification can be exported; this run has none.")
    train = _tables(run, config)["train"]
    if lacks := sorted({"id", "label_quality", "keep", "predicted_label"} - set(weights.columns)):
        raise unusable(run, f"it has no column {named(lacks)}")
    if len(weights) != len(train):
        raise unusable(run, f"it has {len(weights)} rows, and the training table {len(train)}")
    texts = _one_each(weights["id"])
    if verify_next:
        verify = _dict(_dict(read_summary(run).get("noise")).get("verify"))
        if not isinstance(verify.get("rows"), list):
            raise InputError("this run names no rows to verify next; leave out --verify-next.")
        places = {text: i for i, text in enumerate(texts.tolist())}
        chosen = [places[str(i)] for i in verify["rows"] if str(i) in places][:count]
    else:
        flagged = np.flatnonzero(~weights["keep"].to_numpy(bool))
        quality = weights["label_quality"].to_numpy()[flagged]
        chosen = flagged[np.argsort(quality, kind="stable")][:count].tolist()
    hidden = {config["label"], config.get("id")}
    shown = [c for c in train.columns if c not in hidden]
    wrong = weights["wrong"].to_numpy() if "wrong" in weights else None
    given, said = (
        as_texts(pd.Series(weights[column])).tolist()
        for column in ("given_label", "predicted_label")
    )
    if not all(isinstance(text, str) for text in (*given, *said)):
        raise unusable(run, "it has rows without a label")
    rows = [
        RowToCheck(
            texts[i],
            {str(c): _plain(train[c].iloc[i]) for c in shown},
            given[i],
            said[i],
            None if wrong is None else float(wrong[i] if said[i] != given[i] else 1 - wrong[i]),
        )
        for i in chosen
    ]
    tasks = to_argilla(rows) if tool == "argilla" else to_label_studio(rows)
    write_text(out, to_json(tasks) + "\n")
    if tool != "argilla":
        classes = sorted({*given, *said})
        write_text(out.with_suffix(".xml"), label_studio_config(classes))
    return len(rows)


def _dict(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def collect_rows(run: Path, decisions: Path, out: Path, tool: str) -> dict[str, Any]:
    """Write the tables of the next round; what is in them.

    Raises:
        InputError: an export that cannot be read, or of rows or classes that the run does not have.
        RunFolderError: the folder exists.
    """
    config = read_config(run)
    check_unchanged(run, "config.toml")
    if out.exists():
        raise RunFolderError(f"--out {out} exists; nothing is overwritten.")
    try:
        content = json.loads(read_regular(decisions, LARGEST))
    except (OSError, DamagedFileError, ValueError, RecursionError) as error:
        raise InputError(f"{decisions} cannot be read as JSON: {error}.") from error
    answers = from_argilla(content) if tool == "argilla" else from_label_studio(content)
    decided = answers.decided
    if not decided:
        differ = f" People differ about the rows {named(answers.disputed)}."
        raise InputError(
            f"{decisions} holds no decision; finish some rows first.{differ * bool(answers.disputed)}"
        )
    tables = _tables(run, config)
    train, trusted, label = tables["train"], tables["trusted"], config["label"]
    ids = _ids(train, config)
    place = {text: i for i, text in enumerate(ids.tolist())}
    if unknown := [i for i in decided if i not in place]:
        raise InputError(f"{decisions} decides rows that the training rows lack: {named(unknown)}.")
    classes = {x for t in (train, trusted) for x in as_texts(pd.Series(t[label])).tolist()}
    if new := sorted(set(decided.values()) - classes):
        raise InputError(f"{decisions} has classes that no table has: {named(new)}.")
    rows = [place[i] for i in decided]
    known = np.asarray(pd.unique(pd.Series(train[label]).dropna()))
    before = config.get(GIVEN) or _free_name(train.columns)
    if (weight := config.get("sample_weight")) and weight not in trusted:
        trusted = trusted.assign(**{weight: 1.0})
    # What only the training rows have, such as their groups, says nothing of trusted ones.
    checked = train.iloc[rows][[c for c in train.columns if c in trusted and c != before]].copy()
    checked[before] = pd.Series(checked[label]).convert_dtypes()  # whole numbers beside gaps
    checked[label] = read_like(np.array(list(decided.values()), object), known, label)
    both = pd.concat([trusted, checked], ignore_index=True)
    rest = train.iloc[np.setdiff1d(np.arange(len(train)), rows)]
    with whole_folder(out) as folder:
        write_parquet(both, folder / "trusted.parquet")
        keep = None if config.get("id") is None else False  # the names that the rows have
        write_parquet(pa.Table.from_pandas(rest, preserve_index=keep), folder / "train.parquet")
    given = as_texts(pd.Series(checked[before])).tolist()
    changed = sum(a != b for a, b in zip(given, decided.values(), strict=True))
    command = ["bilevel", "weigh", str(out / "train.parquet"), "--label", label]
    command += ["--trusted", str(out / "trusted.parquet"), "--given-label", before]
    files = [name for name in BY_ROW if config.get(name) and is_by_row(name, config[name])]
    command += _same_options(config, {*OTHERS, *files})
    return {
        "decided": len(decided),
        "changed": changed,
        "disputed": list(answers.disputed),
        "open": len(answers.open),
        "trusted": len(both),
        "train": len(rest),
        "left_out": [f"--{name.replace('_', '-')} {config[name]}" for name in files],
        "command": shlex.join([*command, "--out", "NEXT_RUN"]),
    }


def _free_name(columns: pd.Index) -> str:
    """A name for the column of labels before they were verified that no feature has."""
    name, k = GIVEN, 1
    while name in columns:
        k += 1
        name = f"{GIVEN}_{k}"
    return name


def is_by_row(option: str, value: Any) -> bool:
    """Whether it is a file with a line per row, whose rows are others in the next round."""
    return option == "images" or is_file(str(value))


def _same_options(config: dict[str, Any], without: set[str]) -> list[str]:
    """Those of the run that are no defaults, as they are written on the command line."""
    options: list[str] = []
    for field in dataclasses.fields(WeighConfig):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        value = config.get(field.name, default)
        if field.name in without or value is None or value == default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for one in value if isinstance(value, list) else [value]:
                options += [f"--{flag}", str(one)]
    return options
