"""`ReweightedClassifier` and `ReweightedRegressor`: scikit-learn's conventions, our numbers."""

import html
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from bilevel import ReweightedClassifier, ReweightedRegressor, compare_baselines
from bilevel.reweighting._inputs.checks import InputError
from digits import TRAIN, TRUSTED, digits, learned


def together(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in one matrix with the trusted ones scattered among them, and the mask."""
    data = digits(seed)
    mask = np.zeros(TRAIN + TRUSTED, bool)
    mask[np.random.default_rng(seed).choice(len(mask), TRUSTED, replace=False)] = True
    X, y = np.empty((len(mask), 64)), np.empty(len(mask), int)
    X[mask], X[~mask] = data.X_trusted, data.X
    y[mask], y[~mask] = data.y_trusted, data.y
    return X, y, mask


@pytest.fixture(scope="module")
def fitted() -> Any:
    X, y, mask = together()
    return ReweightedClassifier().fit(X, y, is_trusted=mask)


@pytest.mark.slow
def test_a_mask_and_separate_arrays_give_the_weights_of_learn_weights(fitted):
    data, result = digits(), learned()
    X, y, mask = together()
    np.testing.assert_array_equal(fitted.weights_[~mask], result.weights)
    np.testing.assert_array_equal(fitted.weights_[mask], np.full(TRUSTED, result.trusted_weight))
    np.testing.assert_array_equal(fitted.keep_mask_[~mask], result.keep)
    assert fitted.keep_mask_[mask].all()
    assert fitted.weights_[~mask].mean() == pytest.approx(1.0, rel=1e-12)
    assert fitted.trusted_weight_ == result.trusted_weight
    assert fitted.n_effective_ == result.effective_sample_size
    pd.testing.assert_frame_equal(fitted.history_, result.history)
    few: Any = ReweightedClassifier(method="near-exact", num_steps=2)
    separate: Any = clone(few)
    separate.fit(data.X, data.y, X_trusted=data.X_trusted, y_trusted=data.y_trusted)
    few.fit(X, y, is_trusted=mask)
    np.testing.assert_array_equal(few.weights_[~mask], separate.weights_)
    assert few.trusted_weight_ == separate.trusted_weight_
    # Both final models see the same rows, in another order.
    np.testing.assert_array_equal(few.predict(data.X_holdout), separate.predict(data.X_holdout))


def test_the_final_model_is_the_estimator_fitted_with_weights_(fitted):
    X, y, mask = together()
    centre = StandardScaler(with_std=False)
    by_hand = make_pipeline(MinMaxScaler(), centre, LogisticRegression(max_iter=1000))
    scale = fitted.result_.scale
    used = fitted.weights_ > 0  # the scaler does not see the others
    some = np.r_[np.flatnonzero(used & ~mask), np.flatnonzero(used & mask)]
    weights = scale * fitted.weights_[some]
    steps = "standardscaler", "logisticregression"
    by_hand.fit(X[some], y[some], **{f"{step}__sample_weight": weights for step in steps})
    data = digits()
    probabilities = fitted.predict_proba(data.X_holdout)
    np.testing.assert_allclose(probabilities, by_hand.predict_proba(data.X_holdout), atol=1e-10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    labels = fitted.classes_[probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(fitted.predict(data.X_holdout), labels)
    scores = fitted.decision_function(data.X_holdout)
    np.testing.assert_array_equal(fitted.classes_[scores.argmax(axis=1)], labels)
    assert fitted.score(*data.holdout) == (labels == data.y_holdout).mean()
    uniform: Any = clone(by_hand)
    uniform.fit(X[~mask], y[~mask])
    assert fitted.score(*data.holdout) > uniform.score(*data.holdout) + 0.05


@pytest.mark.slow
def test_data_frames_keep_their_index_and_names():
    X, y, mask = together()
    index = pd.Index(np.arange(len(X)) * 10, name="id")
    frame = pd.DataFrame(X, index=index, columns=[f"p{i}" for i in range(64)])
    few: Any = ReweightedClassifier(method="near-exact", num_steps=3)
    copy: Any = clone(few)
    clf = copy.fit(frame, pd.Series(y, index), is_trusted=mask)
    assert isinstance(clf.weights_, pd.Series)
    pd.testing.assert_index_equal(clf.weights_.index, index)
    assert clf.weights_[~mask].mean() == pytest.approx(1.0, rel=1e-12)
    assert clf.feature_names_in_.tolist() == list(frame.columns)
    plain = few.fit(X, y, is_trusted=mask)
    np.testing.assert_array_equal(clf.weights_.to_numpy(), plain.weights_)
    assert len(clf.history_) == 3


def test_compare_baselines_after_fit(fitted):
    data = digits()
    table = fitted.compare_baselines(*data.holdout)
    expected = compare_baselines(
        make_pipeline(
            MinMaxScaler(), StandardScaler(with_std=False), LogisticRegression(max_iter=1000)
        ),
        *data.learnable,
        fitted.result_.scale * fitted.result_.weights,
        fitted.result_.scale * fitted.trusted_weight_,
        *data.holdout,
    )
    pd.testing.assert_frame_equal(table, expected)
    assert table.loc["reweighted", "score"] == pytest.approx(fitted.score(*data.holdout))


def test_parameters_and_clone():
    final = LogisticRegression(C=7.0)
    clf = ReweightedClassifier(final, l2=0.5, method="soba", num_steps=9, random_state=3)
    assert clf.get_params(deep=False) == {
        "estimator": final,
        "model": "linear",
        "method": "soba",
        "num_steps": 9,
        "l2": 0.5,
        "scoring": None,
        "precision": None,
        "overlap": None,
        "drop_zero": True,
        "random_state": 3,
    }
    copy: Any = clone(clf)
    assert copy is not clf
    assert copy.get_params()["estimator__C"] == 7.0
    copy.set_params(estimator__C=1.0, l2=0.1)
    assert (copy.estimator.C, copy.l2, clf.estimator.C, clf.l2) == (1.0, 0.1, 7.0, 0.5)
    assert "ReweightedClassifier(" in repr(clf)


class _Plain(BaseEstimator):
    """An estimator with the text of scikit-learn, and the parameters of ours."""

    __init__ = ReweightedClassifier.__init__


_Plain.__name__ = "ReweightedClassifier"


def test_what_a_person_sees(fitted):
    final = HistGradientBoostingClassifier(max_iter=50, learning_rate=0.2, min_samples_leaf=7)
    for parameters in ({}, {"estimator": final, "method": "soba"}, {"estimator": final, "l2": 0.1}):
        before, plain = ReweightedClassifier(**parameters), _Plain(**parameters)
        assert repr(before) == repr(plain)
        assert "for the evidence" not in before._repr_html_()
    result, text = fitted.result_, repr(fitted)
    weights = np.asarray(result.weights)
    assert text.startswith("ReweightedClassifier(")
    for part in (
        f"chosen: {fitted.winner_}",
        *[check.detail for check in result.checks],
        f"weights for {len(weights)} rows",
        f"from {weights.min():.2g} to {weights.max():.2g}",
        f"{(weights == 0).sum()} rows have weight 0",
    ):
        assert part in text
        assert html.escape(part, quote=False) in html.unescape(fitted._repr_html_())
    bundle = fitted._repr_mimebundle_()
    assert bundle["text/plain"] == text
    assert "sk-top-container" in bundle["text/html"]
    with config_context(display="text"):
        assert set(fitted._repr_mimebundle_()) == {"text/plain"}
    # Within other estimators it is one of them.
    assert "chosen" not in repr(make_pipeline(MinMaxScaler(), fitted))
    assert "chosen" not in repr(clone(fitted))
    with pytest.warns(UserWarning, match="no trusted rows"):
        without = ReweightedClassifier().fit(np.eye(4), [0, 1, 0, 1])
    assert repr(without).endswith("fitted without trusted rows: each of the 4 rows has weight 1")


def test_the_users_estimator_is_cloned_and_never_fitted():
    X, y, mask = (a[together()[1] < 2] for a in together())
    final = RidgeClassifier()
    clf = ReweightedClassifier(final).fit(X, y, is_trusted=mask)
    assert isinstance(clf.estimator_, RidgeClassifier)
    assert not hasattr(final, "coef_")


@pytest.mark.slow
def test_regressor():
    X, y = load_diabetes(return_X_y=True)
    trusted = np.arange(330) % 3 == 0  # 110, and 220 to weigh, as in test_learn_weights
    wrong = (np.random.default_rng(0).random(330) < 0.3) & ~trusted
    noisy = y[:330] + 400.0 * wrong
    model = ReweightedRegressor().fit(X[:330], noisy, is_trusted=trusted)
    assert model.weights_[wrong].mean() < 0.2 * model.weights_[~wrong & ~trusted].mean()
    assert model.score(X[330:], y[330:]) > 0.3
    uniform = make_pipeline(MinMaxScaler(), Ridge()).fit(X[:330][~trusted], noisy[~trusted])
    assert model.score(X[330:], y[330:]) > uniform.score(X[330:], y[330:])
    assert not hasattr(model, "predict_proba")
    assert not hasattr(model, "classes_")


def test_predict_proba_is_there_if_the_final_estimator_has_it():
    assert hasattr(ReweightedClassifier(), "predict_proba")
    assert not hasattr(ReweightedClassifier(Ridge()), "predict_proba")


def test_not_fitted():
    with pytest.raises(NotFittedError):
        ReweightedClassifier().predict(np.zeros((1, 64)))


WAYS = "say which rows are trusted in one way: `is_trusted=` .*; got "


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"is_trusted": "mask", "X_trusted": "X", "y_trusted": "y"},
            ValueError,
            WAYS + "both",
        ),
        ({"X_trusted": "X"}, ValueError, "pass both `X_trusted` and `y_trusted`, or neither"),
        ({"is_trusted": "codes"}, ValueError, r"must be a boolean mask .* \(550\), got int64 of"),
        ({"is_trusted": "short"}, ValueError, r"\(550\), got bool of shape \(549,\)"),
        ({"is_trusted": "all"}, InputError, "`is_trusted` marks all rows; some rows must be"),
        ({"is_trusted": "none"}, InputError, "`is_trusted` marks no rows; some rows must be"),
    ],
)
def test_bad_ways_to_name_the_trusted_rows(given, error, message):
    X, y, mask = together()
    values = {
        "X": X,
        "y": y,
        "mask": mask,
        "codes": mask.astype(int),
        "short": mask[:-1],
        "all": np.ones_like(mask),
        "none": np.zeros_like(mask),
    }
    with pytest.raises(error, match=message):
        ReweightedClassifier().fit(X, y, **{k: values[v] for k, v in given.items()})


def test_an_estimator_without_sample_weight_is_refused_before_any_work():
    X, y, mask = together()
    with pytest.raises(ValueError, match="must accept sample_weight, and KNeighborsClassifier"):
        ReweightedClassifier(KNeighborsClassifier()).fit(X, y, is_trusted=mask)


def test_bad_data_is_named_as_in_learn_weights():
    X, y, mask = together()
    X[7, 3] = np.inf
    with pytest.raises(InputError, match="infinite values in 1 rows"):
        ReweightedClassifier().fit(X, y, is_trusted=mask)


def test_probabilities_and_groups_of_one_table_are_split_by_the_mask():
    X, y = load_iris(return_X_y=True)
    mask = np.arange(150) % 3 == 0
    given = np.where((np.arange(150) % 10 == 1) & ~mask, (y + 1) % 3, y)
    p = cross_val_predict(LogisticRegression(max_iter=1000), X, given, method="predict_proba")
    groups = np.where(np.arange(150) % 2, "odd", "even")
    one: Any = ReweightedClassifier().fit(X, given, is_trusted=mask, pred_probs=p, groups=groups)
    two: Any = ReweightedClassifier().fit(
        X[~mask],
        given[~mask],
        X_trusted=X[mask],
        y_trusted=y[mask],
        pred_probs=p[~mask],
        pred_probs_trusted=p[mask],
        groups=groups[~mask],
    )
    np.testing.assert_array_equal(one.label_quality_[~mask], two.label_quality_)
    without: Any = ReweightedClassifier().fit(X, given, is_trusted=mask, groups=groups)
    assert np.any(without.label_quality_ != one.label_quality_)  # they have a say


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"pred_probs": np.full((8, 2), 0.5)}, r"one row per row of X \(9\), got 8"),
        (
            {"pred_probs": np.full((9, 2), 0.5), "pred_probs_trusted": np.full((3, 2), 0.5)},
            "leave `pred_probs_trusted` out",
        ),
        (
            {"sample_weight": np.ones(9), "sample_weight_trusted": np.ones(3)},
            "leave `sample_weight_trusted` out",
        ),
        ({"times": np.ones((9, 1))}, r"`times` must have one entry per row of X \(9\)"),
        ({"groups": np.ones((9, 1))}, r"`groups` must have one entry per row of X \(9\)"),
    ],
)
def test_what_belongs_to_the_rows_of_one_table_has_their_number(extra, message):
    X, y, mask = np.eye(9), np.arange(9) % 2, np.arange(9) < 3
    with pytest.raises(InputError, match=message):
        ReweightedClassifier().fit(X, y, is_trusted=mask, **extra)
