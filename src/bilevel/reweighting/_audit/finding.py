"""What a check of tables found, and the words to say it in."""

import dataclasses
import json
import reprlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from ..._summary import preformatted

Severity = Literal["problem", "warning", "ok"]


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        severity: "problem" (mend it before learning), "warning" (look at it) or "ok".
        title: the check.
        detail: what was found, in numbers, and what to do.
        ids: the rows at fault, or the columns or labels where the detail speaks of these.
    """

    severity: Severity
    title: str
    detail: str
    ids: tuple[Any, ...] = ()


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

    def to_dict(self, at_most: int = 100) -> dict[str, Any]:
        """Ready for `json.dumps`: the findings with their number of ids and the first `at_most`."""
        return {
            "passed": self.passed,
            "findings": [
                f._asdict() | {"num_ids": len(f.ids), "ids": [_plain(x) for x in f.ids[:at_most]]}
                for f in self.findings
            ],
        }

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        return preformatted(str(self))

    def __repr__(self) -> str:
        """The number of problems and warnings, then one line per finding."""
        count = {s: sum(f.severity == s for f in self.findings) for s in ("problem", "warning")}
        lines = [f"{count['problem']} problems, {count['warning']} warnings"]
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


def _plain(x: Any) -> Any:
    x = x.item() if isinstance(x, np.generic) else x
    try:
        json.dumps(x, allow_nan=False)
    except (TypeError, ValueError):
        return str(x)
    return x
