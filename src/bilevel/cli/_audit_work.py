"""What `bilevel audit` does: from files to findings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reweighting._audit.audit import audit
from ..reweighting._audit.finding import Audit, Finding
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
