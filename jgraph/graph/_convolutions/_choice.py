"""Which formulation of a convolution is the fastest on a CPU, if one beats XLA's.

The bounds were measured on one core with AVX-512, in float32; the ratios are those of XLA's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax

from jgraph.graph._convolutions import _dense, _depthwise
from jgraph.graph._convolutions._shapes import Axes, Convolution

Formulation: TypeAlias = Callable[[Convolution, jax.Array, jax.Array], jax.Array]

# A sum has a term for each tap, and each costs time to compile.
_MOST_TERMS = 64


def formulation(conv: Convolution, axes: Axes) -> Formulation | None:
    """Return a function of x in NHWC and the kernel in HWIO, None where XLA's own is best."""
    if not all(conv.size):
        return None
    if conv.groups > 1 or conv.batch_groups > 1:
        return _by_channel(conv)
    if conv.kernel[:2] == (1, 1):
        return _dense.pointwise if _is_wide(conv) and _is_plain(conv) else None
    if axes.is_gradient and conv.x_dilation == (1, 1):
        return _kernel_gradient(conv)
    return None


def _by_channel(conv: Convolution) -> Formulation | None:
    """Depthwise: 1/10 to 1/100 of the time."""
    if conv.batch_groups == conv.x[0] == conv.kernel[3] and conv.groups == 1:
        few = conv.size[0] * conv.size[1] <= _MOST_TERMS
        return _swapped(_depthwise.kernel_gradient) if few and conv.x_dilation == (1, 1) else None
    if conv.batch_groups > 1 or not conv.groups == conv.x[3] == conv.kernel[3]:
        return None
    terms = conv.kernel[0] * conv.kernel[1]
    if conv.x_dilation == (1, 1):
        return _depthwise.forward if terms <= _MOST_TERMS else None
    phases = conv.x_dilation[0] * conv.x_dilation[1]
    few = terms <= _MOST_TERMS and phases <= _MOST_TERMS
    return _depthwise.of_dilated if few and conv.strides == (1, 1) else None


def _is_plain(conv: Convolution) -> bool:
    return conv.x_dilation == (1, 1) or conv.strides == (1, 1)


def _is_wide(conv: Convolution) -> bool:
    # 8 to 8 and 16 to 16 channels take 1.15 to 1.3 of the time.
    return conv.x[3] * conv.kernel[3] > 256


def _kernel_gradient(conv: Convolution) -> Formulation | None:
    inputs, outputs = conv.x[0], conv.kernel[3]
    if conv.size == (1, 1):
        # 0.1 to 0.6 of the time, but 1.2 from 32 to 16 channels.
        gains = outputs > 16 or inputs <= outputs
        return _swapped(_dense.pointwise_gradient) if gains else None
    # XLA's is slow, by 2 to 4, only where a large map gets more channels.
    large = conv.kernel[0] * conv.kernel[1] >= 2500
    gains = large and inputs >= 48 and 2 * outputs >= 3 * inputs
    few = conv.size[0] * conv.size[1] <= _MOST_TERMS
    return _swapped(_dense.kernel_gradient) if gains and few else None


def _swapped(gradient: Formulation) -> Formulation:
    """Give a kernel's gradient its x and the result's gradient as the forward one has them."""
    return lambda conv, x, kernel: gradient(
        conv, x.transpose(3, 1, 2, 0), kernel.transpose(2, 0, 1, 3)
    )
