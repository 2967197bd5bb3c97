"""The sizes of ResNets, and where torchvision's and Keras's differ, as data."""

from __future__ import annotations

import dataclasses

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.models._imagenet import torchvision_preprocessing
from jgraph.models._layers import NormConfig
from jgraph.models._network import Origin, check_num_classes, check_origin

STEM_CHANNELS = 64
EXPANSION = 4

_NORMS = {
    "torchvision": NormConfig(momentum=0.9, epsilon=1e-5),
    "keras": NormConfig(momentum=0.99, epsilon=1.001e-5),
}
# Keras takes pictures as Caffe did: blue first, less the mean, of unit scale. The weight table
# turns the first kernel around, so that ours are RGB.
_CAFFE = Preprocessing(224, 256, "bilinear", (123.68, 116.779, 103.939), (1.0, 1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The sizes of a ResNet of bottleneck blocks.

    Args:
        depths: blocks in each of the four stages.
        origin: "torchvision" (v1.5: a block's stride is in its 3x3 convolution) or "keras" (v1:
            in its first 1x1 convolution; convolutions have biases, pictures are not scaled).
        num_classes: outputs of the classification head; 0 for a network without one.
        dropout_rate: share of features dropped before the classification head, in training.

    Raises:
        InputError: an argument is out of its range.

    Source:
        He et al., 2015, https://arxiv.org/abs/1512.03385; torchvision.models.resnet and
        keras.applications.resnet.

    Example:
        >>> ResNetConfig.resnet50(num_classes=3).feature_size
        2048
    """

    depths: tuple[int, int, int, int]
    origin: Origin = "torchvision"
    num_classes: int = 1000
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise InputError(
                f"depths must be the number of blocks in each of four stages, got {self.depths}"
            )
        check_origin(self.origin)
        check_num_classes(self.num_classes)

    @classmethod
    def resnet50(cls, num_classes: int = 1000) -> ResNetConfig:
        """Return torchvision's ResNet-50 (v1.5), which is timm's too: 25.6 million parameters."""
        return cls((3, 4, 6, 3), "torchvision", num_classes)

    @classmethod
    def keras_resnet50(cls, num_classes: int = 1000) -> ResNetConfig:
        """Return the ResNet-50 (v1) of keras.applications: 25.6 million parameters."""
        return cls((3, 4, 6, 3), "keras", num_classes)

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """The channels inside the blocks of each stage; their outputs have four times as many."""
        return (64, 128, 256, 512)

    @property
    def feature_size(self) -> int:
        """The length of the feature vectors."""
        return EXPANSION * self.widths[-1]

    @property
    def norm(self) -> NormConfig:
        """How batches are normalised."""
        return _NORMS[self.origin]

    @property
    def use_bias(self) -> bool:
        """Whether convolutions have biases."""
        return self.origin == "keras"

    @property
    def strides_first(self) -> bool:
        """Whether a block's stride is in its first convolution rather than its second."""
        return self.origin == "keras"

    @property
    def preprocessing(self) -> Preprocessing:
        """How the published weights were trained to see pictures.

        Torchvision's second weights (IMAGENET1K_V2) resize to 232 pixels instead of 256.
        """
        return _CAFFE if self.origin == "keras" else torchvision_preprocessing(224, 256)
