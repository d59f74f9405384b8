"""The bibliography: one entry for each paper of src/bilevel/references.bib, with its key as anchor."""

import html
import re
from pathlib import Path

ENTRY = re.compile(
    r"^@(?P<kind>\w+)\{(?P<key>[^,]+),\n(?P<fields>.*?)^\}", re.MULTILINE | re.DOTALL
)
FIELD = re.compile(r"^\s*(?P<name>\w+)\s*=\s*[{\"](?P<value>.*?)[}\"],?\s*$", re.MULTILINE)


def page(root: Path) -> str:
    """The page, in Markdown."""
    source = root / "src" / "bilevel" / "references.bib"
    lines = [
        "---\nhide: [toc]\n---\n\n# Bibliography\n",
        "The papers that the pages and the docstrings cite. `bilevel.citation(method)` returns the "
        "BibTeX entry of the paper of a method.\n",
    ]
    for entry in ENTRY.finditer(source.read_text() if source.exists() else ""):
        fields = {f["name"].lower(): plain(f["value"]) for f in FIELD.finditer(entry["fields"])}
        bibtex = html.escape(entry[0])
        lines.append(
            f"[](){{#{entry['key']}}}\n**[{entry['key']}]** {reference(fields)}\n\n"
            f'<details class="bibtex"><summary>BibTeX</summary><pre>{bibtex}</pre></details>\n'
        )
    return "\n".join(lines)


def reference(fields: dict[str, str]) -> str:
    """Authors (year). Title. Where it appeared. A link."""
    where = next(
        (fields[k] for k in ("journal", "booktitle", "institution", "publisher", "howpublished")
         if k in fields),
        "",
    )  # fmt: skip
    if where.startswith("http"):
        where = f"<{where}>"
    elif where:
        where = f"*{where}*"
    if "volume" in fields:
        where += f" {fields['volume']}"
        where += f"({dashed(fields['number'])})" if "number" in fields else ""
    if "pages" in fields:
        where += f", {dashed(fields['pages'])}"
    parts = [f"{authors(fields.get('author', ''))} ({fields.get('year', 'no year')})."]
    parts.append(f"{fields['title'].rstrip('.')}.")
    parts += [f"{where}."] if where else []
    if "eprint" in fields:
        parts.append(f"[arXiv:{fields['eprint']}](https://arxiv.org/abs/{fields['eprint']}).")
    if "doi" in fields:
        parts.append(f"[doi:{fields['doi']}](https://doi.org/{fields['doi']}).")
    if "url" in fields:
        parts.append(f"<{fields['url']}>.")
    if "note" in fields:
        parts.append(f"{fields['note'].rstrip('.')}.")
    return " ".join(parts)


def authors(field: str) -> str:
    """`Last, First and Last, First` as `First Last, First Last and First Last`."""
    names = [" ".join(reversed(name.split(", ", 1))) for name in re.split(r"\s+and\s+", field)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def dashed(value: str) -> str:
    """With a dash in place of two hyphens."""
    return value.replace("--", "\N{EN DASH}")


def plain(value: str) -> str:
    """Without braces and line breaks."""
    return re.sub(r"\s+", " ", re.sub(r"[{}]", "", value))
