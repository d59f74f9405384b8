"""Several annotators per row: what each of them confuses, and what their labels say together."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from .labels import Classes
from .pool import LABELS_ARE_RIGHT, PRIOR_ROWS, ClassPool, Outputs

ROUNDS = 40  # of expectation and maximisation
SHRINK = (
    5.0  # rows per true class, of the pull of an annotator's matrix to the one that is expected
)
ALIKE = 5.0  # labels, of the pull of an annotator's accuracy to the accuracy of all
POWER = 0.7  # of the evidence of labels: rows that are hard for one annotator are hard for others
LEAST = 1e-6


class Labels(NamedTuple):
    """Labels that annotators gave, one entry per label.

    Attributes:
        row: the position of the row.
        annotator: the number of the annotator.
        label: the class code.
    """

    row: Int[np.ndarray, " labels"]
    annotator: Int[np.ndarray, " labels"]
    label: Int[np.ndarray, " labels"]


class Annotations(NamedTuple):
    """All labels of all annotators.

    Attributes:
        train: those of the training rows.
        trusted: those that annotators gave to trusted rows, whose true label is known.
        number: how many annotators there are.
    """

    train: Labels
    trusted: Labels
    number: int


class Annotators(NamedTuple):
    """What each annotator makes of each class, and the classes of the rows under it.

        P(true = y | x_i, labels of row i) ~ p(y | x_i) prod_a T_a[y, label of a]^power

    as in Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates using the EM
    algorithm" [dawid1979][], with a model's probabilities `p` in place of the class shares. Ours: the
    power below 1, as annotators do not err independently; and the matrix of an annotator is pulled
    to the matrix of all annotators at the annotator's own accuracy, so that a few labels already
    tell a careful annotator from a careless one.

    Attributes:
        noise: `T[annotator, true, given]`; each row sums to 1.
        posterior: the probabilities of the classes of the training rows.
    """

    noise: Float[np.ndarray, "annotators classes classes"]
    posterior: Float[np.ndarray, "n classes"]

    @classmethod
    def fit(
        cls,
        p: Float[np.ndarray, "n classes"],
        annotations: Annotations,
        y_trusted: Int[np.ndarray, " m"],
        known: Bool[np.ndarray, " m"],
        power: float = POWER,
    ) -> "Annotators":
        """By expectation maximisation, begun at labels that are mostly right.

        Args:
            p: what is thought of each training row before its labels are seen.
            annotations: the labels.
            y_trusted: the true labels of the trusted rows.
            known: the trusted rows that may be used. Their labels need no expectation.
            power: of the evidence; 1 for independent errors.

        Cost: `ROUNDS` passes over the labels, each of which makes a row of `classes` numbers.
        """
        (n, classes), number = p.shape, annotations.number
        row, annotator, label = annotations.train
        size = number * classes
        to_rows = scipy.sparse.csr_array(
            (np.ones(len(row)), (row, np.arange(len(row)))), shape=(n, len(row))
        )
        to_cells = scipy.sparse.csr_array(
            (np.ones(len(row)), (annotator * classes + label, row)), shape=(size, n)
        )
        pairs = np.zeros((number, classes, classes))
        of_known = known[annotations.trusted.row]
        there, who, given = (values[of_known] for values in annotations.trusted)
        np.add.at(pairs, (who, y_trusted[there], given), 1.0)

        believed = np.full((classes, classes), (1 - LABELS_ARE_RIGHT) / max(classes - 1, 1))
        np.fill_diagonal(believed, LABELS_ARE_RIGHT if classes > 1 else 1.0)
        noise = np.broadcast_to(believed, pairs.shape)
        posterior = p
        for _ in range(ROUNDS):
            evidence = np.asarray(to_rows @ np.log(noise[annotator, :, label])) * power
            posterior = p * np.exp(evidence - evidence.max(axis=1, keepdims=True))
            posterior /= posterior.sum(axis=1, keepdims=True)
            counts = (to_cells @ posterior).reshape(number, classes, classes).transpose(0, 2, 1)
            noise = _matrices(counts + pairs, believed)
        return cls(noise, posterior)


class AnnotatedPool(NamedTuple):
    """A pool of label models, and the annotators whose labels they are held against.

    It says of training rows what `ClassPool` says of rows with one label each.
    """

    classes: ClassPool
    annotators: Annotators

    @classmethod
    def fit(
        cls,
        kind: Classes,
        trusted: Outputs,
        y_trusted: Int[np.ndarray, " m"],
        train: Outputs,
        y: Int[np.ndarray, " n"],
        annotations: Annotations,
        known: Bool[np.ndarray, " m"],
    ) -> "AnnotatedPool":
        """The pool of the members, then the annotators under it.

        Args:
            kind, trusted, y_trusted, train, y: as for `ClassPool`, with consensus labels `y`, and with
                all trusted rows, of which `known` may be used.
            annotations, known: as for `Annotators`.
        """
        chosen = [outputs[known] for outputs in trusted]
        pool = ClassPool.fit(kind, chosen, y_trusted[known], train, y)
        p = np.exp(pool.outputs(train))
        return cls(pool, Annotators.fit(p, annotations, y_trusted, known))

    @property
    def coefficients(self) -> Float[np.ndarray, " members"]:
        """One per member."""
        return self.classes.coefficients

    def outputs(self, members: Outputs) -> Float[np.ndarray, "rows classes"]:
        """Log-probabilities of the true label, without any annotator's label."""
        return self.classes.outputs(members)

    def right(self, members: Outputs, y: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The probability that the consensus label of each training row is the true one."""
        return self.annotators.posterior[np.arange(len(y)), y]

    quality = right


def vote(annotations: Annotations, n: int, classes: int) -> Int[np.ndarray, " n"]:
    """The likeliest class of each training row by the labels alone; ties go to the commoner class."""
    shares = np.bincount(annotations.train.label, minlength=classes) + 1.0
    p = np.broadcast_to(shares / shares.sum(), (n, classes))
    nothing = np.zeros(0, int), np.zeros(0, bool)
    without = annotations._replace(trusted=Labels(*[np.zeros(0, int)] * 3))
    return Annotators.fit(p, without, *nothing, power=1.0).posterior.argmax(axis=1)


def _matrices(
    counts: Float[np.ndarray, "annotators classes classes"],
    believed: Float[np.ndarray, "classes classes"],
) -> Float[np.ndarray, "annotators classes classes"]:
    """Of each annotator, from counts of (true, given) and from what all annotators do."""
    together = counts.sum(axis=0) + PRIOR_ROWS * believed
    everyone = together / together.sum(axis=1, keepdims=True)
    right = np.clip(np.diag(everyone), LEAST, 1 - LEAST)
    hits, total = np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2))
    accuracy = np.trace(together) / together.sum()
    own = np.clip((hits + ALIKE * accuracy) / (total + ALIKE), LEAST, 1 - LEAST)
    # The odds of a right label are those of all annotators times how much better this one is.
    better = own / (1 - own) * (1 - accuracy) / accuracy
    odds = right / (1 - right) * better[:, None]
    diagonal = odds / (1 + odds)
    wrong = everyone * (1 - np.eye(len(right)))
    wrong /= np.maximum(wrong.sum(axis=1, keepdims=True), LEAST)
    expected = (1 - diagonal)[:, :, None] * wrong + diagonal[:, :, None] * np.eye(len(right))
    pulled = counts + SHRINK * np.maximum(expected, LEAST)
    return pulled / pulled.sum(axis=2, keepdims=True)
