"""Depthwise convolutions, each channel by itself, as sums of shifted products.

XLA fuses such a sum into one loop over the result, vectorised over the channels.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgraph.graph._convolutions._shapes import Convolution, Pair

# A pair of paddings, of height and of width.
_Padding = tuple[Pair, Pair]


def forward(conv: Convolution, x_NHWC: jax.Array, kernel_HWIO: jax.Array) -> jax.Array:
    """Return the convolution of x, which isn't dilated, at any stride and dilation."""
    x, size = padded(x_NHWC, conv.padding), conv.size
    return _sum(
        tap(x, (i * conv.dilation[0], j * conv.dilation[1]), size, conv.strides)
        * kernel_HWIO[i : i + 1, j : j + 1]
        for i, j in np.ndindex(conv.kernel[:2])
    )


def of_dilated(conv: Convolution, x_NHWC: jax.Array, kernel_HWIO: jax.Array) -> jax.Array:
    """Return the convolution of a dilated x at stride 1, the input gradient of a strided one.

    Of the kernel's taps, a pixel of the result meets those that don't fall on the zeros between
    x's pixels: which ones, its position modulo the dilation says. Each such phase is a sum of its
    own, and the phases are interleaved.
    """
    height, width = conv.size
    rows, columns = (_phases(conv, axis) for axis in (0, 1))
    size = (-(-height // conv.x_dilation[0]), -(-width // conv.x_dilation[1]))
    x, first = _reachable(x_NHWC, (rows, columns), size)

    def phase(row_taps: list[Pair], column_taps: list[Pair]) -> jax.Array:
        terms = [
            tap(x, (first[0] + p, first[1] + q), size, (1, 1)) * kernel_HWIO[i : i + 1, j : j + 1]
            for i, p in row_taps
            for j, q in column_taps
        ]
        return _sum(terms) if terms else jnp.zeros((conv.x[0], *size, conv.x[3]), x.dtype)

    parts = [jnp.stack([phase(row, column) for column in columns], 3) for row in rows]
    whole = (conv.x[0], size[0] * len(rows), size[1] * len(columns), conv.x[3])
    return jnp.stack(parts, 2).reshape(whole)[:, :height, :width]


def kernel_gradient(conv: Convolution, x_NHWC: jax.Array, g_NHWC: jax.Array) -> jax.Array:
    """Return the gradient by the kernel, `(1, kernel height, kernel width, channels)`.

    A loop over the rows of all results, each of which adds to what every tap has.

    Args:
        conv: the gradient as a convolution: its dilation is the strides of the forward one, its
            strides the dilation.
        x_NHWC: what the forward convolution was given.
        g_NHWC: the gradient by its result.
    """
    x, size = padded(x_NHWC, conv.padding), conv.size
    batch, height, width, channels = g_NHWC.shape
    tall = (size[0] - 1) * conv.strides[0] + 1

    def add(step: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        image, row = step // height, step % height
        start = (image, row * conv.dilation[0], 0, 0)
        near = lax.dynamic_slice(x, start, (1, tall, x.shape[2], channels))
        weight = lax.dynamic_slice(g_NHWC, (image, row, 0, 0), (1, 1, width, channels))
        steps = (conv.strides[0], conv.dilation[1])
        return tuple(
            s + tap(near, (0, j * conv.strides[1]), (size[0], width), steps)[0] * weight[0]
            for j, s in enumerate(sums)
        )

    # A tuple, one for each column of taps: its members stay where they are, in the cache.
    zeros = (jnp.zeros((size[0], width, channels), g_NHWC.dtype),) * size[1]
    sums = lax.fori_loop(0, batch * height, add, zeros)
    return jnp.stack([s.sum(1) for s in sums], 1)[None]


def padded(x_NHWC: jax.Array, padding: _Padding) -> jax.Array:
    """Return x with zeros around it, or cropped where the padding is negative."""
    if not any(map(any, padding)):
        return x_NHWC
    edges = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.pad(x_NHWC, np.zeros((), x_NHWC.dtype), edges)


def tap(x_NHWC: jax.Array, start: Pair, size: Pair, strides: Pair) -> jax.Array:
    """Return the pixels of x that one tap of a kernel meets."""
    stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, size, strides, strict=True)]
    batch, _, _, channels = x_NHWC.shape
    return lax.slice(x_NHWC, (0, *start, 0), (batch, *stop, channels), (1, *strides, 1))


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)


def _phases(conv: Convolution, axis: int) -> list[list[Pair]]:
    """Return for each phase the taps it meets and the pixel of x, from its own, that they meet."""
    step, first = conv.x_dilation[axis], conv.padding[axis][0]
    met = [
        [(i, phase + i * conv.dilation[axis] - first) for i in range(conv.kernel[axis])]
        for phase in range(step)
    ]
    return [[(i, at // step) for i, at in taps if at % step == 0] for taps in met]


def _reachable(
    x_NHWC: jax.Array, phases: tuple[list[list[Pair]], ...], size: Pair
) -> tuple[jax.Array, Pair]:
    """Return x with the zeros that the phases meet around it, and where its first pixel is."""
    offsets = [[at for taps in axis for _, at in taps] for axis in phases]
    low = [max(0, *(-at for at in axis), 0) for axis in offsets]
    high = [
        max(0, *(at + n - length for at in axis), 0)
        for axis, n, length in zip(offsets, size, x_NHWC.shape[1:3], strict=True)
    ]
    padding = ((low[0], high[0]), (low[1], high[1]))
    return padded(x_NHWC, padding), (low[0], low[1])
