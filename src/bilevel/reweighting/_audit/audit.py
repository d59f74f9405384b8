"""What is wrong with tables before anything is learned: leaks, duplicates, conflicts, shifts."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, ks_2samp, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from .._inputs.checks import PROSE, InputError
from .._inputs.prepare import is_regression
from .._inputs.scalars import LARGEST, seen
from .duplicates import (
    Table,
    as_frame,
    as_labels,
    encode,
    group_conflicts,
    group_equal,
    is_number,
    match_rows,
    row_codes,
    scale,
)
from .finding import Audit, Finding, Severity, counted, listed

CAP = 4000  # rows of the checks that fit one model per column
FEW = 5  # trusted rows of a class
ALONE, SHIFTED, UNLIKELY = 0.99, 0.6, 1e-3  # accuracy, AUC, p-value


def audit(
    train: Any,
    y: Any,
    trusted: Any,
    y_trusted: Any,
    holdout: Any = None,
    y_holdout: Any = None,
    *,
    task: str = "auto",
    seed: int = 0,
) -> Audit:
    """Everything about the tables that would make weights, or their proof, worthless; in seconds.

    Checks: columns that differ between the tables; rows and ids that two tables share, exactly or
    nearly (`find_shared_rows`); repeated rows; equal rows with different labels; missing labels,
    and labels that differ only in case, spaces or what cannot be seen; a single class; infinite or
    far too large numbers; constant columns; a single column that determines
    the label, of the training or of the trusted rows (a decision tree of depth log2(classes) + 2, 5
    folds, accuracy 0.99 or more where the largest class has less than 0.9; for regression, a rank
    correlation of 0.999); class shares, trusted against training rows (chi-squared, p < 0.001; targets
    by Kolmogorov and Smirnov); classes with fewer than 5 trusted rows; and a logistic model that
    tells two tables apart (5 folds, AUC of 0.6, and 4 standard errors above 0.5). Checks that fit
    models see at most 4000 rows, drawn with the seed.

    Args:
        train, y: training rows, a data frame or a matrix, and their labels.
        trusted, y_trusted: the trusted rows.
        holdout, y_holdout: rows that the result is to be judged on, if there are any.
        task: "classification", "regression", or "auto", which looks at `y`.
        seed: of the folds and of the rows drawn.

    Raises:
        InputError: a table without rows or with repeated column names, no column that all tables
            share, or not one label per row.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 4)); y = (X @ [1, 1, 1, 1] > 0).astype(int)
    >>> found = audit(X[:200], y[:200], np.vstack([X[200:], X[7:8]]), np.append(y[200:], y[7]))
    >>> print([(f.title, f.ids) for f in found.findings if f.severity == "problem"])
    [('training rows among the trusted rows', (7,))]
    """
    given = {"train": (train, y), "trusted": (trusted, y_trusted)}
    if holdout is not None:
        given["holdout"] = holdout, y_holdout
    frames = {name: as_frame(rows) for name, (rows, _) in given.items()}
    for name, frame in frames.items():
        if len(frame) == 0:
            raise InputError(
                f"there are zero {PROSE[name]} rows; nothing can be learned from them."
            )
    labels = {
        name: as_labels(values, frames[name], f"{PROSE[name]} labels")
        for name, (_, values) in given.items()
    }
    regression = is_regression(task, labels["train"].dropna())
    findings = _columns(frames)
    common = [c for c in frames["train"].columns if all(c in f.columns for f in frames.values())]
    if not common:
        raise InputError("the tables have no column in common; check that they belong together.")
    tables = dict(
        zip(frames, encode(*(pd.DataFrame(f[common]) for f in frames.values())), strict=True)
    )
    codes = dict(zip(tables, row_codes(*tables.values()), strict=True))
    rng = np.random.default_rng(seed)

    for one, other in (("train", "trusted"), ("train", "holdout"), ("trusted", "holdout")):
        if other in tables:
            shared = match_rows(tables[one], tables[other], codes[one], codes[other])
            findings += _overlap(shared, tables, labels, one, other)
            findings += _shared_ids(frames[one].index, frames[other].index, one, other)
    for name, table in tables.items():
        findings += _repeated_ids(frames[name].index, name)
        findings += _repeated(group_equal(table.ids, codes[name]), name, len(table.ids))
        conflicts = group_conflicts(table.ids, codes[name], labels[name], regression)
        findings += _at_odds(conflicts, name)
        findings += _missing_labels(labels[name], table.ids, name)
        findings += _infinite(frames[name], labels[name], name)
    findings += _constant(tables["train"])
    for name in ("train", "trusted"):  # wrong labels hide the leak of right ones
        findings += _leaks(tables[name], labels[name], name, regression, rng)
    if regression:
        findings += _target_shift(labels)
    else:
        findings += [*_spelling(labels), *_class_shares(labels)]
    for one, other in (("train", "trusted"), ("holdout", "trusted")):
        if one in tables:
            findings += _shift(tables[one], tables[other], one, other, rng)
    return Audit(findings)


def _columns(frames: dict[str, pd.DataFrame]) -> list[Finding]:
    train, title = frames["train"], "columns"
    found = []
    for name, frame in list(frames.items())[1:]:
        missing = [c for c in train.columns if c not in frame.columns]
        extra = [c for c in frame.columns if c not in train.columns]
        if missing or extra:
            parts = [f"the {PROSE[name]} rows lack {listed(missing)}"] * bool(missing)
            parts += [f"only the {PROSE[name]} rows have {listed(extra)}"] * bool(extra)
            detail = "; ".join(parts) + ". Mend the names, or drop these columns."
            found.append(Finding("problem", title, detail, (*missing, *extra)))
        common = [c for c in train.columns if c in frame.columns]
        mixed = [
            c
            for c in common
            if {is_number(pd.Series(f[c])) for f in (train, frame)} == {True, False}
        ]
        if mixed:
            detail = (
                f"{counted(mixed, 'column')} of numbers in one and text in the other of training and "
                f"{PROSE[name]} rows: {listed(mixed)}. Look for stray text (a decimal comma, 'n/a')."
            )
            found.append(Finding("warning", title, detail, tuple(mixed)))
    detail = f"all tables have the same {train.shape[1]} columns, of the same kinds."
    return found or [Finding("ok", title, detail)]


def _overlap(
    shared: pd.DataFrame,
    tables: dict[str, Table],
    labels: dict[str, pd.Series],
    one: str,
    other: str,
) -> list[Finding]:
    title = f"{PROSE[one]} rows among the {PROSE[other]} rows"
    row, place = shared["row"].to_numpy(), shared["other"].to_numpy()
    given, verified = (labels[name].to_numpy(dtype=object) for name in (one, other))
    differ = given[row] != verified[place]
    exact = (shared["kind"] == "exact").to_numpy()
    kinds: list[tuple[np.ndarray, Severity, str, str]] = [
        (exact, "problem", "equal", "a row must not judge itself"),
        (~exact, "warning", "nearly equal", f"perhaps copies; {shared.attrs['note']}"),
    ]
    found = []
    for which, severity, what, why in kinds:
        ids = tuple(tables[one].ids[row[which]])
        if ids:
            detail = (
                f"{counted(ids, PROSE[one] + ' row')} {what} to a {PROSE[other]} row ({why}), "
                f"{int(differ[which].sum())} with another label: {listed(ids)} (there: "
                f"{listed(tables[other].ids[place[which]])}). Remove them from the "
                f"{PROSE[one]} rows, unless distinct rows can be so alike."
            )
            found.append(Finding(severity, title, detail, ids))
    return found or [Finding("ok", title, f"none ({shared.attrs['note']}).")]


def _shared_ids(index: pd.Index, others: pd.Index, one: str, other: str) -> list[Finding]:
    if isinstance(index, pd.RangeIndex) or isinstance(others, pd.RangeIndex):
        return []  # they were counted, not given
    title = f"ids of {PROSE[one]} and {PROSE[other]} rows"
    ids = tuple(index[index.isin(others)].unique())
    if not ids:
        return [Finding("ok", title, "no id occurs in both.")]
    detail = (
        f"{counted(ids, 'id')} in both tables: {listed(ids)}. If they name the same thing, remove it "
        f"from the {PROSE[one]} rows; if not, give the tables distinct ids."
    )
    return [Finding("warning", title, detail, ids)]


def _repeated_ids(index: pd.Index, name: str) -> list[Finding]:
    ids = tuple(index[index.duplicated()].unique())
    detail = f"{counted(ids, 'id')} of several rows: {listed(ids)}. Give each row its own."
    return [Finding("warning", f"ids of the {PROSE[name]} rows", detail, ids)] if ids else []


def _repeated(duplicates: pd.DataFrame, name: str, n: int) -> list[Finding]:
    title = f"repeated {PROSE[name]} rows"
    later = tuple(duplicates.loc[duplicates["group"].duplicated(), "id"])
    if not later:
        return [Finding("ok", title, f"the {n} rows differ from each other.")]
    detail = (
        f"{counted(later, 'row')} ({len(later) / n:.1%}) equal to an earlier row: {listed(later)}. "
        "Each of them counts again; remove them unless they were measured again."
    )
    return [Finding("warning", title, detail, later)]


def _at_odds(conflicts: pd.DataFrame, name: str) -> list[Finding]:
    title = f"equal {PROSE[name]} rows with different labels"
    if len(conflicts) == 0:
        return [Finding("ok", title, "none.")]
    ids = tuple(i for group in conflicts["ids"] for i in group)
    first = conflicts.iloc[0]
    detail = (
        f"{counted(conflicts, 'group')} of together {len(ids)} rows; the rows {listed(first['ids'])} "
        f"are labelled {listed(first['labels'])}. "
    )
    if "spread" in conflicts:
        detail += f"The targets of equal rows differ by up to {first['spread']:.4g}. "
    severity = "warning" if name == "train" else "problem"
    detail += (
        "At least one label is wrong: weights will tell which."
        if severity == "warning"
        else "At least one label is wrong, and these must be right: verify them."
    )
    return [Finding(severity, title, detail, ids)]


def _missing_labels(labels: pd.Series, ids: np.ndarray, name: str) -> list[Finding]:
    missing = tuple(ids[np.asarray(labels.isna())])
    detail = f"{counted(missing, 'row')} without one: {listed(missing)}. Label or drop them."
    return (
        [Finding("problem", f"labels of the {PROSE[name]} rows", detail, missing)]
        if missing
        else []
    )


def _infinite(frame: pd.DataFrame, labels: pd.Series, name: str) -> list[Finding]:
    """Numbers that nothing can be computed with."""
    values = frame.select_dtypes("number")
    if is_number(labels):
        values = values.assign(**{"the label": labels.to_numpy()})
    large = np.abs(values.to_numpy(dtype=np.float64, na_value=np.nan)) > LARGEST
    ids = tuple(np.asarray(frame.index)[large.any(axis=1)].tolist())
    if not ids:
        return []
    columns = [str(c) for c in np.asarray(values.columns)[large.any(axis=0)]]
    detail = (
        f"{counted(ids, 'row')} with infinite or far too large numbers in {listed(columns)}: "
        f"{listed(ids)}. Replace them, or leave them empty."
    )
    return [Finding("problem", f"numbers of the {PROSE[name]} rows", detail, ids)]


def _constant(table: Table) -> list[Finding]:
    names = [*table.number_names, *table.text_names]
    values = np.hstack([table.numbers, table.codes])
    same = ((values == values[:1]) | (np.isnan(values) & np.isnan(values[:1]))).all(axis=0)
    columns = tuple(name for name, s in zip(names, same, strict=True) if s)
    if not columns:
        return [Finding("ok", "constant columns", "none.")]
    detail = (
        f"{counted(columns, 'column')} with one value in all training rows: {listed(columns)}. "
        "Nothing can be learned from them: drop them, or find out why they are constant."
    )
    return [Finding("warning", "constant columns", detail, columns)]


def _leaks(
    table: Table, labels: pd.Series, name: str, regression: bool, rng: np.random.Generator
) -> list[Finding]:
    """Columns that determine the label alone."""
    title = f"columns that give the label away, {PROSE[name]} rows"
    known = rng.permutation(np.flatnonzero(labels.notna()))[:CAP]
    if len(known) < 50:
        return []
    table, y = table.take(known), labels.to_numpy()[known]
    if regression:
        score = [_rank_correlation(x, y) for x in table.numbers.T]
        alone, measure, names = 0.999, "rank correlation", table.number_names
    else:
        y = pd.factorize(y)[0]
        if np.bincount(y).max() >= 0.9 * len(y) or y.max() > len(y) / 10:
            return []  # one class, or hardly two rows of any
        fold = np.arange(len(y)) % 5  # the rows are in random order
        score = [_tree_accuracy(x, y, fold) for x in table.numbers.T]
        score += [_value_accuracy(x, y, fold) for x in table.codes.T]
        alone, measure, names = ALONE, "accuracy", [*table.number_names, *table.text_names]
    columns = {n: s for n, s in zip(names, score, strict=True) if s >= alone}
    if not columns:
        return [Finding("ok", title, f"no single column reaches {measure} {alone}.")]
    best = max(columns.values())
    detail = (
        f"{counted(columns, 'column')} from which alone the label is known ({measure} up to "
        f"{best:.4f}): {listed(columns)}. If they are made from the label, or known only after it, "
        "drop them; if the task is that easy, keep them."
    )
    return [Finding("problem", title, detail, tuple(columns))]


def _tree_accuracy(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """5-fold accuracy of a tree on one column; 0 where it cannot be high.

    A tree of L leaves with e errors leaves at most L + 2 e changes of the label along the column.
    """
    depth = int(np.ceil(np.log2(y.max() + 1))) + 2
    changes = np.count_nonzero(np.diff(y[np.lexsort((y, x))]))
    if changes > 2**depth + 4 * (1 - ALONE) * len(y) or not np.isfinite(x).any():
        return 0.0
    x = np.clip(x - np.median(x[np.isfinite(x)]), -1e38, 1e38)  # trees think in float32
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0)
    right = 0
    for k in range(5):
        train = fold != k
        tree.fit(x[train, None], y[train])
        right += int((tree.predict(x[~train, None]) == y[~train]).sum())
    return right / len(y)


def _value_accuracy(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """5-fold accuracy of the most frequent label of each text."""
    labels, cells = y.max() + 1, (x + 1) * (y.max() + 1) + y
    right = 0
    for k in range(5):
        train = fold != k
        count = np.bincount(cells[train], minlength=(x.max() + 2) * labels).reshape(-1, labels)
        count = count + np.bincount(y[train], minlength=labels) / (len(y) + 1)  # for unseen texts
        right += int((count.argmax(axis=1)[x[~train] + 1] == y[~train]).sum())
    return right / len(y)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, without sign, of the rows without gaps; 0 for a constant or nearly empty column."""
    known = ~np.isnan(x)
    if known.sum() < 50 or np.ptp(x[known]) == 0:
        return 0.0
    return float(abs(np.corrcoef(rankdata(x[known]), rankdata(y[known]))[0, 1]))


def _spelling(labels: dict[str, pd.Series]) -> list[Finding]:
    texts = {x for s in labels.values() for x in s.dropna().unique() if isinstance(x, str)}
    same: dict[str, list[str]] = {}
    for text in sorted(texts):
        same.setdefault(" ".join(seen(text).casefold().split()), []).append(text)
    alike = tuple(x for group in same.values() if len(group) > 1 for x in group)
    detail = (
        "labels that differ only in case, in spaces, or in what cannot be seen: "
        f"{listed(alike)}. Give them one spelling."
    )
    return [Finding("warning", "spelling of the labels", detail, alike)] if alike else []


def _class_shares(labels: dict[str, pd.Series]) -> list[Finding]:
    title = "classes"
    known = {name: y.dropna().astype(object) for name, y in labels.items()}
    classes = list(pd.unique(pd.concat(list(known.values()))))
    counts = {
        name: y.value_counts().reindex(pd.Index(classes, dtype=object), fill_value=0).to_numpy()
        for name, y in known.items()
    }
    found = []
    if len(classes) < 2:
        detail = (
            f"all labels are {listed(classes)}: there is nothing to classify. Check that the label "
            "column is the right one."
        )
        return [Finding("problem", title, detail, tuple(classes))]

    def report(severity: Severity, which: np.ndarray, detail: str) -> None:
        rows = tuple(classes[k] for k in np.flatnonzero(which))
        if rows:
            detail = f"{counted(rows, 'class', 'classes')} {detail.format(listed(rows))}"
            found.append(Finding(severity, title, detail, rows))

    mend = "Add rows, mend the spelling of the labels, or remove the class."
    for name in list(counts)[1:]:
        severity = "problem" if name == "trusted" else "warning"
        here, train = counts[name] > 0, counts["train"] > 0
        report(
            severity,
            train & ~here,
            f"in the training but not in the {PROSE[name]} rows: {{}}. {mend}",
        )
        report(
            "problem", here & ~train, f"in the {name} but not in the training rows: {{}}. {mend}"
        )
    few = (counts["trusted"] > 0) & (counts["trusted"] < FEW)
    detail = f"with fewer than {FEW} trusted rows: {{}}. Verify more; `bilevel suggest` names some."
    report("warning", few, detail)

    both = (counts["train"] > 0) & (counts["trusted"] > 0)
    if both.sum() < 2:
        return found
    pair = np.stack([counts["train"][both], counts["trusted"][both]])
    test: Any = chi2_contingency(pair, correction=False)
    p = float(test.pvalue)
    train, trusted = pair / pair.sum(axis=1, keepdims=True)
    most = int(np.abs(trusted - train).argmax())
    label = classes[np.flatnonzero(both)[most]]
    detail = (
        f"shares of training and trusted rows differ most for {listed([label])}: {train[most]:.1%} "
        f"against {trusted[most]:.1%} (chi-squared p = {p:.2g})."
    )
    if p < UNLIKELY:
        detail += (
            " Label noise does this, and so does a trusted set that was not drawn at random: which "
            "one is yours?"
        )
    elif found:
        return found
    return [
        *found,
        Finding("warning" if p < UNLIKELY else "ok", title, detail, (label,) * (p < UNLIKELY)),
    ]


def _target_shift(labels: dict[str, pd.Series]) -> list[Finding]:
    y, y_trusted = (labels[name].dropna().to_numpy(float) for name in ("train", "trusted"))
    if not (len(y) and len(y_trusted)):
        return []
    test: Any = ks_2samp(y, y_trusted)
    p = float(test.pvalue)
    detail = (
        f"median {np.median(y):.4g} in the training and {np.median(y_trusted):.4g} in the trusted "
        f"rows (Kolmogorov-Smirnov p = {p:.2g})"
    )
    if p >= UNLIKELY:
        return [Finding("ok", "targets", f"distributed alike: {detail}.")]
    detail = (
        f"distributed differently: {detail}. Wrong targets do this, and so does a trusted set that "
        "was not drawn at random: which one is yours?"
    )
    return [Finding("warning", "targets", detail)]


def _shift(
    one: Table, other: Table, name: str, other_name: str, rng: np.random.Generator
) -> list[Finding]:
    """Whether a logistic model tells the rows of two tables apart."""
    title = f"distribution of {PROSE[name]} and {PROSE[other_name]} rows"
    one, other = (t.take(rng.permutation(len(t.ids))[:CAP]) for t in (one, other))
    n, m = len(one.ids), len(other.ids)
    if min(n, m) < 10:
        return []
    gaps = np.concatenate([~np.isfinite(t.numbers) for t in (one, other)]).astype(float)
    x = [np.concatenate(scale([one, other], rng)), gaps[:, np.ptp(gaps, axis=0) > 0]]
    for column in np.concatenate([one.codes, other.codes]).T:
        value, count = np.unique(column, return_counts=True)
        x.append(column[:, None] == value[np.argsort(-count)[:20]])
    x = np.hstack(x)
    if x.shape[1] == 0:
        return []
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3))
    side = np.repeat([0, 1], [n, m])
    folds = StratifiedKFold(5, shuffle=True, random_state=int(rng.integers(2**31)))
    areas = []
    for train, test in folds.split(x, side):
        model.fit(x[train], side[train])
        areas.append(roc_auc_score(side[test], model.decision_function(x[test])))
    area, error = float(np.mean(areas)), float(np.sqrt((n + m + 1) / (12 * n * m)))
    detail = (
        f"a logistic model tells them apart with an AUC of {area:.3f} (standard error {error:.3f})"
    )
    if area < max(SHIFTED, 0.5 + 4 * error):
        return [Finding("ok", title, f"{detail}; 0.5 is chance.")]
    detail += (
        "; 0.5 is chance. Weights will prefer rows that look like the trusted ones: that is right if "
        "the model will meet such rows, and wrong if they were chosen because they are easy to verify."
    )
    return [Finding("warning", title, detail)]
