"""Tables of `docs/reweighting.md`, from the reports on learned weights."""

import json
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "papers" / "results"


def ratios_table() -> str:
    """Accuracies and effective sample size against the ratio of the step sizes, first draw."""
    report = json.loads((RESULTS / "ratios.json").read_text())
    first = report["runs"][0]
    way = "full batch" if "full batch" in first else "by weight"
    runs, base = first[way]["runs"], first["baselines"]
    rows = [
        ["model as left, accuracy", *(f"{r['as_left']['validation']:.3f}" for r in runs)],
        ["**retrained on the weights**", *(f"{r['retrained']['validation']:.3f}" for r in runs)],
        ["effective sample size", *(f"{r['ess']:.0f}" for r in runs)],
    ]
    table = _table(["r", *(f"{r:g}" for r in report["settings"]["ratios"])], rows)
    batches = "all rows in every step" if way == "full batch" else "batches drawn by weight"
    return (
        f"{table}\n\nA {report['size']} run, {batches}. Trained on the clean rows alone the accuracy "
        f"is {base['perfect']['validation']:.3f}, on all rows {base['uniform']['validation']:.3f}."
    )


def remedies_table() -> str:
    """Scores of models that were retrained on the weights of each remedy."""
    report = json.loads((RESULTS / "remedies.json").read_text())
    found = {(row["pair"], row["method"]): row for row in report["table"]}
    pairs = list(dict.fromkeys(row["pair"] for row in report["table"]))
    steps = len(report["settings"]["decades"])

    def column(method: str, key: str, style: str = ".3f") -> list[str]:
        return [format(found[pair, method][key], style) for pair in pairs]

    def sparse(method: str) -> list[str]:
        return [str(found[pair, method]["collapsed"]) for pair in pairs]

    rows = [
        ["uniform weights", *column("uniform", "best")],
        ["clean rows only (unknown to all)", *column("perfect", "best")],
    ]
    methods = dict.fromkeys(row["method"] for row in report["table"])
    for method in methods:
        if method.startswith(("plain", "+")):
            rows.append([f"SOBA {method}, best of {steps} outer steps", *column(method, "best")])
            rows.append(["worst of them", *column(method, "worst")])
            rows.append(["outer steps at which it collapsed", *sparse(method)])
        elif method not in ("uniform", "perfect"):
            rows.append([f"**{method}**, nothing to choose", *column(method, "best")])
            rows.append(["its effective sample size", *column(method, "least_ess", ".0f")])
    return _table(["", *pairs], rows) + f"\n\nA {report['size']} run."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
