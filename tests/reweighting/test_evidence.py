"""The numbers of the report, against hand calculations and scikit-learn's own."""

import base64
import io
import json
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from bilevel.reweighting._report import refits as _refits
from bilevel.reweighting._report import thumbnails as module
from bilevel.reweighting._report.evidence import gather_evidence, jsonable
from bilevel.reweighting._report.refits import REMOVED, Rows, _expected_losses, _losses
from bilevel.reweighting._report.thumbnails import thumbnails
from bilevel.reweighting._weights.coded_labels import fit_weighted
from digits import TRAIN, digits
from reports import BASELINES, HARMLESS, iris_evidence, made_result
from schema import faults

LINEAR = LogisticRegression(tol=0.01)  # a fit to the end takes five times as long


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Digits with 40 % wrong labels; quality and weights from a model of the trusted rows."""
    data = digits()
    model = LINEAR.fit(data.X_trusted / 16, data.y_trusted)
    quality = model.predict_proba(data.X / 16)[np.arange(TRAIN), data.y]
    weights = np.where(quality > 0.3, 1.0, 0.05)
    return gather_evidence(
        LINEAR,
        data.X / 16,
        data.y,
        data.X_trusted / 16,
        data.y_trusted,
        made_result(
            weights * TRAIN / weights.sum(),
            len(data.y_trusted),
            label_quality=quality,
            baselines=BASELINES,
        ),
        holdout=(data.X_holdout / 16, data.y_holdout),
        images=data.X,
    )


def two_blobs(n: int = 200, weights: Any = None, **fields: Any) -> tuple[Any, ...]:
    """Rows, trusted rows and a result that are small enough to work out by hand."""
    rng = np.random.default_rng(1)
    y, y_trusted = np.arange(n) % 2, np.arange(20) % 2
    X, X_trusted = (
        rng.normal(size=(len(labels), 2)) + labels[:, None] for labels in (y, y_trusted)
    )
    return (
        X,
        y,
        X_trusted,
        y_trusted,
        made_result(np.ones(n) if weights is None else weights, **fields),
    )


def verdict_of(holdout: int | None = 100, **fields: Any) -> dict[str, Any]:
    X, y, X_trusted, y_trusted, result = two_blobs(n=40, **fields)
    held = None if holdout is None else (np.resize(X, (holdout, 2)), np.arange(holdout) % 2)
    return gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result, holdout=held)[
        "verdict"
    ]


def alarm_of(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    X, y, X_trusted, y_trusted, result = args
    found = gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result, **kwargs)
    return {alarm["name"]: alarm for alarm in found["alarms"]}[name]


# -- the verdict ----------------------------------------------------------------------------------


def test_the_verdict_names_the_best_baseline_and_its_interval():
    found = verdict_of(baselines=BASELINES)
    assert found["sentence"] == (
        "Weighting paid: accuracy is 0.900 on 100 hold-out rows, against 0.850 of the best baseline "
        "(all rows + trusted): +0.050 (95% interval +0.011 to +0.089, paired over the rows). Over "
        "uniform weights it gains +0.100 (+0.041 to +0.159)."
    )
    assert (found["low"], found["high"]) == pytest.approx((0.05 - 1.96 * 0.02, 0.05 + 1.96 * 0.02))
    assert found["outcome"] == "paid"


@pytest.mark.parametrize(
    ("gain", "error", "outcome", "says"),
    [
        (0.03, 0.02, "may have paid", "Chance could explain a gain of that size."),
        (-0.01, 0.02, "did not pay", '"all rows + trusted" is as good.'),
        (-0.05, 0.02, "did not pay", '"all rows + trusted" is better: use it.'),
        (0.0, 0.0, "did not pay", "0 (95% interval -0.030 to +0.030"),  # three in a hundred rows
    ],
)
def test_a_gain_that_chance_explains_and_a_loss_are_said_plainly(gain, error, outcome, says):
    table = BASELINES.copy()
    table.loc["all rows + trusted", ["difference", "standard_error"]] = gain, error
    found = verdict_of(baselines=table)
    assert found["outcome"] == outcome
    assert found["headline"] == f"Weighting {outcome}"
    assert says in found["sentence"]


@pytest.mark.parametrize(
    ("winner", "rival"),
    [
        ("uniform", "0.850 of the best other baseline (all rows + trusted): +0.050"),
        ("all rows + trusted", "0.840 of the best other baseline (trusted only): +0.060"),
        ("trusted only", "0.850 of the best other baseline (all rows + trusted): +0.050"),
    ],
)
def test_it_says_when_weights_were_not_used(winner, rival):
    why = "did clearly best"
    if winner == "all rows + trusted":
        why = "is used, as no other choice that keeps the trusted rows did clearly better"
    found = verdict_of(winner=winner, baselines=BASELINES)
    assert found["outcome"] == "was not used"
    assert found["sentence"].startswith(
        f'Weighting was not used: "{winner}" {why} on held-out folds of the trusted rows; its '
        f"accuracy is 0.900 on 100 hold-out rows, against {rival} (95% interval"
    )
    assert "uniform weights" not in found["sentence"]


def candidates(**lines: tuple[float, float, float]) -> pd.DataFrame:
    names = {"all_rows": "all rows + trusted", "weights": "weights, step 20", "filter": "filter"}
    table = pd.DataFrame.from_dict(lines, orient="index")
    return table.set_axis(["loss", "difference", "standard_error"], axis=1).rename(names)


def test_without_a_holdout_the_folds_of_the_trusted_rows_decide_and_it_says_so():
    table = candidates(
        all_rows=(0.30, 0, 0), weights=(0.22, -0.08, 0.03), filter=(0.28, -0.02, 0.01)
    )
    found = verdict_of(None, candidates=table)
    assert (found["gain"], found["low"], found["high"]) == pytest.approx((0.08, 0.0212, 0.1388))
    assert found["sentence"] == (
        "Weighting paid: loss is 0.220 on held-out folds of the 20 trusted rows, against 0.300 of all "
        "rows + trusted: -0.080 (95% interval -0.139 to -0.021, paired over the rows). The same rows "
        "chose the winner, so the gain is optimistic: keep a hold-out to prove it."
    )
    # Where nothing beats all rows + trusted, the best of the others is what it is compared with.
    found = verdict_of(None, candidates=table, winner="all rows + trusted")
    assert (found["against"], found["gain"]) == ("weights, step 20", -0.08)
    assert "against 0.220 of weights, step 20: +0.080" in found["sentence"]


def test_with_neither_holdout_nor_candidates_nothing_is_proven():
    found = verdict_of(None)
    assert found["headline"] == "Weighting is not proven"
    assert "there is no hold-out" in found["sentence"]


# -- alarms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parameters", "fired"), [(200, False), (201, True)])
def test_fewer_effective_rows_than_parameters_is_an_alarm(parameters, fired):
    alarm = alarm_of(
        "few effective rows for the model", *two_blobs(parameters=[np.zeros(parameters)])
    )
    assert alarm["fired"] is fired
    assert f"is 200; the weighting model has {parameters} parameters" in alarm["detail"]


@pytest.mark.parametrize(("heavy", "fired"), [(99.0, True), (98.9, False)])
def test_one_row_in_a_hundred_with_half_of_the_weight_is_an_alarm(heavy, fired):
    weights = np.ones(200)
    weights[:2] = heavy  # 2 * 99 against 198 * 1
    alarm = alarm_of("a few rows decide", *two_blobs(weights=weights))
    assert alarm["fired"] is fired
    assert "(2) hold 50.0% of the weight" in alarm["detail"] or not fired


@pytest.mark.parametrize(("light", "fired"), [(0.0526, True), (0.0527, False)])
def test_a_class_below_a_tenth_of_its_share_is_an_alarm(light, fired):
    # Half of the rows: their share of the weight is light / (1 + light), a tenth of it at 1 / 19.
    weights = np.where(np.arange(200) % 2, light, 1.0)
    alarm = alarm_of("a class is nearly gone", *two_blobs(weights=weights))
    assert alarm["fired"] is fired
    if fired:
        assert alarm["detail"] == "class 1 has 50.0% of the rows and 5.0% of the weight"


def test_a_group_nearly_gone_and_shared_rows_are_alarms():
    groups = np.where(np.arange(200) < 20, "old", "new")
    weights = np.where(groups == "old", 0.01, 1.0)
    args = two_blobs(weights=weights)
    assert alarm_of("a group is nearly gone", *args, groups=groups)["detail"] == (
        "group old has 10.0% of the rows and 0.1% of the weight"
    )
    shared = {
        "training/trusted": {"exact": 0, "near": 0, "ids": []},
        "trusted/holdout": {"exact": 2, "near": 1, "ids": list(range(23))},
    }
    alarm = alarm_of("tables share rows", *args, shared=shared)
    assert alarm["fired"]
    assert alarm["detail"] == "trusted/holdout: 2 exact and 1 near duplicates"
    del shared["trusted/holdout"]
    assert not alarm_of("tables share rows", *args, shared=shared)["fired"]


def test_leaks_are_listed_with_twenty_ids_at_most():
    X, y, X_trusted, y_trusted, result = two_blobs(n=40)
    shared = {"a/b": {"exact": 2, "near": 21, "ids": list(range(23))}}
    (leak,) = gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result, shared=shared)[
        "leaks"
    ]
    assert (leak["exact"], leak["near"], len(leak["ids"])) == (2, 21, 20)
    assert leak["listed"].endswith("18, 19 and 3 more")


def test_zero_weights_raise_no_alarm_about_weights():
    X, y, X_trusted, y_trusted, result = two_blobs(
        effective_sample_size=np.nan, entropy=np.nan, winner="trusted only"
    )
    result.weights = np.zeros(200)
    found = gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result)
    assert found["alarms"] == []
    assert found["weights"]["top_share"] is None
    assert found["overfitting"]["trusted"]["drop"] == 0.0
    assert found["effects"]["classes"][0]["share_of_weight"] is None


def test_weights_that_leave_one_class_have_no_fit_without_the_trusted_rows():
    alone = np.where(np.arange(200) % 2, 2.0, 0.0)
    X, y, X_trusted, y_trusted, result = two_blobs(weights=alone)
    found = gather_evidence(LINEAR, X, y, X_trusted, y_trusted, result)
    assert found["overfitting"]["trusted"]["drop"] == 0.0


# -- weights, classes and groups ------------------------------------------------------------------


def test_the_weights_are_summed_up_in_a_histogram_and_percentiles(found):
    weights = found["weights"]
    assert sum(weights["histogram"]["counts"]) == TRAIN
    assert weights["histogram"]["edges"][0] == 0.0
    assert weights["histogram"]["edges"][-1] == weights["quantiles"]["100%"]
    assert weights["greatest_entropy"] == pytest.approx(np.log(TRAIN))
    assert weights["total"] == pytest.approx(TRAIN)
    assert found["history"]["step"] == [1, 2, 3]
    assert found["history"]["outer_value"] == [0.9, 0.6, None]


def test_shares_sum_to_one_and_scores_average_to_the_whole(found):
    data, classes = digits(), found["effects"]["classes"]
    assert [c["name"] for c in classes] == [str(k) for k in range(10)]
    for share in ("share_of_rows", "share_of_weight"):
        assert sum(c[share] for c in classes) == pytest.approx(1.0)
    assert sum(c["train_rows"] for c in classes) == TRAIN
    for c in classes:  # the mean weight is 1
        assert c["mean_weight"] == pytest.approx(c["share_of_weight"] / c["share_of_rows"])
    both = np.r_[data.X, data.X_trusted] / 16, np.r_[data.y, data.y_trusted]
    accuracy = LINEAR.fit(*both).score(data.X_holdout / 16, data.y_holdout)
    sizes = np.array([c["holdout_rows"] for c in classes])
    equal, reweighted = (np.array([c[key] for c in classes]) for key in ("equal", "reweighted"))
    assert sizes @ equal / sizes.sum() == pytest.approx(accuracy)
    assert sizes @ reweighted / sizes.sum() > accuracy + 0.02


def test_groups_have_scores_where_the_holdout_has_groups():
    groups = {g["name"]: g for g in iris_evidence(HARMLESS)["effects"]["groups"]}
    assert list(groups) == HARMLESS
    assert sum(g["holdout_rows"] for g in groups.values()) == 30
    assert all(0 <= g["reweighted"] <= 1 for g in groups.values())


# -- worst rows -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_planted_errors_are_among_the_worst_rows_with_their_true_labels(found):
    data, rows = digits(), found["worst"]["rows"]
    assert len(rows) == 200
    assert [r["label_quality"] for r in rows] == sorted(r["label_quality"] for r in rows)
    ids = np.array([int(r["id"]) for r in rows])
    assert data.wrong[ids[:100]].mean() >= 0.95  # 40 % of all rows are
    given = np.array([r["given"] for r in rows])
    np.testing.assert_array_equal(given, data.y[ids])
    suggested = np.array([r["suggested"] for r in rows])
    assert np.mean(suggested[:100] == digits_truth()[ids[:100]]) >= 0.85


def digits_truth() -> np.ndarray:
    """The labels of the training rows before they were flipped."""
    _, y = load_digits(return_X_y=True)
    return np.asarray(y)[np.random.default_rng(0).permutation(len(y))[:TRAIN]]


def test_a_suggestion_comes_from_a_model_that_has_not_seen_the_row():
    # A tree knows each row it was trained on by heart, and so would suggest every given label.
    data = digits()
    quality = np.where(data.wrong, 0.1, 0.9)
    result = made_result(np.ones(TRAIN), len(data.y_trusted), label_quality=quality)
    tree = DecisionTreeClassifier(random_state=0)
    parts = data.X, data.y, data.X_trusted, data.y_trusted
    rows = gather_evidence(tree, *parts, result)["worst"]["rows"]
    assert np.mean([r["given"] == r["suggested"] for r in rows if r["label_quality"] < 0.5]) < 0.3


class Counting(ClassifierMixin, BaseEstimator):
    """A naive Bayes model that remembers on how many rows each of its kind was fitted."""

    sizes: list[int] = []  # noqa: RUF012 - shared by the clones on purpose

    def fit(self, X, y, sample_weight=None):
        self.sizes.append(len(y))
        self.model_ = GaussianNB().fit(X, y, sample_weight)
        self.classes_ = self.model_.classes_
        return self

    def predict(self, X):
        return self.model_.predict(X)


def test_many_rows_are_thinned_out_and_it_says_so(monkeypatch):
    monkeypatch.setattr(_refits, "MAX_ROWS", 50)
    Counting.sizes.clear()
    X, y, X_trusted, y_trusted, result = two_blobs()
    found = gather_evidence(Counting(), X, y, X_trusted, y_trusted, result)
    fits = np.array(Counting.sizes)
    # 2 of the overfitting check; 5 of suggestions, beside 16 of the 20 trusted rows; 1 + 6 * 4 of
    # the removal curve.
    assert sorted(fits[fits > 70]) == [200, 200]
    assert np.sum(fits == 70) == 5
    assert len(fits) == 2 + 5 + 25
    assert "on 50 rows drawn at random" in found["worst"]["note"]
    assert found["removal"]["train_rows"] == 50


# -- removal --------------------------------------------------------------------------------------


def test_removing_the_lowest_quality_raises_the_score_and_removing_at_random_does_not(found):
    table = found["removal"]["table"]
    assert [t["percent"] for t in table] == list(REMOVED)
    assert [t["rows"] for t in table] == [400, 380, 360, 320, 280, 240, 200]
    lowest, random = ([t[key] for t in table] for key in ("lowest", "random"))
    assert lowest[0] == random[0]
    assert lowest[5] > lowest[0] + 0.05
    assert all(a > b for a, b in zip(lowest[2:], random[2:], strict=True))
    assert max(random[1:]) < random[0] + 0.02
    assert all(t["random_low"] <= t["random"] <= t["random_high"] for t in table)
    data = digits()
    worst = {int(r["id"]) for r in found["worst"]["rows"][:40]}
    kept = np.array([i for i in range(TRAIN) if i not in worst])
    model = LINEAR.fit(data.X[kept] / 16, data.y[kept])
    assert table[2]["lowest"] == model.score(data.X_holdout / 16, data.y_holdout)
    assert found["removal"]["judged_on"] == "hold-out"


def test_without_a_holdout_the_curve_says_that_it_is_optimistic():
    X, y, X_trusted, y_trusted, result = two_blobs(n=40)
    found = gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result)
    assert "optimistic" in found["removal"]["judged_on"]
    assert found["holdout_rows"] is None
    assert found["effects"]["classes"][0]["equal"] is None


def test_a_training_set_without_a_second_class_has_no_score():
    # The lowest half of the quality are all rows of class 1.
    X, y, X_trusted, y_trusted, result = two_blobs(n=40)
    result.label_quality = 1.0 - y
    table = gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result)["removal"]["table"]
    assert table[-1]["lowest"] is None
    assert table[-2]["lowest"] is not None


# -- overfitting ----------------------------------------------------------------------------------


def test_the_overfitting_check_compares_the_trusted_rows_with_the_holdout(found):
    data, check = digits(), found["overfitting"]
    model = LINEAR.fit(data.X / 16, data.y)
    for part, X, y in [
        ("trusted", data.X_trusted, data.y_trusted),
        ("holdout", data.X_holdout, data.y_holdout),
    ]:
        assert check[part]["equal"] == pytest.approx(log_loss(y, model.predict_proba(X / 16)))
        drop = check[part]["equal"] - check[part]["weights"]
        assert check[part]["drop"] == pytest.approx(drop)
        assert drop > 0.2
    gap = check["trusted"]["drop"] - check["holdout"]["drop"]
    assert check["gap"] == pytest.approx(gap)
    assert check["share"] == pytest.approx(max(gap, 0) / check["trusted"]["drop"])
    assert check["control"] is None


@pytest.mark.parametrize("estimator", [GaussianNB(), RidgeClassifier(), LinearRegression()])
def test_the_mean_loss_over_all_shuffles_is_that_of_the_rotations(estimator):
    # In the m rotations of the labels each row meets each label once, as it does over all shuffles.
    X, y, X_trusted, y_trusted, result = two_blobs()
    if isinstance(estimator, LinearRegression):
        y, y_trusted = y + X[:, 0], 3 * y_trusted + X_trusted[:, 0]
    rows = Rows(estimator, X, y, X_trusted, y_trusted, result)
    model = fit_weighted(*rows.equal())
    rotations = [_losses(rows, model, X_trusted, np.roll(y_trusted, k)) for k in range(20)]
    np.testing.assert_allclose(_expected_losses(rows, model), np.mean(rotations, axis=0), rtol=1e-9)


def test_the_control_is_given_shuffled_labels_and_its_overfit_is_measured():
    # Ten copies of each trusted row, of both labels, and a tree that can tell the rows apart:
    # weights for the copies that agree with some labels make it learn just these labels by heart.
    _, _, X_trusted, y_trusted, _ = two_blobs()
    source = np.repeat(np.arange(20), 10)
    y = (np.tile(np.arange(10), 20) < 3 + source % 5).astype(int)
    given = []

    def agreeing(labels: np.ndarray) -> Any:
        given.append(labels)
        weights = np.where(labels[source] == y, 1.0, 0.1)
        return made_result(weights * 200 / weights.sum())

    def declining(labels: np.ndarray) -> Any:
        return made_result(np.ones(200), winner="uniform")

    tree = DecisionTreeClassifier(random_state=0)
    args = tree, X_trusted[source], y, X_trusted, y_trusted, agreeing(y_trusted)
    check = gather_evidence(*args, control=agreeing)["overfitting"]
    assert sorted(given[1]) == sorted(y_trusted)
    assert not np.array_equal(given[1], y_trusted)
    # A leaf holds a row's copies: its probabilities are the shares of their weight.
    share = np.array([np.mean(y[source == j] == y_trusted[j]) for j in range(20)])
    drop = np.mean(np.log(share / (share + 0.1 * (1 - share)) / share))
    assert check["trusted"]["drop"] == pytest.approx(drop)
    share = np.array([np.mean(y[source == j] == given[1][j]) for j in range(20)])
    weighted = share / (share + 0.1 * (1 - share))
    fitted = np.log(weighted / share)
    usual = np.mean(np.log([weighted / share, (1 - weighted) / (1 - share)]), axis=0)
    control = check["control"]
    assert control["overfit"] == pytest.approx(np.mean(fitted - usual))
    assert control["standard_error"] == pytest.approx(np.std(fitted - usual, ddof=1) / np.sqrt(20))
    assert control["at_most"] == pytest.approx(control["overfit"] / drop)
    assert f"{control['at_most']:.0%} of the drop: a worst case" in check["sentence"]
    found = gather_evidence(*args, control=declining)
    assert faults(found) == []
    check = found["overfitting"]
    assert check["control"]["overfit"] == check["control"]["at_most"] == 0.0
    assert check["sentence"].endswith(
        'no weights were found better than "uniform": none follow noise.'
    )


# -- regression, data frames, pictures, JSON ------------------------------------------------------


def test_regression_has_groups_but_no_classes():
    rng = np.random.default_rng(0)
    X, X_trusted, X_held = (pd.DataFrame(rng.normal(size=(n, 2))) for n in (60, 30, 50))
    X.index = X.index + 1000
    y, y_trusted, y_held = (np.array(a[0] - a[1]) for a in (X, X_trusted, X_held))
    y[::5] += 8
    weights = np.where(np.arange(60) % 5 == 0, 0.1, 1.0)
    found = gather_evidence(
        LinearRegression(),
        X,
        pd.Series(y, X.index),
        X_trusted,
        y_trusted,
        made_result(weights * 60 / weights.sum(), 30),
        holdout=(X_held, y_held),
        groups=["a", "b"] * 30,
        holdout_groups=["a", "b"] * 25,
    )
    assert faults(found) == []
    assert (found["task"], found["score"]) == ("regression", "R2")
    assert found["effects"]["classes"] is None
    for group in found["effects"]["groups"]:
        assert group["reweighted"] > group["equal"]
    lowest = [t["lowest"] for t in found["removal"]["table"]]
    assert lowest[3] == pytest.approx(1.0)  # without the fifth that is shifted the line is exact
    assert lowest[0] < 0.9
    assert {int(r["id"]) for r in found["worst"]["rows"][:12]} == set(range(1000, 1060, 5))
    # Against the true line: 8 too high; each suggestion is nearly that line.
    row = found["worst"]["rows"][0]
    assert row["given"] - row["suggested"] == pytest.approx(8, abs=0.5)
    assert row["probability"] is None


@pytest.mark.parametrize("shape", [(25,), (5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_thumbnails_are_pngs_of_the_pixels(shape):
    images = np.random.default_rng(0).integers(0, 17, (3, *shape))
    images[0].flat[:2] = 0, 16
    height, width = (5, 5) if len(shape) == 1 else shape[:2]
    for image, uri in zip(images, thumbnails(images), strict=True):
        kind, data = uri.split(",")
        assert kind == "data:image/png;base64"
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png")
        assert pixels.shape[:2] == (height, width)
        np.testing.assert_allclose(pixels.reshape(-1), image.reshape(-1) / 16, atol=1 / 255)


def test_large_pictures_are_averaged_down_and_odd_ones_refused():
    image = np.zeros((1, 200, 130))
    image[:, :100] = 1.0
    (uri,) = thumbnails(image)
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.split(",")[1])), format="png")
    assert pixels.shape == (50, 33)
    assert (pixels[:25] == 1).all()
    assert (pixels[25:] == 0).all()
    (uri,) = thumbnails(np.ones((1, 2, 500)))
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.split(",")[1])), format="png")
    assert pixels.shape == (1, 63)
    # Pictures of 200 GB, of which only those that are chosen are read.
    vast = np.broadcast_to(image[0], (1_000_000, 200, 130))
    assert thumbnails(vast, [1])[0] == thumbnails(image)[0]
    with pytest.raises(ValueError, match="must be square, got 24 pixels"):
        thumbnails(np.zeros((2, 24)))
    with pytest.raises(ValueError, match=r"must have shape .* got \(2, 3, 3, 2\)"):
        thumbnails(np.zeros((2, 3, 3, 2)))


def test_many_pictures_lose_shades_and_no_detail(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3))
    monkeypatch.setattr(module, "MOST", 30_000)  # noise of 256 shades takes 50,000
    found = thumbnails(images)
    assert sum(map(len, found)) <= 30_000
    for image, uri in zip(images, found, strict=True):
        content = io.BytesIO(base64.b64decode(uri.split(",")[1]))
        pixels = matplotlib.image.imread(content, format="png")
        assert np.abs(pixels - image / 255).max() <= 0.5 / 15 + 1 / 255
        assert len(np.unique(pixels)) == 16


def test_evidence_is_plain_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["provenance"]["versions"].keys() >= {"bilevel", "jax", "numpy", "scikit-learn"}


def test_everything_becomes_json():
    odd = {1: [np.float32(0.5), np.nan, np.inf, np.int64(3), np.bool_(True), pd.NA, pd.NaT, None]}
    odd |= {"when": pd.Timestamp("2024-01-02"), "array": np.arange(2), "bytes": b"x"}
    assert jsonable(odd) == {
        "1": [0.5, None, None, 3, True, None, None, None],
        "when": "2024-01-02 00:00:00",
        "array": [0, 1],
        "bytes": "b'x'",
    }


def test_a_long_history_keeps_its_ends():
    X, y, X_trusted, y_trusted, result = two_blobs(n=40)
    result.history = pd.DataFrame({"step": np.arange(1, 2001), "name": "text"})
    found = gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result)["history"]
    assert list(found) == ["step"]
    assert (found["step"][0], found["step"][-1], len(found["step"])) == (1, 2000, 500)


@pytest.mark.parametrize("name", ["ids", "groups", "images"])
def test_names_that_do_not_match_the_rows_are_refused(name):
    X, y, X_trusted, y_trusted, result = two_blobs(n=40)
    wrong: dict[str, Any] = {name: np.zeros((3, 4))}
    with pytest.raises(
        ValueError, match=f"`{name}` must have one entry for each of 40 rows, got 3"
    ):
        gather_evidence(GaussianNB(), X, y, X_trusted, y_trusted, result, **wrong)


def test_equal_calls_give_equal_evidence():
    assert iris_evidence(HARMLESS) == iris_evidence(HARMLESS)
