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


@pytest.mark.slow
def test_a_published_cell_runs_on_bytes(monkeypatch):
    """20 ways and one shot on drawn bytes in Omniglot's layout, with fewer filters, a few steps."""
    monkeypatch.setattr(sys, "path", [str(PAPERS / "improved_model"), *sys.path])
    script = importlib.import_module("hyper_representation")
    monkeypatch.setattr(script, "TEST_TASKS", 2)
    monkeypatch.setattr(script, "QUERIES", 1)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 12)
    classes = np.kron(rng.integers(0, 2, (6, 7, 7)), np.ones((4, 4))) * 255
    images = np.where(rng.random((72, 28, 28)) < 0.9, classes[labels], 255).astype(np.uint8)
    turned = tasks.rotated_classes(images, labels)
    data = {"train": turned, script.ROWS: turned, script.CLASSES: turned}
    settings = script.PUBLISHED["Omniglot"]._replace(steps=5, num_tasks=2, width=8)
    with jax.numpy_dtype_promotion("standard"):  # for optax's Adam, as scripts run
        found = script.run(data, 20, 1, 5, settings, 0)
    for name in (script.BASIC, script.PRINTED, script.HARMONIC):
        assert found[name]["step"] == [0, 1, 2, 3, 4, 5]
        accuracies = 40 * np.array(found[name][script.CLASSES])  # of 2 tasks with 20 queries
        np.testing.assert_allclose(accuracies, accuracies.round(), atol=1e-6)
        assert np.all((accuracies >= 0) & (accuracies <= 40))
    drawn = tasks.episodes(*turned, ways=20, shots=1, queries=1, num_tasks=2, seed=0)
    pictures, _ = script.tabled(drawn)
    assert pictures.shape == (80, 28, 28)
    assert set(np.unique(pictures)) == {0.0, 1.0}


def test_the_representation_of_mini_imagenet_is_resnet_18(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(PAPERS / "improved_model"), *sys.path])
    script = importlib.import_module("hyper_representation")
    settings = script.PUBLISHED["MiniImageNet"]

    def both(x):
        net = script.net_of((64, 64, 3), settings, 0)
        return net.u0, net.features(net.u0, x)

    u0, features = jax.eval_shape(both, jax.ShapeDtypeStruct((2, 64, 64, 3), float))
    assert features.shape == (2, 512)
    sizes = sum(x.size for x in jax.tree.leaves(u0))
    assert sizes == 11_173_962 - 9 * 513  # the head has one output, which is not used
