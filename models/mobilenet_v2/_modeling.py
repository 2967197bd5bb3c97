"""MobileNetV2 as a Flax NNX module."""

from __future__ import annotations

from flax import nnx

from jgraph.models._inverted_residuals import InvertedResidualNetwork
from jgraph.models.mobilenet_v2._config import MobileNetV2Config


class MobileNetV2(InvertedResidualNetwork):
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
        super().__init__(
            config,
            config.blocks,
            stem_channels=config.stem_channels,
            norm=config.norm,
            symmetric=config.symmetric,
            rngs=rngs,
        )
