"""Tables of `docs/reweighting.md`, from the reports on learned weights."""

import json
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "papers" / "results"


def outer_steps_table() -> str:
    """Accuracies and effective sample size of SOBA against the outer step, first draw."""
    report = json.loads((RESULTS / "soba_steps.json").read_text())
    first = report["runs"][0]
    runs = first["drawn by weight"]["runs"]
    rows = [
        ["model as left, accuracy", *(f"{r['as_left']['test']:.3f}" for r in runs)],
        ["**retrained on the weights**", *(f"{r['retrained']['test']:.3f}" for r in runs)],
        ["effective sample size", *(f"{r['ess']:.0f}" for r in runs)],
    ]
    table = _table(["outer step", *(f"{eta:.2g}" for eta in report["settings"]["etas"])], rows)
    return (
        f"{table}\n\nTrained on the clean rows alone the accuracy is "
        f"{first['perfect']['test']:.3f}, on all rows {first['uniform']['test']:.3f}."
    )


def remedies_table() -> str:
    """Scores of models that were retrained on the weights of each remedy."""
    report = json.loads((RESULTS / "remedies.json").read_text())
    pairs: dict[str, dict[str, dict[str, float]]] = {}
    for row in report["table"]:
        pairs.setdefault(row["pair"], {})[row["method"]] = row
    names = {"uniform": "uniform weights", "perfect": "clean rows only (unknown to all)"}

    def shown(row: dict[str, float], method: str) -> str:
        if method in names:
            return f"{row['best']:.3f}"
        if method.startswith(("plain", "+")):
            return f"{row['best']:.3f} / {row['worst']:.3f} ({row['collapsed']})"
        return f"{row['best']:.3f} (ESS {row['least_ess']:.0f})"

    rows = []
    for method in next(iter(pairs.values())):
        soba = f"SOBA {method}" if method.startswith(("plain", "+")) else f"**{method}**"
        cells = [shown(found[method], method) for found in pairs.values()]
        rows.append([names.get(method, soba), *cells])
    return _table(["", *pairs], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
