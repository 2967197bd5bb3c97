"""The area under the ROC curve, from histograms that add up."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jgraph.losses._sums import Sums, counting_weights, yes_or_no

# The first 16 bits of a float32: sign, exponent and 7 bits of fraction, which are bfloat16's.
_AUC_BINS = 1 << 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AUC(Sums):
    """Histograms of the scores of both classes; made by `auc`.

    Args:
        positive: Σw of the positives per bin of score, float `[65536]`.
        negative: Σw of the negatives, float `[65536]`.
    """

    positive: Any
    negative: Any

    def value(self) -> Float[Array, ""]:
        """Return P(score of a positive > score of a negative) + ½ P(equal), NaN without either."""
        low, high = self.bounds()
        return (low + high) / 2

    def bounds(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return what the exact AUC lies between: pairs within one bin counted wrong, or right."""
        positive = self.positive / self.positive.sum()
        negative = self.negative / self.negative.sum()
        upto = jnp.cumsum(negative)
        return (positive * (upto - negative)).sum(), (positive * upto).sum()


def auc(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> AUC:
    """Return the area under the ROC curve: how often a positive scores above a negative.

    The exact figure needs all scores at once. This one keeps 65536 bins of scores, the float32
    numbers that share their first 16 bits, so that it adds up over batches and replicas, needs no
    range, and is exact for bfloat16 logits; scores nearer than 0.8 % count as equal. `bounds()`
    says how much that can matter. All axes are examples, as for `binary_confusion_matrix`.

    Args:
        logits: scores, higher is more positive, float `[...]`. Probabilities do as well, but
            crowd near 1: pass logits.
        labels: 0 or 1, integer, bool or float `[...]`.
        weights: `[...]`; 0 leaves an example out.

    Returns:
        An `AUC` with `+`, `.psum(axis)`, `.value()` and `.bounds()`. NaN where one of the classes
        has no weight, an example that counts has a NaN score or (compiled) a label that is neither
        0 nor 1.

    Raises:
        InputError: as for `binary_confusion_matrix`.

    Source:
        Hanley and McNeil, 1982; `tf.keras.metrics.AUC`, which bins probabilities into 200.

    Example:
        >>> auc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])).value()
        Array(0.75, dtype=float32)
    """
    z, positive, ok = yes_or_no(logits, labels)
    w = counting_weights(weights, ok, z).reshape(-1)
    index = _score_bin(z.reshape(-1))
    yes = positive.reshape(-1)
    zero = jnp.zeros_like(w)
    # Scattered: one-hot would be 65536 numbers an example, and metrics are not exported.
    empty = jnp.zeros(_AUC_BINS, w.dtype)
    bad = jnp.isnan(w)
    return AUC(
        empty.at[index].add(jnp.where(yes | bad, w, zero)),
        empty.at[index].add(jnp.where(~yes | bad, w, zero)),
    )


def _score_bin(z: Float[Array, " n"]) -> Integer[Array, " n"]:
    """Number the float32s by their first 16 bits, in their order."""
    z = z.astype(jnp.float32)
    # -0.0 has other bits than 0.0, and is equal to it.
    bits = jax.lax.bitcast_convert_type(jnp.where(z == 0, jnp.zeros_like(z), z), jnp.int32)
    # Negative floats are ordered backwards, and below all positive ones.
    ordered = jnp.where(bits < 0, ~bits ^ jnp.int32(-(2**31)), bits)
    return (ordered >> 16) + _AUC_BINS // 2
