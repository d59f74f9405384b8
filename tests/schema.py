"""The JSON files that commands write, beside the schema that is published for them."""

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from bilevel.reweighting._report.page import read_schema


def faults(written: Path | dict[str, Any]) -> list[str]:
    """Where a file is not as the schema has it, or has a key that the schema does not know."""
    document = json.loads(written.read_text("utf-8")) if isinstance(written, Path) else written
    return [f"{error.json_path}: {error.message}" for error in _validator().iter_errors(document)]


@functools.cache
def _validator() -> Draft202012Validator:
    schema = read_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(_closed(schema))


def _closed(part: Any) -> Any:
    """The same without room for keys that have no name in it: a reader need not mind new ones."""
    if isinstance(part, list):
        return [_closed(x) for x in part]
    if not isinstance(part, dict):
        return part
    closed = {key: _closed(value) for key, value in part.items()}
    if part.get("type") == "object" and "properties" in part and "allOf" not in part:
        closed["additionalProperties"] = False
    return closed
