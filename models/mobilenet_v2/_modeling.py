"""MobileNetV2 as a Flax NNX module.

Shape suffixes: B pictures, H height, W width, C channels.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array

from jgraph.models._layers import ConvNorm, InvertedResidual
from jgraph.models._network import PictureNetwork
from jgraph.models.mobilenet_v2._config import MobileNetV2Config


class MobileNetV2(PictureNetwork):
    """MobileNetV2: a small picture network of inverted residual blocks.

    A new one is in training mode; `eval()` switches to the stored statistics and ends dropout.

    Args:
        config: the sizes, for instance `MobileNetV2Config.mobilenet_v2()`.
        rngs: source of the initial values (stream `params`) and of dropout (stream `dropout`).

    Source:
        Sandler et al., 2018, https://arxiv.org/abs/1801.04381; parity with torchvision, timm and
        Keras is tested.

    Example:
        >>> from flax import nnx
        >>> config = MobileNetV2Config.mobilenet_v2(num_classes=3)
        >>> model = nnx.eval_shape(lambda: MobileNetV2(config, rngs=nnx.Rngs(0)))
        >>> len(model.blocks), model.feature_size
        (17, 1280)
    """

    def __init__(self, config: MobileNetV2Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        norm, relu6 = config.norm, jax.nn.relu6
        self.stem = ConvNorm(
            3,
            config.stem_channels,
            3,
            norm=norm,
            activation=relu6,
            stride=2,
            padding=1 if config.symmetric else "SAME",
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [
                InvertedResidual(spec, norm=norm, symmetric=config.symmetric, rngs=rngs)
                for spec in config.blocks
            ]
        )
        self.head = ConvNorm(
            config.blocks[-1].out_channels,
            config.feature_size,
            1,
            norm=norm,
            activation=relu6,
            rngs=rngs,
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
