"""The report's charts, by name."""

from typing import Any

import altair as alt

from ..._text import heading
from .chart import (
    ACCENT,
    INK,
    MOST_NAMES,
    MUTED,
    Chart,
    axis_names,
    axis_x,
    axis_y,
    height_of,
    make_chart,
    matrix,
    tips,
)
from .holdout_charts import calibration, change_of_each, confusion, gains


def draw_charts(evidence: dict[str, Any]) -> dict[str, Chart]:
    """All charts of a report, by name; those without numbers are left out."""
    charts = [
        gains(evidence),
        first_wrong(evidence["first_rows"]),
        noise_matrix(evidence["confusions"]),
        histogram(evidence["weights"]),
        *over_the_run(evidence),
        drops(evidence["overfitting"]),
        removal(evidence),
        verified(evidence["work"], evidence["score"]),
    ]
    for kind, table in evidence["effects"].items():
        if table:
            charts.append(weight_of_each(kind, table))
            charts.append(change_of_each(kind, table, evidence["score"]))
    if evidence["before_after"] is not None:
        charts.append(calibration(evidence["before_after"]["calibration"]))
        charts += confusion(evidence["before_after"]["confusion"])
    return {chart.name: chart for chart in charts if chart is not None}


def first_wrong(table: list[dict[str, Any]] | None) -> Chart | None:
    """The share of wrong labels among the first k rows of the list, with its band."""
    if table is None:
        return None
    x = axis_x("rows", "first rows of the list", nice=False)
    base = alt.Chart(height=220).encode(x=x)
    shown = tips(rows=",d|First rows", wrong=".1%|Wrong", low=".1%|From", high=".1%|To")
    percent = alt.Axis(format=".0%", tickCount=5)
    known = table[0]["observed"] is not None
    shown += tips(observed=".1%|Observed") if known else []
    seen = base.mark_line(color=INK, strokeDash=[4, 3]).encode(y="observed:Q", tooltip=shown)
    chart = alt.layer(
        base.mark_area(opacity=0.18, color=ACCENT).encode(
            y=alt.Y("low:Q", title="wrong labels", axis=percent, scale=alt.Scale(domain=[0, 1])),
            y2="high:Q",
        ),
        base.mark_line().encode(y="wrong:Q", tooltip=shown),
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
    words = "; ".join(f"{t['given']} to {t['suggested']}: {t['rows']}" for t in found["pairs"][:10])
    title = "Flagged rows, given and suggested label"
    return matrix("noise-matrix", title, words, rows, names, most, "given")


def histogram(weights: dict[str, Any]) -> Chart:
    """How many rows have what weight."""
    edges, counts = weights["histogram"]["edges"], weights["histogram"]["counts"]
    rows = [
        {"low": low, "high": high, "rows": count}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    shown = tips(low=".3f|From", high=".3f|To", rows=",d|Rows")
    chart = (
        alt.Chart(height=220)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "low:Q", bin="binned", title="weight (1 is the mean)", axis=alt.Axis(tickCount=6)
            ),
            x2="high:Q",
            y=axis_y("rows", "rows"),
            tooltip=shown,
        )
    )
    quantiles = ", ".join(
        f"{name} {value:.2f}" for name, value in weights["quantiles"].items() if value is not None
    )
    words = f"Histogram of the weights. Percentiles: {quantiles}."
    return make_chart("histogram", "Weights of the training rows", words, rows, chart)


def over_the_run(evidence: dict[str, Any]) -> list[Chart]:
    """Effective sample size, entropy and trusted loss of free weights, step by step.

    Other weights are chosen in two rounds, of which a line says nothing.
    """
    if evidence["candidates"] is not None:
        return []
    charts, history = [], evidence["history"]
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
        first, last = rows[0]["step"], rows[-1]["step"]
        few = list(range(int(first), int(last) + 1)) if last - first < 6 else alt.Undefined
        points = {"filled": True, "size": 24} if len(rows) <= 60 else False
        chart = (
            alt.Chart(height=150)
            .mark_line(point=points)
            .encode(
                x=alt.X(
                    "step:Q",
                    title="outer step",
                    scale=alt.Scale(nice=False),
                    axis=alt.Axis(tickCount=5, values=few, format="d"),
                ),
                y=axis_y("value", "", zero=False),
                tooltip=tips(step="d|Step", value=f"{form}|{title}"),
            )
        )
        ends = f"from {rows[0]['value']:.4g} to {rows[-1]['value']:.4g}"
        words = f"{title} over {len(rows)} recorded steps, {ends}."
        charts.append(make_chart(field.replace("_", "-"), title, words, rows, chart, width=300))
    return charts


def weight_of_each(kind: str, table: list[dict[str, Any]]) -> Chart:
    """The mean weight of each class or group."""
    rows = [
        {"name": t["name"], "mean_weight": t["mean_weight"], "rows": t["train_rows"]}
        for t in _most(table)
    ]
    shown = tips(name="Name", mean_weight=".3f|Mean weight", rows=",d|Rows")
    chart = alt.layer(
        alt.Chart(height=height_of(rows, 20))
        .mark_bar(height=12)
        .encode(x=axis_x("mean_weight", "mean weight", zero=True), y=axis_names(), tooltip=shown),
        alt.Chart()
        .mark_rule(aria=False, strokeDash=[4, 3], color=INK)
        .encode(x=alt.datum(1, type="quantitative")),
    )
    words = "; ".join(
        f"{r['name']}: {r['mean_weight']:.2f}" for r in rows if r["mean_weight"] is not None
    )
    return make_chart(f"weight-{kind}", "Mean weight", words, rows, chart)


def verified(work: dict[str, Any] | None, score: str) -> Chart | None:
    """The score against the number of verified rows."""
    if work is None or work["curve"] is None:
        return None
    rows = [
        {"verified": t["verified"], "fit": name, "score": t[key]}
        | {"low": t[f"{key}_low"], "high": t[f"{key}_high"]}
        for name, key in [("verified rows alone", "trusted_only"), ("filter", "filter")]
        for t in work["curve"]["lines"]
        if t[key] is not None
    ]
    if not rows:
        return None
    colour = alt.Color(
        "fit:N",
        scale=alt.Scale(domain=["verified rows alone", "filter"], range=[MUTED, ACCENT]),
        legend=alt.Legend(symbolOpacity=1),
    )
    shown = tips(fit="Fit", verified=",d|Verified", score=f".4f|{score}")
    x, y = axis_x("verified", "verified rows", nice=False), axis_y("score", score, zero=False)
    base = alt.Chart(height=220).encode(x=x, color=colour)
    chart = alt.layer(
        base.mark_area(opacity=0.18).encode(y=axis_y("low", score, zero=False), y2="high:Q"),
        base.mark_line().encode(y=y),
        base.mark_point(size=40).encode(y=y, tooltip=shown),
    )
    words = "; ".join(f"{r['fit']}, {r['verified']} rows: {r['score']:.3f}" for r in rows)
    title = f"{heading(score)} by the number of verified rows"
    return make_chart("verified", title, words, rows, chart)


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
        alt.Chart(height=height_of(rows, 28))
        .mark_bar(height=14)
        .encode(
            x=axis_x("drop", what),
            y=axis_names(),
            color=colour,
            tooltip=tips(name="On", drop="+.4f|Drop"),
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
    shown = tips(removed="Removed", percent="d|Percent", score=f".4f|{score}")
    x, y = axis_x("percent", "% of the training rows removed"), axis_y("score", score, zero=False)
    base = alt.Chart(height=220).encode(x=x, color=colour)
    chart = alt.layer(
        base.mark_area(opacity=0.18).encode(y=axis_y("low", score, zero=False), y2="high:Q"),
        base.mark_line().encode(y=y),
        base.mark_point(size=40).encode(y=y, tooltip=shown),
    )
    words = "; ".join(f"{r['percent']}% {r['removed']}: {r['score']:.3f}" for r in rows)
    return make_chart("removal", f"{heading(score)} without some rows", words, rows, chart)
