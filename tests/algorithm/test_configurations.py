"""Published methods that are settings of a class here, beside their equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from equations import ALL, GAMMA, PROBLEM, RHO, U0, W0, f_w, g_u, g_w, mixed_product
from problems import CASES

STEPS = 20
COUPLED = CASES["coupled"]


def f_u(w):
    """`grad_u f`, of an inner objective in which u stands before w only."""
    return mixed_product(w, ALL)


def ends(method: bilevel.AbstractAlgorithm) -> tuple[np.ndarray, np.ndarray]:
    solution = bilevel.solve(
        PROBLEM, method, jnp.asarray(U0), jnp.asarray(W0), num_steps=STEPS, throw=False
    )
    return np.asarray(solution.u), np.asarray(solution.w)


def test_t1_t2():
    """Luketina et al. (2016): the identity in place of the inverse Hessian, one step of each."""
    u, w = U0, W0
    for _ in range(STEPS):
        w = w - RHO * f_w(u, w, ALL)
        u = u - GAMMA * (g_u(u, w, ALL) - mixed_product(g_w(u, w, ALL), ALL))
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(RHO), 1),
        bilevel.AID(bilevel.Neumann(1.0, 1)),
        optax.sgd(GAMMA),
        warm_start=True,
    )
    found = ends(method)
    np.testing.assert_allclose(found[0], u, rtol=1e-10)
    np.testing.assert_allclose(found[1], w, rtol=1e-10)


def test_f2ba():
    """Chen, Ma and Zhang (2023): two inner loops and a difference of gradients, lambda constant."""
    u, y, z, multiplier, num_inner = U0, W0, W0, 7.0, 3
    for _ in range(STEPS):
        for _ in range(num_inner):
            z = z - RHO * f_w(u, z, ALL)
            y = y - RHO / multiplier * (g_w(u, y, ALL) + multiplier * f_w(u, y, ALL))
        u = u - GAMMA * (g_u(u, y, ALL) + multiplier * (f_u(y) - f_u(z)))
    found = ends(bilevel.F2SA(RHO, GAMMA, multiplier, num_inner))
    np.testing.assert_allclose(found[0], u, rtol=1e-10)
    np.testing.assert_allclose(found[1], y, rtol=1e-10)


@pytest.mark.slow
def test_f2ba_ends_where_the_gradient_is_of_the_order_of_one_over_lambda():
    """With one outer step size for all lambda: the gain of its analysis over that of F2SA."""
    multipliers, lengths = [10.0, 100.0, 1000.0], []
    for multiplier in multipliers:
        method = bilevel.F2SA(0.4, 0.05, multiplier, 50)
        solution = bilevel.solve(
            COUPLED.problem, method, COUPLED.u, COUPLED.w0, num_steps=2000, throw=False
        )
        lengths.append(np.linalg.norm(COUPLED.gradient(solution.u)))
    slope = np.polyfit(np.log(multipliers), np.log(lengths), 1)[0]
    assert -1.1 < slope < -0.9


@pytest.mark.parametrize(
    "make",
    [
        lambda x: bilevel.SOBA(x, 0.1, 0.1),
        lambda x: bilevel.SOBA(0.1, 0.1, x),
        lambda x: bilevel.Neumann(x, 3),
        lambda x: bilevel.Nystrom(2, damping=x),
        lambda x: bilevel.FederatedInner(x, 1, 1),
        lambda x: bilevel.BiGSAM(x, 0.1, 3),
        lambda x: bilevel.MSEBA(0.1, 0.1, 0.1, momentum=x, inner_sampler=bilevel.Blocks(1)),
        lambda x: bilevel.SufficientDecrease(shrink=x),
        lambda x: bilevel.PDBO(delta=x),
    ],
)
def test_settings_that_are_jax_arrays_are_looked_at_too(make):
    """Only Python's numbers and those of NumPy were: with an array of JAX a run went uphill."""
    for value in (-0.1, jnp.asarray(-0.1), jnp.asarray([0.1, -0.1])):
        with pytest.raises(ValueError, match=r"got .*-0\.1"):
            make(value)
    make(jnp.asarray(0.1))
    jax.eval_shape(lambda x: jnp.zeros(()) if make(x) else x, jnp.asarray(-0.1))  # unknown there
