"""What `bilevel weigh` does: the whole job from files to a run folder, all of it or nothing."""

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from ..reweighting._audit.duplicates import shared_rows
from ..reweighting._inputs.columns import vectorise
from ..reweighting._inputs.compact import compact_pipeline
from ..reweighting._inputs.dates import COULD_BE
from ..reweighting._inputs.files import digest, watch
from ..reweighting._inputs.number_texts import LOOK_LIKE
from ..reweighting._inputs.prepare import is_regression
from ..reweighting._learn import is_cross_validated, learn_weights
from ..reweighting._report.evidence import gather_evidence
from ..reweighting._report.page import Report
from ..reweighting._weights.baselines import default_estimator, stack_rows
from ..reweighting._weights.coded_labels import fit_weighted, predictions
from ..reweighting._weights.fits import few_threads
from ..reweighting._weights.new_rows import LabelledRows, NewRowWeights
from ..reweighting._weights.result import WeightsResult
from ._activity import Activity
from ._estimators import inner, make_estimator, takes_gaps_inside, with_columns
from ._judged import Judge, RowMaker, sum_of
from ._large import judge_all
from ._private import check_private, places, private_evidence, without_names
from ._probabilities import probability_files
from ._remote import local_copies
from ._run_files import (
    RowVerdicts,
    check_unchanged,
    read_summary,
    write_model,
    write_summary,
    write_weights,
)
from ._run_folder import RunFolder, State
from ._scorer_files import write_scorer
from ._together import ALONE, Team
from ._weigh_config import WeighConfig
from ._weigh_tables import Tables, check_tables, input_files

FORMAT = "bilevel summary 1"  # see `_report/schema.json`


@dataclasses.dataclass(frozen=True)
class WeighRun:
    """What `weigh` did: the result, the folder it wrote, and the summary it put there."""

    result: WeightsResult
    folder: Path
    summary: dict[str, Any]

    @property
    def files(self) -> list[str]:
        """What was written, the report first."""
        names = sorted(path.name for path in self.folder.iterdir())
        return sorted(names, key=lambda name: name != "report.html")


def weigh(
    config: WeighConfig, *, resume: bool = False, progress: bool = True, team: Team = ALONE
) -> WeighRun:
    """Read the tables, learn weights, fit the final model, write the run folder.

    Everything is written to `<out>.partial` and renamed to `<out>` at the end. Bad input leaves
    nothing behind. An interrupted run leaves its checkpoint there, or the rows of a large table that
    it has judged, and the same call with `resume` goes on from it. The first process of a `team` does
    all of it, but for the judging of a large table, which they share.

    Raises:
        InputError: the data cannot be used.
        RunFolderError: the output folder exists or cannot be written, somebody else writes it, there
            is nothing to resume, or what is there was started with other settings or files.
        RunIsCompleteError: with `resume`, and this very run is complete.
    """
    config.check_names()
    folder = RunFolder.of(config.out)
    state = folder.check(resume=resume)
    check_clock()
    with local_copies(input_files(config), Path(config.out)) as paths:
        return _weigh(config, folder, state, paths, resume, progress, team)


def _weigh(
    config: WeighConfig,
    folder: RunFolder,
    state: State,
    paths: Mapping[str, Path],
    resume: bool,
    progress: bool,
    team: Team,
) -> WeighRun:
    files = files_of(config, paths)
    check_unchanged_files = watch(files)
    if state is State.complete:
        folder.remove_lock()
        folder.check_same_run(config.to_toml(digests_of(files)))
        raise RunIsCompleteError(folder.out)
    if config.private:
        check_private(config, resume)
    tables = check_tables(config, paths)
    if config.private:
        tables = without_names(
            tables, is_regression(config.task, np.asarray(tables.labels["train"]))
        )
    digests = digests_of(files)
    check_unchanged_files()
    toml = config.to_toml(digests)
    if resume and folder.saved_config():
        folder.check_same_run(toml)
    with folder.writing(toml, resume=resume, private=config.private) as partial:
        result, summary = _work(config, tables, partial, progress, team)
        if tables.large is not None and digests_of(files) != digests:  # it was read again and again
            check_unchanged_files()
    return WeighRun(result, folder.out, summary)


class RunIsCompleteError(Exception):
    """There is nothing to resume: the run is complete.

    Attributes:
        folder: the run folder.
        summary: what the run wrote there.
    """

    def __init__(self, folder: Path):
        super().__init__(f"the run in {folder} is complete: there is nothing to do.")
        self.folder = folder
        self.summary = read_summary(folder)
        check_unchanged(folder, *self.summary["files"])


def files_of(config: WeighConfig, paths: Mapping[str, Path]) -> dict[str, Path]:
    """The files that a run reads; the tables are at `paths`."""
    others = ({} if config.images is None else {"images": config.images}) | probability_files(
        config
    )
    return {**paths, **{name: Path(path) for name, path in others.items()}}


def digests_of(files: Mapping[str, Path]) -> dict[str, str]:
    """Their sha256 sums."""
    return {name: digest(path) for name, path in files.items()}


def check_clock() -> None:
    """Refuse to begin on a machine whose clock the files of models cannot hold.

    Raises:
        OSError: it stands before 1980, or after 2107.
    """
    now = time.localtime(time.time())
    if not 1980 <= now.tm_year <= 2107:
        raise OSError(
            f"the clock of this machine stands at {time.strftime('%Y-%m-%d', now)}, and the files of "
            "models cannot hold a time before 1980, or after 2107. Set the clock, and start again."
        )


class _Ready(NamedTuple):
    """The tables as models take them, by their names.

    Attributes:
        encoder: fitted on the training rows; the saved model begins with it.
        tidied: data frames, whose columns are read alike.
        given: rows as the label models take them.
        own: rows as the final model takes them.
        labels: of each table.
        estimator: the user's own; None is the default.
        final: what is fitted in the end.
        regression: whether the labels are numbers to predict.
        size: how many numbers the training rows are.
    """

    encoder: Pipeline
    tidied: dict[str, pd.DataFrame]
    given: Mapping[str, Any]
    own: Mapping[str, Any]
    labels: dict[str, np.ndarray]
    estimator: Any
    final: Any
    regression: bool
    size: int

    @classmethod
    def of(cls, config: WeighConfig, tables: Tables) -> "_Ready":
        """The default takes tables as they are, like `ReweightedClassifier`.

        Of the user's own estimators trees get the tables, with gaps and categories, and others their
        numbers.
        """
        encoder, tidied, features = vectorise(tables.features, tables.present)
        labels = {name: np.asarray(y) for name, y in tables.labels.items()}
        large = tables.large
        regression = large.regression if large else is_regression(config.task, labels["train"])
        estimator = _own_estimator(config, regression)
        final = default_estimator(regression) if estimator is None else estimator
        own: Mapping[str, Any] = features
        if takes_gaps_inside(final):
            encoder = compact_pipeline(tidied["train"], inner(final)).fit(tidied["train"])
            own, estimator = tidied, with_columns(encoder, final)
            final = estimator
        given = tidied if estimator is None else own
        size = features["train"].size
        return cls(encoder, tidied, given, own, labels, estimator, final, regression, size)

    def pair(self, name: str) -> tuple[Any, np.ndarray]:
        """(rows as the final model takes them, labels) of a table."""
        return self.own[name], self.labels[name]

    def labelled(self, name: str, groups: np.ndarray | None = None) -> LabelledRows:
        """The rows of a table as all models take them."""
        return LabelledRows(self.given[name], self.own[name], self.labels[name], groups)

    @property
    def holdout(self) -> tuple[Any, np.ndarray] | None:
        """(rows, labels) as in `pair`, if there is a hold-out."""
        return self.pair("holdout") if "holdout" in self.own else None


def _work(
    config: WeighConfig, tables: Tables, folder: Path, progress: bool, team: Team
) -> tuple[WeightsResult, dict[str, Any]]:
    start = time.monotonic()
    ready = _Ready.of(config, tables)
    train, trusted = ready.pair("train"), ready.pair("trusted")
    groups = tables.beside["groups"].get("train")
    sources = None if groups is None else np.asarray(groups)

    def learn(y_trusted: np.ndarray, **options: Any) -> WeightsResult:
        with warnings.catch_warnings():
            for said in (LOOK_LIKE, COULD_BE):  # by `check_tables`
                warnings.filterwarnings("ignore", said)
            return learn_weights(
                ready.given["train"],
                ready.labels["train"],
                ready.given["trusted"],
                y_trusted,
                task="regression" if ready.regression else "classification",
                model=config.model,  # pyright: ignore[reportArgumentType]
                method=config.method,
                groups=sources,
                num_steps=config.num_steps,
                l2=config.l2,
                precision=config.precision,
                **({} if ready.given is ready.tidied else {"scaler": None}),
                seed=config.seed,
                scoring=config.metric,
                **tables.columns._asdict(),
                **tables.judged_outside,
                **options,
            )

    with few_threads(ready.size), Activity("learning weights", progress) as activity:
        options: dict[str, Any] = {"estimator": ready.estimator, "folder": folder}
        if ready.holdout is not None:
            options["holdout"] = ready.given["holdout"], ready.labels["holdout"]
        if not is_cross_validated(config.method, config.model):
            from ._steps import Steps  # which imports JAX

            options["callbacks"] = [Steps(activity)]
        result = learn(trusted[1], **options)
        activity.say("fitting the final model")
        fitted = fit_weighted(
            ready.final,
            stack_rows(train[0], trusted[0]),
            stack_rows(train[1], trusted[1]),
            result.sample_weight(len(trusted[1])),
        )
        last = fitted[-1] if ready.own is ready.tidied else fitted
        ids = np.asarray(ready.tidied["train"].index)
        verdicts = RowVerdicts.of(result, ids, train[1], predictions(fitted, train[0]))
        if tables.large is not None:
            judge = _judge_of(config, tables, ready, result, fitted, sources, sum_of(verdicts))
            verdicts = judge_all(tables.large, judge, verdicts, folder, activity, team)
        if config.private:
            ids = places(len(ids))  # of all rows: a private run is never one of a sample
            verdicts = verdicts._replace(ids=ids, given=None, predicted=None)
        else:
            model = Pipeline([*ready.encoder.steps, (_name(last), last)])
            write_model(model, folder / "model.skops")
            write_scorer(result, folder, tables.readings)
        write_weights(verdicts, folder)
        summary = _summary(config, result, ready)
        named = [str(i) for i in ids]
        summary["noise"] = None if result.noise is None else result.noise.to_dict(named)
        summary["reading"] = list(tables.notes)
        if tables.large is not None:
            of_all = {"train_rows": len(verdicts.weights), "keep": int(verdicts.keep.sum())}
            summary |= {**of_all, "sampled_rows": len(ids)}
        if config.report:
            activity.say("gathering the evidence for the report")
            control = learn if config.control else None
            evidence = _evidence(config, tables, ready, result, ids, control, start)
            if not config.private:
                evidence["provenance"]["estimator"] = str(inner(last))
            report = Report(evidence)
            for name in ("report.json", "report.html"):
                report.save(folder / name)
        return result, write_summary(summary, folder)


def _judge_of(
    config: WeighConfig,
    tables: Tables,
    ready: _Ready,
    result: WeightsResult,
    fitted: Any,
    sources: np.ndarray | None,
    learned: str,
) -> Judge:
    """What judges the rows of a large table that are not in the sample."""
    columns = list(tables.features["train"].columns)
    numbers = (rows is not ready.tidied for rows in (ready.own, ready.given))
    as_rows = RowMaker(columns, ready.encoder, *numbers)
    sample, trusted = ready.labelled("train", sources), ready.labelled("trusted")
    weigh_rows = NewRowWeights(result, ready.final, sample, trusted)
    return Judge(config, result.encoding, weigh_rows, as_rows, fitted, learned)


def _evidence(
    config: WeighConfig,
    tables: Tables,
    ready: _Ready,
    result: WeightsResult,
    ids: np.ndarray,
    control: Callable[[np.ndarray], WeightsResult] | None,
    start: float,
) -> dict[str, Any]:
    """What the report shows; of a private run without what it must not."""
    evidence = gather_evidence(
        ready.final,
        *ready.pair("train"),
        *ready.pair("trusted"),
        result,
        holdout=ready.holdout,
        ids=ids,
        groups=tables.beside["groups"].get("train"),
        images=tables.images,
        table=None if config.private else tables.described,
        show=[c for c in config.show if c not in (config.label, config.id)],
        units=tables.units,
        trusted_ids=None if config.private else tables.features["trusted"].index,
        minutes_per_check=config.minutes_per_check,
        truth=tables.beside["truth"].get("train"),
        holdout_groups=tables.beside["groups"].get("holdout"),
        shared=shared_rows(ready.tidied),
        control=control,
        seed=config.seed,
        seconds=time.monotonic() - start,
        peak_memory=peak_memory(),
        table_rows=None if tables.large is None else tables.large.table.rows,
    )
    return private_evidence(evidence) if config.private else evidence


def peak_memory() -> float:
    """Of this process so far, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _own_estimator(config: WeighConfig, regression: bool) -> Any:
    """The one that was asked for; None is the default."""
    if config.estimator is None:
        return None
    return make_estimator(config.estimator, regression, config.seed, allow_code=config.allow_code)


def _name(last: Any) -> str:
    """Of the last step of the saved model: that of the model inside."""
    last = last[-1] if isinstance(last, Pipeline) else inner(last)
    return type(last).__name__.lower()


def _summary(config: WeighConfig, result: WeightsResult, ready: _Ready) -> dict[str, Any]:
    regression = ready.regression
    return {
        "format": FORMAT,
        "task": "regression" if regression else "classification",
        **{f"{name}_rows": len(y) for name, y in ready.labels.items()},
        "seed": config.seed,
        "estimator": None
        if config.private
        else config.estimator or ("ridge" if regression else "logistic"),
        "winner": result.winner,
        "trusted_weight": result.trusted_weight,
        "scale": result.scale,
        "keep": int(result.keep.sum()),
        "noise": None,  # needs the ids
        "effective_sample_size": result.effective_sample_size,
        "entropy": result.entropy,
        "believable": result.believable,
        "checks": [check._asdict() for check in result.checks],
        "weighting_model": result.scores.to_dict(orient="index"),
        "candidates": None
        if result.candidates is None
        else result.candidates.to_dict(orient="index"),
        "group_weights": None
        if result.group_weights is None
        else {str(group): weight for group, weight in result.group_weights.items()},
        "baselines": None if result.baselines is None else result.baselines.to_dict(orient="index"),
        "private": config.private,
        "score": config.metric or ("R2" if regression else "accuracy"),
        "history": result.history.to_dict(orient="list"),
        "stats": result.stats,
    }
