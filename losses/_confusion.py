"""The confusion matrix, and the ratios of its sums: precision, recall, F1.

Shape suffixes: K classes; `...` any leading axes, the examples.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph.losses import _checks
from jgraph.losses._reductions import Mean
from jgraph.losses._sums import Sums, classified, counting_weights, matmul, weighted, yes_or_no


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConfusionMatrix(Sums):
    """How often label i was taken for class j; made by `confusion_matrix`.

    Args:
        counts: summed weights, float `[K, K]`: rows are labels, columns predictions; `[..., K, K]`
            where it was mapped.
    """

    counts: Any

    def value(self) -> Float[Array, "*many k k"]:
        """Return the counts `[label, prediction]`."""
        return self.counts

    def accuracy(self) -> Mean:
        """Return the share on the diagonal."""
        return Mean(self._right().sum(-1), self.counts.sum((-2, -1)))

    def precision(self) -> Mean:
        """Return, per class `[K]`, how much of what was taken for it is it.

        A class never predicted has weight 0 and value 0. Macro average: `value().mean()`.
        """
        return Mean(self._right(), self.counts.sum(-2))

    def recall(self) -> Mean:
        """Return, per class `[K]`, how much of it was found; weight 0 where there is none."""
        return Mean(self._right(), self.counts.sum(-1))

    def f1(self) -> Mean:
        """Return 2TP / (2TP + FP + FN), the harmonic mean of both, per class `[K]`."""
        return Mean(2 * self._right(), self.counts.sum(-2) + self.counts.sum(-1))

    def _right(self) -> Float[Array, "*many k"]:
        # The last two axes: a mapped matrix has more.
        return jnp.diagonal(self.counts, axis1=-2, axis2=-1)


def confusion_matrix(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> ConfusionMatrix:
    """Count labels against predictions; precision, recall and F1 are its methods.

    Precision, recall and F1 are ratios of sums: add confusion matrices, not their precisions.

    Args:
        logits: float `[..., K]`; the first of the largest is the prediction.
        labels: class ids in `[0, K)`, integer `[...]`.
        weights: `[...]`; 0 leaves an example out.

    Returns:
        A `ConfusionMatrix` with `+`, `.psum(axis)`, `.value()`, `.precision()`, `.recall()`,
        `.f1()` and `.accuracy()`. float32 counts are exact up to 2^24 a cell. It is NaN where an
        example that counts has NaN logits, only -inf, or (compiled) a label outside `[0, K)`.

    Raises:
        InputError: as for `accuracy`, or weights not of the labels' shape.

    Source:
        `tf.math.confusion_matrix`.

    Example:
        >>> found = confusion_matrix(jnp.eye(2)[jnp.array([0, 1, 1])], jnp.array([0, 0, 1]))
        >>> found.value()
        Array([[1., 1.],
               [0., 1.]], dtype=float32)
        >>> found.precision().value(), found.recall().value()
        (Array([1. , 0.5], dtype=float32), Array([0.5, 1. ], dtype=float32))
    """
    z, ids, ok = classified(logits, labels)
    return _count(ids, jnp.argmax(z, -1), z.shape[-1], counting_weights(weights, ok, z))


def binary_confusion_matrix(
    logits: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    threshold: float = 0.0,
) -> ConfusionMatrix:
    """Count yes/no labels against logits over a threshold; class 1 is "yes".

    All axes are examples; for a matrix per label of a multi-label network map it over that axis,
    `jax.vmap(binary_confusion_matrix, -1)(logits, labels)`.

    Args:
        logits: float `[...]`, one per yes/no question.
        labels: 0 or 1, integer, bool or float `[...]`.
        weights: `[...]`; 0 leaves an example out.
        threshold: a logit above it means yes; 0 is probability ½.

    Returns:
        A 2 by 2 `ConfusionMatrix`; `.precision().value()[1]` is the precision of "yes". NaN as
        for `confusion_matrix`.

    Raises:
        InputError: logits that aren't float, another shape of labels or weights, and, where values
            are known, a label that is neither 0 nor 1.

    Source:
        `tf.keras.metrics.Precision`, `Recall`.

    Example:
        >>> binary_confusion_matrix(jnp.array([2.0, -1.0, 3.0]), jnp.array([1, 1, 0])).value()
        Array([[0., 1.],
               [1., 1.]], dtype=float32)
    """
    z, positive, ok = yes_or_no(logits, labels)
    threshold = _checks.number("threshold", threshold, -1e30, 1e30)
    predicted = (z > threshold).astype(jnp.int32)
    return _count(positive.astype(jnp.int32), predicted, 2, counting_weights(weights, ok, z))


def _count(labels: Array, predictions: Array, num_classes: int, weights: Array) -> ConfusionMatrix:
    rows = _checks.one_hot(labels.reshape(-1), num_classes).astype(weights.dtype)
    return ConfusionMatrix(
        matmul(rows.T, weighted(predictions.reshape(-1), num_classes, weights.reshape(-1)))
    )
