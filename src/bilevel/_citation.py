"""Which papers a method comes from: the BibTeX entries behind the keys in its docstring."""

import difflib
import functools
import importlib
import re
from importlib import resources
from typing import Any

_KEY = re.compile(r"\[([a-z]+\d{4}[a-z]?)\]\[\]")
_ENTRY = re.compile(r"^@\w+\{(\w+),\n.*?^\}\n", re.MULTILINE | re.DOTALL)


def citation(method: Any) -> str:
    """The BibTeX entries of the papers that a method is taken from.

    The docstring of the method is the only source: each key in it of the form `[dagreou2022][]` names
    an entry of the file `references.bib` in this package. The entries come in the order in which the
    docstring names them, and each of them once.

    Args:
        method: a class or a function, an instance of a class, or a public name of this package as
            text, such as `"SOBA"` or `"tasks.regularisation"`. An instance stands for its class; the
            parts that it was made from, such as its inner solver, are not searched.

    Returns:
        The entries as text, separated by empty lines, ready to be pasted into a BibTeX file.

    Raises:
        ValueError: this package has no such public name, the docstring cites no paper, or it cites a
            paper that `references.bib` does not have.

    Example:
        >>> print(citation("CG").splitlines()[0])
        @article{hestenes1952,
    """
    if isinstance(method, str):
        method = _public(method)
    documented = method if hasattr(method, "__qualname__") else type(method)
    keys = list(dict.fromkeys(_KEY.findall(documented.__doc__ or "")))
    known = bibliography()
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(
            f"`method`: the docstring of `{documented.__qualname__}` cites {', '.join(unknown)}, and "
            "the bibliography of bilevel has no such entry."
        )
    if not keys:
        raise ValueError(
            f"`method`: the docstring of `{documented.__qualname__}` cites no paper, so that there is "
            "no entry to return. Either the method is our own, or its papers are cited where they are "
            "used: ask for the algorithm, the solver or the task that you ran."
        )
    return "\n".join(known[key] for key in keys)


@functools.cache
def bibliography() -> dict[str, str]:
    """The entries of `references.bib` as text, by key, in the order of the file."""
    text = resources.files("bilevel").joinpath("references.bib").read_text(encoding="utf-8")
    return {entry[1]: entry[0] for entry in _ENTRY.finditer(text)}


def _public(name: str) -> Any:
    """What a public name such as `SOBA` or `tasks.regularisation` stands for."""
    value = importlib.import_module("bilevel")
    for part in name.removeprefix("bilevel.").split("."):
        names = getattr(value, "__all__", None) or [n for n in dir(value) if not n.startswith("_")]
        if part not in names:
            near = difflib.get_close_matches(part, names, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"`method`: bilevel has no public name `{name}`.{hint}")
        value = getattr(value, part)
    return value
