"""Tables that measure their columns in other units than the training rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevel import ReweightedClassifier, learn_weights
from bilevel.reweighting._inputs.scales import warn_of_other_scales


def rows(number, seed):
    X = np.random.default_rng(seed).normal(1000, 100, size=(number, 3))
    return pd.DataFrame(X, columns=list("abc")), (X[:, 0] + X[:, 1] > 2000).astype(int)


def test_steps_before_the_estimator_that_leave_the_trusted_rows_alone_are_noticed():
    (X, y), (X_trusted, y_trusted) = rows(60, 0), rows(30, 1)
    known = {"X_trusted": X_trusted, "y_trusted": y_trusted}
    before = make_pipeline(StandardScaler(), ReweightedClassifier())
    said = r"`X_trusted` has other units .* in 3 of 3 columns .*transform `X` alone.*`is_trusted`"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=said):
            before.fit(X, y, **{f"reweightedclassifier__{k}": v for k, v in known.items()})
        within = make_pipeline(StandardScaler(), LogisticRegression())
        advised = ReweightedClassifier(within).fit(X, y, **known)
    assert advised.score(X_trusted, y_trusted) > 0.8


def test_columns_of_a_hold_out_in_other_units_are_named():
    (X, y), (X_trusted, y_trusted), (other, y_other) = (rows(40, k) for k in range(3))
    other = other.assign(b=other.b / 100, c=other.c / 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=r"`X_holdout` .* 2 of 3 columns \('b', 'c'\): half"):
            learn_weights(
                X, y, X_trusted, y_trusted, holdout=(other, y_other), task="classification"
            )


@pytest.mark.parametrize("change", ["none", "shifted a little", "one column of three", "constant"])
def test_what_differs_by_chance_or_on_purpose_is_not_noticed(change):
    X, other = (np.random.default_rng(k).normal(size=(n, 3)) for k, n in enumerate((5000, 30)))
    if change == "shifted a little":
        other += 0.7
    elif change == "one column of three":
        other[:, 0] = 1000 + 50 * other[:, 0]
    elif change == "constant":
        X[:, 1:], other[:, :2] = 0.0, 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_scales(X, other, "X_trusted", None)
