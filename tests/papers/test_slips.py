"""The smallest examples of docs/slips.md that no script measures, in NumPy: the printed formula does
not hold, and the reading that the library takes does."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import dynamics


@pytest.mark.parametrize("kappa", [1.0, 3.0, 30.0])
def test_lemma_1_of_reweighting(kappa):
    """Gradients point outwards on the sphere of radius (kappa + 1) / (2 sqrt(kappa)), which is below
    R; the worst case is attained, and the proof as written needs sqrt(2) R."""
    rng = np.random.default_rng(0)
    radius = (kappa + 1) / (2 * np.sqrt(kappa))  # d_theta = mu = 1
    printed = (np.sqrt(2) * (2 + kappa) + np.sqrt(2 * (2 + kappa) ** 2 + 8 * kappa)) / 4
    proven = (2 + kappa + np.sqrt((2 + kappa) ** 2 + 4 * kappa)) / 2
    assert radius < printed
    np.testing.assert_allclose(proven, np.sqrt(2) * printed)
    if kappa == 1:
        np.testing.assert_allclose([printed, proven], [2.34, 3.30], atol=5e-3)
    # The worst pair: theta* at a right angle to theta - theta*.
    theta = np.array([radius, 0.0])
    centre = np.array([1 / radius, np.sqrt(1 - 1 / radius**2)]) if radius > 1 else theta
    worst = np.inf
    for angle in np.append(rng.uniform(0, np.pi, 200), _bisector(theta - centre, theta)):
        axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        hessian = axes @ np.diag([1.0, kappa]) @ axes.T
        worst = min(worst, theta @ hessian @ (theta - centre))
    np.testing.assert_allclose(worst, 0, atol=1e-12 * kappa**2)


def _bisector(a, b):
    """The direction of the small eigenvalue for which a Hessian turns a the furthest from b."""
    angles = [np.arctan2(x[1], x[0]) for x in (a, b)]
    return np.mean(angles)


def test_proposition_4_at_equality():
    """On an edge of a constant field nothing is asymptotically stable, and nothing runs away."""
    phi, w = jnp.array([0.0, 0.0, 1.0]), jnp.array([0.5, 0.5, 0.0])
    found = dynamics.stability(lambda u: phi, w)
    assert not found.stable
    np.testing.assert_allclose(found.eigenvalues, 0, atol=1e-7)
    start = np.array([0.51, 0.48, 0.01])
    flow = start * np.exp(-np.outer(np.linspace(0, 50, 101), phi))
    flow = flow / flow.sum(axis=1, keepdims=True)
    distance = np.linalg.norm(flow - np.asarray(w), axis=1)
    assert distance.max() <= distance[0] + 1e-12


def test_proposition_8_at_the_minimiser_of_the_outer_objective():
    """phi = Gamma g is 0, and a point with more than p rows is stationary."""
    gamma = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    u = jnp.full(5, 0.2)
    at_the_minimiser = lambda u: gamma @ jnp.zeros(2)  # noqa: E731
    elsewhere = lambda u: gamma @ jnp.ones(2)  # noqa: E731
    assert dynamics.is_stationary(at_the_minimiser, u)
    assert not dynamics.is_stationary(elsewhere, u)
    assert not dynamics.may_be_stationary(gamma, u > 0)


def test_the_sign_of_equation_10():
    """One row whose loss is F = (w - 1)^2 / 2, at w = 0: more weight lowers F, so h falls."""
    slope, curvature = -1.0, 1.0
    printed = slope / curvature * slope  # Gamma g
    after = [-slope * u / (u + 0.1) for u in (1.0, 1.001)]  # theta* with a ridge of 0.1
    h = [(w - 1) ** 2 / 2 for w in after]
    assert printed > 0
    assert h[1] < h[0]


def test_signs_and_shapes_of_response_jacobians():
    """Vicol et al.: -H^-1 M; for |Phi w - u|^2 / 2 both signs of Appendix B.1 together are right."""
    phi = np.random.default_rng(0).normal(size=(3, 5))
    mixed = -phi.T
    response = -np.linalg.pinv(phi.T @ phi) @ mixed
    np.testing.assert_allclose(response, np.linalg.pinv(phi), atol=1e-12)
    assert np.linalg.matrix_rank(phi.T @ phi) == 3  # of 5: the inverse in (7) does not exist
    # Algorithm 6 with one term: alpha I is no Jacobian of w in u, -alpha M is that of one step.
    assert (0.05 * np.eye(5)).shape != response.shape
    assert (-0.05 * mixed).shape == response.shape


def test_the_neumann_series_needs_eigenvalues_above_minus_one():
    powers = (1 - 3.0) ** np.arange(20)  # H = 1, alpha = 3: the eigenvalue is -2, below 1
    assert abs(3 * powers.sum()) > 1e5


def test_the_damped_inverse_in_the_basis_of_eigenvectors():
    half = np.sqrt(0.5)
    turn, values = np.array([[half, -half], [half, half]]), np.array([1.0, 3.0])
    inverse = np.linalg.inv(turn @ np.diag(values) @ turn.T + np.eye(2))
    meant, printed = (m @ np.diag(1 / (values + 1)) @ m.T for m in (turn, turn.T))
    np.testing.assert_allclose(meant, inverse)
    assert abs(printed - inverse).max() > 0.1


def test_unrolling_from_a_stationary_point_of_the_proximal_objective_moves():
    u, epsilon = 1.0, 0.5
    proximal = u / (1 + epsilon)  # argmin (w - u)^2 / 2 + epsilon w^2 / 2
    assert proximal - u + epsilon * proximal == pytest.approx(0)
    assert abs(proximal - u) > 0.3  # the slope of f itself


def test_ridge_regression_of_the_tutorial():
    x, y, n = np.ones((2, 1)), np.ones(2), 2
    gram = np.linalg.inv(x.T @ x / n)
    assert (n * gram @ x.T @ y).item() == pytest.approx(4)
    assert (gram @ x.T @ y / n).item() == pytest.approx(1)


def test_cross_entropy_of_the_tutorial():
    h = np.array([3.0, 0.0])
    printed, meant = (-np.log(np.exp(s * h[0]) / np.exp(s * h).sum()) for s in (-1, 1))
    assert printed == pytest.approx(3.05, abs=5e-3)
    assert meant == pytest.approx(0.05, abs=5e-3)


def test_the_logarithmic_rule_never_gives_zero_steps():
    rule = bilevel.logarithmic(2.0)
    assert np.ceil(2 * np.log(0 + 1)) == 0  # as printed, at s = 0
    expected = np.ceil(2 * np.log(np.arange(4) + 2))
    np.testing.assert_array_equal(rule(jnp.arange(4)), expected)


def test_assumption_4_of_the_improved_model():
    """Half the squared distance from a disc: its Hessian has the eigenvalue 1 - 1 / |w| outside."""
    for distance in (1e-1, 1e-2, 1e-3):
        w = (1 + distance) * np.array([0.6, 0.8])
        radial = np.outer(w, w) / (w @ w)
        hessian = radial + (1 - 1 / np.linalg.norm(w)) * (np.eye(2) - radial)
        assert np.linalg.eigvalsh(hessian)[0] <= distance


def test_least_curvature_is_that_of_the_distance(script):
    module = script("several_minima")
    d = np.array(module.OUTSIDE)
    np.testing.assert_allclose(module.least_curvature("disc"), 1 - 1 / (1 + d), atol=1e-4)
