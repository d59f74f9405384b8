"""What docs/migrating.md and docs/comparison.md say: code, its numbers, and names that exist."""

import contextlib
import io
import re
import warnings
from pathlib import Path

import jax
import lineax as lx
import optax
import optimistix as optx
import pytest

import bilevel

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


@pytest.mark.parametrize("page", ["migrating.md", "comparison.md"])
def test_names_exist(page):
    roots = {"bilevel": bilevel, "optax": optax, "optx": optx, "lx": lx, "jax": jax}
    dotted = re.compile(rf"\b({'|'.join(roots)})((?:\.[A-Za-z_]\w*)+)")
    used = set()
    for code in re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()):
        used |= set(dotted.findall(code))
    assert used
    for root, path in used:
        value = roots[root]
        for name in path.strip(".").split("."):
            assert hasattr(value, name), f"{root}{path}"
            value = getattr(value, name)
