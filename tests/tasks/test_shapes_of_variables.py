"""Variables of another shape than the problem's: they broadcast, or had no entry for some rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from bilevel import tasks
from bilevel.tasks import models

RNG = np.random.default_rng(0)
X, XV = (jnp.asarray(RNG.normal(size=(n, 3))) for n in (8, 5))
Y, YV = (jnp.asarray(RNG.normal(size=n)) for n in (8, 5))
C, CV = ((y > 0).astype(int) for y in (Y, YV))
S, SV = 2 * C - 1, 2 * CV - 1
LIN = models.linear_model(3, 2)
ONES = {"x": jnp.ones((4, 2, 3))}  # of four sources
FEW = tasks.episodes(np.eye(8), np.arange(8) % 2, ways=2, shots=1, queries=2, num_tasks=3)
SMALL = models.linear_model(8, 2, bias=False)
CONST: Any = lambda u, x: x  # noqa: E731


def points(n, *shape):
    return jnp.zeros((n, *shape))


W, FEATURES, ZERO = LIN.w0, points(3), jnp.zeros(())
KINDS = {
    "reweighting": (
        tasks.reweighting(X, C, XV, CV, LIN.predict),
        (tasks.uniform_weights(8), W),
        [(points(7), W), (points(9), W), (points(8, 1), W), (points(1, 8), W)],
    ),
    "weight function": (
        tasks.weight_function(tasks.reweighting(X, C, XV, CV, LIN.predict), X),
        (points(4), W),
        [(points(4, 1), W)],
    ),
    "hyper-cleaning": (
        tasks.hyper_cleaning(X, C, XV, CV, LIN.predict),
        (points(8), W),
        [(points(7), W), (points(9), W), (points(8, 1), W), (points(1, 8), W)],
    ),
    "ridge": (
        tasks.ridge(X, Y, XV, YV),
        (FEATURES, FEATURES),
        [(points(3, 1), FEATURES), (points(1, 3), FEATURES)],
    ),
    "support vectors": (
        tasks.support_vectors(X, S, XV, SV),
        (ZERO, FEATURES),
        [(points(3, 1), FEATURES)],
    ),
    "power penalty": (
        tasks.power_penalty(X, Y, XV, YV),
        ((FEATURES, ZERO), FEATURES),
        [((points(3, 1), ZERO), FEATURES)],
    ),
    "folds": (
        tasks.cross_validation(X, Y, 2, models.linear_predict, loss=models.squared_error),
        (FEATURES, points(2, 3)),
        [(points(3, 1), points(2, 3)), (points(2, 3), points(2, 3)), (FEATURES, points(1, 3))],
    ),
    "quadratic": (
        tasks.quadratic(jax.random.key(0), num_inner_rows=8, num_outer_rows=8, dim_u=2, dim_w=3),
        (points(2), points(3)),
        [(points(2, 1), points(3)), (points(2), points(3, 1))],
    ),
    "mixture": (
        tasks.mixture(
            lambda w, rows: jnp.sum((rows["x"] - w[None]) ** 2, axis=1),
            trusted={"x": XV},
            sources=ONES,
        ),
        (points(4), points(3)),
        [(points(4, 1), points(3))],
    ),
    "poisoning": (
        tasks.poisoning(X, C, XV, CV, LIN.predict, poisoned=jnp.array([1, 4]), radius=0.5),
        (points(2, 3), W),
        [(points(1, 3), W), (points(3, 3), W), (points(2, 1), W)],
    ),
    "anti-distillation": (
        tasks.anti_distillation(X, XV, YV),
        (points(8), points(3)),
        [(points(7), points(3)), (points(9), points(3))],
    ),
    "distillation": (
        tasks.distillation(X, C, LIN.predict),
        ({"inputs": points(4, 3), "labels": points(4, 2)}, W),
        [
            ({"inputs": points(4, 3), "labels": points(1, 2)}, W),
            ({"inputs": points(1, 3), "labels": points(4, 2)}, W),
        ],
    ),
    "distillation of inputs": (  # the fixed labels were replaced without a word
        tasks.distillation(X, C, LIN.predict, labels=tasks.hard_labels(C[:4], 2)),
        ({"inputs": points(4, 3)}, W),
        [({"inputs": points(4, 3), "labels": points(4, 2)}, W)],
    ),
    "start of training": (
        tasks.initialisation(FEW, SMALL.predict),
        (SMALL.w0, {"weight": points(3, 2, 8)}),
        [(SMALL.w0, {"weight": points(2, 2, 8)}), (SMALL.w0, {"weight": points(3, 1, 8)})],
    ),
    "few-shot bias": (
        tasks.meta_learning(CONST, FEW, biased=True),
        ({"representation": (), "bias": points(2, 8)}, points(3, 2, 8)),
        [({"representation": (), "bias": points(8)}, points(3, 2, 8))],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_variables_of_another_shape_are_refused(kind):
    problem, fits, others = KINDS[kind]

    def look(u, w):
        for f, data in ((problem.outer, problem.outer_data), (problem.inner, problem.inner_data)):
            assert jax.eval_shape(f, u, w, data).shape == ()

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        look(*fits)
        for u, w in others:
            # The tests run with checks of annotations, which come first where there are some.
            wrong = r"shape|a dict of \['inputs'\]|annotations"
            with pytest.raises((ValueError, TypeCheckError), match=wrong):
                look(u, w)
