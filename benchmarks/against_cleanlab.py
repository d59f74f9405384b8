"""cleanlab and `cross_validated_weights` on the same noisy rows, with the same trusted rows.

scikit-learn's digits: 1000 training rows of which a share has a wrong label (always another class),
200 trusted rows, 597 rows to test on; features in [0, 1]; the same logistic regression everywhere,
refitted from scratch. cleanlab is given the trusted rows in three ways: with its defaults, by
`CleanLearning`, with the trusted rows among the others; by out-of-sample probabilities of models of
the other folds and the trusted rows (five folds); and by probabilities of a model of the trusted rows
alone. In the last two, the rows that it does not flag are kept and the trusted rows are added.

Needs `pip install cleanlab`, which is no dependency of this package.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from _measure import write
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import MinMaxScaler

from bilevel.datasets import flip_to_different
from bilevel.reweighting import cross_validated_weights

NUM_ROWS, NUM_TRUSTED, RATES = 1000, 200, (0.2, 0.4, 0.6)


class Split(NamedTuple):
    """One split: noisy training rows, trusted rows, hold-out rows."""

    X: np.ndarray
    y: np.ndarray
    X_trusted: np.ndarray
    y_trusted: np.ndarray
    X_holdout: np.ndarray
    y_holdout: np.ndarray
    wrong: np.ndarray
    seed: int


class Found(NamedTuple):
    """What a method says: a quality for each training row, and weights for the refit."""

    quality: np.ndarray
    weights: np.ndarray
    trusted_weight: float = 1.0
    final: Any = None  # a model that is already fitted, in place of a refit on the weights


def split(rate: float, seed: int) -> Split:
    """The rows of one seed."""
    X, y = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(len(y))
    train, trusted, holdout = np.split(order, [NUM_ROWS, NUM_ROWS + NUM_TRUSTED])
    labels, wrong = flip_to_different(y[train], rate, seed=seed)
    X = MinMaxScaler().fit(X[train]).transform(X)
    return Split(X[train], labels, X[trusted], y[trusted], X[holdout], y[holdout], wrong, seed)


def model() -> LogisticRegression:
    """The classifier that all share."""
    return LogisticRegression(max_iter=1000)


def out_of_sample(s: Split) -> np.ndarray:
    """Class probabilities of the training rows, by models of the other folds and the trusted rows."""
    probabilities = np.empty((len(s.y), 10))
    for fit, judge in StratifiedKFold(5, shuffle=True, random_state=s.seed).split(s.X, s.y):
        rows, labels = np.r_[s.X[fit], s.X_trusted], np.r_[s.y[fit], s.y_trusted]
        probabilities[judge] = model().fit(rows, labels).predict_proba(s.X[judge])
    return probabilities


def by_trusted(s: Split) -> np.ndarray:
    """The same by a model of the trusted rows."""
    return model().fit(s.X_trusted, s.y_trusted).predict_proba(s.X)


def with_probabilities(probabilities: Callable[[Split], np.ndarray]) -> Callable[[Split], Found]:
    """`find_label_issues` and `get_label_quality_scores` with their defaults."""

    def method(s: Split) -> Found:
        p = probabilities(s)
        issues = import_module("cleanlab.filter").find_label_issues(s.y, p, n_jobs=1)
        return Found(import_module("cleanlab.rank").get_label_quality_scores(s.y, p), 1.0 * ~issues)

    return method


def clean_learning(s: Split) -> Found:
    """`CleanLearning` with its defaults on training and trusted rows together, and its own refit.

    It may flag and leave out trusted rows, and weighs classes by the noise that it estimates.
    """
    learner = import_module("cleanlab.classification").CleanLearning(
        model(), seed=s.seed, find_label_issues_kwargs={"n_jobs": 1}
    )
    learner.fit(np.r_[s.X, s.X_trusted], np.r_[s.y, s.y_trusted])
    issues = learner.get_label_issues()[: len(s.y)]
    kept = 1.0 * ~issues["is_label_issue"].to_numpy()
    return Found(issues["label_quality"].to_numpy(), kept, final=learner)


def ours(s: Split) -> Found:
    """Weights from a few features, chosen on folds of the trusted rows."""
    found = cross_validated_weights(s.X, s.y, s.X_trusted, s.y_trusted, seed=s.seed)
    if not found.weights.any():  # the trusted rows alone won
        return Found(found.label_quality, found.weights)
    scale = found.scale
    return Found(found.label_quality, scale * found.weights, scale * found.trusted_weight)


def all_rows(s: Split) -> Found:
    """No cleaning; the quality is that of cross-validated models."""
    return Found(out_of_sample(s)[np.arange(len(s.y)), s.y], np.ones(len(s.y)))


def trusted_only(s: Split) -> Found:
    """The training rows are not used."""
    return Found(by_trusted(s)[np.arange(len(s.y)), s.y], np.zeros(len(s.y)))


def label_filter(s: Split) -> Found:
    """Keep the rows whose label the model of the trusted rows predicts."""
    p = by_trusted(s)
    return Found(p[np.arange(len(s.y)), s.y], 1.0 * (p.argmax(1) == s.y))


def oracle(s: Split) -> Found:
    """The rows whose label is right, which nobody knows."""
    return Found(1.0 * ~s.wrong, 1.0 * ~s.wrong)


OURS = "cross_validated_weights"
METHODS: dict[str, Callable[[Split], Found]] = {
    "all rows + trusted": all_rows,
    "trusted only": trusted_only,
    "filter": label_filter,
    "CleanLearning": clean_learning,
    "cleanlab, models of all rows + trusted": with_probabilities(out_of_sample),
    "cleanlab, model of the trusted rows": with_probabilities(by_trusted),
    OURS: ours,
    "right rows + trusted (oracle)": oracle,
}


def run(rate: float, seed: int) -> pd.DataFrame:
    """All methods on one split, one line each."""
    s, lines = split(rate, seed), []
    for name, method in METHODS.items():
        start = time.process_time()
        found = method(s)
        cpu = time.process_time() - start
        weights = np.r_[found.weights, np.full(len(s.y_trusted), found.trusted_weight)]
        used = weights > 0
        rows, labels = np.r_[s.X, s.X_trusted][used], np.r_[s.y, s.y_trusted][used]
        final = found.final or model().fit(rows, labels, sample_weight=weights[used])
        auroc = roc_auc_score(s.wrong, -found.quality)
        lines.append((name, rate, auroc, final.score(s.X_holdout, s.y_holdout), cpu))
    table = pd.DataFrame(lines, columns=["method", "noise", "auroc", "accuracy", "cpu"])
    ours = table.loc[table["method"] == OURS, "accuracy"].item()
    return table.assign(**{"ours better by": ours - table["accuracy"]})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    try:
        version = import_module("cleanlab").__version__
    except ModuleNotFoundError:
        print("cleanlab is not installed, so nothing is compared: pip install cleanlab")
        return
    warnings.simplefilter("ignore", ConvergenceWarning)
    table: Any = pd.concat([run(rate, seed) for rate in RATES for seed in range(options.seeds)])
    found: dict[str, dict[str, Any]] = {}
    for (method, rate), rows in table.groupby(["method", "noise"], sort=False):
        found.setdefault(str(method), {})[f"{rate:.0%}"] = {
            value: {"mean": rows[value].mean(), "standard_error": rows[value].sem()}
            for value in ("auroc", "accuracy", "ours better by")
        }
    measured = {
        "settings": {"rows": NUM_ROWS, "trusted": NUM_TRUSTED, "rates": RATES, "folds": 5},
        "seeds": list(range(options.seeds)),
        "cleanlab": version,
        "methods": found,
        "cpu_seconds_per_split": table.groupby("method", sort=False)["cpu"].median().to_dict(),
    }
    write(__file__, measured)


if __name__ == "__main__":
    main()
