"""The part of a long text that tells two classes apart."""

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

LONGEST = 300  # characters of a text that is shown
CHANCE = 2.0  # standard errors by which words differ by chance
MOST_TEXTS = 20_000  # from which is learned which words tell classes apart
_WORD = re.compile(r"\w+")


def excerpts(
    texts: Sequence[object],
    rows: np.ndarray,
    labels: np.ndarray | None,
    suggested: Any,
    seed: int = 0,
) -> list[str]:
    """Of the texts in these rows at most 300 characters, with the words that matter.

    A word weighs by how clearly it stands in more texts of the given than of the suggested class, or
    the other way round: the log of the odds ratio (half a text added to each count) in standard
    errors, less two. The part of a text with the greatest sum is kept, the first of equal ones; in a
    regression, without `labels`, the beginning. Of more than 20000 texts, a random 20000 tell the
    words' weights.

    Args:
        texts: of all rows.
        rows: the places of those that are shown.
        labels: of all rows.
        suggested: the labels of those that are shown which a model suggests.
    """
    shown = [str(texts[i]) for i in rows]
    long = [k for k, text in enumerate(shown) if len(text) > LONGEST]
    if not long:
        return shown
    wanted = {w.lower() for k in long for w in _WORD.findall(shown[k])}
    present: dict[object, Counter[str]] = {}
    sizes: Counter[object] = Counter()
    if labels is not None:
        some = np.arange(len(texts))
        if len(some) > MOST_TEXTS:
            some = np.random.default_rng(seed).choice(some, MOST_TEXTS, replace=False)
        for i in some.tolist():
            words = {w.lower() for w in _WORD.findall(str(texts[i]))} & wanted
            present.setdefault(labels[i], Counter()).update(words)
            sizes[labels[i]] += 1

    @functools.cache
    def weight(word: str, pair: tuple[object, object]) -> float:
        with_it = [present.get(label, Counter())[word] + 0.5 for label in pair]
        without = [sizes[pair[j]] - with_it[j] + 1 for j in range(2)]
        ratio = math.log(with_it[0] / without[0]) - math.log(with_it[1] / without[1])
        error = math.sqrt(sum(1 / x for x in with_it + without))
        return max(abs(ratio) / error - CHANCE, 0.0)

    for k in long:
        words = list(_WORD.finditer(shown[k]))
        weights = np.zeros(len(words))
        if labels is not None:
            pair = labels[rows[k]], suggested[k]
            weights = np.array([weight(w[0].lower(), pair) for w in words])
        shown[k] = _best_part(shown[k], words, weights)
    return shown


def _best_part(
    text: str, words: Sequence[re.Match[str]], weights: Float[np.ndarray, " words"]
) -> str:
    """The part of at most 300 characters, ellipses counted, whose words weigh the most."""
    starts, ends = np.array([(w.start(), w.end()) for w in words], int).reshape(-1, 2).T
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    first = np.arange(len(words))
    last = np.maximum(np.searchsorted(ends, starts + LONGEST - 2, side="right"), first)
    weight = (sums[last] - sums[first]).round(9)
    best = int(weight.argmax()) if len(words) else 0
    start = int(starts[best]) if best else 0
    end = start + LONGEST - (2 if start else 1)
    rest = "\u2026" if end < len(text) else ""
    return ("\u2026" if start else "") + text[start:end] + rest
