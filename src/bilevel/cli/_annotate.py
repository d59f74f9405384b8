"""`bilevel export` and `bilevel collect`: rows to annotation tools, and their decisions back."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .._text import named
from ._app import failures, say
from ._commands import Folder


class Tool(StrEnum):
    """An annotation tool."""

    label_studio = "label-studio"
    argilla = "argilla"


ToolOption = Annotated[Tool, typer.Option("--format", help="The annotation tool.")]


def export(
    run: Folder,
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    format: ToolOption = Tool.label_studio,
    rows: Annotated[int, typer.Option(min=1, help="How many rows, the worst first.")] = 100,
    verify_next: Annotated[
        bool,
        typer.Option(
            "--verify-next", help="The rows whose check tells the most, in place of the worst ones."
        ),
    ] = False,
) -> None:
    """Write rows to check for an annotation tool, with our suggestion as prediction.

    For Label Studio also OUT.xml, the labelling interface. It reads the run's own tables again.
    """
    with failures():
        from ._annotate_work import export_rows
        from ._run_files import tables_of
        from ._run_folder import check_not_read

        check_not_read(out, run, *tables_of(run))
        count = export_rows(run, out, format.value, rows, verify_next)
    say(f"{count} rows written to {out}")


def collect(
    run: Folder,
    decisions: Annotated[Path, typer.Argument(help="JSON that the annotation tool exported.")],
    out: Annotated[Path, typer.Option(help="Folder for the new tables; must not exist.")],
    format: ToolOption = Tool.label_studio,
) -> None:
    """Make trusted rows of what came back: new tables for the next `bilevel weigh`.

    Writes trusted.parquet (with the column given_label) and train.parquet without these rows.
    """
    with failures():
        from ._annotate_work import collect_rows

        found = collect_rows(run, decisions, out, format.value)
    say(
        f"{found['decided']} rows decided, {found['changed']} of them with another label than the "
        f"given one; {found['trusted']} trusted and {found['train']} training rows written to {out}"
    )
    if found["disputed"]:
        say(
            f"people differ about {len(found['disputed'])} rows, which stay among the training rows: "
            f"{named(found['disputed'])}"
        )
    if found["open"]:
        say(f"{found['open']} rows have no answer, and stay among the training rows")
    if found["left_out"]:
        say(f"with one line per row, to be made anew: {', '.join(found['left_out'])}")
    say(f"weigh again: {found['command']}")
