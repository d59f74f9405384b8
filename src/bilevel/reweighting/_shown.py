"""What a person sees of a fitted estimator: its parameters, and what was learned."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import estimator_html_repr

from .._summary import preformatted


def as_text(estimator: Any, at_most: int) -> str:
    """The text of scikit-learn's estimators, at most so many characters, and what was learned."""
    # The line breaks of scikit-learn's text need a class that has no text of its own.
    plain = type(type(estimator).__name__, (BaseEstimator,), {"__init__": type(estimator).__init__})
    parameters = plain(**estimator.get_params(deep=False)).__repr__(at_most)
    learned = what_was_learned(estimator)
    return f"{parameters}\n{learned}" if learned else parameters


def as_html(estimator: Any) -> str:
    """The picture of scikit-learn's estimators, and below it what was learned."""
    learned = what_was_learned(estimator)
    return estimator_html_repr(estimator) + (preformatted(learned) if learned else "")


def what_was_learned(estimator: Any) -> str:
    """The verdict, the weights and the checks of a fitted estimator; empty before `fit`."""
    if not hasattr(estimator, "estimator_"):
        return ""
    weights = np.asarray(estimator.weights_)
    if estimator.result_ is None:
        return f"fitted without trusted rows: each of the {len(weights)} rows has weight 1"
    learned = np.asarray(estimator.result_.weights)
    low, middle, high = np.quantile(learned, [0, 0.5, 1])
    return "\n".join(
        [
            f"chosen: {estimator.winner_}",
            str(estimator.result_),
            f"weights_: from {low:.2g} to {high:.2g}, median {middle:.2g}; {np.sum(learned == 0)} "
            "rows have weight 0",
            "for the evidence: report(X_holdout, y_holdout).save('report.html')",
        ]
    )
