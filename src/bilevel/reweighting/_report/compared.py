"""Two runs side by side: what was asked, which rows changed sides, and the scores on the same rows."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from ..._text import visible

SHOWN = 50  # rows that changed sides
FIRST = (50, 100, 200)  # rows of the list whose overlap is told
NOT_ASKED = frozenset({"out", "sha256"})  # of the settings


class Scores(NamedTuple):
    """How well two models do on the same rows.

    Attributes:
        name: of the score: accuracy, R2 or the metric of both runs.
        rows: how many.
        first, second: numbers whose means are the scores: one per row, or per group of rows.
    """

    name: str
    rows: int
    first: np.ndarray
    second: np.ndarray


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs on the same training rows, or on rows of which some are the same.

    Attributes:
        settings: by name, what the two runs were asked where that differs.
        files: which of the input files differ, by their sums.
        rows: how many rows both runs have.
        agreement: rank correlation of the label quality; by list length, how many of the first rows of
            one list are in the other.
        changed: rows that one run keeps and the other flags: `id`, `first` and `second` ("keep" or
            "flag"), and the label quality in both; the largest change first.
        flagged: how many rows each run flags.
        scores: of the final models on the same hold-out (`name`: accuracy, R2, or the metric of both
            runs), with the paired difference (second less first), its standard error and 95 %
            interval; None if they are not compared.
        unscored: why not.
        by_content: whether rows that have only numbers, in different files, were compared with those
            that hold the same; they are called as in the first run.
    """

    settings: dict[str, tuple[Any, Any]]
    files: list[str]
    rows: int
    agreement: dict[str, float]
    changed: pd.DataFrame
    flagged: tuple[int, int]
    scores: dict[str, Any] | None
    unscored: str | None = None
    by_content: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "format": "bilevel comparison 2",
            "settings": {k: list(v) for k, v in self.settings.items()},
            "files": self.files,
            "rows": self.rows,
            "agreement": self.agreement,
            "flagged": list(self.flagged),
            "changed": len(self.changed),
            "changed_rows": self.changed.to_dict("records"),
            "scores": self.scores,
            "unscored": self.unscored,
            "by_content": self.by_content,
        }

    def __str__(self) -> str:
        """A few sentences and the first rows that changed sides."""
        lines = []
        for name, (one, two) in self.settings.items():
            lines.append(f"{name}: {one} in the first run, {two} in the second")
        if self.files:
            lines.append(f"other files: {', '.join(self.files)}")
        if self.by_content:
            lines.append(
                "the rows have no ids in common: those that hold the same are compared, and are "
                "called as in the first run"
            )
        if not lines:
            lines.append("both runs were asked the same of the same files")
        overlap = ", ".join(
            f"{share:.0%} of the first {name}"
            for name, share in self.agreement.items()
            if name != "rank correlation"
        )
        lines.append(
            f"{self.rows} rows in both; rank correlation of the label quality "
            f"{self.agreement['rank correlation']:.3f}; in both lists: {overlap}"
        )
        lines.append(
            f"flagged: {self.flagged[0]} and {self.flagged[1]}; "
            f"{len(self.changed)} row{'s' * (len(self.changed) != 1)} changed sides"
        )
        if self.scores is not None:
            s = self.scores
            lines.append(
                f"{s['name']} on {s['rows']} hold-out rows: {s['first']:.4f} and {s['second']:.4f}; "
                f"difference {s['difference']:+.4f} (95 % interval {s['low']:+.4f} to "
                f"{s['high']:+.4f})"
            )
        else:
            lines.append(f"scores are not compared: {visible(self.unscored or '')}")
        for row in self.changed.head(10).to_dict("records"):
            lines.append(f"  {visible(str(row['id']))}: {row['first']}, then {row['second']}")
        return "\n".join(lines)


def compare_runs(
    configs: tuple[dict[str, Any], dict[str, Any]],
    weights: tuple[pd.DataFrame, pd.DataFrame],
    scores: Scores | str,
    by_content: bool = False,
) -> Comparison:
    """What two runs have in common and what not.

    Args:
        configs: the settings of both, with `sha256`.
        weights: the tables in `weights.parquet` of both. Rows with the same id are compared in their
            order: the first with the first, the second with the second.
        scores: of both final models on the common hold-out, or why there are none.
        by_content: whether the ids of the second are those of equal rows of the first.
    """
    one, two = configs
    names = sorted((one.keys() | two.keys()) - NOT_ASKED)
    settings = {k: (one.get(k), two.get(k)) for k in names if one.get(k) != two.get(k)}
    sums = [dict(c.get("sha256", {})) for c in configs]
    files = sorted(k for k in sums[0].keys() | sums[1].keys() if sums[0].get(k) != sums[1].get(k))
    settings = {k: v for k, v in settings.items() if k not in sums[0] or k in files}
    numbered = [table.assign(time=table.groupby("id").cumcount()) for table in weights]
    both = numbered[0].merge(numbered[1], on=["id", "time"], suffixes=("_first", "_second"))
    quality = [both[f"label_quality_{side}"].to_numpy() for side in ("first", "second")]
    found: Any = spearmanr(quality[0], quality[1]) if len(both) > 2 else None
    agreement = {"rank correlation": np.nan if found is None else float(found.statistic)}
    for k in FIRST:
        if k <= len(both) // 2:
            first = [set(np.argsort(q, kind="stable")[:k].tolist()) for q in quality]
            agreement[str(k)] = len(first[0] & first[1]) / k
    keep = [both[f"keep_{side}"].to_numpy(bool) for side in ("first", "second")]
    size = np.abs(quality[0] - quality[1])
    moved = np.flatnonzero(keep[0] != keep[1])
    moved = moved[np.argsort(-size[moved], kind="stable")]
    words = np.array(["flag", "keep"])
    changed = pd.DataFrame(
        {
            "id": both["id"].to_numpy()[moved],
            "first": words[keep[0][moved].astype(int)],
            "second": words[keep[1][moved].astype(int)],
            "quality_first": quality[0][moved],
            "quality_second": quality[1][moved],
        }
    )
    flagged = tuple(int((~np.asarray(w["keep"], bool)).sum()) for w in weights)
    return Comparison(
        settings,
        files,
        len(both),
        agreement,
        changed,
        (flagged[0], flagged[1]),
        None if isinstance(scores, str) else _paired(scores),
        scores if isinstance(scores, str) else None,
        by_content,
    )


def _paired(found: Scores) -> dict[str, Any]:
    difference = found.second - found.first
    error = float(np.std(difference, ddof=1) / np.sqrt(len(difference)))
    mean = float(difference.mean())
    return {
        "name": found.name,
        "rows": found.rows,
        "first": float(found.first.mean()),
        "second": float(found.second.mean()),
        "difference": mean,
        "standard_error": error,
        "low": mean - 1.96 * error,
        "high": mean + 1.96 * error,
    }
