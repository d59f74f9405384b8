"""Two tables of the pages on warm starts and retraining, from the reports in `papers/results/`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parents[2] / "papers" / "results"


def rings_accuracies() -> str:
    """Best accuracy of the warm model, and of models retrained along its run; worst of the seeds."""
    lines = ["| rings and points | warm, best | retrained, best |", "|---|---|---|"]
    for name, runs in _report("rings")["runs"].items():
        warm = min(max(run["warm"]) for run in runs)
        again = max(max(*run["along"], *run["retrained"]) for run in runs)
        lines.append(f"| {name} | {warm:.2f} | {again:.2f} |")
    return "\n".join(lines)


def distillation_table() -> str:
    """Table 3 of Vicol et al.: accuracies in %, with the published number in brackets."""
    report = _report("distillation")
    published, tasks = report["published"], ("1 point", "10 points", "augmentation")
    columns = [(data, task) for data, of in report["runs"].items() for task in of]
    lines = [
        "| | " + " | ".join(f"{data}, {task}" for data, task in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    names = {
        "cold": "cold start",
        "warm": "warm start",
        "retrained": "**warm start, retrained**",
        "plain": "nothing learned",
    }
    for kind, name in names.items():
        cells = []
        for data, task in columns:
            seeds = [100 * seed[kind] for seed in report["runs"][data][task] if kind in seed]
            if not seeds:
                cells.append("")
                continue
            spread = f" ± {np.std(seeds):.1f}" if len(seeds) > 1 else ""
            said = published[data].get(kind)
            beside = f" ({said[tasks.index(task)]})" if said else ""
            cells.append(f"{np.mean(seeds):.1f}{spread}{beside}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _report(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())
