"""EfficientNet-Lite as a Flax NNX module.

Shape suffixes: B pictures, H height, W width, C channels.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array

from jgraph.models._layers import ConvNorm, InvertedResidual, NormConfig
from jgraph.models._network import PictureNetwork
from jgraph.models.efficientnet_lite._config import (
    FEATURE_SIZE,
    STEM_CHANNELS,
    EfficientNetLiteConfig,
)

_NORM = NormConfig(momentum=0.99, epsilon=1e-3)


class EfficientNetLite(PictureNetwork):
    """EfficientNet-Lite: a picture network of inverted residual blocks.

    A new one is in training mode; `eval()` switches to the stored statistics and ends dropout. The
    stochastic depth of the original training recipe is not part of the network.

    Args:
        config: the sizes, for instance `EfficientNetLiteConfig.lite0()`.
        rngs: source of the initial values (stream `params`) and of dropout (stream `dropout`).

    Source:
        https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite; parity
        with the package efficientnet-lite-pytorch is tested.

    Example:
        >>> from flax import nnx
        >>> config = EfficientNetLiteConfig.lite0(num_classes=3)
        >>> model = nnx.eval_shape(lambda: EfficientNetLite(config, rngs=nnx.Rngs(0)))
        >>> len(model.blocks), model.feature_size
        (16, 1280)
    """

    def __init__(self, config: EfficientNetLiteConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        relu6 = jax.nn.relu6
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, norm=_NORM, activation=relu6, stride=2, rngs=rngs)
        self.blocks = nnx.List(
            [InvertedResidual(spec, norm=_NORM, rngs=rngs) for spec in config.blocks]
        )
        self.head = ConvNorm(
            config.blocks[-1].out_channels,
            FEATURE_SIZE,
            1,
            norm=_NORM,
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
