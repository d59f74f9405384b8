"""The source of a method in its page: `<!-- code: SOBA.step -->` becomes the code of the step."""

import re
import textwrap
from pathlib import Path

import griffe

MARKED = re.compile(r"^<!-- code: (?P<path>[\w.]+) -->$", re.MULTILINE)


def filled(root: Path, text: str) -> str:
    """The text of a page with the code in place of each mark."""
    if not MARKED.search(text):
        return text
    module = griffe.load("bilevel", search_paths=[root / "src"])

    def code(match: re.Match[str]) -> str:
        found = module[match["path"]]
        source = textwrap.dedent(found.source).strip()
        source = re.sub(r'\n    """.*?"""', "", source, count=1, flags=re.DOTALL)
        where = found.filepath.relative_to(root)
        return f'```python title="{where}"\n{source}\n```'

    return MARKED.sub(code, text)
