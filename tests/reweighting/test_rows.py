"""Rows that coincide, rows of one entity, rows in time, and rows that count more or less than one."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer, pairwise_distances_argmin
from sklearn.model_selection import KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from bilevel import ReweightedClassifier, learn_weights
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.row_facts import RowColumns, RowFacts, content_hash, row_facts
from bilevel.reweighting._weights.folds import FOLDS, make_folds

SEEN: list[tuple[np.ndarray, np.ndarray]] = []  # (rows learned from, rows asked about) of `Nearest`


class Nearest(ClassifierMixin, BaseEstimator):
    """The label of the nearest row; whatever it has learned it repeats."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        self.X_, self.y_ = np.asarray(X), np.asarray(y)
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        SEEN.append((self.X_, np.asarray(X)))
        return self.y_[pairwise_distances_argmin(np.asarray(X), self.X_)]


def said_before_the_choice(X_trusted: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """`SEEN` without its end: fits of all rows, asked what they say of all trusted rows they saw.

    That is whether a fit has gone astray, and no judgement of a label or of weights.
    """
    every, last = set(content_hash(X_trusted)), len(SEEN)
    while set(content_hash(SEEN[last - 1][1])) == every <= set(content_hash(SEEN[last - 1][0])):
        last -= 1
    assert last < len(SEEN)
    return SEEN[:last]


def judged_scores(*rows: Any, **options: Any) -> Any:
    """Scores of all candidates, and of the models of the user's kind, on held-out trusted rows."""
    table: Any = learn_weights(
        *rows, task="classification", estimator=Nearest(), **options
    ).candidates
    return table["score"]


@pytest.mark.parametrize("flip", [pytest.param(False, marks=pytest.mark.slow), True])
def test_copies_of_trusted_rows_judge_nothing(flip):
    """Labels are coins: whatever a model learns from copies is worth nothing on new rows."""
    rng = np.random.default_rng(0)
    X_trusted, y_trusted = rng.normal(size=(150, 2)), rng.integers(0, 2, 150)
    y = np.r_[np.tile(y_trusted ^ flip, 2), rng.integers(0, 2, 100)]
    X = np.r_[np.tile(X_trusted, (2, 1)), rng.normal(size=(100, 2))]
    scores = judged_scores(X, y, X_trusted, y_trusted)
    assert np.all(scores.between(0.35, 0.65))  # with the copies it is 1, and flipped about 0


def test_a_label_model_has_not_seen_the_rows_equal_to_those_it_judges():
    rng = np.random.default_rng(1)
    X_trusted, y_trusted = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    X, y = np.r_[X_trusted, rng.normal(size=(40, 2))], np.r_[y_trusted, rng.integers(0, 2, 40)]
    SEEN.clear()
    learn_weights(X, y, X_trusted, y_trusted, estimator=Nearest())
    assert len(SEEN) > 20
    for learned, asked in said_before_the_choice(X_trusted):
        assert not np.isin(content_hash(learned), content_hash(asked)).any()


def test_a_table_of_integers_is_taken():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 4, size=(500, 3))
    y = (X.sum(1) > 4).astype(int)
    noisy = np.where(rng.random(400) < 0.2, 1 - y[:400], y[:400])
    result = learn_weights(X[:400], noisy, X[400:], y[400:])
    assert result.label_quality[noisy == y[:400]].mean() > 0.8
    assert result.label_quality[noisy != y[:400]].mean() < 0.4


def facts(block: Any, weight: Any = None, **options: Any) -> RowFacts:
    block = np.asarray(block, np.uint64)
    return RowFacts(block, np.ones(len(block)) if weight is None else np.asarray(weight), **options)


def test_equal_rows_are_in_one_part_of_both_tables_unless_they_are_coarse():
    rng = np.random.default_rng(0)
    block, trusted = rng.integers(0, 150, 300), rng.integers(0, 150, 90)
    y, y_trusted = rng.integers(0, 3, 300), rng.integers(0, 3, 90)
    folds = make_folds(y, y_trusted, 0, (facts(block), facts(trusted)))
    for of_train, of_trusted in [(folds.part, folds.fold), (folds.half, folds.half_trusted)]:
        parts = pd.Series(np.r_[of_train, of_trusted]).groupby(np.r_[block, trusted]).nunique()
        assert np.all(parts == 1)
    for k in range(FOLDS):
        mine = trusted[folds.fold == k]
        assert not np.isin(block[folds.beside[k]], mine).any()
        assert folds.beside[k].sum() + np.isin(block, mine).sum() == 300
    coarse = make_folds(y, y_trusted, 0, (facts(block % 5), facts(trusted % 5)))
    assert not coarse.meets.any()
    assert [*np.bincount(coarse.fold)] == [30, 30, 30]
    for c in range(3):  # each class has its share
        assert np.ptp(np.bincount(coarse.part[y == c])) <= 1
        assert np.ptp(np.bincount(coarse.half[y == c])) <= 1
    entity = make_folds(
        y, y_trusted, 0, (facts(block % 20, by_entity=True), facts(trusted % 20, by_entity=True))
    )
    parts = pd.Series(np.r_[entity.part, entity.fold]).groupby(np.r_[block, trusted] % 20).nunique()
    assert np.all(parts == 1)


def test_the_deal_depends_on_what_rows_hold():
    """Not on their order, nor on whether a row is there twice or has weight 2, nor on absent rows."""
    rng = np.random.default_rng(0)
    block, y = rng.permutation(200), rng.integers(0, 3, 200)
    trusted = facts(1000 + np.arange(60)), rng.integers(0, 3, 60)
    weight = rng.integers(0, 3, 200)
    folds = make_folds(y, trusted[1], 5, (facts(block, weight), trusted[0]))
    rows = rng.permutation(np.repeat(np.arange(200), weight))
    again = make_folds(y[rows], trusted[1], 5, (facts(block[rows]), trusted[0]))
    np.testing.assert_array_equal(again.half, folds.half[rows])
    np.testing.assert_array_equal(again.fold, folds.fold)
    other = make_folds(y, trusted[1], 6, (facts(block, weight), trusted[0]))
    assert np.mean(other.part != folds.part) > 0.5


def noisy_rows(regression: bool) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(180, 3))
    if regression:
        y = X @ [1.0, -1.0, 0.5] + 0.1 * rng.normal(size=180)
        wrong = y + 5 * (rng.random(180) < 0.2)
    else:
        y = (X @ [1.0, -1.0, 0.5] > 0).astype(int) + (X[:, 0] > 1)
        wrong = np.where(rng.random(180) < 0.2, rng.integers(0, 3, 180), y)
    return X[:120], wrong[:120], X[120:], y[120:]


def same(one: Any, other: Any, rows: np.ndarray, tolerance: float) -> None:
    """Of the rows of `one`, at these positions, what `other` says of its own."""
    close: dict[str, Any] = {"rtol": 0, "atol": tolerance}
    assert one.winner == other.winner
    np.testing.assert_allclose(one.weights[rows], other.weights, **close)
    np.testing.assert_allclose(one.label_quality[rows], other.label_quality, **close)
    np.testing.assert_array_equal(one.keep[rows], other.keep)
    np.testing.assert_allclose(one.candidates, other.candidates, **close)
    np.testing.assert_allclose(
        one.scale * one.trusted_weight, other.scale * other.trusted_weight, **close
    )
    assert one.effective_sample_size == pytest.approx(
        other.effective_sample_size, abs=120 * tolerance
    )


@pytest.mark.parametrize("regression", [False, True])
def test_a_row_of_weight_two_is_the_row_twice_and_one_of_weight_zero_is_absent(regression):
    X, y, X_trusted, y_trusted = noisy_rows(regression)
    rng = np.random.default_rng(0)
    weight, weight_trusted = rng.integers(0, 3, 120), rng.integers(0, 3, 60)
    weighted = learn_weights(
        X, y, X_trusted, y_trusted, sample_weight=weight, sample_weight_trusted=weight_trusted
    )
    rows, trusted = (np.repeat(np.arange(len(w)), w) for w in (weight, weight_trusted))
    repeated = learn_weights(X[rows], y[rows], X_trusted[trusted], y_trusted[trusted])
    same(weighted, repeated, rows, 1e-5)
    assert np.isfinite(weighted.weights[weight == 0]).all()
    assert np.average(weighted.weights, weights=weight) == pytest.approx(1.0)
    both = weighted.sample_weight(60)
    np.testing.assert_allclose(both[:120], weighted.scale * weight * weighted.weights)
    assert (both[120:][weight_trusted == 0] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_classes_may_have_any_names(weighted):
    """Names that sort otherwise: the same weights, the same quality, the same winner."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 6, size=(150, 3)) + 0.0  # some rows are equal
    y = np.argmax(X + 0.4 * rng.normal(size=X.shape), 1)
    given = np.where(rng.random(110) < 0.2, rng.integers(0, 3, 110), y[:110])
    options: Any = {"sample_weight": rng.integers(0, 3, 110)} if weighted else {}
    one, other = (
        learn_weights(X[:110], names[given], X[110:], names[y[110:]], **options)
        for names in (np.array(["ant", "bee", "cat"]), np.array(["yak", "zebra", "cat"]))
    )
    assert one.winner == other.winner
    np.testing.assert_allclose(one.label_quality, other.label_quality, atol=1e-9)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-9)


def test_columns_are_encoded_by_what_rows_hold_and_not_by_how_often():
    """Else the medians in the place of gaps move with rows that are there twice, and the folds too."""
    rng = np.random.default_rng(0)
    X, y, X_trusted, y_trusted = noisy_rows(False)

    def table(X: np.ndarray) -> pd.DataFrame:
        frame = pd.DataFrame(X, columns=pd.Index([f"x{j}" for j in range(X.shape[1])]))
        frame["town"] = rng.choice(["Ulm", "Jena", "Kiel"], len(X))
        frame["day"] = pd.Timestamp(2026, 1, 1) + pd.to_timedelta(rng.integers(0, 99, len(X)), "D")
        return frame.mask(rng.random(frame.shape) < 0.1)

    X, X_trusted = table(X), table(X_trusted)
    weight = rng.integers(0, 3, 120)
    weighted = learn_weights(X, y, X_trusted, y_trusted, sample_weight=weight)
    rows = np.repeat(np.arange(120), weight)
    repeated = learn_weights(X.iloc[rows].reset_index(drop=True), y[rows], X_trusted, y_trusted)
    same(weighted, repeated, rows, 1e-5)


@pytest.mark.slow
def test_weights_of_one_change_nothing():
    rows = noisy_rows(False)
    plain = learn_weights(*rows)
    weighted = learn_weights(*rows, sample_weight=np.ones(120), sample_weight_trusted=np.ones(60))
    same(weighted, plain, np.arange(120), 0)


@pytest.mark.slow
def test_weights_reach_the_users_own_kind_of_model():
    """Not a tree: of splits that are equally good it takes one by the last digit of a sum."""
    X, y, X_trusted, y_trusted = noisy_rows(False)
    weight = np.random.default_rng(0).integers(0, 3, 120)
    own = LogisticRegression(C=10.0, tol=1e-6)
    weighted = learn_weights(X, y, X_trusted, y_trusted, sample_weight=weight, estimator=own)
    rows = np.repeat(np.arange(120), weight)
    repeated = learn_weights(X[rows], y[rows], X_trusted, y_trusted, estimator=own)
    same(weighted, repeated, rows, 1e-4)


def mixed(*parts: Any) -> tuple[np.ndarray, ...]:
    """Training and trusted rows in one table, and the mask."""
    X, y, X_trusted, y_trusted = parts
    order = np.random.default_rng(0).permutation(180)
    return np.r_[X, X_trusted][order], np.r_[y, y_trusted][order], (np.arange(180) >= 120)[order]


@pytest.mark.slow
def test_the_estimators_pass_the_weights_to_every_fit():
    X, y, mask = mixed(*noisy_rows(False))
    weight = np.random.default_rng(0).integers(0, 3, 180)
    final = LogisticRegression(tol=1e-9, max_iter=1000)
    clf: Any = ReweightedClassifier(final).fit(X, y, is_trusted=mask, sample_weight=weight)
    rows = np.repeat(np.arange(180), weight)
    again: Any = ReweightedClassifier(final).fit(X[rows], y[rows], is_trusted=mask[rows])
    same(
        clf.result_, again.result_, np.searchsorted(np.flatnonzero(~mask), rows[~mask[rows]]), 1e-5
    )
    np.testing.assert_allclose(clf.weights_[rows], again.weights_, atol=1e-5)
    np.testing.assert_allclose(clf.estimator_.coef_, again.estimator_.coef_, atol=1e-4)
    holdout = noisy_rows(False)[2:]
    ours, theirs = (c.compare_baselines(*holdout)["score"] for c in (clf, again))
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
    with pytest.raises(InputError, match="leave `sample_weight_trusted` out"):
        clf.fit(X, y, is_trusted=mask, sample_weight_trusted=np.ones(60))
    with pytest.raises(InputError, match=r"one entry per row of X \(180\), got shape \(3,\)"):
        clf.fit(X, y, is_trusted=mask, entities=[1, 2, 3])


@pytest.mark.filterwarnings("ignore:.*was given no trusted rows")
def test_without_trusted_rows_the_estimator_gets_the_weights():
    X, y, *_ = noisy_rows(False)
    weight = np.random.default_rng(0).integers(0, 3, 120)
    clf: Any = ReweightedClassifier().fit(X, y, sample_weight=weight)
    rows = np.repeat(np.arange(120), weight)
    centre = StandardScaler(with_std=False)
    plain = make_pipeline(MinMaxScaler(), centre, LogisticRegression(max_iter=1000))
    plain.fit(X[rows], y[rows])
    np.testing.assert_allclose(clf.predict_proba(X), plain.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(clf.weights_, np.ones(120))


def test_scikit_learn_routes_what_belongs_to_rows():
    X, y, mask = mixed(*noisy_rows(False))
    rng = np.random.default_rng(0)
    given = {"sample_weight": rng.uniform(1, 2, 180), "entities": rng.integers(0, 90, 180)}
    with sklearn.config_context(enable_metadata_routing=True):
        clf: Any = ReweightedClassifier().set_fit_request(
            is_trusted=True, sample_weight=True, entities=True
        )
        found = cross_validate(
            make_pipeline(MinMaxScaler(), clf),
            X,
            y,
            params={"is_trusted": mask, **given},
            cv=KFold(2),
            return_estimator=True,
            # Before scikit-learn 1.8 a pipeline's own score cannot ask for weights.
            scoring=get_scorer("accuracy").set_score_request(sample_weight=True),
        )
    for fit, (train, _) in zip(found["estimator"], KFold(2).split(X), strict=True):
        rows = train[~mask[train]], train[mask[train]]
        for counts, part in zip(fit[-1].result_.counts, rows, strict=True):
            np.testing.assert_array_equal(counts, given["sample_weight"][part])
        np.testing.assert_array_equal(fit[-1]._beside["entities"], given["entities"][rows[0]])


def people(m: int) -> tuple[Any, ...]:
    """Labels are a coin per person, and features say who it is: nothing can be learned of new ones."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(60), 8)
    label = rng.integers(0, 2, 60)
    X = rng.normal(size=(60, 4))[person] + 0.01 * rng.normal(size=(480, 4))
    mixed = rng.permutation(480)
    X, y, person = X[mixed], label[person[mixed]], person[mixed]
    return (X[m:], y[m:], X[:m], y[:m]), person[m:], person[:m]


@pytest.mark.slow
def test_what_identifies_a_person_is_not_rewarded():
    rows, person, trusted = people(160)
    assert judged_scores(*rows)["all rows + trusted"] > 0.9  # inflated
    scores = judged_scores(*rows, entities=person, entities_trusted=trusted.astype(str))
    assert scores.drop("trusted only").between(0.25, 0.75).all()


def test_a_person_is_on_one_side():
    rows, person, trusted = people(160)
    who = pd.Series(np.r_[person, trusted], index=content_hash(np.r_[rows[0], rows[2]]))
    SEEN.clear()
    judged_scores(*rows, entities=person, entities_trusted=trusted)
    for learned, asked in said_before_the_choice(rows[2]):
        assert not np.isin(who[content_hash(learned)], who[content_hash(asked)]).any()


@pytest.mark.slow
def test_trusted_rows_are_judged_by_earlier_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    time = np.sort(rng.integers(0, 60, 300))
    y = (X[:, 0] > 0).astype(int)
    trusted = np.arange(300) % 3 == 0
    when = pd.Series(time, index=content_hash(X))
    is_trusted = pd.Series(trusted, index=when.index)
    dates = pd.Timestamp("2020-01-01") + pd.to_timedelta(time, unit="D")
    SEEN.clear()
    result = learn_weights(
        X[~trusted],
        y[~trusted],
        X[trusted],
        y[trusted],
        estimator=Nearest(),
        times=dates[~trusted],
        times_trusted=dates[trusted],
    )
    asked_of_trusted = 0
    for learned, asked in said_before_the_choice(X[trusted]):
        mine = content_hash(asked)
        if is_trusted[mine].all():
            asked_of_trusted += 1
            assert when[content_hash(learned)].max() < when[mine].min()
    assert asked_of_trusted >= 4 + 4 + 6 * 3
    assert (result.label_quality > 0.5).mean() > 0.8  # every training row is ranked
    assert result.candidates is not None


@pytest.mark.slow
def test_times_show_what_a_random_split_hides():
    """Labels turn round at each season: only rows of the same one help, which come later."""
    rng = np.random.default_rng(0)
    X, time = rng.normal(size=(600, 2)), np.arange(600) // 120
    X[:, 1] += 20 * time  # features tell the season
    y = (X[:, 0] > 0).astype(int) ^ (time % 2)
    trusted = np.arange(600) % 3 == 0
    rows = X[~trusted], y[~trusted], X[trusted], y[trusted]
    assert judged_scores(*rows)["all rows + trusted"] > 0.9
    forward = judged_scores(*rows, times=time[~trusted], times_trusted=time[trusted])
    assert forward["all rows + trusted"] < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_weight": -np.ones(120)}, "`sample_weight` must hold finite weights >= 0"),
        ({"sample_weight": np.zeros(120)}, "`sample_weight` is zero for all rows"),
        ({"sample_weight": np.ones(119)}, r"`sample_weight` must be .* per row \(120\), got"),
        ({"sample_weight_trusted": ["a"] * 60}, "`sample_weight_trusted` must hold numbers"),
        ({"sample_weight_trusted": np.arange(60) < 5}, "got 5 trusted rows, at least 6"),
        ({"entities": np.arange(120)}, "`entities_trusted` is missing"),
        (
            {"entities": np.arange(120), "entities_trusted": np.zeros(60)},
            "the trusted rows belong to 1 entities",
        ),
        (
            {"entities": [None] + ["a"] * 119, "entities_trusted": np.arange(60)},
            "`entities` has 1 missing entries, in the rows 0",
        ),
        ({"times": np.arange(120), "times_trusted": np.zeros(60)}, "at least 5 times, got 1"),
        ({"times": np.arange(120) + 100, "times_trusted": np.arange(60)}, "no such training rows"),
        ({"times": ["soon"] * 120, "times_trusted": np.arange(60)}, "must hold numbers or dates"),
        ({"times": np.arange(120), "method": "soba"}, "`times` needs method='auto'"),
    ],
)
def test_what_cannot_be_used_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        learn_weights(*noisy_rows(False), **options)


def test_overlap_says_that_it_is_gone():
    with pytest.warns(DeprecationWarning, match="`overlap` has no effect and goes in version 0.3"):
        learn_weights(*noisy_rows(False), overlap="keep")


def test_only_ids_that_were_given_on_purpose_are_compared():
    X, y, X_trusted, y_trusted = noisy_rows(False)
    train, trusted = pd.DataFrame(X), pd.DataFrame(X_trusted)
    shuffled = train.sample(frac=1, random_state=0), trusted.sample(frac=1, random_state=0)
    learn_weights(shuffled[0], y, shuffled[1], y_trusted)  # row numbers of two tables
    named = train.rename_axis("row"), trusted.rename_axis("row")
    with pytest.raises(InputError, match="60 training rows have the id of trusted rows"):
        learn_weights(named[0], y, named[1], y_trusted)
    texts = [t.set_axis([f"r{i + 118 * k}" for i in range(len(t))]) for k, t in enumerate(named)]
    with pytest.raises(InputError, match=r"2 training rows .* \('r118', 'r119'\)"):
        learn_weights(texts[0], y, texts[1], y_trusted)


@pytest.mark.parametrize("which", [0, 1])
def test_weights_that_are_relative_are_named(which):
    """Of weights that sum to 1 all rows count as one row: nothing is known then of wrong labels."""
    features = np.zeros((50, 1)), np.zeros((20, 1))
    n = len(features[which])
    name = ("sample_weight", "sample_weight_trusted")[which]
    for scale, total in ((1 / n, "1"), (1000.0, f"{1000.0 * n:.3g}")):
        columns = RowColumns(**{name: np.full(n, scale)})
        with pytest.warns(
            UserWarning, match=rf"`{name}` has a mean of .* {n} rows count as "
        ) as said:
            row_facts(columns, *features)
        assert f"count as {total}, in every" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (np.full(n, 2.0), np.r_[np.zeros(n - 1), 1.0]):
            row_facts(RowColumns(**{name: fine}), *features)
