"""bilevel: gradient-based bilevel optimization, whose first job is learning what data is worth.

Every public name lives in this flat namespace and is imported on first use, so that
`import bilevel` and `bilevel --help` cost nothing that they do not need. What is exported, and
from where, stands in `__init__.pyi`, which is also what type checkers and editors read.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

_load, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__: str = _version("bilevel")

# Old names, each of which warns and goes with version 0.2.
_RENAMED = {
    "Adjusted": "TransformedGeometry",
    "Averaged": "IterateAveraging",
    "ByWeight": "WeightedSampler",
    "InnerChoice": "InnerSolution",
}


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        import warnings

        new = _RENAMED[name]
        warnings.warn(
            f"`bilevel.{name}` is called `bilevel.{new}` now; the old name goes with version 0.2.",
            DeprecationWarning,
            stacklevel=2,
        )
        name = new
    return _load(name)
