"""The tables of the pages on audits and reports, from the names in the code and what was measured."""

import json
from pathlib import Path
from typing import Any

from bilevel.reweighting._audit.finding import CHECKS
from bilevel.reweighting._audit.fixes import SAFE


def audit_checks() -> str:
    """Every check of `bilevel audit`, and what is in order where it finds nothing."""
    return _table("check", "what is in order", CHECKS)


def safe_fixes() -> str:
    """Every kind of change that `bilevel fix` makes without a person."""
    said = {kind: f"{text[0].upper()}{text[1:]}." for kind, text in SAFE.items()}
    return _table("kind", "change", said)


def planted_faults() -> str:
    """How many of the planted faults each program found."""
    report = _report("faults")
    programs = [p for p in ("audit", "tabaudit", "Datalab") if p in report["cpu"]]
    head = ["fault", "`bilevel audit`", *programs[1:]]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * len(programs)}|"]
    for fault, found in report["faults"].items():
        cells = [
            f"{found[p]['found']} of {found[p]['of']}" if p in found else "\N{EN DASH}"
            for p in programs
        ]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    seconds = [f"{report['cpu'][p]:.2f}" for p in programs]
    lines.append(f"| CPU seconds per audit, median | {' | '.join(seconds)} |")
    return "\n".join(lines)


def planted_faults_said() -> str:
    """On what the faults were planted, and the false alarms of `bilevel audit`."""
    report = _report("faults")
    clean, peers = report["clean"], report["peers"]
    alarms = f" ({', '.join(sorted(set(clean['alarms'])))})" if clean["alarms"] else ""
    versions = [f"{name} {version}" for name, version in peers.items() if version]
    beside = f", beside {' and '.join(versions)}" if versions else ""
    return (
        f"{len(report['tables'])} tables ({', '.join(report['tables'])}), {len(report['seeds'])} "
        f"seeds{beside}. False alarms of `bilevel audit` on the clean tables: "
        f"{clean['with a false alarm']} of {clean['cells']}{alarms}."
    )


def kinds_on_real_errors() -> str:
    """Per set of real label errors and kind: flagged rows, wrong ones, right suggestions."""
    report = _report("kinds")
    lines = [
        "| data | kind | flagged rows | label wrong | suggestion right |",
        "|---|---|---:|---:|---:|",
    ]
    for cell in report["cells"]:
        n = cell["rows"]
        shares = [f"{cell[key] / n:.0%}" if n else "\N{EN DASH}" for key in ("wrong", "right")]
        lines.append(f"| {cell['data']} | {cell['kind']} | {n} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _report(name: str) -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _table(first: str, second: str, lines: dict[str, str]) -> str:
    head = [f"| {first} | {second} |", "|---|---|"]
    return "\n".join(head + [f"| `{name}` | {text} |" for name, text in lines.items()])
