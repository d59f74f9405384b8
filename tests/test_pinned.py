"""A run uses the values that its functions look up now, and not those of an earlier run."""

import collections
import dataclasses
import functools
import logging
import threading
import types
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

import bilevel
from bilevel._fingerprint import fingerprint
from bilevel._pinned import Pinned, Pins

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


class Slotted:
    __slots__ = ("rate",)


class Rate:
    """A setting that is seen through a property, a call, a product or another object."""

    shared = 1.0

    def __init__(self):
        self._rate = 1.0
        self.slotted = Slotted()
        self.slotted.rate = 1.0
        self.within = types.SimpleNamespace(deep=types.SimpleNamespace(rate=1.0))

    @property
    def rate(self):
        return self._rate

    def __call__(self, u, w, _):
        return self._rate * u

    def __mul__(self, x):
        return self._rate * x

    def through_other_objects(self, u, w, _):
        return self.within.deep.rate * u

    def through_slots(self, u, w, _):
        return self.slotted.rate * u

    def through_the_class(self, u, w, _):
        return self.shared * u


class Inherits(Model):
    def inner(self, u, w, _):
        return super().scaled(u)


class Module(eqx.Module):
    """Its arrays are arguments of a program; what its methods look up is not."""

    factor: jax.Array
    settings: Rate = eqx.field(static=True)

    def __call__(self, u, w, _):
        return self.factor * u


class LooksUp(Module):
    def __call__(self, u, w, _):
        return RATE * self.factor * u


class HasSettings(Module):
    def __call__(self, u, w, _):
        return self.settings.rate * self.factor * u


OBJECT, INHERITS = Rate(), Inherits()
LIBRARY = types.ModuleType("settings_of_a_test")
exec("RATE = 1.0\nSETTINGS = {'rate': 1.0}\ndef scaled(x):\n    return RATE * x", vars(LIBRARY))


@jax.custom_jvp
def ruled(x):
    return x


@ruled.defjvp
def _(primals, tangents):
    return primals[0], RATE * tangents[0]


def by_name(u, w, _):
    return getattr(SPACE, "rate") * u  # noqa: B009


def by_keywords(u, w, _):
    return dict(**vars(SPACE))["rate"] * u


def with_default(u, w, _, settings=SPACE):
    return settings.rate * u


def through_a_dict_beside_computed_keys(u, w, _):
    """It fills containers of its own, by keys that it makes, and only reads the other one."""
    mine, row = {}, [None, None]
    mine["sum" + str(1)] = row[len(mine) - 1] = u
    return SETTINGS["rate"] * mine["sum1"]


class Settings:
    """It finds its settings by a method of its own, and others set them."""

    def __init__(self):
        self._held = {"rate": 1.0}

    def __getattr__(self, name):
        return self._held[name]

    def __getitem__(self, name):
        return self._held[name]

    def set(self, value):
        self._held["rate"] = value


OWN, ARRAY, QUEUE = Settings(), np.ones(3), collections.deque([1.0])
CHAIN = collections.ChainMap({"rate": 1.0})
INSTALLED = type("Settings", (Settings,), {**vars(Settings), "__module__": "optax.settings"})()


class WithSetter(eqx.Module):
    settings: Settings = eqx.field(static=True)

    def __call__(self, u, w, _):
        return self.settings.rate * u

    def set(self, value):
        self.settings.set(value)


WITH_SETTER = WithSetter(OWN)


def set_rate(value):
    OWN.set(value)
    INSTALLED.set(value)
    ARRAY[:] = QUEUE[0] = CHAIN["rate"] = value
    global RATE
    RATE = value
    SETTINGS["rate"] = value
    SPACE.rate = value
    MODEL.rate = INHERITS.rate = value
    OBJECT._rate = OBJECT.slotted.rate = OBJECT.within.deep.rate = Rate.shared = value
    LIBRARY.RATE = LIBRARY.SETTINGS["rate"] = value  # pyright: ignore[reportAttributeAccessIssue]


CASES = {
    "global of a helper": lambda: through_a_helper,
    "dict": lambda: through_a_dict,
    "dict beside others": lambda: through_a_dict_beside_others,
    "namespace": lambda: through_a_namespace,
    "method": lambda: MODEL.inner,
    "partial": lambda: functools.partial(MODEL.inner, None),
    "schedule within optax": lambda: SCHEDULED,
    "object that is called": lambda: OBJECT,
    "objects within": lambda: OBJECT.through_other_objects,
    "slots": lambda: OBJECT.through_slots,
    "class": lambda: OBJECT.through_the_class,
    "inherited method": lambda: INHERITS.inner,
    "property": lambda: lambda u, w, _: OBJECT.rate * u,
    "operator": lambda: through_an_operator,
    "list of objects": lambda: through_a_list,
    "function of a module": lambda: lambda u, w, _: LIBRARY.scaled(u),
    "dict of a module": lambda: lambda u, w, _: LIBRARY.SETTINGS["rate"] * u,
    "rule of a derivative": lambda: lambda u, w, _: ruled(u),
    "name of an attribute": lambda: by_name,
    "all attributes": lambda: by_keywords,
    "default": lambda: with_default,
    "Partial": lambda: jax.tree_util.Partial(through_a_helper),
    "module that looks up": lambda: LooksUp(jnp.ones(2), OBJECT),
    "module with settings": lambda: HasSettings(jnp.ones(2), OBJECT),
    "module with a setter": lambda: WITH_SETTER,
    "dict beside computed keys": lambda: through_a_dict_beside_computed_keys,
    "attribute that is found": lambda: lambda u, w, _: OWN.rate * u,
    "item that is found": lambda: lambda u, w, _: OWN["rate"] * u,
    "settings of a library": lambda: lambda u, w, _: INSTALLED.rate * u,
    "array in place": lambda: lambda u, w, _: ARRAY[0] * u,
    "queue": lambda: lambda u, w, _: QUEUE[0] * u,
    "chain": lambda: lambda u, w, _: CHAIN["rate"] * u,
}
OBJECTS = [OBJECT]


def through_an_operator(u, w, _):
    return OBJECT * u


def through_a_list(u, w, _):
    return OBJECTS[0].rate * u


SCHEDULED = optax.sgd(lambda k: RATE / (k + 1)).update


@pytest.mark.parametrize("name", CASES)
def test_another_value_is_another_function(name):
    function = CASES[name]()
    try:
        first, same = Pins(function), Pins(function)
        set_rate(2.0)
        other = Pins(function)
        set_rate(1.0)
        again = Pins(function)
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


@dataclasses.dataclass
class Schedule:
    """A step size that cannot be hashed."""

    rate: float

    def __call__(self, step):
        return self.rate


def test_methods_and_checks_use_the_values_of_now(compilations):
    """`w*(u) = RATE u`, `F = (w - 1)^2`: u ends at 1 / RATE unless the step of u is zero."""
    problem = bilevel.BilevelProblem(
        lambda u, w, _: jnp.sum((w - 1) ** 2),
        lambda u, w, _: jnp.sum((w - RATE * u) ** 2) / 2,
    )
    schedule = Schedule(0.0)
    method = bilevel.SOBA(0.5, 0.5, schedule)

    def run():
        return bilevel.solve(problem, method, jnp.full(2, 2.0), jnp.full(2, 2.0), num_steps=300)

    try:
        np.testing.assert_allclose(run().u, 2.0)
        schedule.rate = 0.05
        found = run()
        np.testing.assert_allclose(found.u, 1.0, rtol=1e-2)
        compilations.clear()
        run()
        assert not compilations
        before = bilevel.check_lower_level(problem, found, num_starts=1)
        set_rate(2.0)
        after = bilevel.check_lower_level(problem, found, num_starts=1)
        np.testing.assert_allclose(run().u, 0.5, rtol=1e-2)
    finally:
        set_rate(1.0)
    assert before.verdict == "unique"
    np.testing.assert_allclose(after.inner_value, 1.0, rtol=1e-2)


class Net(eqx.Module):
    """An inner variable whose method looks up a number; with a static leaf or without one."""

    weight: jax.Array
    activation: Any

    def __call__(self, x):
        return RATE * self.weight * x


@pytest.mark.parametrize("activation", [None, jnp.tanh])
def test_methods_of_a_network_use_the_values_of_now(activation):
    """`f = (RATE w - u)^2 / 2` and `F = RATE w`: a step of size 1 moves u by -1."""
    problem = bilevel.BilevelProblem(lambda u, w, _: w(1.0), lambda u, w, _: (w(1.0) - u) ** 2 / 2)
    inner = bilevel.GradientInner(optax.sgd(0.25), 1)
    method = bilevel.DoubleLoop(inner, bilevel.AID(), optax.sgd(1e-9))

    def end():
        start = jnp.array(1.0), Net(jnp.array(0.0), activation)
        return float(bilevel.solve(problem, method, *start, num_steps=1).w.weight)

    try:
        first = end()  # 0.25 RATE
        set_rate(2.0)
        second = end()
    finally:
        set_rate(1.0)
    assert (first, second) == (0.25, 0.5)


class Batches:
    """A stream that remembers how often it was begun, and where it is."""

    def __init__(self):
        self.epochs, self.rows = 0, [1.0, 2.0]

    def __getitem__(self, k):
        return self.rows[k]

    def __iter__(self):
        self.begin()
        return iter([self[0], self[1]])

    def begin(self):
        self.epochs += 1


def test_where_a_stream_of_batches_is_does_not_count():
    """Else a run that goes on would not know its own checkpoint."""
    stream = Batches()
    loader = bilevel.FromLoader(stream)
    first = fingerprint(loader), Pins(loader)
    stream.rows = list(stream)[::-1]
    assert (fingerprint(loader), Pins(loader)) == first
