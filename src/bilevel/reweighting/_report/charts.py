"""The report's charts, by name."""

from typing import Any

from ..._text import heading
from .chart import (
    ACCENT,
    INK,
    MOST_NAMES,
    MUTED,
    Chart,
    Spec,
    axis,
    by_name,
    colours,
    height_of,
    layer,
    make_chart,
    matrix,
    number,
    rule_at,
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
    x = {"x": axis("rows", "first rows of the list", nice=False)}
    known = table[0]["observed"] is not None
    observed = {"observed": ".1%|Observed"} if known else {}
    said = {"wrong": ".1%|Wrong", "low": ".1%|From", "high": ".1%|To"} | observed
    shown = tips(rows=",d|First rows", **said)
    percent = {"format": ".0%", "tickCount": 5}
    low = number("low", title="wrong labels", axis=percent, scale={"domain": [0, 1]})
    layers = [
        layer("area", x, {"y": low, "y2": {"field": "high"}}, opacity=0.18, color=ACCENT),
        layer("line", x, {"y": number("wrong")}, shown),
    ]
    if known:
        seen = {"y": number("observed")}
        layers.append(layer("line", x, seen, shown, color=INK, strokeDash=[4, 3]))
    some = table[:: max(1, len(table) // 5)]
    words = "; ".join(
        f"of the first {t['rows']} rows {t['wrong']:.0%} ({t['low']:.0%} to {t['high']:.0%})"
        + (f", in truth {t['observed']:.0%}" if known else "")
        for t in some
    )
    rows = [{k: v for k, v in t.items() if known or k != "observed"} for t in table]
    return make_chart("first-wrong", "Wrong labels among the first rows", words, rows, layers, 220)


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
    ends = {
        "x": number("low", bin="binned", title="weight (1 is the mean)", axis={"tickCount": 6}),
        "x2": {"field": "high"},
    }
    bars = layer("bar", ends, {"y": axis("rows", "rows")}, shown, binSpacing=1)
    quantiles = ", ".join(
        f"{name} {value:.2f}" for name, value in weights["quantiles"].items() if value is not None
    )
    words = f"Histogram of the weights. Percentiles: {quantiles}."
    return make_chart("histogram", "Weights of the training rows", words, rows, [bars], 220)


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
        few = {"values": list(range(int(first), int(last) + 1))} if last - first < 6 else {}
        step = {"tickCount": 5, "format": "d"} | few
        line = layer(
            "line",
            {"x": number("step", title="outer step", scale={"nice": False}, axis=step)},
            {"y": axis("value", "", zero=False)},
            tips(step="d|Step", value=f"{form}|{title}"),
            point={"filled": True, "size": 24} if len(rows) <= 60 else False,
        )
        ends = f"from {rows[0]['value']:.4g} to {rows[-1]['value']:.4g}"
        words = f"{title} over {len(rows)} recorded steps, {ends}."
        name = field.replace("_", "-")
        charts.append(make_chart(name, title, words, rows, [line], 150, width=300))
    return charts


def weight_of_each(kind: str, table: list[dict[str, Any]]) -> Chart:
    """The mean weight of each class or group."""
    rows = [
        {"name": t["name"], "mean_weight": t["mean_weight"], "rows": t["train_rows"]}
        for t in _most(table)
    ]
    shown = tips(name="Name", mean_weight=".3f|Mean weight", rows=",d|Rows")
    mean = {"x": axis("mean_weight", "mean weight", zero=True)}
    layers = [layer("bar", mean, by_name(), shown, height=12), rule_at(1, color=INK)]
    words = "; ".join(
        f"{r['name']}: {r['mean_weight']:.2f}" for r in rows if r["mean_weight"] is not None
    )
    height = height_of(rows, 20)
    return make_chart(f"weight-{kind}", "Mean weight", words, rows, layers, height)


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
    shown = tips(fit="Fit", verified=",d|Verified", score=f".4f|{score}")
    fits = colours("fit", ["verified rows alone", "filter"], [MUTED, ACCENT], {"symbolOpacity": 1})
    layers = _with_bands({"x": axis("verified", "verified rows", nice=False)}, fits, shown, score)
    words = "; ".join(f"{r['fit']}, {r['verified']} rows: {r['score']:.3f}" for r in rows)
    title = f"{heading(score)} by the number of verified rows"
    return make_chart("verified", title, words, rows, layers, 220)


def _most(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All, or the 30 with the most rows, in the table's order."""
    if len(table) <= MOST_NAMES:
        return table
    least = sorted((t["train_rows"] for t in table), reverse=True)[MOST_NAMES - 1]
    return [t for t in table if t["train_rows"] >= least][:MOST_NAMES]


def drops(found: dict[str, Any]) -> Chart:
    """How far the loss fell where weights were fitted to the labels, and where they were not."""
    rows = [{"name": "trusted rows", "drop": found["trusted"]["drop"]}]
    names = ["trusted rows", "hold-out", "fitted to shuffled labels"]
    if found["holdout"] is not None:
        rows.append({"name": "hold-out", "drop": found["holdout"]["drop"]})
    if found["control"] is not None:
        rows.append({"name": "fitted to shuffled labels", "drop": found["control"]["overfit"]})
    what = f"drop of the {found['loss']}"
    bars = layer(
        "bar",
        {"x": axis("drop", what)},
        by_name(),
        colours("name", names, [ACCENT, ACCENT, MUTED], None),
        tips(name="On", drop="+.4f|Drop"),
        height=14,
    )
    words = "; ".join(f"{r['name']}: {r['drop']:+.3f}" for r in rows)
    title = f"{what.capitalize()}, from equal weights to these"
    return make_chart("drops", title, words, rows, [bars], height_of(rows, 28))


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
    shown = tips(removed="Removed", percent="d|Percent", score=f".4f|{score}")
    ways = ["lowest label quality", "at random"]
    colour = colours("removed", ways, [ACCENT, MUTED], {"symbolOpacity": 1})
    x = {"x": axis("percent", "% of the training rows removed")}
    layers = _with_bands(x, colour, shown, score)
    words = "; ".join(f"{r['percent']}% {r['removed']}: {r['score']:.3f}" for r in rows)
    title = f"{heading(score)} without some rows"
    return make_chart("removal", title, words, rows, layers, 220)


def _with_bands(x: Spec, colour: Spec, shown: Spec, score: str) -> list[Spec]:
    """Lines of scores with their bands, and points that say what they are."""
    low, y = axis("low", score, zero=False), {"y": axis("score", score, zero=False)}
    return [
        layer("area", x, colour, {"y": low, "y2": {"field": "high"}}, opacity=0.18),
        layer("line", x, colour, y),
        layer("point", x, colour, y, shown, size=40),
    ]
