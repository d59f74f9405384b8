"""The settings of `bilevel weigh`, and the file of a run folder that has them: `config.toml`."""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from .._storage import read_regular
from ..reweighting._inputs.checks import InputError
from ._app import parse_toml

LARGEST_TEXT = 1 << 26  # bytes of a config or summary
# What may be said of a private run: numbers and choices of ours.
HARMLESS = frozenset(
    [
        *("task", "method", "model", "num_steps", "l2", "precision", "report", "control", "seed"),
        *("private", "minutes_per_check"),
    ]
)


@dataclasses.dataclass(frozen=True)
class WeighConfig:
    """What `bilevel weigh` was asked to do; written to `config.toml`, but for leave to run code."""

    train: str
    label: str
    trusted: str
    out: str
    holdout: str | None = None
    id: str | None = None
    groups: str | None = None
    drop: tuple[str, ...] = ()
    images: str | None = None
    pred_probs: str | None = None
    pred_probs_trusted: str | None = None
    given_label: str | None = None
    estimator: str | None = None
    allow_code: bool = False
    task: str = "auto"
    method: str = "auto"
    model: str = "linear"
    num_steps: int | None = None
    l2: float = 1e-2
    precision: float | None = None
    sample_weight: str | None = None
    entity: str | None = None
    time: str | None = None
    metric: str | None = None
    memory: str = "4GB"
    report: bool = True
    show: tuple[str, ...] = ()
    truth: str | None = None
    minutes_per_check: float | None = None
    control: bool = False
    private: bool = False
    seed: int = 0

    def check_names(self) -> None:
        """Refuse names that are not UTF-8, which no file of a run could hold.

        Raises:
            InputError: with the option.
        """
        for option, value in dataclasses.asdict(self).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not _is_utf8(text):
                    raise InputError(
                        f"--{option.replace('_', '-')} {text!r} is not UTF-8, which the files of a "
                        "run are written in; rename the file or the column."
                    )

    def to_toml(self, digests: dict[str, str]) -> str:
        """The settings and the inputs' sha256 sums as TOML (whose scalars are written as JSON's)."""
        settings = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        del settings["allow_code"]  # which is said each time
        if self.private:  # nor what files and columns are called, nor what would tell a file
            settings = {k: v for k, v in settings.items() if k in HARMLESS}
            digests = {}
        lines = [f"{key} = {_as_toml(value)}" for key, value in settings.items()]
        lines += ["", "[sha256]", *(f"{k} = {json.dumps(v)}" for k, v in digests.items())]
        return "\n".join(lines) + "\n"


def odd_settings(found: dict[str, Any]) -> list[str]:
    """The settings of a `config.toml` that are not of the kind that a run writes."""
    kinds = typing.get_type_hints(WeighConfig)
    return [key for key in kinds.keys() & found.keys() if not _is_of(found[key], kinds[key])]


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:  # a list in TOML
        return isinstance(value, list) and all(_is_of(x, str) for x in value)
    if kind is str:
        return isinstance(value, str) and "\0" not in value  # which no path may hold
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _as_toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return parse_toml(read_regular(path, LARGEST_TEXT))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
