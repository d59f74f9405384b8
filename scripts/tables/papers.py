"""The papers' claims and figures, from the reports in `papers/results/`."""

import html
import json
import math
from pathlib import Path
from typing import Any

from pages.gallery import cell

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "papers" / "results"


_VERDICT = {True: "holds", False: "**does not hold**"}


def papers_table(paper: str) -> str:
    """The claims of a paper's scripts, what was published and measured, and how each was run."""
    reports = _reports(paper)
    if not reports:
        return "No report of this paper is in `papers/results/` yet."
    lines = [
        "| row | script | claim | published | measured | verdict | size |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        script = f"[`{report['script']}`]({{root}}/papers/{paper}/{report['script']}.py)"
        found = [
            (claim, _text(claim["measured"]), _VERDICT[claim["holds"]], report["size"])
            for claim in report["claims"]
        ]
        found += [
            (claim, _sentence(claim["why"]), "not run", "") for claim in report.get("not run", ())
        ]
        for claim, measured, verdict, size in found:
            said = cell(_sentence(claim["claim"])), cell(_text(claim["published"])), cell(measured)
            lines.append(f"| {' | '.join([claim['row'], script, *said, verdict, size])} |")
    return "\n".join([*lines, "", *(_folded(report) for report in reports)])


def papers_sizes() -> str:
    """How many reports are of each size, what the scripts take, and what full runs would take."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    costs = json.loads((ROOT / "papers" / "costs.json").read_text())
    quick, factors = costs["quick"]["seconds"], costs["full"]
    full = [f"`{report['script']}`" for report in reports if report["size"] == "full"]
    missing = {
        report["script"]: math.prod(a / b for _, a, b in factors[report["script"]])
        for report in reports
        if report["size"] == "quick"
    }
    lines = [
        f"{len(full)} of the {len(reports)} reports are of the full size ({', '.join(full)}). The "
        "others were not run at full size: their verdicts are those of the quick size, not of the "
        f"published one. {_quick_times(costs['quick'])}",
        "",
        "<details>",
        "<summary>Not run at full size: how long each would take</summary>",
        "",
        "The estimate is the CPU time of the quick run, multiplied by what the full size has more of: "
        "an upper bound where a part of the quick run is compiling.",
        "",
        "| script | quick, CPU s | in full | about, CPU hours |",
        "|---|---|---|---|",
    ]
    for name, times in sorted(missing.items(), key=lambda pair: pair[1] * quick[pair[0]]):
        counted = ", ".join(f"{what}: {a:,} in place of {b:,}" for what, a, b in factors[name])
        hours = quick[name] * times / 3600
        lines.append(f"| `{name}` | {quick[name]:.0f} | {counted} | {hours:.2g} |")
    return "\n".join([*lines, "", "</details>"])


def _quick_times(quick: dict[str, Any]) -> str:
    seconds = quick["seconds"]
    total = f"{sum(seconds.values()):.0f} CPU seconds, {max(seconds.values()):.0f} at most"
    if quick["minutes"] is None:
        return (
            f"By the last recorded run of each, alone on a busy machine, {len(seconds)} of the quick "
            f"runs take {total}."
        )
    return (
        f"`make papers`, all {len(seconds)} quick runs, two at a time, took {quick['minutes']} "
        f"minutes ({total})."
    )


def paper_figure(script: str) -> str:
    """The picture that a script drew, with the size of the run below it."""
    report = json.loads((RESULTS / f"{script}.json").read_text())
    path = f"papers/{report['paper']}/{script}.py"
    return (
        f"![The figure that {path} draws]({{root}}/papers/results/{script}.png)\n\n"
        f"*Drawn by `{path} --{report['size']}`.*"
    )


def measured(script: str, text: str) -> str:
    """What a script measured for the claim that contains the text, for use within a sentence."""
    claims = json.loads((RESULTS / f"{script}.json").read_text())["claims"]
    found = [claim["measured"] for claim in claims if text in claim["claim"]]
    if len(found) != 1:
        raise ValueError(f"{len(found)} claims of {script} contain {text!r}")
    return cell(found[0])


def _reports(paper: str) -> list[dict[str, Any]]:
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    found = [report for report in reports if report["paper"] == paper]
    return sorted(found, key=lambda report: (_order(report["claims"][0]["row"]), report["script"]))


def _order(row: str) -> int:
    return int("".join(c for c in row if c.isdigit()))


def _folded(report: dict[str, Any]) -> str:
    """How a script was run, and the notes on its claims."""
    path = f"papers/{report['paper']}/{report['script']}.py"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    facts = [
        f"Run with <code>{path} --{report['size']}</code>, {report['cpu_seconds']} CPU seconds."
    ]
    for key in ("settings", "seeds"):
        if key in report:
            facts.append(f"{key.capitalize()}: <code>{html.escape(_text(report[key]))}</code>")
    facts.append(f"Versions: {versions}.")
    facts += [
        f"Note on {claim['row']}, “{html.escape(_sentence(claim['claim']))}” "
        f"{html.escape(_sentence(claim['note']))}"
        for claim in report["claims"]
        if claim["note"]
    ]
    items = "\n".join(f"<li>{fact}</li>" for fact in facts)
    summary = f"<summary><code>{report['script']}</code>: settings, seeds and notes</summary>"
    return f"<details>\n{summary}\n<ul>\n{items}\n</ul>\n</details>\n"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _text(value: Any) -> str:
    if value is None:
        return "(not in the paper)"
    return value if isinstance(value, str) else json.dumps(value)
