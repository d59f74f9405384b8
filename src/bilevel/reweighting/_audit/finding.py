"""What a check of tables found, and the words to say it in."""

import dataclasses
import json
import reprlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from ..._summary import preformatted

Severity = Literal["problem", "warning", "ok"]

# Every check by the name that programs know it by. These names are stable: `--fail-on`, baselines
# and SARIF use them, and the part before the stroke is the family, such as "leak".
CHECKS = {
    "columns/names": "All tables have the same columns, of the same kinds.",
    "columns/numbers": "Numbers are finite and not far too large.",
    "columns/decimal-comma": "No column of text holds numbers with a decimal comma.",
    "columns/number-text": "No column of text holds numbers with a unit or another mark.",
    "columns/spelling": "Each category of a column of text has one spelling.",
    "columns/constant": "No column has one value in all training rows.",
    "columns/index": "No column is the row number, saved by accident.",
    "columns/identifier": "No column names each row.",
    "conflicts/rows": "Equal rows have equal labels.",
    "conflicts/near": "Rows that are nearly equal have equal labels.",
    "drift/rows": "The rows of all tables are distributed alike.",
    "drift/labels": "Training and trusted labels are distributed alike.",
    "duplicates/ids": "Each id names one row.",
    "duplicates/rows": "No row stands twice in a table.",
    "duplicates/near": "No training row is nearly equal to another.",
    "ids/gaps": "Every row has an id, if rows have ids.",
    "labels/missing": "Every row has a label.",
    "labels/spelling": "Each label has one spelling.",
    "labels/kinds": "Labels are of one kind: text, numbers, or true and false.",
    "labels/classes": "There are two classes or more, and every table has each of them.",
    "labels/wrong": "No training label is contradicted by the other rows.",
    "leak/rows": "No row stands in two tables.",
    "leak/ids": "No id stands in two tables.",
    "leak/entity": "No person, device or document (--entity) has rows in two tables.",
    "leak/time": "No training or trusted row is later (--time) than the hold-out begins.",
    "leak/label": "No column alone gives the label away.",
    "order/rows": "The order of the rows says nothing of their labels and values.",
    "proposed/entity": "No column looks like an entity with rows in two tables.",
    "proposed/time": "No column looks like a time by which training rows are later than the hold-out.",
    "reading/file": "Files are read in the usual way.",
}
FAMILIES = tuple(sorted({check.partition("/")[0] for check in CHECKS}))


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        severity: "problem" (mend it before learning), "warning" (look at it) or "ok".
        title: the check, in words.
        detail: what was found, in numbers, and what to do.
        ids: the rows at fault, or the columns or labels where the detail speaks of these.
        check: the stable name of the check, such as "leak/rows"; see the page on audits.
        table: which table is at fault: "train", "trusted" or "holdout".
    """

    severity: Severity
    title: str
    detail: str
    ids: tuple[Any, ...] = ()
    check: str = ""
    table: str = "train"


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `audit` found; print it for one line per check.

    Attributes:
        findings: one or more per check, in the order in which the checks were made.
    """

    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether there is no problem; warnings are allowed."""
        return all(f.severity != "problem" for f in self.findings)

    def to_dict(self, at_most: int | None = 100) -> dict[str, Any]:
        """Ready for `json.dumps`: the findings with their number of ids and the first `at_most`."""
        return {
            "passed": self.passed,
            "findings": [
                f._asdict() | {"num_ids": len(f.ids), "ids": [as_plain(x) for x in f.ids[:at_most]]}
                for f in self.findings
            ],
        }

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        return preformatted(str(self))

    def __repr__(self) -> str:
        """The number of problems and warnings, then one line per finding."""
        parts = {s: [f for f in self.findings if f.severity == s] for s in ("problem", "warning")}
        lines = [", ".join(counted(part, s) for s, part in parts.items())]
        return "\n".join(lines + [f"[{f.severity}] {f.title}: {f.detail}" for f in self.findings])


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 40


def _short(x: Any) -> str:
    return _SHORT.repr(x.item() if isinstance(x, np.generic) else x)


def listed(items: Iterable[Any], at_most: int = 5) -> str:
    """The first few, each cut at 40 characters, with control characters escaped."""
    items = list(items)
    shown = ", ".join(_short(x) for x in items[:at_most])
    return f"{shown} and {len(items) - at_most} more" if len(items) > at_most else shown


def counted(items: Any, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{len(items)} {noun if len(items) == 1 else plural or noun + 's'}"


def as_plain(x: Any) -> Any:
    """A value that JSON can hold: itself, or its text."""
    x = x.item() if isinstance(x, np.generic) else x
    try:
        json.dumps(x, allow_nan=False)
    except (TypeError, ValueError):
        return str(x)
    return x
