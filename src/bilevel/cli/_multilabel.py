"""`bilevel multilabel`: from a table with several label columns to labels to look at, and weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._app import Config, Drop, Id, Json, Out, Seed, Train, failures, say, say_json, say_table

if TYPE_CHECKING:
    from ..reweighting import MultilabelResult


def multilabel(
    train: Train,
    label: Annotated[
        list[str], typer.Option(help="A label column of 0 and 1; to be given for each label.")
    ],
    trusted: Annotated[Path, typer.Option(help="Trusted rows, with the same columns.")],
    out: Out,
    id: Id = None,
    drop: Drop = None,
    seed: Seed = 0,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Where a row may have several labels: which of them are likely wrong, and weights.

    Writes rows.parquet (a weight for each row, its quality, and that of each label), worst.csv,
    labels.parquet (one line per label) and report.html to OUT.
    """
    with failures():
        from ._multilabel_work import weigh_labels

        found, summary, folder = weigh_labels(train, label, trusted, out, id, drop or [], seed)
    if json_:
        say_json(summary | {"folder": str(folder)})
        return
    _show(found)
    say(f"written to {folder}")


def _show(found: "MultilabelResult") -> None:
    """The rows to look at, and one line per label."""
    say(str(found).splitlines()[0])
    say_table("The labels", "label", found.labels)
