"""Every public algorithm, estimator and solver has its row, its section of a page and its name."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import lineax as lx
import pytest

import bilevel
from methods import METHODS
from solvers import APPROXIMATE, ESTIMATORS, INNER_SOLVERS, LINEAR_SOLVERS, PAGES

DOCS = Path(__file__).parents[1] / "docs"


def public(base: type) -> list[type]:
    """The concrete classes of the library below `base`."""
    for module in pkgutil.walk_packages(bilevel.__path__, "bilevel."):
        if not module.name.startswith(
            "bilevel.torch"
        ):  # whose solvers take tensors, if PyTorch is there
            importlib.import_module(module.name)
    found, waiting = [], [base]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        found += [
            kind
            for kind in below
            if kind.__module__.startswith("bilevel.") and not kind.__name__.startswith(("_", "Abs"))
        ]
    return found


def kinds(rows) -> set[str]:
    return {type(row).__name__ for row in rows}


BASES = {
    bilevel.AbstractAlgorithm: set(METHODS),
    bilevel.AbstractHypergradient: kinds(row.estimator for row in ESTIMATORS.values()),
    bilevel.AbstractInnerSolver: kinds(row.solver for row in INNER_SOLVERS.values()),
    lx.AbstractLinearSolver: kinds(LINEAR_SOLVERS.values())
    | kinds(solver for solver, _ in APPROXIMATE.values()),
}
KINDS = {kind.__name__: (base, kind) for base in BASES for kind in public(base)}


@pytest.mark.parametrize("name", KINDS)
def test_it_has_a_row_a_section_and_a_name(name):
    base, kind = KINDS[name]
    assert name in BASES[base], f"{name} has no row in tests/methods.py or tests/solvers.py"
    assert getattr(bilevel, name) is kind, f"{name} is missing in src/bilevel/__init__.pyi"
    page = METHODS[name].page if name in METHODS else PAGES[name]
    headings = re.findall(r"^#+ (.*)", (DOCS / "methods" / f"{page}.md").read_text(), re.MULTILINE)
    plain = [re.sub(r"[^a-z0-9]", "", heading.lower()) for heading in headings]
    assert any(name.lower() in heading for heading in plain), (
        f"no heading of {page}.md names {name}"
    )


def test_every_method_is_on_the_pages_that_compare_them():
    """What a run says when it fails, and what a step costs; the exceptions have their reasons."""
    reports = DOCS.parent / "benchmarks" / "results"
    failures = json.loads((reports / "failures.json").read_text())["runs"]
    named = {name.split(",")[0] for name in failures}
    assert set(METHODS) - named == {"ImportanceSampling"}  # its u are weights of rows
    times = json.loads((reports / "step_time.json").read_text())["methods"]
    wrappers = {"LookAhead", "IterateAveraging", "ImportanceSampling"}
    assert set(METHODS) - set(times) == wrappers  # of other methods
    costs = (DOCS / "algorithms.md").read_text()
    assert {name for name in METHODS if f"[`{name}`](methods/" not in costs} == set()


def test_all_kinds_are_found():
    assert len(KINDS) >= 18 + 3 + 7 + 5
