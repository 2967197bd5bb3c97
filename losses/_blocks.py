"""Softmax cross entropy of x @ w block by block, with its derivative.

Shape suffixes: n tokens, d features, v classes (the vocabulary), c the classes of a block.

Two walks share one step. Over the vocabulary a row's maximum and normaliser grow block by block;
over tokens a block's rows are whole. Backwards each block's logits are computed again from the
row's two numbers, which is the price: 8nvd operations where stored logits need 6.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jgraph.losses import _checks


@dataclasses.dataclass(frozen=True)
class Options:
    """What is known while tracing; hashable, so that jax can compare two traces."""

    over: str
    chunk: int
    smoothing: float
    z_loss: float
    softcap: float | None


class _Rows(NamedTuple):
    """What is known of each row's logits so far, each `[n]`: all that the loss needs."""

    largest: Array
    normalizer: Array  # Σ exp(logit - largest)
    chosen: Array  # the label's logit; 0 until it is met
    total: Array  # Σ logit


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def losses(x: Array, w: Array, ids: Array, live: Array, options: Options) -> Array:
    """Return each row's loss; arguments as `_forward` names them, checked by the caller."""
    return _forward(x, w, ids, live, options)[0]


def _forward(
    x: Float[Array, "n d"],
    w: Float[Array, "d v"],
    ids: Integer[Array, " n"],
    live: Bool[Array, " n"],
    options: Options,
) -> tuple[Array, Any]:
    labels = _within(ids, w.shape[1])
    rows = _statistics(x, w, labels, options)
    loss, ok = _finish(rows, labels >= 0, w.shape[1], options)
    loss = jnp.where(live, loss, jnp.zeros_like(loss))
    return loss, (x, w, labels, live, ok, rows.largest, jnp.log(rows.normalizer))


def _backward(options: Options, residuals: Any, g: Array) -> tuple[Array, Array, None, None]:
    x, w, labels, live, ok, largest, log_normalizer = residuals
    counts = live & (g != 0)
    zero = jnp.zeros_like(g)
    # A factor, not a where: NaN where the loss is undefined. What doesn't count is 0 throughout.
    factor = jnp.where(counts, g * _checks.nan_unless(ok, g.dtype), zero)
    safe = _Safe(
        jnp.where(counts[:, None], x, jnp.zeros_like(x)),
        jnp.where(counts, labels, -1),
        jnp.where(counts, largest, zero),
        jnp.where(counts, log_normalizer, zero),
    )
    walk = _backward_tokens if options.over == "tokens" else _backward_vocabulary
    # Rows of x are weighed, not slopes: [n, d] products instead of [n, v]. By parts of the
    # largest factor, since a factor of 1/n is too small for float16.
    unit = jax.lax.stop_gradient(jnp.abs(factor).max(initial=0))
    unit = jnp.where(unit == 0, jnp.ones_like(unit), unit)
    weighed = ((factor / unit)[:, None] * safe.x.astype(g.dtype)).astype(x.dtype)
    dx, dw = walk(safe, weighed, w, unit, options)
    dx = jnp.where(counts[:, None], factor[:, None] * dx, jnp.zeros_like(dx))
    return dx.astype(x.dtype), dw, None, None


losses.defvjp(_forward, _backward)


# Forward: statistics of rows.


def _statistics(x: Array, w: Array, labels: Array, options: Options) -> _Rows:
    zero = jnp.zeros_like(labels, _wide(x.dtype))
    start = _Rows(zero - jnp.inf, zero, zero, zero)
    if options.over == "vocabulary":

        def columns(rows: _Rows, first: Array, size: int) -> _Rows:
            logits = _logits(x, _cut(w, first, size, 1), options)
            return _include(rows, logits, labels - first)

        return _walk(columns, start, w.shape[1], options.chunk)

    def tokens(rows: _Rows, first: Array, size: int) -> _Rows:
        logits = _logits(_cut(x, first, size, 0), w, options)
        block = _Rows(*(_cut(a, first, size, 0) for a in rows))
        block = _include(block, logits, _cut(labels, first, size, 0))
        return _Rows(*(_put(a, b, first, 0) for a, b in zip(rows, block, strict=True)))

    return _walk(tokens, start, x.shape[0], options.chunk)


def _include(rows: _Rows, logits: Array, labels: Array) -> _Rows:
    """Count a block of columns in; labels count from the block's first column."""
    largest = jnp.maximum(rows.largest, logits.max(-1))
    # Fixed, so that a second derivative sees one shift, and ties don't matter.
    largest = jax.lax.stop_gradient(largest)
    normalizer = rows.normalizer * jnp.exp(_less(rows.largest, largest))
    return _Rows(
        largest,
        normalizer + jnp.exp(_less(logits, largest[:, None])).sum(-1),
        rows.chosen + jnp.where(_at(labels, logits), logits, jnp.zeros_like(logits)).sum(-1),
        rows.total + logits.sum(-1),
    )


def _finish(
    rows: _Rows, known: Array, num_classes: int, options: Options
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """Return each row's loss, and whether it is defined."""
    # Differences to the largest logit: at logits of 1e4 their own rounding would be the loss.
    loss = jnp.log(rows.normalizer)
    if options.smoothing < 1:
        loss = loss + (1 - options.smoothing) * -_less(rows.chosen, rows.largest)
    if options.smoothing:
        gap = rows.largest - rows.total / num_classes
        # One infinite logit is infinitely above the mean, even where the total is inf - inf.
        gap = jnp.where(rows.largest == jnp.inf, rows.largest, gap)
        loss = loss + options.smoothing * gap
    if options.z_loss:
        loss = loss + options.z_loss * (rows.largest + jnp.log(rows.normalizer)) ** 2
    # All -inf is no distribution; two +inf have no limit.
    undefined = (rows.largest == -jnp.inf) | ((rows.largest == jnp.inf) & (rows.normalizer > 1))
    ok = known & ~undefined & ~jnp.isnan(rows.largest)
    return loss * _checks.nan_unless(ok, loss.dtype), ok


# Backward: both gradients, block by block.


class _Safe(NamedTuple):
    """The rows as the backward pass sees them: zeros where a row doesn't count."""

    x: Array
    labels: Array
    largest: Array
    log_normalizer: Array


def _backward_tokens(
    rows: _Safe, weighed: Array, w: Array, unit: Array, options: Options
) -> tuple[Array, Array]:
    def tokens(carry: tuple[Array, Array], first: Array, size: int) -> tuple[Array, Array]:
        dx, dw = carry
        block = _Safe(*(_cut(a, first, size, 0) for a in rows))
        slopes = _slopes(block, w, block.labels, w.shape[1], options)
        dw = dw + _matmul(_cut(weighed, first, size, 0), slopes, 0, 0)
        return _put(dx, _matmul(slopes, w, 1, 1), first, 0), dw

    wide = _wide(w.dtype)
    start = jnp.zeros_like(rows.x, wide), jnp.zeros_like(w, wide)
    dx, dw = _walk(tokens, start, rows.x.shape[0], options.chunk)
    return dx, (unit * dw).astype(w.dtype)


def _backward_vocabulary(
    rows: _Safe, weighed: Array, w: Array, unit: Array, options: Options
) -> tuple[Array, Array]:
    def columns(carry: tuple[Array, Array], first: Array, size: int) -> tuple[Array, Array]:
        dx, dw = carry
        part = _cut(w, first, size, 1)
        slopes = _slopes(rows, part, rows.labels - first, w.shape[1], options)
        found = unit * _matmul(weighed, slopes, 0, 0)
        return dx + _matmul(slopes, part, 1, 1), _put(dw, found.astype(w.dtype), first, 1)

    start = jnp.zeros_like(rows.x, _wide(w.dtype)), jnp.zeros_like(w)
    return _walk(columns, start, w.shape[1], options.chunk)


def _slopes(
    rows: _Safe, w: Array, labels: Array, num_classes: int, options: Options
) -> Float[Array, "n c"]:
    """Return d loss / d (x @ w) of a block, in the type of w, in which the matmuls are made."""
    logits = _logits(rows.x, w, options)
    shifted = _less(logits, rows.largest[:, None])
    p = jnp.exp(shifted - rows.log_normalizer[:, None])
    slope = p - jnp.where(_at(labels, p), 1 - options.smoothing, 0.0).astype(p.dtype)
    if options.smoothing:
        slope = slope - options.smoothing / num_classes
    if options.z_loss:
        log_normalizer = rows.largest + rows.log_normalizer
        # At an infinite normaliser the penalty has no slope.
        finite = _checks.nan_unless(jnp.isfinite(log_normalizer), p.dtype)
        slope = slope + (2 * options.z_loss * log_normalizer * finite)[:, None] * p
    if options.softcap:
        slope = slope * (1 - (logits / options.softcap) ** 2)
    return slope.astype(w.dtype)


# Blocks.


def _walk(step: Callable[..., Any], carry: Any, total: int, chunk: int) -> Any:
    """Call step(carry, first, size) for blocks that cover `range(total)`."""
    full = total // chunk
    if full:
        # Constant bounds make it a scan, which a second derivative needs.
        carry = jax.lax.fori_loop(0, full, lambda i, c: step(c, i * chunk, chunk), carry)
    if total % chunk:
        carry = step(carry, jnp.int32(full * chunk), total % chunk)
    return carry


def _cut(array: Array, first: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, first, size, axis)


def _put(array: Array, part: Array, first: Array, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, first, axis)


def _matmul(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    contract = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, preferred_element_type=_wide(a.dtype))


def _logits(x: Array, w: Array, options: Options) -> Float[Array, "n c"]:
    logits = _matmul(x, w, 1, 0)
    return options.softcap * jnp.tanh(logits / options.softcap) if options.softcap else logits


def _less(logits: Array, largest: Array) -> Array:
    """Return logits - largest, where inf - inf is 0: so far, nothing stands above that logit."""
    both = (logits == largest) & jnp.isinf(largest)
    return jnp.where(both, jnp.zeros_like(logits), logits - largest)


def _at(labels: Array, logits: Array) -> Bool[Array, "n c"]:
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    return columns == labels[:, None]


def _wide(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _within(ids: Array, num_classes: int) -> Integer[Array, " n"]:
    """Return the ids in int32, and -1 for those that are no class."""
    # Counting classes in int8 would wrap at 127.
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    inside = (ids >= 0) & (ids < num_classes)
    return jnp.where(inside, ids, jnp.zeros_like(ids)).astype(jnp.int32) - (~inside).astype(
        jnp.int32
    )
