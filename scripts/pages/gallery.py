"""The gallery: a picture and a page for each example and for each figure of the papers."""

import ast
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAPERS = {
    "reweighting": "Bilevel optimization for learning weights",
    "implicit_bias": "Implicit bias: warm starts and many inner solutions",
    "tutorial": "Hypergradients: a tutorial",
    "improved_model": "The improved bilevel model",
}


ROW = re.compile(r"^(?:[A-Z]\d+(?: to [A-Z]\d+|, [A-Z]\d+| and [A-Z]\d+)*)(?:: |, )")
CAPITALS = {"soba": "SOBA", "sid": "SID", "bigsam": "BiG-SAM"}


@dataclass(frozen=True)
class Item:
    """A script, what it says of itself, its picture and its report."""

    script: Path
    title: str
    text: str
    picture: Path | None
    report: dict[str, Any] | None

    @property
    def folder(self) -> str:
        """The folder of the script, and of the page."""
        return self.script.parent.name

    @property
    def name(self) -> str:
        """The name of the script, and of the page."""
        return self.script.stem

    @property
    def image(self) -> str:
        """The file name of the picture in the site: an example and a paper may share a name."""
        return f"{self.folder}_{self.name}.png"


def items(root: Path) -> dict[str, list[Item]]:
    """Headings, and the scripts below each."""
    found = {"Examples": [item(root, path) for path in sorted((root / "examples").glob("*.py"))]}
    for paper, title in PAPERS.items():
        scripts = sorted((root / "papers" / paper).glob("[a-z]*.py"))
        found[title] = [item(root, path) for path in scripts]
    return found


def item(root: Path, script: Path) -> Item:
    """Read a script, and its report and picture if they exist."""
    docstring = ast.get_docstring(ast.parse(script.read_text())) or script.stem
    first, _, rest = ROW.sub("", docstring).partition("\n\n")
    first = first[:1].upper() + first[1:]
    words = [CAPITALS.get(word, word) for word in script.stem.split("_")]
    title = " ".join(words)[:1].upper() + " ".join(words)[1:]
    results = root / "papers" / "results" / script.stem
    report = results.with_suffix(".json")
    pictures = [
        results.with_suffix(".png"),
        root / "docs" / "img" / "examples" / f"{script.stem}.png",
        root / "docs" / "img" / f"{script.stem}.png",
    ]
    if script.parent.name == "examples":
        pictures = pictures[1:2]
    return Item(
        script,
        title,
        " ".join(first.split()) + (f"\n\n{rest}" if rest else ""),
        next((p for p in pictures if p.exists()), None),
        json.loads(report.read_text())
        if report.exists() and script.parent.name != "examples"
        else None,
    )


def homes(root: Path) -> dict[str, str]:
    """Where the site has the scripts, reports and pictures that pages link."""
    places = {}
    for group in items(root).values():
        for one in group:
            places[str(one.script.relative_to(root))] = page_of(one)
            if one.picture is not None:
                places[str(one.picture.relative_to(root))] = f"gallery/img/{one.image}"
            if one.report is not None:
                report = f"papers/results/{one.name}.json"
                places[report] = page_of(one)
    return places


def page_of(one: Item) -> str:
    """The page of an item, within docs/."""
    return f"gallery/{one.folder}/{one.name}.md"


def write(root: Path, docs: Path) -> str:
    """Write all pages; return the lines of the navigation."""
    shutil.rmtree(docs / "gallery", ignore_errors=True)
    (docs / "gallery" / "img").mkdir(parents=True)
    index = ["---\nhide: [toc]\n---\n\n# Gallery\n", INTRODUCTION]
    nav = ["  - Gallery:", "      - gallery/index.md"]
    for heading, group in items(root).items():
        index += [f"## {heading}\n", '<div class="gallery">']
        nav.append(f"      - {json.dumps(heading)}:")
        for one in group:
            if one.picture is not None:
                shutil.copy(one.picture, docs / "gallery" / "img" / one.image)
            target = docs / page_of(one)
            target.parent.mkdir(exist_ok=True)
            target.write_text(page(root, one))
            index.append(card(one))
            nav.append(f"          - {json.dumps(one.title)}: {page_of(one)}")
        index.append("</div>\n")
    (docs / "gallery" / "index.md").write_text("\n".join(index))
    return "\n".join(nav)


INTRODUCTION = """\
Every example is one script for one task. Every figure of the papers has a page with the published
claim, our figure, the settings, the verdict and the script.
"""


def card(one: Item) -> str:
    """A picture, the title, the first sentence and the verdict, as one link."""
    picture = f'<img src="img/{one.image}" alt="" loading="lazy">' if one.picture else code(one)
    first = one.text.split("\n\n")[0]
    verdict = f'<span class="verdict">{counted(one.report)}</span>' if one.report else ""
    href = f"{one.folder}/{one.name}/"
    return (
        f'<a href="{href}"><span class="picture">{picture}</span>'
        f'<span class="text"><b>{one.title}</b>{html_escape(first)} {verdict}</span></a>'
    )


def code(one: Item) -> str:
    """The first lines of the script's main function, where there is no picture."""
    text = one.script.read_text()
    start = max(text.find("def main"), 0)
    return f"<code>{html_escape(chr(10).join(text[start:].splitlines()[:14]))}</code>"


def counted(report: dict[str, Any]) -> str:
    """How many claims hold."""
    hold = sum(claim["holds"] for claim in report["claims"])
    return f"{hold} of {len(report['claims'])} claims hold ({report['size']} run)."


def page(root: Path, one: Item) -> str:
    """Picture, claims, settings, script."""
    path = one.script.relative_to(root)
    first, _, rest = one.text.partition("\n\n")
    lines = [f"# {one.title}\n", first + "\n"]
    if one.picture is not None:
        lines.append(f"![What {path} draws](../img/{one.image})\n")
    if one.report is not None:
        lines += [claims(one.report), settings(one.report, path)]
    elif one.folder != "examples":
        lines.append("No report of this script is kept in the repository yet.\n")
    if rest:
        lines.append(f"```text\n{rest}\n```\n")
    code = "\n".join(f"    {line}" if line else "" for line in one.script.read_text().splitlines())
    if one.folder == "examples":
        lines.append(f"## The script\n\nRun it with `python {path}`.\n\n```python\n")
        lines.append(one.script.read_text().rstrip() + "\n```\n")
    else:
        lines.append(f'## The script\n\n??? example "`{path}`"\n\n    ```python\n{code}\n    ```\n')
    return "\n".join(lines)


def claims(report: dict[str, Any]) -> str:
    """A heading for each claim would be too much: one table."""
    lines = [
        f"## Claims\n\n{counted(report)}\n",
        "| claim | published | measured | verdict |\n|---|---|---|---|",
    ]
    notes = []
    for claim in report["claims"]:
        verdict = "holds" if claim["holds"] else "**does not hold**"
        published = "(not in the paper)" if claim["published"] is None else claim["published"]
        cells = [claim["claim"], published, claim["measured"]]
        lines.append(f"| {' | '.join([*map(cell, cells), verdict])} |")
        if claim["note"]:
            notes.append(f"- {cell(claim['claim']).rstrip('.')}: {cell(claim['note'])}")
    return "\n".join([*lines, "", *(["**Notes**", ""] if notes else []), *notes, ""])


def settings(report: dict[str, Any], path: Path) -> str:
    """How the figure was made."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        "## Settings\n",
        "| | |\n|---|---|",
        f"| command | `python {path} --{report['size']}` |",
        f"| CPU time | {report['cpu_seconds']} seconds |",
    ]
    chosen = report.get("settings", {})
    if "seeds" in report:
        chosen = {**chosen, "seeds": report["seeds"]}
    lines += [f"| {cell(key.replace('_', ' '))} | {cell(value)} |" for key, value in chosen.items()]
    return "\n".join([*lines, f"| versions | {versions} |", ""])


def cell(value: Any) -> str:
    """Text that a table of Markdown can hold.

    A list of one, as of one seed, is what it holds. Of a dictionary, names stand before values.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    text = re.sub(r"\[('?)([^\[\],']+)\1\]", r"\2", text)
    text = re.sub(r"\{[\"'][^{}]*\}", _in_words, text)
    for sign in "|*<[]_$":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")


def _in_words(found: re.Match[str]) -> str:
    return "; ".join(f"{name}: {x}" for name, x in ast.literal_eval(found[0]).items())


def html_escape(text: str) -> str:
    """Text that HTML can hold, without the marks of Markdown."""
    return text.replace("`", "").replace("&", "&amp;").replace("<", "&lt;")
