"""`bilevel weigh`: from tables to a run folder."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ._app import (
    HIDDEN,
    NOT_BELIEVABLE,
    Config,
    Drop,
    Id,
    Json,
    Out,
    Private,
    Seed,
    failures,
    note,
    say,
    say_json,
    shown,
)
from ._app import out as console
from ._signals import command_line
from ._together import Places, are_several, start_together, team_of

if TYPE_CHECKING:
    import pandas as pd

    from ..reweighting import WeightsResult


class Task(StrEnum):
    """What the label is."""

    auto = "auto"
    classification = "classification"
    regression = "regression"


class Method(StrEnum):
    """How the weights are learned."""

    auto = "auto"
    near_exact = "near-exact"
    soba = "soba"


class ModelName(StrEnum):
    """The differentiable model that the weights are learned with."""

    linear = "linear"
    mlp = "mlp"


def weigh(
    train: Annotated[
        str,
        typer.Argument(
            metavar="TRAIN",
            help="Training rows: CSV or Parquet, a path or a URL (read by fsspec), as the others.",
        ),
    ],
    label: Annotated[list[str], typer.Option(help="Name of the label column.")],
    trusted: Annotated[str, typer.Option(help="Trusted rows, with the same columns.")],
    out: Out,
    holdout: Annotated[
        str | None, typer.Option(help="Rows to judge the result on, used for nothing else.")
    ] = None,
    id: Id = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Column that says which source a row is from; no feature."),
    ] = None,
    drop: Drop = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Pictures of the training rows in their order, .npy, for the report; no features."
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="The model that the weights are for, which also judges labels: logistic, ridge, "
            "trees, random-forest, lightgbm, xgboost, catboost, or module:object."
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Let --estimator module:object run that module's code."),
    ] = False,
    pred_probs: Annotated[
        str | None,
        typer.Option(
            help="Out-of-fold class probabilities of your own model: a file (.npy, .parquet, .csv), "
            "or columns of the tables, separated by commas."
        ),
    ] = None,
    pred_probs_trusted: Annotated[
        Path | None, typer.Option(help="The same of the trusted rows, if --pred-probs is a file.")
    ] = None,
    given_label: Annotated[
        str | None,
        typer.Option(
            help="Column of the trusted rows with the label before it was verified, or empty."
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="What the label is.")] = Task.auto,
    method: Annotated[Method, typer.Option(help="How weights are learned.")] = Method.auto,
    model: Annotated[ModelName, typer.Option(help="The weighting model.")] = ModelName.linear,
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="Outer steps; the default depends on the method.")
    ] = None,
    l2: Annotated[float, typer.Option(min=0.0, help="l2 penalty of the weighting model.")] = 1e-2,
    precision: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of wrong labels wanted among the flagged rows, such as 0.9; by default the "
            "list with the best expected F1.",
        ),
    ] = None,
    sample_weight: Annotated[
        str | None, typer.Option(help="Column that says how much a row counts; no feature.")
    ] = None,
    entity: Annotated[
        str | None,
        typer.Option(
            help="Column that says which person, device or document a row is of: rows of one judge "
            "nothing about each other; no feature."
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Column of times: trusted rows are judged by earlier rows; no feature."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Scorer of scikit-learn to choose and judge by, such as average_precision; the last "
            "class in sorted order is the positive one."
        ),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            help="Memory to stay below, such as 4GB. Of a training table that needs more, a random "
            "sample is learned from, and the other rows are judged by parts."
        ),
    ] = "4GB",
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            help="Processes on this machine that share the fits of models, and the judging of a "
            "Parquet table beyond --memory.",
        ),
    ] = 1,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the first of several processes, each started with this command; `srun` "
            "and Open MPI need none of these three."
        ),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes there are.")
    ] = None,
    process_id: Annotated[
        int | None, typer.Option(min=0, help="Which of them this is; 0 is the first.")
    ] = None,
    overlap: Annotated[str | None, typer.Option(hidden=True)] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns, separated by commas, to print beside each suspect row in the report."
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            help="Column of the training file with the true labels, if you know them: the report then "
            "says how many of the flagged labels are wrong; used for nothing else."
        ),
    ] = None,
    minutes_per_check: Annotated[
        float | None,
        typer.Option(min=0.01, help="Minutes that a person takes to check a row, for the report."),
    ] = None,
    private: Private = False,
    seed: Seed = 0,
    json_: Json = False,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
    strict: Annotated[
        bool, typer.Option(help="Exit with 4 if the run's own checks say not to believe it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the input, estimate time and memory, and stop.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write the report, or leave it out.")] = True,
    control: Annotated[
        bool,
        typer.Option(
            help="For the report: learn again from shuffled trusted labels, as a control."
        ),
    ] = False,
    config: Config = None,
) -> None:
    """Learn one weight per training row from a table and a few trusted rows.

    Writes weights.parquet, worst.csv, report.html and more to OUT.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the data cannot be used;

    4 done, but not to be believed (with --strict); 75 another process of the run was lost; 129,

    130, 143 stopped by a signal (go on by --resume).
    """
    if len(label) > 1:
        raise typer.BadParameter(
            f"takes one label column, got {len(label)}: for rows with several labels there is "
            "`bilevel multilabel`, in Python `bilevel.reweighting.learn_multilabel_weights`.",
            param_hint="--label",
        )
    learned = method is Method.auto and model is ModelName.linear
    for value, option in [
        (groups, "--groups"),
        (pred_probs, "--pred-probs"),
        (given_label, "--given-label"),
        (precision, "--precision"),
        (sample_weight, "--sample-weight"),
        (entity, "--entity"),
        (time, "--time"),
    ]:
        if value is not None and not learned:
            raise typer.BadParameter("needs --method auto and --model linear.", param_hint=option)
    if num_steps is not None and learned:
        raise typer.BadParameter(
            "--method auto chooses where to stop; leave it out, or choose --method near-exact.",
            param_hint="--num-steps",
        )

    if overlap is not None:
        note(
            "--overlap has no effect and goes in version 0.3: rows that coincide are no error, and "
            "judge nothing about each other."
        )
    for number, option in [(l2, "--l2"), (minutes_per_check, "--minutes-per-check")]:
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter("must be a finite number.", param_hint=option)

    def interrupted() -> str:
        from ._run_folder import RunFolder, State

        if private:
            return "interrupted; nothing is left"
        if RunFolder.of(out).state() is State.resumable:
            hint = "the same command with --resume goes on where it stopped"
            return f"interrupted; {hint}:\n{command_line('--resume')}"
        return f"interrupted; nothing is left, the same command starts again:\n{command_line()}"

    places = Places(coordinator, num_processes, process_id)
    _check_places(places, learned)
    found = None if dry_run else start_together(places, interrupted)
    # First of all: skops, which saves the model, looks for each of SciPy's functions in all modules
    # that were imported before SciPy's.
    import scipy.special  # noqa: F401

    from ._large import parse_memory
    from ._remote import as_given, is_url
    from ._run_folder import RunFolder
    from ._shared import shared
    from ._weigh_config import WeighConfig
    from ._weigh_cost import estimate
    from ._weigh_work import RunIsCompleteError
    from ._weigh_work import weigh as run

    try:
        parse_memory(memory)
    except ValueError as error:
        raise typer.BadParameter(
            HIDDEN if private else str(error), param_hint="--memory"
        ) from error
    if is_url(str(out)):
        given = "what was given" if private else repr(str(out))
        raise typer.BadParameter(
            f"{given} is a URL, and a run folder is written whole or not at all by giving it its name "
            "at the end, which other storages cannot do. Write it on this machine, and copy it.",
            param_hint="--out",
        )
    settings = WeighConfig(
        train=as_given(train),
        label=label[0],
        trusted=as_given(trusted),
        out=str(out),
        holdout=None if holdout is None else as_given(holdout),
        id=id,
        groups=groups,
        drop=tuple(drop or ()),
        images=None if images is None else str(images),
        pred_probs=pred_probs,
        pred_probs_trusted=None if pred_probs_trusted is None else str(pred_probs_trusted),
        given_label=given_label,
        estimator=estimator,
        allow_code=allow_code,
        task=task.value,
        method=method.value,
        model=model.value,
        num_steps=num_steps,
        l2=l2,
        precision=precision,
        sample_weight=sample_weight,
        entity=entity,
        time=time,
        metric=metric,
        memory=memory,
        report=report,
        show=tuple(x.strip() for x in ",".join(show or ()).split(",") if x.strip()),
        truth=truth,
        minutes_per_check=minutes_per_check,
        control=control,
        private=private,
        seed=seed,
    )
    if dry_run:
        with failures(private=private):
            expected = estimate(settings)
        if json_:
            say_json(expected._asdict())
        else:
            say(str(expected))
        return

    with failures(interrupted, private=private):
        try:
            with team_of(found, RunFolder.of(out).partial) as team, shared(processes):
                if team.index > 0:
                    team.work()
                    return
                done = run(settings, resume=resume, team=team)
        except RunIsCompleteError as complete:
            note(str(complete))
            if json_:
                say_json({**complete.summary, "folder": str(complete.folder)})
            if strict and not complete.summary.get("believable"):
                raise typer.Exit(NOT_BELIEVABLE) from None
            return
    if json_:
        say_json({**done.summary, "folder": str(done.folder)})
    else:
        for line in done.summary["reading"]:
            say(f"{line}.")
        _show(done.result, "R2" if done.summary["task"] == "regression" else "accuracy")
        say(f"written to {done.folder}: {' '.join(done.files)}")
    if strict and not done.result.believable:
        raise typer.Exit(NOT_BELIEVABLE)


def _check_places(places: Places, learned: bool) -> None:
    """Refuse what does not go together."""
    _, count, index = places
    if places.coordinator is None and (count, index) != (None, None):
        raise typer.BadParameter("goes with --coordinator.", param_hint="--num-processes")
    if count is not None and index is not None and index >= count:
        raise typer.BadParameter(
            f"must be below --num-processes {count}, got {index}.", param_hint="--process-id"
        )
    if are_several(places) and not learned:
        raise typer.BadParameter(
            "several processes need --method auto and --model linear.", param_hint="--coordinator"
        )


def _show(result: "WeightsResult", score: str) -> None:
    """The result as a person wants to see it; without --metric the hold-out has this score."""
    n = len(result.weights)
    console.print()
    if result.candidates is not None:
        console.print(shown(result.advice), style="bold")
    console.print(
        f"{n} rows weighed: {int(result.keep.sum())} to keep, {int((~result.keep).sum())} to look "
        f"at. Effective sample size {result.effective_sample_size:.0f}. "
        f"A trusted row weighs {result.trusted_weight:.2f}.\n"
    )
    if result.baselines is not None:
        metric = score if result.metric is None else result.metric.name
        console.print(_baseline_table(result.baselines, metric))
    for check in result.checks:
        mark = "[green]ok[/green]" if check.passed else "[red]NO[/red]"
        line = Table.grid(padding=(0, 1))
        line.add_row(f" {mark}", f"{check.name}: {shown(check.detail)}")
        console.print(line)
    if result.baselines is None:
        console.print(
            " --  whether weighting paid is not known: give rows to judge it on (--holdout)"
        )


def _baseline_table(baselines: "pd.DataFrame", metric: str) -> Table:
    table = Table(title=f"Score on the hold-out ({metric})", title_justify="left")
    for column, justify in [("fitted on", "left"), ("effective rows", "right"), ("score", "right")]:
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column("reweighted is better by", justify="right")
    for name, row in baselines.iterrows():
        ours = name == "reweighted"
        gap = "" if ours else f"{row['difference']:+.4f} ± {row['standard_error']:.4f}"
        table.add_row(
            shown(name),
            f"{row['rows']:.0f}",
            f"{row['score']:.4f}",
            gap,
            style="bold" if ours else "",
        )
    return table
