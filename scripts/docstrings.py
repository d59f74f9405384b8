"""For the API pages: what Markdown would misread in docstrings, and signatures of equinox classes."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*\n).+)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Code blocks for examples, and the signature of a class that is made of fields."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence each paragraph that begins with `>>>`, which is a quotation otherwise."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Give a class whose docstring describes arguments the `__init__` that equinox makes."""
        described = cls.docstring is not None and "\nArgs:\n" in cls.docstring.value
        fields = [a for a in cls.members.values() if isinstance(a, griffe.Attribute)]
        if not described or not fields or "__init__" in cls.members:
            return
        before, after = [], []
        for field in fields:
            options = _options(field)
            keyword = options.get("kw_only") == "True"
            (after if keyword else before).append(
                griffe.Parameter(
                    field.name,
                    annotation=field.annotation,
                    kind=(
                        griffe.ParameterKind.keyword_only
                        if keyword
                        else griffe.ParameterKind.positional_or_keyword
                    ),
                    default=options.get("default", options.get("default_factory")),
                )
            )
        init = griffe.Function("__init__", parameters=griffe.Parameters(*before, *after))
        cls.set_member("__init__", init)
        for field in fields:
            field.labels.add("field")


def _options(field: griffe.Attribute) -> dict[str, str]:
    """What `eqx.field` was given; a plain value is the default."""
    value = field.value
    if isinstance(value, griffe.ExprCall) and str(value.function).endswith("field"):
        keywords = [a for a in value.arguments if isinstance(a, griffe.ExprKeyword)]
        return {k.name: str(k.value) for k in keywords}
    return {} if value is None else {"default": str(value)}
