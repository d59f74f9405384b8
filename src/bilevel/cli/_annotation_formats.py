"""Rows to check in the formats of annotation tools, and the decisions that come back."""

import json
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


class Answers(NamedTuple):
    """What people said of the rows that they were asked about.

    Attributes:
        decided: by row id the label that all who answered agree on.
        disputed: ids of the rows of which they said different things.
        open: ids of the rows without an answer: skipped, cancelled, begun, or with several labels.
    """

    decided: dict[str, str]
    disputed: tuple[str, ...]
    open: tuple[str, ...]

    @classmethod
    def of(cls, said: dict[str, list["Answer"]]) -> "Answers":
        """Of each row what is declared to be the truth, or else the last answer of each person."""
        found = {}
        for name, answers in said.items():
            truths = [answer for answer in answers if answer.is_truth and answer.label is not None]
            last = {a.person: a.label for a in sorted(truths or answers, key=lambda a: a.time)}
            found[name] = {label for label in last.values() if label is not None}
        return cls(
            {name: next(iter(labels)) for name, labels in found.items() if len(labels) == 1},
            tuple(name for name, labels in found.items() if len(labels) > 1),
            tuple(name for name, labels in found.items() if not labels),
        )


class Answer(NamedTuple):
    """What one person said of one row; `time` is a text that sorts, `label` is None for no answer."""

    person: str
    label: str | None
    time: str = ""
    is_truth: bool = False


def from_label_studio(tasks: Any) -> Answers:
    """The choices in a JSON export. Cancelled annotations are no answers.

    Raises:
        InputError: another export, or one of another interface.
    """
    said: dict[str, list[Answer]] = {}
    others: set[str] = set()
    for task in _list(tasks, "Label Studio"):
        try:
            answers = said.setdefault(str(task["data"]["row_id"]), [])
            for annotation in task.get("annotations") or []:
                if annotation.get("was_cancelled"):
                    continue
                parts = [part for part in annotation["result"] if part.get("type") == "choices"]
                ours = [part for part in parts if part.get("from_name") == "label"]
                others |= {str(part.get("from_name")) for part in parts if part not in ours}
                choices = [choice for part in ours[-1:] for choice in _choices(part)]
                time = annotation.get("updated_at") or annotation.get("created_at")
                answers.append(
                    Answer(
                        json.dumps(annotation.get("completed_by"), sort_keys=True),
                        str(choices[0]) if len(choices) == 1 else None,
                        str(time or ""),
                        bool(annotation.get("ground_truth")),
                    )
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise _unreadable("Label Studio", error) from error
    found = Answers.of(said)
    if others and not found.decided:
        raise InputError(
            f"the choices of this export are called {', '.join(sorted(others))!r}, and 'label' in the "
            "interface that `bilevel export` wrote (the .xml file beside the tasks); use that one."
        )
    return found


def _choices(part: dict[str, Any]) -> list[Any]:
    choices = part["value"]["choices"]
    if not isinstance(choices, list):
        raise TypeError(f"choices are lists, got {type(choices).__name__}")
    return choices


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


def from_argilla(records: Any) -> Answers:
    """The responses to the question "label", of `Dataset.records.to_json`.

    The export does not say which responses are drafts or were discarded: a record that is still
    pending has no others.
    """
    said: dict[str, list[Answer]] = {}
    for record in _list(records, "Argilla"):
        try:
            answers = said.setdefault(str(record["id"]), [])
            given = (record.get("responses") or {}).get("label") or []
            for answer in given if record.get("status") != "pending" else []:
                value = answer["value"]
                label = None if value is None else str(value)
                answers.append(Answer(str(answer.get("user_id")), label))
        except (KeyError, TypeError, AttributeError) as error:
            raise _unreadable("Argilla", error) from error
    return Answers.of(said)


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
