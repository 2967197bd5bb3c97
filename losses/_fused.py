"""A linear layer and its softmax cross entropy in one, so that no logits are stored."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jgraph._errors import InputError
from jgraph.losses import _checks
from jgraph.losses._blocks import Options, losses
from jgraph.losses._reverse_only import reverse_only

_NO_FORWARD_MODE = (
    "linear_softmax_cross_entropy has no forward mode (jvp, jacfwd, linearize): its derivative is "
    "written for reverse mode, which is what keeps the logits out of memory; take grad or vjp "
    "(a Hessian-vector product as jvp of grad works), or call the plain form "
    "jgraph.losses.sparse_softmax_cross_entropy(x @ w, labels), which stores the logits"
)

# The bytes of one block's logits over the vocabulary, of which a few live at a time: a matmul
# this wide runs at full speed, and more would only cost memory.
_BLOCK_BYTES = 4 * 2**20


def linear_softmax_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike,
    *,
    chunk: int | None = None,
    over: Literal["tokens", "vocabulary"] = "tokens",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    mask: ArrayLike | None = None,
) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood, in nats, of labels under softmax(x @ w), without logits.

    The likelihood is categorical, as in `sparse_softmax_cross_entropy(x @ w, labels)`, to which
    it is equal. That form stores logits `[n, v]` and their gradient; with a large vocabulary they
    are most of a step's memory. Here they exist one block at a time, and are computed twice. Use
    the plain form where the logits are small or wanted, or for forward mode.

    Over "tokens" a block is some rows of x: the gradient of w is summed up in float32, and a
    vocabulary split among devices stays split. Over "vocabulary" a block is some columns of w:
    the least memory, and tokens split among devices stay split.

    Args:
        x: features, float `[..., d]`.
        w: the layer's weight, float `[d, v]`, of the type of x. Matmuls of half precision
            are summed in float32; everything between them is float32 (float64 for float64).
        labels: class ids in `[0, v)`, integer `[...]`.
        chunk: tokens or classes in a block; None chooses. It need not divide anything.
        over: what is cut into blocks.
        label_smoothing: s in [0, 1]: the target is (1 - s) of the label and s of the uniform
            distribution.
        z_loss: adds z · logsumexp(logits)², which keeps the normaliser near 1; where that is
            infinite, so is the loss, and the gradient is NaN.
        softcap: c > 0 replaces a logit l by c · tanh(l / c).
        mask: bool `[...]`. A row where it is False has loss and gradient 0, whatever stands in x
            and labels there. Give `mean` the same mask as weights.

    Returns:
        One loss a row, float32 (float64 for float64 x) `[...]`. A label outside `[0, v)` in
        compiled code makes that row's loss NaN, and the gradient NaN where the row counts; a row
        whose incoming gradient is 0 (weight 0 in `mean`) gives exactly 0.

    Raises:
        InputError: (a ValueError) wrong types, shapes or options; where the labels' values are
            known (no jit), a label outside `[0, v)`; in forward mode, naming the plain form.

    Source:
        TF has none; over tokens as in Liger Kernel (arXiv:2410.10989), over the vocabulary as in
        Wijmans et al., Cut Your Losses, 2025 (arXiv:2411.09009); z-loss: PaLM, section 5;
        softcap: Gemma 2.

    Example:
        >>> x, w = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 0.0], [0.0, 25.0]])
        >>> linear_softmax_cross_entropy(x, w, jnp.array([0, 1]), over="vocabulary").round(4)
        Array([0.6931, 0.    ], dtype=float32)
    """
    xs, weight = jnp.asarray(x), jnp.asarray(w)
    _check_arrays(xs, weight)
    num_classes = weight.shape[1]
    logits_shape = (*xs.shape[:-1], num_classes)
    live = _live(mask, logits_shape[:-1])
    ids = _ids(labels, mask, logits_shape)
    options = Options(
        over=_either("over", over, ("tokens", "vocabulary")),
        chunk=_chunk(chunk, over, xs.size // max(xs.shape[-1], 1), *weight.shape),
        # With one class there is nothing to smooth.
        smoothing=_checks.number("label_smoothing", label_smoothing, 0, 1) * (num_classes > 1),
        z_loss=_checks.number("z_loss", z_loss, 0, np.inf),
        softcap=None if softcap is None else _softcap(softcap),
    )
    rows = xs.reshape(-1, xs.shape[-1])
    rows, weight = reverse_only(_NO_FORWARD_MODE, rows, _beside(weight, xs))
    loss: Array = losses(rows, weight, ids.reshape(-1), live.reshape(-1), options)
    return loss.reshape(logits_shape[:-1])


def _check_arrays(x: Array, w: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim == 0:
        raise InputError(f"x must be float [..., d], got {x.dtype} of shape {x.shape}")
    if w.ndim != 2 or w.shape[0] != x.shape[-1] or w.shape[1] == 0:
        raise InputError(
            f"w must be [d, v] with d the last axis of x and v > 0 classes, got w {w.shape} for x "
            f"{x.shape}; a weight stored [v, d] must be transposed"
        )
    if w.dtype != x.dtype:
        raise InputError(
            f"w must have the type of x, got w {w.dtype} {w.shape} and x {x.dtype} {x.shape}; "
            "cast the one that is meant to give way"
        )


def _live(mask: ArrayLike | None, shape: tuple[int, ...]) -> Bool[Array, "*batch"]:
    if mask is None:
        return jnp.ones(shape, bool)
    live = jnp.asarray(mask)
    if live.dtype != bool or live.shape != shape:
        raise InputError(
            f"mask must be bool of the shape of x without its last axis, {shape}, got "
            f"{live.dtype} of shape {live.shape}; other weights belong in jgraph.losses.mean"
        )
    return live


def _ids(labels: ArrayLike, mask: ArrayLike | None, logits_shape: tuple[int, ...]) -> Array:
    """Return the checked labels; those of masked rows are not looked at."""
    ids = _checks.class_ids(labels, logits_shape, check=mask is None)
    if mask is not None:
        rows = _checks.known(mask)
        values = _checks.known(labels if isinstance(labels, np.ndarray) else ids)
        if rows is not None and values is not None:
            _checks.check_ids("labels", np.where(rows, values, 0), logits_shape[-1])
    return ids


def _either(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def _softcap(softcap: float) -> float:
    return _checks.number("softcap", softcap, 0, np.inf, open_low=True)


def _chunk(chunk: Any, over: str, n: int, d: int, v: int) -> int:
    """Return the size of a block."""
    total = n if over == "tokens" else v
    if chunk is None:
        # Over tokens a block's logits are a quarter of the weight.
        best = max(d // 4, 64) if over == "tokens" else _BLOCK_BYTES // (4 * max(n, 1))
        chunk = max(best, 128) if over == "vocabulary" else best
    elif isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"chunk must be a whole number of {over}, at least 1, got {chunk!r}")
    return max(min(chunk, total), 1)


def _beside(w: Array, x: Array) -> Array:
    """Return w, replicated on each device of shard_map that x is split over.

    There the gradient of a replicated w is the sum over devices, which jax takes where it sees
    the replication happen: here, outside the custom derivative.
    """
    return w + jnp.zeros_like(x, shape=())
