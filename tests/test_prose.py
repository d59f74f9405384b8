"""`scripts/prose`: what it finds, and what it leaves alone."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "prose"
loader = importlib.machinery.SourceFileLoader("prose", str(SCRIPT))
spec = importlib.util.spec_from_loader("prose", loader)
assert spec
prose = importlib.util.module_from_spec(spec)
loader.exec_module(prose)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("an accuracy of ." + "974", ["." + "974"]),
        ("from -." + "5 to +." + "25.", ["." + "5", "." + "25"]),
        ("one weight " + "a row", ["one weight a row"]),
        ("it takes 20 products " + "a solve", ["20 products a solve"]),
        ("# one loss\n# " + "a row", ["one loss a row"]),
        ("Cost " + "a step: one gradient", ["Cost a step"]),
        ("one " + "a feature", ["one a feature"]),
    ],
)
def test_these_are_found(text, words):
    assert [found for _, found in sorted(prose.found(text))] == words


@pytest.mark.parametrize(
    "text",
    [
        "0.974, 1.5e-3, version 0.1, x[..., 0], f'{value:.3f} {share:.1%}', `labels.csv`",
        "one weight per row; a row has one weight; 20 products per solve",
        "## Cost\n\nA step makes one product. A row is a row.",
        "the labels of a row, the gradient at a point, a step of a run",
    ],
)
def test_these_are_left_alone(text):
    assert list(prose.found(text)) == []
