"""Which cells of the improved model's figures and tables were run, from the reports."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "papers" / "results"
# Table 1 of Li, Gu and Huang (2020), and Figures 4 and 5.
CLEANING = ("MNIST", "Fashion-MNIST", "QMNIST", "SVHN", "CIFAR-10")
SHARES = (0.6, 0.8, 0.9)
FEW_SHOT = ("Omniglot", "MiniImageNet")
SETTINGS = ("5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot")


def cleaning_cells() -> str:
    """The 15 cells of Table 1, and the substitutes: F1 of the improved and of the basic model."""
    runs = _report("cleaning")["runs"]
    substitutes = dict.fromkeys(
        run["data"] for run in runs if run["data"] not in [x.lower() for x in CLEANING]
    )
    lines = []
    for data in (*CLEANING, *substitutes):
        name = data if data in CLEANING else f"{data} (a substitute, not in the table)"
        cells = [_cleaning_cell(runs, data, share) for share in SHARES]
        lines.append([name, *cells])
    return _table(["data", *(f"{share:.0%} wrong" for share in SHARES)], lines)


def _cleaning_cell(runs: list[dict[str, Any]], data: str, share: float) -> str:
    here = [r for r in runs if r["data"].lower() == data.lower() and abs(r["rate"] - share) < 1e-9]
    models = dict.fromkeys(run["model"] for run in here)
    found = [f"{model}: {_f1(here, model)}" for model in models]
    if not found:
        return "**not run**"
    missing = [] if any("ResNet-18" in model for model in models) else ["ResNet-18: **not run**"]
    return "; ".join([*found, *missing])


def _f1(runs: list[dict[str, Any]], model: str) -> str:
    def mean(way: str) -> float:
        ends = [run[way]["f1"][-1] for run in runs if run["model"] == model]
        return sum(ends) / len(ends)

    return f"{mean('improved'):.3f} / {mean('basic'):.3f}"


def few_shot_cells() -> str:
    """The cells of Figures 4 and 5, and the substitute that was run."""
    report = _report("hyper_representation")
    runs, settings = report["runs"], report["settings"]
    substitute = f"{settings['data']} (a substitute)"
    lines = [
        [name, *(_few_shot_cell(runs, name, setting) for setting in SETTINGS)]
        for name in (*FEW_SHOT, substitute)
    ]
    size = f"{settings['blocks']} x {settings['width']} filters, {settings['steps']} outer steps"
    return f"{_table(['data', *SETTINGS], lines)}\n\nThe net of the substitute has {size}."


def _few_shot_cell(runs: dict[str, Any], data: str, setting: str) -> str:
    """On new classes, for each K: the improved model with the printed weights and the basic one."""
    start = f"{data}, {setting}, "
    found = [
        f"{title.removeprefix(start)}: "
        + " / ".join(
            f"{run[name]['curve']['new classes'][-1]:.3f}"
            for name in ("improved, printed weights", "basic")
        )
        for title, run in runs.items()
        if title.startswith(start)
    ]
    return "; ".join(found) or "**not run**"


def _report(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
