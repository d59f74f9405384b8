"""Functions together with the values that they look up, for programs that are compiled once."""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterable
from typing import Any

import jax

from ._fingerprint import Reader
from ._problem import BilevelProblem, Problem


class Pinned:
    """A function with the values that it looks up; equal to another if the function and these are.

    JAX traces a function once. If what it looks up has another value at the next call, such as a
    number of an enclosing scope or an attribute of the object whose method it is, the old program
    would run with the old value, silently. A new `Pinned` is then another function, and is compiled
    anew. An array counts as another value if it is another object. Functions that cannot be hashed
    become ones that can.
    """

    def __init__(self, function: Any):
        digest = hashlib.sha256()
        reader = Reader(digest, by_content=False)
        reader.add(function)
        self._function, self._looked_up = function, digest.hexdigest()
        self._kept = reader.kept  # so that no other object gets their place in memory
        bound = isinstance(function, types.MethodType)
        self._parts = (function.__self__, function.__func__) if bound else (function,)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __hash__(self) -> int:
        return hash(self._looked_up)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Pinned)
            and self._looked_up == other._looked_up
            and len(self._parts) == len(other._parts)
            and all(x is y for x, y in zip(self._parts, other._parts, strict=True))
        )


def pinned(problem: Problem) -> Problem:
    """The problem with its functions pinned, except those that are pytrees."""

    def pin(function: Any) -> Any:
        is_leaf = jax.tree_util.all_leaves([function])
        return Pinned(function) if is_leaf and not isinstance(function, Pinned) else function

    if isinstance(problem, BilevelProblem):
        return dataclasses.replace(problem, outer=pin(problem.outer), inner=pin(problem.inner))
    return dataclasses.replace(problem, outer=pin(problem.outer), map=pin(problem.map))


def pins(leaves: Iterable[Any]) -> tuple[Pinned, ...]:
    """The functions among these, such as schedules, pinned."""
    kinds = (types.FunctionType, types.MethodType, functools.partial)
    return tuple(Pinned(x) for x in leaves if isinstance(x, kinds))
