"""A digest of problems, methods and data: equal for equal ones, also in another process."""

import dataclasses
import functools
import hashlib
import types
from typing import Any

import jax
import numpy as np

_BY_NAME = ("jax", "jaxlib", "numpy")  # whose functions count by their names


def fingerprint(*values: Any) -> str:
    """The sha256 sum of what the values are made of.

    Arrays count by dtype, shape and content. Functions count by their name, the numbers in them, and
    the values that they enclose, among them the step size of an optax transformation. Functions of
    one name with equal numbers count as one. Other objects without fields count by their type.

    Cost: one pass over the data.
    """
    digest = hashlib.sha256()
    _Reader(digest).add(values)
    return digest.hexdigest()


class _Reader:
    """Walks through values; each object is read once."""

    def __init__(self, digest: Any):
        self._digest = digest
        self._seen: dict[int, tuple[int, Any]] = {}

    def note(self, *words: Any) -> None:
        """Count these words."""
        self._digest.update("".join(f"{word}\0" for word in words).encode("utf-8", "surrogatepass"))

    def add(self, value: Any) -> None:
        """Count a value and what it is made of."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self.note(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self.note("again", self._seen[id(value)][0])
            return
        self._seen[id(value)] = len(self._seen), value  # kept, so that no other object gets its id
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            self.add_array(value)
        elif isinstance(value, dict):
            self.add_items("dict", sorted(value.items(), key=lambda item: str(item[0])))
        elif isinstance(value, (list, tuple, set, frozenset)):
            ordered = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
            self.add_items(type(value).__qualname__, ordered)
        elif isinstance(value, types.FunctionType):
            self.add_function(value)
        elif isinstance(value, types.MethodType):
            self.add_items("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self.add_items("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, type):
            self.note("type", value.__module__, value.__qualname__)
        elif dataclasses.is_dataclass(value):
            present = vars(value) if hasattr(value, "__dict__") else {}
            names = [field.name for field in dataclasses.fields(value)]
            self.note(type(value).__qualname__)
            self.add_items("fields", [(name, present.get(name)) for name in names])
        elif hasattr(value, "__wrapped__"):  # what jax.jit and jax.custom_jvp return
            self.add_items("wrapped", (value.__wrapped__,))
        else:
            named = isinstance(value, (types.BuiltinFunctionType, np.ufunc))
            self.note("object", type(value).__qualname__, value.__name__ if named else "")

    def add_items(self, kind: str, items: Any) -> None:
        """Count what a container holds."""
        items = list(items)
        self.note(kind, len(items))
        for item in items:
            self.add(item)

    def add_array(self, value: Any) -> None:
        """Count dtype, shape and content."""
        if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        self.note("array", array.dtype.str if array.dtype.kind != "V" else array.dtype, array.shape)
        if array.dtype == object:
            self.add_items("objects", array.ravel().tolist())
        else:
            self._digest.update(np.ascontiguousarray(array).tobytes())

    def add_function(self, value: types.FunctionType) -> None:
        """Count its name, its numbers, its defaults, what it encloses, and the numbers it looks up."""
        self.note("function", value.__qualname__)
        if (value.__module__ or "").partition(".")[0] in _BY_NAME:
            return
        self.add_code(value.__code__)
        names = [n for n in value.__code__.co_names if n in value.__globals__]
        found = {name: value.__globals__[name] for name in names}
        numbers = (bool, int, float, complex, np.ndarray, np.generic, jax.Array)
        self.add({name: x for name, x in found.items() if isinstance(x, numbers)})
        self.add(value.__defaults__)
        self.add(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self.note("empty")

    def add_code(self, code: types.CodeType) -> None:
        """Count the names and the numbers in the code, and in the functions within it."""
        self.note("code", code.co_name, *code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.add_code(constant)
            elif isinstance(constant, (bool, int, float, complex)):
                self.add(constant)
