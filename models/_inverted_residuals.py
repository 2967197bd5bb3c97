"""Inverted residual blocks, and the networks that are made of them.

Shape suffixes: B pictures, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from jgraph.models._layers import ConvNorm, NormConfig
from jgraph.models._network import NetworkConfig, PictureNetwork


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The sizes of one inverted residual block.

    Args:
        kernel_size: side of the depthwise kernel, in pixels.
        stride: step of the depthwise convolution, in pixels.
        expansion: channels inside the block per input channel.
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    kernel_size: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int

    @property
    def has_skip(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.in_channels == self.out_channels


class InvertedResidual(nnx.Module):
    """Widen by a 1x1 convolution, filter depthwise, narrow by a 1x1 convolution without ReLU.

    Args:
        spec: the sizes.
        norm: how batches are normalised.
        symmetric: whether the depthwise convolution has as many zeros on each side, not "SAME".
        rngs: source of the initial values.

    Source:
        Sandler et al., 2018, MobileNetV2, https://arxiv.org/abs/1801.04381, section 3.3.
    """

    def __init__(
        self, spec: BlockSpec, *, norm: NormConfig, symmetric: bool = False, rngs: nnx.Rngs
    ) -> None:
        inner = spec.in_channels * spec.expansion
        relu6 = jax.nn.relu6
        self.expand = (
            ConvNorm(spec.in_channels, inner, 1, norm=norm, activation=relu6, rngs=rngs)
            if spec.expansion != 1
            else None
        )
        self.depthwise = ConvNorm(
            inner,
            inner,
            spec.kernel_size,
            norm=norm,
            activation=relu6,
            stride=spec.stride,
            padding=spec.kernel_size // 2 if symmetric else "SAME",
            depthwise=True,
            rngs=rngs,
        )
        self.project = ConvNorm(inner, spec.out_channels, 1, norm=norm, activation=None, rngs=rngs)
        self.has_skip = spec.has_skip

    def __call__(self, x_BHWC: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the block's output, the input added where `has_skip`."""
        y_BHWC = x_BHWC if self.expand is None else self.expand(x_BHWC)
        y_BHWC = self.project(self.depthwise(y_BHWC))
        return x_BHWC + y_BHWC if self.has_skip else y_BHWC


class InvertedResidualNetwork(PictureNetwork):
    """A stem, inverted residual blocks and a 1x1 convolution: MobileNetV2 and EfficientNet-Lite.

    Args:
        config: the sizes.
        blocks: those of the blocks.
        stem_channels: outputs of the first convolution, 3x3 of stride 2.
        norm: how batches are normalised.
        symmetric: whether convolutions have as many zeros on each side, not "SAME".
        rngs: source of the initial values (stream `params`) and of dropout (stream `dropout`).
    """

    def __init__(
        self,
        config: NetworkConfig,
        blocks: Sequence[BlockSpec],
        *,
        stem_channels: int,
        norm: NormConfig,
        symmetric: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        relu6 = jax.nn.relu6
        padding = 1 if symmetric else "SAME"
        self.stem = ConvNorm(
            3, stem_channels, 3, norm=norm, activation=relu6, stride=2, padding=padding, rngs=rngs
        )
        self.blocks = nnx.List(
            [InvertedResidual(spec, norm=norm, symmetric=symmetric, rngs=rngs) for spec in blocks]
        )
        self.head = ConvNorm(
            blocks[-1].out_channels, config.feature_size, 1, norm=norm, activation=relu6, rngs=rngs
        )
        self.reset_classifier(config.num_classes, rngs=rngs)

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        """What is unfrozen together, in forward order: the stem, then each block.

        The convolution after the last block belongs to the last entry. The classification head
        belongs to none.
        """
        blocks = [(block,) for block in self.blocks]
        return ((self.stem,), *blocks[:-1], (*blocks[-1], self.head))

    def _feature_map(self, x_BHWC: Array) -> Array:
        x_BHWC = self.stem(x_BHWC)
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return self.head(x_BHWC)
