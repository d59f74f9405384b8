"""The source of a method in its page: `<!-- code: SOBA.step -->` becomes the code of the step.

The marks around measured numbers go: a comment that begins a line would end the paragraph.
"""

import re
import textwrap
from pathlib import Path

import griffe

MARKED = re.compile(r"^<!-- code: (?P<path>[\w.]+) -->$", re.MULTILINE)
MARK = r"<!-- /?data\b.*?-->"
DATA = re.compile(f"(?<!`){MARK}|{MARK}(?!`)")  # not where a page quotes a mark


def filled(root: Path, text: str) -> str:
    """The text of a page with the code in place of each mark, and without the marks of data."""
    text = DATA.sub("", text)
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
