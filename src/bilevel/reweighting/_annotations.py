"""`learn_from_annotations`: several annotators per row, their quality, the consensus, and weights."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from ._inputs.annotations import LongTable, distinct, read_annotations
from ._inputs.checks import check_seed, row_ids
from ._inputs.containers import feature_rows
from ._inputs.prepare import MIN_MAX, Prepared, prepare
from ._learn import complete
from ._weights.annotators import AnnotatedPool, Annotations, Annotators, Labels, vote
from ._weights.candidates import Search, search
from ._weights.choice import choose, explain
from ._weights.fits import few_threads
from ._weights.folds import FOLDS
from ._weights.result import WeightsResult

FORMAT = "bilevel consensus summary 1"  # see `_report/schema.json`


@dataclasses.dataclass(frozen=True)
class AnnotationsResult:
    """What `learn_from_annotations` returns.

    Attributes:
        rows: one line per training row, with the index of X: `consensus`, the likeliest label;
            `label_quality`, the probability that it is right; `annotators`, how many labels the row
            has; `agreement`, the share of them that are the consensus.
        annotators: one line per annotator, the worst first: `quality`, the mean probability that a
            label of theirs is right; `labels`, how many; `agreement` with the consensus on rows that
            others labelled too; `often_given` for `often_true`, the confusion that happens most.
        labels: one line per annotation, in order: row, annotator, label, and `quality`, the
            probability that it is right.
        probabilities: of the classes (columns), for each training row, given its annotations.
        result: the weights of the training rows with their consensus labels, with everything that
            `learn_weights` returns.
    """

    rows: pd.DataFrame
    annotators: pd.DataFrame
    labels: pd.DataFrame
    probabilities: pd.DataFrame
    result: WeightsResult

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of a run, as JSON can hold them."""
        return {
            "format": FORMAT,
            "rows": len(self.rows),
            "annotators": len(self.annotators),
            "labels": len(self.labels),
            "right_labels": float(np.mean(self.labels["quality"])),
            "right_consensus": float(np.mean(self.rows["label_quality"])),
            "winner": self.result.winner,
            "scale": self.result.scale,
            "trusted_weight": self.result.trusted_weight,
            "checks": [check._asdict() for check in self.result.checks],
        }

    def __str__(self) -> str:
        """A summary in a few lines."""
        worst = self.annotators.iloc[0]
        return (
            f"{len(self.annotators)} annotators gave {len(self.labels)} labels to {len(self.rows)} "
            f"rows; {self.labels['quality'].mean():.1%} of them are right by estimate. The lowest "
            f"quality is that of {self.annotators.index[0]}: {worst['quality']:.1%} of "
            f"{worst['labels']:.0f} labels.\n{self.result}"
        )


def learn_from_annotations(
    X: Any,
    annotations: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    columns: tuple[str, str, str] = ("row", "annotator", "label"),
    annotations_trusted: Any = None,
    estimator: Any = None,
    groups: Any = None,
    holdout: tuple[Any, Any] | None = None,
    scaler: Any = MIN_MAX,
    seed: int = 0,
) -> AnnotationsResult:
    """Consensus labels, the quality of annotators, and weights, from several labels per row.

        P(true = y | x_i, labels of row i) ~ p(y | x_i) prod_a T_a[y, label of a]^0.7

    The pool `p` of label models (see `cross_validated_weights`) says what is thought of a row before
    its labels are seen; `T_a` is what annotator a makes of each class. Both are estimated in turn:
    the models are first fitted to the likeliest labels by the annotations alone, then to the
    consensus that they lead to. The weights are those of `learn_weights`, judged on held-out trusted
    rows, with the probability of the consensus label in place of that of the one given label.

    Source: Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates using the
    EM algorithm" [dawid1979][], for the product; the pool as the prior and the power are ours.

    Args:
        X: the training rows, as for `learn_weights`.
        annotations: a table of any kind with one line per label. Its rows are named by the index of X
            if that is a data frame, else by their number from 0. Each row needs at least one label;
            annotators need not label the same rows, nor equally many.
        X_trusted, y_trusted: the trusted rows, as for `learn_weights`.
        columns: the names of the columns: row, annotator, label.
        annotations_trusted: labels that annotators gave to trusted rows, in a table like
            `annotations`: there each of them is known to be right or wrong.
        estimator, groups, holdout, scaler, seed: as for `learn_weights`.

    Validity: the power stands for annotators who do not err independently. Where the same rows are
    hard for all of them, and their wrong labels are those that the models think of too, qualities are
    too sure and rank rows less well than a plain average of models and labels does (measured in the
    documentation).

    Raises:
        ValueError: about the data (an `InputError`: with the rows or columns at fault), or about an
            argument.

    Cost: twice that of `learn_weights`, and 40 passes over the annotations for each of 5 choices of
    trusted rows. Memory: `annotators * classes^2` numbers.

    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2)); y = (X[:, 0] > 0).astype(int)
    >>> row = np.repeat(np.arange(150), 3); who = np.tile(["ann", "bob", "cy"], 150)
    >>> error = rng.random(450) < np.tile([0.05, 0.05, 0.5], 150)  # cy guesses
    >>> given = np.where(error, 1 - y[row], y[row])
    >>> table = pd.DataFrame({"row": row, "annotator": who, "label": given})
    >>> found = learn_from_annotations(X[:150], table, X[150:], y[150:])
    >>> found.annotators.index[0], bool((found.rows["consensus"] == y[:150]).mean() > 0.97)
    ('cy', True)
    """
    check_seed(seed)
    ids = row_ids(feature_rows(X, "X"))
    long = read_annotations(annotations, columns, ids, "annotations", every=True)
    long_trusted = None
    if annotations_trusted is not None:
        ids_trusted = row_ids(feature_rows(X_trusted, "X_trusted"))
        long_trusted = read_annotations(
            annotations_trusted, columns, ids_trusted, "annotations_trusted", every=False
        )
    both = [long] if long_trusted is None else [long, long_trusted]
    names = distinct([table.annotator for table in both], "annotators")
    distinct([table.label for table in both], "labels of the annotators")
    classes = np.unique(long.label)
    y = classes[vote(_coded(long, None, names, classes), len(ids), len(classes))]
    for last in (False, True):
        tables = prepare(
            X,
            y,
            X_trusted,
            y_trusted,
            task="classification",
            scaler=scaler,
            holdout=holdout,
            groups=groups,
            estimator=estimator,
            folds=FOLDS,
        )
        assert tables.classes is not None
        with few_threads(tables.train.features.size):
            found = search(
                *tables.train.numbers,
                *tables.trusted.numbers,
                groups=tables.groups,
                tables=tables,
                estimator=estimator,
                annotations=_coded(long, long_trusted, names, tables.classes),
                seed=seed,
            )
        if not last:
            y = tables.classes[_annotators(found).posterior.argmax(axis=1)]
    learned = explain(found, choose(found), tables)
    result = complete(learned, tables, estimator, judged=True)
    return _describe(result, _annotators(found), tables, long, columns, names, ids)


def _coded(
    long: LongTable, trusted: LongTable | None, names: np.ndarray, classes: np.ndarray
) -> Annotations:
    """Annotators and labels as numbers; labels of other classes, which no row has, are left out."""

    def code(table: LongTable) -> Labels:
        known = np.isin(table.label, classes)
        return Labels(
            table.row[known],
            np.searchsorted(names, table.annotator[known]),
            np.searchsorted(classes, table.label[known]),
        )

    empty = Labels(*(np.zeros(0, int) for _ in Labels._fields))
    return Annotations(code(long), empty if trusted is None else code(trusted), len(names))


def _annotators(found: Search) -> Annotators:
    assert isinstance(found.pool, AnnotatedPool)
    return found.pool.annotators


def _describe(
    result: WeightsResult,
    annotators: Annotators,
    tables: Prepared,
    long: LongTable,
    columns: tuple[str, str, str],
    names: np.ndarray,
    ids: np.ndarray,
) -> AnnotationsResult:
    """The tables."""
    classes, posterior = tables.encoding.classes, annotators.posterior
    assert classes is not None
    known = np.isin(long.label, classes)
    code = np.minimum(np.searchsorted(classes, long.label), len(classes) - 1)
    quality = np.where(known, posterior[long.row, code], 0.0)
    labels = pd.DataFrame(
        dict(zip(columns, (ids[long.row], long.annotator, long.label), strict=True))
    ).assign(quality=quality)
    consensus = np.asarray(tables.train.y)
    codes = tables.train.targets
    agrees = long.label == consensus[long.row]
    count = np.bincount(long.row, minlength=len(ids))
    rows = pd.DataFrame(
        {
            "consensus": consensus,
            "label_quality": posterior[np.arange(len(codes)), codes],
            "annotators": count,
            "agreement": np.bincount(long.row, agrees, minlength=len(ids)) / count,
        },
        index=ids,
    )
    who = np.searchsorted(names, long.annotator)
    given = np.bincount(who, minlength=len(names))
    shared = count[long.row] > 1
    expected = annotators.noise * (1 - np.eye(len(classes))) * posterior.mean(axis=0)[:, None]
    worst = expected.reshape(len(names), -1).argmax(axis=1)
    with np.errstate(invalid="ignore"):  # of an annotator who labelled trusted rows only
        table = pd.DataFrame(
            {
                "quality": np.bincount(who, quality, minlength=len(names)) / given,
                "labels": given,
                "agreement": np.bincount(who[shared], agrees[shared], minlength=len(names))
                / np.bincount(who[shared], minlength=len(names)),
                "often_given": classes[worst % len(classes)],
                "often_true": classes[worst // len(classes)],
            },
            index=pd.Index(names, name=columns[1]),
        )
    return AnnotationsResult(
        rows,
        table.sort_values("quality", kind="stable"),
        labels,
        pd.DataFrame(posterior, ids, classes),
        result,
    )
