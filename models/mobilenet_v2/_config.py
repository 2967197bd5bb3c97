"""The sizes of MobileNetV2, and where torchvision's and Keras's differ, as data."""

from __future__ import annotations

import dataclasses
import math

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.models._imagenet import symmetric_preprocessing, torchvision_preprocessing
from jgraph.models._inverted_residuals import BlockSpec
from jgraph.models._layers import NormConfig, round_channels
from jgraph.models._network import Origin, check_num_classes, check_origin

_FEATURE_SIZE = 1280
_STEM_CHANNELS = 32

# Expansion, channels before the width, repeats and first stride of each stage: the
# paper's table 2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The stage and the place in it of every block.
STAGE_PLACES = tuple(
    (stage, place) for stage, (_, _, repeats, _) in enumerate(_STAGES) for place in range(repeats)
)
_NORMS = {
    "torchvision": NormConfig(momentum=0.9, epsilon=1e-5),
    "keras": NormConfig(momentum=0.999, epsilon=1e-3),
}


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config:
    """The sizes of a MobileNetV2.

    Args:
        width: factor on the channels; Keras calls it alpha.
        origin: "torchvision" (as many zeros on each side) or "keras" ("SAME": at stride 2 an even
            picture has its zeros below and right only; pictures between -1 and 1).
        num_classes: outputs of the classification head; 0 for a network without one.
        dropout_rate: share of features dropped before the classification head, in training.

    Raises:
        InputError: an argument is out of its range.

    Source:
        Sandler et al., 2018, https://arxiv.org/abs/1801.04381; torchvision.models.mobilenetv2 and
        keras.applications.mobilenet_v2.

    Example:
        >>> config = MobileNetV2Config.mobilenet_v2(num_classes=3)
        >>> len(config.blocks), config.feature_size
        (17, 1280)
    """

    width: float = 1.0
    origin: Origin = "torchvision"
    num_classes: int = 1000
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"width must be positive, got {self.width}")
        check_origin(self.origin)
        check_num_classes(self.num_classes)

    @classmethod
    def mobilenet_v2(cls, num_classes: int = 1000) -> MobileNetV2Config:
        """Return torchvision's version, which is timm's too: 3.5 million parameters."""
        return cls(1.0, "torchvision", num_classes, dropout_rate=0.2)

    @classmethod
    def keras_mobilenet_v2(cls, num_classes: int = 1000) -> MobileNetV2Config:
        """Return the version of keras.applications: 3.5 million parameters."""
        return cls(1.0, "keras", num_classes)

    @property
    def stem_channels(self) -> int:
        """The channels of the first convolution."""
        return round_channels(_STEM_CHANNELS * self.width)

    @property
    def feature_size(self) -> int:
        """The length of the feature vectors: wider networks have more, narrower no fewer."""
        return round_channels(_FEATURE_SIZE * max(1.0, self.width))

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """The sizes of every block, in forward order."""
        specs: list[BlockSpec] = []
        channels = self.stem_channels
        for expansion, base, repeats, stride in _STAGES:
            scaled = base * self.width
            # Keras cuts the fraction off before it rounds.
            out_channels = round_channels(math.floor(scaled) if self.origin == "keras" else scaled)
            for index in range(repeats):
                first = stride if index == 0 else 1
                specs.append(BlockSpec(3, first, expansion, channels, out_channels))
                channels = out_channels
        return tuple(specs)

    @property
    def norm(self) -> NormConfig:
        """How batches are normalised."""
        return _NORMS[self.origin]

    @property
    def symmetric(self) -> bool:
        """Whether convolutions have as many zeros on each side rather than "SAME"."""
        return self.origin == "torchvision"

    @property
    def preprocessing(self) -> Preprocessing:
        """How the published weights were trained to see pictures.

        Torchvision's second weights (IMAGENET1K_V2) resize to 232 pixels instead of 256.
        """
        if self.origin == "keras":
            return symmetric_preprocessing(224, 256)
        return torchvision_preprocessing(224, 256)
