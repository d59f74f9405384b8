"""A digest of problems, methods and data: equal for equal ones, in any process and in several."""

import dataclasses
import dis
import functools
import hashlib
import math
import threading
import types
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

_BLOCK = 1 << 16  # entries at a time
_BY_NAME = ("jax", "jaxlib", "numpy")  # whose functions count by their names


def fingerprint(*values: Any) -> str:
    """The sha256 sum of what the values are made of.

    Arrays count by dtype, shape and content, however they are split among devices or processes (which
    then all have to call this). Functions count by their name, the numbers in them, and the values
    that they enclose or look up, among them the step size of an optax transformation. Functions of
    one name with equal numbers count as one. Other objects without fields count by their type.

    Cost: one pass over the data.
    """
    digest = hashlib.sha256()
    Reader(digest, by_content=True).add(values)
    return digest.hexdigest()


class _Names(NamedTuple):
    """Names in the code of a function, and of those within it."""

    read: tuple[str, ...]  # and never assigned
    written: tuple[str, ...]
    changed: frozenset[str]  # of containers, if they are ones
    changes_others: bool  # containers whose names were not found


_CHANGING = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "clear"}
_SIMPLE = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, jax.Array)
_CONTAINERS = (dict, list, set)
_NAMED = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_ATTR", "LOAD_METHOD")


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> _Names:
    read, written, changed = set[str](code.co_freevars), set[str](), set[str]()
    others = False
    before = [("", ""), ("", "")]  # operations and their arguments
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if operation in _NAMED and operation != "LOAD_DEREF":
            read.add(name)
            if name in _CHANGING and before[1][0] in _NAMED:  # `seen.append`
                changed.add(before[1][1])
        elif operation in ("STORE_GLOBAL", "STORE_NAME", "STORE_ATTR", "STORE_DEREF"):
            written.add(name)
        elif operation == "STORE_SUBSCR":  # `seen[key] = value`: the name, then the key
            (holder, held), (key, _) = before
            if not key.startswith("LOAD_") or not holder.startswith("LOAD_"):
                others = True
            elif holder in _NAMED:
                changed.add(held)
        before = [before[1], (operation, name)]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            within = _names(constant)
            read.update(within.read)
            written.update(within.written)
            changed.update(within.changed)
            others |= within.changes_others
    names = tuple(sorted(read - written)), tuple(sorted(written))
    return _Names(*names, frozenset(changed), others)


class Reader:
    """Walks through values; each object is read once."""

    def __init__(self, digest: Any, *, by_content: bool):
        self._digest = digest
        self._by_content = by_content  # arrays and code; otherwise by identity
        self._seen: dict[int, tuple[int, Any]] = {}

    @property
    def kept(self) -> list[Any]:
        """All objects that were read."""
        return [value for _, value in self._seen.values()]

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
            self.add(value.__func__)
            self.add_attributes(value.__self__, _names(value.__func__.__code__).read)
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
        """Count dtype, shape and content, or which object it is."""
        if not self._by_content:
            self.note("array", id(value))
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
        """Count its name, its numbers, its defaults, what it encloses, and the numbers it looks up."""
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
        names = _names(value.__code__)
        for name in names.read:
            if name in value.__globals__:
                self.add_found(name, value.__globals__[name], names)
        self.add(value.__defaults__)
        self.add(value.__kwdefaults__)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                self.note("empty")
                continue
            if name in names.read:
                self.add_found(name, content, names)

    def add_found(self, name: str, value: Any, names: _Names) -> None:
        """Count a value that a function finds under a name outside of itself.

        Not what the function itself changes, such as the number of its calls, nor what belongs to a
        thread, such as the shapes that a checker of annotations has met on its way.
        """
        if isinstance(value, threading.local):
            return
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] in _BY_NAME:
                return
            held = vars(value)
            simple = [n for n in names.read if isinstance(held.get(n), _SIMPLE)]
            self.add_items(name, [(n, held[n]) for n in simple])
        elif isinstance(value, _CONTAINERS) and (names.changes_others or name in names.changed):
            return
        elif isinstance(value, type):
            self.note(name)
            self.add_attributes(value, names.read)
        elif self.has_parts(value):
            self.note(name)
            self.add(value)
        else:
            self.note(name, type(value).__qualname__)
            self.add_attributes(value, names.read)

    @staticmethod
    def has_parts(value: Any) -> bool:
        """Whether `add` reads all of the value."""
        functions = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, np.ufunc)
        parted = (*_SIMPLE, *_CONTAINERS, tuple, frozenset, *functions, functools.partial)
        return (
            value is None
            or isinstance(value, parted)
            or dataclasses.is_dataclass(value)
            or hasattr(value, "__wrapped__")
        )

    def add_attributes(self, value: Any, names: Iterable[str]) -> None:
        """Count the attributes of an object that these names, and those in its methods, look up.

        Not those that its methods change.
        """
        wanted, methods = list(names), list[types.FunctionType]()
        for name in wanted:  # which grows
            method = getattr(type(value), name, None)
            if isinstance(method, types.FunctionType) and method not in methods:
                methods.append(method)
                wanted.extend(n for n in _names(method.__code__).read if n not in wanted)
        for method in methods:
            self.add(method)
        known = [_names(method.__code__) for method in methods]
        written = {name for found in known for name in found.written}
        changed = {name for found in known for name in found.changed}
        others = any(found.changes_others for found in known)
        held = {
            name: content
            for name, content in getattr(value, "__dict__", {}).items()
            if name in wanted
            and name not in written
            and not (isinstance(content, _CONTAINERS) and (others or name in changed))
        }
        self.add_items("fields", sorted(held.items()))

    def add_code(self, code: types.CodeType) -> None:
        """Count the names and the numbers in the code, and in the functions within it."""
        self.note("code", code.co_name, *code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.add_code(constant)
            elif isinstance(constant, (bool, int, float, complex)):
                self.add(constant)


def _checked(function: types.FunctionType) -> Any:
    """The function within, if jaxtyping or beartype made it: what these keep is no setting."""
    place = str(function.__globals__.get("__name__", "")).partition(".")[0]
    generated = function.__code__.co_filename.startswith("<@beartype(")
    return getattr(function, "__wrapped__", None) if place == "jaxtyping" or generated else None


def spans(value: Any) -> bool:
    """Whether it is an array of which this process has a part only, or one of several copies."""
    return isinstance(value, jax.Array) and not value.is_fully_addressable


def content_sums(arrays: Sequence[Any]) -> list[str]:
    """For each array a sum, modulo 2^64, of mixtures of its entries' bits with their positions.

    Equal arrays have equal sums, whatever processes hold them: each adds up its own part. Others have
    the same one with a probability of 2^-64, except on purpose. Every process gets all sums.
    """
    sums = np.array([_sum_of_parts(array) for array in arrays], np.uint64)
    if any(spans(array) for array in arrays):
        # As halves, because JAX may have no integers of 64 bits.
        parts = multihost_utils.process_allgather(sums.view(np.uint32), tiled=False)
        all_sums = np.ascontiguousarray(parts).view(np.uint64)
        held = np.array([spans(array) for array in arrays])
        sums = np.where(held, all_sums.sum(axis=0, dtype=np.uint64), sums)
    return [f"{total:016x}" for total in sums.tolist()]


def _sum_of_parts(array: Any) -> int:
    if not spans(array):
        array = np.asarray(array)
        return _sum_of_part(array, array.shape, (slice(None),) * array.ndim)
    # A part that several devices hold is counted once.
    parts = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    return sum(_sum_of_part(np.asarray(x.data), array.shape, x.index) for x in parts) % (1 << 64)


def _sum_of_part(part: np.ndarray, shape: tuple[int, ...], index: tuple[slice, ...]) -> int:
    """The sum over one part, whose entries have the positions `index` in an array of this shape."""
    if part.size == 0:
        return 0
    per_row = max(math.prod(part.shape[1:]), 1)
    rows, block = part.shape[0] if part.ndim else 1, max(_BLOCK // per_row, 1)
    starts = [axis.indices(size)[0] for axis, size in zip(index, shape, strict=True)]
    total = 0
    for row in range(0, rows, block):
        piece = part[row : row + block] if part.ndim else part.reshape(1)
        position = np.zeros((1,) * piece.ndim, np.uint64)
        for axis, start in enumerate(starts):
            here = np.arange(piece.shape[axis], dtype=np.uint64) + (start + row * (axis == 0))
            stride = math.prod(shape[axis + 1 :])
            position = position + (here * stride).reshape([-1] + [1] * (piece.ndim - axis - 1))
        total += _mixed(np.broadcast_to(position, piece.shape).ravel(), np.ascontiguousarray(piece))
    return total % (1 << 64)


def _mixed(position: np.ndarray, piece: np.ndarray) -> int:
    """The sum of the mixtures (the last steps are those of the generator SplitMix64)."""
    bytes_each = piece.dtype.itemsize
    word = math.gcd(bytes_each, 8)
    words = piece.reshape(-1).view(f"u{word}").reshape(piece.size, -1)
    x = np.arange(words.shape[1], dtype=np.uint64) + position[:, None] * np.uint64(words.shape[1])
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x += words.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return int(x.sum(dtype=np.uint64))
