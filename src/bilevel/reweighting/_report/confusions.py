"""The noise matrix: which labels stand in the place of which, among the flagged rows."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .refits import Rows
from .suspects import Suspects

PICTURED = 12  # classes in the picture
LISTED = 20  # pairs in the table


def confusions(rows: Rows, found: Suspects) -> dict[str, Any] | None:
    """Counts of (given, suggested) label of the flagged rows, the most frequent first; None without.

    The rate of a pair is the expected number of wrong labels among its flagged rows, by the
    calibrated probabilities `wrong`, over the training rows of the given label.
    """
    if rows.regression:
        return None
    flagged = ~np.asarray(rows.result.keep)[found.rows]
    place = found.rows[flagged]
    given, suggested = rows.y[place], found.suggested[flagged]
    differs = given != suggested
    wrong = None if rows.result.wrong is None else np.asarray(rows.result.wrong)[place]
    size = dict(zip(*np.unique(rows.y, return_counts=True), strict=True))
    pairs: dict[tuple[Any, Any], list[int]] = {}
    for i in np.flatnonzero(differs).tolist():
        pairs.setdefault((given[i], suggested[i]), []).append(i)
    lines = [
        {
            "given": a,
            "suggested": b,
            "rows": len(inside),
            "share": len(inside) / size[a],
            "rate": None if wrong is None else float(wrong[inside].sum() / size[a]),
        }
        for (a, b), inside in pairs.items()
    ]
    lines.sort(key=lambda line: (-line["rows"], str(line["given"]), str(line["suggested"])))
    if not lines:
        return None
    classes = {line[key] for line in lines for key in ("given", "suggested")}
    shown = classes
    if len(classes) > PICTURED:
        shown = of_first_pairs((line["given"], line["suggested"]) for line in lines)
    return {
        "flagged": int(flagged.sum()),
        "differ": int(differs.sum()),
        "classes": len(classes),
        "pictured": sorted(shown, key=str),
        "pairs": lines[:LISTED],
        "all_pairs": lines if len(lines) > LISTED else None,
    }


def of_first_pairs(pairs: Iterable[tuple[Any, Any]]) -> set[Any]:
    """The classes of the first pairs, as many as fit into a picture: few cells are empty then."""
    shown: set[Any] = set()
    for pair in pairs:
        if len(shown.union(pair)) <= PICTURED:
            shown.update(pair)
    return shown
