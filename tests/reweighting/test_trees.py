"""The user's own kind of model as the judge: what its fits have seen, and how many there are."""

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from bilevel import ReweightedClassifier
from bilevel.reweighting._inputs.compact import takes_categories, takes_gaps
from bilevel.reweighting._inputs.prepare import prepare
from bilevel.reweighting._weights import candidates as _candidates
from bilevel.reweighting._weights.baselines import fit_weighted
from bilevel.reweighting._weights.candidates import search
from bilevel.reweighting._weights.coded_labels import CodedLabels
from bilevel.reweighting._weights.folds import FOLDS
from bilevel.reweighting._weights.suspects import judge_labels


class Witness(ClassifierMixin, BaseEstimator):
    """Says the class frequencies, and remembers on which rows it was fitted and what it was asked."""

    fits: ClassVar[list[set[float]]] = []  # shared: clones report to the same list
    seen_again: ClassVar[list[float]] = []

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Witness":
        """Remember the rows by their first column."""
        self.rows_ = set(np.asarray(X)[:, 0].tolist())
        Witness.fits.append(self.rows_)
        self.classes_, counts = np.unique(y, return_counts=True)
        self.p_ = counts / counts.sum()
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The same for all rows."""
        Witness.seen_again += [x for x in np.asarray(X)[:, 0].tolist() if x in self.rows_]
        return np.tile(self.p_, (len(X), 1))

    def predict(self, X: Any) -> np.ndarray:
        """The most frequent class."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def test_no_model_judges_a_row_that_it_has_seen_and_fits_are_shared(monkeypatch):
    """12 fits on two thirds of the training rows, and 4 on trusted rows alone."""
    rng = np.random.default_rng(1)
    n, m = 300, 60
    X = rng.normal(size=(n + m, 3))
    y = X.argmax(axis=1)
    y[: n // 3] = rng.integers(0, 3, n // 3)
    tables = prepare(
        X[:n],
        y[:n],
        X[n:],
        y[n:],
        task="classification",
        scaler=None,
        holdout=None,
        estimator=Witness(),
        folds=FOLDS,
    )
    Witness.fits, Witness.seen_again = [], []
    rounds = []

    def remember(*arguments: Any) -> Any:
        rounds.append(judge_labels(*arguments))
        return rounds[-1]

    monkeypatch.setattr(_candidates, "judge_labels", remember)
    found = search(
        *tables.train.numbers, *tables.trusted.numbers, tables=tables, estimator=Witness()
    )
    assert not Witness.seen_again
    trusted = set(X[n:, 0].tolist())
    alone = [rows for rows in Witness.fits if rows <= trusted]
    beside = [rows for rows in Witness.fits if not rows <= trusted]
    assert found.judged.keys() == set(CANDIDATES)
    assert (found.candidates["clean rows"].weights == 0).any()  # so it has fits of its own
    assert (len(alone), len(beside)) == (4, 12)
    # What is judged is what is used: the clean rows of the first round.
    judged = np.stack([labels.keep for labels in rounds[: FOLDS + 1]])
    np.testing.assert_array_equal(found.candidates["clean rows"].weights, judged)
    assert len(rounds) == FOLDS + 2
    assert max(len(rows - trusted) for rows in beside) == 2 * n // 3
    # In the judging fits the fold and the part left out go together.
    left_out = {frozenset(trusted - rows) for rows in beside if rows & trusted}
    assert len(left_out) == FOLDS


CANDIDATES = ["uniform", "all rows + trusted", "trusted only", "filter", "clean rows"]


# -- tables as trees take them -----------------------------------------------------------------------


def table(rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A number with gaps, a category with gaps that decides, and labels."""
    rng = np.random.default_rng(seed)
    colour = rng.choice(["b", "a", "d", "c"], rows)
    x = rng.normal(size=rows)
    y = np.where(np.isin(colour, ["a", "d"]), x > 0, x < 0).astype(int)
    frame = pd.DataFrame({"x": x, "colour": pd.Categorical(colour)})
    frame.loc[rng.random(rows) < 0.1, "x"] = np.nan
    frame.loc[rng.random(rows) < 0.1, "colour"] = np.nan
    return frame, y


def test_trees_get_gaps_and_categories_as_they_are():
    """The final model is the one that scikit-learn fits on the user's own table."""
    X, y = table(300, 0)
    trusted, y_trusted = table(60, 1)
    new, _ = table(50, 2)
    trees = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    clf: Any = ReweightedClassifier(trees)
    clf.fit(X, y, X_trusted=trusted, y_trusted=y_trusted)
    encoded = clf.result_.encoding.encode(X, "X")
    np.testing.assert_array_equal(encoded["x"], X["x"])
    np.testing.assert_array_equal(encoded["colour"].cat.codes, X["colour"].cat.codes)
    assert clf.estimator_.is_categorical_.tolist() == [False, True]
    weights = clf.result_.sample_weight(60)
    rows, labels = pd.concat([X, trusted], ignore_index=True), np.concatenate([y, y_trusted])
    used = weights > 0
    direct = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    direct.fit(rows[used], labels[used], sample_weight=weights[used])
    np.testing.assert_allclose(clf.predict_proba(new), direct.predict_proba(new), rtol=1e-12)
    # A category that training rows lack is a gap.
    odd, gap = new.copy(), new.copy()
    odd["colour"] = "never seen"
    gap["colour"] = pd.Categorical([None] * 50, categories=["a"])
    np.testing.assert_array_equal(clf.predict_proba(odd), clf.predict_proba(gap))


def test_a_column_that_all_rows_of_a_fit_lack_is_a_constant():
    """scikit-learn 1.9 refuses it; without a split on it the trees are those of the other columns."""
    X, y = table(60, 0)
    lacking = X.assign(never=np.nan)
    trees = HistGradientBoostingClassifier(max_iter=3, random_state=0)
    found = fit_weighted(trees, lacking, y, np.ones(60))
    expected = trees.fit(X, y).predict_proba(X)
    for value in (np.nan, 7.0):
        np.testing.assert_array_equal(found.predict_proba(X.assign(never=value)), expected)
    assert np.isnan(lacking["never"].to_numpy()).all()  # the table of the caller is as it was


@pytest.mark.slow
def test_forests_get_codes_and_linear_models_no_gaps():
    assert takes_gaps(RandomForestClassifier())
    assert not takes_categories(RandomForestClassifier())
    assert not takes_gaps(LogisticRegression())
    X, y = table(200, 0)
    trusted, y_trusted = table(60, 1)
    forest = RandomForestClassifier(5, random_state=0)
    clf: Any = ReweightedClassifier(forest).fit(X, y, X_trusted=trusted, y_trusted=y_trusted)
    codes = np.asarray(clf.result_.encoding.encode(X, "X")["colour"], float)
    expected = X["colour"].cat.codes.to_numpy(float)
    np.testing.assert_array_equal(codes, np.where(expected < 0, np.nan, expected))
    assert clf.score(trusted, y_trusted) > 0.8
    linear: Any = ReweightedClassifier().fit(X, y, X_trusted=trusted, y_trusted=y_trusted)
    assert np.isfinite(linear.result_.encoding.encode(X, "X").to_numpy()).all()


class OnlyCodes(HistGradientBoostingClassifier):
    """Refuses labels that are not 0, 1, ... without a gap, and predicts a column."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **more: Any) -> Any:
        """As the class says."""
        if not np.array_equal(np.unique(y), np.arange(len(np.unique(y)))):
            raise ValueError(f"expected codes without a gap, got {np.unique(y)}")
        return super().fit(X, y, sample_weight, **more)

    def predict(self, X: Any) -> np.ndarray:
        """As the class says."""
        return super().predict(X)[:, None]


@pytest.mark.slow
def test_labels_of_any_kind_reach_the_estimator_as_codes():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 2)), np.repeat(["x", "z", "q"], 20)
    plain = HistGradientBoostingClassifier(max_iter=5).fit(X, y)
    coded = CodedLabels(OnlyCodes(max_iter=5)).fit(X, y, np.ones(60))
    assert coded.classes_.tolist() == ["q", "x", "z"]
    np.testing.assert_array_equal(coded.predict(X), plain.predict(X))
    np.testing.assert_array_equal(coded.predict_proba(X), plain.predict_proba(X))
    with pytest.raises(ValueError, match="without a gap"):
        OnlyCodes().fit(X, np.repeat([0, 2, 3], 20))
    # A class that a fold lacks makes gaps in the codes of the other folds.
    codes = np.repeat([0, 1, 2], [100, 100, 1])
    rows = rng.normal(size=(201, 2)) + codes[:, None]
    trusted, y_trusted = rng.normal(size=(40, 2)) + np.arange(40)[:, None] % 2, np.arange(40) % 2
    clf: Any = ReweightedClassifier(OnlyCodes(max_iter=5))
    codes[codes == 1], y_trusted[y_trusted == 1] = 2, 2
    codes[-1] = 1
    with pytest.warns(UserWarning, match="are judged by models of the training rows"):
        clf.fit(rows, codes, X_trusted=trusted, y_trusted=y_trusted)
    assert clf.label_quality_.shape == (201,)


@pytest.mark.slow
def test_trees_find_their_categories_by_the_name_of_the_column():
    rng = np.random.default_rng(0)

    def rows(n, name="town"):
        town = rng.integers(0, 4, n)
        X = pd.DataFrame({"size": rng.normal(size=n), name: np.array(list("abcd"))[town]})
        return X, np.where(town % 2 == 0, "yes", "no")

    for name in ("town", "town [2024]"):  # a name that LightGBM and XGBoost refuse is a number
        (X, y), (trusted, y_trusted) = rows(150, name), rows(60, name)
        names: Any = [name] if name == "town" else [1]
        model = HistGradientBoostingClassifier(categorical_features=names, max_iter=5)
        clf: Any = ReweightedClassifier(model, method="near-exact", num_steps=1)
        clf.fit(X, y, X_trusted=trusted, y_trusted=y_trusted)
        assert clf.score(trusted, y_trusted) == 1.0
        assert clf.estimator_.n_features_in_ == 2
