"""Classification losses: they take logits, and return one value per example.

Shape suffixes: K classes; `...` any leading axes, the examples.
"""

from __future__ import annotations

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jgraph._errors import InputError
from jgraph.losses._precision import widen


def sparse_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood, in nats, of integer labels under softmax(logits).

    It is the loss for "exactly one of K classes": the likelihood is categorical with
    probabilities softmax(logits), and minimising the mean is maximum likelihood. Reduce it with
    `jgraph.losses.mean(values, weights)`.

    Args:
        logits: unnormalised log-probabilities, float `[..., K]`. Half precision is computed in
            float32. -inf means "impossible".
        labels: class ids in `[0, K)`, integer `[...]`.

    Returns:
        `logsumexp(logits) - logits[label]`, float32 (float64 for float64 logits) `[...]`.
        Compiled code can't raise, so there a label outside `[0, K)` makes that example's loss
        and gradient NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float or have no class, labels that aren't
            integers or whose shape isn't that of the logits without the class axis, and, where
            the labels' values are known (no jit), a label outside `[0, K)`.

    Source:
        `tf.nn.sparse_softmax_cross_entropy_with_logits`; Bishop, Pattern Recognition and Machine
        Learning, 2006, eq. 4.108.

    Example:
        >>> logits = jnp.array([[0.0, 0.0], [0.0, 50.0]])
        >>> sparse_softmax_cross_entropy(logits, jnp.array([0, 1])).round(4)
        Array([0.6931, 0.    ], dtype=float32)
    """
    z, ids = jnp.asarray(logits), jnp.asarray(labels)
    _check_shapes(z, ids)
    # numpy's own integers are looked at before jax narrows them to 32 bits.
    _check_ids(labels if isinstance(labels, np.ndarray) else ids, z.shape[-1])
    chosen = _one_hot(ids, z.shape[-1])
    shifted = _shift(widen(z))
    log_normalizer = jnp.log(jnp.exp(shifted).sum(-1))
    # where, not a product: an impossible class is -inf, and 0 * -inf is NaN.
    loss = log_normalizer - jnp.where(chosen, shifted, 0.0).sum(-1)
    # A factor, not a where: a NaN factor reaches the gradient as well.
    return loss * jnp.where(chosen.any(-1), 1.0, jnp.nan).astype(loss.dtype)


def _check_shapes(logits: Array, labels: Array) -> None:
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"logits must be float, got {logits.dtype} of shape {logits.shape}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise InputError(f"logits must end in a class axis [..., K], got shape {logits.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels must be integer class ids, got {labels.dtype} of shape {labels.shape} for "
            f"logits of shape {logits.shape}"
        )
    if labels.shape != logits.shape[:-1]:
        raise InputError(
            f"labels must have the shape of the logits without the class axis, "
            f"{logits.shape[:-1]}, got labels {labels.shape} for logits {logits.shape}"
        )


def _check_ids(labels: Array | np.ndarray, num_classes: int) -> None:
    """Raise on a label that is no class, where its value is known on this host."""
    if isinstance(labels, jax.core.Tracer):
        return
    if isinstance(labels, jax.Array) and not labels.is_fully_addressable:
        return
    ids = np.asarray(labels)
    bad = np.argwhere((ids < 0) | (ids >= num_classes))
    if bad.size:
        first = tuple(int(i) for i in bad[0])
        row = first[0] if len(first) == 1 else first
        raise InputError(
            f"labels must lie in [0, {num_classes}), the {num_classes} classes of the logits; row "
            f"{row} has label {ids[first]} ({len(bad)} of {ids.size} labels are outside)"
        )


def _one_hot(labels: Integer[Array, "*batch"], num_classes: int) -> Bool[Array, "*batch k"]:
    """One-hot instead of a gather: it lowers everywhere, and no id wraps or is clamped."""
    # Counting classes in int8 would wrap at 127.
    ids = labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels
    classes = jax.lax.broadcasted_iota(ids.dtype, (*ids.shape, num_classes), ids.ndim)
    return classes == ids[..., None]


def _shift(logits: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """Subtract the largest logit, so that exp can't overflow; softmax doesn't see a shift."""
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return logits - jnp.where(jnp.isfinite(largest), largest, jnp.zeros_like(largest))
