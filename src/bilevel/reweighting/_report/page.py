"""The report: one self-contained page that proves what weighting did, or says that it did nothing."""

import abc
import base64
import dataclasses
import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jinja2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from markupsafe import Markup, escape

from ..._storage import DamagedFileError, read_regular, write_text
from ..._text import heading, visible
from .bundle import read_bundle
from .evidence import FORMAT

PRINTED_ROWS = 40
ENDINGS = (".html", ".htm", ".json")
LARGEST = 1 << 28  # bytes of a report's evidence
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


@dataclasses.dataclass(frozen=True)
class AbstractPage(abc.ABC):
    """Something to be read by a person (HTML) or by a program (JSON).

    Attributes:
        evidence: plain data, from which alone the page is made.
    """

    evidence: dict[str, Any]

    @abc.abstractmethod
    def to_html(self) -> str:
        """The page, which loads nothing from elsewhere."""

    def to_json(self) -> str:
        """The evidence."""
        return json.dumps(self.evidence, indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page (`.html`) or the evidence (`.json`): the whole file or nothing.

        Raises:
            ValueError: the name ends in neither.
        """
        path = Path(path)
        writers = {".html": self.to_html, ".htm": self.to_html, ".json": self.to_json}
        if path.suffix.lower() not in writers:
            raise ValueError(f"a report is saved as .html or .json, got {path.name!r}.")
        write_text(path, writers[path.suffix.lower()]())
        return path


@dataclasses.dataclass(frozen=True, repr=False)
class Report(AbstractPage):
    """What `gather_evidence` found, to be read by a person (HTML) or a program (JSON).

    A notebook shows the page itself, with drawn charts.

    The page needs no network and is safe to open whatever the data hold: every value is escaped, and
    its Content-Security-Policy runs no script but the page's own and loads nothing. It can be read
    without JavaScript, which adds tooltips, sorting and filtering.
    """

    def to_html(self) -> str:
        """One page: the verdict, alarms, tables and charts, and the worst rows."""
        return self._page(read_bundle())

    @property
    def charts(self) -> dict[str, Any]:
        """The charts of the page by name, as Altair charts with plain colours, to be restyled.

        Which there are depends on what was measured: "gains", "first-wrong", "noise-matrix",
        "histogram", "drops", "removal", "weight-classes", "change-classes", "weight-groups",
        "change-groups", "calibration", "confusion-before", "confusion-after", "verified", and for free
        weights "effective-sample-size", "entropy" and "outer-value".
        """
        from .charts import draw_charts

        return {name: chart.as_altair() for name, chart in draw_charts(self.evidence).items()}

    def __repr__(self) -> str:
        """The verdict, the advice, and the alarms."""
        e = self.evidence
        fired = [f"{a['name']}: {a['detail']}" for a in e["alarms"] if a["fired"]]
        fired += [f"failed: {c['name']}: {c['detail']}" for c in e["checks"] if not c["passed"]]
        lines = [e["verdict"]["sentence"], f"Advice: {e['advice']}"]
        lines += [f"[NO] {line}" for line in fired] or ["no alarms"]
        return visible("\n".join(lines), keep="\n")

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that neither it nor the notebook disturbs the other."""
        page = escape(self._page(""))
        return (
            '<iframe title="weights report" sandbox="allow-scripts allow-downloads" '
            'style="width: 100%; height: 40rem; border: 1px solid #888" '
            f'srcdoc="{page}"></iframe>'
        )

    def _page(self, bundle: str) -> str:
        """With these JavaScript libraries, or without any: the charts are drawings then."""
        from .charts import draw_charts

        charts = draw_charts(self.evidence)
        return read_template("report.html.jinja").render(
            evidence=self.evidence,
            charts=charts,
            specs={name: chart.spec for name, chart in charts.items()} if bundle else {},
            style=Markup(packaged("report.css")),
            bundle=Markup(bundle),
            script=Markup(packaged("report.js")),
            hashes=[csp_hash(bundle), csp_hash(packaged("report.js"))],
            percentiles=[
                {"name": name, "value": value}
                for name, value in self.evidence["weights"]["quantiles"].items()
            ],
            printed_rows=PRINTED_ROWS,
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Report":
        """The report of a file that `save` wrote as JSON.

        Raises:
            ValueError: the file is not one, or has something in it that the schema has not.
        """
        try:
            evidence = json.loads(read_regular(path, LARGEST))
        except (DamagedFileError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a report saved as JSON: {error}.") from error
        if not isinstance(evidence, dict) or evidence.get("format") != FORMAT:
            raise ValueError(
                f'{path} is not a report saved as JSON: it has no line "format": {FORMAT!r}.'
            )
        if missing := sorted(set(read_schema()["$defs"]["report"]["required"]) - evidence.keys()):
            raise ValueError(f"the report {path} lacks {', '.join(missing)}.")
        if fault := best_match(_validator().iter_errors(evidence)):
            where = visible(f"{fault.json_path}: {fault.message[:300]}")
            raise ValueError(f"the report {path} is not as its schema has it, at {where}.")
        return cls(evidence)


@functools.cache
def read_template(name: str) -> jinja2.Template:
    """One of our own templates, in which every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bilevel.reweighting._report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"show": _show, "heading": heading, "raw": _raw, "prose": _prose}
    environment.filters |= {"numeric": _numeric}
    environment.tests["picture"] = _is_picture
    environment.globals["shares"] = _shares
    return environment.get_template(name)


def _visible(value: Any) -> Any:
    """What the template writes: our own code as it is, text of others without control characters."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _shares(noise: dict[str, Any]) -> list[dict[str, Any]]:
    """The noise rate, and the precision and recall of the list, as lines of a table."""
    names = {
        "rate": "Wrong labels, of all training rows",
        "precision": "Precision: wrong labels, of the flagged rows",
        "recall": "Recall: flagged rows, of all wrong labels",
    }
    return [{"name": name} | noise[key] for key, name in names.items() if noise[key] is not None]


def _show(value: Any, form: str = "") -> str:
    """A value as people read it: numbers in the format, with a true minus; a dash for nothing."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    text = format(value, form or ("," if isinstance(value, int) else ".4g"))
    return text.replace("-", "\N{MINUS SIGN}") if "e-" not in text else text


def _numeric(worst: dict[str, Any]) -> set[str]:
    """The columns of --show that hold nothing but numbers, and are sorted so."""

    def is_number(value: Any) -> bool:
        return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))

    return {c for c in worst["shown"] if all(is_number(x["shown"][c]) for x in worst["rows"])}


def _prose(text: str) -> str:
    """A sentence with a capital, a full stop, true minus signs, and no blank before a percent sign."""
    text = re.sub(r"(?<![^\s(])-(?=\d)", "\N{MINUS SIGN}", str(text))
    text = re.sub(r"(?<=\d) %", "%", text)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _raw(value: Any) -> str:
    """What a column is sorted by."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and _PICTURE.fullmatch(value) is not None


@functools.cache
def packaged(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def read_schema() -> dict[str, Any]:
    """The JSON Schema of all JSON files that the commands write, this page's among them."""
    return json.loads(packaged("schema.json"))


@functools.cache
def _validator() -> Any:
    known = Draft202012Validator.TYPE_CHECKER

    def number(_: Any, value: Any) -> bool:  # one that was not finite is null
        return value is None or known.is_type(value, "number")

    return extend(Draft202012Validator, type_checker=known.redefine("number", number))(
        read_schema()
    )


def csp_hash(code: str) -> str:
    digest = hashlib.sha256(code.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
