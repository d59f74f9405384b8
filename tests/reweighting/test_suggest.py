"""`suggest` against its equations written out, and against random rows on digits."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from bilevel.reweighting._audit.suggest import suggest
from bilevel.reweighting._inputs.checks import InputError
from digits import digits

DATA = digits()
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


def true_labels(seed: int) -> np.ndarray:
    target = np.asarray(load_digits(return_X_y=True)[1])
    return target[np.random.default_rng(seed).permutation(len(target))[: len(DATA.y)]]


def overlapping_classes(n: int = 200, seed: int = 0):
    """Three classes in the unit square, a fifth of the training labels wrong, and probabilities."""
    rng = np.random.default_rng(seed)
    X = rng.random((n, 2))
    X[0], X[1] = 0.0, 1.0  # the scaling to [0, 1] changes nothing
    truth = rng.choice(3, n)
    y = np.where(rng.random(n) < 0.2, (truth + rng.integers(1, 3, n)) % 3, truth)
    p = rng.dirichlet([0.5, 0.5, 0.5], n) * 0.4
    p[np.arange(n), truth] += 0.6
    X_trusted, y_trusted = rng.random((30, 2)), np.arange(30) % 3
    return X, y, X_trusted, y_trusted, p


def naive_farthest_first(z: np.ndarray, budget: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(budget):
        centres = np.vstack([np.zeros(z.shape[1]), z[chosen]])
        distance = ((z[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1)
        chosen.append(int(distance.argmax()))
    return chosen


def test_scores_and_order_are_those_of_the_equations():
    X, y, X_trusted, y_trusted, p = overlapping_classes()
    n = len(y)
    right, wrong = p[np.arange(n), y], (1 - p[np.arange(n), y]) / 2

    def negative_log_likelihood(share: float) -> float:
        return -np.log(share * right + (1 - share) * wrong).sum()

    found: Any = minimize_scalar(negative_log_likelihood, bounds=(0.05, 0.99), method="bounded")
    share = found.x
    change = np.zeros(n)
    for i in range(n):
        q = share * right[i] / (share * right[i] + (1 - share) * wrong[i])
        v = (1 - q) * p[i] + q * np.eye(3)[y[i]]
        for c in range(3):
            belief = q if c == y[i] else (1 - q) * p[i, c] / (1 - p[i, y[i]])
            gradient = (p[i] - np.eye(3)[c]) - (p[i] - v)  # after verifying, less before
            change[i] += belief * (gradient**2).sum()
    h = np.column_stack([X - X.mean(axis=0), np.ones(n)])
    score = change * (h**2).sum(axis=1)
    table = suggest(None, X, y, X_trusted, y_trusted, probabilities=p, budget=25)
    expected = naive_farthest_first(np.sqrt(change)[:, None] * h, 25)
    assert table["id"].tolist() == expected
    assert table["id"][0] == score.argmax()
    np.testing.assert_allclose(table["score"], score[expected] / score.max(), rtol=1e-4)
    assert table["given_label"].tolist() == y[expected].tolist()
    assert table["suggested_label"].tolist() == p[expected].argmax(axis=1).tolist()


def test_only_the_order_of_the_label_quality_counts():
    X, y, X_trusted, y_trusted, p = overlapping_classes()
    quality = np.random.default_rng(1).random(len(y))
    first, second, third = (
        suggest(q, X, y, X_trusted, y_trusted, probabilities=p, budget=20)
        for q in (
            quality,
            np.exp(5 * quality) - 3,
            SimpleNamespace(label_quality=pd.Series(quality)),
        )
    )
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(first, third)
    without = suggest(None, X, y, X_trusted, y_trusted, probabilities=p, budget=20)
    assert first["id"].tolist() != without["id"].tolist()


@pytest.mark.slow
def test_beats_random_rows_and_the_lowest_label_quality_on_digits():
    accuracy: dict[str, list[float]] = {"suggest": [], "random": [], "lowest": []}
    for seed in range(3):
        X, y, X_trusted, y_trusted, X_holdout, y_holdout, wrong = digits(seed)
        truth = true_labels(seed)
        assert ((truth != y) == wrong).all()
        X_trusted, y_trusted = X_trusted[:60], y_trusted[:60]
        model = LogisticRegression(max_iter=300, tol=1e-3).fit(X_trusted / 16, y_trusted)
        quality = model.predict_proba(X / 16)[np.arange(len(y)), np.searchsorted(model.classes_, y)]
        chosen = {
            "suggest": suggest(None, X, y, X_trusted, y_trusted, budget=60)["id"].to_numpy(),
            "random": np.random.default_rng(seed).permutation(len(y))[:60],
            "lowest": quality.argsort()[:60],
        }
        for name, rows in chosen.items():
            known = np.r_[X_trusted, X[rows]] / 16, np.r_[y_trusted, truth[rows]]
            rest = np.setdiff1d(np.arange(len(y)), rows)
            agree = rest[model.fit(*known).predict(X[rest] / 16) == y[rest]]
            model.fit(np.r_[known[0], X[agree] / 16], np.r_[known[1], y[agree]])
            accuracy[name].append(float(model.score(X_holdout / 16, y_holdout)))
    gain = np.array(accuracy["suggest"]) - np.array([accuracy["random"], accuracy["lowest"]])
    assert gain[0].mean() > 0.005
    assert gain[1].mean() > 0.01


def test_ids_reasons_and_labels_on_digits():
    X = pd.DataFrame(DATA.X, index=[f"r{i}" for i in range(len(DATA.X))])
    X_trusted = pd.DataFrame(DATA.X_trusted)
    y, y_trusted = NAMES[DATA.y], NAMES[DATA.y_trusted]
    table = suggest(None, X, y, X_trusted, y_trusted, budget=80)
    assert list(table) == ["id", "score", "reason", "given_label", "suggested_label"]
    assert table["id"].is_unique
    assert set(table["id"]) <= set(X.index)
    assert table["given_label"].tolist() == pd.Series(y, X.index)[table["id"]].tolist()
    assert max(table["score"]) == 1
    assert min(table["score"]) > 0
    pattern = r"given '\w+', the trusted model (says|leans to|agrees)( '\w+')? \(0\.\d\d\)"
    assert table["reason"].str.match(pattern).all()
    says = table["reason"].str.extract(r"(?:says|leans to) '(\w+)'")[0]
    assert (says.isna() | (says == table["suggested_label"])).all()
    agrees = table["reason"].str.contains("agrees")
    assert (table["suggested_label"] == table["given_label"]).equals(agrees)
    assert 0.4 < DATA.wrong[table["id"].str[1:].astype(int)].mean() < 1.0
    again = suggest(None, X, y, X_trusted, y_trusted, budget=12)
    assert again["id"].tolist() == table["id"][:12].tolist()  # every beginning is a choice
    by_series = suggest(None, DATA.X, pd.Series(y, X.index), DATA.X_trusted, y_trusted, budget=12)
    assert by_series["id"].tolist() == again["id"].tolist()


def test_rows_that_are_trusted_already_and_copies_are_not_suggested():
    X, y = DATA.X[:200].copy(), DATA.y[:200].copy()
    X[100:150] = X[50:100]
    X_trusted = np.concatenate([DATA.X_trusted, X[:20]])
    y_trusted = np.concatenate([DATA.y_trusted, y[:20]])
    table = suggest(None, X, y, X_trusted, y_trusted, budget=1000)
    assert len(table) == 200 - 20 - 50
    assert min(table["id"]) >= 20
    assert not {i for i in table["id"] if i < 100} & {i - 50 for i in table["id"] if 100 <= i < 150}


def test_near_copies_are_spread_out():
    rng = np.random.default_rng(2)
    row = rng.permutation(len(DATA.y))[:100]
    X = np.repeat(DATA.X[row], 4, axis=0) + 1e-6 * rng.normal(size=(400, 64))
    y = rng.integers(0, 10, 400)
    table = suggest(None, X, y, DATA.X_trusted, DATA.y_trusted, budget=60)
    assert len(set(table["id"] // 4)) >= 45  # 60 random rows would meet about 48
    top = suggest(None, X, y, DATA.X_trusted, DATA.y_trusted, budget=400)
    by_score = top.sort_values("score", ascending=False)["id"][:60]
    assert len(set(by_score // 4)) < len(set(table["id"] // 4))


def test_classes_without_trusted_rows_come_first():
    known = DATA.y_trusted != 3
    table = suggest(None, DATA.X, DATA.y, DATA.X_trusted[known], DATA.y_trusted[known], budget=30)
    first, rest = list(table["reason"][:5]), list(table["reason"][5:])
    assert all(r.startswith("probably 3, a class with no trusted rows") for r in first)
    assert not any(r.startswith("probably") for r in rest)
    assert (true_labels(0)[table["id"][:5]] == 3).sum() >= 4
    half = suggest(None, DATA.X, DATA.y, DATA.X_trusted[:0], DATA.y_trusted[:0], budget=30)
    assert half["reason"].str.startswith("probably").sum() == 15
    assert len(half) == 30
    one = np.flatnonzero(DATA.y_trusted == 3)[:1]
    few = np.r_[np.flatnonzero(known), one]
    table = suggest(None, DATA.X, DATA.y, DATA.X_trusted[few], DATA.y_trusted[few], budget=30)
    assert table["reason"].str.startswith("probably 3, a class with 1 trusted row").sum() == 4


def regression(seed: int, n: int = 300):
    rng = np.random.default_rng(seed)
    X = rng.random((n + 40 + 500, 5))
    truth = X @ [1.0, -2.0, 3.0, 0.0, 1.0] + 0.1 * rng.normal(size=len(X))
    y = truth[:n] + np.where(rng.random(n) < 0.4, rng.normal(0, 3, n), 0)
    return X, truth, y, n


def test_scores_of_a_regression_are_those_of_the_equation():
    X, truth, y, n = regression(0)
    X[0], X[1] = 0.0, 1.0  # the scaling to [0, 1] changes nothing
    predicted = X[:n] @ [1.0, -2.0, 3.0, 0.0, 1.0]
    X_trusted, y_trusted = X[n : n + 5], truth[n : n + 5]  # too few to tell the spread
    table = suggest(None, X[:n], y, X_trusted, y_trusted, probabilities=predicted, budget=20)
    r = y - predicted
    spread, wide = 1.4826 * np.median(abs(r)), np.std(y)
    right, wrong = norm.pdf(r / spread) / spread, norm.pdf(r / wide) / wide
    found: Any = minimize_scalar(
        lambda s: -np.log(s * right + (1 - s) * wrong).sum(), bounds=(0.05, 0.99), method="bounded"
    )
    share = found.x
    q = share * right / (share * right + (1 - share) * wrong)
    change = q * ((1 - q) * r) ** 2 + (1 - q) * (spread**2 + (q * r) ** 2)
    h = np.column_stack([X[:n] - X[:n].mean(axis=0), np.ones(n)])
    expected = naive_farthest_first(np.sqrt(change)[:, None] * h, 20)
    assert table["id"].tolist() == expected
    score = change * (h**2).sum(axis=1)
    np.testing.assert_allclose(table["score"], score[expected] / score.max(), rtol=1e-3)
    np.testing.assert_allclose(table["suggested_label"], predicted[expected])
    assert table["reason"].str.match(r"given -?[\d.e-]+, the trusted model says -?[\d.e-]+: ").all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_quality": np.ones(3)}, r"`label_quality` must have one finite number per row"),
        ({"label_quality": np.full(400, np.nan)}, r"`label_quality` must have one finite number"),
        (
            {"probabilities": np.ones((400, 9)) / 9},
            r"`probabilities` must have .* expected shape \(400, 10\)",
        ),
        ({"probabilities": np.ones((400, 10))}, r"must sum to 1"),
        ({"y": np.zeros(400, int)}, r"only one class, 0"),
        ({"y": DATA.y[:-1]}, r"one label per row"),
        ({"X_trusted": DATA.X_trusted[:, 1:]}, r"same columns"),
        ({"X": np.full((400, 64), np.nan)}, r"NaN or infinite"),
    ],
)
def test_what_cannot_be_used(change, message):
    given = {
        "label_quality": None,
        "X": DATA.X,
        "y": DATA.y,
        "X_trusted": DATA.X_trusted,
        "y_trusted": np.zeros(150, int) if "y" in change else DATA.y_trusted,
    }
    with pytest.raises(InputError, match=message):
        suggest(**(given | change))


def test_a_budget_below_one():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        suggest(None, *DATA.learnable, budget=0)


def test_hostile_labels_do_no_harm():
    labels = np.array(
        ["<script>", "=1+1", "\x1b[31m", "{0}%s", "a\nb", "\u202e", "y" * 10_000, "", "[red]", "'"]
    )
    table = suggest(None, DATA.X, labels[DATA.y], DATA.X_trusted, labels[DATA.y_trusted], budget=50)
    assert table["given_label"].tolist() == labels[DATA.y[table["id"]]].tolist()
    assert not set("".join(table["reason"])) & set("\x1b\n\u202e")
    assert table["reason"].str.len().max() < 200


def test_what_is_given_beside_the_rows_goes_to_its_rows():
    """By index, and probabilities by the names of the classes."""
    X, y, X_trusted, y_trusted, p = overlapping_classes(60)
    frame, labels = pd.DataFrame(X), pd.Series(NAMES[y])
    verified = pd.DataFrame(X_trusted), NAMES[y_trusted]
    named = pd.DataFrame(p, columns=NAMES[:3])
    wanted = suggest(None, frame, labels, *verified, probabilities=named[sorted(NAMES[:3])])
    turned = suggest(None, frame, labels, *verified, probabilities=named)
    pd.testing.assert_frame_equal(turned, wanted)
    quality = pd.Series(np.linspace(0, 1, 60))
    for rows in (frame, X):  # a series of labels names the rows of an array
        with pytest.raises(InputError, match=r"`label_quality` has the index of its rows in anoth"):
            suggest(quality[::-1], rows, labels, *verified)
        with pytest.raises(InputError, match=r"`probabilities` has the index of its rows in anoth"):
            suggest(None, rows, labels, *verified, probabilities=named[::-1])
