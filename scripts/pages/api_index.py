"""The index of the API: every documented name with the first sentence of its docstring."""

import re
from pathlib import Path

import griffe


def page(root: Path, folder: Path) -> str:
    """One table for each page of docs/api, in the order of mkdocs.yml."""
    module = griffe.load("bilevel", search_paths=[root / "src"])
    order = re.findall(r"api/(\w+)\.md$", (root / "mkdocs.yml").read_text(), re.MULTILINE)
    lines = [
        "---\nhide: [toc]\n---\n\n# API\n",
        "A name without a module is in the namespace `bilevel`. `import bilevel` costs nothing: a "
        "name is imported when it is first used.\n",
    ]
    for name in order:
        if name == "index":
            continue
        text = (folder / f"{name}.md").read_text()
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        assert title is not None
        lines.append(f"## [{title[1]}]({name}.md)\n\n| name | what it is |\n|---|---|")
        for path in re.findall(r"^::: (bilevel[\w.]*)$", text, re.MULTILINE):
            lines += rows(module, path)
        lines.append("")
    return "\n".join(lines)


def rows(module: griffe.Module, path: str) -> list[str]:
    """One line for a class or a function, or one for each public name of a module."""
    found = module[path.removeprefix("bilevel.")] if path != "bilevel" else module
    if found.is_module and path != "bilevel.parts":
        names = found.exports or [n for n in found.members if not n.startswith("_")]
        inside = [str(n) for n in names if found[str(n)].is_class or found[str(n)].is_function]
        return [row(found[n], f"{path}.{n}") for n in sorted(inside, key=str.lower)]
    return [row(found, path)]


def row(found: griffe.Object | griffe.Alias, path: str) -> str:
    """`| [name][path] | first sentence |`."""
    text = found.docstring.value if found.docstring else ""
    first = re.sub(r"\s+", " ", text.split("\n\n")[0]).replace("|", "\\|")
    shown = path.removeprefix("bilevel.")
    return f"| [`{shown}`][{path}] | {first} |"
