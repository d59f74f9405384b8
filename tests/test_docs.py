"""What the docs say: code that runs, its numbers, names and options that exist."""

import contextlib
import importlib
import io
import re
import shlex
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import lineax as lx
import optax
import optimistix as optx
import pytest
import typer.main

import bilevel
from bilevel import reweighting
from bilevel.cli import app
from bilevel.cli._app import out as console
from runs import bilevel as command

DOCS = Path(__file__).parents[1] / "docs"
HEADING_OR_BLOCK = re.compile(
    r"^#+ (?P<heading>[^\n]+)$|<!-- tested: (?P<side>\w+) -->\n```python\n(?P<code>.*?)```",
    re.MULTILINE | re.DOTALL,
)
PROMISE = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)
TEXT = (DOCS / "migrating.md").read_text()


def blocks(side: str) -> list[tuple[str, str]]:
    """(heading above it, code) of each block of one side, in order."""
    heading, found = "", []
    for match in HEADING_OR_BLOCK.finditer(TEXT):
        heading = match["heading"] or heading
        if match["side"] == side:
            found.append((heading, match["code"]))
    return found


def run(code: str, names: dict) -> list[tuple[str, str]]:
    """(printed, promised) of each line `print(...)  # promised` of a block."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs/migrating.md", "exec"), names)
    return list(zip(out.getvalue().splitlines(), PROMISE.findall(code), strict=True))


def assert_as_promised(code: str, names: dict) -> None:
    """Words are equal, numbers in all digits shown."""
    lines = run(code, names)
    assert lines
    for printed, promised in lines:
        if promised in ("True", "False"):
            assert printed == promised
        else:
            last_digit = 10.0 ** -len(promised.partition(".")[2])
            assert float(printed) == pytest.approx(float(promised), rel=0, abs=0.51 * last_digit)


SETUP, *NOW = blocks("now")
SLOW = ("Hyperparameters by gradients",)
CASES = [
    pytest.param(
        code, id=re.sub(r"\W+", "-", heading), marks=[pytest.mark.slow] * (heading in SLOW)
    )
    for heading, code in NOW
]


@pytest.fixture(scope="module")
def names() -> dict:
    """What the first two blocks define; later blocks add to it, as on the page."""
    defined: dict = {}
    for _, code in [*blocks("both"), SETUP]:
        exec(compile(code, "docs/migrating.md", "exec"), defined)
    return defined


@pytest.mark.parametrize("code", CASES)
def test_migrating(code, names):
    assert_as_promised(code, names)


def test_both_sides_promise_the_same():
    """Under each heading the numbers of the jaxopt block are those of the first block of ours."""
    promised = {}
    for side in ("jaxopt", "now"):
        for heading, code in blocks(side):
            promised.setdefault((heading, side), []).append(PROMISE.findall(code))
    headings = {heading for heading, side in promised if side == "jaxopt"}
    assert len(headings) >= 9
    for heading in headings:
        theirs, ours = promised[heading, "jaxopt"], promised[heading, "now"]
        assert theirs == ours[: len(theirs)], heading


@pytest.mark.slow
def test_jaxopt_side():
    """`pip install jaxopt` (0.8.5) to run the other half of the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pytest.importorskip("jaxopt")
        defined: dict = {}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for _, code in blocks("both"):
                run(code, defined)
            for _, code in blocks("jaxopt"):
                assert_as_promised(code, defined)


@pytest.mark.parametrize("page", ["migrating.md", "comparison.md", "start/noisy_labels.md"])
def test_names_exist(page):
    roots = {"bilevel": bilevel, "optax": optax, "optx": optx, "lx": lx, "jax": jax}
    dotted = re.compile(rf"\b({'|'.join(roots)})((?:\.[A-Za-z_]\w*)+)")
    used = set()
    for code in re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()):
        used |= set(dotted.findall(code))
    assert used
    for root, path in used - {("bilevel", ".torch")}:
        value = roots[root]
        for name in path.strip(".").split("."):
            assert hasattr(value, name), f"{root}{path}"
            value = getattr(value, name)


# -- the five-minute starts: blocks run in order, as a reader would ------------------------------

BLOCK = re.compile(
    r"^```(?P<kind>python|console|text)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
PRINT = re.compile(r"^print\(.*?\)(?:  # (?P<promise>.+))?$", re.MULTILINE)
COMMAND = re.compile(r"^\$ bilevel ((?:.*\\\n)*.*)$", re.MULTILINE)


OUTPUT = re.compile(r"^\$ bilevel (?:.*\\\n)*.*\n((?:[^$].*\n|\n)*)", re.MULTILINE)
LEFT_OUT = re.compile(r"(?:^|\s)\.\.\.(?=\s|$)")
TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d]+|[^\w\s\u2500-\u257f]")  # no frames of tables


def are_alike(said: list[str], due: list[str]) -> bool:
    """Words are equal; numbers to 5 %, or two of the last digit shown: few rows are coarse."""

    def alike(one: str, other: str) -> bool:
        if one == other or not (one[0].isdigit() and other[0].isdigit()):
            return one == other
        digit = 10.0 ** -len(other.partition(".")[2])
        return float(one) == pytest.approx(float(other), rel=0.05, abs=2.01 * digit)

    return len(said) == len(due) and all(map(alike, said, due))


def assert_alike(printed: str, promised: str) -> None:
    assert are_alike(TOKEN.findall(printed), TOKEN.findall(promised)), f"{promised}\n--- {printed}"


def assert_shown(printed: str, shown: str) -> None:
    """What a page shows of an output, in parts between "...", is there, one after the other."""
    said, at = TOKEN.findall(printed), 0
    for part in LEFT_OUT.split(shown):
        due = TOKEN.findall(part)
        places = range(at, len(said) - len(due) + 1)
        found = next((k for k in places if are_alike(said[k : k + len(due)], due)), None)
        assert found is not None, f"{part}\n--- is not in ---\n{printed}"
        at = found + len(due)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "package"), [("jax", "equinox"), ("pytorch", "torch"), ("xgboost", "xgboost")]
)
def test_pages_for_other_frameworks(page, package, tmp_path, monkeypatch):
    """The blocks of Python run, and end in a report; the commands need what the reader has."""
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, code in BLOCK.findall((DOCS / "start" / f"{page}.md").read_text()):
        if kind == "python":
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                exec(compile(code, page, "exec"), names)
    flagged, wrong = ~names["clf"].keep_mask_, names["wrong"]
    assert wrong[flagged].mean() > 0.7
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "start/noisy_labels",
        "start/shift",
        "start/sources",
        "start/annotators",
        "tutorials/equilibrium",
        "tutorials/evidence",
        "tutorials/hyperparameters",
        "tutorials/meta_learning",
        "tutorials/mixtures",
        "torch_modules",
    ],
)
def test_pages_to_follow(page, tmp_path, monkeypatch):
    """Blocks run in order; what they print, and what the commands say, is what the page shows."""
    if page == "torch_modules":
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 100)
    said: list[str] = []
    names = {"print": lambda *values: said.append(" ".join(map(str, values)))}
    unpromised, kept = "", 0
    for kind, code in BLOCK.findall((DOCS / f"{page}.md").read_text()):
        if kind == "python":
            said.clear()
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                exec(compile(code, page, "exec"), names)
            lines = list(zip(said, PRINT.findall(code), strict=True))
            unpromised = "\n".join(printed for printed, promised in lines if not promised)
            for printed, promised in lines:
                if promised:
                    assert_alike(printed, promised)
                    kept += 1
            continue
        if kind == "text":
            assert_alike(unpromised, code)
            kept += 1
            continue
        shown = OUTPUT.findall(code)
        for line, text in zip(COMMAND.findall(code), shown, strict=True):
            done = command(*shlex.split(line.replace("\\\n", " ")))
            assert done.code == 0, line
            assert_shown(done.stdout.replace(f"{tmp_path}/", ""), text)
            kept += bool(text.strip())
    assert kept >= 3


@pytest.mark.slow
def test_the_library_example_of_the_readme_converges():
    blocks = BLOCK.findall((DOCS.parent / "README.md").read_text())
    code = next(code for _, code in blocks if "bilevel.solve" in code)
    said: list[str] = []
    names: dict[str, Any] = {"print": lambda *values: said.append(" ".join(map(str, values)))}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "README", "exec"), names)
    assert names["solution"].stats["converged"]
    assert "every residual met its tolerance" in said[0]
    assert "agrees" in said[1]


PAGES = [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]


def test_commands_have_the_options_that_pages_name():
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    found = 0
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for name, rest in re.findall(r"(?<![\w-])bilevel ([a-z]+)\b([^`\n]*)", text):
            for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", rest):
                assert name in commands, f"{page.name}: bilevel {name}"
                parameters = commands[name].params
                known = {o for p in parameters for o in (*p.opts, *p.secondary_opts)}
                assert option in known, f"{page.name}: bilevel {name} {option}"
                found += 1
    assert found > 20


def test_the_api_pages_have_every_public_name():
    pages = sorted([*(DOCS / "api").glob("*.md"), *(DOCS / "methods").glob("*.md")])
    text = "\n".join(page.read_text() for page in pages)
    listed = re.findall(r"^::: (bilevel[\w.]*)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    names = {path.rpartition(".")[2] for path in listed}
    public = set(vars(bilevel)["__all__"]) | set(reweighting.__all__)
    assert public - names == {"estimators", "penalties", "reweighting"}
    for path in listed:
        if path.startswith("bilevel.torch.") and find_spec("torch") is None:
            continue
        value = importlib.import_module("bilevel.torch") if ".torch." in path else bilevel
        for part in path.removeprefix("bilevel.").removeprefix("torch.").split("."):
            value = getattr(value, part)


def test_every_key_that_a_page_cites_is_in_the_bibliography():
    references = Path(bilevel.__file__).with_name("references.bib").read_text()
    known = set(re.findall(r"^@\w+\{(\w+),", references, re.MULTILINE))
    cited = {
        key for page in PAGES for key in re.findall(r"\[(\w+\d{4}\w?)\]\[\]", page.read_text())
    }
    assert len(cited) > 20
    assert not cited - known
