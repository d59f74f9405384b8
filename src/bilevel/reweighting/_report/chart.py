"""One chart of the report: a Vega-Lite specification, drawn as a static SVG when it is asked for.

Colours are CSS variables of the page, so that light, dark and print need one chart only. Names of
fields are ours; what comes from data is only ever a value.
"""

import dataclasses
import json
from typing import Any

import vl_convert
from markupsafe import escape

from ..._text import visible_everywhere

WIDTH = 420
ACCENT, MUTED, INK, LINE = "var(--accent)", "var(--muted)", "var(--ink)", "var(--line)"
MOST_NAMES = 30
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
Spec = dict[str, Any]  # a part of a specification of Vega-Lite
PLAIN = {ACCENT: "#1f5fbf", MUTED: "#5a6675", INK: "#1c2430", LINE: "#dfe4ea"}
_OF_OBJECTS = {
    *("__proto__", "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__"),
    *("constructor", "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString"),
    *("toString", "valueOf"),
}
_AXIS = {
    "labelColor": MUTED,
    "titleColor": MUTED,
    "gridColor": LINE,
    "domainColor": LINE,
    "tickColor": LINE,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "titlePadding": 8,
    "labelLimit": 140,
    "labelFlush": False,
    "labelPadding": 6,
}
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisDiscrete": {"ticks": False, "grid": False, "domain": False, "labelColor": INK},
    "legend": {
        "labelColor": INK,
        "labelFontSize": 12,
        "title": None,
        "orient": "top",
        "symbolType": "stroke",
        "symbolStrokeWidth": 3,
        "columnPadding": 20,
    },
    "bar": {"color": ACCENT},
    "line": {"color": ACCENT, "strokeWidth": 2},
    "point": {"color": ACCENT, "filled": True, "size": 60, "opacity": 1},
    "rule": {"color": MUTED},
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart as the page shows it.

    Attributes:
        name: its id in the page.
        title: what it shows.
        alt: in words, for those who cannot see it.
        spec: Vega-Lite, as wide as its container.
        rows: the numbers in it, for the table beneath.
        width: of the drawing, in pixels.
    """

    name: str
    title: str
    alt: str
    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    width: int = WIDTH

    @property
    def svg(self) -> str:
        """The specification, drawn."""
        # Where the reader's font is wider than the one measured here, labels need the padding.
        fixed = {
            "width": self.width,
            "autosize": {"type": "fit-x", "contains": "padding"},
            "padding": {"left": 16, "right": 12, "top": 5, "bottom": 5},
        }
        svg = vl_convert.vegalite_to_svg(self.spec | fixed, allowed_base_urls=[])
        return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(self.alt)}" ', 1)

    def as_altair(self) -> Any:
        """The same as an Altair chart with plain colours, to be restyled."""
        import altair as alt  # which takes half a second, and draws nothing here

        config = {k: v for k, v in self.spec["config"].items() if v is not None}
        text = json.dumps(self.spec | {"width": self.width, "config": config})
        for name, colour in PLAIN.items():
            text = text.replace(name, colour)
        # `Chart.from_dict` tries one class of charts after the other, and validates, for seconds.
        read: Any = super(alt.Chart, alt.Chart) if "layer" not in self.spec else alt.LayerChart
        return read.from_dict(json.loads(text), validate=False)

    @property
    def columns(self) -> list[tuple[str, str, str | None]]:
        """Key, title and number format of the columns of `rows`."""
        forms = {str: None, int: ",d", float: ".4g"}
        return [
            (key, key.replace("_", " ").capitalize(), forms.get(type(value), ".4g"))
            for key, value in self.rows[0].items()
        ]


def make_chart(
    name: str,
    title: str,
    alt_text: str,
    rows: list[dict],
    layers: list[Spec],
    height: int,
    width: int = WIDTH,
) -> Chart:
    """Of layers (see `layer`), whose data are `rows`."""
    rows, title, alt_text = visible_everywhere([rows, title, alt_text])
    drawn = {"layer": layers} if len(layers) > 1 else layers[0]
    spec = {"$schema": SCHEMA, "description": alt_text, "width": "container", "height": height}
    # Control characters in texts would end the process of the library that draws.
    spec = visible_everywhere(spec | drawn | {"config": _CONFIG})
    spec = _own_words(spec | {"data": {"values": rows}})
    return Chart(name, title, alt_text, spec, rows, width)


def layer(kind: str, *channels: Spec, where: str | None = None, **style: Any) -> Spec:
    """One mark, such as "line", of these channels, and of the rows for which `where` holds."""
    encoding = {name: channel for one in channels for name, channel in one.items()}
    drawn = {"mark": {"type": kind, **style}, "encoding": encoding}
    return drawn if where is None else drawn | {"transform": [{"filter": where}]}


def rule_at(value: int | float, **style: Any) -> Spec:
    """A line from top to bottom."""
    style = {"aria": False, "strokeDash": [4, 3]} | style
    return layer("rule", {"x": {"datum": value, "type": "quantitative"}}, **style)


def _own_words(value: Any) -> Any:
    """The same with a joiner, which is not seen, behind words that every object of JavaScript has.

    Vega looks names up in plain objects: of a class called "constructor" no chart could be drawn.
    """
    if isinstance(value, str):
        return value + "\N{ZERO WIDTH JOINER}" if value in _OF_OBJECTS else value
    if isinstance(value, dict):
        return {key: _own_words(x) for key, x in value.items()}
    return [_own_words(x) for x in value] if isinstance(value, list) else value


def number(field: str, **more: Any) -> Spec:
    """A channel of a number."""
    return {"field": field, "type": "quantitative", **more}


def axis(field: str, title: str, **scale: Any) -> Spec:
    """A channel of a number along an axis."""
    return number(field, title=_title(title), axis={"tickCount": 5}, scale=scale)


def colours(field: str, names: list[str], values: list[str], legend: Spec | None) -> Spec:
    """A colour per name."""
    scale = {"domain": names, "range": values}
    return {"color": {"field": field, "type": "nominal", "scale": scale, "legend": legend}}


def _title(text: str) -> str:
    """As it looks, without the two characters by which it could end a text of Vega's expressions.

    Vega-Lite writes titles into expressions, and escapes a quotation mark but not a backslash before
    it. The name of a score is somebody else's, where the report is.
    """
    return text.replace("\\", "\N{SET MINUS}").replace('"', "\N{RIGHT DOUBLE QUOTATION MARK}")


def height_of(rows: list[dict[str, Any]], step: int) -> int:
    """Room for one line per name, in pixels: step heights warn where the width is the container's."""
    return step * len({row["name"] for row in rows})


def by_name() -> Spec:
    """A line per name, in the order of the rows."""
    return {"y": {"field": "name", "type": "nominal", "title": None, "sort": None}}


def tips(**fields: str) -> Spec:
    """Tooltips; `name="Row"` is text, `x=",.3f Score"` a number in that format."""
    shown = []
    for field, text in fields.items():
        form, bar, title = text.partition("|")
        if bar:
            shown.append(number(field, title=_title(title), format=form))
        else:
            shown.append({"field": field, "title": _title(text), "type": "nominal"})
    return {"tooltip": shown}


def matrix(
    name: str,
    title: str,
    words: str,
    rows: list[dict[str, Any]],
    names: list[str],
    most: int,
    down: str,
) -> Chart:
    """Counts by two labels: as dark as `rows` of `most`; right predictions are not shaded."""
    across = next(key for key in rows[0] if key not in (down, "rows"))
    both = {
        "x": {"field": across, "title": across, "axis": {"orient": "top"}},
        "y": {"field": down, "title": down},
    }
    both = {name: channel | {"type": "nominal", "sort": names} for name, channel in both.items()}
    said = tips(**{down: down.capitalize(), across: across.capitalize(), "rows": ",d|Rows"})
    scale = {"domain": [0, most], "range": [0.04, 0.75], "clamp": True}
    dark = {"opacity": number("rows", scale=scale, legend=None)}
    layers = [
        layer("rect", both, said, dark, where=f"datum.{down} != datum.{across}", color=ACCENT),
        layer("text", both, said, {"text": number("rows")}, where="datum.rows > 0", color=INK),
    ]
    return make_chart(name, title, words, rows, layers, max(30 * len(names), 120))
