"""Rows to check in the formats of annotation tools, and the decisions that come back."""

from collections.abc import Iterable
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

from .._text import visible
from ..reweighting._inputs.checks import InputError

FORMATS = ("label-studio", "argilla")


class RowToCheck(NamedTuple):
    """A row that a person is asked about.

    Attributes:
        id: of the row, as text.
        fields: what is shown of it.
        given: its label.
        suggested: what the run says, with its probability where it is known.
        probability: in [0, 1], or None.
    """

    id: str
    fields: dict[str, Any]
    given: str
    suggested: str
    probability: float | None


def to_label_studio(rows: Iterable[RowToCheck]) -> list[dict[str, Any]]:
    """Tasks with our suggestion as prediction, for the import of Label Studio."""
    tasks = []
    for row in rows:
        choice = {
            "from_name": "label",
            "to_name": "row",
            "type": "choices",
            "value": {"choices": [row.suggested]},
        }
        prediction: dict[str, Any] = {"model_version": "bilevel", "result": [choice]}
        if row.probability is not None:
            prediction["score"] = row.probability
        said = "\n".join(f"{name}: {value}" for name, value in row.fields.items())
        data = {"row_id": row.id, "given_label": row.given, "text": visible(said, "\n\t")}
        tasks.append({"data": data, "predictions": [prediction]})
    return tasks


def label_studio_config(classes: Iterable[str]) -> str:
    """The labelling interface that the tasks are for."""
    choices = "\n".join(f"    <Choice value={quoteattr(visible(c))}/>" for c in classes)
    return (
        '<View>\n  <Text name="row" value="$text"/>\n'
        f'  <Choices name="label" toName="row" choice="single" required="true">\n{choices}\n'
        "  </Choices>\n</View>\n"
    )


def from_label_studio(tasks: Any) -> dict[str, str]:
    """By row id the choice of the last annotation that was not cancelled, of a JSON export."""
    found = {}
    for task in _list(tasks, "Label Studio"):
        try:
            name = str(task["data"]["row_id"])
            done = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
            choices = [
                part["value"]["choices"]
                for annotation in done
                for part in annotation["result"]
                if part.get("type") == "choices" and part.get("from_name") == "label"
            ]
            if wrong := [choice for choice in choices if not isinstance(choice, list)]:
                raise TypeError(f"choices are lists, got {type(wrong[0]).__name__}")
        except (KeyError, TypeError, AttributeError) as error:
            raise _unreadable("Label Studio", error) from error
        if choices and len(choices[-1]) == 1:
            found[name] = str(choices[-1][0])
    return found


def to_argilla(rows: Iterable[RowToCheck]) -> list[dict[str, Any]]:
    """Records with our suggestion, as `Dataset.records.from_json` of Argilla reads them."""
    records = []
    for row in rows:
        suggestion: dict[str, Any] = {"value": row.suggested, "agent": "bilevel"}
        suggestion["score"] = row.probability
        said = "\n".join(f"{name}: {value}" for name, value in row.fields.items())
        records.append(
            {
                "id": row.id,
                "fields": {"text": visible(said, "\n\t")},
                "metadata": {"given_label": row.given},
                "suggestions": {"label": suggestion},
                "responses": {},
                "vectors": {},
                "status": "pending",
                "_server_id": None,
            }
        )
    return records


def from_argilla(records: Any) -> dict[str, str]:
    """By row id the last response to the question "label", of `Dataset.records.to_json`."""
    found = {}
    for record in _list(records, "Argilla"):
        try:
            answers = (record.get("responses") or {}).get("label") or []
            values = [answer["value"] for answer in answers if answer.get("value") is not None]
            name = str(record["id"])
        except (KeyError, TypeError, AttributeError) as error:
            raise _unreadable("Argilla", error) from error
        if values:
            found[name] = str(values[-1])
    return found


def _list(found: Any, tool: str) -> list[Any]:
    if not isinstance(found, list):
        raise InputError(f"an export of {tool} is a list, got {type(found).__name__}.")
    return found


def _unreadable(tool: str, error: Exception) -> InputError:
    return InputError(
        f"this is no export of {tool} of rows from `bilevel export` ({type(error).__name__}: "
        f"{error}). "
        "Export as JSON, with the data that the tasks had."
    )
