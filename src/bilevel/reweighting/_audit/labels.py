"""Checks of labels: missing ones, spelling, kinds, classes, and how they are distributed."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, ks_2samp

from .._inputs.checks import PROSE
from .._inputs.scalars import spelled_alike
from .finding import Finding, Severity, counted, listed
from .view import View

FEW = 5  # trusted rows of a class
UNLIKELY = 1e-3  # p-value


def missing_labels(view: View) -> list[Finding]:
    """Rows without a label."""
    found = []
    for name, labels in view.labels.items():
        missing = tuple(view.tables[name].ids[np.asarray(labels.isna())])
        if missing:
            detail = (
                f"{counted(missing, 'row')} without one: {listed(missing)}. Label or drop them."
            )
            title = f"labels of the {PROSE[name]} rows"
            found.append(Finding("problem", title, detail, missing, table=name))
    return found


def spelling(view: View) -> list[Finding]:
    """Labels that differ only in what a reader would not see, or not take for a difference."""
    groups = spelled_alike(x for s in view.labels.values() for x in s.dropna().unique())
    alike = tuple(x for group in groups for x in group)
    if not alike:
        return []
    detail = (
        "labels that differ only in case, in spaces, or in what cannot be seen: "
        f"{', '.join(map(ascii, alike[:6]))}{f' and {len(alike) - 6} more' * (len(alike) > 6)}. "
        "Give them one spelling; `bilevel fix` does."
    )
    return [Finding("warning", "spelling of the labels", detail, alike)]


def kinds(view: View) -> list[Finding]:
    """Labels of several kinds: 0 and 1 beside true and false, numbers beside texts."""
    values = [x for given in view.given.values() for x in _distinct(given)]
    texts = {x.strip().casefold() for x in values if isinstance(x, str)}
    truths = [x for x in values if isinstance(x, (bool, np.bool_))]
    numbers = {
        x for x in values if isinstance(x, (int, float, np.number)) and not isinstance(x, bool)
    }
    title = "kinds of the labels"
    said_true = bool(truths) or bool(texts & {"true", "false"})
    said_digit = bool(numbers & {0, 1}) or bool(texts & {"0", "1"})
    if said_true and said_digit:
        at_fault = tuple(x for x in values if str(x).strip().casefold() in _TRUTHS)
        detail = (
            f"truth values are written in two ways: {listed(at_fault)}. They may become four "
            "classes: give them one spelling."
        )
        return [Finding("problem", title, detail, at_fault)]
    if numbers and texts:
        some = (*sorted(numbers)[:3], *sorted(texts)[:3])
        detail = (
            f"{len(numbers)} labels are numbers and {len(texts)} are text, such as {listed(some)}: "
            "the class 1 is not the class '1'. Convert them all to text, or all to numbers."
        )
        return [Finding("problem", title, detail, some)]
    return []


def _distinct(labels: pd.Series) -> list[Any]:
    """The values, those apart that are equal and of different kinds, such as 1 and True."""
    if labels.dtype != object:
        return pd.unique(labels.dropna()).tolist()
    return list({(type(x), x): x for x in labels.dropna()}.values())


_TRUTHS = {"true", "false", "0", "1", "0.0", "1.0"}


def classes(view: View) -> list[Finding]:
    """Classes that a table lacks, or has too few rows of."""
    if view.regression:
        return []
    counts, names = class_counts(view)
    title = "classes"
    if len(names) < 2:
        detail = (
            f"all labels are {listed(names)}: there is nothing to classify. Check that the label "
            "column is the right one."
        )
        return [Finding("problem", title, detail, tuple(names))]
    found = []

    def report(severity: Severity, which: np.ndarray, detail: str, table: str) -> None:
        rows = tuple(names[k] for k in np.flatnonzero(which))
        if rows:
            detail = f"{counted(rows, 'class', 'classes')} {detail.format(listed(rows))}"
            found.append(Finding(severity, title, detail, rows, table=table))

    mend = "Add rows, mend the spelling of the labels, or remove the class."
    for name in list(counts)[1:]:
        severity = "problem" if name == "trusted" else "warning"
        here, train = counts[name] > 0, counts["train"] > 0
        report(
            severity,
            train & ~here,
            f"in the training but not in the {PROSE[name]} rows: {{}}. {mend}",
            name,
        )
        report(
            "problem",
            here & ~train,
            f"in the {name} but not in the training rows: {{}}. {mend}",
            name,
        )
    if "trusted" not in counts:
        return found
    few = (counts["trusted"] > 0) & (counts["trusted"] < FEW)
    detail = f"with fewer than {FEW} trusted rows: {{}}. Verify more; `bilevel suggest` names some."
    report("warning", few, detail, "trusted")
    return found


def class_counts(view: View) -> tuple[dict[str, np.ndarray], list[Any]]:
    """(how many rows of each class each table has, the classes)."""
    known = {name: y.dropna().astype(object) for name, y in view.labels.items()}
    names = list(pd.unique(pd.concat(list(known.values()))))
    index = pd.Index(names, dtype=object)
    return {
        name: y.value_counts().reindex(index, fill_value=0).to_numpy() for name, y in known.items()
    }, names


def label_drift(view: View) -> list[Finding]:
    """Whether training and trusted labels are distributed alike."""
    if "trusted" not in view.labels:
        return []
    return _target_shift(view.labels) if view.regression else _class_shares(view)


def _class_shares(view: View) -> list[Finding]:
    counts, names = class_counts(view)
    both = (counts["train"] > 0) & (counts["trusted"] > 0)
    if len(names) < 2 or both.sum() < 2:
        return []
    pair = np.stack([counts["train"][both], counts["trusted"][both]])
    test: Any = chi2_contingency(pair, correction=False)
    p = float(test.pvalue)
    train, trusted = pair / pair.sum(axis=1, keepdims=True)
    most = int(np.abs(trusted - train).argmax())
    label = names[np.flatnonzero(both)[most]]
    detail = (
        f"shares of training and trusted rows differ most for {listed([label])}: {train[most]:.1%} "
        f"against {trusted[most]:.1%} (chi-squared p = {p:.2g})."
    )
    if p < UNLIKELY:
        detail += (
            " Label noise does this, and so does a trusted set that was not drawn at random: which "
            "one is yours?"
        )
    severity: Severity = "warning" if p < UNLIKELY else "ok"
    return [Finding(severity, "shares of the classes", detail, (label,) * (p < UNLIKELY))]


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
