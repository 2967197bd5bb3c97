"""EfficientNet-Lite as a Flax NNX module."""

from __future__ import annotations

from flax import nnx

from jgraph.models._inverted_residuals import InvertedResidualNetwork
from jgraph.models._layers import NormConfig
from jgraph.models.efficientnet_lite._config import STEM_CHANNELS, EfficientNetLiteConfig

_NORM = NormConfig(momentum=0.99, epsilon=1e-3)


class EfficientNetLite(InvertedResidualNetwork):
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
        super().__init__(config, config.blocks, stem_channels=STEM_CHANNELS, norm=_NORM, rngs=rngs)
