"""`bilevel fix`: mend what needs no person, in new files, after a plan that can be read."""

from pathlib import Path
from typing import Annotated

import typer

from ._app import Config, Id, Json, Train, failures, say, say_json


def fix(
    train: Train,
    label: Annotated[str, typer.Option(help="Name of the label column.")],
    trusted: Annotated[Path, typer.Option(help="Trusted rows, with the same columns.")],
    out: Annotated[Path, typer.Option(help="Folder for plan.json and the new tables.")],
    holdout: Annotated[Path | None, typer.Option(help="Rows to judge the result on.")] = None,
    id: Id = None,
    apply_labels: Annotated[
        Path | None,
        typer.Option(help="CSV with the columns id and label: labels that a person decided."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="A kind of change to leave out; may be given several times."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, and write nothing.")
    ] = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Drop copies of hold-out rows, strip what cannot be seen, spell labels alike, drop row names.

    Writes plan.json first, then a new table beside it for each one given; no file is changed in
    place. Labels are only changed where --apply-labels says so; to_check.csv lists suspicious ones.
    """
    with failures():
        from ._fix_work import fix_tables

        paths = {"train": train, "trusted": trusted}
        paths |= {} if holdout is None else {"holdout": holdout}
        plan = fix_tables(paths, label, id, apply_labels, skip or [], None if dry_run else out)
    if json_:
        say_json(plan.to_dict())
        return
    for change in plan.changes:
        say(str(change))
    if not plan.changes:
        say("nothing to mend")
    if plan.proposed:
        say(f"{len(plan.proposed)} labels to look at, which only a person can decide")
    say("nothing was written" if dry_run else f"written to {out}: {' '.join(plan.written)}")
