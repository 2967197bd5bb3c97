"""Metrics that add up like `Mean`: over batches, microbatches and replicas, then one `value()`.

Per-example metrics (accuracy) return values for `mean`, as losses do; the others return sums. The
mean of two batches' precisions, AUCs or perplexities is none; the sums' are exact.

Shape suffixes: K classes; B bins; `...` any leading axes, the examples.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph.losses import _checks
from jgraph.losses._reductions import Mean, mean
from jgraph.losses._sums import Sums, classified, counting_weights, matmul, weighted


def accuracy(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*batch"]:
    """Return 1 where the largest logit is the label's, else 0.

    Of equal logits the first counts as the largest, as in `argmax`.

    Args:
        logits: float `[..., K]`.
        labels: class ids in `[0, K)`, integer `[...]`.

    Returns:
        0 or 1 per example, float32 (float64 for float64 logits) `[...]`: reduce with `mean`. NaN
        where a logit is NaN, all are -inf, or compiled code meets a label outside `[0, K)`.

    Raises:
        InputError: as for `sparse_softmax_cross_entropy`.

    Source:
        `tf.keras.metrics.sparse_categorical_accuracy`.

    Example:
        >>> accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0]))
        Array([1., 0.], dtype=float32)
    """
    return top_k_accuracy(logits, labels, k=1)


def top_k_accuracy(logits: ArrayLike, labels: ArrayLike, *, k: int) -> Float[Array, "*batch"]:
    """Return 1 where the label is among the k largest logits, else 0.

    Of equal logits the first counts as the larger; TF's counts all of them in.

    Args:
        logits: float `[..., K]`.
        labels: class ids in `[0, K)`, integer `[...]`.
        k: 1 to K.

    Returns:
        0 or 1 per example, float32 (float64 for float64 logits) `[...]`; NaN as for `accuracy`.

    Raises:
        InputError: as for `accuracy`, or a k that isn't an integer of 1 to K.

    Source:
        `tf.math.in_top_k`.

    Example:
        >>> top_k_accuracy(jnp.array([[3.0, 2.0, 1.0]]), jnp.array([1]), k=2)
        Array([1.], dtype=float32)
    """
    z, ids, ok = classified(logits, labels)
    num_classes = z.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_classes:
        raise InputError(f"k must be an integer of 1 to {num_classes}, the classes, got {k!r}")
    chosen = _checks.one_hot(ids, num_classes)
    own = jnp.where(chosen, z, jnp.zeros_like(z)).sum(-1, keepdims=True)
    # A class ahead of the label has a larger logit, or an equal one and a smaller id.
    before = jnp.cumsum(chosen, -1) == 0
    ahead = (z > own) | ((z == own) & before)
    right = (ahead.sum(-1) < k).astype(z.dtype)
    # A where: XLA takes a bool times NaN for a choice between NaN and 0.
    return jnp.where(ok, right, jnp.full_like(right, jnp.nan))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Perplexity(Sums):
    """exp of a mean negative log-likelihood; made by `perplexity`.

    Args:
        nll: the `Mean` of the losses, in nats.
    """

    nll: Mean

    def value(self) -> Float[Array, ""]:
        """Return exp(mean loss): 1 is certainty; 1 as well where nothing counted."""
        return jnp.exp(self.nll.value())


def perplexity(values: ArrayLike, weights: ArrayLike | None = None) -> Perplexity:
    """Return the perplexity of per-token losses: exp of their mean, once everything is added.

    Between how many equally likely tokens the model hesitates. The mean of batches' perplexities
    is larger than it (Jensen).

    Args:
        values: losses in nats, without z-loss or label smoothing, any shape.
        weights: of the same shape; 0 leaves a token out.

    Returns:
        A `Perplexity` with `+`, `.psum(axis)` and `.value()`.

    Raises:
        InputError: values and weights differ in shape.

    Source:
        Jelinek et al., 1977; `keras_hub.metrics.Perplexity`.

    Example:
        >>> perplexity(jnp.log(jnp.array([2.0, 8.0]))).value().round(4)
        Array(4., dtype=float32)
    """
    return Perplexity(mean(values, weights))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CalibrationError(Sums):
    """Sums per confidence bin; made by `calibration_error`.

    Args:
        confidence: Σw·p of the predicted class, float `[B]`.
        correct: Σw over right predictions, float `[B]`.
        weight: Σw, float `[B]`.
    """

    confidence: Any
    correct: Any
    weight: Any

    def value(self) -> Float[Array, ""]:
        """Return Σ_b |Σ confidence - Σ correct| / Σ weight; 0 where nothing counted."""
        return Mean(jnp.abs(self.confidence - self.correct).sum(), self.weight.sum()).value()

    def curve(self) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Return each bin's mean confidence and accuracy `[B]`, 0 for empty bins."""
        return (
            Mean(self.confidence, self.weight).value(),
            Mean(self.correct, self.weight).value(),
        )


def calibration_error(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None, *, bins: int = 15
) -> CalibrationError:
    """Return the expected calibration error: how far confidence is from being right as often.

    Args:
        logits: float `[..., K]`.
        labels: class ids in `[0, K)`, integer `[...]`.
        weights: `[...]`; 0 leaves an example out.
        bins: equal widths of confidence (b/B, (b+1)/B]; the figure depends on it (15 is usual).

    Returns:
        A `CalibrationError` with `+`, `.psum(axis)`, `.value()` in [0, 1] and `.curve()`. NaN as
        for `confusion_matrix`.

    Raises:
        InputError: as for `confusion_matrix`, or bins that aren't a positive integer.

    Source:
        Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3.

    Example:
        >>> sure_and_wrong = jnp.array([[9.0, 0.0], [9.0, 0.0]])
        >>> calibration_error(sure_and_wrong, jnp.array([0, 1])).value().round(3)
        Array(0.5, dtype=float32)
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InputError(f"bins must be a positive integer, got {bins!r}")
    z, ids, ok = classified(logits, labels)
    w = counting_weights(weights, ok, z).reshape(-1)
    largest = z.max(-1, keepdims=True)
    # +inf - +inf is NaN: those classes share all of the probability.
    shifted = jnp.where(z == largest, jnp.zeros_like(z), z - largest)
    confidence = (1 / jnp.exp(shifted).sum(-1)).reshape(-1)
    confidence = jnp.where(w == 0, jnp.zeros_like(w), confidence)
    predicted = _checks.one_hot(jnp.argmax(z, -1), z.shape[-1])
    right = (predicted & _checks.one_hot(ids, z.shape[-1])).any(-1).reshape(-1).astype(z.dtype)
    index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    sums = matmul(jnp.stack([confidence, right, jnp.ones_like(w)]), weighted(index, bins, w))
    return CalibrationError(*sums)
