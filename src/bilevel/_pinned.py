"""Functions together with the values that they look up, for programs that are compiled once."""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._fingerprint import Reader
from ._problem import BilevelProblem, FixedPointProblem, Problem

F = TypeVar("F", bound=Callable)
P = TypeVar("P", bound=Problem)


class Pins:
    """What functions and methods within a value look up; equal to others if it is the same.

    JAX traces a function once. If what it looks up has another value at the next call, such as a
    number of an enclosing scope or an attribute of the object whose method it is, the old program
    would run with the old value, silently. Pins that are a part of what a program is compiled for
    make it another program. An array counts as another value if it is another object.
    """

    def __init__(self, value: Any):
        digest = hashlib.sha256()
        reader = Reader(digest, by_content=False)
        # Arrays of a pytree are arguments of the program, and no part of it.
        reader.add(eqx.filter(value, eqx.is_array, inverse=True))
        self._digest = digest.hexdigest()
        self._kept = reader.kept  # so that no other object gets their place in memory

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pins) and self._digest == other._digest


class Pinned:
    """A function with pins: equal to another if both are.

    Functions that cannot be hashed become ones that can.

    Args:
        function: the function.
        pins: of the problem that it belongs to; by default its own.
    """

    def __init__(self, function: Any, pins: Pins | None = None):
        self._pins = Pins(function) if pins is None else pins
        self.__wrapped__ = function
        bound = isinstance(function, types.MethodType)
        self._parts = (function.__self__, function.__func__) if bound else (function,)

    def __call__(self, *arguments: Any) -> Any:
        return self.__wrapped__(*arguments)

    def __hash__(self) -> int:
        return hash(self._pins)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Pinned)
            and self._pins == other._pins
            and len(self._parts) == len(other._parts)
            and all(x is y for x, y in zip(self._parts, other._parts, strict=True))
        )


def pinned(problem: P, pins: Pins | None = None) -> P:
    """The problem with its functions pinned, except those that are pytrees.

    Args:
        problem: the problem.
        pins: its pins, if they are known.
    """
    pins = Pins(problem) if pins is None else pins

    def pin(function: Any) -> Any:
        is_leaf = jax.tree_util.all_leaves([function])
        return Pinned(function, pins) if is_leaf and not isinstance(function, Pinned) else function

    if isinstance(problem, BilevelProblem):
        return dataclasses.replace(problem, outer=pin(problem.outer), inner=pin(problem.inner))
    return dataclasses.replace(problem, outer=pin(problem.outer), map=pin(problem.map))


def hashable(static: PyTree, pins: Pins) -> PyTree:
    """The same, with those functions pinned that cannot be hashed: schedules with settings."""

    def pin(x: Any) -> Any:
        return Pinned(x, pins) if callable(x) and type(x).__hash__ is None else x

    return jax.tree.map(pin, static)


def compiled(function: F) -> F:
    """`equinox.filter_jit`, of which the pins of the arguments are a part."""

    def run(pins: Pins, args: Any, kwargs: Any) -> Any:
        del pins
        return function(*args, **kwargs)

    # The name of the program, in logs and profiles: Equinox looks below decorators for it.
    inspect.unwrap(run).__name__ = function.__name__
    run = eqx.filter_jit(run)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        pins = Pins((args, kwargs))
        args, kwargs = jax.tree.map(
            lambda x: pinned(x, pins) if _is_problem(x) else x, (args, kwargs), is_leaf=_is_problem
        )
        return run(pins, *hashable((args, kwargs), pins))

    return call  # pyright: ignore[reportReturnType]


def _is_problem(x: Any) -> bool:
    return isinstance(x, BilevelProblem | FixedPointProblem)
