"""Losses for yes-or-no questions: each logit is one, so each has its own value.

Nothing is summed over a class axis: `[..., K]` logits are K questions per example, and `.sum(-1)`
is their joint likelihood.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph.losses._checks import check_values, like, nan_unless, number, predictions, rowwise


def sigmoid_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*shape"]:
    """Return the negative log-likelihood, in nats, of labels under sigmoid(logits).

    It is the loss for "any number of K classes" (multi-label) and for one yes-or-no question: the
    likelihood is Bernoulli with probability sigmoid(logit), independent for each logit. A label
    between 0 and 1 is the probability of a yes.

    Where exactly one class is right take `sparse_softmax_cross_entropy`: K independent sigmoids
    don't know it, and their probabilities don't sum to 1. Where a yes is rare and matters more,
    take `weighted_cross_entropy`; where easy examples drown the others, `focal`.

    Args:
        logits: log-odds of a yes, float `[...]`, for multi-label `[..., K]`. Half precision is
            computed in float32.
        labels: of the same shape, in [0, 1], float, integer or bool.

    Returns:
        `-y log σ(z) - (1 - y) log(1 - σ(z))`, float32 (float64 for float64 logits), of the shape
        of the logits. In compiled code a label outside [0, 1] makes its loss and gradients NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float, labels of another shape, and, where
            their values are known (no jit), labels outside [0, 1].

    Source:
        `tf.nn.sigmoid_cross_entropy_with_logits`; Bishop, Pattern Recognition and Machine
        Learning, 2006, eq. 4.90.

    Example:
        >>> sigmoid_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([1, 0])).round(4)
        Array([0.6931, 2.1269], dtype=float32)
    """
    z, y, ok = _checked(logits, labels)
    return _weighted(z, y, ok, jnp.ones_like(z))


def weighted_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, pos_weight: ArrayLike
) -> Float[Array, "*shape"]:
    """Return the sigmoid cross entropy with the term of a yes multiplied by `pos_weight`.

    The likelihood is Bernoulli with each yes counted `pos_weight` times: above 1 it buys recall,
    below 1 precision. The minimum is no longer the true probability p but
    `w p / (w p + 1 - p)`: undo that before reading probabilities off the network.

    To weigh whole examples, use the weights of `jgraph.losses.mean`, which also divides by their
    sum; to weigh the classes of a softmax, `jgraph.losses.class_weights`.

    Args:
        logits: log-odds of a yes, float `[...]`, for multi-label `[..., K]`. Half precision is
            computed in float32.
        labels: of the same shape, in [0, 1], float, integer or bool.
        pos_weight: non-negative and finite: a scalar, or one per class, `[K]`.

    Returns:
        `-w y log σ(z) - (1 - y) log(1 - σ(z))`, float32 (float64 for float64 logits), of the
        shape of the logits. In compiled code a bad label or weight makes its loss and gradients
        NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float, labels of another shape, a weight
            that is neither a scalar nor one per class, and, where their values are known (no
            jit), labels outside [0, 1] or weights that are negative or infinite.

    Source:
        `tf.nn.weighted_cross_entropy_with_logits`.

    Example:
        >>> logits, labels = jnp.array([0.0, 0.0]), jnp.array([1, 0])
        >>> weighted_cross_entropy(logits, labels, 3.0).round(4)
        Array([2.0794, 0.6931], dtype=float32)
    """
    z, y, ok = _checked(logits, labels)
    w = jnp.asarray(pos_weight)
    if w.shape not in ((), z.shape[-1:]):
        raise InputError(
            f"pos_weight must be a scalar or have one weight per class, {z.shape[-1:]}, got "
            f"pos_weight {w.shape} for logits {z.shape}"
        )
    w = w.astype(z.dtype)
    good = check_values("pos_weight", w, (w >= 0) & (w < jnp.inf), "be non-negative and finite")
    wide = (1,) * (z.ndim - w.ndim) + w.shape
    w, good = (jnp.broadcast_to(x.reshape(wide), z.shape) for x in (w, good))
    return _weighted(z, y, ok & good, w)


def focal(
    logits: ArrayLike,
    labels: ArrayLike,
    gamma: float | int = 2.0,
    alpha: float | int | None = None,
) -> Float[Array, "*shape"]:
    """Return the focal loss: sigmoid cross entropy that fades for examples already right.

    It is `(1 - p)^gamma` times the Bernoulli negative log-likelihood, p being the probability of
    the truth. It is no likelihood itself: its minimum is not the true probability (networks come
    out under-confident), so calibrate before reading probabilities. It suits detection, where
    thousands of easy negatives outweigh the few that teach; `gamma=0` is
    `sigmoid_cross_entropy`, which is right wherever classes are merely uneven.

    Args:
        logits: log-odds of a yes, float `[...]`, for multi-label `[..., K]`. Half precision is
            computed in float32.
        labels: of the same shape, in [0, 1], float, integer or bool; a label in between is the
            mixture of the two losses.
        gamma: ≥ 0, how fast an example fades.
        alpha: in [0, 1]: the weight of a yes, with 1 - alpha that of a no; None means 1 for both.

    Returns:
        `-α y (1 - σ(z))^γ log σ(z) - (1 - α) (1 - y) σ(z)^γ log(1 - σ(z))`, float32 (float64 for
        float64 logits), of the shape of the logits. In compiled code a bad label makes its loss
        and gradients NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float, labels of another shape, gamma or
            alpha outside their range, and, where their values are known (no jit), labels outside
            [0, 1].

    Source:
        Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002, eq. 5;
        `tf.keras.losses.BinaryFocalCrossentropy(from_logits=True)`.

    Example:
        >>> focal(jnp.array([0.0, 4.0]), jnp.array([1, 1]), gamma=2.0).round(4)
        Array([0.1733, 0.    ], dtype=float32)
    """
    gamma = number("gamma", gamma, 0, float("inf"))
    yes, no = 1.0, 1.0
    if alpha is not None:
        yes = number("alpha", alpha, 0, 1)
        no = 1 - yes
    z, y, ok = _checked(logits, labels)
    return _focal(z, y, ok, gamma=gamma, yes=yes, no=no)


def hinge(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*shape"]:
    """Return the hinge loss of a support vector machine, for comparison.

    It has no likelihood: it asks for a margin of 1 and is silent beyond it, so the outputs are
    scores, never log-odds, and a sigmoid of them is no probability. `sigmoid_cross_entropy` asks
    the same question and answers with probabilities. For K classes see `multiclass_hinge`.

    Args:
        logits: scores, float `[...]`. Half precision is computed in float32.
        labels: of the same shape, 0 or 1 (not -1 or 1), float, integer or bool.

    Returns:
        `max(0, 1 - (2 y - 1) z)`, float32 (float64 for float64 logits), of the shape of the
        logits; at the kink the gradient is 0. In compiled code a label that is neither 0 nor 1
        makes its loss and gradients NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float, labels of another shape, and, where
            their values are known (no jit), labels other than 0 and 1.

    Source:
        `tf.keras.losses.Hinge`; Cortes and Vapnik, Machine Learning 20, 1995.

    Example:
        >>> hinge(jnp.array([0.5, 2.0, 2.0]), jnp.array([1, 1, 0]))
        Array([0.5, 0. , 3. ], dtype=float32)
    """
    z = predictions("logits", logits)
    y = like("labels", labels, "logits", z)
    ok = check_values("labels", labels, (y == 0) | (y == 1), "be 0 or 1")
    return _hinge(z, y, ok)


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    z = predictions("logits", logits)
    y = like("labels", labels, "logits", z)
    return z, y, check_values("labels", labels, (y >= 0) & (y <= 1), "lie in [0, 1]")


@rowwise
def _weighted(z: Array, y: Array, ok: Array, w: Array) -> Array:
    loss = _times(w * y, jax.nn.softplus(-z)) + _times(1 - y, jax.nn.softplus(z))
    return loss * nan_unless(ok, z.dtype)


@rowwise
def _focal(z: Array, y: Array, ok: Array, *, gamma: float, yes: float, no: float) -> Array:
    loss = _times(yes * y, _faded(z, gamma)) + _times(no * (1 - y), _faded(-z, gamma))
    return loss * nan_unless(ok, z.dtype)


@rowwise
def _hinge(z: Array, y: Array, ok: Array) -> Array:
    margin = 1 - jnp.where(y == 1, z, -z)
    # Not maximum: its slope at the kink is a half, and it has no NaN for a NaN.
    return jnp.where(margin <= 0, 0.0, margin) * nan_unless(ok, z.dtype)


def _times(weight: Array, x: Array) -> Array:
    """Multiply, with 0 * infinity = 0: what can't happen costs nothing."""
    return jnp.where((weight == 0) & jnp.isinf(x), 0.0, weight * x)


def _faded(z: Array, gamma: float) -> Array:
    """Return -(1 - p)^gamma log p for p = sigmoid(z), in logarithms: 1 - p may round to 0."""
    infinite = jnp.isinf(z)
    safe = jnp.where(infinite, 0.0, z)
    loss = jnp.exp(-gamma * jax.nn.softplus(safe)) * jax.nn.softplus(-safe)
    # The limits, where the product rule would meet 0 * infinity.
    return jnp.where(infinite, jnp.where(z < 0, -z, 0.0), loss)
