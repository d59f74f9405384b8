"""What was measured of one method, for its page: claims of a paper script, the cost of a step."""

import json
from pathlib import Path

from pages.gallery import cell

ROOT = Path(__file__).resolve().parents[2]


def script_claims(script: str, *words: str) -> str:
    """What a script measured: those of its claims that contain one of the words, or all."""
    report = json.loads((ROOT / "papers" / "results" / f"{script}.json").read_text())
    lines = ["| claim | measured | verdict |", "|---|---|---|"]
    for claim in report["claims"]:
        if words and not any(word in claim["claim"] for word in words):
            continue
        verdict = "holds" if claim["holds"] else "**does not hold**"
        cells = [cell(claim["claim"]), cell(claim["measured"]), verdict]
        lines.append(f"| {' | '.join(cells)} |")
    path = f"papers/{report['paper']}/{script}.py"
    lines.append(f"\n*Measured by [`{path}`]({{root}}/{path}) `--{report['size']}`.*")
    return "\n".join(lines)


def step_cost(method: str) -> str:
    """A sentence with the cost of a step, from `benchmarks/results/step_time.json`."""
    path = ROOT / "benchmarks" / "results" / "step_time.json"
    found = json.loads(path.read_text())["methods"][method]
    low, median, high = found["quartiles"]
    return (
        f"Measured on 8000 rows of 784 features: {median:.2f} times the CPU time of the same "
        f"arithmetic written by hand (quartiles {low:.2f} and {high:.2f}; "
        f"[`benchmarks/step_time.py`]({{root}}/docs/measured.md))."
    )
