"""A process that fits a thousand times: what is compiled is used again, and memory does not grow."""

import sys

import jax
import jax.numpy as jnp
import pytest
from long_lives import MOST, growth

from bilevel.reweighting._weights import free_weights, methods
from bilevel.tasks import reweighting
from bilevel.tasks.models import linear_model, softmax_cross_entropy


@pytest.mark.slow  # a thousand fits
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("method", "fits"), [("soba", 1000), ("near-exact", 1000), ("auto", 300)])
def test_memory_does_not_grow_with_the_number_of_fits(method, fits):
    grown = growth(method, fits)
    print(method, fits, grown)
    assert grown < MOST


def test_equal_problems_share_one_compilation(monkeypatch):
    """The clip of `soba` was once made anew in each fit, which compiled three programs: 3 s, 30 MB."""
    x, y = jnp.arange(16.0).reshape(8, 2), jnp.arange(8) % 2
    w, predict = linear_model(2, 2)
    problem = reweighting(x, y, x, y, predict, loss=softmax_cross_entropy)
    monkeypatch.setattr(methods, "_scales", lambda *_: (1.0, 1.0))
    u = jnp.full(8, 1 / 8)
    one, other = (methods.build_method("soba", problem, u, w, True)[:2] for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    known = [x for x in jax.tree.leaves(one) if callable(x)]
    assert len(known) >= 2
    for x, again in zip(known, filter(callable, jax.tree.leaves(other)), strict=True):
        assert x is again


def test_programs_are_kept_for_so_many_kinds_of_problems(monkeypatch):
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    monkeypatch.setattr(free_weights, "_kinds", set())
    for k in range(3 * free_weights.KEPT):
        free_weights.bound_programs(k)
        free_weights.bound_programs(k)
    assert len(cleared) == 2
