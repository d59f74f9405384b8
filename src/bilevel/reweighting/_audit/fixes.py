"""What of an audit can be mended without a person, and what only a person can decide."""

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..._text import for_spreadsheet, without_unseen
from .._inputs.checks import InputError, named
from .._inputs.csv import as_texts, read_like
from .._inputs.scalars import as_spelled
from .columns import identifiers, row_numbers
from .finding import as_plain
from .rows import conflicts, near_conflicts
from .view import View, make_view

SAFE = {
    "drop-row": "exact copies of hold-out rows leave the training rows",
    "strip-unseen": "characters that cannot be seen leave texts",
    "respell-label": "labels that differ only in case, blanks or what cannot be seen get one spelling",
    "drop-column": "columns that number or name the rows leave all tables",
}


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of one table.

    Attributes:
        kind: one of `SAFE`, or "set-label", which a person decided.
        table: "train", "trusted" or "holdout".
        reason: in words.
        rows: the places of the rows it changes, the first row being 0; of a column all.
        column: that it changes.
        before, after: of labels.
    """

    kind: str
    table: str
    reason: str
    rows: tuple[int, ...] = ()
    column: str | None = None
    before: Any = None
    after: Any = None

    def of(self, value: Any) -> Any:
        """What becomes of a value in one of its rows."""
        return without_unseen(value) if self.kind == "strip-unseen" else self.after

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            key: list(value) if key == "rows" else as_plain(value)
            for key, value in dataclasses.asdict(self).items()
            if value is not None and value != ()
        }

    def __str__(self) -> str:
        where = f"{self.table}: {self.kind}"
        where += "" if self.column is None else f" {self.column!r}"
        where += f" {self.before!r} to {self.after!r}" if self.kind in _OF_LABELS else ""
        return f"{where}{f', {len(self.rows)} rows' * bool(self.rows)} ({self.reason})"


_OF_LABELS = ("respell-label", "set-label")


def safe_changes(view: View, label: str, skip: Container[str] = ()) -> list[Change]:
    """The changes that need no person, see `SAFE`, but for the kinds in `skip`.

    Copies of hold-out rows are those that the other changes leave: tables that are changed so need no
    second change.
    """
    found = _without_unseen(view) + _one_spelling(view, label)
    for finding in [*row_numbers(view), *identifiers(view)]:
        for column in finding.ids:
            found += [
                Change("drop-column", name, finding.title, column=str(column))
                for name in view.frames
            ]
    found = [change for change in found if change.kind not in skip]
    if "drop-row" in skip or "holdout" not in view.frames:
        return found
    after = view
    if any(change.kind in ("drop-column", "strip-unseen") for change in found):
        given = {}
        for name, frame in view.frames.items():
            mine = [change for change in found if change.table == name]
            given[name] = changed(frame, mine), view.given[name]
        after = make_view(given, "auto", None, None, 0)
    pairs = after.pairs["train", "holdout"]
    rows = tuple(pairs.loc[pairs["kind"] == "exact", "row"].tolist())
    if len(rows) == len(view.frames["train"]):
        raise InputError(
            "every training row is equal to a hold-out row: without them, no training row would be "
            "left. Give hold-out rows that are not the training rows, or skip 'drop-row'."
        )
    return [Change("drop-row", "train", "equal to a hold-out row", rows)] * bool(rows) + found


def dropped(changes: Iterable[Change]) -> tuple[set[int], set[str | None]]:
    """The rows and the columns that leave a table."""
    rows = {row for change in changes if change.kind == "drop-row" for row in change.rows}
    return rows, {change.column for change in changes if change.kind == "drop-column"}


def changed(frame: pd.DataFrame, changes: Sequence[Change]) -> pd.DataFrame:
    """A table after its changes; those of columns that it does not have are left out.

    A column keeps its type, and one of categories gets those that are new to it.
    """
    frame = frame.copy()
    for change in changes:
        if change.column is None or change.column not in frame or not change.rows:
            continue
        before = pd.Series(frame[change.column])
        values = before.to_numpy(dtype=object, copy=True)
        after = [change.of(values[row]) for row in change.rows]
        if change.kind != "strip-unseen":  # labels are texts here, and may be numbers in the table
            known = np.asarray(pd.unique(before.dropna()))
            after = read_like(np.array(after, object), known, change.column)
        values[list(change.rows)] = after
        frame[change.column] = _of_type(values, before)
    rows, columns = dropped(changes)
    keep = [i for i in range(len(frame)) if i not in rows]
    return frame.iloc[keep].drop(columns=[c for c in columns if c in frame])


def _of_type(values: np.ndarray, before: pd.Series) -> pd.Series:
    """A column of the type that it had; a category that has become another one is that one."""
    kind = before.dtype
    if isinstance(kind, pd.CategoricalDtype):
        present = set(pd.unique(values))
        became = dict(zip(before, values, strict=True))
        names = [became[c] if c in became and c not in present else c for c in kind.categories]
        names += [c for c in became.values() if pd.notna(c)]
        kind = pd.CategoricalDtype(list(dict.fromkeys(names)), kind.ordered)
    return pd.Series(values, before.index).astype(kind)


def _without_unseen(view: View) -> list[Change]:
    found = []
    for name, frame in view.frames.items():
        for column in frame.columns:
            values = pd.Series(frame[column])
            if pd.api.types.is_numeric_dtype(values):
                continue
            rows = tuple(
                i
                for i, x in enumerate(values.tolist())
                if isinstance(x, str) and without_unseen(x) != x
            )
            if rows:
                reason = "characters that cannot be seen"
                found.append(Change("strip-unseen", name, reason, rows, str(column)))
    return found


def _one_spelling(view: View, label: str) -> list[Change]:
    """To the spelling that most trusted rows have, then most training rows."""
    counts: dict[str, Counter[tuple[int, str]]] = {}
    for turn, name in enumerate(("trusted", "train", "holdout")):
        for text, count in view.labels.get(name, pd.Series(dtype=object)).value_counts().items():
            if isinstance(text, str):
                counts.setdefault(as_spelled(text), Counter())[-turn, text] += int(count)
    best = {
        key: max(count.items(), key=lambda item: (item[0][0], item[1], item[0][1]))[0][1]
        for key, count in counts.items()
    }
    found = []
    for name, labels in view.labels.items():
        for text in labels.dropna().unique():
            if isinstance(text, str) and (after := best[as_spelled(text)]) != text:
                rows = tuple(np.flatnonzero(labels.to_numpy(dtype=object) == text).tolist())
                reason = "the spelling of the trusted rows, or of most rows"
                found.append(Change("respell-label", name, reason, rows, label, text, after))
    return found


def decided_labels(
    view: View, label: str, accepted: pd.DataFrame, spelled: Mapping[Any, Any]
) -> list[Change]:
    """What a person decided: a table with the columns `id` and `label`, of training rows.

    `spelled` has the labels that get another spelling, and that one.

    Raises:
        InputError: other columns, ids that no training row has or that repeat, or new classes.
    """
    name = label if label in accepted.columns else "label"
    if "id" not in accepted.columns or name not in accepted.columns:
        raise InputError(
            f"accepted labels need the columns 'id' and 'label'; got {named(list(accepted.columns))}."
        )
    rows = as_texts(pd.Series(view.tables["train"].ids)).tolist()
    ids = _unquoted(as_texts(pd.Series(accepted["id"])), rows).tolist()
    if empty := [i for i, x in zip(ids, accepted[name].isna(), strict=True) if x]:
        raise InputError(
            f"accepted labels have no label for the ids {named(empty)}; leave out what nobody decided."
        )
    known = np.asarray(pd.unique(pd.concat([y.dropna() for y in view.labels.values()])))
    classes = {x for y in view.labels.values() for x in as_texts(y.dropna()).tolist()}
    given_as_texts = np.asarray(_unquoted(as_texts(pd.Series(accepted[name])), classes))
    wanted = as_texts(pd.Series(read_like(given_as_texts, known, "accepted labels"))).tolist()
    if repeated := [i for i, count in Counter(ids).items() if count > 1]:
        raise InputError(f"accepted labels repeat the ids {named(repeated)}.")
    place = {text: i for i, text in enumerate(rows)}
    if unknown := [i for i in ids if i not in place]:
        raise InputError(
            f"accepted labels name rows that the training rows do not have: {named(unknown)}."
        )
    counts = Counter(rows)
    if several := [i for i in ids if counts[i] > 1]:
        raise InputError(
            f"accepted labels name rows by {named(several)}, as several training rows are called. "
            "Give the rows an id of their own (--id)."
        )
    given = as_texts(view.labels["train"].reset_index(drop=True)).tolist()
    if "given_label" in accepted.columns and name != "given_label":
        told = np.asarray(accepted["given_label"].notna())
        before = _unquoted(as_texts(pd.Series(accepted["given_label"])), classes).to_numpy()[told]
        said = as_texts(pd.Series(read_like(before, known, "given_label"))).tolist()
        there = [i for i, one in zip(ids, told, strict=True) if one]
        if other := [
            i
            for i, x in zip(there, said, strict=True)
            if as_spelled(str(x)) != as_spelled(str(given[place[i]]))
        ]:
            raise InputError(
                f"accepted labels were decided of another table: by their column 'given_label', the "
                f"rows {named(other)} had other labels than the training rows of these ids. Give the "
                "table that they were decided of, or its rows an --id."
            )
    if not view.regression and (new := [x for x in wanted if x not in classes]):
        raise InputError(
            f"accepted labels have classes that no table has: {named(new)}. Mend the spelling."
        )
    changes = []
    for i, decided in zip(ids, wanted, strict=True):
        row, after = place[i], spelled.get(decided, decided)
        if given[row] != after:
            changes.append(
                Change("set-label", "train", f"decided for {i}", (row,), label, given[row], after)
            )
    return changes


def _unquoted(texts: pd.Series, known: Iterable[str]) -> pd.Series:
    """Known texts without the apostrophe that `for_spreadsheet` has put before them."""
    quoted = {for_spreadsheet(x): x for x in known}
    return texts.map(lambda x: quoted.get(x, x))


def proposals(view: View) -> list[dict[str, Any]]:
    """Training rows whose label a person should look at, as equal or nearly equal rows differ."""
    labels = view.labels["train"]
    place = {str(i): k for k, i in enumerate(view.tables["train"].ids)}
    found: dict[str, dict[str, Any]] = {}
    for finding in [*conflicts(view), *near_conflicts(view)]:
        for i in finding.ids if finding.table == "train" else ():
            row = place[str(i)]
            found.setdefault(
                str(i),
                {
                    "id": as_plain(i),
                    "row": row,
                    "given_label": as_plain(labels.iloc[row]),
                    "reason": finding.title,
                },
            )
    return list(found.values())
