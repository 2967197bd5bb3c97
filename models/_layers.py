"""What picture networks share: convolution with batch normalisation, and widths.

Shape suffixes: B pictures, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Channel counts are multiples of eight, which suits vector units.
CHANNEL_DIVISOR = 8
# "SAME" and "VALID" as in TensorFlow, or as many zeros on each side, as in PyTorch: at stride 2
# "SAME" puts the odd row and column of an even picture below and right only.
Padding = str | int
Activation = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """How a network normalises its batches.

    Args:
        momentum: share of the old statistics that a training step keeps. PyTorch names the other
            share: its momentum 0.1 is 0.9 here.
        epsilon: added to the variance.
        use_scale: whether there is a learned factor per channel.

    The running variance takes up the batch's variance over n, as Keras's does; PyTorch's takes up
    the one over n - 1. The normalised values don't depend on it.
    """

    momentum: float
    epsilon: float
    use_scale: bool = True


def round_channels(channels: int | float) -> int:
    """Return `channels` to the nearest multiple of eight, at most a tenth below.

    Source:
        `_make_divisible` of MobileNet in tensorflow/models, which Keras, torchvision and timm copy.

    Example:
        >>> round_channels(0.35 * 24), round_channels(11)
        (8, 16)
    """
    nearest = int(channels + CHANNEL_DIVISOR / 2) // CHANNEL_DIVISOR * CHANNEL_DIVISOR
    nearest = max(CHANNEL_DIVISOR, nearest)
    return nearest if nearest >= 0.9 * channels else nearest + CHANNEL_DIVISOR


def kernel_std(shape: tuple[int, ...]) -> float:
    """Return the standard deviation of a new convolution kernel: He's, by fan-out.

    Args:
        shape: height, width, inputs per group, outputs.

    Returns:
        The standard deviation; a depthwise kernel, with one input per group, has one output each.

    Source:
        He et al., 2015, https://arxiv.org/abs/1502.01852; as torchvision's ResNet and
        `conv_kernel_initializer` of EfficientNet.

    Example:
        >>> kernel_std((1, 1, 16, 8)), kernel_std((1, 1, 1, 8))
        (0.5, 1.4142135623730951)
    """
    height, width, inputs, outputs = shape
    fan_out = height * width * (1 if inputs == 1 else outputs)
    return math.sqrt(2.0 / fan_out)


def _draw_kernel(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return kernel_std(shape) * jax.random.normal(key, shape, dtype)


class ConvNorm(nnx.Module):
    """A convolution, batch normalisation and, unless it is None, an activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, or its height and width, in pixels.
        norm: how batches are normalised.
        activation: what comes last.
        stride: step of the convolution, in pixels.
        padding: "SAME", "VALID" or the zeros on each side.
        depthwise: whether each channel is filtered alone.
        use_bias: whether the convolution has a bias, which the normalisation takes away again.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        norm: NormConfig,
        activation: Activation | None,
        stride: int = 1,
        padding: Padding = "SAME",
        depthwise: bool = False,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size,
            strides=stride,
            padding=padding,
            feature_group_count=in_channels if depthwise else 1,
            use_bias=use_bias,
            kernel_init=_draw_kernel,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            out_channels,
            momentum=norm.momentum,
            epsilon=norm.epsilon,
            use_scale=norm.use_scale,
            rngs=rngs,
        )
        self.activation = activation

    def __call__(self, x_BHWC: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the normalised, maybe activated, convolution of `x_BHWC`."""
        x_BHWC = self.norm(self.conv(x_BHWC))
        return x_BHWC if self.activation is None else self.activation(x_BHWC)
