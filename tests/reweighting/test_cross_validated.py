"""Weights that are chosen on folds of the trusted rows: candidates, the choice, and real digits."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from bilevel import learn_weights
from bilevel.datasets import flip_to_different
from bilevel.reweighting import InputError, cross_validated_weights
from bilevel.reweighting._inputs.probabilities import check_probabilities
from bilevel.reweighting._weights import candidates as _candidates
from bilevel.reweighting._weights import folds as _folds
from bilevel.reweighting._weights import joining
from bilevel.reweighting._weights.baselines import SIMPLEST
from bilevel.reweighting._weights.candidates import search
from bilevel.reweighting._weights.choice import (
    best_candidate,
    candidate_table,
    choose,
    must_leave_out,
)
from bilevel.reweighting._weights.folds import FOLDS, make_folds
from bilevel.reweighting._weights.shares import at_effective_size, density_ratio, mean_by_group


def scaled_digits(n: int, m: int, rate: float, seed: int) -> tuple[Any, Any, np.ndarray]:
    """(training and trusted rows, hold-out, which labels are wrong)."""
    bunch: Any = load_digits()
    X, y = bunch.data / 16, bunch.target
    train, trusted, rest = np.split(np.random.default_rng(seed).permutation(len(y)), [n, n + m])
    noisy, wrong = flip_to_different(y[train], rate, seed=seed)
    return (X[train], noisy, X[trusted], y[trusted]), (X[rest], y[rest]), wrong


def refit(data: Any, weights: Any, trusted_weight: float, holdout: Any) -> float:
    X, y, X_trusted, y_trusted = data
    sample_weight = np.r_[weights, np.full(len(y_trusted), trusted_weight)]
    kept = sample_weight > 0
    model = LogisticRegression(max_iter=500)
    model.fit(np.r_[X, X_trusted][kept], np.r_[y, y_trusted][kept], sample_weight[kept])
    return model.score(*holdout)


@pytest.fixture(scope="module")
def noisy() -> Any:
    data, holdout, wrong = scaled_digits(600, 100, 0.3, seed=1)
    return data, holdout, wrong, search(*data)


def test_weights_find_wrong_labels_and_pay(noisy):
    data, holdout, wrong, found = noisy
    assert roc_auc_score(wrong, -found.quality) > 0.98
    flagged = found.right < 0.5
    assert np.mean(wrong[flagged]) > 0.9
    assert np.mean(flagged[wrong]) > 0.85
    assert 1 - found.right.mean() == pytest.approx(0.3, abs=0.03)
    ones, trusted = np.ones(len(wrong)), LogisticRegression(max_iter=500).fit(*data[2:])
    baselines = [
        refit(data, ones, 0.0, holdout),
        refit(data, ones, 1.0, holdout),
        trusted.score(*holdout),
        refit(data, trusted.predict(data[0]) == data[1], 1.0, holdout),
    ]
    assert refit(data, found.right, 1.0, holdout) > max(baselines)


def test_the_table_and_the_members(noisy):
    data, _, _, found = noisy
    chosen = choose(found)
    assert list(chosen.candidates.index[:4]) == ["uniform", SIMPLEST, "trusted only", "filter"]
    assert chosen.candidates.loc[SIMPLEST, "difference"] == 0
    assert chosen.winner in ("weights", "clean rows")
    assert not must_leave_out(found)  # a linear model averages over wrong labels
    other = dataclasses.replace(found.linear, expensive=True)
    assert must_leave_out(dataclasses.replace(found, judge=other))  # 30 % are wrong
    assert not must_leave_out(dataclasses.replace(found, judge=other, noise=None))
    assert chosen.weights.mean() == pytest.approx(1.0, rel=1e-9)
    assert ((chosen.wrong >= 0) & (chosen.wrong <= 1)).all()
    members = chosen.members
    *names, last = members.index
    assert names[:4] == [
        "linear, all rows",
        "linear, trusted rows",
        "kernel, all rows",
        "kernel, trusted rows",
    ]
    joined = [name.removesuffix(", all rows") for name in names if name.endswith(", all rows")]
    assert names[-len(joined) :] == [f"{kind}, weighted rows" for kind in joined]
    assert last == "pool"
    assert members.loc["pool", "loss"] <= members["loss"].min() + 0.05
    assert (members["coefficient"].iloc[:-1] >= 0).all()
    # The baselines are judged by scikit-learn's models of the other folds.
    folds = found.folds
    losses = np.zeros(folds.m)
    for k in range(FOLDS):
        rows = folds.fold == k
        model = LogisticRegression(tol=1e-3).fit(data[2][~rows], data[3][~rows])
        losses[rows] = model.predict(data[2][rows]) == data[3][rows]
    assert chosen.candidates.loc["trusted only", "score"] == losses.mean()


@pytest.mark.slow
def test_forests_join_only_where_linear_models_plainly_do_not_suffice(monkeypatch):
    """Beside kernel models, or boosted trees, they may add nothing."""
    for bar in ("KERNEL_JOINS", "BOOSTED_JOINS"):
        monkeypatch.setattr(joining, bar, np.inf)
    rng = np.random.default_rng(0)
    X, X_trusted = rng.uniform(-1, 1, size=(600, 3)), rng.uniform(-1, 1, size=(100, 3))

    def members(rule):
        y, y_trusted = (rule(x).astype(int) for x in (X, X_trusted))
        y[::5] = 1 - y[::5]
        return _candidates.search(X, y, X_trusted, y_trusted).member_table.index

    assert "forest, all rows" not in members(lambda x: x[:, 0] + x[:, 1] > 0)
    assert "forest, all rows" in members(lambda x: x[:, 0] * x[:, 1] > 0)


def test_a_candidate_has_not_seen_the_fold_that_judges_it(noisy, monkeypatch):
    """Labels of a fold are changed: the candidates without it stay, those with it do not.

    All folds say together who joins the pool; so here nobody is offered.
    """
    data = noisy[0]
    monkeypatch.setattr(_candidates, "offers_of", lambda *_, **__: [])
    found = search(*data)
    X, y, X_trusted, y_trusted = data
    fold = found.folds.fold == 0
    changed = np.where(fold, (y_trusted + 1) % 10, y_trusted)

    def same_folds(y: np.ndarray, y_trusted: np.ndarray, *rest: Any) -> Any:
        folds = make_folds(y, y_trusted, *rest)
        for name in ("fold", "part", "part_trusted", "half", "half_trusted", "others"):
            setattr(folds, name, getattr(found.folds, name))
        return folds

    monkeypatch.setattr(_candidates, "make_folds", same_folds)
    again = search(X, y, X_trusted, changed)
    for name in ("weights", "clean rows", "filter"):
        before, after = found.candidates[name].weights, again.candidates[name].weights
        np.testing.assert_array_equal(after[0], before[0])
        assert np.abs(after[1] - before[1]).max() > 1e-3


@pytest.mark.slow
def test_equal_calls_agree_bit_for_bit(noisy):
    data, _, _, found = noisy
    again = search(*data)
    np.testing.assert_array_equal(again.right, found.right)
    np.testing.assert_array_equal(again.quality, found.quality)


def test_clean_labels_are_left_alone():
    data, holdout, _ = scaled_digits(600, 100, 0.0, seed=2)
    found = cross_validated_weights(*data)
    assert found.noise is not None
    assert found.noise.rate.low < 0.005
    assert found.noise.rate.value < 0.02
    assert np.mean(~found.keep) < 0.02
    ours = refit(data, found.scale * found.weights, found.scale * found.trusted_weight, holdout)
    assert ours >= refit(data, np.ones(600), 1.0, holdout) - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_few_wrong_labels_are_flagged_and_few_others(seed):
    """3 % wrong: where every row below average was flagged, precision was 0.12."""
    data, _, wrong = scaled_digits(1000, 200, 0.03, seed)
    found = cross_validated_weights(*data, seed=seed)
    assert np.mean(wrong[~found.keep]) > 0.75
    assert np.mean(~found.keep[wrong]) > 0.6


def test_useless_training_rows_lose_to_the_trusted_ones():
    """Labels that say nothing: the trusted rows alone, or weights that come to the same."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 5))
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    found = cross_validated_weights(X[:600], rng.integers(0, 2, 600), X[600:], y[600:])
    loss = found.candidates["loss"].to_dict()
    assert loss[found.winner] < 0.5 * loss["uniform"]


def test_a_subsample_is_enough_for_the_models(monkeypatch):
    data, _, wrong = scaled_digits(600, 100, 0.3, seed=1)
    monkeypatch.setattr(_folds, "MAX_ROWS", 300)
    found = cross_validated_weights(*data)
    assert found.weights.shape == (600,)
    assert roc_auc_score(~wrong, found.label_quality) > 0.97


@pytest.mark.slow
def test_the_users_own_kind_of_model_judges_labels():
    """Two classes that a linear model cannot tell apart, and trees can."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(900, 2))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    wrong = rng.random(700) < 0.3
    noisy = np.where(wrong, 1 - y[:700], y[:700])
    trees = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    result = learn_weights(X[:700], noisy, X[700:], y[700:], estimator=trees)
    assert roc_auc_score(~wrong, result.label_quality) > 0.95
    # The forests of the pool see it too, and the linear model that judges new rows does not.
    linear = learn_weights(X[:700], noisy, X[700:], y[700:])
    assert roc_auc_score(~wrong, linear.label_quality) > 0.95
    alone = linear.score_rows(X[:700], noisy)
    assert roc_auc_score(~wrong, alone["label_quality"]) < 0.7
    again = result.score_rows(X[:700], noisy)
    assert roc_auc_score(~wrong, again["label_quality"]) > 0.95
    assert np.mean(again["predicted_label"] == y[:700]) > 0.9


def test_groups_weigh_by_their_share_of_right_labels():
    right, groups = np.array([1.0, 0.5, 0.0, 0.1]), np.array(["a", "a", "b", "b"])
    mean = 0.4
    np.testing.assert_allclose(
        mean_by_group(right, groups, np.ones(len(right))),
        np.repeat([(1.5 + mean) / 3, (0.1 + mean) / 3], 2),
    )


def test_effective_weights_sum_to_the_effective_sample_size():
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 3.0]])
    sizes = weights.sum(1) ** 2 / (weights**2).sum(1)
    np.testing.assert_allclose(at_effective_size(weights, np.ones(weights.shape[1])).sum(1), sizes)


def shifted(n: int, m: int, shift: float, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + m, 3))
    X[n:, 0] += shift
    y = (X[:, 1] > 0).astype(int)
    return X[:n], y[:n], X[n:], y[n:]


def test_a_shift_is_found_where_there_is_one():
    X, y, X_trusted, y_trusted = shifted(6000, 2000, 1.0, 0)
    ratio = density_ratio(make_folds(y, y_trusted, 0), X, X_trusted)
    assert ratio is not None
    # Of two normal distributions with unit variance, the log ratio has the slope of the shift.
    slope = np.polyfit(X[:, 0], np.log(ratio[FOLDS]), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_a_shift_is_seldom_found_where_there_is_none():
    found = 0
    for seed in range(20):
        X, y, X_trusted, y_trusted = shifted(500, 100, 0.0, seed)
        found += density_ratio(make_folds(y, y_trusted, seed), X, X_trusted) is not None
    assert found <= 1


def losses_and_noise() -> tuple[np.ndarray, np.ndarray]:
    """Losses of 50 rows, and noise whose mean is 0 with a standard error of 1."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=50)
    return rng.random(50), (noise - noise.mean()) / noise.std(ddof=1) * np.sqrt(50)


@pytest.mark.parametrize(("errors", "winner"), [(0.45, SIMPLEST), (0.55, "weights")])
def test_a_gain_within_half_a_standard_error_is_not_enough(errors, winner):
    base, noise = losses_and_noise()
    judged = {SIMPLEST: (base, 0.5), "weights": (base - errors + noise, 0.6)}
    assert best_candidate(judged) == winner
    table = candidate_table(judged)
    assert table.loc["weights", "difference"] == pytest.approx(-errors)
    assert table.loc["weights", "standard_error"] == pytest.approx(1.0)


@pytest.mark.parametrize(("errors", "winner"), [(-1.9, "clean rows"), (-2.1, SIMPLEST)])
def test_where_many_labels_are_wrong_for_sure_all_rows_must_be_better_for_sure(errors, winner):
    base, noise = losses_and_noise()
    judged = {SIMPLEST: (base, 0.6), "clean rows": (base - errors + noise, 0.5)}
    assert best_candidate(judged, "clean rows") == SIMPLEST
    assert best_candidate(judged, "clean rows", many_wrong=True) == winner


def test_soft_weights_are_preferred_to_what_is_hardly_better():
    rng = np.random.default_rng(0)
    base, soft = rng.random(50) + 1, 0.5 + 0.1 * rng.random(50)
    judged = {SIMPLEST: (base, 0.5), "weights": (soft, 0.6)}
    hardly = rng.normal(size=50)
    hardly += soft.mean() - hardly.mean() - 1e-3  # the least mean, by less than its error
    assert best_candidate(judged | {"clean rows": (hardly, 0.6)}) == "weights"
    assert best_candidate(judged | {"clean rows": (soft - 0.1, 0.6)}) == "clean rows"


def test_rows_of_a_class_that_no_trusted_row_has_are_judged_by_models_of_all_rows():
    data, _, wrong = scaled_digits(600, 100, 0.3, seed=1)
    X, y, X_trusted, y_trusted = data
    seen = y_trusted != 7
    found = search(X, y, X_trusted[seen], y_trusted[seen])
    sevens = y == 7
    assert found.folds.unjudged[sevens].all()
    assert not found.folds.unjudged[~sevens].any()
    # Of the right and of the wrong sevens, as of the other digits.
    assert roc_auc_score(~wrong[sevens], found.quality[sevens]) > 0.95
    keep = choose(found).keep
    assert keep[sevens & ~wrong].mean() > 0.8
    assert keep[sevens & wrong].mean() < 0.2
    for before, member in itertools.pairwise(found.members):
        if member.alone:  # models of the trusted rows say nothing of their own there
            np.testing.assert_array_equal(member.train[0][sevens], before.train[0][sevens])


@pytest.mark.slow
def test_given_probabilities_join_the_pool():
    data, _, wrong = scaled_digits(600, 60, 0.3, seed=1)
    X, y, X_trusted, _ = data
    bunch: Any = load_digits()
    good = LogisticRegression(max_iter=300).fit(bunch.data / 16, bunch.target)
    p, p_trusted = good.predict_proba(X), good.predict_proba(X_trusted)
    plain = learn_weights(*data, task="classification")
    shown = learn_weights(*data, task="classification", pred_probs=p, pred_probs_trusted=p_trusted)
    areas = [roc_auc_score(~wrong, r.label_quality) for r in (plain, shown)]
    assert areas[1] > areas[0]
    assert areas[1] > 0.997
    assert [c.passed for c in shown.checks if "out of fold" in c.name] == [True]
    # New rows are judged with their probabilities, in which the pool trusts most here.
    new = slice(700, 760)
    rows, labels = bunch.data[new] / 16, bunch.target[new]
    p_new = good.predict_proba(rows)
    told: Any = shown.score_rows(rows, (labels + 1) % 10, pred_probs=p_new)
    assert told["keep"].mean() < 0.05
    misled: Any = shown.score_rows(rows, labels, pred_probs=np.roll(p_new, 1, axis=1))
    assert misled["label_quality"].mean() < 0.5
    with pytest.raises(InputError, match="give those of the new rows too"):
        shown.score_rows(X, y)
    with pytest.raises(InputError, match="had no part in these weights"):
        plain.score_rows(X, y, pred_probs=p)


def test_probabilities_of_a_model_that_saw_the_rows_are_called_out():
    """A model that memorised the noisy labels, against the same out of fold."""
    data, _, _ = scaled_digits(600, 60, 0.3, seed=1)
    X, y, X_trusted, y_trusted = data
    p = np.full((600, 10), 0.001)
    p[np.arange(600), y] = 0.991
    weak = LogisticRegression(max_iter=300).fit(X, y)
    honest = weak.predict_proba(X_trusted)
    with pytest.warns(UserWarning, match=r"given label of 1\.000 of the training rows, and of 0\."):
        result = learn_weights(
            *data, task="classification", pred_probs=p, pred_probs_trusted=honest
        )
    assert not result.believable
    right = float(np.mean(honest.argmax(axis=1) == y_trusted))
    assert f"{right:.3f} of the trusted rows" in str(result)
    # What is said of the worst rows: the given model's own words, and of others not the same.
    told: Any = result.opinions
    np.testing.assert_array_equal(told.rows, np.argsort(result.label_quality, kind="stable")[:200])
    mine = told.models.index("given probabilities")
    np.testing.assert_array_equal(told.said[:, mine], y[told.rows])
    np.testing.assert_allclose(told.probability[:, mine], 0.991, rtol=1e-4)
    others = [j for j in range(len(told.models)) if j != mine]
    assert (told.said[:, others] != y[told.rows, None]).mean() > 0.5
    assert (told.probability >= told.given).all()


def test_columns_of_probabilities_are_matched_by_name():
    rng = np.random.default_rng(0)
    classes = np.array(["car", "cat", "dog"])
    p = pd.DataFrame(rng.dirichlet(np.ones(3), 4), columns=["p_dog", "p_car", "p_cat"])
    found = check_probabilities(p, p, classes, 4, 4)
    assert found is not None
    np.testing.assert_allclose(np.exp(found.train), p[["p_car", "p_cat", "p_dog"]], atol=1e-5)
    with pytest.raises(InputError, match="expected one for each class, named by it"):
        check_probabilities(p.rename(columns={"p_cat": "q_cat"}), p, classes, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"pred_probs": p[0]}, "`pred_probs_trusted` is missing"),
        (lambda p: {"pred_probs": p[0][:, 1:], "pred_probs_trusted": p[1]}, "expected shape"),
        (lambda p: {"pred_probs": 2 * p[0], "pred_probs_trusted": p[1]}, "must sum to 1"),
        (lambda p: {"pred_probs": p[0] - 1, "pred_probs_trusted": p[1]}, "not logits"),
        (lambda p: {"given_labels_trusted": [1, 2]}, "one label per trusted row"),
        (
            lambda p: {"pred_probs": p[0], "pred_probs_trusted": p[1], "method": "soba"},
            "`pred_probs` needs method='auto'",
        ),
    ],
)
def test_bad_probabilities_are_named(change, message):
    data, _, _ = scaled_digits(100, 60, 0.3, seed=1)
    p = np.full((100, 10), 0.1), np.full((60, 10), 0.1)
    with pytest.raises(ValueError, match=message):
        learn_weights(*data, task="classification", **change(p))


def test_bad_input_is_named():
    X, y = np.zeros((5, 2)), np.zeros(5, int)
    with pytest.raises(InputError, match="got 5 trusted rows, at least 6"):
        cross_validated_weights(X, y, X, y)
    X, y = np.zeros((6, 2)), np.zeros(6, int)
    message = r"must both be class codes 0, 1, \.\.\. or both floating targets, got "
    for one, other, kinds in [(y, y.astype(float), "int64 and float64"), (y, y - 1, "from -1")]:
        with pytest.raises(InputError, match=message + f".*{kinds}"):
            cross_validated_weights(X, one, X, other)
