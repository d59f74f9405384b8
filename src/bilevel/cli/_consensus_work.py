"""What `bilevel consensus` does: from files to a folder, all of it or nothing."""

from pathlib import Path

import numpy as np

from ..reweighting._annotations import AnnotationsResult, learn_from_annotations
from ..reweighting._inputs.checks import InputError, named
from ..reweighting._inputs.files import as_texts_if_any_is, read_tables, split_label, suggest
from ..reweighting._inputs.scalars import check_scalars
from ._run_files import WORST, write_csv, write_parquet, write_summary
from ._run_folder import RunFolder
from ._tables import check_drop, check_same_names


def find_consensus(
    train: Path,
    annotations: Path,
    label: str,
    identifier: str,
    annotator: str,
    trusted: Path,
    out: Path,
    drop: list[str],
    seed: int,
) -> tuple[AnnotationsResult, Path]:
    """`learn_from_annotations` of tables on disk, and the folder that it wrote.

    Raises:
        InputError: the data cannot be used.
        RunFolderError: the output folder exists or cannot be written.
    """
    folder = RunFolder.of(out)
    folder.check(resume=False)
    paths = {"train": train, "trusted": trusted, "annotations": annotations}
    tables = read_tables(paths, label=label, ids=[identifier, annotator])
    as_texts_if_any_is(identifier, [table.frame for table in tables.values()])
    lines = tables["annotations"].frame
    for column, option in [(identifier, "--id"), (annotator, "--annotator"), (label, "--label")]:
        if column not in lines.columns:
            raise InputError(
                f"the annotations file has no column {column!r} ({option}); "
                f"{suggest(column, lines.columns)}."
            )
        check_scalars(lines[column], f"the column {column!r} ({option}) of the annotations")
    rows = tables["train"].frame
    check_drop(drop, rows.columns)
    if label not in rows.columns:  # which the annotations replace
        rows = rows.assign(**{label: 0})
    features, _ = split_label(rows, label, identifier, "train")
    known, y_known = split_label(tables["trusted"].frame, label, identifier, "trusted")
    features, known = (t.drop(columns=drop, errors="ignore") for t in (features, known))
    if len(both := features.index.intersection(known.index)):
        raise InputError(
            f"the ids {named(both)} are in the train and in the trusted file; keep them in one."
        )
    check_same_names(features, known, "trusted")
    of_known = np.isin(np.asarray(lines[identifier]), np.asarray(known.index))
    found = learn_from_annotations(
        features,
        lines[~of_known].reset_index(drop=True),
        known[list(features.columns)],
        y_known,
        columns=(identifier, annotator, label),
        annotations_trusted=lines[of_known] if of_known.any() else None,
        seed=seed,
    )
    with folder.writing(None) as partial:
        _write(found, identifier, partial)
    return found, folder.out


def _write(found: AnnotationsResult, identifier: str, folder: Path) -> None:
    """The tables and the summary."""
    rows = found.rows.rename_axis(identifier).assign(
        weight=np.asarray(found.result.weights), keep=found.result.keep
    )
    write_parquet(rows.reset_index(), folder / "rows.parquet")
    worst = rows.sort_values("label_quality", kind="stable").head(WORST)
    write_csv(worst.reset_index(), folder / "worst.csv")
    write_csv(found.annotators.reset_index(), folder / "annotators.csv")
    write_parquet(found.labels, folder / "labels.parquet")
    write_summary(found.summary, folder)
