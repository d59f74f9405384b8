"""`weigh`: the whole job from files to a run folder, all of it or nothing."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

from .._callback import ProgressBar
from ._baselines import fit_weighted, stack_rows
from ._data import InputError, check_labels, check_overlap, check_same_columns, named
from ._result import WeightsResult
from ._table import check_values, read_table, split_label, table_pipeline, tidy
from ._weights import is_regression, learn_weights


class RunFolderError(ValueError):
    """The output folder cannot be used; nothing was written."""


@dataclasses.dataclass(frozen=True)
class WeighConfig:
    """What `bilevel weigh` was asked to do; written to `config.toml`."""

    train: str
    label: str
    trusted: str
    out: str
    holdout: str | None = None
    id: str | None = None
    drop: tuple[str, ...] = ()
    task: str = "auto"
    method: str = "near-exact"
    model: str = "linear"
    num_steps: int | None = None
    l2: float = 1e-2
    overlap: str = "error"
    seed: int = 0

    def to_toml(self, digests: dict[str, str]) -> str:
        """The settings and the inputs' sha256 sums as TOML (whose scalars are written as JSON's)."""
        settings = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        lines = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()
        ]
        lines += ["", "[sha256]", *(f"{k} = {json.dumps(v)}" for k, v in digests.items())]
        return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class WeighRun:
    """What `weigh` did: the result, the folder it wrote, and the summary it put there."""

    result: WeightsResult
    folder: Path
    summary: dict[str, Any]


def weigh(config: WeighConfig, *, resume: bool = False, progress: bool = True) -> WeighRun:
    """Read the tables, learn weights, fit the final model, write the run folder.

    Everything is written to `<out>.partial` and renamed to `<out>` at the end. Bad input leaves
    nothing behind. An interrupted run leaves its checkpoint there, and the same call with `resume`
    goes on from it.

    Raises:
        InputError: the data cannot be used.
        RunFolderError: the output folder exists or cannot be written, or there is nothing to
            resume, or what is there was started with other settings or files.
    """
    out = Path(config.out).resolve()
    partial = out.with_name(out.name + ".partial")
    _check_folder(out, partial, resume)
    tables = _read(config)
    digests = {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for name, path in _inputs(config).items()
    }
    toml = config.to_toml(digests)
    if resume:
        _check_same_run(partial / "config.toml", toml)
    new_parents = [path for path in partial.parents if not path.exists()]  # innermost first
    if not resume:
        _create(partial, new_parents, toml)
    try:
        result, summary = _work(config, tables, partial, progress)
    except BaseException as error:
        # Bad input leaves nothing. After anything else a checkpoint stays, for --resume.
        if isinstance(error, InputError) or not (partial / "checkpoint.eqx").exists():
            _remove(partial, new_parents)
        raise
    for name in ("checkpoint.eqx", "history.jsonl", "fingerprint"):
        (partial / name).unlink(missing_ok=True)
    partial.rename(out)
    return WeighRun(result, out, summary)


def _create(partial: Path, new_parents: list[Path], toml: str) -> None:
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
        _remove(partial, new_parents)
        raise RunFolderError(
            f"the folder {partial} cannot be written ({error.strerror}); choose another --out."
        ) from error


def _remove(partial: Path, new_parents: list[Path]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    for folder in new_parents:
        with contextlib.suppress(OSError):  # it is in use by another run
            folder.rmdir()


def _inputs(config: WeighConfig) -> dict[str, str]:
    paths = {"train": config.train, "trusted": config.trusted, "holdout": config.holdout}
    return {name: path for name, path in paths.items() if path is not None}


def _check_folder(out: Path, partial: Path, resume: bool) -> None:
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
            f"an interrupted run is in {partial}: go on with it by --resume, or remove that folder "
            "to start anew."
        )
    parent = next(p for p in (partial, *partial.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunFolderError(
            f"the folder {partial} cannot be written ({parent} is "
            f"{'read-only' if parent.is_dir() else 'a file'}); choose another --out."
        )


def _check_same_run(path: Path, toml: str) -> None:
    before, now = tomllib.loads(path.read_text(encoding="utf-8")), tomllib.loads(toml)
    different = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if different:
        raise RunFolderError(
            f"the interrupted run in {path.parent} differs from this call in {named(different)}: "
            f"{ {k: before.get(k) for k in different} } then, { {k: now.get(k) for k in different} } "
            "now. Repeat the call that was interrupted, or remove that folder."
        )


def _read(config: WeighConfig) -> dict[str, tuple[pd.DataFrame, pd.Series]]:
    """All checks on the tables that need no computing, and the tables, tidied."""
    raw = {}
    for name, path in _inputs(config).items():
        features, labels = split_label(read_table(Path(path), name), config.label, config.id, name)
        unknown = [c for c in config.drop if c not in features.columns]
        if unknown:
            raise InputError(f"the {name} file has no column {named(unknown)} to --drop.")
        features = features.drop(columns=list(config.drop))
        if features.shape[1] == 0:
            raise InputError(f"--drop leaves no column of the {name} file to learn from.")
        check_values(features, name)
        check_labels(labels, features, f"{name} column {config.label}")
        raw[name] = features, labels
    train = raw["train"][0]
    for name, (features, _) in raw.items():
        check_same_columns(train, features[_common(train, features)], "train", name)
    return {
        name: (tidy(features[list(train.columns)], like=train), labels)
        for name, (features, labels) in raw.items()
    }


def _common(train: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    # Names matter, order does not: tables on disk are addressed by column name.
    ordered = [c for c in train.columns if c in other.columns]
    return ordered + [c for c in other.columns if c not in train.columns]


def _work(
    config: WeighConfig,
    tables: dict[str, tuple[pd.DataFrame, pd.Series]],
    folder: Path,
    progress: bool,
) -> tuple[WeightsResult, dict[str, Any]]:
    (X, y), (X_trusted, y_trusted) = tables["train"], tables["trusted"]
    if config.overlap == "error":
        check_overlap(X, X_trusted, "training", "trusted")
        if "holdout" in tables:
            check_overlap(tables["holdout"][0], X_trusted, "hold-out", "trusted")
            check_overlap(tables["holdout"][0], X, "hold-out", "training")
    regression = is_regression(config.task, y)
    encoder = table_pipeline(X).fit(X)
    features = {name: encoder.transform(table) for name, (table, _) in tables.items()}
    holdout = (
        (features["holdout"], tables["holdout"][1].to_numpy()) if "holdout" in tables else None
    )
    result = learn_weights(
        features["train"],
        y.to_numpy(),
        features["trusted"],
        y_trusted.to_numpy(),
        task="regression" if regression else "classification",
        model=config.model,  # pyright: ignore[reportArgumentType]
        method=config.method,
        num_steps=config.num_steps,
        l2=config.l2,
        scaler=None,
        holdout=holdout,
        estimator=_final_step(regression),
        overlap="keep",
        seed=config.seed,
        callbacks=[ProgressBar()] if progress else [],
        folder=folder,
    )
    weights = np.asarray(result.weights)
    model = make_pipeline(table_pipeline(X), _final_step(regression))
    model = fit_weighted(
        model,
        stack_rows(X, X_trusted),
        stack_rows(y, y_trusted),
        np.concatenate([weights, np.full(len(y_trusted), result.trusted_weight)]),
    )
    rank = pd.Series(weights).rank(ascending=False, method="first").astype(int)
    pd.DataFrame(
        {
            "id": np.asarray(X.index),
            "weight": weights,
            "rank": np.asarray(rank),
            "keep": result.keep,
            "given_label": np.asarray(y),
            "predicted_label": model.predict(X),
        }
    ).to_parquet(folder / "weights.parquet", index=False)
    skops.io.dump(model, folder / "model.skops")
    summary = _summary(config, result, len(y), len(y_trusted), regression)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return result, summary


def _final_step(regression: bool) -> Any:
    return Ridge() if regression else LogisticRegression(max_iter=1000)


def _summary(
    config: WeighConfig, result: WeightsResult, n: int, m: int, regression: bool
) -> dict[str, Any]:
    return {
        "task": "regression" if regression else "classification",
        "rows": n,
        "trusted_rows": m,
        "seed": config.seed,
        "trusted_weight": result.trusted_weight,
        "keep": int(result.keep.sum()),
        "effective_sample_size": result.effective_sample_size,
        "entropy": result.entropy,
        "believable": result.believable,
        "checks": [check._asdict() for check in result.checks],
        "weighting_model": result.scores.to_dict(orient="index"),
        "baselines": None if result.baselines is None else result.baselines.to_dict(orient="index"),
        "score": "R2" if regression else "accuracy",
        "history": result.history.to_dict(orient="list"),
        "stats": result.stats,
    }
