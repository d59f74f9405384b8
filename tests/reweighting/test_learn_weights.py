"""`learn_weights` with free weights: they find wrong labels, the same every time; the result."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import bilevel
from bilevel import learn_weights, tasks
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._weights import methods as _methods
from bilevel.reweighting._weights.free_weights import read_history
from digits import TRAIN, digits, learned

HISTORY = [
    "step",
    "outer_value",
    "outer_residual",
    "inner_residual",
    "linear_residual",
    "step_ratio",
    "move",
    "result",
    "outer_grads",
    "inner_grads",
    "hvps",
    "mixed",
    "effective_sample_size",
    "entropy",
]

free_weights = functools.partial(learn_weights, method="near-exact")


@pytest.fixture(scope="module")
def result():
    return learned("near-exact")


def test_noisy_rows_get_lower_weights():
    for seed in range(3):
        data = digits(seed)
        weights = free_weights(*data.learnable).weights
        assert roc_auc_score(~data.wrong, weights) >= 0.9  # measured: 0.981, 0.954, 0.968


def test_one_weight_per_row_with_mean_one_and_none_above_a_trusted_row(result):
    assert isinstance(result.weights, np.ndarray)
    assert result.weights.shape == (TRAIN,)
    assert result.weights.mean() == pytest.approx(1.0, rel=1e-12)
    assert result.weights.min() >= 0
    assert result.weights.max() == pytest.approx(result.trusted_weight, rel=1e-12)
    np.testing.assert_array_equal(result.keep, result.weights >= result.trusted_weight / 2)
    wrong = digits().wrong
    assert wrong[~result.keep].mean() >= 0.75
    assert result.effective_sample_size == bilevel.effective_sample_size(result.weights)
    assert result.entropy == bilevel.entropy(result.weights)


def test_equal_calls_agree_bit_for_bit(result):
    again = free_weights(*digits().learnable, holdout=digits().holdout)
    np.testing.assert_array_equal(again.weights, result.weights)
    pd.testing.assert_frame_equal(again.history, result.history, check_exact=True)
    pd.testing.assert_frame_equal(again.scores, result.scores, check_exact=True)
    for a, b in zip(
        jax.tree.leaves(again.parameters), jax.tree.leaves(result.parameters), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_weights_follow_their_rows(result):
    """Permuting the training rows permutes the weights, to rounding amplified over 20 steps."""
    data = digits()
    order = np.random.default_rng(0).permutation(TRAIN)
    moved = free_weights(data.X[order], data.y[order], data.X_trusted, data.y_trusted)
    np.testing.assert_allclose(moved.weights, result.weights[order], atol=1e-4)


def test_data_frames_keep_their_index_and_give_the_same_weights(result):
    data = digits()
    columns = [f"p{i}" for i in range(64)]
    index = pd.Index([f"row {i}" for i in range(TRAIN)], name="name")
    X = pd.DataFrame(data.X, index=index, columns=columns)
    framed = free_weights(
        X, pd.Series(data.y, index), pd.DataFrame(data.X_trusted, columns=columns), data.y_trusted
    )
    assert isinstance(framed.weights, pd.Series)
    pd.testing.assert_index_equal(framed.weights.index, index)
    np.testing.assert_array_equal(np.asarray(framed.weights), result.weights)


def test_history_has_one_line_per_step(result):
    assert list(result.history.columns) == HISTORY
    np.testing.assert_array_equal(result.history["step"], np.arange(1, 21))
    values = result.history["outer_value"]
    assert values.iloc[-1] < 0.5 * values.iloc[0]
    # Counters only grow, and the last line is what the stats say.
    for column in ("outer_grads", "inner_grads", "hvps", "mixed"):
        assert (result.history[column].diff().iloc[1:] > 0).all()
    assert result.stats["num_steps"] == 20
    assert result.history["hvps"].iloc[-1] == result.stats["calls"]["hvp"]
    assert result.history["entropy"].iloc[0] <= np.log(TRAIN) + 1e-9
    assert (result.history["effective_sample_size"] <= TRAIN + 1e-9).all()


def test_warm_and_retrained_scores_are_those_of_the_parameters(result):
    assert list(result.scores.index) == ["uniform", "warm", "retrained", "capped"]
    loss = result.scores["trusted_loss"]
    assert max(loss["warm"], loss["retrained"], loss["capped"]) < 0.6 * loss["uniform"]
    # At the run's last point the outer value is the warm model's loss, one step earlier.
    assert loss["warm"] == pytest.approx(result.history["outer_value"].iloc[-1], rel=0.1)
    data = digits()
    low, span = data.X.min(axis=0), np.ptp(data.X, axis=0)

    def scale(x):
        return (x - low) / np.where(span == 0, 1, span)

    w = jax.tree.map(np.asarray, result.parameters)
    for part, x, y in [
        ("trusted", data.X_trusted, data.y_trusted),
        ("holdout", *data.holdout),
    ]:
        z = scale(x) @ w["weight"].T + w["bias"]
        z = z - z.max(axis=1, keepdims=True)
        losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]
        row = result.scores.loc["capped"]
        assert row[f"{part}_loss"] == pytest.approx(losses.mean(), rel=1e-10)
        assert row[f"{part}_score"] == pytest.approx((z.argmax(axis=1) == y).mean(), abs=1e-6)


def test_retrained_parameters_minimise_the_weighted_loss(result):
    """Against scikit-learn's logistic regression with these weights and the same penalty."""
    data = digits()
    x = MinMaxScaler().fit_transform(data.X)
    # sum_i u_i loss_i + l2/2 (|W|^2 + |b|^2) with u = weights / n; the bias as one more column,
    # because scikit-learn does not penalise its own.
    x = np.c_[x, np.ones(TRAIN)]
    theirs = LogisticRegression(C=1 / (1e-2 * TRAIN), fit_intercept=False, tol=1e-9, max_iter=5000)
    theirs.fit(x, data.y, sample_weight=result.weights)
    ours = np.c_[result.parameters["weight"], np.asarray(result.parameters["bias"])[:, None]]
    np.testing.assert_allclose(ours, theirs.coef_, atol=5e-3)


def test_checks_and_summary(result):
    names = [check.name for check in result.checks]
    assert names == [
        "the trusted loss fell",
        "the weights did not collapse",
        "retraining keeps the gain",
        "weighting pays on the hold-out",
    ]
    assert result.believable == all(check.passed for check in result.checks)
    text = str(result)
    assert text.startswith(f"weights for 400 rows: {result.keep.sum()} to keep, ")
    assert f"effective sample size {result.effective_sample_size:.0f}" in text
    assert text.count("[ok]") + text.count("[NO]") == 4
    loss = result.scores["trusted_loss"]
    assert result.checks[0].detail == (
        f"{loss['uniform']:.4g} trained on uniform weights, {loss['capped']:.4g} on the weights"
    )


def test_free_weights_cannot_judge_new_rows(result):
    with pytest.raises(ValueError, match="nothing here can judge new rows"):
        result.score_rows(*digits().holdout)


def test_no_holdout_no_baselines():
    result = free_weights(*digits().learnable, num_steps=2)
    assert result.baselines is None
    assert list(result.scores.columns) == ["trusted_loss", "trusted_score"]
    assert "weighting pays on the hold-out" not in [check.name for check in result.checks]
    assert len(result.history) == 2


class _Interrupt(bilevel.AbstractCallback):
    def __init__(self, step):
        self.step = step

    def __call__(self, chunk):
        if chunk.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(20, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, result, step):
    data = digits()
    folder = tmp_path / "new" / "run"
    with pytest.raises(KeyboardInterrupt):
        free_weights(*data.learnable, folder=folder, callbacks=[_Interrupt(step)])
    assert (folder / "checkpoint.eqx").exists() == (step > 1)
    steps = []
    watch = bilevel.StopWhen(lambda chunk: steps.append(chunk.step))  # pyright: ignore
    resumed = free_weights(*data.learnable, folder=folder, callbacks=[watch])
    assert steps[0] == step  # it did go on, and did not start anew
    np.testing.assert_array_equal(resumed.weights, result.weights)
    pd.testing.assert_frame_equal(resumed.history, result.history, check_exact=True)
    assert resumed.stats == result.stats
    # A finished folder makes no step again.
    steps.clear()
    again = free_weights(*data.learnable, folder=folder, callbacks=[watch])
    assert steps == [20]
    np.testing.assert_array_equal(again.weights, result.weights)
    assert again.stats == result.stats
    pd.testing.assert_frame_equal(again.history, result.history, check_exact=True)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    data = digits()
    with pytest.raises(KeyboardInterrupt):
        free_weights(*data.learnable, folder=tmp_path, callbacks=[_Interrupt(3)])
    other = digits(1)
    for changed, options in [(other, {}), (data, {"seed": 1}), (data, {"l2": 0.1})]:
        with pytest.raises(ValueError, match="the checkpoint of a run on other data"):
            free_weights(*changed.learnable, folder=tmp_path, **options)
    with pytest.raises(ValueError, match="has made 2 steps already; got num_steps=1"):
        free_weights(*data.learnable, folder=tmp_path, num_steps=1)


def test_a_checkpoint_of_other_step_sizes_is_refused(tmp_path):
    data = digits()

    def run(steps):
        method = bilevel.SOBA(jnp.array(steps), 0.1, 0.1)
        learn_weights(*data.learnable, folder=tmp_path, method=method, num_steps=10)

    run(0.1)
    run(0.1)
    with pytest.raises(ValueError, match="with other settings"):
        run(0.05)
    # A damaged file counts as absent, and is named.
    for name in ("checkpoint.eqx", "history.jsonl"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.warns(UserWarning, match=rf"{name}.* starts from the beginning"):
            run(0.1)


def test_lines_that_are_no_rows_of_a_history_make_it_none(tmp_path):
    """Nested lines and steps that are texts once ended every attempt to go on."""
    path, row = tmp_path / "history.jsonl", '{"step": 3, "value": 0.5}\n'
    path.write_text(row + row.replace("3", "6"))
    assert [x["step"] for x in read_history(path)] == [3, 6]
    for line in ("[" * 60_000, '{"step": "3", "value": 0.5}', '{"step": 3}', "[3]", "\0"):
        path.write_text(f"{line}\n{row}")
        assert read_history(path) == []


@pytest.mark.slow
def test_soba_by_name_compiles_its_step_sizes_once(monkeypatch):
    data, traced = digits(), []

    def counted(*args):
        traced.append(1)
        return jnp.ones(())

    learn_weights(*data.learnable, method="soba", num_steps=5)
    monkeypatch.setattr(_methods, "largest_eigenvalue", counted)
    learn_weights(*data.learnable, method="soba", num_steps=5)
    assert not traced


@pytest.mark.slow
def test_regression_finds_corrupted_targets():
    bunch: Any = load_diabetes()
    X, y = bunch.data, bunch.target
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    train, trusted, rest = np.split(order, [220, 330])
    wrong = rng.random(220) < 0.3
    noisy = y[train] + 400.0 * wrong
    holdout = X[rest], y[rest]
    result = free_weights(X[train], noisy, X[trusted], y[trusted], holdout=holdout)
    assert roc_auc_score(~wrong, result.weights) >= 0.9
    assert result.weights.mean() == pytest.approx(1.0, rel=1e-12)
    assert result.baselines is not None
    scores = result.baselines["score"].to_dict()
    assert scores["reweighted"] > scores["uniform"] + 0.1
    assert result.parameters["weight"].shape == (1, 10)
    # The table's R2 is that of the same ridge regression fitted by hand.
    by_hand = make_pipeline(MinMaxScaler(), Ridge()).fit(X[train], noisy)
    assert scores["uniform"] == pytest.approx(by_hand.score(*holdout), abs=1e-12)


@pytest.mark.slow
def test_soba_by_name():
    data = digits()
    result = learn_weights(*data.learnable, method="soba", num_steps=1000)
    assert roc_auc_score(~data.wrong, result.weights) >= 0.9  # measured 0.968
    np.testing.assert_array_equal(result.history["step"], [500, 1000])
    assert result.stats["num_steps"] == 1000


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{"model": "mlp", "num_steps": 8}, {"method": "soba"}])
def test_mlp_and_soba_with_their_defaults(arguments):
    data = digits()
    result = free_weights(*data.learnable, **arguments)
    assert roc_auc_score(~data.wrong, result.weights) >= 0.9
    assert result.scores.loc["retrained", "trusted_score"] >= 0.8


@pytest.mark.slow
def test_own_model_with_a_configured_algorithm_and_seeds():
    data = digits()
    model = tasks.models.mlp_model(64, 10, key=jax.random.key(0), width=16)
    batches = bilevel.Shuffled(32)
    method = bilevel.SOBA(0.1, 0.1, 0.005, inner_sampler=batches, outer_sampler=batches)
    first, again, other = (
        learn_weights(*data.learnable, model=model, method=method, num_steps=500, seed=seed)
        for seed in (1, 1, 2)
    )
    assert len(first.history) == 50  # a line every ten steps
    assert jax.tree.leaves(first.parameters)[0].shape == (16, 64)
    assert roc_auc_score(~data.wrong, first.weights) >= 0.9  # measured 0.977
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, other.weights)


def test_scaler_none_takes_features_as_they_are(result):
    data = digits()
    scaler = MinMaxScaler().fit(data.X)
    scaled = scaler.transform(data.X), data.y, scaler.transform(data.X_trusted), data.y_trusted
    np.testing.assert_array_equal(free_weights(*scaled, scaler=None).weights, result.weights)


def test_text_labels_give_the_weights_of_their_codes(result):
    data = digits()

    def name(y):
        return np.array([f"digit {k}" for k in y])

    named = free_weights(data.X, name(data.y), data.X_trusted, name(data.y_trusted))
    np.testing.assert_array_equal(named.weights, result.weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "ranking"}, "`task` must be 'auto', 'classification' or 'regression', got 'ra"),
        (
            {"method": "sgd"},
            r"`method` must be one of 'near-exact', 'soba' or an algorithm .*'sgd'",
        ),
        (
            {"model": "tree"},
            r"`model` must be 'linear', 'mlp' or a `bilevel.tasks.models.Model.* 'tree'",
        ),
        ({"num_steps": 0}, "`num_steps` must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        inspect.unwrap(learn_weights)(  # past beartype
            *digits().learnable, **{"method": "near-exact"} | arguments
        )
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(("trusted", "steps"), [(999, 20), (1000, 60)])
def test_more_steps_with_many_trusted_rows(trusted, steps):
    X, y = jnp.zeros((5, 2)), jnp.zeros(5, jnp.int32)
    model = tasks.models.linear_model(2, 2)
    X_trusted, y_trusted = jnp.zeros((trusted, 2)), jnp.zeros(trusted, jnp.int32)
    problem = tasks.reweighting(X, y, X_trusted, y_trusted, model.predict)
    _, method, *plan = _methods.build_method(
        "near-exact", problem, jnp.full(5, 0.2), model.w0, True
    )
    assert method is bilevel.near_exact(damping=0.0)
    assert plan == [steps, 1]
