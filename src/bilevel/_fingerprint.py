"""A digest of problems, methods and data: equal for equal ones, in any process and in several."""

import collections
import collections.abc
import dataclasses
import functools
import hashlib
import sys
import threading
import types
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ._content import content_sums, spans
from ._names import EVERYTHING, Class, Names, class_of, is_library, names_of

_BY_NAME = ("jax", "jaxlib", "numpy")  # whose functions count by their names
_SIMPLE = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, jax.Array)
_CONTAINERS = (dict, list, set, collections.deque, collections.abc.MutableMapping)
_NONE = frozenset[str]()


def fingerprint(*values: Any) -> str:
    """The sha256 sum of what the values are made of.

    Arrays count by dtype, shape and content, however they are split among devices or processes (which
    then all have to call this). Functions count by their name, the numbers in them, and the values
    that they enclose or look up, among them the step size of an optax transformation. Functions of
    one name with equal numbers count as one. Other objects count by their type and by those of their
    attributes that the code looks up.

    Cost: one pass over the data.
    """
    digest = hashlib.sha256()
    Reader(digest, by_content=True).add(values)
    return digest.hexdigest()


class Reader:
    """Walks through values; each is read once per set of names that lead into it.

    Args:
        digest: what is told of all values.
        by_content: whether arrays and code count by their content, and objects by what is read of
            them; otherwise also by which object it is.
    """

    def __init__(self, digest: Any, *, by_content: bool):
        self._digest = digest
        self._by_content = by_content
        self._seen: dict[Any, tuple[int, Any]] = {}

    @property
    def kept(self) -> list[Any]:
        """All objects that were read."""
        return [value for _, value in self._seen.values()]

    def note(self, *words: Any) -> None:
        """Count these words."""
        self._digest.update("".join(f"{word}\0" for word in words).encode("utf-8", "surrogatepass"))

    def add(self, value: Any, names: frozenset[str] = _NONE) -> None:
        """Count a value and what it is made of; `names` are the attributes that are looked up."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self.note(type(value).__name__, repr(value))
            return
        whole = isinstance(value, (np.ndarray, np.generic, jax.Array, types.FunctionType))
        place = id(value) if whole else (id(value), names)
        if place in self._seen:
            self.note("again", self._seen[place][0])
            return
        self._seen[place] = len(self._seen), value  # kept, so that no other object gets its id
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            self.add_array(value)
        elif isinstance(value, dict):
            self.add_fields("dict", sorted(value.items(), key=lambda item: str(item[0])), names)
        elif isinstance(value, (list, tuple, set, frozenset)):
            ordered = sorted(value, key=_order) if isinstance(value, (set, frozenset)) else value
            self.add_items(type(value).__qualname__, ordered, names)
        elif isinstance(value, types.FunctionType):
            self.add_function(value)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__)
            self.add_object(value.__self__, _attributes_of(value.__func__))
        elif isinstance(value, functools.partial):
            names = _attributes_of(value.func, names)
            self.add_items("partial", (value.func, value.args, value.keywords), names)
        elif isinstance(value, type):
            self.note("type", value.__module__, value.__qualname__)
            self.add_class(value, names, {})
        elif dataclasses.is_dataclass(value):
            self.add_dataclass(value, names)
        elif "__wrapped__" in _held(value):  # what jax.jit and jax.custom_jvp return
            self.add_items("wrapped", (value.__wrapped__,))
            rules = [(name, rule) for name, rule in _held(value).items() if callable(rule)]
            self.add_fields("rules", rules)
        elif isinstance(value, (types.BuiltinFunctionType, np.ufunc)):
            self.note("object", type(value).__qualname__, value.__name__)
        else:
            self.add_object(value, names)

    def add_items(self, kind: str, items: Any, names: frozenset[str] = _NONE) -> None:
        """Count what a container holds."""
        items = list(items)
        self.note(kind, len(items))
        for item in items:
            self.add(item, names)

    def add_fields(
        self, kind: str, fields: list[tuple[Any, Any]], names: frozenset[str] = _NONE
    ) -> None:
        """Count values with the names or keys of these."""
        self.note(kind, len(fields))
        for key, value in fields:
            self.add(key, names)
            self.add(value, names)

    def add_array(self, value: Any) -> None:
        """Count dtype, shape and content, or which object it is."""
        if not self._by_content:
            self.note("array", id(value))
            # An array of numpy may be changed in place.
            if (
                isinstance(value, np.ndarray)
                and value.flags.writeable
                and not value.dtype.hasobject
            ):
                self._digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
            return
        if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = value if spans(value) else np.asarray(value)
        dtype = np.dtype(array.dtype)
        self.note("array", dtype.str if dtype.kind != "V" else dtype, array.shape)
        if dtype.hasobject:
            self.add_items("objects", array.ravel().tolist())
        else:
            self.note(*content_sums([array]))

    def add_function(self, value: types.FunctionType) -> None:
        """Count its name, its numbers, its defaults, what it encloses, and what it looks up."""
        self.note("function", value.__qualname__)
        if (value.__module__ or "").partition(".")[0] in _BY_NAME:
            return
        if not self._by_content:
            self.note(id(value))
        if (checked := _checked(value)) is not None:
            self.add(checked)
            return
        if self._by_content:
            self.add_code(value.__code__)
        names = names_of(value.__code__)
        for name in sorted(names.outside):
            if name in value.__globals__:
                self.add_found(name, value.__globals__[name], names, value.__module__)
        for name in sorted(names.imported):
            if name in sys.modules:
                self.add_found(name, sys.modules[name], names, value.__module__)
        self.add(value.__defaults__, names.attributes)
        self.add(value.__kwdefaults__, names.attributes)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                self.note("empty")
                continue
            if name in names.outside:
                self.add_found(name, content, names, value.__module__)

    def add_found(self, name: str, value: Any, names: Names, place: str | None) -> None:
        """Count a value that a function in the module `place` finds under a name outside of itself.

        Not what the function itself changes, such as the number of its calls, nor what belongs to a
        thread, such as the shapes that a checker of annotations has met on its way.
        """
        if isinstance(value, threading.local):
            return
        if isinstance(value, types.ModuleType):
            self.add_module(name, value, names, place)
        elif not (isinstance(value, _CONTAINERS) and name in names.changed):
            self.note(name)
            self.add(value, names.attributes)

    def add_module(
        self, name: str, module: types.ModuleType, names: Names, place: str | None
    ) -> None:
        """Count what a function finds in a module: of an installed one, only numbers and arrays."""
        if module.__name__.partition(".")[0] in _BY_NAME or names.attributes is EVERYTHING:
            return
        marker = id(module), names
        if marker in self._seen:
            return
        self._seen[marker] = len(self._seen), module
        held = vars(module)
        own = (place or "").partition(".")[0] == module.__name__.partition(".")[0]
        library = is_library(module.__name__) and (not own or is_library(place))
        self.note(name)
        for attribute in sorted(names.attributes):
            if attribute not in held:
                continue
            if not library:
                self.add_found(attribute, held[attribute], names, place)
            elif isinstance(held[attribute], _SIMPLE):
                self.note(attribute)
                self.add(held[attribute])

    def add_dataclass(self, value: Any, names: frozenset[str]) -> None:
        """Count its fields; and where it is a user's, what its methods look up."""
        cls, held = type(value), _held(value)
        self.note(cls.__qualname__)
        if not is_library(cls.__module__):
            # The methods of a module of equinox are called by others.
            names = EVERYTHING if isinstance(value, eqx.Module) else names
            names = self.add_class(cls, names, held).attributes
        fields = [field.name for field in dataclasses.fields(value)]
        self.add_fields("fields", [(name, getattr(value, name, None)) for name in fields], names)

    def add_object(self, value: Any, names: frozenset[str]) -> None:
        """Count those of its attributes that are looked up, and not those that its methods change."""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.add_dataclass(value, names)
            return
        cls, held = type(value), _held(value)
        self.note("object", cls.__qualname__)
        if not self._by_content:
            self.note(id(value))
        if isinstance(value, type):
            self.add_class(value, names, {})
            return
        if isinstance(value, (collections.abc.Mapping, collections.deque)):
            pairs = value.items() if isinstance(value, collections.abc.Mapping) else value
            self.add_items("items", pairs, names)
        if names and is_library(cls.__module__) and hasattr(cls, "__getattr__"):
            # Settings of a library, which are found by a method of its own: all that they hold.
            names = EVERYTHING
            held = {k: x for k, x in held.items() if _is_of(x, cls)}
        found = self.add_class(cls, names, held)
        unread = found.excluded | found.settable if self._by_content else found.excluded
        for name, slot in found.slots:
            try:
                held = {**held, name: slot.__get__(value)}
            except AttributeError:
                continue
        fields = [
            (name, content)
            for name, content in sorted(held.items())
            if name in found.attributes
            and name not in unread
            and not isinstance(content, threading.local)
            and not (isinstance(content, _CONTAINERS) and name in found.changed)
        ]
        self.add_fields("fields", fields, found.attributes)

    def add_class(self, cls: type, names: frozenset[str], held: dict[str, Any]) -> Class:
        """Count the methods and the values that a class has under these names."""
        found = class_of(cls, names)
        for function in found.functions:
            self.add(function)
        values = [
            (name, value)
            for name, value in found.values
            if name not in held and name not in found.excluded and name not in found.changed
        ]
        self.add_fields("class", sorted(values, key=lambda item: item[0]), _NONE)
        return found

    def add_code(self, code: types.CodeType) -> None:
        """Count the names and the numbers in the code, and in the functions within it."""
        self.note("code", code.co_name, *code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.add_code(constant)
            elif isinstance(constant, (bool, int, float, complex)):
                self.add(constant)


def _attributes_of(function: Any, others: frozenset[str] = _NONE) -> frozenset[str]:
    """The names of attributes in the code of a function, with others."""
    code = getattr(function, "__code__", None)
    if others is EVERYTHING or not isinstance(code, types.CodeType):
        return others
    return names_of(code).attributes.union(others)


def _is_of(value: Any, cls: type) -> bool:
    """Whether it is a simple value, a container, or an object of the library that the class is of."""
    library = cls.__module__.partition(".")[0]
    own = type(value).__module__.partition(".")[0] == library
    return value is None or own or isinstance(value, (*_SIMPLE, *_CONTAINERS, tuple, frozenset))


def _held(value: Any) -> dict[str, Any]:
    held = getattr(value, "__dict__", None)
    return held if isinstance(held, dict) else {}


def _order(item: Any) -> str:
    """Of the members of a set: an object is printed with its place in memory."""
    simple = isinstance(item, (bool, int, float, complex, str, bytes, tuple, frozenset))
    return f"{type(item).__qualname__} {item if simple else ''}"


def _checked(function: types.FunctionType) -> Any:
    """The function within, if jaxtyping or beartype made it: what these keep is no setting."""
    place = str(function.__globals__.get("__name__", "")).partition(".")[0]
    generated = function.__code__.co_filename.startswith("<@beartype(")
    return getattr(function, "__wrapped__", None) if place == "jaxtyping" or generated else None
