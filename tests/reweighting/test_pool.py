"""The pool of label models: its equations, what it recovers, and what it has not seen."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from bilevel.reweighting._learn import learn_weights
from bilevel.reweighting._weights.calibration import log_odds
from bilevel.reweighting._weights.folds import FOLDS, make_folds
from bilevel.reweighting._weights.label_models import (
    cross_fitted,
    linear_label_model,
    trusted_only,
)
from bilevel.reweighting._weights.labels import Classes, Numbers
from bilevel.reweighting._weights.pool import ClassPool, NumberPool, _noise_matrix
from bilevel.reweighting._weights.scorer import Doubt, RowScorer
from digits import digits

RNG = np.random.default_rng(0)
NO_DOUBT = Doubt(np.zeros(1), np.zeros(1), np.inf)
CLASSES = Classes(3)
NOISE = np.array([[0.8, 0.15, 0.05], [0.0, 1.0, 0.0], [0.1, 0.3, 0.6]])


def sampled(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities, and labels drawn from them."""
    outputs = log_softmax(1.5 * rng.normal(size=(rows, 3)), axis=1)
    labels = np.array([rng.choice(3, p=p) for p in np.exp(outputs)])
    return outputs, labels


def given(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.choice(3, p=NOISE[y]) for y in labels])


def test_the_coefficients_minimise_the_penalised_loss():
    members = [log_softmax(RNG.normal(size=(40, 3)), axis=1) for _ in range(2)]
    y = RNG.integers(0, 3, 40)
    pool = ClassPool.fit(CLASSES, members, y, members, y)

    def loss(log_c: np.ndarray) -> float:  # the docstring's equation, written out
        p = np.exp(log_c[0] * 1.0) * members[0] + np.exp(log_c[1]) * members[1]
        p = np.exp(p) / np.exp(p).sum(axis=1, keepdims=True)
        return float(-np.log(p[np.arange(40), y]).sum() + np.sum(np.log(2 * np.exp(log_c)) ** 2))

    found = minimize(
        loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    np.testing.assert_allclose(pool.coefficients, np.exp(found.x), rtol=1e-4)


def test_a_member_that_says_nothing_changes_nothing():
    outputs, labels = sampled(2000, np.random.default_rng(1))
    flat = np.full_like(outputs, -np.log(3))
    pool = ClassPool.fit(CLASSES, [outputs, flat], labels, [outputs, flat], labels)
    assert pool.coefficients[0] == pytest.approx(1.0, abs=0.08)
    assert pool.background < 0.02
    np.testing.assert_allclose(
        ClassPool(np.array([1.0, 0.7]), 0.0, np.full(3, 1 / 3), np.eye(3)).outputs([outputs, flat]),
        outputs,
        atol=1e-12,
    )


def test_the_noise_matrix_is_recovered():
    """The members know the true distribution; the given labels are drawn by a known matrix."""
    rng = np.random.default_rng(2)
    trusted, y_trusted = sampled(1000, rng)
    train, true = sampled(20_000, rng)
    y = given(true, rng)
    pool = ClassPool.fit(CLASSES, [trusted], y_trusted, [train], y)
    np.testing.assert_allclose(pool.noise, NOISE, atol=0.06)
    right = pool.right([train], y)
    assert right.mean() == pytest.approx(np.mean(y == true), abs=0.01)
    # Calibrated: of the rows with a probability near p, a share of about p is right.
    for low in (0.2, 0.5, 0.8):
        rows = (right >= low) & (right < low + 0.1)
        assert np.mean(y[rows] == true[rows]) == pytest.approx(right[rows].mean(), abs=0.06)


def test_certain_members_count_the_pairs():
    """Of certain members, two classes: the counts, with five wrong labels at the rate of all."""
    true, y = np.repeat([0, 1], [60, 40]), np.repeat([0, 1, 1, 0], [50, 10, 30, 10])
    rate = 20.5 / 101
    rates = (np.array([10, 10]) + 5) / (np.array([60, 40]) + 5 / rate)
    np.testing.assert_allclose(
        _noise_matrix(np.eye(2)[true], y, np.zeros((2, 2))),
        [[1 - rates[0], rates[0]], [rates[1], 1 - rates[1]]],
        rtol=1e-9,
    )


def test_wrong_labels_are_believed_to_be_those_that_the_pool_confuses():
    """Without any wrong label, half of the belief is uniform and half follows the confusions."""
    p = np.tile([[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]], (200, 1))
    noise = _noise_matrix(p, np.tile([0, 1, 2], 200), np.zeros((3, 3)))
    assert noise[0, 1] > 2 * noise[0, 2] > 0
    np.testing.assert_allclose(noise.sum(axis=1), 1, rtol=1e-12)


def test_verified_pairs_enter_the_matrix():
    rng = np.random.default_rng(3)
    trusted, y_trusted = sampled(4000, rng)
    before = given(y_trusted, rng)
    blank = np.full((30, 3), -np.log(3))  # training rows that say nothing
    y = rng.integers(0, 3, 30)
    pool = ClassPool.fit(CLASSES, [trusted], y_trusted, [blank], y, before)
    np.testing.assert_allclose(pool.noise, NOISE, atol=0.05)


def test_rows_are_called_wrong_by_coefficients_that_have_not_seen_their_fold():
    """A trusted row, and a training row of the same part: by a pool that was fitted without it."""
    rng = np.random.default_rng(3)
    outputs, y_trusted = sampled(60, rng)
    members = [outputs, log_softmax(rng.normal(size=(60, 3)), axis=1)]
    fold, labels = np.arange(60) % 3, given(y_trusted, rng)
    pool = ClassPool.fit(CLASSES, members, y_trusted, members, labels)
    # The training rows are the trusted ones again, those of part 3 are judged by the pool itself.
    part = np.where(np.arange(60) < 30, fold, 3)
    found = pool.evidence(members, y_trusted, members, y_trusted, fold=fold, part=part)
    root = np.sqrt(pool.noise) / np.sqrt(pool.noise).sum(axis=1, keepdims=True)
    own = log_odds(np.exp(pool.outputs(members)), root, y_trusted)
    for k in range(3):
        here = fold == k
        without = [outputs[~here] for outputs in members]
        other = ClassPool.fit(CLASSES, without, y_trusted[~here], members, labels)
        p = np.exp(other.outputs(members))
        by_hand = log_odds(p, root, y_trusted)
        np.testing.assert_allclose(found.right[here], by_hand[here], rtol=1e-6)
        assert np.abs(by_hand - own)[here].max() > 1e-3
    np.testing.assert_allclose(found.training[:30], found.right[:30], rtol=1e-12)
    np.testing.assert_allclose(found.training[30:], own[30:], rtol=1e-12)


def test_the_rows_that_are_called_wrong_are_the_first_of_the_ranking():
    """By one noise matrix, not by its square root for the one and by itself for the other."""
    rng = np.random.default_rng(5)
    outputs, y_trusted = sampled(300, rng)
    labels = given(y_trusted, rng)
    pool = ClassPool.fit(CLASSES, [outputs], y_trusted, [outputs], labels)._replace(background=0.0)
    alone, fold = np.full(300, 3), np.arange(300) % 3  # judged by the pool itself
    rows = [outputs], y_trusted, [outputs], labels
    found = pool.evidence(*rows, fold=fold, part=alone).training
    np.testing.assert_allclose(expit(-found), pool.quality([outputs], labels), rtol=1e-9)
    assert np.abs(expit(-found) - pool.right([outputs], labels)).max() > 0.05


@pytest.mark.parametrize("confidence", [1.0, 3.0])
def test_errors_of_sure_models_are_not_taken_for_wrong_labels(confidence):
    """Labels are all right; the model is surely wrong in a tenth of the rows."""
    rng = np.random.default_rng(4)

    def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 3, n)
        said = np.where(rng.random(n) < 0.1, (y + rng.integers(1, 3, n)) % 3, y)
        return log_softmax(4 * confidence * np.eye(3)[said], axis=1), y

    (trusted, y_trusted), (train, y) = rows(200), rows(3000)
    pool = ClassPool.fit(CLASSES, [trusted], y_trusted, [train], y)
    assert np.mean(pool.right([train], y) < 0.5) < 0.01
    assert 1 - pool.right([train], y).mean() < 0.04


def test_ranking_uses_the_square_root_of_the_noise():
    outputs, _ = sampled(50, np.random.default_rng(5))
    y = np.random.default_rng(5).integers(0, 3, 50)
    pool = ClassPool(np.array([1.0]), 0.0, np.full(3, 1 / 3), NOISE + 0.01)
    root = np.sqrt(NOISE + 0.01)
    root /= root.sum(axis=1, keepdims=True)
    joint = np.exp(outputs) * root[:, y].T
    np.testing.assert_allclose(
        pool.quality([outputs], y), joint[np.arange(50), y] / joint.sum(axis=1), rtol=1e-12
    )


def test_wrong_targets_and_their_scale_are_recovered():
    rng = np.random.default_rng(6)
    truth = rng.normal(size=8000)
    said = (truth + 0.1 * rng.standard_t(4, 8000))[:, None]
    wrong = rng.random(7000) < 0.25
    y = np.where(wrong, truth[1000:] + rng.normal(size=7000), truth[1000:])
    pool = NumberPool.fit(Numbers(), [said[:1000]], truth[:1000], [said[1000:]], y)
    assert pool.coefficients[0] == pytest.approx(1.0, abs=0.02)
    assert pool.scale == pytest.approx(0.1, rel=0.1)
    right = pool.right([said[1000:]], y)
    assert 1 - right.mean() == pytest.approx(wrong.mean(), abs=0.03)
    # No ranking does better than the distance to a model that is right up to its errors.
    best = roc_auc_score(~wrong, -np.abs(y - said[1000:, 0]))
    assert roc_auc_score(~wrong, right) == pytest.approx(best, abs=1e-3)
    clean = NumberPool.fit(Numbers(), [said[:1000]], truth[:1000], [said[1000:]], truth[1000:])
    assert 1 - clean.right([said[1000:]], truth[1000:]).mean() < 0.03


def test_losses_are_of_probabilities_of_what_may_be_given():
    """They sum to one over all labels."""
    rng = np.random.default_rng(7)
    outputs, labels = sampled(50, rng)
    pool = ClassPool.fit(CLASSES, [outputs], labels, [outputs], given(labels, rng))
    p = [np.exp(-pool.losses([outputs], np.full(50, label))) for label in range(3)]
    np.testing.assert_allclose(sum(p), 1.0)


def test_number_coefficients_have_the_greatest_penalised_likelihood():
    rng = np.random.default_rng(7)
    y = rng.normal(size=60)
    members = [(y + scale * rng.normal(size=60))[:, None] for scale in (0.3, 0.6)]
    pool = NumberPool.fit(Numbers(), members, y, members, y)

    def loss(x: np.ndarray) -> float:
        from scipy.stats import t

        r = y - np.exp(x[0]) * members[0][:, 0] - np.exp(x[1]) * members[1][:, 0]
        return float(
            -t.logpdf(r, 4, scale=np.exp(x[2])).sum() + np.sum(np.log(2 * np.exp(x[:2])) ** 2)
        )

    found = minimize(
        loss,
        [-0.7, -0.7, -1.0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000},
    )
    np.testing.assert_allclose([*pool.coefficients, pool.scale], np.exp(found.x), rtol=1e-3)


def linear(data: Any, seed: int = 0) -> Any:
    folds = make_folds(data.y, data.y_trusted, seed)
    return linear_label_model(folds, data.X / 16, data.X_trusted / 16)


def test_members_have_not_seen_what_they_judge():
    """A label that is changed does not change what its own row hears, or its own fold."""
    data = digits()
    model = linear(data)
    folds = model.folds
    for fit in (cross_fitted, trusted_only):
        before = fit(model)
        part, fold = np.flatnonzero(folds.half == 0), np.flatnonzero(folds.fold == 0)
        y, y_trusted = data.y.copy(), data.y_trusted.copy()
        y[part], y_trusted[fold] = (y[part] + 1) % 10, (y_trusted[fold] + 1) % 10
        changed = linear(data._replace(y=y, y_trusted=y_trusted))
        for name in ("fold", "part", "part_trusted", "half", "half_trusted", "others"):
            setattr(changed.folds, name, getattr(folds, name))
        after = fit(changed)
        if fit is cross_fitted:  # the rows of half a part
            np.testing.assert_array_equal(after.train[0][part], before.train[0][part])
            assert np.abs(after.train[0] - before.train[0]).max() > 0.1
        else:  # without fold 0: everything; with it: the rows of fold 0
            np.testing.assert_array_equal(after.train[0], before.train[0])
            assert np.abs(after.train[1] - before.train[1]).max() > 0.1
            held_out = before.trusted[FOLDS][fold]
            np.testing.assert_array_equal(after.trusted[FOLDS][fold], held_out)


def test_out_of_fold_outputs_are_scikit_learns():
    data = digits()
    model = linear(data)
    folds, member = model.folds, trusted_only(model)
    rows = folds.fold != 1
    by_hand = LogisticRegression(tol=1e-3).fit(data.X_trusted[rows] / 16, data.y_trusted[rows])
    p = np.maximum(by_hand.predict_proba(data.X / 16), 1e-5)
    np.testing.assert_allclose(np.exp(member.train[1]), p / p.sum(axis=1, keepdims=True), rtol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_models_as_arrays_say_the_same(classes):
    X = RNG.normal(size=(60, 4))
    y = np.arange(60) % classes
    folds = make_folds(y, y, 0)
    model = linear_label_model(folds, X, X)
    fitted = model.fit(np.ones(60), np.zeros(60))
    member = RowScorer.linear_parameters(fitted, folds.kind)
    pool = ClassPool(np.ones(1), 0.0, np.full(classes, 1 / classes), np.eye(classes))
    scorer = RowScorer(folds.kind, [[member]], pool, NO_DOUBT)
    np.testing.assert_allclose(scorer.outputs(X)[0], model.outputs(fitted, X), atol=1e-9)
    one = model.fit(np.zeros(60), (y == 1).astype(float))  # a single class
    member = RowScorer.linear_parameters(one, folds.kind)
    constant = RowScorer(folds.kind, [[member]], pool, NO_DOUBT).outputs(X)[0]
    np.testing.assert_allclose(constant, model.outputs(one, X), atol=1e-9)


def test_the_linear_regression_is_ridge():
    X, y = RNG.normal(size=(60, 4)), RNG.normal(size=60)
    folds = make_folds(y, y, 0)
    fitted = linear_label_model(folds, X, X).fit(np.ones(60), np.zeros(60))
    np.testing.assert_allclose(fitted.coef_, Ridge().fit(X, y).coef_, rtol=1e-12)


def test_the_noise_matrix_is_that_of_expectation_maximisation_row_by_row():
    """The products of whole classes are the sums over rows, written out, with the beliefs of both."""
    rng = np.random.default_rng(3)
    n, classes = 60, 4
    p = rng.dirichlet(np.ones(classes), n)
    y = rng.integers(0, classes - 1, n)  # the last class is never given
    pairs = np.diag([3.0, 0.0, 1.0, 2.0])
    believed = np.zeros((classes, classes))
    for a in range(classes):
        others = [b for b in range(classes) if b != a]
        confused = np.array([p[:, a] @ p[:, b] for b in others])
        believed[a, others] = (classes - 1) * confused / confused.sum() / 2 + 1 / 2
    noise = np.full((classes, classes), 0.1 / (classes - 1))
    np.fill_diagonal(noise, 0.9)
    for _ in range(60):
        counts = pairs.copy()
        for i in range(n):
            posterior = p[i] * noise[:, y[i]]
            counts[:, y[i]] += posterior / posterior.sum()
        right = np.diag(counts)
        wrong = counts.sum(axis=1) - right
        overall = (wrong.sum() + 0.5) / (counts.sum() + 1)
        for a in range(classes):
            rate = (wrong[a] + 5) / (wrong[a] + right[a] + 5 / overall)
            line = np.where(np.arange(classes) == a, 0, counts[a] + believed[a])
            noise[a] = rate * line / line.sum()
            noise[a, a] = 1 - rate
    np.testing.assert_allclose(_noise_matrix(p, y, pairs), noise, rtol=1e-9)


@pytest.mark.parametrize("sharp", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_losses_are_at_the_best_temperature_of_the_grid(sharp):
    rng = np.random.default_rng(4)
    y = rng.integers(0, 3, 50)
    outputs = log_softmax(sharp * (np.eye(3)[y] + 0.5 * rng.normal(size=(50, 3))), axis=1)
    every = [
        -log_softmax(np.exp(t) * outputs, axis=1)[np.arange(50), y] for t in np.linspace(-2, 2, 33)
    ]
    losses, score = Classes(3).judge(outputs, y)
    np.testing.assert_allclose(losses, min(every, key=np.mean), rtol=1e-9)
    assert score == np.mean(outputs.argmax(axis=1) == y)


def test_classes_of_fewer_rows_than_folds():
    """40 classes, two training and four trusted rows each: models that lack a class judge it too."""
    rng = np.random.default_rng(5)
    classes = 40
    centres = 3 * rng.normal(size=(classes, 8))
    y, trusted = np.repeat(np.arange(classes), 2), np.repeat(np.arange(classes), 4)
    X = centres[y] + 0.3 * rng.normal(size=(len(y), 8))
    wrong = np.arange(len(y)) % 10 == 0
    noisy = np.where(wrong, (y + 7) % classes, y)
    result = learn_weights(
        X, noisy, centres[trusted] + 0.3 * rng.normal(size=(len(trusted), 8)), trusted
    )
    quality = np.asarray(result.label_quality)
    assert np.isfinite(quality).all()
    assert roc_auc_score(~wrong, quality) > 0.9


@pytest.mark.filterwarnings("error")
def test_a_search_that_goes_too_far_turns_back_without_a_warning():
    """Members that are nearly perfect, or surely wrong of a few rows: exponentials overflowed."""
    for seed in (36, 456):
        rng = np.random.default_rng(seed)
        _ = rng.integers(0, 2, 20), rng.uniform(-1, 3, (4, 1, 1)), rng.normal(size=(4, 20, 2))
        y = rng.normal(size=20)
        noise = 10 ** rng.uniform(-9, 1, (4, 1)) * rng.normal(size=(4, 20))
        pool = NumberPool.of_trusted((y + noise)[:, :, None], y, np.ones(20))
        assert np.abs(pool.outputs([*(y + noise)[:, :, None]])[:, 0] - y).max() < 0.1
    rng = np.random.default_rng(517)
    k, m, c = (int(rng.integers(*ends)) for ends in ((1, 8), (2, 40), (2, 5)))
    y, members = rng.integers(0, c, m), []
    for _ in range(k):
        sure = 10 ** rng.uniform(-2, 3) * np.eye(c)[y]
        z = rng.normal(size=(m, c)) * rng.choice([0.01, 1, 10, 300]) + sure
        wrong = rng.random(m) < rng.choice([0, 0.05, 0.5])
        z[wrong] *= -1
        p = log_softmax(z, axis=1)
        members.append(np.maximum(p, np.log(1e-12)) if rng.random() < 0.5 else p)
    weight = np.full(m, 10 ** rng.uniform(-3, 5))
    pool = ClassPool.without_noise(c, np.stack(members), y, weight)
    score = np.tensordot(pool.coefficients, members, 1)
    loss = -weight @ log_softmax(score, axis=1)[np.arange(m), y]
    loss += np.sum(np.log(k * pool.coefficients) ** 2)
    assert loss == pytest.approx(88.374, abs=1e-3)  # by ten bounded searches
