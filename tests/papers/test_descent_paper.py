"""The problems of `papers/tutorial/descent.py`, and its runs at a small size."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel


@pytest.fixture
def descent(script):
    return script("descent")


@pytest.mark.slow
def test_phi_in_closed_form(descent):
    """Its gradient is the implicit one at an inner solution, and the bounds are the Hessians'."""
    u = jnp.asarray(np.random.default_rng(1).normal(size=descent.FEATURES))
    for case in descent.instances().values():
        problem = case.problem

        @jax.jit
        def implicit(u, problem=problem):
            # f is quadratic in w: one of Newton's steps solves it.
            zero, data = jnp.zeros(descent.FEATURES), problem.inner_data
            hessian = jax.hessian(problem.inner, 1)(u, zero, data)
            w = -jnp.linalg.solve(hessian, jax.grad(problem.inner, 1)(u, zero, data))
            return bilevel.implicit_gradient(problem, u, w, lx.Cholesky()).grad, hessian

        grad, hessian = implicit(u)
        np.testing.assert_allclose(jax.jit(jax.grad(case.phi))(u), grad, rtol=1e-10)
        eigenvalues = np.linalg.eigvalsh(hessian)
        assert case.mu <= eigenvalues[0] * (1 + 1e-12)
        assert case.top >= eigenvalues[-1] * (1 - 1e-12)
        curvatures = np.linalg.eigvalsh(jax.jit(jax.hessian(case.phi))(u))
        assert np.max(np.abs(curvatures)) <= case.smoothness * (1 + 1e-12)
