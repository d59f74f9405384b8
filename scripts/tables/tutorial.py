"""The tables of the tutorials' pages, from the reports of `papers/tutorial/`."""

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "papers" / "results"


def equilibrium_accuracy() -> str:
    """Test accuracies of the equilibrium model and of two nets with one layer."""
    rows = []
    for data, nets in _report("equilibrium")["training"].items():
        for name, found in nets.items():
            accuracy = found["accuracy"]
            spread = (f"{x:.4f}" for x in (mean(accuracy), min(accuracy), max(accuracy)))
            seconds = f"{median(found['seconds']):.2f} s"
            rows.append([data, name, found["parameters"], len(accuracy), *spread, seconds])
    header = ["data", "model", "parameters", "runs", "test accuracy", "least", "greatest"]
    return _table([*header, "training"], rows)


def equilibrium_memory() -> str:
    """Temporary megabytes of a gradient, for each way and number of solver steps."""
    memory = _report("equilibrium")["memory"]
    columns = [[f"{x / 1e6:.2f} MB" for x in sizes] for sizes in memory["bytes"].values()]
    return _table(["T", *memory["bytes"]], zip(memory["t"], *columns, strict=True))


def equilibrium_solvers() -> str:
    """Evaluations that each solver needs, for each map."""
    cases = _report("equilibrium")["solvers"]
    names = [f"{name}, norm {case['norm']:.2f}" for name, case in cases.items()]
    ways = next(iter(cases.values()))["curves"]
    rows = [
        [way, *(case["curves"][way]["needed"] or "never" for case in cases.values())]
        for way in ways
    ]
    return _table(["", *names], rows)


def equilibrium_seconds() -> str:
    """Milliseconds of one solve with each solver."""
    times = _report("equilibrium")["seconds"]
    return _table(["solver", "time"], [[name, f"{1e3 * t:.1f} ms"] for name, t in times.items()])


def measured_rates() -> str:
    """The published and the fitted exponent of each method, on both problems."""
    report = _report("recent_advances")
    rows = []
    for name, published in report["published"].items():
        curves, cells = report["methods"][name], []
        for place in report["settings"]["rows"]:
            found = curves.get(place)
            if found is None:
                cells.append("")
                continue
            low, high = found["interval"]
            spread = f" [{low:.2f}, {high:.2f}]" if high > low else ""
            judged = "**" if place == published["on"] and published["exponent"] else ""
            cells.append(f"{judged}{found['exponent']:.2f}{judged}{spread}")
        exponent = published["exponent"]
        asked = f"{-exponent:.2f}" if exponent else "none"
        rows.append([name, published["samples"], asked, *cells])
    header = ["method", "published samples", "exponent", *report["settings"]["rows"]]
    return _table(header, rows)


def hyperparameters_race() -> str:
    """The median validation loss of each search, and the test accuracy where gradients led."""
    rows = _report("hyperparameters")["race"]
    searches = list(dict.fromkeys(row["search"] for row in rows))

    def middle(key: str, search: str, number: int) -> float:
        chosen = (r for r in rows if (r["search"], r["penalties"]) == (search, number))
        return median(row[key] for row in chosen)

    lines = []
    for number in sorted({row["penalties"] for row in rows}):
        losses = [f"{middle('validation_loss', search, number):.4f}" for search in searches]
        accuracy = f"{middle('test_accuracy', searches[0], number):.4f}"
        lines.append([number, *losses, accuracy])
    last = "test accuracy after hypergradients"
    return _table(["penalties", *(f"loss by {search}" for search in searches), last], lines)


def hyperparameters_time() -> str:
    """CPU time and test accuracy of the estimators, with one penalty and with one per pixel."""
    rows = [
        [name, f"{run['cpu_seconds']:.1f} s", f"{run['test_accuracy']:.4f}"]
        for name, run in _report("hyperparameters")["one_per_pixel"].items()
    ]
    return _table(["model, penalties", "CPU time", "test accuracy"], rows)


def hyperparameters_held_out() -> str:
    """How much less loss the two choices have than one penalty, on rows held out."""
    rows = []
    for name, found in _report("hyperparameters")["held_out"].items():
        gains = [
            f"{found[kind]['percent_less_loss']:+.1f} % ± {found[kind]['standard_error']:.1f}"
            for kind in ("feature", "auto")
        ]
        chosen = f"in {found['chosen_one_per_feature']} of {found['splits']} splits"
        rows.append([name, *gains, chosen])
    return _table(["", "one penalty per feature", '`"auto"`', "it took one per feature"], rows)


def meta_learning_accuracy() -> str:
    """Meta-test accuracies, for each data set and number of shots."""
    runs = {
        f"{data}, 5-way {shots}-shot": found
        for data, by_shots in _report("meta_learning")["data"].items()
        for shots, found in by_shots.items()
    }
    rows = [
        [
            name,
            *(
                f"{run[name]['accuracy']:.3f} ± {run[name]['interval']:.3f}"
                for run in runs.values()
            ),
        ]
        for name in next(iter(runs.values()))
    ]
    return _table(["", *runs], sorted(rows, key=lambda row: row[1], reverse=True))


def meta_learning_centre() -> str:
    """Accuracies with a learned centre of the penalty, on tilted digits."""
    runs = _report("meta_learning")["centre"]
    rows = [
        [name, *("{:.3f} ± {:.3f}".format(*run[name]["accuracy"]) for run in runs.values())]
        for name in next(iter(runs.values()))
    ]
    return _table(["", *(f"{shots}-shot" for shots in runs)], rows)


def _report(script: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{script}.json").read_text())


def _table(header: list[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
