"""What `bilevel fix` does: a plan, and new files made by it."""

import csv
import dataclasses
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .._reading.csv import as_called, header_of, separator_of
from .._storage import whole_folder, write_bytes
from ..reweighting._audit.fixes import (
    SAFE,
    Change,
    changed,
    decided_labels,
    dropped,
    proposals,
    safe_changes,
)
from ..reweighting._audit.view import make_view
from ..reweighting._inputs.checks import InputError, named
from ..reweighting._inputs.files import (
    digest,
    read_parquet,
    read_table,
    read_tables,
    split_label,
    watch,
)
from ._app import RunFolderError
from ._run_files import write_csv, write_json

FORMAT = "bilevel plan 1"
RESPELL = "respell-label"
TO_CHECK = "to_check.csv"  # labels that only a person can decide


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be changed, and what a person should look at.

    Attributes:
        files: the path and the sha256 sum of each table.
        changes: in the order in which they are made.
        proposed: labels that only a person can decide.
        written: names of the files in the folder, plan.json first.
    """

    files: dict[str, dict[str, str]]
    changes: list[Change]
    proposed: list[dict[str, Any]]
    written: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `plan.json` holds it."""
        return {
            "format": FORMAT,
            "files": self.files,
            "changes": [change.to_dict() for change in self.changes],
            "proposed": self.proposed,
        }


def fix_tables(
    paths: dict[str, Path],
    label: str,
    identifier: str | None,
    accepted: Path | None,
    skip: Sequence[str],
    out: Path | None,
) -> Plan:
    """Plan, and with `out` write the plan and then the tables.

    Raises:
        InputError: tables that cannot be used, or a file that is in several places or of no kind
            that can be written.
        RunFolderError: the folder exists and is not empty.
    """
    if unknown := sorted(set(skip) - SAFE.keys()):
        raise InputError(f"--skip knows {', '.join(SAFE)}; got {named(unknown)}.")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"--out {out} exists and is not empty; nothing is changed in place.")
    names = [path.name for path in paths.values()]
    if any(path.is_dir() for path in paths.values()) or len(set(names)) < len(names):
        raise InputError("fix takes one file per table, of different names, and no folders.")
    if TO_CHECK in names:
        raise InputError(f"{TO_CHECK} is the name of the list that fix writes; rename the table.")
    given, check_unchanged_files = {}, watch(paths)
    read = read_tables(paths, label=label, ids=[identifier] if identifier else [])
    for name, table in read.items():
        given[name] = split_label(table.frame, label, identifier, name)
    view = make_view(given, "auto", None, None, 0)
    changes = safe_changes(view, label, skip)
    if accepted is not None:
        decided = read_table(accepted, "accepted", ids=["id", "label", "given_label", label]).frame
        spelled = {change.before: change.after for change in changes if change.kind == RESPELL}
        changes += decided_labels(view, label, decided, spelled)
    files = {n: {"path": p.as_posix(), "sha256": digest(p)} for n, p in paths.items()}
    plan = Plan(files, changes, proposals(view))
    if out is None:
        return plan
    written = ["plan.json"]
    with whole_folder(out) as folder:
        write_json(plan.to_dict(), folder / "plan.json")
        for name, path in paths.items():
            mine = [change for change in changes if change.table == name]
            write = _write_parquet if path.suffix.lower() in (".parquet", ".pq") else _write_csv
            write(path, folder / path.name, mine)
            written.append(path.name)
        check_unchanged_files()
        if plan.proposed:
            write_csv(pd.DataFrame(plan.proposed), folder / TO_CHECK)
            written.append(TO_CHECK)
    return dataclasses.replace(plan, written=tuple(written))


def _write_csv(path: Path, target: Path, changes: list[Change]) -> None:
    """The same file with these changes; lines that nothing changes stay byte for byte."""
    content = path.read_bytes()
    zipped = path.suffix.lower() == ".gz"
    text = (gzip.decompress(content) if zipped else content).decode("utf-8-sig")
    lines = list(io.StringIO(text, newline=""))
    separator = "\t" if ".tsv" in path.name.lower() else separator_of(header_of(lines))
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # of 131,072 characters else
    reader = csv.reader(iter(lines), delimiter=separator)
    records, start = [], 0
    for cells in reader:
        records.append((cells, "".join(lines[start : reader.line_num])))
        start = reader.line_num
    records = [record for record in records if record[0]]  # blank lines are no rows
    header = as_called(records[0][0])
    rows, columns = dropped(changes)
    kept = [k for k, name in enumerate(header) if name not in columns]
    edits: dict[int, dict[int, str]] = {}
    for change in changes:
        if change.column is None or change.kind == "drop-column":
            continue
        k = header.index(change.column)
        for row in change.rows:
            cell: str = edits.setdefault(row, {}).get(k) or records[row + 1][0][k]
            edits[row][k] = str(change.of(cell))
    parts = []
    for i, (cells, raw) in enumerate(records):
        if i - 1 in rows:
            continue
        edit = edits.get(i - 1, {}) if i else {}
        if not edit and len(kept) == len(header):
            parts.append(raw)
            continue
        new = [edit[k] if k in edit else cells[k] for k in kept if k < len(cells)]
        parts.append(_as_line(new, separator, raw))
    fixed = "".join(parts).encode("utf-8")
    write_bytes(target, gzip.compress(fixed, mtime=0) if zipped else fixed)


def _as_line(cells: list[str], separator: str, raw: str) -> str:
    end = raw[len(raw.rstrip("\r\n")) :]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, lineterminator=end).writerow(cells)
    return file.getvalue()


def _write_parquet(path: Path, target: Path, changes: list[Change]) -> None:
    frame = changed(read_parquet(path, f"the file {path}"), changes)
    write_bytes(target, frame.to_parquet())
