"""Losses on integer labels of K classes that are no likelihood: a margin, and a fading one."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jgraph.losses._checks import (
    class_axis,
    class_ids,
    nan_unless,
    number,
    one_hot,
    predictions,
    rowwise,
)
from jgraph.losses._classification import sparse_softmax_cross_entropy
from jgraph.losses._slopes import with_slopes


def multiclass_focal(
    logits: ArrayLike, labels: ArrayLike, gamma: float | int = 2.0
) -> Float[Array, "*batch"]:
    """Return the focal loss of exactly one of K classes: it fades for examples already right.

    It is `(1 - p)^gamma` times `sparse_softmax_cross_entropy`, p = softmax(logits)[label]. It is no
    likelihood: its minimum is not the true probability (networks come out under-confident), so
    calibrate before reading probabilities. It suits classes of which most examples are easy.
    Where classes are merely uneven, `sparse_softmax_cross_entropy` is right, which `gamma=0` is;
    for several labels per example, or none, take `focal`.

    Args:
        logits: unnormalised log-probabilities, float `[..., K]`. Half precision is computed in
            float32. -inf means "impossible"; a single +inf means "certain".
        labels: class ids in `[0, K)`, integer `[...]`.
        gamma: ≥ 0, how fast an example fades. The paper's α, a weight per class, is
            `jgraph.losses.class_weights`.

    Returns:
        `-(1 - p)^γ log p`, float32 (float64 for float64 logits) `[...]`. In compiled code a label
        outside `[0, K)` makes that example's loss and gradient NaN, as do logits that are no
        distribution.

    Raises:
        InputError: (a ValueError) gamma outside its range, logits that aren't float or have no
            class, labels that aren't integers or are of another shape, and, where their values
            are known (no jit), a label outside `[0, K)`.

    Source:
        Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002, eq. 4, with a softmax;
        `tf.keras.losses.CategoricalFocalCrossentropy(from_logits=True, alpha=1)`.

    Example:
        >>> multiclass_focal(jnp.array([[0.0, 0.0], [0.0, 4.0]]), jnp.array([0, 1])).round(4)
        Array([0.1733, 0.    ], dtype=float32)
    """
    gamma = number("gamma", gamma, 0, float("inf"))
    nats = sparse_softmax_cross_entropy(logits, labels)
    if gamma == 0:
        return nats
    # Its own NaN goes through, to the logits as well.
    return _fade(jnp.ones_like(nats), nats, jnp.full_like(nats, gamma))


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
def _multiclass_hinge(
    z: Float[Array, "*batch k"], ids: Integer[Array, "*batch"]
) -> Float[Array, "*batch"]:
    chosen = one_hot(ids, z.shape[-1])
    label = jnp.where(chosen, z, 0.0).sum(-1)
    margin = 1 + jnp.where(chosen, -jnp.inf, z).max(-1) - label
    # Not maximum: its slope at the kink is a half, and it has no NaN for a NaN.
    return jnp.where(margin <= 0, 0.0, margin) * nan_unless(chosen.any(-1), z.dtype)


@with_slopes
def _fade(nats: Array, gamma: Array) -> tuple[Array, list[Array | None]]:
    """Return (1 - p)^γ times -log p, of -log p: all that the logits say about it is there."""
    rest = -jnp.expm1(-nats)  # 1 - p
    faded = rest**gamma
    # -log p / (1 / p - 1), which goes to 1 for p = 1 and to 0 for p = 0.
    usual = (nats > 0) & (nats < jnp.inf)
    odds = jnp.where(usual, jnp.expm1(jnp.where(usual, nats, 1.0)), 1.0)
    share = jnp.where(usual, nats / odds, jnp.where(nats == 0, 1.0, 0.0))
    return faded * nats, [faded * (1 + gamma * share), None]
