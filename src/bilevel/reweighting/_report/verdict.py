"""The verdict: whether weighting paid, in one sentence, and what to do, in another."""

from typing import Any

import pandas as pd

from .._weights.baselines import BASELINES, SIMPLEST
from .._weights.diagnostics import verdict
from .._weights.result import WeightsResult
from .refits import Rows

Z95 = 1.96
FEW = 5  # trusted rows of a class
CLEAN = 0.02  # a noise rate that needs no work
LOOSE = 0.2  # a 95 % interval of a class's noise rate that says too little


def _number(x: float) -> str:
    return f"{x:+.3f}" if abs(x) >= 5e-4 else f"{x:+.1e}" if x else "0"


def give_verdict(
    result: WeightsResult, baselines: pd.DataFrame | None, rows: Rows, holdout_rows: int | None
) -> dict[str, Any]:
    """Whether weighting paid, in one sentence, with a 95% interval of the gain."""
    on_holdout = baselines is not None and bool(holdout_rows)
    if baselines is not None and holdout_rows:
        found = _on_holdout(baselines, result.winner, rows, holdout_rows)
    else:
        found = _on_folds(result, rows)
    if found is None:
        return _said(
            "is not proven",
            "there is no hold-out and no comparison on held-out folds of the trusted rows. Keep a "
            "hold-out.",
        )
    gain, half, sign = found["gain"], found.pop("half"), found.pop("sign")
    found |= {"low": gain - half, "high": gain + half}
    low, high = sorted(sign * found[end] for end in ("low", "high"))
    used = result.winner not in BASELINES
    outcome = verdict(gain, found["standard_error"]) if used else "was not used"
    detail = ""
    if not used:
        why = "did clearly best on held-out folds of the trusted rows"
        if result.winner == SIMPLEST:
            why = (
                "is used, as no other choice that keeps the trusted rows did clearly better on "
                "held-out folds of the trusted rows"
            )
        detail = f'"{result.winner}" {why}; '
    detail += (
        f"{'its ' if not used else ''}{found['measure']} is {found['ours']:.3f} on "
        f"{found['where']}, against {found['theirs']:.3f} of {found.pop('rival')}: "
        f"{_number(sign * gain)} (95% interval {_number(low)} to {_number(high)}, paired over the "
        "rows)."
    )
    if outcome == "may have paid":
        detail += " Chance could explain a gain of that size."
    if outcome == "did not pay":
        detail += (
            f' "{found["against"]}" is {"as good" if found["high"] >= 0 else "better: use it"}.'
        )
    over = found.get("over_uniform")
    if used and over is not None and found["against"] != "uniform":
        change, low, high = (_number(over[key]) for key in ("gain", "low", "high"))
        detail += f" Over uniform weights it gains {change} ({low} to {high})."
    if not on_holdout:
        detail += " The same rows chose the winner, so the gain is optimistic: keep a hold-out to "
        detail += "prove it."
    return _said(outcome, detail) | found


def _said(outcome: str, detail: str) -> dict[str, Any]:
    """The sentence, and its parts for a headline and a line beneath."""
    return {
        "sentence": f"Weighting {outcome}: {detail}",
        "headline": f"Weighting {outcome}",
        "detail": detail[0].upper() + detail[1:],
        "outcome": outcome,
    }


def _on_holdout(
    baselines: pd.DataFrame, winner: str, rows: Rows, holdout_rows: int
) -> dict[str, Any]:
    """The result against the best baseline in hindsight, on the hold-out."""
    others = baselines.drop(index=["reweighted", winner], errors="ignore")
    other = "other " if winner in baselines.index else ""
    best = str(others["score"].idxmax())
    line = others.loc[best].astype(float)
    error = line["standard_error"]
    plain = baselines.loc["uniform"].astype(float)
    # Where no two predictions differ in being right: the rule of three bounds how many could.
    exact = error == 0 and not rows.regression
    return {
        "measure": rows.metric,
        "where": f"{holdout_rows} hold-out rows",
        "against": best,
        "rival": f"the best {other}baseline ({best})",
        "ours": float(baselines.loc["reweighted", "score"]),
        "theirs": line["score"],
        "gain": line["difference"],
        "standard_error": error,
        "half": 3 / holdout_rows if exact else Z95 * error,
        "over_uniform": {
            "gain": plain["difference"],
            "low": plain["difference"] - Z95 * plain["standard_error"],
            "high": plain["difference"] + Z95 * plain["standard_error"],
        },
        "sign": 1,
    }


def _on_folds(result: WeightsResult, rows: Rows) -> dict[str, Any] | None:
    """The winner against all rows + trusted, by the loss on held-out folds of the trusted rows.

    Where all rows + trusted won: against the best of the others.
    """
    table, winner = result.candidates, _line(result.candidates, result.winner)
    if table is None or winner is None or SIMPLEST not in table.index or len(table) < 2:
        return None
    rival, line, sign = SIMPLEST, winner, -1
    if result.winner == SIMPLEST:
        rival = str(table.drop(index=SIMPLEST)["loss"].idxmin())
        line, sign = table.loc[rival].to_dict(), 1
    least = 1 if result.metric is None else -1  # the loss is a metric's score with a minus
    return {
        "measure": "loss" if result.metric is None else rows.metric,
        "where": f"held-out folds of the {len(rows.y_trusted)} trusted rows",
        "against": rival,
        "rival": rival,
        "ours": least * winner["loss"],
        "theirs": least * float(table.loc[rival, "loss"]),
        "gain": sign * float(line["difference"]),
        "standard_error": float(line["standard_error"]),
        "half": Z95 * float(line["standard_error"]),
        "sign": -least,
    }


def _line(candidates: pd.DataFrame | None, winner: str) -> dict[str, float] | None:
    """The winner's line: of that name, or the best of those whose name starts with it."""
    if candidates is None:
        return None
    alike = [name for name in candidates.index if name == winner]
    alike = alike or [name for name in candidates.index if str(name).startswith(winner)]
    lines = candidates.loc[alike, ["loss", "difference", "standard_error"]].astype(float)
    return min(lines.to_dict("records"), key=lambda line: line["loss"], default=None)


def give_advice(
    rows: Rows, found: dict[str, Any], noise: dict[str, Any] | None, holdout_rows: int | None
) -> str:
    """What to do, in one sentence: which fit to use, and what would help most."""
    parts = [_what_to_use(found, noise), _what_to_collect(rows, noise, holdout_rows)]
    said = "; ".join(part for part in parts if part)
    return f"{said[0].upper()}{said[1:]}."


def _what_to_use(found: dict[str, Any], noise: dict[str, Any] | None) -> str:
    outcome, against = found["outcome"], found.get("against")
    gains = found.get("low", -1.0) > 0
    if noise is not None and noise["rate"]["high"] < CLEAN and not gains:
        return "your labels are fine: do nothing"
    if outcome == "paid":
        return "use the weights"
    if outcome == "was not used":
        return "use what was chosen: no weights did clearly better"
    if outcome == "is not proven":
        return "keep 200 or more trusted rows aside as a hold-out, to learn whether weighting pays"
    worse = outcome == "did not pay" and found["high"] < 0
    if worse:
        return f'use "{against}": it is better'
    simpler = {"filter": "the filter", "uniform": "equal weights"}.get(str(against), f'"{against}"')
    verb = "are" if simpler == "equal weights" else "is"
    return f"either the weights or {simpler}: {simpler} {verb} simpler"


def _what_to_collect(rows: Rows, noise: dict[str, Any] | None, holdout_rows: int | None) -> str:
    if rows.regression:
        return ""
    trusted = pd.Series(rows.y_trusted).value_counts()
    lines = [] if noise is None else [t for t in noise["by_class"] if t["flagged"]]
    wide = max(lines, key=lambda t: t["high"] - t["low"], default=None)
    counts = {str(name): int(count) for name, count in trusted.items()}
    few = [str(c) for c in pd.unique(rows.y) if counts.get(str(c), 0) < FEW]
    if few:
        more = f" and {len(few) - 1} more classes" * (len(few) > 1)
        has = "has" if len(few) == 1 else "have"
        return f"collect trusted rows of class {few[0]}{more}, which {has} fewer than {FEW}"
    if wide is not None and wide["high"] - wide["low"] > LOOSE:
        count = 3 * counts.get(wide["name"], FEW)  # an interval is halved by four times as many
        return (
            f"collect {count} more trusted rows of class {wide['name']}, whose share of wrong "
            f"labels is known only to lie between {wide['low']:.0%} and {wide['high']:.0%}"
        )
    if holdout_rows is None and noise is not None and noise["verify"] is not None:
        return f"verify the {len(noise['verify']['rows'])} rows named below next"
    return ""
