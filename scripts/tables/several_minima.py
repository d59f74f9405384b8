"""Problems with several inner minima, from `benchmarks/results/several_minima.json`."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def several_minima() -> str:
    """Where the methods end on the problem of docs/methods/pdbo.md."""
    lines = [
        "| | $u - 1/2$ | $w_2 - 1/2$ | $F$ | $f$ above its minimum |",
        "|---|---|---|---|---|",
    ]
    for row in _report()["methods"]:
        lines.append(
            f"| {row['method']} | {row['u']:.4f} | {row['w_2']:.4f} | {row['outer value']:.3f} | "
            f"{row['inner value above its minimum']:.1e} |"
        )
    return "\n".join(lines)


def bigsam_weightings() -> str:
    """How far BiG-SAM gets with each weighting, on the problem of docs/methods/bigsam.md."""
    lines = [
        "| | $K$ | distance to $w(u)$ | distance to argmin $F$ | $f$ above its minimum | $F$ |",
        "|---|---|---|---|---|---|",
    ]
    for row in _report()["weightings"]:
        cells = [row["weighting"]]
        if "K" in row:
            cells += [
                str(row["K"]),
                f"{row['distance to the best']:.4f}",
                f"{row['distance to argmin F']:.3f}",
                f"{row['inner value above its minimum']:.1e}",
            ]
        else:
            cells += ["", "", "", ""]
        lines.append(f"| {' | '.join(cells)} | {row['outer value']:.3f} |")
    return "\n".join(lines)


def _report() -> dict[str, list[dict]]:
    return json.loads((RESULTS / "several_minima.json").read_text())
