"""Dense convolutions as products of matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jgraph.graph._convolutions._depthwise import padded, tap
from jgraph.graph._convolutions._shapes import Convolution

_FIRST_AXES = (((0,), (0,)), ((), ()))


def pointwise(conv: Convolution, x_NHWC: jax.Array, kernel_HWIO: jax.Array) -> jax.Array:
    """Return the convolution with a kernel of one tap, at any stride, or of a dilated x."""
    kernel = kernel_HWIO[0, 0]
    if conv.x_dilation != (1, 1):
        # What stands between and around the pixels is zero before and after.
        y = _pixels(x_NHWC, kernel, conv)
        edges = [(*p, d - 1) for p, d in zip(conv.padding, conv.x_dilation, strict=True)]
        return lax.pad(y, np.zeros((), y.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    x = tap(padded(x_NHWC, conv.padding), (0, 0), conv.size, conv.strides)
    return _pixels(x, kernel, conv)


def pointwise_gradient(conv: Convolution, x_NHWC: jax.Array, g_NHWC: jax.Array) -> jax.Array:
    """Return the gradient by a kernel of one tap, `(inputs, 1, 1, outputs)`."""
    _, height, width, _ = g_NHWC.shape
    x = tap(padded(x_NHWC, conv.padding), (0, 0), (height, width), conv.dilation)
    return _product(x, g_NHWC, conv)[:, None, None]


def kernel_gradient(conv: Convolution, x_NHWC: jax.Array, g_NHWC: jax.Array) -> jax.Array:
    """Return the gradient by the kernel, `(inputs, kernel height, kernel width, outputs)`.

    One product for each tap. (One for all, im2col, is slower.)
    """
    x = padded(x_NHWC, conv.padding)
    _, height, width, _ = g_NHWC.shape
    taps = [
        tap(x, (i * conv.strides[0], j * conv.strides[1]), (height, width), conv.dilation)
        for i, j in np.ndindex(conv.size)
    ]
    y = jnp.stack([_product(t, g_NHWC, conv) for t in taps], 1)
    return y.reshape(x.shape[3], *conv.size, g_NHWC.shape[3])


def _pixels(x_NHWC: jax.Array, kernel_IO: jax.Array, conv: Convolution) -> jax.Array:
    y = lax.dot(_flat(x_NHWC), kernel_IO, precision=conv.precision)
    return y.reshape(*x_NHWC.shape[:3], kernel_IO.shape[1])


def _product(x_NHWC: jax.Array, g_NHWC: jax.Array, conv: Convolution) -> jax.Array:
    """Return the sum over all pixels of the outer product, `(inputs, outputs)`."""
    x, g = _flat(x_NHWC), _flat(g_NHWC)
    # XLA's product is up to three times as fast with the wider matrix on the right.
    if x.shape[1] <= g.shape[1]:
        return lax.dot_general(x, g, _FIRST_AXES, precision=conv.precision)
    return lax.dot_general(g, x, _FIRST_AXES, precision=conv.precision).T


def _flat(x_NHWC: jax.Array) -> jax.Array:
    return x_NHWC.reshape(-1, x_NHWC.shape[3])
