"""Charts of a fitted estimator, made in the manner of scikit-learn's displays."""

import dataclasses
from typing import Any

import pandas as pd

from .before_after import before_and_after, effects_by, fit_both
from .evidence import jsonable, weights_of
from .first_rows import first_rows, is_wrong

# A display imports the charts when it plots, as Altair takes a second to import.


@dataclasses.dataclass(frozen=True)
class WeightsDisplay:
    """How the weights are distributed.

    Attributes:
        weights: the histogram, quantiles and shares, as in the report.

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from bilevel import ReweightedClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = ReweightedClassifier().fit(X, y, is_trusted=np.arange(150) % 3 == 0)
    >>> chart = WeightsDisplay.from_estimator(clf).plot().properties(title="Iris")
    >>> chart.to_dict()["title"]
    'Iris'
    """

    weights: dict[str, Any]

    @classmethod
    def from_estimator(cls, estimator: Any) -> "WeightsDisplay":
        """Of a fitted `ReweightedClassifier` or `ReweightedRegressor`."""
        return cls(jsonable(weights_of(estimator._rows())))

    def plot(self) -> Any:
        """An Altair chart."""
        from .charts import histogram

        return histogram(self.weights).as_altair()


@dataclasses.dataclass(frozen=True)
class WrongLabelsDisplay:
    """The share of wrong labels among the first rows of the list, with its band.

    Attributes:
        first_rows: a table with the columns `rows`, `wrong`, `low`, `high` and `observed`.
    """

    first_rows: pd.DataFrame

    @classmethod
    def from_estimator(cls, estimator: Any, truth: Any = None) -> "WrongLabelsDisplay":
        """Of a fitted estimator; `truth`: the true labels of the untrusted rows, where known.

        Raises:
            ValueError: nothing is known of wrong labels (a regression, or free weights), or not one
                true label per row.
        """
        rows = estimator._rows()
        found = first_rows(rows, is_wrong(truth, rows))
        if found is None:
            raise ValueError(
                "this estimator does not say how many labels are wrong; a classifier with "
                'method="auto" does.'
            )
        return cls(pd.DataFrame(found))

    def plot(self) -> Any:
        """An Altair chart."""
        from .charts import first_wrong

        chart = first_wrong(jsonable(self.first_rows.to_dict("records")))
        assert chart is not None
        return chart.as_altair()


@dataclasses.dataclass(frozen=True)
class GainsDisplay:
    """The gain over each baseline on a hold-out, with its 95 % interval.

    Attributes:
        baselines: the table of `compare_baselines`.
        score: the name of the score.
    """

    baselines: pd.DataFrame
    score: str

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any) -> "GainsDisplay":
        """Of a fitted estimator, on rows that took no part in `fit`."""
        return cls(estimator.compare_baselines(X, y), estimator._rows().metric)

    def plot(self) -> Any:
        """An Altair chart."""
        from .holdout_charts import gains

        lines = [
            {"name": str(name)} | line
            for name, line in zip(
                self.baselines.index, self.baselines.to_dict("records"), strict=True
            )
        ]
        chart = gains({"baselines": jsonable(lines), "candidates": None, "score": self.score})
        assert chart is not None
        return chart.as_altair()


@dataclasses.dataclass(frozen=True)
class BeforeAfterDisplay:
    """What changes on a hold-out from equal weights to the learned ones.

    Attributes:
        found: the score, the confusions and the calibration before and after, as in the report.
        classes: a line per class with its recall before and after; None in a regression.
    """

    found: dict[str, Any]
    classes: list[dict[str, Any]] | None

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any) -> "BeforeAfterDisplay":
        """Of a fitted estimator, on rows that took no part in `fit`. Cost: two fits."""
        rows = estimator._rows()
        fits = fit_both(rows, estimator._holdout(X, y))
        classes = None
        if not rows.regression:
            classes = jsonable(effects_by(rows, "classes", rows.y, fits, fits.y))
        effects = {"classes": classes, "groups": None}
        return cls(jsonable(before_and_after(rows, fits, effects)), classes)

    def plot(self, kind: str = "calibration") -> Any:
        """An Altair chart.

        Args:
            kind: "calibration", "confusion-before", "confusion-after", or "classes", how the recall
                of each class changes.

        Raises:
            ValueError: no such kind, or it has no meaning here (classes of a regression, or no
                probabilities).
        """
        from .holdout_charts import calibration, change_of_each, confusion

        charts = {
            "calibration": calibration(self.found["calibration"]),
            **{chart.name: chart for chart in confusion(self.found["confusion"])},
            "classes": change_of_each("classes", self.classes or [], "recall"),
        }
        able = [name for name, chart in charts.items() if chart is not None]
        chart = charts.get(kind)
        if chart is None:
            raise ValueError(f"`kind` must be one of {', '.join(able)} here, got {kind!r}.")
        return chart.as_altair()
