"""`compare_baselines` against scikit-learn models fitted by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevel import (
    ReweightedClassifier,
    compare_baselines,
    effective_sample_size,
    learn_weights,
)
from bilevel.reweighting import InputError
from bilevel.reweighting._weights.baselines import agreeing_rows, fit_weighted
from digits import digits

N, M, H, D = 120, 40, 200, 3
RNG = np.random.default_rng(0)
X, X_TRUSTED, X_HOLDOUT = (RNG.normal(size=(n, D)) for n in (N, M, H))


def label(x):
    return (x @ [1.0, -2.0, 0.5] + 0.5 * RNG.normal(size=len(x)) > 0).astype(int)


Y, Y_TRUSTED, Y_HOLDOUT = label(X), label(X_TRUSTED), label(X_HOLDOUT)
Y = np.where(RNG.random(N) < 0.3, 1 - Y, Y)
WEIGHTS = RNG.dirichlet(np.ones(N)) * N
TRUSTED_WEIGHT = 2.5
EXACT = LogisticRegression(tol=1e-12, max_iter=10_000)


def table(estimator: Any = EXACT, weights=WEIGHTS, trusted_weight=TRUSTED_WEIGHT):
    data = X, Y, X_TRUSTED, Y_TRUSTED
    return compare_baselines(estimator, *data, weights, trusted_weight, X_HOLDOUT, Y_HOLDOUT)


def by_hand() -> dict[str, tuple[float, LogisticRegression]]:
    """Effective rows and the fitted model of each line, the final one by repeated arguments."""

    def fit(*data, **weights):
        return LogisticRegression(tol=1e-12, max_iter=10_000).fit(*data, **weights)

    both = np.r_[X, X_TRUSTED], np.r_[Y, Y_TRUSTED]
    trusted = fit(X_TRUSTED, Y_TRUSTED)
    agree = trusted.predict(X) == Y
    final = np.r_[WEIGHTS, np.full(M, TRUSTED_WEIGHT)]
    return {
        "uniform": (N, fit(X, Y)),
        "all rows + trusted": (N + M, fit(*both)),
        "trusted only": (M, trusted),
        "filter": (
            agree.sum() + M,
            fit(np.r_[X[agree], X_TRUSTED], np.r_[Y[agree], Y_TRUSTED]),
        ),
        "reweighted": (effective_sample_size(final), fit(*both, sample_weight=final)),
    }


def test_every_line_is_the_model_fitted_by_hand():
    rows = table()
    expected = by_hand()
    assert list(rows.index) == list(expected)
    assert list(rows.columns) == ["rows", "score", "difference", "standard_error"]
    right = {
        name: np.equal(model.predict(X_HOLDOUT), Y_HOLDOUT) for name, (_, model) in expected.items()
    }
    for name, (size, _) in expected.items():
        line = rows.loc[name]
        gap = right["reweighted"].astype(float) - right[name]
        assert line["rows"] == pytest.approx(size, abs=0.05)
        assert line["score"] == pytest.approx(right[name].mean(), abs=1e-12)
        assert line["difference"] == pytest.approx(gap.mean(), abs=1e-12)
        assert line["standard_error"] == pytest.approx(gap.std(ddof=1) / np.sqrt(H), abs=1e-12)
    assert rows.loc["reweighted", "difference"] == 0


def test_weight_two_is_a_row_twice_and_weight_zero_is_no_row():
    weights = np.r_[np.full(20, 2.0), np.zeros(30), np.ones(N - 50)]
    repeats = weights.astype(int)
    weighted = fit_weighted(EXACT, X, Y, weights)
    repeated = EXACT.fit(np.repeat(X, repeats, axis=0), np.repeat(Y, repeats))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-6, atol=1e-8)


def test_a_pipeline_hands_the_weights_to_its_last_step():
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-12, max_iter=10_000))
    fitted = fit_weighted(pipeline, X, Y, WEIGHTS)
    scaler = StandardScaler().fit(X)  # the scaler sees no weights
    by_hand = LogisticRegression(tol=1e-12, max_iter=10_000)
    by_hand.fit(scaler.transform(X), Y, sample_weight=WEIGHTS)
    np.testing.assert_allclose(fitted[-1].coef_, by_hand.coef_, rtol=1e-9)
    assert not hasattr(pipeline[-1], "coef_")  # a clone was fitted
    assert len(table(pipeline)) == 5


@pytest.mark.parametrize(
    "estimator", [KNeighborsClassifier(), make_pipeline(StandardScaler(), KNeighborsClassifier())]
)
def test_an_estimator_that_would_ignore_the_weights_is_refused_by_name(estimator):
    message = "`estimator` must accept sample_weight, and KNeighborsClassifier does not"
    with pytest.raises(ValueError, match=message):
        table(estimator)
    with pytest.raises(ValueError, match=message):
        learn_weights(*digits().learnable, estimator=estimator)


def test_regression_scores_are_r2_and_the_difference_is_their_difference():
    y, y_trusted, y_holdout = (x @ [1.0, -2.0, 0.5] for x in (X, X_TRUSTED, X_HOLDOUT))
    y = y + 3 * (RNG.random(N) < 0.2) * RNG.normal(size=N)
    data = X, y, X_TRUSTED, y_trusted, WEIGHTS, TRUSTED_WEIGHT, X_HOLDOUT, y_holdout
    rows = compare_baselines(Ridge(), *data)
    uniform = Ridge().fit(X, y).predict(X_HOLDOUT)
    assert rows.loc["uniform", "score"] == pytest.approx(r2_score(y_holdout, uniform), abs=1e-12)
    scores = rows["score"]
    np.testing.assert_allclose(rows["difference"], scores["reweighted"] - scores, atol=1e-12)
    # The filter keeps what lies within three robust standard deviations of the trusted model.
    trusted = Ridge().fit(X_TRUSTED, y_trusted)
    residual = np.abs(y - trusted.predict(X))
    keep = residual <= 3 * 1.4826 * np.median(residual)
    np.testing.assert_array_equal(agreeing_rows(trusted, X, y), keep)
    assert rows.loc["filter", "rows"] == keep.sum() + M


def test_data_frames_give_the_same_table():
    def frame(x):
        return pd.DataFrame(x, columns=list("abc"))

    rows = compare_baselines(
        EXACT,
        frame(X).set_index(np.arange(N)[::-1]),  # an index of its own is no matter
        pd.Series(Y, index=np.arange(N)[::-1]),
        frame(X_TRUSTED),
        pd.Series(Y_TRUSTED),
        WEIGHTS,
        TRUSTED_WEIGHT,
        frame(X_HOLDOUT),
        Y_HOLDOUT,
    )
    pd.testing.assert_frame_equal(rows, table(), rtol=1e-9)


@pytest.mark.parametrize("scoring", [None, "accuracy", "roc_auc"])
@pytest.mark.parametrize("other", [0.5, 2, -1])
def test_labels_of_the_hold_out_that_no_fit_knows_are_refused(scoring, other):
    """By position in the classes, 0.5 was the label 1 for a scorer."""
    compare: Any = compare_baselines
    unknown = np.where(np.arange(H) == 3, other, Y_HOLDOUT)
    data = [X, Y, X_TRUSTED, Y_TRUSTED, WEIGHTS, TRUSTED_WEIGHT, X_HOLDOUT]
    with pytest.raises(InputError, match=rf"`y_holdout` has labels that .* lack: {other}"):
        compare(EXACT, *data, unknown, scoring=scoring)


def test_a_report_refuses_them_too_and_gaps_and_lengths_are_named():
    compare: Any = compare_baselines
    fitted = ReweightedClassifier().fit(X, Y, X_trusted=X_TRUSTED, y_trusted=Y_TRUSTED)
    with pytest.raises(InputError, match=r"`y_holdout` has labels that .* lack: 2, in 1 of"):
        fitted.report(X_HOLDOUT, np.where(np.arange(H) == 3, 2, Y_HOLDOUT))
    data = [X, Y, X_TRUSTED, Y_TRUSTED]
    gaps = np.where(np.arange(H) == 3, np.nan, Y_HOLDOUT)
    with pytest.raises(InputError, match=r"`y_holdout` has 1 missing labels"):
        compare(EXACT, *data, WEIGHTS, 1.0, X_HOLDOUT, gaps)
    with pytest.raises(InputError, match=r"`weights` must be .* \(120\), got shape \(119,\)"):
        compare(EXACT, *data, WEIGHTS[1:], 1.0, X_HOLDOUT, Y_HOLDOUT)
