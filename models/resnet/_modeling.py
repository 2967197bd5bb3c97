"""ResNet as a Flax NNX module.

Shape suffixes: B pictures, H height, W width, C channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jgraph.models._layers import ConvNorm
from jgraph.models._network import PictureNetwork
from jgraph.models.resnet._config import EXPANSION, STEM_CHANNELS, ResNetConfig


class Bottleneck(nnx.Module):
    """Narrow by a 1x1 convolution, filter by a 3x3, widen by a 1x1, and add the input.

    Args:
        in_channels: channels of the input.
        width: channels inside; the output has four times as many.
        stride: step of the block, in pixels.
        has_shortcut: whether the input is fitted to the output by a 1x1 convolution.
        config: of the network.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        has_shortcut: bool,
        config: ResNetConfig,
        rngs: nnx.Rngs,
    ) -> None:
        conv = functools.partial(
            ConvNorm, norm=config.norm, padding=0, use_bias=config.use_bias, rngs=rngs
        )
        first, second = (stride, 1) if config.strides_first else (1, stride)
        relu, out_channels = jax.nn.relu, EXPANSION * width
        self.narrow = conv(in_channels, width, 1, stride=first, activation=relu)
        self.filter = conv(width, width, 3, stride=second, padding=1, activation=relu)
        self.widen = conv(width, out_channels, 1, activation=None)
        self.shortcut = (
            conv(in_channels, out_channels, 1, stride=stride, activation=None)
            if has_shortcut
            else None
        )

    def __call__(self, x_BHWC: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the block's output."""
        y_BHWC = self.widen(self.filter(self.narrow(x_BHWC)))
        skip_BHWC = x_BHWC if self.shortcut is None else self.shortcut(x_BHWC)
        return jax.nn.relu(skip_BHWC + y_BHWC)


class ResNet(PictureNetwork):
    """ResNet of bottleneck blocks, such as ResNet-50.

    A new one is in training mode; `eval()` switches to the stored statistics.

    Args:
        config: the sizes, for instance `ResNetConfig.resnet50()`.
        rngs: source of the initial values (stream `params`) and of dropout (stream `dropout`).

    Source:
        He et al., 2015, https://arxiv.org/abs/1512.03385; parity with torchvision and Keras is
        tested.

    Example:
        >>> from flax import nnx
        >>> config = ResNetConfig.resnet50(num_classes=3)
        >>> model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
        >>> len(model.blocks), model.feature_size
        (16, 2048)
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.stem = ConvNorm(
            3,
            STEM_CHANNELS,
            7,
            norm=config.norm,
            activation=jax.nn.relu,
            stride=2,
            padding=3,
            use_bias=config.use_bias,
            rngs=rngs,
        )
        blocks, channels = [], STEM_CHANNELS
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(
                    Bottleneck(
                        channels,
                        width,
                        stride=stride,
                        has_shortcut=index == 0,
                        config=config,
                        rngs=rngs,
                    )
                )
                channels = EXPANSION * width
        self.blocks = nnx.List(blocks)
        self.reset_classifier(config.num_classes, rngs=rngs)

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        """What is unfrozen together, in forward order: the stem, then each block.

        The classification head belongs to none.
        """
        return ((self.stem,), *((block,) for block in self.blocks))

    def _feature_map(self, x_BHWC: Array) -> Array:
        x_BHWC = self.stem(x_BHWC)
        # Zeros at the rim are as good as PyTorch's minus infinity: nothing is negative after ReLU.
        x_BHWC = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x_BHWC = nnx.max_pool(x_BHWC, (3, 3), (2, 2))
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return x_BHWC
