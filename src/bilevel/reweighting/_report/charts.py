"""The report's charts: each as a static SVG and as a Vega-Lite specification.

Colours are CSS variables of the page, so that light, dark and print need one chart only. Names of
fields are ours; what comes from data is only ever a value.
"""

import dataclasses
from typing import Any

import altair as alt
import vl_convert
from markupsafe import escape

from ..._text import visible_everywhere

WIDTH = 420
ACCENT, MUTED, INK, LINE = "var(--accent)", "var(--muted)", "var(--ink)", "var(--line)"
MOST_NAMES = 30
_AXIS = {
    "labelColor": MUTED,
    "titleColor": MUTED,
    "gridColor": LINE,
    "domainColor": LINE,
    "tickColor": LINE,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "titlePadding": 8,
    "labelLimit": 140,
    "labelFlush": False,
    "labelPadding": 6,
}
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisDiscrete": {"ticks": False, "grid": False, "domain": False, "labelColor": INK},
    "legend": {
        "labelColor": INK,
        "labelFontSize": 12,
        "title": None,
        "orient": "top",
        "symbolType": "stroke",
        "symbolStrokeWidth": 3,
        "columnPadding": 20,
    },
    "bar": {"color": ACCENT},
    "line": {"color": ACCENT, "strokeWidth": 2},
    "point": {"color": ACCENT, "filled": True, "size": 60, "opacity": 1},
    "rule": {"color": MUTED},
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart as the page shows it.

    Attributes:
        name: its id in the page.
        title: what it shows.
        alt: in words, for those who cannot see it.
        spec: Vega-Lite, as wide as its container.
        svg: the same, drawn.
        rows: the numbers in it, for the table beneath.
    """

    name: str
    title: str
    alt: str
    spec: dict[str, Any]
    svg: str
    rows: list[dict[str, Any]]

    @property
    def columns(self) -> list[tuple[str, str, str | None]]:
        """Key, title and number format of the columns of `rows`."""
        forms = {str: None, int: ",d", float: ".4g"}
        return [
            (key, key.replace("_", " ").capitalize(), forms.get(type(value), ".4g"))
            for key, value in self.rows[0].items()
        ]


def draw_charts(evidence: dict[str, Any]) -> dict[str, Chart]:
    """All charts of a report, by name; those without numbers are left out."""
    charts = [
        gains(evidence),
        first_wrong(evidence["first_rows"]),
        noise_matrix(evidence["confusions"]),
        histogram(evidence["weights"]),
        *over_the_run(evidence["history"]),
        drops(evidence["overfitting"]),
        removal(evidence),
    ]
    for kind, table in evidence["effects"].items():
        if table:
            charts.append(weight_of_each(kind, table))
            charts.append(score_of_each(kind, table, evidence["score"]))
    return {chart.name: chart for chart in charts if chart is not None}


def make_chart(
    name: str, title: str, alt_text: str, rows: list[dict], chart: Any, width: int = WIDTH
) -> Chart:
    """Draw an altair chart, whose data are `rows`."""
    rows, title, alt_text = visible_everywhere([rows, title, alt_text])
    chart = chart.properties(data=alt.Data(values=rows), width="container", description=alt_text)
    # Control characters in texts would end the process of the library that draws.
    spec = visible_everywhere(chart.to_dict(validate=False) | {"config": _CONFIG})
    # Fonts differ: where the reader's is wider than the one measured here, labels need the padding.
    fixed = {
        "width": width,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"left": 16, "right": 12, "top": 5, "bottom": 5},
    }
    svg = vl_convert.vegalite_to_svg(spec | fixed, allowed_base_urls=[])
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt_text)}" ', 1)
    return Chart(name, title, alt_text, spec, svg, rows)


def _x(field: str, title: str, **scale: Any) -> alt.X:
    return alt.X(f"{field}:Q", title=title, scale=alt.Scale(**scale), axis=alt.Axis(tickCount=5))


def _y(field: str, title: str, **scale: Any) -> alt.Y:
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(**scale), axis=alt.Axis(tickCount=5))


def _height(rows: list[dict[str, Any]], step: int) -> int:
    """Room for a line a name: in pixels, as step heights warn where the width is the container's."""
    return step * len({row["name"] for row in rows})


def _names() -> alt.Y:
    return alt.Y("name:N", title=None, sort=None)


def _tips(**fields: str) -> list[alt.Tooltip]:
    """Tooltips; `name="Row"` is text, `x=",.3f Score"` a number in that format."""
    tips = []
    for field, text in fields.items():
        form, _, title = text.rpartition("|")
        if form:
            tips.append(alt.Tooltip(field, title=title, type="quantitative", format=form))
        else:
            tips.append(alt.Tooltip(field, title=title, type="nominal"))
    return tips


def gains(evidence: dict[str, Any]) -> Chart | None:
    """The gain over each baseline, or each candidate's over the simplest, with its interval."""
    if evidence["baselines"] is not None:
        table, sign, digits = evidence["baselines"], 1, ".4f"
        what = f"gain in {evidence['score']}"
        title = "Gain over each baseline"
        table = [line for line in table if line["name"] != "reweighted"]
    elif evidence["candidates"] is not None:
        table, sign, digits = evidence["candidates"], -1, ".4f"
        what, title = "loss saved", "Gain over all rows + trusted"
    else:
        return None
    rows = [
        {
            "name": line["name"],
            "gain": sign * line["difference"],
            "low": sign * line["difference"] - 1.96 * line["standard_error"],
            "high": sign * line["difference"] + 1.96 * line["standard_error"],
        }
        for line in table
        if line["difference"] is not None and line["standard_error"] is not None
    ]
    tips = _tips(
        name="Against", gain=f"+{digits}|Gain", low=f"+{digits}|From", high=f"+{digits}|To"
    )
    base = alt.Chart(height=_height(rows, 32)).encode(y=_names(), tooltip=tips)
    chart = alt.layer(
        alt.Chart().mark_rule(strokeDash=[4, 3]).encode(x=alt.datum(0, type="quantitative")),
        base.mark_rule(color=ACCENT, strokeWidth=2).encode(x=_x("low", what), x2="high:Q"),
        base.mark_point().encode(x=_x("gain", what)),
    )
    words = "; ".join(
        f"{r['name']}: {r['gain']:+.4f} ({r['low']:+.4f} to {r['high']:+.4f})" for r in rows
    )
    return make_chart("gains", f"{title}, with 95% interval", words, rows, chart, width=340)


def first_wrong(table: list[dict[str, Any]] | None) -> Chart | None:
    """The share of wrong labels among the first k rows of the list, with its band."""
    if table is None:
        return None
    x = _x("rows", "first rows of the list", nice=False)
    base = alt.Chart(height=220).encode(x=x)
    tips = _tips(rows=",d|First rows", wrong=".1%|Wrong", low=".1%|From", high=".1%|To")
    percent = alt.Axis(format=".0%", tickCount=5)
    known = table[0]["observed"] is not None
    tips += _tips(observed=".1%|Observed") if known else []
    seen = base.mark_line(color=INK, strokeDash=[4, 3]).encode(y="observed:Q", tooltip=tips)
    chart = alt.layer(
        base.mark_area(opacity=0.18, color=ACCENT).encode(
            y=alt.Y("low:Q", title="wrong labels", axis=percent, scale=alt.Scale(domain=[0, 1])),
            y2="high:Q",
        ),
        base.mark_line().encode(y="wrong:Q", tooltip=tips),
        *([seen] if known else []),
    )
    some = table[:: max(1, len(table) // 5)]
    words = "; ".join(
        f"of the first {t['rows']} rows {t['wrong']:.0%} ({t['low']:.0%} to {t['high']:.0%})"
        + (f", in truth {t['observed']:.0%}" if known else "")
        for t in some
    )
    rows = [{k: v for k, v in t.items() if known or k != "observed"} for t in table]
    return make_chart("first-wrong", "Wrong labels among the first rows", words, rows, chart)


def noise_matrix(found: dict[str, Any] | None) -> Chart | None:
    """How many flagged rows have each given label and each suggested one."""
    if found is None:
        return None
    names = [str(name) for name in found["pictured"]]
    pairs = found["all_pairs"] or found["pairs"]
    count = {(str(t["given"]), str(t["suggested"])): t["rows"] for t in pairs}
    rows = [
        {"given": a, "suggested": b, "rows": count.get((a, b), 0)}
        for a in names
        for b in names
        if a != b
    ]
    most = max((row["rows"] for row in rows), default=1) or 1
    side = max(30 * len(names), 120)
    base = alt.Chart(height=side).encode(
        x=alt.X("suggested:N", title="suggested", sort=names, axis=alt.Axis(orient="top")),
        y=alt.Y("given:N", title="given", sort=names),
        tooltip=_tips(given="Given", suggested="Suggested", rows=",d|Flagged rows"),
    )
    opacity = alt.Opacity(
        "rows:Q", scale=alt.Scale(domain=[0, most], range=[0.04, 0.75]), legend=None
    )
    chart = alt.layer(
        base.mark_rect(color=ACCENT).encode(opacity=opacity),
        base.transform_filter("datum.rows > 0").mark_text(color=INK).encode(text="rows:Q"),
    )
    words = "; ".join(f"{t['given']} to {t['suggested']}: {t['rows']}" for t in found["pairs"][:10])
    return make_chart("noise-matrix", "Flagged rows, given and suggested label", words, rows, chart)


def histogram(weights: dict[str, Any]) -> Chart:
    """How many rows have what weight."""
    edges, counts = weights["histogram"]["edges"], weights["histogram"]["counts"]
    rows = [
        {"low": low, "high": high, "rows": count}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    tips = _tips(low=".3f|From", high=".3f|To", rows=",d|Rows")
    chart = (
        alt.Chart(height=220)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "low:Q", bin="binned", title="weight (1 is the mean)", axis=alt.Axis(tickCount=6)
            ),
            x2="high:Q",
            y=_y("rows", "rows"),
            tooltip=tips,
        )
    )
    quantiles = ", ".join(
        f"{name} {value:.2f}" for name, value in weights["quantiles"].items() if value is not None
    )
    words = f"Histogram of the weights. Percentiles: {quantiles}."
    return make_chart("histogram", "Weights of the training rows", words, rows, chart)


def over_the_run(history: dict[str, list[Any]]) -> list[Chart]:
    """Effective sample size, entropy and trusted loss, step by step."""
    charts = []
    for field, title, form in [
        ("effective_sample_size", "Effective rows", ",.0f"),
        ("entropy", "Entropy of the weights, nats", ".3f"),
        ("outer_value", "Trusted loss of the run", ".4f"),
    ]:
        if not history.get("step") or field not in history:
            continue
        rows = [
            {"step": step, "value": value}
            for step, value in zip(history["step"], history[field], strict=True)
            if value is not None
        ]
        if not rows:
            continue
        points = {"filled": True, "size": 24} if len(rows) <= 60 else False
        chart = (
            alt.Chart(height=150)
            .mark_line(point=points)
            .encode(
                x=_x("step", "outer step", nice=False),
                y=_y("value", "", zero=False),
                tooltip=_tips(step="d|Step", value=f"{form}|{title}"),
            )
        )
        first, last = rows[0]["value"], rows[-1]["value"]
        words = f"{title} over {len(rows)} recorded steps, from {first:.4g} to {last:.4g}."
        charts.append(make_chart(field.replace("_", "-"), title, words, rows, chart, width=300))
    return charts


def weight_of_each(kind: str, table: list[dict[str, Any]]) -> Chart:
    """The mean weight of each class or group."""
    rows = [
        {"name": t["name"], "mean_weight": t["mean_weight"], "rows": t["train_rows"]}
        for t in _most(table)
    ]
    tips = _tips(name="Name", mean_weight=".3f|Mean weight", rows=",d|Rows")
    chart = alt.layer(
        alt.Chart(height=_height(rows, 20))
        .mark_bar(height=12)
        .encode(x=_x("mean_weight", "mean weight", zero=True), y=_names(), tooltip=tips),
        alt.Chart()
        .mark_rule(strokeDash=[4, 3], color=INK)
        .encode(x=alt.datum(1, type="quantitative")),
    )
    words = "; ".join(
        f"{r['name']}: {r['mean_weight']:.2f}" for r in rows if r["mean_weight"] is not None
    )
    return make_chart(f"weight-{kind}", "Mean weight", words, rows, chart)


def score_of_each(kind: str, table: list[dict[str, Any]], score: str) -> Chart | None:
    """The hold-out score of each class or group, with equal weights and with ours."""
    rows = [
        {"name": t["name"], "fit": fit, "score": t[key]}
        for t in _most(table)
        for key, fit in [("equal", "equal weights"), ("reweighted", "reweighted")]
        if t["equal"] is not None and t["reweighted"] is not None
    ]
    if not rows:
        return None
    colour = alt.Color(
        "fit:N",
        scale=alt.Scale(domain=["equal weights", "reweighted"], range=[MUTED, ACCENT]),
        legend=alt.Legend(symbolType="circle"),
    )
    base = alt.Chart(height=_height(rows, 20)).encode(y=_names())
    x = _x("score", f"hold-out {score}", zero=False)
    chart = alt.layer(
        base.mark_line(color=LINE, strokeWidth=3).encode(x=x, detail="name:N"),
        base.mark_point().encode(
            x=x, color=colour, tooltip=_tips(name="Name", fit="Fit", score=f".4f|{score}")
        ),
    )
    words = "; ".join(f"{r['name']}, {r['fit']}: {r['score']:.3f}" for r in rows)
    return make_chart(f"score-{kind}", f"Hold-out {score}", words, rows, chart)


def _most(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All, or the 30 with the most rows, in the table's order."""
    if len(table) <= MOST_NAMES:
        return table
    least = sorted((t["train_rows"] for t in table), reverse=True)[MOST_NAMES - 1]
    return [t for t in table if t["train_rows"] >= least][:MOST_NAMES]


def drops(found: dict[str, Any]) -> Chart:
    """How far the loss fell where weights were fitted to the labels, and where they were not."""
    rows = [{"name": "trusted rows", "drop": found["trusted"]["drop"]}]
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(
            domain=["trusted rows", "hold-out", "fitted to shuffled labels"],
            range=[ACCENT, ACCENT, MUTED],
        ),
        legend=None,
    )
    if found["holdout"] is not None:
        rows.append({"name": "hold-out", "drop": found["holdout"]["drop"]})
    if found["control"] is not None:
        rows.append({"name": "fitted to shuffled labels", "drop": found["control"]["overfit"]})
    what = f"drop of the {found['loss']}"
    chart = (
        alt.Chart(height=_height(rows, 28))
        .mark_bar(height=14)
        .encode(
            x=_x("drop", what), y=_names(), color=colour, tooltip=_tips(name="On", drop="+.4f|Drop")
        )
    )
    words = "; ".join(f"{r['name']}: {r['drop']:+.3f}" for r in rows)
    return make_chart(
        "drops", f"{what.capitalize()}, from equal weights to these", words, rows, chart
    )


def removal(evidence: dict[str, Any]) -> Chart | None:
    """The score without the worst rows, and without as many at random."""
    score = evidence["score"]
    rows = [
        {"percent": t["percent"], "removed": name, "score": t[key], "low": t[low], "high": t[high]}
        for name, key, low, high in [
            ("lowest label quality", "lowest", "lowest", "lowest"),
            ("at random", "random", "random_low", "random_high"),
        ]
        for t in evidence["removal"]["table"]
        if t[key] is not None
    ]
    if not rows:
        return None
    colour = alt.Color(
        "removed:N",
        scale=alt.Scale(domain=["lowest label quality", "at random"], range=[ACCENT, MUTED]),
        legend=alt.Legend(symbolOpacity=1),
    )
    tips = _tips(removed="Removed", percent="d|Percent", score=f".4f|{score}")
    x, y = _x("percent", "% of the training rows removed"), _y("score", score, zero=False)
    base = alt.Chart(height=220).encode(x=x, color=colour)
    chart = alt.layer(
        base.mark_area(opacity=0.18).encode(y=_y("low", score, zero=False), y2="high:Q"),
        base.mark_line().encode(y=y),
        base.mark_point(size=40).encode(y=y, tooltip=tips),
    )
    words = "; ".join(f"{r['percent']}% {r['removed']}: {r['score']:.3f}" for r in rows)
    return make_chart("removal", f"{score.capitalize()} without some rows", words, rows, chart)
