"""The sizes of the EfficientNet-Lite family, as data."""

from __future__ import annotations

import dataclasses
import math

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.models._inverted_residuals import BlockSpec
from jgraph.models._layers import round_channels
from jgraph.models._network import check_num_classes

STEM_CHANNELS = 32
FEATURE_SIZE = 1280

# Repeats and the sizes of the first block of each of the seven stages, before width and depth.
_BASE_STAGES = (
    (1, BlockSpec(3, 1, 1, 32, 16)),
    (2, BlockSpec(3, 2, 6, 16, 24)),
    (2, BlockSpec(5, 2, 6, 24, 40)),
    (3, BlockSpec(3, 2, 6, 40, 80)),
    (3, BlockSpec(5, 1, 6, 80, 112)),
    (4, BlockSpec(5, 2, 6, 112, 192)),
    (1, BlockSpec(3, 1, 6, 192, 320)),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """The sizes of an EfficientNet-Lite.

    Args:
        width: factor on the channels of every block.
        depth: factor on the repeats of every stage but the first and the last.
        image_size: side of the square pictures the network is trained on, in pixels.
        dropout_rate: share of features dropped before the classification head, in training.
        num_classes: outputs of the classification head; 0 for a network without one.

    Raises:
        InputError: an argument is out of its range.

    Source:
        The presets follow `efficientnet_lite_builder.py` of
        https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite; the
        scaling rule is that of Tan and Le, 2019, https://arxiv.org/abs/1905.11946, except that
        stem and head keep their size.

    Example:
        >>> config = EfficientNetLiteConfig.lite0(num_classes=3)
        >>> len(config.blocks), config.preprocessing.image_size
        (16, 224)
    """

    width: float
    depth: float
    image_size: int
    dropout_rate: float
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.depth > 0):
            raise InputError(
                f"width and depth must be positive, got width {self.width} and depth {self.depth}"
            )
        check_num_classes(self.num_classes)

    @classmethod
    def lite0(cls, num_classes: int = 1000) -> EfficientNetLiteConfig:
        """Return the smallest preset: 224 pixels, 4.7 million parameters."""
        return cls(1.0, 1.0, 224, 0.2, num_classes)

    @classmethod
    def lite1(cls, num_classes: int = 1000) -> EfficientNetLiteConfig:
        """Return the preset at 240 pixels, 5.4 million parameters."""
        return cls(1.0, 1.1, 240, 0.2, num_classes)

    @classmethod
    def lite2(cls, num_classes: int = 1000) -> EfficientNetLiteConfig:
        """Return the preset at 260 pixels, 6.1 million parameters."""
        return cls(1.1, 1.2, 260, 0.3, num_classes)

    @classmethod
    def lite3(cls, num_classes: int = 1000) -> EfficientNetLiteConfig:
        """Return the preset at 280 pixels, 8.2 million parameters."""
        return cls(1.2, 1.4, 280, 0.3, num_classes)

    @classmethod
    def lite4(cls, num_classes: int = 1000) -> EfficientNetLiteConfig:
        """Return the largest preset: 300 pixels, 13.0 million parameters."""
        return cls(1.4, 1.8, 300, 0.3, num_classes)

    @property
    def feature_size(self) -> int:
        """The length of the feature vectors."""
        return FEATURE_SIZE

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """The sizes of every block, in forward order."""
        specs: list[BlockSpec] = []
        for number, (repeats, base) in enumerate(_BASE_STAGES):
            at_an_end = number in (0, len(_BASE_STAGES) - 1)
            first = dataclasses.replace(
                base,
                in_channels=specs[-1].out_channels if specs else STEM_CHANNELS,
                out_channels=round_channels(base.out_channels * self.width),
            )
            rest = dataclasses.replace(first, in_channels=first.out_channels, stride=1)
            count = repeats if at_an_end else math.ceil(self.depth * repeats)
            specs += [first] + [rest] * (count - 1)
        return tuple(specs)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the published weights were trained to see pictures."""
        return Preprocessing(
            image_size=self.image_size,
            resize_size=self.image_size + 32,
            interpolation="bicubic",
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
        )
