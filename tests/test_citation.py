"""The bibliography: what `bilevel.citation` returns, and that the file is sound BibTeX."""

import re
from importlib import resources
from pathlib import Path

import lineax as lx
import pytest

import bilevel
from bilevel._citation import _KEY, bibliography

ROOT = Path(__file__).parents[1]
TEXT = resources.files("bilevel").joinpath("references.bib").read_text(encoding="utf-8")
FIELD = re.compile(r"  ([a-z]+) = \{(.+)\},")
REQUIRED = {
    "article": {"journal", "year"},
    "inproceedings": {"booktitle", "year"},
    "techreport": {"institution", "year"},
    "book": {"publisher", "year"},
    "misc": {"howpublished"},
}


def fields(entry: str) -> dict[str, str]:
    """The fields of one entry; a line that is no field fails."""
    found = {}
    for line in entry.splitlines()[1:-1]:
        match = FIELD.fullmatch(line)
        assert match, line
        assert match[1] not in found, line
        found[match[1]] = match[2]
    return found


def cited() -> dict[str, set[str]]:
    """The keys that each module, page or script of the project cites."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    package = Path(bilevel.__file__).parent  # which the sources need not be beside
    for folder in (package, *(ROOT / x for x in ("docs", "papers", "examples", "benchmarks"))):
        files += [f for f in folder.rglob("*") if f.suffix in {".py", ".md"}]
    return {str(f): set(_KEY.findall(f.read_text(encoding="utf-8"))) for f in files if f.is_file()}


CITED = cited()
KINDS = (
    bilevel.AbstractAlgorithm,
    bilevel.AbstractHypergradient,
    bilevel.AbstractInnerSolver,
    lx.AbstractLinearSolver,
)
METHODS = [
    name
    for name in sorted(bilevel.__all__)  # pyright: ignore
    if isinstance(value := getattr(bilevel, name), type)
    and issubclass(value, KINDS)
    and not name.startswith("Abstract")
]


def test_the_file_holds_comments_and_entries_and_nothing_else():
    body = re.sub(r"^%.*\n", "", TEXT, flags=re.MULTILINE)
    assert re.sub(r"\n+", "\n", body).strip() == "\n".join(
        e.strip() for e in bibliography().values()
    )
    assert len(re.findall(r"^@", TEXT, re.MULTILINE)) == len(bibliography())


def test_keys_are_unique_and_in_order():
    keys = re.findall(r"^@\w+\{(.*),$", TEXT, re.MULTILINE)
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("key", bibliography())
def test_an_entry_is_sound(key):
    entry = bibliography()[key]
    kind, found = entry[1 : entry.index("{")], fields(entry)
    assert {"author", "title"} | REQUIRED[kind] <= set(found)
    assert all(value.count("{") == value.count("}") for value in found.values())
    assert all("," in name for name in found["author"].split(" and "))
    assert re.fullmatch(r"[a-z]+\d{4}[a-z]?", key)
    if "year" in found:
        assert re.sub(r"\D", "", key) == found["year"]


@pytest.mark.parametrize("path", [f for f, keys in CITED.items() if keys])
def test_every_key_that_is_cited_is_in_the_file(path):
    assert CITED[path] <= set(bibliography())


def test_every_entry_of_the_file_is_cited():
    assert set(bibliography()) - set().union(*CITED.values()) == set()


@pytest.mark.parametrize("name", METHODS)
def test_a_public_method_cites_its_papers_or_says_that_it_is_ours(name):
    doc = getattr(bilevel, name).__doc__
    assert _KEY.search(doc) or "Source: ours" in re.sub(r"\s+", " ", doc)


def test_a_class_an_instance_a_function_and_a_name_are_looked_up():
    entry = bibliography()["hestenes1952"]
    assert bilevel.citation(bilevel.CG) == entry
    assert bilevel.citation(bilevel.CG(max_steps=3)) == entry
    assert bilevel.citation("CG") == entry
    assert bilevel.citation("bilevel.CG") == entry


def test_several_papers_come_once_each_and_in_the_order_of_the_docstring():
    def mine():
        """Sabach and Shtern (2017) [sabach2017][], [beck2009][]; again [sabach2017][]."""

    known = bibliography()
    assert bilevel.citation(mine) == known["sabach2017"] + "\n" + known["beck2009"]


def test_unknown_names_are_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"no public name `SOBAA`\. Did you mean `SOBA`"):
        bilevel.citation("SOBAA")
    with pytest.raises(ValueError, match="no public name `_solve`"):
        bilevel.citation("_solve")
    with pytest.raises(ValueError, match=r"no public name `tasks\._meta`"):
        bilevel.citation("tasks._meta")


def test_a_docstring_without_a_key_is_refused():
    with pytest.raises(ValueError, match="`Solution` cites no paper"):
        bilevel.citation(bilevel.Solution)


def test_a_key_that_the_bibliography_lacks_is_refused():
    def mine():
        """Nobody (1900) [nobody1900][]."""

    with pytest.raises(ValueError, match="cites nobody1900, and the bibliography"):
        bilevel.citation(mine)
