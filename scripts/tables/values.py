"""Single numbers out of any report."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def value(report: str, style: str, *keys: str) -> str:
    """One number of `papers/NAME` or `benchmarks/NAME`, found by its keys, in a format such as `.2f`.

    Keys are names, or positions in a list. The key `*` stands for every element; the answer is then
    the range "least to greatest".
    """
    found = _numbers(report, *keys)
    shown = [format(x, style) for x in (min(found), max(found))]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def largest(report: str, style: str, *keys: str) -> str:
    """The largest of the numbers that the keys of `value` lead to."""
    return format(max(_numbers(report, *keys)), style)


def _numbers(report: str, *keys: str) -> list[Any]:
    folder, name = report.split("/")
    return _at(json.loads((ROOT / folder / "results" / f"{name}.json").read_text()), list(keys))


def _at(tree: Any, keys: list[str]) -> list[Any]:
    """All numbers that the keys lead to."""
    if not keys:
        return [tree]
    first, *rest = keys
    if first == "*":
        branches = tree.values() if isinstance(tree, dict) else tree
        return [x for branch in branches for x in _at(branch, rest)]
    return _at(tree[int(first)] if isinstance(tree, list) else tree[first], rest)
