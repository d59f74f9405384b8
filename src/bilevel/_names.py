"""What the code of a function looks up outside of itself, and what it changes."""

import dis
import functools
import sys
import types
from collections.abc import Iterable
from typing import Any, NamedTuple


class _Everything(frozenset[str]):
    """All names: a set that has every one."""

    def __contains__(self, name: object) -> bool:
        return True

    def union(self, *others: Iterable[Any]) -> "_Everything":
        return self


EVERYTHING = _Everything(["*"])


class Names(NamedTuple):
    """Names in the code of a function, and of those within it.

    Attributes:
        outside: of values in enclosing scopes and among the globals that are read and never assigned.
        attributes: the same of attributes, or `EVERYTHING` where the code takes all of an object.
        imported: of modules that the code imports.
        written: of values and attributes that it assigns.
        changed: of containers that it changes; not of those that it holds under a local name only.
    """

    outside: frozenset[str]
    attributes: frozenset[str]
    imported: frozenset[str]
    written: frozenset[str]
    changed: frozenset[str]


_CHANGING = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "clear"}
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM")
_NAMED = (*_GLOBALS, "LOAD_DEREF", *_ATTRIBUTES[:2])
_STORED = ("STORE_GLOBAL", "STORE_NAME", "STORE_ATTR", "STORE_DEREF")


@functools.lru_cache(maxsize=4096)
def names_of(code: types.CodeType) -> Names:
    """The names in this code."""
    # What is looked up may be called, and used by operators: `_SPECIAL` counts where there are names.
    outside, attributes, imported = set[str](code.co_freevars), {"__call__"}, set[str]()
    written, changed, strings = set[str](), set[str](), set[str]()
    everything = False
    before = [("", ""), ("", "")]  # operations and their arguments
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        operation, name = instruction.opname, instruction.argval
        if operation in _GLOBALS:
            outside.add(name)
        elif operation in _ATTRIBUTES:
            attributes.add(name)
        elif operation == "IMPORT_NAME":
            imported.add(name)
        elif operation in _STORED:
            written.add(name)
        elif operation == "STORE_SUBSCR":  # `seen[key] = value`
            changed |= _container(instructions[:place])
        if operation in _NAMED and name in _CHANGING and before[1][0] in _NAMED:  # `seen.append`
            changed.add(before[1][1])
        before = [before[1], (operation, name)]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            within = names_of(constant)
            outside |= within.outside
            everything |= within.attributes is EVERYTHING
            attributes |= within.attributes
            imported |= within.imported
            written |= within.written
            changed |= within.changed
        elif isinstance(constant, str) and constant.isidentifier():
            strings.add(constant)
    if "getattr" in outside or "attrgetter" in outside | attributes:
        attributes |= strings
    everything |= "vars" in outside or "__dict__" in attributes
    return Names(
        frozenset(outside - written),
        EVERYTHING if everything else frozenset(attributes - written),
        frozenset(imported),
        frozenset(written),
        frozenset(changed),
    )


def _container(instructions: list[dis.Instruction]) -> set[str]:
    """The names in the container of the item that is about to be stored; its key is on the stack.

    An expression ends where it has left one value more on the stack than there was before it.
    """
    names, left = set[str](), 0
    for instruction in reversed(instructions):
        if instruction.opcode in (*dis.hasjrel, *dis.hasjabs):  # `a[x if y else z] = value`
            return set()
        if left >= 1 and instruction.opname in _NAMED:
            names.add(instruction.argval)
        left += dis.stack_effect(instruction.opcode, instruction.arg)
        if left >= 2:
            break
    return names


# Python calls these by itself, without their name in any code.
_OPERATORS = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift"
_OTHERS = (
    "call getattr getattribute getitem get iter next len contains bool float int index array "
    "jax_array neg pos abs invert enter exit lt le eq ne gt ge"
)
_SPECIAL = frozenset(
    f"__{reflected}{name}__"
    for reflected, names in (("", _OPERATORS), ("r", _OPERATORS), ("", _OTHERS))
    for name in names.split()
)
_DYNAMIC = ("__getattr__", "__getattribute__", "__getitem__")


class Class(NamedTuple):
    """What a class has under some names, besides what its objects have.

    Attributes:
        functions: its methods and properties of these names, those that they look up, and those that
            Python calls by itself; all methods where all names are looked up.
        values: other attributes of the class.
        attributes: all names that are looked up.
        excluded: the names that methods change which are called by their names, or by Python.
        changed: the containers that these change.
        settable: the names, also of containers, that only other methods change.
    """

    functions: tuple[types.FunctionType, ...]
    values: tuple[tuple[str, Any], ...]
    slots: tuple[tuple[str, Any], ...]
    attributes: frozenset[str]
    excluded: frozenset[str]
    changed: frozenset[str]
    settable: frozenset[str]


def is_library(module: str | None) -> bool:
    """Whether a module is part of Python or was installed: its functions do not change."""
    return _is_library((module or "").partition(".")[0])


@functools.lru_cache(maxsize=1024)
def _is_library(package: str) -> bool:
    if package in sys.stdlib_module_names and package != "__main__":
        return True
    place = str(getattr(sys.modules.get(package), "__file__", None) or "")
    return package == "bilevel" or "site-packages" in place or "dist-packages" in place


def class_of(cls: type, names: frozenset[str]) -> Class:
    """What code with these names of attributes finds in a class."""
    own = [c for c in cls.__mro__ if not is_library(c.__module__)]
    held = {}
    for c in reversed(own):
        held.update(vars(c))
    # What no code looks into may be called, as a schedule is; it may also be a stream of batches.
    called = _SPECIAL if names else {"__call__"}
    special = {name for c in own for name in vars(c) if name in called}
    everything = names is EVERYTHING or any(name in special for name in _DYNAMIC)
    wanted = [*special] if names is EVERYTHING else [*names, *special]
    known, functions, values, slots = set[str](), [], [], []
    called_for = list[Names]()  # by their names, or by Python
    others = list[Names]()

    def look(name: str, into: list[Names]) -> Iterable[str]:
        """Count what the class has under a name; the names that this looks up."""
        nonlocal everything
        known.add(name)
        value = held.get(name)
        if isinstance(value, types.MemberDescriptorType):
            slots.append((name, value))
        parts = [f for f in _functions_in(value) if not is_library(f.__module__)]
        plain = name in held and not _functions_in(value) and not name.startswith("__")
        if plain and not isinstance(value, types.MemberDescriptorType):
            values.append((name, value))
        if name.startswith("__") and name not in _SPECIAL:
            return ()  # such as __init__
        looked_up = []
        for function in parts:
            functions.append(function)
            into.append(names_of(function.__code__))
            everything |= into[-1].attributes is EVERYTHING
            looked_up += [] if into[-1].attributes is EVERYTHING else into[-1].attributes
        return looked_up

    for name in wanted:  # which grows
        if name not in known:
            wanted.extend(look(name, called_for))
    if everything:
        for name in held.keys() - known:
            look(name, others)
    attributes = EVERYTHING if everything else frozenset(known)
    changed, changed_else = (
        frozenset[str]().union(*(each.changed for each in found)) for found in (called_for, others)
    )
    written, written_else = (
        frozenset[str]().union(*(each.written for each in found)) for found in (called_for, others)
    )
    settable = (changed_else | written_else) - changed - written
    return Class(
        tuple(functions), tuple(values), tuple(slots), attributes, written, changed, settable
    )


def _functions_in(value: Any) -> Iterable[types.FunctionType]:
    """The functions of a method, of a property, or of what decorates one."""
    if isinstance(value, types.FunctionType):
        return (value,)
    if isinstance(value, property):
        parts = (value.fget,)
    elif isinstance(value, functools.cached_property):
        parts = (value.func,)
    else:
        parts = (getattr(value, "__func__", None), getattr(value, "__wrapped__", None))
    return tuple(part for part in parts if isinstance(part, types.FunctionType))
