"""What a run says when it fails, from `benchmarks/results/failures.json`."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def failures_of_methods() -> str:
    """A row per method, a column per way to fail: the result code and the steps that were kept."""
    runs = _report()["runs"]
    ways = list(next(iter(runs.values())))
    lines = [["", *ways]]
    for name, found in runs.items():
        lines.append([f"`{name}`", *(_told(found[way]) for way in ways)])
    return _table(lines)


def failures_of_systems() -> str:
    """A row per linear solver: the code of `implicit_gradient`, and the residual that it reports."""
    systems = _report()["systems"]
    ways = list(next(iter(systems.values())))
    lines = [["", *ways]]
    for name, found in systems.items():
        cells = []
        for way in ways:
            cell = found[way]
            residual = cell["linear_residual"]
            shown = f"residual {residual:.1g}" if cell["finite"] else "not finite"
            cells.append(f"{cell['result']}, {shown}")
        lines.append([f"`{name}`", *cells])
    return _table(lines)


def _told(run: dict) -> str:
    text = run["result"].replace("_", " ")
    if run["result"].endswith("Error"):
        return f"`{run['result']}`"
    if run["steps"] < run["asked"]:
        text += f", {run['steps']} steps kept"
    elif run["result"] == "successful":
        text += f", u = {run['u']:.2f}" + (", warns" if run["warned"] else "")
    return text if run["finite"] else f"{text}, NOT FINITE"


def _report() -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / "failures.json").read_text())


def _table(lines: list[list[str]]) -> str:
    rule = "|---" * len(lines[0]) + "|"
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, rule, *rest])
