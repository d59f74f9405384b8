"""The command line: `bilevel weigh` and `bilevel demo`. Nothing heavy is imported until one runs."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from .reweighting import WeightsResult

OK, FAILURE, USAGE, BAD_INPUT, NOT_BELIEVABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

app = typer.Typer(
    help="Learn what training data is worth, and whether to believe it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out, _err = Console(), Console(stderr=True)


class Task(StrEnum):
    """What the label is."""

    auto = "auto"
    classification = "classification"
    regression = "regression"


class Method(StrEnum):
    """How the weights are learned."""

    near_exact = "near-exact"
    soba = "soba"


class ModelName(StrEnum):
    """The differentiable model that the weights are learned with."""

    linear = "linear"
    mlp = "mlp"


class Overlap(StrEnum):
    """What to do about training rows that are also trusted rows."""

    error = "error"
    keep = "keep"


@app.command()
def weigh(
    train: Annotated[Path, typer.Argument(help="Training rows: CSV or Parquet.")],
    label: Annotated[str, typer.Option(help="Name of the label column.")],
    trusted: Annotated[Path, typer.Option(help="Trusted rows, with the same columns.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    holdout: Annotated[
        Path | None, typer.Option(help="Rows to judge the result on, used for nothing else.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="Column with the rows' ids (not a feature).")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Column to leave out; may be given several times.")
    ] = None,
    task: Annotated[Task, typer.Option(help="What the label is.")] = Task.auto,
    method: Annotated[Method, typer.Option(help="How weights are learned.")] = Method.near_exact,
    model: Annotated[ModelName, typer.Option(help="The weighting model.")] = ModelName.linear,
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="Outer steps; the default depends on the method.")
    ] = None,
    l2: Annotated[float, typer.Option(min=0.0, help="l2 penalty of the weighting model.")] = 1e-2,
    overlap: Annotated[
        Overlap, typer.Option(help="Training rows that are also trusted: refuse or keep them.")
    ] = Overlap.error,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON on stdout.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
    strict: Annotated[
        bool, typer.Option(help="Exit with 4 if the run's own checks say not to believe it.")
    ] = False,
) -> None:
    """Learn one weight a training row from a table and a few trusted rows.

    Writes weights.parquet, summary.json, model.skops and config.toml to OUT.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the data cannot be used;

    4 done, but not to be believed (with --strict); 130 interrupted (go on with --resume).
    """
    from ._solution import BilevelError
    from .reweighting._data import InputError
    from .reweighting._run import RunFolderError, WeighConfig
    from .reweighting._run import weigh as run

    config = WeighConfig(
        train=str(train),
        label=label,
        trusted=str(trusted),
        out=str(out),
        holdout=None if holdout is None else str(holdout),
        id=id,
        drop=tuple(drop or ()),
        task=task.value,
        method=method.value,
        model=model.value,
        num_steps=num_steps,
        l2=l2,
        overlap=overlap.value,
        seed=seed,
    )
    try:
        done = run(config, resume=resume)
    except RunFolderError as error:
        _fail(str(error), USAGE)
    except KeyboardInterrupt:
        kept = Path(f"{out}.partial").exists()
        hint = (
            "the same command with --resume goes on where it stopped" if kept else "nothing is left"
        )
        _fail(f"interrupted; {hint}", INTERRUPTED)
    except InputError as error:
        _fail(str(error), BAD_INPUT)
    except (BilevelError, OSError) as error:
        _fail(str(error), FAILURE)
    if json_:
        sys.stdout.write(json.dumps({**done.summary, "folder": str(done.folder)}, indent=2) + "\n")
    else:
        _show(done.result)
        _out.print(
            f"written to {done.folder}: weights.parquet summary.json model.skops config.toml",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if strict and not done.result.believable:
        raise typer.Exit(NOT_BELIEVABLE)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Random seed of the splits and the noise.")] = 0,
) -> None:
    """Run the job on real digits that ship with scikit-learn, with labels corrupted on purpose."""
    from rich.progress import track

    from .reweighting._demo import DEMO_TEXT, NUM_SPLITS, run_demo

    _out.print(DEMO_TEXT)
    bar = iter(track(range(NUM_SPLITS), description="splits", console=_err))
    next(bar)
    outcome = run_demo(seed, on_split=lambda done: next(bar, None))
    table = Table(title="Accuracy on the hold-out, mean over the splits", title_justify="left")
    table.add_column("fitted on")
    for column in ("accuracy", "reweighted is better by", "better in"):
        table.add_column(column, justify="right")
    for name, row in outcome.table.iterrows():
        if name == "reweighted":
            table.add_row("reweighted", f"{row['score']:.4f}", "", "", style="bold")
        else:
            table.add_row(
                str(name),
                f"{row['score']:.4f}",
                f"{row['gain']:+.4f} ± {row['standard_error']:.4f}",
                f"{row['wins']:.0f} of {NUM_SPLITS}",
            )
    _out.print(table)
    _out.print(outcome.verdict(), highlight=False)
    _out.print(
        f"The weights say to look at {outcome.flagged / NUM_SPLITS:.0f} rows a split; "
        f"{outcome.found / outcome.wrong:.0%} of the corrupted rows are among them, and "
        f"{outcome.found / outcome.flagged:.0%} of them are corrupted.",
        highlight=False,
    )


def _show(result: "WeightsResult") -> None:
    """The result as a person wants to see it."""
    n = len(result.weights)
    _out.print(
        f"\n{n} rows weighed: {int(result.keep.sum())} to keep, {int((~result.keep).sum())} to look "
        f"at. Effective sample size {result.effective_sample_size:.0f}. "
        f"A trusted row weighs {result.trusted_weight:.2f}.\n"
    )
    if result.baselines is not None:
        _out.print(_baseline_table(result.baselines))
    for check in result.checks:
        mark = "[green]ok[/green]" if check.passed else "[red]NO[/red]"
        _out.print(f" {mark}  {check.name}: {escape(check.detail)}", highlight=False)
    if result.baselines is None:
        _out.print(" --  whether weighting paid is not known: give rows to judge it on (--holdout)")


def _baseline_table(baselines: "pd.DataFrame") -> Table:
    table = Table(title="Score on the hold-out (accuracy, or R2)", title_justify="left")
    for column, justify in [("fitted on", "left"), ("effective rows", "right"), ("score", "right")]:
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column("reweighted is better by", justify="right")
    for name, row in baselines.iterrows():
        ours = name == "reweighted"
        gap = "" if ours else f"{row['difference']:+.4f} ± {row['standard_error']:.4f}"
        table.add_row(
            str(name),
            f"{row['rows']:.0f}",
            f"{row['score']:.4f}",
            gap,
            style="bold" if ours else "",
        )
    return table


def _fail(message: str, code: int) -> NoReturn:
    # Messages quote the user's data, which must not be taken for markup, nor wrapped mid-path.
    _err.print("[red]bilevel:[/red]", escape(message), highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """The entry point of the `bilevel` command."""
    app()
