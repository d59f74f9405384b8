"""`learn_weights`: from arrays to weights, with what is needed to judge them."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ._inputs.checks import check_aligned, check_seed
from ._inputs.containers import like
from ._inputs.prepare import MIN_MAX, Prepared, check_verified, prepare
from ._inputs.probabilities import (
    CHECK,
    IN_ORDER,
    check_probabilities,
    disorder,
    in_sample_smell,
)
from ._inputs.row_facts import RowColumns
from ._weights.baselines import compare_on_holdout
from ._weights.candidates import search
from ._weights.choice import choose, explain
from ._weights.diagnostics import DOES_AS_JUDGED, Check, holdout_check
from ._weights.fits import few_threads
from ._weights.folds import FOLDS
from ._weights.metric import Metric
from ._weights.result import Learned, WeightsResult

if TYPE_CHECKING:
    from .._algorithm.base import AbstractAlgorithm
    from .._callback import AbstractCallback
    from ..tasks.models import Model
else:  # free weights alone need JAX
    AbstractAlgorithm = AbstractCallback = Model = Any


def learn_weights(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    task: Literal["auto", "classification", "regression"] = "auto",
    model: Literal["linear", "mlp"] | Model = "linear",
    method: str | AbstractAlgorithm = "auto",
    groups: Any = None,
    pred_probs: Any = None,
    pred_probs_trusted: Any = None,
    given_labels_trusted: Any = None,
    precision: float | None = None,
    sample_weight: Any = None,
    sample_weight_trusted: Any = None,
    entities: Any = None,
    entities_trusted: Any = None,
    times: Any = None,
    times_trusted: Any = None,
    scoring: Any = None,
    num_steps: int | None = None,
    l2: float = 1e-2,
    scaler: Any = MIN_MAX,
    holdout: tuple[Any, Any] | None = None,
    estimator: Any = None,
    overlap: Any = None,
    seed: int = 0,
    callbacks: Sequence[AbstractCallback] = (),
    folder: str | os.PathLike | None = None,
) -> WeightsResult:
    """Learn what each training row is worth, judged by the loss on trusted rows.

    The default asks several label models, the estimator's own kind among them, how likely each label
    is to be right. None of them has seen the row. What they say is pooled with coefficients that
    trusted rows decide, and held-out folds of the trusted rows decide whether the weights are used, or
    one of the simple alternatives: see `bilevel.reweighting.cross_validated_weights`. The other
    methods give each row a weight of its own: the outer variable of a bilevel problem on the simplex
    (`bilevel.tasks.reweighting`). None has a step size to choose.

    Args:
        X: the training rows: a matrix `(rows, features)` of numbers; images; a scipy.sparse matrix; a
            torch tensor or JAX array; a table of pandas, polars, pyarrow or Hugging Face's datasets;
            or the path of a `.npy` file or a table. Text, dates and gaps in a table, and gaps (NaN) in
            an array, become numbers (for `estimator` too, unless it is a pipeline of its own, or
            trees that take gaps).
        y: their labels or targets, which may be noisy, or the name of the column of X that holds them.
        X_trusted, y_trusted: the trusted rows, a clean validation set: their labels are right, and
            their distribution is the one that counts. 50 to 1000 rows are worth most.
        task: classification, regression, or `"auto"`: regression if `y` holds numbers that are not
            integers, or more than 50 distinct ones that on average occur less than ten times.
        model: the differentiable model whose loss is used: `"linear"` (softmax, or least squares),
            `"mlp"`, or any `bilevel.tasks.models.Model`.
        method: `"auto"`, which judges uniform weights, the trusted rows alone or beside the others,
            the rows that a model of the trusted rows agrees with, the probabilities of the pool, the
            rows that are not flagged, and the ratio of densities where the trusted rows have
            another distribution. Free weights, one per row, are learned by `"near-exact"`,
            `"soba"`, or a configured algorithm such as `bilevel.SOBA(...)`; with fewer than about a
            thousand trusted rows they overfit the trusted loss. With another model than the linear
            one, `"auto"` means `"near-exact"`.
        groups: what each training row belongs to (its source, its annotator); `"auto"` then also
            learns one weight per group. A vector of labels.
        pred_probs, pred_probs_trusted: probabilities of the classes (in sorted order) for the
            training and for the trusted rows, from a model of any framework that was *not* trained on
            the row it judges (out of fold). They join the pool of label models. Both or neither. The
            columns of a data frame may be named by the classes, with a prefix that all have, and are
            then matched by name. A check, and a `UserWarning`, say if they fit the training labels
            better than they could out of fold.
        given_labels_trusted: the labels that the trusted rows had before they were verified: pairs
            that say how labels go wrong, and how often; `None` or NaN where that is not known.
        precision: the share of wrong labels among the flagged rows (`keep == False`) that is asked
            for, such as 0.9. By default the list has the greatest expected F1.
        sample_weight, sample_weight_trusted: how much each row counts: in every fit, every estimate
            and every judgement a row of weight 2 is the row twice, and one of weight 0 is absent (it
            still gets its weight and its label quality). By default all ones. Exact up to 20000
            training rows, above which models are fitted on a sample.
        entities, entities_trusted: the person, device or document that each row is of. No row is
            judged by a model that has seen rows of the same entity. Without them, rows with equal
            features belong together in this way, unless so many share them (2 % and more than 20
            rows) that it says nothing. Both or neither.
        times, times_trusted: when each row was made, numbers or dates. Trusted rows are then judged by
            models of earlier rows only: weights that make up for what has changed since are worth more
            than the past alone would say. The earliest two fifths of the trusted rows only teach.
            Training rows are ranked by models of all times, as errors in the past are found by what
            came later too. Both or neither.
        scoring: what to choose by, and to judge by on the hold-out and in the report, in place of the
            loss and of accuracy or R2: the name of a scikit-learn scorer such as
            `"average_precision"`, for which the last class in sorted order is the positive one, or a
            callable `(estimator, X, y)`. Of rows, it is asked about held-out trusted rows and the
            hold-out. `loss` in the tables is then the score with a minus; standard errors are the
            jackknife's, with 20 groups of rows.
        num_steps: outer steps for free weights; by default 20 near-exact ones, with 1000 trusted rows
            or more 60, or 10000 of SOBA.
        l2: for free weights, the strength of the model's l2 penalty.
        scaler: a scikit-learn transformer for the features, fitted on the training rows; by default
            `MinMaxScaler()`. `None` takes the features as they are.
        holdout: `(X, y)` never used in learning; brings the table of baselines and the verdict.
        estimator: the estimator that the weights are for: any scikit-learn estimator that accepts
            `sample_weight`; by default `LogisticRegression` or `Ridge` on scaled features. With
            `"auto"`, labels are judged by models of this kind too, and so are the candidates; the
            baselines on the hold-out are fitted with it.
        overlap: has no effect and goes in version 0.3. Rows that coincide are no error any more:
            they judge nothing about each other. Only the same id in two tables is an error: the index
            of data frames, if it has a name or holds text.
        seed: for batches and initial parameters. Equal calls with equal seeds give equal results.
        callbacks: for free weights, more callbacks for `solve`, such as `bilevel.ProgressBar()`.
        folder: for free weights, where to keep a checkpoint and the history; if it holds those of an
            equal call, interrupted or complete, the run continues from there (also for more
            `num_steps`).

    Returns:
        A `WeightsResult`.

    Raises:
        ValueError: about the data (an `InputError`: with the rows or columns at fault), or about
            an argument.
        BilevelError: the run met a non-finite number.

    Cost of the default: see `cross_validated_weights`. Of near-exact: 20 (60) outer steps of at most
    20 function-and-gradient evaluations and 20 Hessian-vector products each, every one about two
    matrix products with X. Memory a few times X.

    >>> import numpy as np
    >>> from sklearn.datasets import load_wine
    >>> X, y = load_wine(return_X_y=True)
    >>> trusted = np.arange(len(y)) % 2 == 0
    >>> noisy = y[~trusted].copy()
    >>> noisy[::4] = (noisy[::4] + 1) % 3  # every fourth label is made wrong
    >>> result = learn_weights(X[~trusted], noisy, X[trusted], y[trusted])
    >>> wrong = np.arange(len(noisy)) % 4 == 0
    >>> bool(result.label_quality[wrong].max() < result.label_quality[~wrong].min())
    True
    >>> round(float(np.mean(result.weights)), 6)
    1.0
    """
    extras = {
        "groups": groups,
        "pred_probs": pred_probs,
        "pred_probs_trusted": pred_probs_trusted,
        "given_labels_trusted": given_labels_trusted,
        "precision": precision,
    }
    if precision is not None and not 0 < precision <= 1:
        raise ValueError(f"`precision` must be above 0 and at most 1, got {precision}.")
    check_seed(seed)
    columns = RowColumns(
        sample_weight, sample_weight_trusted, entities, entities_trusted, times, times_trusted
    )
    check_method(method, model, num_steps, extras | columns._asdict())
    metric = Metric.of(scoring)
    if overlap is not None:
        warn_about_overlap(stacklevel=3)
    by_folds = is_cross_validated(method, model)
    for rows, ending in ((X, ""), (X_trusted, "_trusted")):
        for name, column in (extras | columns._asdict()).items():
            if name.endswith("_trusted") == bool(ending):
                check_aligned(rows, column, name)

    # What came in, checked and as numbers.
    tables = prepare(
        X,
        y,
        X_trusted,
        y_trusted,
        task=task,
        scaler=scaler,
        holdout=holdout,
        groups=groups,
        columns=columns,
        estimator=estimator,
        folds=FOLDS if by_folds else None,
    )
    if by_folds:
        probabilities = check_probabilities(
            pred_probs, pred_probs_trusted, tables.classes, len(tables.train), len(tables.trusted)
        )
        verified = check_verified(given_labels_trusted, tables)
        # Label models, the pool that they make, and candidates judged on held-out trusted rows.
        with few_threads(tables.train.features.size):
            found = search(
                *tables.train.numbers,
                *tables.trusted.numbers,
                groups=tables.groups,
                tables=tables,
                estimator=estimator,
                probabilities=probabilities,
                verified=verified,
                metric=metric,
                precision=precision,
                seed=seed,
            )
            learned = explain(found, choose(found), tables)
        for check in learned.checks:
            if check.name == DOES_AS_JUDGED and not check.passed:
                warnings.warn(f"{check.detail}.", UserWarning, stacklevel=2)
        if probabilities is not None:
            smells, detail = in_sample_smell(
                probabilities, tables.train.targets, tables.trusted.targets, verified
            )
            checks = [*learned.checks, Check(CHECK, not smells, detail)]
            doubts = [f"`pred_probs`: {detail}"] if smells else []
            if tables.classes is not None:
                odd = disorder(
                    probabilities, tables.train.targets, tables.trusted.targets, tables.classes
                )
                checks += [Check(IN_ORDER, False, said) for said in odd]
                doubts += odd
            for said in doubts:
                warnings.warn(f"{said}.", UserWarning, stacklevel=2)
            learned = learned._replace(checks=checks)
    else:
        from ._weights.free_weights import free_weights

        learned = free_weights(
            tables,
            model=model,
            method="near-exact" if method == "auto" else method,
            num_steps=num_steps,
            l2=l2,
            seed=seed,
            callbacks=callbacks,
            folder=folder,
        )

    return complete(learned, tables, estimator, judged=by_folds, metric=metric)


def complete(
    learned: Learned,
    tables: Prepared,
    estimator: Any,
    *,
    judged: bool,
    metric: Metric | None = None,
) -> WeightsResult:
    """The result, with what the hold-out says of it; `judged` if it was chosen on folds."""
    # Whether it paid, on rows that took no part in it.
    baselines = compare_on_holdout(
        estimator,
        tables,
        learned.scale * learned.weights,
        learned.scale * learned.trusted_weight,
        metric,
    )
    checks = learned.checks
    if baselines is not None:
        checks = [*checks, holdout_check(baselines, learned.winner, judged=judged)]
    parts = learned._asdict() | {
        "weights": like(learned.weights, tables.given, "weight"),
        "label_quality": like(learned.label_quality, tables.given, "label_quality"),
        "checks": checks,
    }
    counts = tables.train.facts.weight, tables.trusted.facts.weight
    return WeightsResult(
        **parts, baselines=baselines, encoding=tables.encoding, counts=counts, metric=metric
    )


def warn_about_overlap(stacklevel: int) -> None:
    """Say that the argument is gone."""
    warnings.warn(
        "`overlap` has no effect and goes in version 0.3: rows that coincide are no error, and judge "
        "nothing about each other. Leave it out.",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def is_cross_validated(method: Any, model: Any) -> bool:
    """Whether weights are chosen on folds of the trusted rows; otherwise each row has its own."""
    return method == "auto" and model == "linear"


def check_method(method: Any, model: Any, num_steps: int | None, extras: Mapping[str, Any]) -> None:
    """Refuse what does not fit the method, before anything is computed.

    Raises:
        ValueError: `num_steps`, or one of the `extras`, for a method that does not have it.
    """
    if is_cross_validated(method, model):
        if num_steps is not None:
            raise ValueError(
                "`num_steps` has no meaning for method='auto', which chooses where to stop; leave "
                "it out, or choose method='near-exact'."
            )
        return
    for name, value in extras.items():
        if value is not None:
            raise ValueError(f"`{name}` needs method='auto' and model='linear'.")
