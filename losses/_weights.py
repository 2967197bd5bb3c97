"""Weights per example, for `jgraph.losses.mean`: which rows count, and how much."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jgraph._errors import InputError
from jgraph.losses._checks import (
    check_values,
    class_axis,
    class_ids,
    nan_unless,
    one_hot,
    predictions,
)


def ignore(
    labels: ArrayLike, ignore_id: int = -100
) -> tuple[Integer[Array | np.ndarray, "*batch"], Float[Array, "*batch"]]:
    """Return labels in which the ignored ones are 0, and weights that leave those rows out.

    Only this id is forgiven: any other label outside [0, K) is still an error. Rows of weight 0
    have gradient 0, and no part in the mean's denominator.

    Args:
        labels: class ids, integer `[...]`.
        ignore_id: the id that means "no label".

    Returns:
        The labels with 0 in place of `ignore_id` `[...]`, and weights, 1.0 or 0.0, float32
        `[...]`. Multiply the weights by others where there are any.

    Raises:
        InputError: (a ValueError) labels that aren't integers.

    Source:
        `torch.nn.CrossEntropyLoss(ignore_index=-100)`;
        `tf.keras.losses.SparseCategoricalCrossentropy(ignore_class=…)`.

    Example:
        >>> labels, weights = ignore(jnp.array([2, -100]))
        >>> labels, weights
        (Array([2, 0], dtype=int32), Array([1., 0.], dtype=float32))
    """
    # In numpy while it is numpy: jax would narrow 64 bits before anybody looks at them.
    ids = labels if isinstance(labels, np.ndarray) else jnp.asarray(labels)
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"labels must be integer class ids, got {ids.dtype} of shape {ids.shape}")
    info = np.iinfo(ids.dtype)
    if not info.min <= ignore_id <= info.max:
        # No label can be it; comparing would wrap it to one that is.
        return ids, jnp.ones(ids.shape, jnp.float32)
    ignored = ids == ids.dtype.type(ignore_id)
    if isinstance(ids, np.ndarray):
        return np.where(ignored, ids.dtype.type(0), ids), jnp.asarray(~ignored, jnp.float32)
    return jnp.where(ignored, jnp.zeros_like(ids), ids), (~ignored).astype(jnp.float32)


def class_weights(labels: ArrayLike, weights: ArrayLike) -> Float[Array, "*batch"]:
    """Return each example's weight: that of its class.

    In `jgraph.losses.mean` they give Σwl/Σw, across batches and replicas: the likelihood of data
    in which each class appears weight times as often. `N / (K n_k)` balances classes of n_k
    examples; predicted probabilities then assume the balanced world.

    Args:
        labels: class ids in `[0, K)`, integer `[...]`.
        weights: one per class, float `[K]`, non-negative and finite.

    Returns:
        `weights[label]`, float32 (float64 for float64 weights) `[...]`. In compiled code a label
        outside `[0, K)` and a bad weight give NaN.

    Raises:
        InputError: (a ValueError) labels that aren't integers, weights that aren't float or not
            `[K]`, and, where their values are known (no jit), a label outside `[0, K)`, or a
            weight that is negative or infinite.

    Source:
        `tf.keras.Model.fit(class_weight=…)`; `torch.nn.CrossEntropyLoss(weight=…)`.

    Example:
        >>> class_weights(jnp.array([0, 1, 1]), jnp.array([2.0, 0.5]))
        Array([2. , 0.5, 0.5], dtype=float32)
    """
    w = predictions("weights", weights)
    if w.ndim != 1:
        raise InputError(f"weights must be one per class, [K], got shape {w.shape}")
    num_classes = class_axis("weights", w)
    good = check_values("weights", w, (w >= 0) & (w < jnp.inf), "be non-negative and finite")
    w = w * nan_unless(good, w.dtype)
    shape = np.shape(labels)
    chosen = one_hot(class_ids(labels, (*shape, num_classes)), num_classes)
    wide = jnp.broadcast_to(w.reshape((1,) * len(shape) + w.shape), chosen.shape)
    return jnp.where(chosen, wide, 0.0).sum(-1) * nan_unless(chosen.any(-1), w.dtype)
