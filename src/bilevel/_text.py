"""What others have written, made safe for where it is shown: one function per place.

HTML is escaped by the page's template, after `visible`. Terminals get `visible` text, spreadsheets get
`for_spreadsheet`, files and programs get `to_json`.
"""

import json
import math
import re
import unicodedata
from typing import Any

# Control characters, bidirectional overrides, invisible characters (but for the joiners that scripts
# and emoji need), lone surrogates, and code points that are no characters.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff0-\uffff\ud800-\udfff\U000e0000-\U000e0fff]|[\ufdd0-\ufdef]"
    "|["
    + "".join(f"{chr(p * 0x10000 + 0xFFFE)}{chr(p * 0x10000 + 0xFFFF)}" for p in range(1, 17))
    + "]"
)
LONGEST = 200  # characters of one thing that a message names
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the same in full width


def visible(text: str, keep: str = "") -> str:
    r"""The same with what cannot be seen, or changes how the rest is seen, made visible.

    Control characters become their pictures, and others their escapes; those in `keep` stay.

    >>> visible("a\x00b\x1b[31m \u202eevil \ufffe é")
    'a␀b␛[31m \\u202eevil \\ufffe é'
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else _picture(found[0]), text)


def without_unseen(text: str) -> str:
    r"""The same without what cannot be seen; tabs and line breaks stay, and so do joiners.

    >>> without_unseen("vis\u200bible\ufeff\n")
    'visible\n'
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in "\t\n\r" else "", text)


def seen(text: str) -> str:
    """What of a text can be seen: composed, without invisible characters and blanks at its ends."""
    if text.isascii() and text.isprintable():
        return text.strip()
    shown = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    return unicodedata.normalize("NFC", shown).strip()


def heading(name: str) -> str:
    """With a capital, unless it is a name with underscores.

    >>> heading("accuracy"), heading("roc_auc"), heading("R2")
    ('Accuracy', 'roc_auc', 'R2')
    """
    return name if "_" in name else name[:1].upper() + name[1:]


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def for_spreadsheet(value: Any) -> Any:
    r"""Text that a spreadsheet would run as a formula gets an apostrophe before it.

    What comes before the sign of a formula and cannot be seen does not hide it.

    >>> for_spreadsheet("=1+1"), for_spreadsheet("fine"), for_spreadsheet(-2.0)
    ("'=1+1", 'fine', -2.0)
    >>> for_spreadsheet("\u200b=1")[0]
    "'"
    """
    if not isinstance(value, str):
        return value
    formula = value.startswith(("\t", "\r", "\n"))
    for character in value:
        if unicodedata.category(character)[0] in "CZ" or character.isspace():
            continue
        formula |= character in _FORMULA
        break
    return f"'{value}" if formula else value


def visible_everywhere(value: Any) -> Any:
    """`visible`, of all texts in lists and dictionaries."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible_everywhere(key): visible_everywhere(x) for key, x in value.items()}
    return [visible_everywhere(x) for x in value] if isinstance(value, (list, tuple)) else value


def to_json(value: Any, *, indent: int | None = 2, ascii_only: bool = False) -> str:
    """JSON that any program reads: a number that is not finite is null, and nothing is invisible.

    Raises:
        TypeError: something in it is no value of JSON.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    return re.sub(_UNSEEN, lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    if character == "\n":  # of the indentation: those in texts are escaped
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_finite_key(key): _finite(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(x) for x in value]
    return value


def _finite_key(key: Any) -> Any:
    return str(key) if isinstance(key, float) and not math.isfinite(key) else key


def named(items: Any, at_most: int = 5) -> str:
    """The first few of `items`, for a message: `'a', 'b' and 7 more`. Long ones are cut short."""
    words = [repr(x.item() if hasattr(x, "item") else x) for x in items[:at_most]]
    shown = ", ".join(x if len(x) <= LONGEST else f"{x[:LONGEST]}..." for x in words)
    rest = len(items) - at_most
    return f"{shown} and {rest} more" if rest > 0 else shown
