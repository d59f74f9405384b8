"""`bilevel consensus`: from a long table of annotations to labels, annotators and weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ._app import Config, Json, Seed, failures, say, say_json, shown
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
    seed: Seed = 0,
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
        say_json(found.summary | {"folder": str(folder)})
        return
    _show(found)
    say(f"written to {folder}")


def _show(found: "AnnotationsResult") -> None:
    """The summary, and the annotators with the lowest quality."""
    say(str(found))
    table = Table(title="The annotators of the lowest quality", title_justify="left")
    table.add_column("annotator")
    for column in found.annotators.columns:
        table.add_column(str(column).replace("_", " "), justify="right")
    for name, row in found.annotators.head(SHOWN).iterrows():
        cells = (f"{x:.3f}" if isinstance(x, float) else shown(x) for x in row)
        table.add_row(shown(name), *cells)
    console.print(table)
