"""Commands about tables: `bilevel audit`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ._app import NOT_BELIEVABLE, Config, Json, failures, out

MARKS = {"problem": "[red]NO[/red]", "warning": "[yellow]??[/yellow]", "ok": "[green]ok[/green]"}


def audit(
    train: Annotated[Path, typer.Argument(help="Training rows: CSV or Parquet.")],
    label: Annotated[str, typer.Option(help="Name of the label column.")],
    trusted: Annotated[Path, typer.Option(help="Trusted rows, with the same columns.")],
    holdout: Annotated[Path | None, typer.Option(help="Rows to judge the result on.")] = None,
    id: Annotated[str | None, typer.Option(help="Column with the rows' ids.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Column to leave out; may be given several times.")
    ] = None,
    json_: Json = False,
    strict: Annotated[bool, typer.Option(help="Exit with 4 if a problem is found.")] = False,
    config: Config = None,
) -> None:
    """Look for what would make weights, or their proof, worthless: leaks, duplicates, conflicts."""
    with failures():
        from ._files import audit_tables

        found = audit_tables(train, label, trusted, holdout, id, drop or [])
    if json_:
        sys.stdout.write(json.dumps(found.to_dict(), indent=2) + "\n")
    else:
        for finding in found.findings:
            line = Table.grid(padding=(0, 1))
            line.add_row(
                f" {MARKS[finding.severity]}", f"{escape(finding.title)}: {escape(finding.detail)}"
            )
            out.print(line)
    if strict and not found.passed:
        raise typer.Exit(NOT_BELIEVABLE)
