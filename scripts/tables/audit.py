"""The tables of the page on audits, from the names in the code."""

from bilevel.reweighting._audit.finding import CHECKS
from bilevel.reweighting._audit.fixes import SAFE


def audit_checks() -> str:
    """Every check of `bilevel audit`, and what is in order where it finds nothing."""
    return _table("check", "what is in order", CHECKS)


def safe_fixes() -> str:
    """Every kind of change that `bilevel fix` makes without a person."""
    said = {kind: f"{text[0].upper()}{text[1:]}." for kind, text in SAFE.items()}
    return _table("kind", "change", said)


def _table(first: str, second: str, lines: dict[str, str]) -> str:
    head = [f"| {first} | {second} |", "|---|---|"]
    return "\n".join(head + [f"| `{name}` | {text} |" for name, text in lines.items()])
