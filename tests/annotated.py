"""Rows of three clusters with the labels of simulated annotators."""

import numpy as np
import pandas as pd


def simulated(seed=0, n=400, m=60, classes=3):
    """Rows of three clusters, and nine annotators of very different care."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n + m)
    X = pd.DataFrame(3 * np.eye(classes)[y] + 1.3 * rng.normal(size=(n + m, classes)))
    X.index = [f"r{i}" for i in range(n + m)]
    skill = np.array([0.97, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.34])
    row = np.repeat(np.arange(n + m), 3)
    who = np.concatenate([rng.choice(9, 3, replace=False) for _ in range(n + m)])
    wrong = rng.random(len(row)) > skill[who]
    label = np.where(wrong, (y[row] + rng.integers(1, classes, len(row))) % classes, y[row])
    table = pd.DataFrame({"id": X.index[row], "by": [f"a{k}" for k in who], "label": label})
    return X, y, table, row < n, skill, ~wrong
