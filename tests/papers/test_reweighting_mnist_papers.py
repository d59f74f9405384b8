"""Figures 5 and 6 of Ivanova & Ablin: the scripts' own functions, and their claims on MNIST."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import tasks


def small(n=60, outer=30, features=5, seed=0):
    """A problem with three classes, half of its labels redrawn, and two columns of zeros."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(3, features))

    def rows(size):
        x = rng.normal(size=(size, features))
        return np.insert(x, [1, 3], 0.0, axis=1), (x @ true.T).argmax(axis=1)

    (X, y), (X_outer, y_outer) = rows(n), rows(outer)
    noisy = np.where(rng.random(n) < 0.5, rng.integers(0, 3, n), y)
    model = tasks.models.linear_model(features + 2, 10, bias=False)
    problem = tasks.reweighting(
        jnp.asarray(X),
        jnp.asarray(noisy, jnp.int32),
        jnp.asarray(X_outer),
        jnp.asarray(y_outer, jnp.int32),
        model.predict,
    )
    return problem, model, noisy == y, rows(20)


def cleaning(steps):
    """The same as the scripts hold it, with other rows to judge on."""
    problem, model, clean, (X_test, y_test) = small()
    X_test[:, 1] = 7.0  # only test rows use it
    X_test = jnp.asarray(X_test)
    return steps.Cleaning(problem, model, X_test[:9], y_test[:9], X_test, y_test, clean)


def test_entropies_of_the_baselines_are_those_of_their_weights(script):
    found = script("ratios").entropy_baselines(8000, 0.9)
    assert found["uniform"] == pytest.approx(bilevel.entropy(np.ones(8000)), rel=1e-12)
    assert found["perfect"] == pytest.approx(bilevel.entropy(np.ones(800)), rel=1e-12)
    assert found["perfect"] == pytest.approx(6.684612, abs=1e-6)  # not (1 - p) log n = 0.899


def test_widest_stretch_and_its_width(script):
    steps = script("soba_steps")
    grid = 10.0 ** np.array([-2, -1.5, -1, -0.5, 0, 0.5])
    assert steps.widest([True, False, True, True, True, False], grid) == (grid[2], grid[4])
    assert steps.widest([False] * 6, grid) is None
    assert steps.widest([False, False, False, False, False, True], grid) == (grid[5], grid[5])
    assert steps.decades((grid[2], grid[4]), grid) == 1.5
    assert steps.decades((grid[5], grid[5]), grid) == 0.5
    assert steps.decades(None, grid) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_batch", "by_weight", "uniform"])
def test_all_step_sizes_at_once_are_the_runs_of_solve(script, monkeypatch, name):
    steps = script("soba_steps")
    monkeypatch.setattr(steps, "BATCH", 8)
    way = getattr(steps, name)
    data = cleaning(steps)
    etas, rhos = np.array([0.02, 0.5, 3.0]), np.array([0.2, 0.1, 0.05])
    key = jax.random.key(3)
    runs = steps.run_grid(data, way, etas, rhos, [7, 40], key)
    assert runs.steps.tolist() == [40] * 3
    for k in range(3):
        alone = bilevel.solve(
            data.problem,
            way(jnp.asarray(etas[k]), jnp.asarray(rhos[k]), 60),
            tasks.uniform_weights(60),
            data.model.w0,
            num_steps=40,
            key=key,
        )
        np.testing.assert_allclose(runs.u[k], alone.u, rtol=1e-8)
        np.testing.assert_allclose(runs.w["weight"][k], alone.w["weight"], rtol=1e-7, atol=1e-12)
        weights = np.asarray(alone.u)
        ess = bilevel.effective_sample_size(weights)
        accuracy = steps.accuracies(data, alone.w)["validation"]
        assert runs.curves["validation"][1, k] == pytest.approx(accuracy, rel=1e-6)
        assert runs.curves["ess"][1, k] == pytest.approx(ess, rel=1e-8)
        assert runs.curves["entropy"][1, k] == pytest.approx(bilevel.entropy(weights), rel=1e-8)
    assert np.ptp(runs.curves["ess"][1]) > 1


def test_a_run_that_explodes_keeps_its_last_good_point(script):
    steps = script("soba_steps")
    etas, rhos = np.array([0.02, 0.02]), np.array([0.2, 1e200])
    key = jax.random.key(0)
    runs = steps.run_grid(cleaning(steps), steps.full_batch, etas, rhos, [5, 30], key)
    assert runs.steps[0] == 30
    assert runs.steps[1] < 5
    assert np.isfinite(runs.w["weight"]).all()
    np.testing.assert_allclose(runs.u.sum(axis=1), 1, rtol=1e-9)


def test_per_visit_divides_the_outer_step_by_rows_over_batch(script):
    ratios = script("ratios")
    slow = ratios.per_visit(ratios.uniform)(jnp.asarray(0.5), jnp.asarray(0.1), 8000)
    assert float(slow.outer_step) == pytest.approx(0.5 * 64 / 8000)
    assert float(slow.inner_step) == float(slow.linear_step) == pytest.approx(0.1)


@pytest.mark.slow
def test_empty_pixels_change_nothing_and_judging_knows_perfect_weights(script):
    steps = script("soba_steps")
    data = cleaning(steps)
    clean, narrow = data.clean, steps.drop_empty_pixels(data)
    assert narrow.X_test.shape == (20, 5)
    assert narrow.X_validation.shape == (9, 5)
    etas, rhos, key = np.array([0.5]), np.array([0.1]), jax.random.key(0)
    wide_run, run = (
        steps.run_grid(d, steps.full_batch, etas, rhos, [50], key) for d in (data, narrow)
    )
    np.testing.assert_allclose(run.u, wide_run.u, rtol=1e-9)
    w, wide_w = ({"weight": jnp.asarray(r.w["weight"][0])} for r in (run, wide_run))
    assert steps.accuracies(narrow, w) == steps.accuracies(data, wide_w)

    perfect = steps.judge(narrow, clean / clean.sum(), w)
    assert perfect["f1_noisy"] == perfect["f1_clean"] == perfect["auroc"] == 1
    assert perfect["ess"] == pytest.approx(clean.sum())
    assert perfect["weight_on_clean_rows"] == pytest.approx(1)
    assert perfect["as_left"] == steps.accuracies(narrow, w)
