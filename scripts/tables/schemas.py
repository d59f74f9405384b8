"""The keys of the JSON files that the commands write, from the schema that is in the package."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[2] / "src/bilevel/reweighting/_report/schema.json"
WORDS = {
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "boolean": "true or false",
}


def json_files() -> str:
    """Every file, with its `format` and the heading below which its keys stand."""
    lines = ["| file | `format` |", "|---|---|"]
    for part in _parts(files=True).values():
        kind = part["properties"]["format"]["const"]
        lines.append(f"| [{part['title']}](#{_anchor(kind)}) | `{kind}` |")
    return "\n".join(lines)


def json_keys() -> str:
    """The keys of every file, and of what several of them hold."""
    text = []
    for part in _parts(files=True).values():
        heading = part["properties"]["format"]["const"]
        text.append(f"## {heading}\n\nThe file: {part['title']}.\n\n{_table(part)}")
    text.append("## In several places")
    text += [f"### {name}\n\n{_table(part)}" for name, part in _parts(files=False).items()]
    return "\n\n".join(text)


def _parts(files: bool) -> dict[str, dict[str, Any]]:
    schema = json.loads(PATH.read_text(encoding="utf-8"))
    return {
        name.replace("_", " "): part
        for name, part in schema["$defs"].items()
        if ("title" in part) == files
    }


def _table(part: dict[str, Any]) -> str:
    if "properties" not in part:
        return f"{_type(part)}: {part['description']}."
    head = ["| key | is | meaning |", "|---|---|---|"]
    return "\n".join(head + [f"| `{key}` | {kind} | {said} |" for key, kind, said in _rows(part)])


def _rows(part: dict[str, Any], before: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, type, meaning), those of a nested object after it."""
    for key, value in part["properties"].items():
        path = f"{before}{key}"
        absent = "" if key in part["required"] else ", or not there"
        yield path, _type(value) + absent, value.get("description", "")
        inside, mark = value, ""
        while True:
            inside = next(x for x in inside.get("anyOf", [inside]) if x.get("type") != "null")
            if "items" in inside:
                inside, mark = inside["items"], f"{mark}[]"
            elif isinstance(inside.get("additionalProperties"), dict):
                inside, mark = inside["additionalProperties"], f"{mark}.*"
            else:
                break
        if "properties" in inside:
            yield from _rows(inside, f"{path}{mark}.")


def _type(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_type(x) for x in value["anyOf"])
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2].replace("_", " ")
        return f"[{name}](#{_anchor(name)})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join("null" if x is None else f"`{x}`" for x in value["enum"])
    kinds = value.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if len(kinds) == len(WORDS):  # of four, null among them
        return "any value"
    if kinds == ["array"]:
        inside = _type(value["items"])
        return f"list: {inside}" if inside else "list"
    if kinds == ["object"]:
        inside = _type(value["additionalProperties"]) if "additionalProperties" in value else ""
        return f"object: {inside}" if inside else "object"
    return " or ".join(WORDS.get(kind, kind) for kind in kinds)


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")
