"""Results made by hand, and the evidence about them: what the report's tests read."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.naive_bayes import GaussianNB

from bilevel.reweighting import Check, WeightsResult, effective_sample_size, entropy
from bilevel.reweighting._report.evidence import gather_evidence
from bilevel.reweighting._weights.noise import Estimate, Noise
from bilevel.reweighting._weights.opinions import Opinions
from bilevel.reweighting._weights.verify import Verify

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "</script><script>window.hacked = 3</script>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "' onmouseover='window.hacked = 4",
    "</svg></title></style><iframe srcdoc='x'>",
    "javascript:window.hacked = 5",
]
HARMLESS = [f"name {k}" for k in range(len(HOSTILE))]


class MadeResult(WeightsResult):
    """One whose fields may be left out, and changed."""

    __setattr__ = object.__setattr__


def made_result(weights: np.ndarray, trusted: int = 20, **fields: Any) -> Any:
    """A result with these weights; label quality is their rank unless it is given."""
    ranks = np.argsort(np.argsort(weights, kind="stable"), kind="stable")
    result = object.__new__(MadeResult)
    vars(result).update(
        {
            "weights": weights,
            "trusted_weight": 1.5,
            "keep": weights >= 0.75,
            "effective_sample_size": effective_sample_size(weights),
            "entropy": entropy(weights),
            "history": pd.DataFrame(
                {
                    "step": [1, 2, 3],
                    "outer_value": [0.9, 0.6, np.nan],
                    "effective_sample_size": [99.0, 90.0, 85.0],
                    "entropy": [4.6, 4.5, 4.4],
                }
            ),
            "scores": pd.DataFrame(
                {"trusted_loss": [1.0, 0.5], "trusted_score": [0.8, 0.9]},
                index=["uniform", "capped"],
            ),
            "baselines": None,
            "checks": [Check("the trusted loss fell", True, "1 to 0.5")],
            "parameters": {"weight": np.zeros((4, 3)), "bias": np.zeros(3)},
            "stats": {"num_steps": 3, "calls": {"outer_grad": 3}},
            "winner": "weights",
            "candidates": None,
            "wrong": None,
            "noise": None,
            "label_quality": ranks / max(len(weights) - 1, 1),
            "scale": 1.0,
            "group_weights": None,
            "metric": None,
            "opinions": None,
            "counts": (np.ones(len(weights)), np.ones(trusted)),
        }
        | fields
    )
    return result


BASELINES = pd.DataFrame(
    {
        "rows": [96.0, 120.0, 24.0, 80.0],
        "score": [0.80, 0.85, 0.84, 0.90],
        "difference": [0.10, 0.05, 0.06, 0.0],
        "standard_error": [0.03, 0.02, 0.02, 0.0],
    },
    index=["uniform", "all rows + trusted", "trusted only", "reweighted"],
)


def made_noise(names: np.ndarray) -> Noise:
    """What a run could have found about these classes."""
    table = pd.DataFrame(
        {
            "rows": [30, 34, 32],
            "flagged": [5, 6, 0],
            "value": [0.163, 0.171, 0.152],
            "low": [0.11, 0.12, 0.10],
            "high": [0.23, 0.24, 0.21],
            "precision": [0.91, 0.87, np.nan],
            "precision_low": [0.72, 0.65, np.nan],
            "precision_high": [1.0, 0.99, np.nan],
        },
        index=names,
    )
    shares = Estimate(0.167, 0.125, 0.218), Estimate(0.934, 0.811, 0.999), Estimate(0.953, 0.8, 1.0)
    verify = Verify(np.array([90, 7, 31]), 0.093, 0.046)
    rate, precision, recall = shares
    return Noise(rate, 11, precision, recall, table, None, 0, verify)


def iris_evidence(words: list[str]) -> dict[str, Any]:
    """About 96 iris rows, every sixth mislabelled; the words are all their names for things."""
    X, codes = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(150)
    train, trusted, held = order[:96], order[96:120], order[120:]
    names = np.array(words[:3])
    given = codes[train].copy()
    given[::6] = (given[::6] + 1) % 3
    weights = np.where(np.arange(96) % 6 == 0, 0.1, 1.0)
    result = made_result(
        weights * 96 / weights.sum(),
        trusted=24,
        baselines=BASELINES,
        checks=[Check(words[3], False, words[4])],
        stats={words[5]: words[6]},
        noise=made_noise(names),
        wrong=np.where(np.arange(96) % 6 == 0, 0.9, 0.02),
    )
    worst = np.argsort(result.label_quality, kind="stable")
    said = np.stack([names[codes[train][worst]], names[given[worst]]], axis=1)
    likely = np.full(said.shape, 0.75)
    result.opinions = Opinions(worst, ["linear, all rows", words[7]], said, likely, likely - 0.25)
    groups = [words[i % 8] for i in range(96)]
    return gather_evidence(
        GaussianNB(),
        X[train],
        names[given],
        X[trusted],
        names[codes[trusted]],
        result,
        holdout=(X[held], names[codes[held]]),
        ids=[f"{words[i % 8]}{i}" for i in range(96)],
        groups=groups,
        holdout_groups=[words[i % 8] for i in range(30)],
        images=np.random.default_rng(0).random((96, 5, 7)),
        shared={words[7]: {"exact": 1, "near": 2, "ids": words}},
        truth=names[codes[train]],
        seconds=1.25,
        peak_memory=4e8,
    )
