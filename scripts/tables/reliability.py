"""What faults, signals and mutated files led to, from `benchmarks/results/reliability.json`."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
EARLIER = RESULTS / "reliability_before.json"


def reliability_total(part: str) -> str:
    """How many cases a part has, how many of them went wrong, and which commits they are of."""
    return _told(list(_report().get(part, {}).values()))


def _told(groups: list[dict[str, Any]]) -> str:
    cases = sum(group["cases"] for group in groups)
    wrong = sum(sum(group["wrong"].values()) for group in groups)
    origins: dict[str, int] = {}
    for group in groups:
        for origin, number in group.get("counted", {}).items():
            origins[origin] = origins.get(origin, 0) + number
    told = [f"{number} on {origin}" for origin, number in origins.items()]
    if told and (before := cases - sum(origins.values())):
        told.append(f"{before} before commits were noted")
    return f"{cases} cases, {wrong} wrong" + (f" ({'; '.join(told)})" if told else "")


def reliability_headline() -> str:
    """The parts together, in one sentence."""
    found = {name: part for name, part in _report().items() if name not in ("date", "versions")}

    def cases(*parts: str) -> int:
        return sum(group["cases"] for part in parts for group in found.get(part, {}).values())

    wrong = sum(sum(group["wrong"].values()) for part in found.values() for group in part.values())
    signals = found.get("at random moments", {})
    kills = sum(group["cases"] for name, group in signals.items() if name.endswith("SIGKILL"))
    mutated = cases("mutated tables", "odd tables", "mutated run folders")
    failed = cases("allocations of the reader", "allocations of weigh", "too little memory")
    return (
        f"{cases('at every call'):,} faults at single calls, {cases('at random moments'):,} signals "
        f"at random moments, {kills:,} of them SIGKILL, {mutated:,} mutated inputs, {failed:,} times "
        "too little memory, "
        f"{cases('hostile texts in a browser')} pages of hostile texts: {wrong} wrong"
    )


def reliability_states(part: str) -> str:
    """A row per way to disturb a run: cases, the states that were left, what was wrong."""
    lines = [["", "cases", "absent", "begun", "resumable", "complete", "foreign", "wrong"]]
    for name, group in _report().get(part, {}).items():
        states = [str(group["ends"].get(state, 0)) for state in lines[0][2:7]]
        lines.append([name, str(group["cases"]), *states, _wrong(group)])
    return _table(lines)


def reliability_ends(part: str) -> str:
    """A row per kind of file: cases, how the commands ended, what was wrong."""
    lines = [["file", "cases", "read", "refused in words", "wrong"]]
    for name, group in _report().get(part, {}).items():
        ends = [str(group["ends"].get(end, 0)) for end in ("done", "refused")]
        lines.append([f"`{name}`", str(group["cases"]), *ends, _wrong(group)])
    return _table(lines)


def reliability_pages() -> str:
    """A row per page: how often it was opened with hostile texts, and what was wrong."""
    lines = [["page", "opened", "refused in words", "wrong"]]
    for name, group in _report().get("hostile texts in a browser", {}).items():
        ends = [str(group["ends"].get(end, 0)) for end in ("opened", "refused")]
        lines.append([name, *ends, _wrong(group)])
    return _table(lines)


def reliability_lives() -> str:
    """A row per method: how often it was fitted in one process, and by how much memory grew."""
    lines = [["method", "how it ended", "wrong"]]
    for name, group in _report().get("long lives", {}).items():
        lines.append([name, "; ".join(group["ends"]), _wrong(group)])
    return _table(lines)


def reliability_run() -> str:
    """When it was measured, with what."""
    report = _report()
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"measured on {report['date']} with {versions}"


def reliability_earlier() -> str:
    """What earlier runs counted, of versions before this one."""
    earlier = json.loads(EARLIER.read_text(encoding="utf-8"))
    parts = {name: part for name, part in earlier.items() if name not in ("date", "versions")}
    told = []
    for name, part in parts.items():
        told.append(f"{name} {_told(list(part.values()))}")
    return f"{earlier['date']}, or where it is said: {'; '.join(told)}"


def reading_cost() -> str:
    """Seconds of the processor to read large tables, in the process itself and in one of its own."""
    found = json.loads((RESULTS / "reading.json").read_text(encoding="utf-8"))
    lines = [["table", "in the process itself", "apart", "more", "by pandas"]]
    for file in (name for name in found if name.endswith((".csv", ".parquet"))):
        columns, *parts, kind = file.split(".")
        words = [{"csv": "CSV", "parquet": "Parquet"}[kind], f"{columns} columns"]
        words += ["by parts"] * bool(parts)
        here, apart = (found[file][way] for way in ("here", "child"))
        more = f"{100 * (apart / here - 1):+.0f} %"
        pandas = f"{found[file]['pandas']:.2f} s" if "pandas" in found[file] else ""
        lines.append([", ".join(words), f"{here:.2f} s", f"{apart:.2f} s", more, pandas])
    return _table(lines)


def reading_start() -> str:
    """Seconds of the processor to start the process that reads."""
    found = json.loads((RESULTS / "reading.json").read_text(encoding="utf-8"))
    return f"{found['start']:.2f} s"


def _wrong(group: dict[str, Any]) -> str:
    return ", ".join(f"{n} {what}" for what, n in group["wrong"].items()) or "0"


def _report() -> dict[str, Any]:
    path = RESULTS / "reliability.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _table(lines: list[list[str]]) -> str:
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])
