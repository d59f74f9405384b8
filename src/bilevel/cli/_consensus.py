"""`bilevel consensus`: from a long table of annotations to labels, annotators and weights."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ._app import Config, Json, failures
from ._app import out as console

if TYPE_CHECKING:
    from ..reweighting import AnnotationsResult

SHOWN = 10


def consensus(
    train: Annotated[Path, typer.Argument(help="Training rows: CSV or Parquet.")],
    annotations: Annotated[
        Path, typer.Option(help="One line per label: columns for the row's id, annotator, label.")
    ],
    label: Annotated[str, typer.Option(help="Name of the label column.")],
    id: Annotated[str, typer.Option(help="Column with the rows' ids, in all tables.")],
    trusted: Annotated[Path, typer.Option(help="Trusted rows with their labels.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    annotator: Annotated[str, typer.Option(help="Column that says who.")] = "annotator",
    drop: Annotated[
        list[str] | None, typer.Option(help="Column to leave out; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Where several annotators labelled each row: the likeliest labels, and who can be relied on.

    Writes rows.parquet (consensus, its quality and a weight for each row), worst.csv,
    annotators.csv and labels.parquet to OUT. Lines of trusted rows tell who is right there.
    """
    with failures():
        from ._consensus_work import find_consensus

        found, folder = find_consensus(
            train, annotations, label, id, annotator, trusted, out, drop or [], seed
        )
    if json_:
        sys.stdout.write(json.dumps(found.summary | {"folder": str(folder)}, indent=2) + "\n")
        return
    _show(found)
    console.print(f"written to {folder}", highlight=False, markup=False, soft_wrap=True)


def _show(found: "AnnotationsResult") -> None:
    """The summary, and the annotators with the lowest quality."""
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    table = Table(title="The annotators of the lowest quality", title_justify="left")
    table.add_column("annotator")
    for column in found.annotators.columns:
        table.add_column(str(column).replace("_", " "), justify="right")
    for name, row in found.annotators.head(SHOWN).iterrows():
        cells = (f"{x:.3f}" if isinstance(x, float) else escape(str(x)) for x in row)
        table.add_row(escape(str(name)), *cells)
    console.print(table)
