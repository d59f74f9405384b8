"""The table of the page on networks, from `benchmarks/results/networks.json`."""

from typing import Any

from .benchmarks import _report, _table

COLUMNS = {"time": "time", "temporary": "temporary memory", "all": "all memory"}


def networks_table() -> str:
    """Time and memory of each method's step on a transformer, over a plain training step."""
    found = _report("networks")["methods"]
    names = ["training", *(name for name in found if not name.endswith("by layer"))]
    lines = []
    for name in names:
        pair: tuple[Any, Any] = found.get(name), found[f"{name}, by layer"]
        lines.append(
            [
                name,
                *("1" if row is None else f"{row[key]:.1f}" for key in COLUMNS for row in pair),
            ]
        )
    head = [x for name in COLUMNS.values() for x in (name, f"{name}, by layer")]
    return _table(["step of", *head], lines)


def networks_worst() -> str:
    """The largest temporary memory of a checkpointed step: over the plain one, and its like."""
    found = _report("networks")["methods"]
    rows = [row["temporary"] for name, row in found.items() if name.endswith("by layer")]
    floor = found["training, by layer"]["temporary"]
    return f"{max(rows):.1f} times that of the plain training step, and {max(rows) / floor:.1f}"
