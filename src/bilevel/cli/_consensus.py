"""`bilevel consensus`: from a long table of annotations to labels, annotators and weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._app import Config, Drop, Json, Out, Seed, Train, failures, say, say_json, say_table

if TYPE_CHECKING:
    from ..reweighting import AnnotationsResult

SHOWN = 10


def consensus(
    train: Train,
    annotations: Annotated[
        Path, typer.Option(help="One line per label: columns for the row's id, annotator, label.")
    ],
    label: Annotated[str, typer.Option(help="Name of the label column.")],
    id: Annotated[str, typer.Option(help="Column with the rows' ids, in all tables.")],
    trusted: Annotated[Path, typer.Option(help="Trusted rows with their labels.")],
    out: Out,
    annotator: Annotated[str, typer.Option(help="Column that says who.")] = "annotator",
    drop: Drop = None,
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
    lowest = found.annotators.head(SHOWN)
    say_table("The annotators of the lowest quality", "annotator", lowest)
