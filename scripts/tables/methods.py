"""The tables of the algorithms: costs from `tests/methods.py`, times from the benchmark."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def method_costs() -> str:
    """What every method costs per step, what it keeps, its rate and its bias."""
    sys.path.insert(0, str(ROOT / "tests"))
    from methods import METHODS

    head = [
        "",
        "outer gradients",
        "inner gradients",
        "Hessian-vector products",
        "mixed products",
        "memory",
    ]
    lines = [[*head, "rate", "error that stays", "remark"]]
    for name, row in METHODS.items():
        if row.per_step is not None:
            calls = [f"${each.replace(' * ', ' ')}$" for each in row.per_step]
            link = f"[`{name}`](methods/{row.page}.md)"
            lines.append([link, *calls, row.memory, row.rate, row.bias, row.note])
        else:
            link = f"[`{name}`](methods/{row.page}.md)"
            lines.append([link, *[""] * 7, row.note])
    return _table(lines)


def step_times() -> str:
    """The time of a step, over that of a scan of the same arithmetic by hand, and what is kept."""
    path = ROOT / "benchmarks" / "results" / "step_time.json"
    lines = [["", "over the scan by hand", "quartiles", "kept, in vectors like w"]]
    for name, found in json.loads(path.read_text())["methods"].items():
        low, median, high = found["quartiles"]
        ratios = [f"{median:.2f}", f"{low:.2f}, {high:.2f}"]
        lines.append([f"`{name}`", *ratios, f"{found['kept']:.0f}"])
    return _table(lines)


def _table(lines: list[list[str]]) -> str:
    rule = "|---" * len(lines[0]) + "|"
    head, *rest = (re.sub(r" +", " ", f"| {' | '.join(line)} |") for line in lines)
    return "\n".join([head, rule, *rest])
