"""`bilevel audit`: what is wrong with tables, for people and as a gate for programs."""

import sys
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
    Json,
    Private,
    Seed,
    Train,
    failures,
    say,
    shown,
)
from ._app import out as console

if TYPE_CHECKING:
    from ._gate import Judged

MARKS = {"problem": "[red]NO[/red]", "warning": "[yellow]??[/yellow]", "ok": "[green]ok[/green]"}


class Format(StrEnum):
    """In what form findings are given."""

    text = "text"
    json = "json"
    sarif = "sarif"
    junit = "junit"
    github = "github"


def audit(
    train: Train,
    label: Annotated[str, typer.Option(help="Name of the label column.")],
    trusted: Annotated[
        Path | None,
        typer.Option(
            help="Trusted rows, with the same columns. Without them labels that the other rows "
            "contradict are looked for."
        ),
    ] = None,
    holdout: Annotated[Path | None, typer.Option(help="Rows to judge the result on.")] = None,
    id: Annotated[str | None, typer.Option(help="Column with the rows' ids.")] = None,
    entity: Annotated[
        str | None,
        typer.Option(help="Column that says which person, device or document a row is of."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of times, numbers or dates.")] = None,
    drop: Drop = None,
    strict: Annotated[
        bool, typer.Option(help="Exit with 4 if a problem is found that the baseline has not.")
    ] = False,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Exit with 4 if one of these is found, separated by commas: problem, warning, a "
            "family such as leak, or a check such as leak/rows."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="An earlier audit, saved as JSON: what it found already is let pass."),
    ] = None,
    format: Annotated[Format, typer.Option(help="Form of the findings.")] = Format.text,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write the findings to, in the form that --format names."),
    ] = None,
    private: Private = False,
    seed: Seed = 0,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Look for what would make weights, or their proof, worthless: leaks, duplicates, conflicts.

    Exit codes: 0 nothing that it is to fail on; 1 failed; 2 wrong usage; 3 the data cannot be used;

    4 with --strict or --fail-on: something was found.
    """
    with failures(private=private):
        from ._audit_work import audit_tables
        from ._gate import Gate, in_format, parse_fail_on, read_baseline
        from ._run_folder import check_not_read

        check_not_read(out, train, trusted, holdout)
        try:
            names = parse_fail_on(fail_on, strict)
        except ValueError as error:
            said = HIDDEN if private else str(error)
            raise typer.BadParameter(said, param_hint="--fail-on") from error
        gate = Gate(names, None if baseline is None else read_baseline(baseline))
        paths = {"train": train}
        paths |= {} if trusted is None else {"trusted": trusted}
        paths |= {} if holdout is None else {"holdout": holdout}
        found = audit_tables(paths, label, id, drop or [], entity=entity, time=time, seed=seed)
        judged = gate.judge(found.findings, private=private)
        form = Format.json if json_ else format
        if out is not None:
            from .._storage import write_text

            kind = Format.json if form is Format.text else form
            write_text(out, in_format(kind, judged, paths, private=private, at_most=None))
    if form is Format.text:
        _show(judged)
        if out is not None:
            say(f"written to {out}" if not private else "written")
    elif out is None:
        sys.stdout.write(in_format(form, judged, paths, private=private, at_most=100))
    if judged.fails:
        raise typer.Exit(NOT_BELIEVABLE)


def _show(judged: "Judged") -> None:
    for one in judged.lines:
        line = Table.grid(padding=(0, 1))
        known = " (in the baseline)" if one.known else ""
        line.add_row(f" {MARKS[one.severity]}", f"{shown(one.title)}: {shown(one.detail)}{known}")
        console.print(line)
