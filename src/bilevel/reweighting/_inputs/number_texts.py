"""Columns of text that look like numbers: as texts they have no order, and few people mean that."""

import re
from typing import Any

import pandas as pd

from .checks import named
from .csv import GAPS

LOOKED_AT = 1000  # distinct texts
FEWEST = 10  # distinct texts from which a column is a quantity
CODES = 50  # whole numbers of at most as many values may be codes, on purpose
SHAPES = 3  # ways of writing that one quantity has, such as `1.2k` and `300`
EXCEPT = 0.05  # the share of texts that may be something else
LOOK_LIKE = "the column .* holds texts that look like numbers"  # how `describe` begins
FATE = "is read as text: if it is a quantity, write its numbers alone"

_GROUPED = r"[0-9]{1,3}(?:[,.' \u00a0\u202f\u2009\u2019][0-9]{3})+"
_NUMBER = re.compile(rf"(?:{_GROUPED}(?:[.,][0-9]+)?|[0-9]+(?:[.,][0-9]+)?)(?:[eE][+-]?[0-9]+)?")
_SIGNS = r"[^\w\s]{0,3}"
# Signs, a currency, or a short word and a blank; the number; a unit; and what it is out of (`/100`).
_TEXT = re.compile(
    rf"(?P<before>{_SIGNS}(?:[^\W\d_]{{0,4}}[$€£¥₹])?\s?{_SIGNS}|[^\W\d_]{{1,4}}\.?\s)"
    rf"(?P<number>{_NUMBER.pattern})(?P<after>\D{{0,12}})(?P<of>/\s?[0-9]+)?"
)


def looks_like_numbers(column: Any) -> str | None:
    """A few of the texts, quoted, if nearly all are a number and what it is of, such as `12.5 km/h`.

    Those that are something else come first: they may be why the others are no numbers.
    Names that hold a number (`A12`, `lot 7`, `00123`) are none, nor are whole numbers of few values.
    """
    texts = pd.Series(column).dropna()
    distinct = [x.strip() for x in texts.unique().tolist()[:LOOKED_AT] if isinstance(x, str)]
    distinct = [x for x in distinct if x not in GAPS]
    shapes: dict[tuple[str, ...], list[re.Match[str]]] = {}
    for text in distinct:
        if found := _TEXT.fullmatch(text):
            shape = tuple(found[part] or "" for part in ("before", "after", "of"))
            shapes.setdefault(shape, []).append(found)
    usual = sorted(shapes.values(), key=len, reverse=True)[:SHAPES]
    fits = [found for group in usual for found in group]
    numbers = {found["number"] for found in fits}
    if len(fits) < (1 - EXCEPT) * len(distinct) or len(numbers) < FEWEST:
        return None
    if any(re.match("0[0-9]", number) for number in numbers):
        return None
    if not any(re.search("[.,]", number) for number in numbers):
        has_word = any(any(c.isalpha() for c in found["before"]) for found in fits)
        if has_word or (len(distinct) <= CODES and any(found[0].isdecimal() for found in fits)):
            return None
    known = {found[0] for found in fits}
    odd = [text for text in distinct if text not in known]
    return named([*odd[:3], fits[0][0]])
