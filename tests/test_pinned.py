"""A run uses the values that its functions look up now, and not those of an earlier run."""

import dataclasses
import functools
import logging
import threading
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

import bilevel
from bilevel._fingerprint import fingerprint
from bilevel._pinned import Pinned

RATE = 1.0
SETTINGS = {"rate": 1.0}
SPACE = types.SimpleNamespace(rate=1.0)


def helper(x):
    return RATE * x


def through_a_helper(u, w, _):
    return helper(u)


def through_a_dict(u, w, _):
    return SETTINGS["rate"] * u


def through_a_dict_beside_others(u, w, _):
    """It changes an array and a dict of its own, and only reads the other one."""
    mine = {}
    mine["sum"] = jnp.zeros(2).at[0].add(u)
    return SETTINGS["rate"] * mine["sum"]


def through_a_namespace(u, w, _):
    return SPACE.rate * u


class Model:
    rate = 1.0

    def scaled(self, x):
        return self.rate * x

    def inner(self, u, w, _):
        return self.scaled(u)


MODEL = Model()


def set_rate(value):
    global RATE
    RATE = value
    SETTINGS["rate"] = value
    SPACE.rate = value
    MODEL.rate = value


CASES = {
    "global of a helper": lambda: through_a_helper,
    "dict": lambda: through_a_dict,
    "dict beside others": lambda: through_a_dict_beside_others,
    "namespace": lambda: through_a_namespace,
    "method": lambda: MODEL.inner,
    "partial": lambda: functools.partial(MODEL.inner, None),
    "schedule within optax": lambda: SCHEDULED,
}
SCHEDULED = optax.sgd(lambda k: RATE / (k + 1)).update


@pytest.mark.parametrize("name", CASES)
def test_another_value_is_another_function(name):
    function = CASES[name]()
    try:
        first, same = Pinned(function), Pinned(function)
        set_rate(2.0)
        other = Pinned(function)
        set_rate(1.0)
        again = Pinned(function)
    finally:
        set_rate(1.0)
    assert first == same == again
    assert hash(first) == hash(same)
    assert other != first


def test_another_function_is_another_function():
    makers = [lambda: lambda u, w, _: u for _ in range(2)]
    one, two = (Pinned(make()) for make in makers)
    assert one != two
    assert Pinned(MODEL.inner) != Pinned(Model().inner)


def test_what_a_function_changes_itself_does_not_count():
    """Else a function that counts how often it is traced would be compiled at each call."""
    calls, number = [], 0

    def counting(u, w, _):
        nonlocal number
        number += 1
        calls.append(u)
        return u

    first = Pinned(counting)
    counting(1, 2, None)
    assert Pinned(counting) == first


STATE = threading.local()


class Counter:
    """Keeps a cache and a count of its own, as a logger does."""

    def __init__(self):
        self.known, self.calls = {}, 0

    def look_up(self, name):
        self.calls += 1
        self.known[name] = True
        return self.known[name]


COUNTER = Counter()


@pytest.mark.parametrize("of_contents", [False, True])
def test_what_methods_and_threads_change_does_not_count(of_contents):
    """Else a function that writes a log would be compiled anew, and its checkpoint refused."""

    def objective(u, w, _):
        logging.getLogger("bilevel.test").debug("traced")
        STATE.depth = getattr(STATE, "depth", 0) + 1
        return u if COUNTER.look_up("u") and STATE.depth else w

    def read():
        return fingerprint(objective) if of_contents else Pinned(objective)

    first = read()
    objective(1, 2, None)
    assert read() == first


@jaxtyped(typechecker=beartype)
def checked(u: Float[Array, ""], w: Float[Array, ""], _: None) -> Float[Array, ""]:
    return (w - u) ** 2


@beartype
def checked_too(u: Array, w: Array, _: None) -> Array:
    return (w - u) ** 2


@pytest.mark.parametrize("function", [checked, checked_too])
def test_an_objective_whose_annotations_are_checked_is_one_function(function):
    first = fingerprint(function), Pinned(function)
    function(jnp.array(1.0), jnp.array(2.0), None)
    assert (fingerprint(function), Pinned(function)) == first


@dataclasses.dataclass
class Penalised:
    """An objective with a setting, which cannot be hashed."""

    penalty: float

    def __call__(self, u, w, _):
        return jnp.sum((w - u) ** 2) + self.penalty * jnp.sum(w**2)


def test_runs_with_another_value(compilations):
    """`w*(u) = u / (1 + c)`, `F = w`: a step of size 1 moves u by `-1 / (1 + c)`."""
    inner = Penalised(0.0)
    problem = bilevel.BilevelProblem(lambda u, w, _: w, inner)
    method = bilevel.DoubleLoop(
        bilevel.ClosedForm(lambda u, _: u / (1 + inner.penalty)), bilevel.ITD(), optax.sgd(1.0)
    )

    def end():
        return float(bilevel.solve(problem, method, jnp.array(3.0), jnp.array(3.0), num_steps=1).u)

    np.testing.assert_allclose(end(), 2.0, rtol=1e-9)
    compilations.clear()
    end()
    assert not compilations
    inner.penalty = 1.0
    np.testing.assert_allclose(end(), 2.5, rtol=1e-9)
