"""The lines of the table of the worst rows, with what else is known of each."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._weights.opinions import Opinions
from . import refits
from .excerpts import LONGEST, excerpts
from .refits import Rows
from .suspects import NUM_WORST, Suspects
from .thumbnails import as_pictures, shrunk, thumbnails

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
LARGEST_PICTURE = 1 << 25  # bytes


def worst_rows(
    rows: Rows,
    found: Suspects,
    ids: list[str],
    trusted_ids: list[str],
    groups: Any,
    images: Any,
    table: pd.DataFrame | None,
    show: Sequence[str],
    units: Mapping[str | None, str],
) -> dict[str, Any]:
    """The 200 suspect rows of lowest label quality, see `Suspects` for what is said of each."""
    n, worst = len(rows.y), found.rows[:NUM_WORST]
    pictures = [None] * len(worst) if images is None else thumbnails(images, worst.tolist())
    most = refits.MAX_ROWS
    bound = f" on {most} rows drawn at random," if n > most else ""
    columns = _shown(table, show, rows, worst, found.suggested)
    opinions = _opinions(rows.result.opinions)

    def trusted(k: int, side: int) -> dict[str, Any] | None:
        place = int(found.nearest[k, side])
        if place < 0:
            return None
        typical = None if rows.regression else bool(found.typical[k, side])
        return {
            "id": trusted_ids[place],
            "distance": found.distance[k, side],
            "typical": typical,
        }

    return {
        "note": f"The {len(worst)} rows of lowest label quality, of {n}. The suggested label is the "
        f"final estimator's, fitted{bound} with these weights and the trusted rows, without "
        "the row itself and a fifth of the other suspect rows.",
        "shown": list(show),
        "units": {name: units[name] for name in show if name in units},
        "label_unit": units.get(None),
        "rows": [
            {
                "id": ids[i],
                "given": rows.y[i],
                "suggested": found.suggested[k],
                "probability": found.probability[k],
                "kind": None if found.kind is None else found.kind[k],
                "opinions": opinions.get(int(i)),
                "nearest_given": trusted(k, 0),
                "nearest_suggested": trusted(k, 1),
                "weight": rows.weights[i],
                "label_quality": rows.quality[i],
                "group": None if groups is None else groups[i],
                "thumbnail": pictures[k],
                "shown": {name: values[k] for name, values in columns.items()},
            }
            for k, i in enumerate(worst)
        ],
    }


def _opinions(found: Opinions | None) -> dict[int, list[dict[str, Any]]]:
    """By row: what each model says, and the probabilities that it gives this and the given label."""
    if found is None:
        return {}
    return {
        int(i): [
            {"model": name, "says": found.said[k, j]}
            | {"probability": found.probability[k, j], "given": found.given[k, j]}
            for j, name in enumerate(found.models)
        ]
        for k, i in enumerate(found.rows)
    }


def _shown(
    table: pd.DataFrame | None,
    show: Sequence[str],
    rows: Rows,
    worst: np.ndarray,
    suggested: np.ndarray,
) -> dict[str, list[Any]]:
    """The chosen columns of the worst rows: numbers, texts of at most 300 characters, pictures."""
    labels = None if rows.regression else rows.y
    if not show:
        return {}
    if table is None:
        raise ValueError("`show` needs a `table` with the columns to show.")
    found = {}
    for name in show:
        given = table[name].tolist()
        values = [_value(given[i]) for i in worst]
        pictures = [k for k, value in enumerate(values) if isinstance(value, np.ndarray)]
        for k, picture in zip(pictures, as_pictures([values[k] for k in pictures]), strict=True):
            values[k] = picture
        long = np.array(
            [k for k, i in enumerate(worst) if values[k] == given[i] and _is_long(given[i])], int
        )
        for k, part in zip(
            long, excerpts(given, worst[long], labels, suggested[long]), strict=True
        ):
            values[k] = part
        found[name] = values
    return found


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > LONGEST


def _value(value: Any) -> Any:
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    if text.lower().endswith(PICTURES) and (picture := _picture(Path(text))) is not None:
        return picture
    return text


def _picture(path: Path) -> np.ndarray | None:
    """The pixels of a picture made small, where it is one and Pillow is there to read it."""
    try:
        from PIL import Image
    except ImportError:
        return None
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
            return None
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.draft("RGB", (128, 128))
            image.thumbnail((64, 64))
            pixels = np.asarray(image.convert("RGB"))
    except Exception:  # a file of somebody else may hold anything; its name is shown then
        return None
    return shrunk(pixels[None])[0]
