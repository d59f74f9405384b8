"""What `bilevel multilabel` does: from files to a folder, all of it or nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..reweighting._inputs.checks import InputError, check_ids, named
from ..reweighting._inputs.files import (
    check_label_is_no_feature,
    read_tables,
    split_label,
    suggest,
)
from ..reweighting._multilabel import MultilabelResult, learn_multilabel_weights
from ._run_files import WORST, write_csv, write_parquet, write_summary
from ._run_folder import RunFolder
from ._tables import check_drop, check_same_names

FORMAT = "bilevel multilabel summary 1"  # see `_report/schema.json`


def weigh_labels(
    train: Path,
    labels: list[str],
    trusted: Path,
    out: Path,
    identifier: str | None,
    drop: list[str],
    seed: int,
) -> tuple[MultilabelResult, dict[str, Any], Path]:
    """`learn_multilabel_weights` of tables on disk; its summary, and the folder that it wrote.

    Raises:
        InputError: the data cannot be used.
        RunFolderError: the output folder exists or cannot be written.
    """
    folder = RunFolder.of(out)
    folder.check(resume=False)
    if repeated := sorted({c for c in labels if labels.count(c) > 1}):
        raise InputError(f"the label columns {named(repeated)} are given twice (--label).")
    ids = [] if identifier is None else [identifier]
    tables = read_tables({"train": train, "trusted": trusted}, ids=ids)
    features, indicators = {}, {}
    for name, table in tables.items():
        rows = table.frame
        for column in labels:
            if column not in rows.columns:
                raise InputError(
                    f"the {name} file has no column {column!r} (--label); "
                    f"{suggest(column, rows.columns)}."
                )
        if name == "train":
            check_drop(drop, rows.columns)
        rows, _ = split_label(rows, labels[0], identifier, name)
        for column in labels[1:]:
            check_label_is_no_feature(rows, column, name)
        own = rows.columns.difference(labels[1:], sort=False)
        features[name] = rows[own].drop(columns=drop, errors="ignore")
        indicators[name] = table.frame[labels].set_index(rows.index)
    if identifier is not None:
        check_ids(features)
    first, other = features["train"], features["trusted"]
    if first.shape[1] == 0:
        raise InputError("the train file has no column besides the labels.")
    check_same_names(first, other, "trusted")
    found = learn_multilabel_weights(
        first, indicators["train"], other[list(first.columns)], indicators["trusted"], seed=seed
    )
    summary = _summary(found, len(other), seed)
    with folder.writing(None) as partial:
        _write(found, identifier or "row", partial)
        report = found.report()
        for name in ("report.html", "report.json"):
            report.save(partial / name)
        write_summary(summary, partial)
    return found, summary, folder.out


def _write(found: MultilabelResult, identifier: str, folder: Path) -> None:
    """One line per row, the worst of them, and one line per label."""
    flagged = ~np.asarray(found.keep)
    looked_at = [
        ", ".join(str(name) for name, bad in zip(found.keep.columns, line, strict=True) if bad)
        for line in flagged
    ]
    rows = pd.DataFrame(
        {
            "weight": np.asarray(found.weights),
            "row_quality": np.asarray(found.row_quality),
            "keep": ~flagged.any(axis=1),
            "labels_to_look_at": looked_at,
        },
        index=found.label_quality.index.rename(identifier),
    )
    quality = found.label_quality.add_prefix("quality ").set_axis(rows.index)
    rows = pd.concat([rows, quality], axis=1)
    write_parquet(rows.reset_index(), folder / "rows.parquet")
    worst = rows.sort_values("row_quality", kind="stable").head(WORST)
    write_csv(worst.reset_index(), folder / "worst.csv")
    lines = found.labels.rename_axis("label").assign(trusted_weight=found.trusted_weights)
    write_parquet(lines.reset_index(), folder / "labels.parquet")


def _summary(found: MultilabelResult, trusted: int, seed: int) -> dict[str, Any]:
    flagged = ~np.asarray(found.keep)
    return {
        "format": FORMAT,
        "train_rows": len(found.keep),
        "trusted_rows": trusted,
        "seed": seed,
        "rows_to_look_at": int(flagged.any(axis=1).sum()),
        "labels_to_look_at": int(flagged.sum()),
        "trusted_weight": found.trusted_weight,
        "scale": found.scale,
        "labels": {
            str(name): {
                "share": float(line["share"]),
                "flagged": int(line["flagged"]),
                "winner": str(line["winner"]),
                "noise": None
                if name not in found.results or (noise := found.results[name].noise) is None
                else noise.to_dict([str(i) for i in found.keep.index]),
            }
            for name, line in found.labels.to_dict("index").items()
        },
        "checks": [check._asdict() for check in found.checks],
    }
