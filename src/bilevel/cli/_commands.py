"""The commands beside `weigh`: `bilevel score`, `suggest` and `report`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ._app import Config, Json, failures, say, say_json, shown
from ._app import out as console

if TYPE_CHECKING:
    import pandas as pd

Folder = Annotated[Path, typer.Argument(help="A run folder that `bilevel weigh` wrote.")]
Output = Annotated[
    Path | None, typer.Option("--out", help="CSV or Parquet file to write the table to.")
]
Verbatim = Annotated[
    bool,
    typer.Option(
        "--verbatim",
        help="Cells of a CSV file as they are, for programs; otherwise none is a formula.",
    ),
]
SHOWN = 20


def score(
    run: Folder,
    table: Annotated[Path, typer.Argument(help="Labelled rows: CSV or Parquet.")],
    label: Annotated[
        str | None, typer.Option(help="Name of the label column; by default the run's.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="Column with the rows' ids; by default the run's, if any.")
    ] = None,
    pred_probs: Annotated[
        str | None,
        typer.Option(
            help="Your own model's probabilities of these rows, if the run had them: a file, or "
            "columns of the table; by default the run's columns."
        ),
    ] = None,
    out: Output = None,
    verbatim: Verbatim = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Judge the labels of rows that the run has never seen."""
    with failures():
        import numpy as np

        from ._commands_work import score_table, write_table
        from ._run_folder import check_not_read

        check_not_read(out, run, table, pred_probs)
        scores = score_table(run, table, label, id, pred_probs).sort_values(
            "label_quality", kind="stable"
        )
        if out is not None:
            write_table(scores.reset_index(), out, verbatim=verbatim)
    disputed = len(scores) - int(np.sum(np.asarray(scores["keep"])))
    _show(
        scores.reset_index(),
        json_,
        f"{disputed} of {len(scores)} rows are flagged",
        out,
    )


def suggest(
    run: Folder,
    budget: Annotated[int, typer.Option(min=1, help="How many rows you can verify.")] = 100,
    out: Output = None,
    verbatim: Verbatim = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Say which training rows to verify next, and why; it reads the run's own tables again."""
    with failures():
        from ._commands_work import suggest_rows, write_table
        from ._run_files import tables_of
        from ._run_folder import check_not_read

        check_not_read(out, run, *tables_of(run))
        rows = suggest_rows(run, budget)
        if out is not None:
            write_table(rows, out, verbatim=verbatim)
    _show(rows, json_, f"the {len(rows)} rows to verify next, the most useful first", out)


def report(
    run: Folder,
    other: Annotated[
        Path | None, typer.Argument(help="A second run folder, to compare with the first.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="HTML or JSON file; by default RUN/report.html. JSON for two runs."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Write a run's report again from its report.json, or say how two runs differ."""
    if other is None:
        with failures():
            from ._commands_work import write_report
            from ._run_folder import check_not_read

            check_not_read(out, run)
            path = write_report(run, out)
        say(f"written to {path}")
        return
    with failures():
        from ._compare_work import compare_folders
        from ._run_folder import check_not_read

        check_not_read(out, run, other)
        found = compare_folders(run, other, out)
    if json_:
        say_json(found.to_dict())
        return
    say(str(found))
    if out is not None:
        say(f"written to {out}")


def _show(rows: "pd.DataFrame", json_: bool, title: str, out: Path | None) -> None:
    """The first rows as a table, or all of them as JSON."""
    if json_:
        sys.stdout.write(f"{rows.to_json(orient='records', indent=2)}\n")
        return
    grid = Table(title=title, title_justify="left")
    for column in rows.columns:
        grid.add_column(shown(column), overflow="fold")
    for row in rows.head(SHOWN).itertuples(index=False):
        grid.add_row(*(_cell(x) for x in row))
    console.print(grid, highlight=False)
    rest = len(rows) - SHOWN
    if out is not None:
        say(f"all written to {out}")
    elif rest > 0:
        console.print(f"and {rest} more; --out FILE writes all of them", highlight=False)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else shown(value)
