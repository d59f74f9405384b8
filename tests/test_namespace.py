"""What `import bilevel` gives and what it costs."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import bilevel

PUBLIC: list[str] = bilevel.__all__  # pyright: ignore


def python(code: str) -> str:
    """What a fresh interpreter prints, without the run-time checks of this test session."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there(name):
    value = getattr(bilevel, name)
    assert name in dir(bilevel)
    assert value.__doc__
    if isinstance(value, type):
        assert value.__name__ == name


def test_the_stub_is_the_namespace():
    tree = ast.parse((Path(bilevel.__file__).parent / "__init__.pyi").read_text())
    names = [a.asname for node in tree.body for a in getattr(node, "names", [])]
    assert len(names) == len(set(names))
    assert set(names) == set(PUBLIC)
    assert {"solve", "BilevelProblem", "SOBA", "DoubleLoop", "AID", "ITD"} <= set(names)


def test_version():
    assert getattr(bilevel, "__version__") == importlib.metadata.version("bilevel")  # noqa: B009


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no_such_name"):
        bilevel.no_such_name  # noqa: B018  # pyright: ignore


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Adjusted", "TransformedGeometry"),
        ("Averaged", "IterateAveraging"),
        ("ByWeight", "WeightedSampler"),
        ("InnerChoice", "InnerSolution"),
    ],
)
def test_renamed_names_work_and_warn(old, new):
    with pytest.warns(DeprecationWarning, match=f"is called `bilevel.{new}` now"):
        assert getattr(bilevel, old) is getattr(bilevel, new)


def test_import_is_light():
    heavy = ("jax", "equinox", "optax", "sklearn", "pandas", "numpy", "rich", "typer", "pyarrow")
    code = f"import sys, bilevel; print([x for x in {heavy} if x in sys.modules])"
    assert python(code) == "[]"


def test_objectives_that_are_no_functions_are_refused_in_words():
    code = (
        "import bilevel\n"
        "try: bilevel.BilevelProblem(lambda u, w, b: w, 3.0)\n"
        "except TypeError as error: print(error)"
    )
    assert python(code) == "`inner` must be a function (u, w, batch) -> scalar, got float."
