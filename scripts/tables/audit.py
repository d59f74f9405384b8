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


def planted_flips() -> str:
    """Precision and recall of each program on planted wrong labels, and table by table."""
    programs = _report("faults")["flips"]
    tables = next(iter(programs.values()))["by table"]
    names = {"audit, no trusted rows": "`audit`, no trusted rows"}
    names |= {"audit, trusted rows": "`audit`, 200 trusted rows"}
    names |= {"weigh, trusted rows": "`weigh`, 200 trusted rows"}
    head = ["", *(names.get(p, p) for p in programs)]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * len(programs)}|"]
    for key, name in [
        ("mean precision without own", "precision, without what it flags anyway: mean"),
        ("mean recall", "recall: mean"),
        ("precision without own", "the same precision, of all rows together"),
        ("recall", "recall, of all rows together"),
        ("precision", "precision"),
        ("F1", "F1"),
        ("average_precision", "average precision of the ranking: mean"),
        ("best_f1", "F1 at the best threshold of each table: mean"),
        ("flagged on clean tables", "flagged rows of the tables without flips"),
        ("cpu", "CPU seconds, median"),
    ]:
        if not all(key in p for p in programs.values()):
            continue  # a report of before it was measured
        form = "{:.1%}" if key.startswith("flagged") else "{:.2f}"
        cells = [form.format(p[key]) for p in programs.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for table in tables:
        found = [p["by table"][table] for p in programs.values()]
        cells = [f"{x['precision without own']:.2f} / {x['recall']:.2f}" for x in found]
        lines.append(f"| {table}: precision / recall | {' | '.join(cells)} |")
    return "\n".join(lines)


PUBLISHED = {
    "precision": 0.80,
    "recall": 0.64,
}  # tabaudit 0.3, docs/evaluation.md, means of 30 runs


def planted_flips_said() -> str:
    """The means of precision and recall beside those that tabaudit publishes, and its own here."""
    programs = _report("faults")["flips"]
    ours = {
        "`audit` without trusted rows": "audit, no trusted rows",
        "`audit` with 200 trusted rows": "audit, trusted rows",
        "`weigh` with 200 trusted rows": "weigh, trusted rows",
    }
    keys = {"precision": "mean precision without own", "recall": "mean recall"}
    peer, lines = programs["tabaudit"], []
    for name, program in ours.items():
        parts = []
        for word, key in keys.items():
            value = programs[program][key]
            beside = [
                f"{'above' if value > other else 'below'} the {other:.2f} {whose}"
                for other, whose in (
                    (PUBLISHED[word], "published"),
                    (peer[key], "of tabaudit here"),
                )
            ]
            parts.append(f"a mean {word} of {value:.2f} ({' and '.join(beside)})")
        lines.append(f"{name} has {' and '.join(parts)}")
    return f"{'; '.join(lines)}."


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


def report_opening() -> str:
    """Size of reports, how long they take to be drawn, and to be opened."""
    head = "| rows | classes | size | drawn in | opened in | CPU of the page | all charts |"
    lines = [head, "|---:|---:|---:|---:|---:|---:|---:|"]
    for r in _report("opening")["reports"]:
        lines.append(
            f"| {r['rows']:,} | {r['classes'] or 'regression'} | {r['bytes'] / 1e6:.2f} MB "
            f"| {r['drawing_cpu_seconds']:.1f} CPU s | {r['opened_seconds']:.2f} s "
            f"| {r['cpu_seconds']:.2f} CPU s | {r['all_charts_seconds']:.1f} s |"
        )
    return "\n".join(lines)


def kinds_on_real_errors() -> str:
    """Per set of real label errors and kind: rows, wrong ones, right suggestions."""
    lines = [
        "| data | kind | rows | wrong | suggestion right | rows, no former labels | wrong |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    cells = {(c["pairs"], c["data"], c["kind"]): c for c in _report("kinds")["cells"]}
    for (pairs, data, kind), cell in cells.items():
        if not pairs:
            continue
        other = cells[False, data, kind]
        said = [cell["rows"], _share(cell, "wrong"), _share(cell, "right")]
        said += [other["rows"], _share(other, "wrong")]
        lines.append(f"| {data} | {kind} | {' | '.join(map(str, said))} |")
    return "\n".join(lines)


def kinds_said() -> str:
    """In how many cells the kinds mean what they say."""
    bounds = {"wrong label": (2 / 3, 1.0), "ambiguous": (1 / 3, 2 / 3)}
    count = {True: [0, 0], False: [0, 0]}
    for cell in _report("kinds")["cells"]:
        low, high = bounds.get(cell["kind"], (0.0, 1 / 3))
        if cell["rows"]:
            count[cell["pairs"]][0] += low <= cell["wrong"] / cell["rows"] <= high
            count[cell["pairs"]][1] += 1
    (held, of), (other, total) = count[True], count[False]
    return (
        f"With former labels this holds in {held} of the {of} cells that have rows, without them in "
        f"{other} of {total}."
    )


def _share(cell: dict[str, Any], key: str) -> str:
    return f"{cell[key] / cell['rows']:.0%}" if cell["rows"] else "\N{EN DASH}"


def _report(name: str) -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _table(first: str, second: str, lines: dict[str, str]) -> str:
    head = [f"| {first} | {second} |", "|---|---|"]
    return "\n".join(head + [f"| `{name}` | {text} |" for name, text in lines.items()])
