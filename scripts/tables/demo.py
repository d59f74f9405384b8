"""What `bilevel demo` prints, from `benchmarks/results/demo.json`.

`bilevel demo --json benchmarks/results/demo.json` writes it.
"""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def demo() -> str:
    """The table of the demo and its two sentences."""
    report = json.loads((RESULTS / "demo.json").read_text())
    splits = report["splits"]
    lines = [
        "| fitted on | accuracy | the reweighted fit is better by | better in |",
        "|---|---|---|---|",
    ]
    for row in report["table"]:
        if row["fitted on"] == "reweighted":
            lines.append(f"| **{row['fitted on']}** | **{row['score']:.4f}** | | |")
            continue
        gain = f"{row['gain']:+.4f} ± {row['standard_error']:.4f}"
        lines.append(
            f"| {row['fitted on']} | {row['score']:.4f} | {gain} | {row['wins']:.0f} of {splits} |"
        )
    flagged, found, wrong = report["flagged"], report["found"], report["wrong"]
    return (
        "\n".join(lines)
        + f"\n\n{report['verdict']} On average the weights mark {flagged / splits:.0f} rows per "
        f"split as rows to look at; {found / wrong:.0%} of the corrupted rows are among them, and "
        f"{found / flagged:.0%} of them are corrupted."
    )
