"""An estimator whose fit on all rows is worse than what was judged on folds."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bilevel import ReweightedClassifier, learn_weights

RNG = np.random.default_rng(0)
X, X_TRUSTED = RNG.normal(size=(300, 3)), RNG.normal(size=(60, 3))
TRUE, Y_TRUSTED = ((x[:, 0] + x[:, 1] > 0).astype(int) for x in (X, X_TRUSTED))
WRONG = np.arange(300) % 3 == 0
Y = np.where(WRONG, 1 - TRUE, TRUE)
NAME = "the fit does what was judged"


class Astray(LogisticRegression):
    """Says the opposite where it has seen all trusted rows, and more than `most` rows."""

    def __init__(self, trusted: Any = None, most: int = 0):
        super().__init__(C=5.0)
        self.trusted, self.most = trusted, most

    def fit(self, X, y, sample_weight=None):
        super().fit(X, y, sample_weight)
        if np.isin(self.trusted, X[:, 0]).all() and len(X) > self.most:
            self.coef_, self.intercept_ = -self.coef_, -self.intercept_
        return self


def learned(estimator: Any) -> Any:
    return learn_weights(X, Y, X_TRUSTED, Y_TRUSTED, estimator=estimator)


def test_weights_whose_fit_goes_astray_give_way_to_the_next_best():
    steady = learned(Astray(X_TRUSTED[:, 0], most=10_000))
    first = steady.winner
    assert first in ("clean rows", "filter")
    assert NAME not in [check.name for check in steady.checks]
    found = learned(Astray(X_TRUSTED[:, 0], most=60))
    assert found.winner == "trusted only"
    np.testing.assert_array_equal(found.candidates, steady.candidates)
    (check,) = (c for c in found.checks if c.name == NAME)
    assert check.passed
    assert check.detail.endswith("so trusted only is used in its place")
    # What it says of the fit is what such a fit does: the opposite of a model of the kept rows.
    rows, labels = np.r_[X[steady.weights > 0], X_TRUSTED], np.r_[Y[steady.weights > 0], Y_TRUSTED]
    right = LogisticRegression(C=5.0).fit(rows, labels).score(X_TRUSTED, Y_TRUSTED)
    assert right > 0.9
    assert check.detail.startswith(f"fitted on {first}, ")
    assert f"(score {1 - right:.4f}) on the trusted rows that it has seen" in check.detail


def test_the_final_fit_is_of_what_stands():
    clf = ReweightedClassifier(Astray(X_TRUSTED[:, 0], most=60))
    clf.fit(X, Y, X_trusted=X_TRUSTED, y_trusted=Y_TRUSTED)
    alone = LogisticRegression(C=5.0).fit(X_TRUSTED, Y_TRUSTED)
    np.testing.assert_allclose(clf.predict_proba(X), alone.predict_proba(X), atol=1e-6)


def test_where_every_fit_goes_astray_the_check_fails_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="cannot be relied on here"):
        found = learned(Astray(X_TRUSTED[:, 0], most=0))
    assert found.winner == learned(Astray(X_TRUSTED[:, 0], most=10_000)).winner  # the best judged
    (check,) = (c for c in found.checks if c.name == NAME)
    assert not check.passed
    assert check.detail.count("fitted on ") == 4  # all but uniform
