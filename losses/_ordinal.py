"""Losses on integer labels whose classes are ordered, or told apart by a margin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jgraph.losses._checks import class_axis, class_ids, nan_unless, one_hot, predictions, rowwise


def ordinal(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*batch"]:
    """Return the ordinal loss (CORAL) of ordered classes: grades, stars, ages.

    K ordered classes are K - 1 yes-or-no questions "is it above class k?", each of Bernoulli
    likelihood (extended binary classification), so that a miss by four costs more than a miss by
    one. Give all questions one shared score and a bias each (CORAL) and their answers are
    consistent; the predicted class is the number of positive logits.

    `sparse_softmax_cross_entropy` on ordered classes works, but takes every mistake for equally
    bad and needs more data; a regression on the class number takes the steps for equally wide.

    Args:
        logits: log-odds of "above class k", float `[..., K - 1]`. Half precision is computed in
            float32.
        labels: class ids in `[0, K)`, integer `[...]`. K is one more than there are logits.

    Returns:
        `-Σ_k log σ(±z_k)`, + where label > k, float32 (float64 for float64 logits) `[...]`. In
        compiled code a label outside `[0, K)` makes its loss and gradient NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float or have no last axis, labels that
            aren't integers or are of another shape, and, where their values are known (no jit), a
            label outside `[0, K)`.

    Source:
        Cao, Mirjalili and Raschka, Rank consistent ordinal regression, arXiv:1901.07884, eq. 4;
        Li and Lin, Ordinal regression by extended binary classification, 2007. TF has none.

    Example:
        >>> ordinal(jnp.array([[3.0, 1.0, -2.0]]), jnp.array([2])).round(4)
        Array([0.4888], dtype=float32)
    """
    z = predictions("logits", logits)
    steps = class_axis("logits", z)
    return _ordinal(z, class_ids(labels, (*z.shape[:-1], steps + 1)))


def multiclass_hinge(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*batch"]:
    """Return the multi-class hinge loss (Crammer and Singer), for comparison.

    It has no likelihood: it asks the label's score to lead the runner-up's by 1 and is silent
    beyond, so a softmax of the scores is no probability. `sparse_softmax_cross_entropy` asks the
    same question and answers with probabilities.

    Args:
        logits: scores, float `[..., K]`. Half precision is computed in float32.
        labels: class ids in `[0, K)`, integer `[...]`.

    Returns:
        `max(0, 1 + max_{k ≠ y} z_k - z_y)`, float32 (float64 for float64 logits) `[...]`; at the
        kink the gradient is 0, and equal runners-up share it. In compiled code a label outside
        `[0, K)` makes its loss and gradient NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float or have no class, labels that aren't
            integers or are of another shape, and, where their values are known (no jit), a label
            outside `[0, K)`.

    Source:
        `tf.keras.losses.CategoricalHinge`; Crammer and Singer, JMLR 2, 2001.

    Example:
        >>> multiclass_hinge(jnp.array([[2.0, 1.5, 0.0]]), jnp.array([0]))
        Array([0.5], dtype=float32)
    """
    z = predictions("logits", logits)
    class_axis("logits", z)
    return _multiclass_hinge(z, class_ids(labels, z.shape))


@rowwise
def _ordinal(z: Float[Array, "*batch k"], ids: Integer[Array, "*batch"]) -> Float[Array, "*batch"]:
    steps = z.shape[-1]
    classes = one_hot(ids, steps + 1)
    # Above step k is every class after it.
    above = jnp.flip(jnp.cumsum(jnp.flip(classes, -1), -1), -1)[..., 1:] > 0
    loss = jax.nn.softplus(jnp.where(above, -z, z)).sum(-1)
    return loss * nan_unless(classes.any(-1), z.dtype)


@rowwise
def _multiclass_hinge(
    z: Float[Array, "*batch k"], ids: Integer[Array, "*batch"]
) -> Float[Array, "*batch"]:
    chosen = one_hot(ids, z.shape[-1])
    label = jnp.where(chosen, z, 0.0).sum(-1)
    margin = 1 + jnp.where(chosen, -jnp.inf, z).max(-1) - label
    # Not maximum: its slope at the kink is a half, and it has no NaN for a NaN.
    return jnp.where(margin <= 0, 0.0, margin) * nan_unless(chosen.any(-1), z.dtype)
