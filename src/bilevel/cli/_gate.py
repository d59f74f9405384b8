"""Which findings of an audit make it fail, and findings in the forms that programs read."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from .._storage import DamagedFileError, read_regular
from .._text import to_json, visible, visible_everywhere
from ..reweighting._audit.finding import CHECKS, FAMILIES, Finding, as_plain, counted
from ..reweighting._inputs.checks import PROSE, InputError

FORMAT = "bilevel audit 1"  # of the JSON; a change that a reader would notice changes the number
LARGEST = 1 << 28  # bytes of a baseline
LEVELS = {"problem": "error", "warning": "warning"}
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


class Line(NamedTuple):
    """A finding, and what the gate makes of it.

    Attributes:
        severity, title, detail, ids, check, table: see `Finding`; in private mode without ids and
            with words of ours alone.
        num_ids: how many rows, columns or labels are at fault.
        known: whether the baseline has it.
        fails: whether it makes the audit fail.
    """

    severity: str
    title: str
    detail: str
    ids: tuple[Any, ...]
    check: str
    table: str
    num_ids: int
    known: bool
    fails: bool

    @property
    def fingerprint(self) -> str:
        """The same for the same finding in another run."""
        key = json.dumps(
            [self.check, self.table, self.title, self.num_ids, [str(i) for i in self.ids]]
        )
        return hashlib.sha256(key.encode()).hexdigest()


class Judged(NamedTuple):
    """All findings of an audit, judged."""

    lines: list[Line]
    passed: bool
    has_baseline: bool

    @property
    def fails(self) -> bool:
        """Whether one of them makes it fail."""
        return any(line.fails for line in self.lines)


class Gate(NamedTuple):
    """What makes an audit fail.

    Attributes:
        fail_on: checks, families, "problem" or "warning"; nothing if it is empty.
        baseline: the findings of an earlier audit, or None.
    """

    fail_on: frozenset[str]
    baseline: list[dict[str, Any]] | None = None

    def judge(self, findings: Iterable[Finding], *, private: bool = False) -> Judged:
        """Each finding: whether it was known, and whether it makes the audit fail."""
        findings = list(findings)
        lines = []
        for f in findings:
            known = f.severity != "ok" and self._known(f)
            fails = f.severity != "ok" and not known and self._counts(f)
            said = _without_values(f) if private else f
            lines.append(Line(*said, len(f.ids), known, fails))
        passed = all(f.severity != "problem" for f in findings)
        return Judged(lines, passed, self.baseline is not None)

    def _counts(self, finding: Finding) -> bool:
        names = {finding.check, finding.check.partition("/")[0], "warning"}
        return bool(self.fail_on & (names | {finding.severity}))

    def _known(self, finding: Finding) -> bool:
        """Whether the baseline has a finding of this check and title with all that is at fault.

        A warning that has become a problem is new.
        """
        for old in self.baseline or ():
            alike = all(old.get(key) == getattr(finding, key) for key in ("check", "table"))
            alike &= old.get("title") in (finding.title, _without_values(finding).title)
            worse = finding.severity == "problem" and old.get("severity") != "problem"
            if not alike or worse or old.get("severity") == "ok":
                continue
            ids = old.get("ids") or []
            if len(ids) == old.get("num_ids") and finding.ids:
                there = {str(i) for i in ids}
                if all(str(as_plain(i)) in there for i in finding.ids):
                    return True
            elif len(finding.ids) <= old.get("num_ids", 0):  # a private or shortened one
                return True
        return False


def _without_values(finding: Finding) -> Finding:
    """The same in words of ours alone: no value, id, column or class is in it."""
    family = finding.check.partition("/")[0]
    title = f"{finding.check}, {PROSE[finding.table]} rows"
    said = CHECKS[finding.check]
    if finding.severity == "ok":
        detail = f"in order: {said[0].lower()}{said[1:]}"
    else:
        number = (
            counted(finding.ids, "thing is", "things are")
            if finding.ids
            else f"something of {family} is"
        )
        detail = f"{number} at fault. Wanted: {said[0].lower()}{said[1:]}"
    return finding._replace(title=title, detail=detail, ids=())


def parse_fail_on(text: str | None, strict: bool) -> frozenset[str]:
    """The names in `--fail-on`, and "problem" for `--strict` alone.

    Raises:
        ValueError: an unknown name.
    """
    names = {name.strip() for name in (text or "").split(",") if name.strip()}
    known = {*CHECKS, *FAMILIES, "problem", "warning"}
    if unknown := sorted(names - known):
        raise ValueError(
            f"--fail-on does not know {', '.join(unknown)}; it knows problem, warning, the families "
            f"{', '.join(FAMILIES)}, and the checks {', '.join(CHECKS)}."
        )
    return frozenset(names | ({"problem"} if strict and not names else set()))


def read_baseline(path: Path) -> list[dict[str, Any]]:
    """The findings in a file that `bilevel audit --format json --out` wrote.

    Raises:
        InputError: it is none.
    """
    try:
        found = json.loads(read_regular(path, LARGEST))
    except (OSError, DamagedFileError, ValueError, RecursionError) as error:
        raise InputError(f"the baseline {path} cannot be read: {error}.") from error
    findings = found.get("findings") if isinstance(found, dict) else None
    if (
        not isinstance(findings, list)
        or found.get("format") != FORMAT
        or not all(isinstance(f, dict) and _is_finding(f) for f in findings)
    ):
        raise InputError(
            f'the baseline {path} is no audit of this version (it must have "format": {FORMAT!r}); '
            "write one with `bilevel audit ... --format json --out FILE`."
        )
    return findings


def _is_finding(found: dict[str, Any]) -> bool:
    texts = all(isinstance(found.get(key), str) for key in ("check", "table", "severity"))
    return texts and isinstance(found.get("ids"), list) and type(found.get("num_ids")) is int


# --- forms


def in_format(
    form: str, judged: Judged, paths: Mapping[str, Path], *, private: bool, at_most: int | None
) -> str:
    """The findings as "json", "sarif", "junit" or "github"."""
    files = {name: name if private else path.as_posix() for name, path in paths.items()}
    if form == "json":
        return to_json(_as_json(judged, files, at_most), ascii_only=True) + "\n"
    if form == "sarif":
        return to_json(_as_sarif(judged, files), ascii_only=True) + "\n"
    return _as_junit(judged) if form == "junit" else _as_annotations(judged, files)


def _as_json(judged: Judged, files: Mapping[str, str], at_most: int | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": version("bilevel"),
        "passed": judged.passed,
        "fails": judged.fails,
        "files": dict(files),
        "findings": [
            line._asdict() | {"ids": [as_plain(i) for i in line.ids[:at_most]]}
            for line in judged.lines
        ],
    }


def _as_sarif(judged: Judged, files: Mapping[str, str]) -> dict[str, Any]:
    """SARIF 2.1.0: a rule per check, a result per problem and warning."""
    rules, order = list(CHECKS), {check: k for k, check in enumerate(CHECKS)}
    results = []
    for line in judged.lines:
        if line.severity == "ok":
            continue
        state = {"baselineState": "unchanged" if line.known else "new"}
        results.append(
            {
                "ruleId": line.check,
                "ruleIndex": order[line.check],
                "level": LEVELS[line.severity],
                "message": {"text": visible(f"{line.title}: {line.detail}")},
                "locations": [
                    {
                        "physicalLocation": {
                            "artifactLocation": {"uri": quote(files[line.table])},
                            "region": {"startLine": 1},
                        }
                    }
                ],
                "partialFingerprints": {"bilevelFinding/v1": line.fingerprint},
                **(state if judged.has_baseline else {}),
            }
        )
    driver = {
        "name": "bilevel audit",
        "version": version("bilevel"),
        "rules": [
            {
                "id": check,
                "shortDescription": {"text": CHECKS[check]},
                "help": {"text": CHECKS[check]},
            }
            for check in rules
        ],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _as_junit(judged: Judged) -> str:
    """A test case per finding; what makes the audit fail is a failure."""
    cases = []
    for line in judged.lines:
        title, detail = visible_everywhere([line.title, line.detail])
        head = f"<testcase classname={quoteattr(line.check)} name={quoteattr(title)}>"
        body = f"<system-out>{escape(f'{line.severity}: {detail}')}</system-out>"
        if line.fails:
            body = (
                f"<failure type={quoteattr(line.severity)} message={quoteattr(detail[:200])}>"
                f"{escape(detail)}</failure>"
            )
        cases.append(f"    {head}{body}</testcase>")
    failed = sum(line.fails for line in judged.lines)
    counts = f'tests="{len(cases)}" failures="{failed}" errors="0"'
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f"<testsuites {counts}>",
            f'  <testsuite name="bilevel audit" {counts} skipped="0">',
            *cases,
            "  </testsuite>",
            "</testsuites>\n",
        ]
    )


def _as_annotations(judged: Judged, files: Mapping[str, str]) -> str:
    """A workflow command of GitHub Actions per problem and warning."""
    lines = []
    for line in judged.lines:
        if line.severity == "ok" or line.known:
            continue
        place = (
            f"file={_property(files[line.table])},title={_property(f'{line.check}: {line.title}')}"
        )
        lines.append(f"::{LEVELS[line.severity]} {place}::{_message(line.detail)}\n")
    return "".join(lines)


def _message(text: str) -> str:
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
