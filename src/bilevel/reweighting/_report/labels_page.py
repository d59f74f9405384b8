"""The report on several labels per row: how many of each are wrong, and which to look at."""

import dataclasses
import itertools
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ..._text import visible
from .._weights.diagnostics import Check
from .._weights.result import WeightsResult
from .chart import ACCENT, MOST_NAMES, Chart, by_name, height_of, layer, make_chart, number, tips
from .page import PRINTED_ROWS, AbstractPage, csp_hash, packaged, read_template

FORMAT = "bilevel labels report 1"
ROWS, PAIRS = 200, 10  # rows and pairs of labels on the page


@dataclasses.dataclass(frozen=True, repr=False)
class LabelsReport(AbstractPage):
    """What `MultilabelResult.report` gathers, to be read by a person (HTML) or a program (JSON).

    The page needs no network, is safe to open whatever the data hold, and can be read without
    JavaScript, which adds sorting.

    Attributes:
        evidence: plain data. `labels` has one line per label: its `share`, the estimated `rate` of
            wrong ones, `precision` and `recall` of the flagged ones (each with `value`, `low` and
            `high`, or None), how many are `flagged`, and the `winner`. `rows` are the rows to look at,
            the worst first, with the labels at fault; `pairs` are flagged in the same rows.
    """

    def to_html(self) -> str:
        """One page: how many labels are wrong, which ones go wrong together, and the worst rows."""
        chart, script = _rates(self.evidence["labels"]), packaged("report.js")
        return read_template("labels.html.jinja").render(
            e=self.evidence,
            chart=chart,
            style=Markup(packaged("report.css")),
            script=Markup(script),
            csp=csp_hash(script),
            printed_rows=PRINTED_ROWS,
        )

    def __repr__(self) -> str:
        """The verdict."""
        return visible("{headline}\n{detail}".format_map(self.evidence["verdict"]), keep="\n")


def gather_labels(
    given: pd.DataFrame,
    keep: pd.DataFrame,
    row_quality: Any,
    weights: Any,
    labels: pd.DataFrame,
    results: dict[Any, WeightsResult],
    checks: list[Check],
    trusted_rows: int,
) -> LabelsReport:
    """The report; the arguments are the attributes of `MultilabelResult`."""
    flagged = ~keep.to_numpy()
    quality, weight = np.asarray(row_quality), np.asarray(weights)
    order = np.argsort(quality, kind="stable")
    order = order[flagged[order].any(axis=1)]
    names, there = [str(name) for name in keep.columns], given.to_numpy()
    wrong = np.zeros(flagged.shape)
    for j, name in enumerate(keep.columns):
        found = results.get(name)
        if found is not None and found.wrong is not None:
            wrong[:, j] = found.wrong
    rows = [
        {
            "id": str(keep.index[i]),
            "quality": float(quality[i]),
            "weight": float(weight[i]),
            "labels": [
                {"name": names[j], "given": bool(there[i, j]), "wrong": float(wrong[i, j])}
                for j in sorted(np.flatnonzero(flagged[i]), key=lambda j: -wrong[i, j])
            ],
        }
        for i in order[:ROWS]
    ]
    together = flagged.T.astype(int) @ flagged
    pairs = [
        {"first": names[a], "second": names[b], "rows": int(together[a, b])}
        for a, b in itertools.combinations(range(len(names)), 2)
        if together[a, b]
    ]
    evidence = {
        "format": FORMAT,
        "train_rows": len(flagged),
        "trusted_rows": trusted_rows,
        "rows_to_look_at": len(order),
        "labels_to_look_at": int(flagged.sum()),
        "labels": [
            _line(name, labels.loc[name].to_dict(), results.get(name)) for name in keep.columns
        ],
        "pairs": sorted(pairs, key=lambda pair: -pair["rows"])[:PAIRS],
        "rows": rows,
        "checks": [check._asdict() for check in checks],
        "versions": {name: version(name) for name in ("bilevel", "scikit-learn", "numpy")},
    }
    return LabelsReport(evidence | {"verdict": _verdict(evidence)})


def _line(name: Any, line: dict[str, Any], found: WeightsResult | None) -> dict[str, Any]:
    """What is said of one label."""
    noise = None if found is None else found.noise

    def estimate(key: str) -> dict[str, float] | None:
        one = None if noise is None else getattr(noise, key)
        return None if one is None else dataclasses.asdict(one)

    return {
        "name": str(name),
        "share": float(line["share"]),
        "judged": found is not None,
        "flagged": int(line["flagged"]),
        "rate": estimate("rate"),
        "precision": estimate("precision"),
        "recall": estimate("recall"),
        "winner": str(line["winner"]),
    }


def _verdict(evidence: dict[str, Any]) -> dict[str, str]:
    """A headline, and what to do."""
    rows, labels = evidence["rows_to_look_at"], evidence["labels_to_look_at"]
    known = [line for line in evidence["labels"] if line["rate"] is not None]
    if not labels:
        headline = "No label is flagged"
        detail = "The models and the trusted rows give no reason to doubt a label."
    else:
        headline = f"{_counted(labels, 'label')} of {_counted(rows, 'row')} to look at"
        worst = max(known, key=lambda line: line["rate"]["value"], default=None)
        detail = "Begin at the top of the list, and correct the labels that are wrong."
        if worst is not None:
            r = worst["rate"]
            detail += (
                f" The label {worst['name']!r} is wrong most often, in {r['value']:.1%} of the rows "
                f"(95% interval {r['low']:.1%} to {r['high']:.1%})."
            )
    unjudged = [line["name"] for line in evidence["labels"] if not line["judged"]]
    if unjudged:
        detail += (
            f" Not judged, as they are the same in all training rows or in all trusted rows: "
            f"{', '.join(unjudged)}."
        )
    return {"headline": headline, "detail": detail}


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _rates(labels: list[dict[str, Any]]) -> Chart | None:
    """The rate of wrong labels, with its interval: of at most 30 labels, the largest rates."""
    known = [{"name": line["name"], **line["rate"]} for line in labels if line["rate"] is not None]
    if not known:
        return None
    rows = sorted(known, key=lambda line: -line["value"])[:MOST_NAMES]
    shown = tips(name="Label", value=".1%|Wrong", low=".1%|From", high=".1%|To")
    what = "share of rows in which the label is wrong"
    percent = {"title": what, "scale": {"zero": True}, "axis": {"format": ".0%", "tickCount": 5}}
    low = {"x": number("low", **percent), "x2": {"field": "high"}}
    layers = [
        layer("rule", low, by_name(), shown, color=ACCENT, strokeWidth=2),
        layer("point", {"x": number("value", **percent)}, by_name(), shown),
    ]
    words = "; ".join(
        f"{row['name']}: {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%})" for row in rows
    )
    title = "Wrong labels, with 95% interval"
    return make_chart("rates", title, words, rows, layers, height_of(rows, 32))
