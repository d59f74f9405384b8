"""What `bilevel audit` does: from files to findings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..reweighting._audit.audit import audit
from ..reweighting._audit.finding import Audit, Finding, Severity
from ..reweighting._inputs.checks import InputError
from ..reweighting._inputs.dates import describe_dates
from ..reweighting._inputs.files import read_tables, split_label
from ._tables import check_drop


def audit_tables(
    paths: dict[str, Path],
    label: str,
    identifier: str | None,
    drop: Sequence[str] = (),
    *,
    entity: str | None = None,
    time: str | None = None,
    seed: int = 0,
) -> Audit:
    """`audit` of tables on disk; the paths are by "train", "trusted" and "holdout"."""
    tables: dict[str, tuple[Any, Any]] = {}
    read = read_tables(paths, label=label, ids=[c for c in (identifier, entity) if c])
    for name, table in read.items():
        features, labels = split_label(table.frame, label, identifier, name)
        if name == "train":
            check_drop(drop, features.columns)
        tables[name] = features.drop(columns=list(drop), errors="ignore"), labels
    notes = [
        Finding(
            "warning",
            "how the files are read",
            f"{note}.",
            tuple(c for c in table.frame.columns if repr(c) in note),
            "reading/file",
            name,
        )
        for name, table in read.items()
        for note in table.notes
    ]
    notes += _dates({name: features for name, (features, _) in tables.items()})
    nothing = None, None
    found = audit(
        *tables["train"],
        *tables.get("trusted", nothing),
        *tables.get("holdout", nothing),
        entity=entity,
        time=time,
        seed=seed,
    )
    return Audit([*notes, *found.findings])


def _dates(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """Columns of dates in which day and month could be exchanged, or that have a zone in part."""

    def finding(severity: Severity, said: str) -> Finding:
        ids = tuple(c for c in tables["train"].columns if f"column {str(c)!r} " in said)
        return Finding(severity, "how dates are read", said, ids, "reading/file")

    try:
        said = describe_dates({f"the {name} file": table for name, table in tables.items()})
    except InputError as error:
        return [finding("problem", str(error))]
    return [finding("warning", f"{one}.") for one in said]
