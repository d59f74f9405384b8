"""The claims of one paper script, for the pages of the methods."""

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
