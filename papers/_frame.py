"""What every script of `papers/` shares: its options, its report, and the claims that it judges.

A script has three functions and one last line:

    measure(full) -> dict            runs everything; `"settings"` and `"seeds"` among the keys,
                                     under `"figure"` what only the picture needs, and under
                                     `"not run"` what the paper has and this size leaves out
    draw(measured) -> Figure         the picture
    claims(measured) -> [Claim]      what the paper says, what was measured, whether it holds

    if __name__ == "__main__":
        run(__file__, measure, draw, claims)

The report `OUT/<script>.json` is all of `measured` but `"figure"`, with the size of the run, the
versions and the claims; the picture is `OUT/<script>.png`. The reports in `papers/results/` are what
`docs/papers.md` and the gallery are made of.
"""

import argparse
import importlib.metadata
import io
import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measured = dict[str, Any]
DIGITS = 6  # significant digits of a number in a report
LARGE = 150_000  # bytes of a picture


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, its published number and ours.

    Attributes:
        row: the row of `papers/README.md` that it belongs to, such as `"R3"`.
        claim: the statement, in a full sentence.
        published: the published number or words.
        measured: what was measured, with its unit and spread.
        holds: whether it passes the threshold that stands in the script.
        note: what else a reader must know, in full sentences.
    """

    row: str
    claim: str
    published: Any
    measured: Any
    holds: bool
    note: str = ""


def run(
    script: str,
    measure: Callable[[bool], Measured],
    draw: Callable[[Measured], "Figure"],
    claims: Callable[[Measured], list[Claim]],
) -> None:
    """Parse `--quick`, `--full` and `--out`, then measure, draw, judge and write."""
    import matplotlib as mpl

    mpl.use("Agg")
    name = Path(script).stem
    parser = argparse.ArgumentParser(prog=name)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about a minute on 2 cores (default)")
    size.add_argument("--full", action="store_true", help="as published")
    parser.add_argument("--out", type=Path, default=Path("out/papers"), help="folder to write to")
    options = parser.parse_args()
    started = time.process_time()
    measured = measure(options.full)
    judged = claims(measured)
    seconds = time.process_time() - started
    options.out.mkdir(parents=True, exist_ok=True)
    save(draw(measured), options.out / f"{name}.png")
    written = report(script, measured, judged, full=options.full, cpu_seconds=seconds)
    path = options.out / f"{name}.json"
    # Lists of numbers on one line each.
    text = re.sub(
        r'\[\n[^]["{}]*\]',  # no string has a newline
        lambda m: m[0].replace("\n", "").replace(" ", "").replace(",", ", "),
        json.dumps(written, indent=1),
    )
    path.write_text(text + "\n")
    for claim in judged:
        verdict = "holds" if claim.holds else "DOES NOT HOLD"
        print(
            f"{claim.row}: {claim.claim}\n    published {claim.published}, measured "
            f"{claim.measured}: {verdict}{'. ' + claim.note if claim.note else ''}"
        )
    print(f"written: {path}, {options.out / (name + '.png')}")


def left_out(row: str, claim: str, published: Any, why: str) -> dict[str, Any]:
    """A statement of the paper that a run leaves out: an entry of `measured["not run"]`."""
    return {"row": row, "claim": claim, "published": published, "why": why}


def panels(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple["Figure", Any]:
    """A figure of `size` inches, and its axes without the lines above and at the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: "Figure", path: Path) -> None:
    """Write a picture of at most 1300 pixels across; with 256 colours if it is large."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=min(120, 1300 / figure.get_figwidth()), format="png")
    picture = Image.open(drawn).convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > LARGE:
        few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


def slope(x: Any, y: Any) -> float:
    """The exponent a of y = c x^a, by least squares in the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def span(values: Any, style: str = ".2f") -> str:
    """The least and the greatest of some numbers, in words."""
    low, high = (format(x, style) for x in (np.min(values), np.max(values)))
    return low if low == high else f"{low} to {high}"


def report(
    script: str, measured: Measured, judged: list[Claim], *, full: bool, cpu_seconds: float
) -> dict[str, Any]:
    """The report as plain data, which JSON can hold."""
    packages = ("bilevel", "jax", "equinox", "optax", "lineax", "optimistix", "numpy")
    return {
        "script": Path(script).stem,
        "paper": Path(script).resolve().parent.name,
        "size": "full" if full else "quick",
        "cpu_seconds": round(cpu_seconds, 1),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        **{key: plain(value) for key, value in measured.items() if key != "figure"},
        "claims": [plain(asdict(claim)) for claim in judged],
    }


def plain(value: Any) -> Any:
    """The same as dicts, lists, strings and numbers of `DIGITS` significant digits; NaN is None."""
    if isinstance(value, dict):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(f"{float(value):.{DIGITS}g}")
    if value is None or isinstance(value, str):
        return value
    return plain(np.asarray(value).tolist())
