"""G4 and L5: meta-learning and hyper-representation, as their scripts make the claims."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import bilevel
from bilevel import tasks
from helpers import on_all_data

PAPERS = Path(__file__).parents[2] / "papers"


@pytest.mark.slow
def test_the_hypergradient_through_a_table_of_features(monkeypatch):
    """It is the one that `ITD` finds in the net's parameters, for every inner solver."""
    monkeypatch.setattr(sys, "path", [str(PAPERS / "improved_model"), *sys.path])
    script = importlib.import_module("hyper_representation")
    x, y = script.images_of("digits", 50)["train"]
    x = x.astype(np.float64)
    net = tasks.models.conv4((8, 8), key=jr.key(0), width=4, blocks=2)
    drawn = tasks.episodes(x, y, ways=5, shots=1, queries=2, num_tasks=3)
    problem = tasks.meta_learning(net.features, drawn, l2=0.0)
    w0 = jnp.zeros((3, 5, 16))
    streams = on_all_data(problem)
    for inner in script.inner_solvers(0.1, 3, 3).values():
        state = bilevel.ITD().init(problem, inner, net.u0, w0)
        whole, _, _ = bilevel.ITD().estimate(problem, inner, net.u0, w0, state, streams)
        found = script.meta_gradient(net, inner, net.u0, drawn)
        for a, b in zip(*map(jax.tree.leaves, (found, whole.grad)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
