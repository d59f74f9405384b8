"""`log_trust_region`: its formula and its radius."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel import Simplex, log_trust_region

U = np.array([0.1, 0.2, 0.3, 0.4])
G = np.array([3.0, -1.0, 0.5, 2.0])


def step(tx, g, state: Any = None, u=U, value=0.0) -> tuple[np.ndarray, Any]:
    state = tx.init(jnp.asarray(u)) if state is None else state
    update, state = tx.update(jnp.asarray(g), state, jnp.asarray(u), value=jnp.asarray(value))
    return np.asarray(update), state


@pytest.mark.parametrize("radius", [0.1, 1.0, 2.5])
def test_formula(radius):
    update, state = step(log_trust_region(radius), G)
    centred = G - U @ G
    np.testing.assert_allclose(update, -radius * centred / np.abs(centred).max(), rtol=1e-14)
    assert np.abs(update).max() == pytest.approx(radius, rel=1e-14)
    assert float(state.radius) == radius


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_shifts_and_scales_of_the_gradient_change_nothing(shift, scale, seed):
    rng = np.random.default_rng(seed)
    g, u = rng.normal(size=4), rng.dirichlet(np.ones(4))
    reference, _ = step(log_trust_region(), g, u=u)
    moved, _ = step(log_trust_region(), scale * g + shift, u=u)
    np.testing.assert_allclose(moved, reference, atol=1e-9)


@given(st.integers(0, 1000))
def test_a_weight_changes_by_at_most_a_factor_e_relative_to_the_average(seed):
    rng = np.random.default_rng(seed)
    g, u = 100 * rng.normal(size=4), rng.dirichlet(np.ones(4))
    update, _ = step(log_trust_region(1.0), g, u=u)
    after = np.asarray(Simplex().retract(jnp.asarray(u), jnp.asarray(update)))
    change = np.log(after / u)
    assert change.max() - change.min() <= 2 + 1e-9
    # The order of the gradients is the reversed order of the changes.
    assert (np.argsort(-g) == np.argsort(change)).all()


def test_a_constant_gradient_moves_nothing():
    update, state = step(log_trust_region(), np.full(4, 7.0))
    np.testing.assert_array_equal(update, np.zeros(4))
    assert float(state.radius) == 1.0
    update, _ = step(log_trust_region(), np.zeros(4))
    np.testing.assert_array_equal(update, np.zeros(4))


def test_the_radius_halves_after_a_rise_and_recovers_after_a_fall():
    tx, state, radii = log_trust_region(1.0), None, []
    for value in [5.0, 4.0, 4.5, 4.5, 4.0, 6.0, 7.0]:
        update, state = step(tx, G, state, value=value)
        radii.append(np.abs(update).max())
    np.testing.assert_allclose(radii, [1, 1, 0.5, 0.5, 0.7, 0.35, 0.175], rtol=1e-14)


def test_the_radius_never_exceeds_the_first():
    tx, state = log_trust_region(2.0, grow=3.0), None
    for value in [9.0, 10.0, 8.0, 7.0, 6.0]:
        update, state = step(tx, G, state, value=value)
        assert np.abs(update).max() <= 2.0
    assert float(state.radius) == 2.0


def test_shrink_is_the_factor():
    tx = log_trust_region(2.0, shrink=0.1)
    _, state = step(tx, G, value=1.0)
    update, _ = step(tx, G, state, value=2.0)
    assert np.abs(update).max() == pytest.approx(0.2, rel=1e-14)


def test_the_dtype_is_that_of_the_weights():
    tx: Any = log_trust_region()
    u = jnp.asarray(U, jnp.float32)
    state = tx.init(u)
    update, state = tx.update(u, state, u, value=jnp.float32(1.0))
    assert update.dtype == state.radius.dtype == state.value.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": 0.0}, "`radius` must be positive, got 0.0"),
        ({"radius": float("nan")}, "`radius` must be positive, got nan"),
        ({"shrink": 1.0}, "`shrink` must lie strictly between 0 and 1, got 1.0"),
        ({"shrink": 0.0}, "`shrink` must lie strictly between 0 and 1, got 0.0"),
        ({"grow": 0.9}, "`grow` must be at least 1, got 0.9"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_trust_region(**arguments)
