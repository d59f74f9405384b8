"""For mkdocs: what Markdown would misread in docstrings, and what griffe does not know of equinox."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*\n).+)*", re.MULTILINE)
WIDTH = 80


class Docstrings(griffe.Extension):
    """Code blocks for examples, and how to call a class that is made of fields."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence each paragraph that begins with `>>>`, which is a quotation otherwise."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """`Name(field, other=default)` above a docstring that describes arguments."""
        described = cls.docstring is not None and "\nArgs:\n" in cls.docstring.value
        fields = [a for a in cls.members.values() if isinstance(a, griffe.Attribute)]
        if not described or not fields or "__init__" in cls.members:
            return
        assert cls.docstring is not None
        before, after = [], []
        for field in fields:
            options = _options(field)
            default = options.get("default", options.get("default_factory"))
            argument = field.name if default is None else f"{field.name}={default}"
            (after if options.get("kw_only") == "True" else before).append(argument)
        arguments = [*before, *["*"][: len(after)], *after]
        call = f"{cls.name}({', '.join(arguments)})"
        if len(call) > WIDTH:
            call = "\n".join([f"{cls.name}(", *(f"    {a}," for a in arguments), ")"])
        cls.docstring.value = f"```python\n{call}\n```\n\n{cls.docstring.value}"


def _options(field: griffe.Attribute) -> dict[str, str]:
    """What `eqx.field` was given; a plain value is the default."""
    value = field.value
    if isinstance(value, griffe.ExprCall) and str(value.function).endswith("field"):
        keywords = [a for a in value.arguments if isinstance(a, griffe.ExprKeyword)]
        return {k.name: str(k.value) for k in keywords}
    return {} if value is None else {"default": str(value)}
