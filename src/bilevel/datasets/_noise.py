"""Label noise with a known truth: noise models that papers often do not distinguish.

With K classes and rate p, three of them select exactly round(p n) rows, uniformly without
replacement, and then shift each selected row's class by s places, modulo K:

    flip_to_different   s uniform on 1..K-1    every selected label is wrong
    redraw_uniform      s uniform on 0..K-1    a share 1/K of the selected labels stays right
    flip_to_next        s = 1                  every selected label is wrong in the same way

The rows are drawn before the shifts. So for one integer seed the three functions select the
*same* rows, and `flip_to_different(...).changed` is also the set of rows that `redraw_uniform`
drew again, including those whose label stayed right (some papers compute F1 against this set). In
two more models each row is drawn independently, and its new label depends on its class,
`flip_by_matrix`, or on its class and its features, `flip_by_features`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import truncnorm


class NoisyLabels(NamedTuple):
    """Labels after corruption, shape (n,), and a bool (n,): where they differ from the truth."""

    labels: np.ndarray
    changed: np.ndarray


def flip_to_different(
    labels: ArrayLike,
    rate: float,
    *,
    seed: int | np.random.Generator,
    classes: ArrayLike | None = None,
) -> NoisyLabels:
    """Give round(rate n) random rows a wrong label, uniform over the other K - 1 classes.

    Args:
        labels: the true labels, shape (n,), of any dtype that can be sorted (integers, strings).
        rate: share of the rows to corrupt, in [0, 1]; rate * n is rounded half to even.
        seed: seed of, or ready-made, NumPy generator; a generator is advanced.
        classes: all K >= 2 classes, shape (K,), distinct; None takes those that occur in `labels`.

    Returns:
        `NoisyLabels(labels, changed)`: new labels with the dtype of `labels` (strings are as wide
        as the widest class), and exactly round(rate n) True in `changed`. `labels` is untouched.

    Raises:
        ValueError: `rate` outside [0, 1]; `labels` not one-dimensional; fewer than 2 classes,
            repeated ones, or a label that is not among them.
        TypeError: the labels cannot be sorted (numbers mixed with strings or None).

    Source: Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization",
    section 4.2, "corrupted samples always have an incorrect label" [ivanova2023][]. There each row
    is corrupted independently with probability `rate`; here the count is exact.

    Example:
        >>> noisy, changed = flip_to_different([0, 1, 2, 0, 1, 2], 0.5, seed=0)
        >>> noisy, changed.sum()
        (array([0, 1, 2, 1, 2, 0]), np.int64(3))
    """
    return _shift_classes(labels, rate, seed, classes, lambda rng, k, m: rng.integers(1, k, m))


def redraw_uniform(
    labels: ArrayLike,
    rate: float,
    *,
    seed: int | np.random.Generator,
    classes: ArrayLike | None = None,
) -> NoisyLabels:
    """Redraw the labels of round(rate n) random rows, uniformly over all K classes.

    A redrawn label is right with probability 1/K, so about `rate (1 - 1/K) n` labels change, and
    `changed` marks those only.

    Args:
        labels, rate, seed, classes: as in `flip_to_different`.

    Returns:
        `NoisyLabels(labels, changed)`: new labels with the dtype of `labels` (strings are as wide
        as the widest class), and where they are now wrong. `labels` is untouched.

    Raises:
        ValueError, TypeError: as `flip_to_different`.

    Source: data hyper-cleaning of Franceschi, Donini, Frasconi and Pontil (2017), "Forward and
    reverse gradient-based hyperparameter optimization" [franceschi2017][] and of Shaban, Cheng,
    Hatch and Boots (2019), "Truncated back-propagation for bilevel optimization" [shaban2019][], in
    the form that later benchmarks use.

    Example:
        >>> noisy, changed = redraw_uniform(["cat", "dog"] * 500, 0.8, seed=0)
        >>> noisy[:3], changed.mean()
        (array(['dog', 'dog', 'dog'], dtype='<U3'), np.float64(0.42))
    """
    return _shift_classes(labels, rate, seed, classes, lambda rng, k, m: rng.integers(0, k, m))


def flip_to_next(
    labels: ArrayLike,
    rate: float,
    *,
    seed: int | np.random.Generator,
    classes: ArrayLike | None = None,
) -> NoisyLabels:
    """Give round(rate n) random rows the next class: 0 -> 1, 1 -> 2, ..., K-1 -> 0.

    "Next" is in the order of `classes`, or in sorted order if `classes` is None. This is known as pair
    (or pair-flip, or asymmetric) noise. From a `rate` of 1/2 on, the wrong class is the likelier
    one.

    Args:
        labels, rate, seed, classes: as in `flip_to_different`.

    Returns:
        `NoisyLabels(labels, changed)`: new labels with the dtype of `labels` (strings are as wide
        as the widest class), and exactly round(rate n) True in `changed`. `labels` is untouched.

    Raises:
        ValueError, TypeError: as `flip_to_different`.

    Source: "pair flipping" of Han, Yao, Yu, Niu, Xu, Hu, Tsang and Sugiyama (2018), "Co-teaching:
    Robust training of deep neural networks with extremely noisy labels" [han2018][]. There each row
    is flipped independently with probability `rate`.

    Example:
        >>> noisy, changed = flip_to_next(["a", "b", "c"], 1.0, seed=0)
        >>> noisy, changed
        (array(['b', 'c', 'a'], dtype='<U1'), array([ True,  True,  True]))
    """
    return _shift_classes(labels, rate, seed, classes, lambda rng, k, m: np.ones(m, np.int64))


def flip_by_matrix(
    labels: ArrayLike,
    matrix: ArrayLike,
    *,
    seed: int | np.random.Generator,
    classes: ArrayLike | None = None,
) -> NoisyLabels:
    """Draw each label again from the row of a matrix for its class: class-conditional noise.

        P(new label = k | true label = j) = T_jk,    independently for each row

    About `sum_j n_j (1 - T_jj)` labels change, with n_j the size of class j. The other models have
    the following matrices for a single label:

        flip_to_different   (1 - p) I + p (11' - I) / (K - 1)
        redraw_uniform      (1 - p) I + p 11' / K
        flip_to_next        (1 - p) I + p S,    S_j,j+1 = 1

    Args:
        labels, seed, classes: as in `flip_to_different`.
        matrix: T, shape (K, K), entries in [0, 1], rows of sum 1; rows and columns are in the order
            of `classes`.

    Returns:
        `NoisyLabels(labels, changed)`, as `flip_to_different`, with a random number of changes.

    Raises:
        ValueError: `matrix` is not K x K, has an entry outside [0, 1], or a row that does not sum
            to 1; and as `flip_to_different`.
        TypeError: as `flip_to_different`.

    Source: the class-conditional model of Natarajan, Dhillon, Ravikumar and Tewari (2013),
    "Learning with noisy labels" [natarajan2013][], for K classes as in Patrini, Rozza, Menon, Nock
    and Qu (2017), "Making deep neural networks robust to label noise: A loss correction approach"
    [patrini2017][].

    Example:
        >>> noisy, changed = flip_by_matrix(["cat", "dog"] * 500, [[1, 0], [0.3, 0.7]], seed=0)
        >>> changed[::2].sum(), changed[1::2].mean()
        (np.int64(0), np.float64(0.284))
    """
    known, codes = _encode(np.asarray(labels), classes)
    T, k = np.asarray(matrix, np.float64), len(known)
    if T.shape != (k, k):
        raise ValueError(
            f"matrix must have a row and a column for each of the {k} classes {known.tolist()}; "
            f"got shape {T.shape}."
        )
    bad = [j for j in range(k) if not (T[j].min() >= 0 and abs(T[j].sum() - 1) <= 1e-6)]
    if bad:
        raise ValueError(
            "each row of matrix must be the probabilities of the new labels, in [0, 1] and of sum "
            f"1; row {bad[0]} is {T[bad[0]].tolist()}. Are rows and columns exchanged?"
        )
    bounds = np.cumsum(T, axis=1)
    bounds /= bounds[:, -1:]
    draws = np.random.default_rng(seed).random(len(codes))
    noisy = np.sum(draws[:, None] >= bounds[codes], axis=1)
    return NoisyLabels(labels=known[noisy], changed=noisy != codes)


def flip_by_features(
    X: ArrayLike,
    labels: ArrayLike,
    rate: float,
    *,
    seed: int | np.random.Generator,
    classes: ArrayLike | None = None,
) -> NoisyLabels:
    """Give rows a wrong label that depends on their features: instance-dependent noise.

        q_i ~ N(rate, 0.1^2) given 0 <= q_i <= 1;   W_c (features, K) standard normal, one per class
        label i changes with probability q_i, to class k != y_i with probability
            softmax(x_i W_{y_i})_k

    The columns of X are standardised first. Similar rows get the same wrong class. The mean of q_i
    is `rate` to three digits for 0.3 <= rate <= 0.7. Near the ends the condition moves the mean
    inwards: to 0.2055 at 0.2, to 0.129 at 0.1 and to 0.080 at 0, and by the same amounts at the
    upper end.

    Args:
        X: the features, shape (n, features), finite.
        labels: the true labels, shape (n,).
        rate: the mean of q_i before the condition, in [0, 1].
        seed: seed of, or ready-made, NumPy generator; a generator is advanced.
        classes: as in `flip_to_different`.

    Returns:
        `NoisyLabels(labels, changed)`; about `E[q] n` True in `changed`.

    Raises:
        ValueError: as in `flip_to_different`, or X is not a finite matrix of n rows.

    Source: Xia, Liu, Han, Wang, Gong, Liu, Niu, Tao and Sugiyama (2020), "Part-dependent label
    noise: Towards instance-dependent label noise", appendix [xia2020][], with standardised features
    in place of images in [0, 1].

    Example:
        >>> noisy, changed = flip_by_features(np.eye(6), [0, 1, 2, 0, 1, 2], 0.5, seed=0)
        >>> bool((noisy != [0, 1, 2, 0, 1, 2]).sum() == changed.sum())
        True
    """
    _check_rate(rate)
    known, codes = _encode(np.asarray(labels), classes)
    x = np.asarray(X, np.float64)
    if x.ndim != 2 or len(x) != len(codes) or not np.isfinite(x).all():
        raise ValueError(
            f"X must be a finite matrix with a row a label ({len(codes)}), got {x.shape}."
        )
    rng = np.random.default_rng(seed)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    flips = rng.random(len(x)) < truncnorm.rvs(
        -rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1, size=len(x), random_state=rng
    )
    W = rng.standard_normal((len(known), x.shape[1], len(known)))
    pull = np.einsum("if,ifk->ik", x, W[codes]) if len(x) else np.empty((0, len(known)))
    pull[np.arange(len(x)), codes] = -np.inf
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    drawn = np.argmax(pull + rng.gumbel(size=pull.shape), axis=1)
    noisy = np.where(flips, drawn, codes)
    return NoisyLabels(labels=known[noisy], changed=noisy != codes)


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], the share of the rows to corrupt; got {rate}.")


def _shift_classes(
    labels: ArrayLike,
    rate: float,
    seed: int | np.random.Generator,
    classes: ArrayLike | None,
    draw_shifts: Callable[[np.random.Generator, int, int], np.ndarray],
) -> NoisyLabels:
    """Move the classes of round(rate n) rows by `draw_shifts(rng, K, count)` places, modulo K."""
    _check_rate(rate)
    known, codes = _encode(np.asarray(labels), classes)
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(codes), size=round(rate * len(codes)), replace=False)
    noisy = codes.copy()
    noisy[rows] += draw_shifts(rng, len(known), len(rows))
    noisy %= len(known)
    return NoisyLabels(labels=known[noisy], changed=noisy != codes)


def _encode(labels: np.ndarray, classes: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """The classes, in order and in the labels' dtype, and each label's position among them."""
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape (n,), one label per row; got {labels.shape}.")
    try:
        known = np.unique(labels) if classes is None else _like(np.asarray(classes), labels.dtype)
        num_distinct = len(np.unique(known))
    except TypeError as error:
        raise TypeError(
            f"labels cannot be sorted into classes ({error}). Give all of them one type, for "
            "instance strings, and remove rows without a label."
        ) from error
    if num_distinct < 2 or known.shape != (num_distinct,):
        raise ValueError(
            "classes must be at least 2 distinct values in one list; got "
            f"{known.tolist()}{' (those that occur in labels)' if classes is None else ''}. "
            "Pass every class once, also those that do not occur."
        )
    order = np.argsort(known)
    found = np.searchsorted(known, labels, sorter=order)
    codes = order[np.minimum(found, len(known) - 1)]
    unknown = labels[known[codes] != labels]  # NaN too: it differs from itself
    if len(unknown):
        raise ValueError(
            f"{len(unknown)} of the labels are not among the classes {known.tolist()}; the first "
            f"is {unknown.tolist()[0]!r}. Add it to `classes` or remove those rows."
        )
    return known, codes


def _like(classes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`classes` in the labels' dtype if it can hold them; strings keep their own width."""
    if classes.dtype.kind == dtype.kind and dtype.kind in "US":
        return classes
    try:
        cast = classes.astype(dtype)
    except (ValueError, OverflowError):
        cast = None
    if cast is None or not np.array_equal(cast, classes):
        raise ValueError(
            f"classes {classes.tolist()} cannot be held by the dtype of labels, {dtype}. Give "
            "both the same type."
        )
    return cast
