"""The tables of the page on networks, from `networks.json` and `network_weights.json`."""

from typing import Any

import numpy as np

from .benchmarks import _report, _table

COLUMNS = {"time": "time", "temporary": "temporary memory", "all": "all memory"}
PEAK = "peak of the process (MB)"


def networks_table() -> str:
    """Time and memory of each method's step on a transformer, over a plain training step."""
    report = _report("networks")
    found, floor = report["methods"], report["training_step"]
    names = ["training", *(name for name in found if not name.endswith("by layer"))]
    lines = []
    for name in names:
        pair: tuple[Any, Any] = found.get(name), found[f"{name}, by layer"]
        lines.append(
            [
                name,
                *("1" if row is None else f"{row[key]:.1f}" for key in COLUMNS for row in pair),
                *(
                    f"{peak / 1e6:.0f}" if peak else ""
                    for peak in ((row or floor).get("resident") for row in pair)
                ),
            ]
        )
    head = [x for name in (*COLUMNS.values(), PEAK) for x in (name, f"{name}, by layer")]
    return _table(["step of", *head], lines)


def networks_rest() -> str:
    """What the peak of a process has beside the temporary memory of its step: median and range."""
    report = _report("networks")
    floor = report["training_step"]
    rows = [{"temporary": 1.0, "resident": floor["resident"]}, *report["methods"].values()]
    rest = [row["resident"] - row["temporary"] * floor["temporary"] for row in rows]
    low, middle, high = (x / 1e6 for x in (min(rest), np.median(rest), max(rest)))
    return f"{middle:.0f} MB ({low:.0f} to {high:.0f})"


def networks_worst() -> str:
    """The largest temporary memory of a checkpointed step: over the plain one, and its like."""
    found = _report("networks")["methods"]
    rows = [row["temporary"] for name, row in found.items() if name.endswith("by layer")]
    floor = found["training, by layer"]["temporary"]
    return f"{max(rows):.1f} times that of the plain training step, and {max(rows) / floor:.1f}"


NOISES = {"pairs": "pairs of classes", "features": "by features"}
DATA = {"fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "digits": "digits"}


def network_weights_table(what: str) -> str:
    """`auroc`, `accuracy` or `left`: one line per method, one column per data set, noise and rows."""
    cells = _report("network_weights")["cells"]
    columns: dict[tuple[str, str, int], dict[str, Any]] = {}
    for cell in cells:
        place = columns.setdefault((cell["data"], cell["noise"], cell["trusted"]), {})
        place[cell["method"]] = cell
    key = {"left": "as left"}.get(what, what)
    lines = []
    for name in dict.fromkeys(cell["method"] for cell in cells):
        values = [place.get(name, {}).get(key) for place in columns.values()]
        if any(value is not None for value in values):
            lines.append([name, *("" if value is None else f"{value:.3f}" for value in values)])
    head = [f"{DATA[data]}, {NOISES[noise]}, {rows} trusted" for data, noise, rows in columns]
    for k, place in enumerate(columns.values()):
        seeds = max(cell["seeds"] for cell in place.values())
        head[k] += f", {seeds} seeds" * (seeds > 1)
    return _table(["", *head], lines)


def network_weights_cells() -> str:
    """How many draws there are, and on how many of them every method ran, in words."""
    runs = _report("network_weights")["runs"]
    methods = {run["method"] for run in runs}
    ran: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        place = run["data"], run["noise"], run["trusted"], run["seed"]
        ran.setdefault(place, set()).add(run["method"])
    whole = sum(own == methods for own in ran.values())
    seeds = len({place[3] for place in ran})
    return (
        f"{len(ran)} draws of rows and noise with {seeds} seed{'s' * (seeds > 1)}, on {whole} of "
        "which every method was run,"
    )


def network_weights_cost() -> str:
    """What finding the weights takes: gradients of rows in units of one training, and CPU seconds."""
    report = _report("network_weights")
    runs, unit = report["runs"], report["settings"]["training"]
    lines = []
    for name in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == name]
        if not any(run["gradients_of_rows"] for run in own):
            continue
        gradients = np.median([run["gradients_of_rows"] / unit for run in own])
        seconds = np.median([run["cpu_seconds"] for run in own])
        lines.append([name, f"{gradients:.1f}", f"{seconds:.0f}"])
    return _table(["", "gradients of rows / one training", "CPU seconds"], lines)


def network_weights_gap(one: str, other: str, what: str, trusted: str = "") -> str:
    """The mean and the range over the draws of a number of one method minus that of another.

    `what` is `auroc`, `accuracy`, or `left`: the accuracy of the network that the search of `one`
    left, minus that of the network that was trained on the weights of `other`. `trusted`: only with
    as many trusted rows.
    """
    keys = ("as left", "accuracy") if what == "left" else (what, what)
    found: tuple[dict[Any, float], dict[Any, float]] = ({}, {})
    for run in _report("network_weights")["runs"]:
        place = run["data"], run["noise"], run["trusted"], run["seed"]
        for method, key, values in zip((one, other), keys, found, strict=True):
            if run["method"] == method and trusted in ("", str(run["trusted"])):
                values[place] = run[key]
    gaps = [found[0][place] - found[1][place] for place in found[0] if place in found[1]]
    return f"{np.mean(gaps):+.3f} in the mean ({min(gaps):+.3f} to {max(gaps):+.3f})"
