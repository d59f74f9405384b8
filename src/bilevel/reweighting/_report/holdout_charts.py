"""The charts of what was measured on the hold-out: gains, changes, calibration, confusions."""

from typing import Any

from .chart import (
    ACCENT,
    MOST_NAMES,
    MUTED,
    Chart,
    axis,
    by_name,
    colours,
    height_of,
    layer,
    make_chart,
    matrix,
    rule_at,
    tips,
)


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
    shown = tips(
        name="Against", gain=f"+{digits}|Gain", low=f"+{digits}|From", high=f"+{digits}|To"
    )
    low = {"x": axis("low", what), "x2": {"field": "high"}}
    layers = [
        rule_at(0),
        layer("rule", low, by_name(), shown, color=ACCENT, strokeWidth=2),
        layer("point", {"x": axis("gain", what)}, by_name(), shown),
    ]
    words = "; ".join(
        f"{r['name']}: {r['gain']:+.4f} ({r['low']:+.4f} to {r['high']:+.4f})" for r in rows
    )
    title, height = f"{title}, with 95% interval", height_of(rows, 32)
    return make_chart("gains", title, words, rows, layers, height, width=340)


def change_of_each(kind: str, table: list[dict[str, Any]], score: str) -> Chart | None:
    """How the hold-out score of each class or group changes: at most 30, the largest changes."""
    score = "recall" if kind == "classes" else score
    rows = [
        {key: t[key] for key in ("name", "equal", "reweighted", "difference", "low", "high")}
        for t in table
        if t["difference"] is not None
    ]
    if not rows:
        return None
    if len(rows) > MOST_NAMES:
        least = sorted((abs(r["difference"]) for r in rows), reverse=True)[MOST_NAMES - 1]
        rows = [r for r in rows if abs(r["difference"]) >= least][:MOST_NAMES]
    shown = tips(
        name="Name",
        equal=".4f|Before",
        reweighted=".4f|After",
        difference="+.4f|Difference",
        low="+.4f|From",
        high="+.4f|To",
    )
    what, valid = f"change of {score}", "isValid(datum.low)"
    low = {"x": axis("low", what), "x2": {"field": "high"}}
    layers = [rule_at(0)]
    if any(r["low"] is not None for r in rows):
        interval = layer("rule", low, by_name(), shown, where=valid, color=ACCENT, strokeWidth=2)
        layers.append(interval)
    layers.append(layer("point", {"x": axis("difference", what)}, by_name(), shown))
    words = "; ".join(f"{r['name']}: {r['difference']:+.3f}" for r in rows)
    title, height = f"Change of {score}, 95% interval", height_of(rows, 20)
    return make_chart(f"change-{kind}", title, words, rows, layers, height)


def calibration(found: dict[str, Any] | None) -> Chart | None:
    """What is predicted against what is observed, before and after."""
    if found is None:
        return None
    rows = [{"fit": fit} | line for fit in ("before", "after") for line in found[fit]]
    everything = [r[k] for r in rows for k in ("said", "seen", "low", "high") if r[k] is not None]
    ends = [min(everything), max(everything)]
    legend = {"symbolType": "circle", "symbolOpacity": 1}
    colour = colours("fit", ["before", "after"], [MUTED, ACCENT], legend)
    shown = tips(
        fit="Fit",
        said=".3f|Predicted",
        seen=".3f|Observed",
        low=".3f|From",
        high=".3f|To",
        rows=",d|Rows",
    )
    x = {"x": axis("said", "predicted", domain=ends, nice=True)}
    low, seen = (
        axis(name, "observed", domain=ends, nice=True, zero=False) for name in ("low", "seen")
    )
    y, diagonal = {"y": seen}, {"values": [{"said": end, "seen": end} for end in ends]}
    plain = {"aria": False, "color": MUTED, "strokeDash": [2, 3], "strokeWidth": 1.5}
    pale: dict[str, Any] = {"strokeWidth": 1.5, "opacity": 0.6}
    layers = [
        layer("line", x, y, **plain) | {"data": diagonal},
        layer("rule", x, colour, {"y": low, "y2": {"field": "high"}}, shown, **pale),
        layer("line", x, colour, y, shown, **pale),
        layer("point", x, colour, y, shown),
    ]
    words = "; ".join(f"{r['fit']}, predicted {r['said']:.2f}: {r['seen']:.2f}" for r in rows)
    return make_chart("calibration", "Calibration before and after", words, rows, layers, 280)


def confusion(found: dict[str, Any] | None) -> list[Chart]:
    """True and predicted labels of the hold-out, before and after."""
    if found is None or not found["pictured"]:
        return []
    names = [str(name) for name in found["pictured"]]
    wrong = [
        c[side]
        for c in found["cells"]
        for side in ("before", "after")
        if str(c["true"]) != str(c["predicted"])
    ]
    most = max([*wrong, 1])
    charts = []
    for side in ("before", "after"):
        rows = [
            {"true": str(c["true"]), "predicted": str(c["predicted"]), "rows": c[side]}
            for c in found["cells"]
        ]
        total = found["wrong"][side == "after"]
        words = f"{total} wrong predictions; " + "; ".join(
            f"{c['true']} as {c['predicted']}: {c[side]}" for c in found["changes"][:10]
        )
        charts.append(
            matrix(f"confusion-{side}", f"Hold-out, {side}", words, rows, names, most, "true")
        )
    return charts
