"""The sizes of Inception V3, and where torchvision's and Keras's differ, as data."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.models._imagenet import symmetric_preprocessing
from jgraph.models._layers import NormConfig
from jgraph.models._network import Origin, check_num_classes, check_origin

_NORMS = {
    "torchvision": NormConfig(momentum=0.9, epsilon=1e-3),
    "keras": NormConfig(momentum=0.99, epsilon=1e-3, use_scale=False),
}


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """One convolution of a block.

    Args:
        name: as in torchvision.
        channels: of its output.
        kernel_size: height and width, in pixels.
        stride: step, in pixels; 2 goes without padding.
    """

    name: str
    channels: int
    kernel_size: tuple[int, int]
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class BranchSpec:
    """One branch of a block: maybe a 3x3 pooling, then convolutions, then maybe several at once.

    Args:
        convs: one after the other.
        pool: what comes first: "average" at stride 1, "max" at stride 2, or nothing.
        split: side by side after the others, joined along the channels.
    """

    convs: tuple[ConvSpec, ...]
    pool: Literal["average", "max"] | None = None
    split: tuple[ConvSpec, ...] = ()


@dataclasses.dataclass(frozen=True)
class InceptionBlockSpec:
    """One block: branches side by side, joined along the channels.

    Args:
        name: as in torchvision.
        in_channels: of its input.
        branches: in the order of their outputs.
    """

    name: str
    in_channels: int
    branches: tuple[BranchSpec, ...]

    @property
    def out_channels(self) -> int:
        """The channels of the block's output."""
        channels = 0
        for branch in self.branches:
            last = branch.split or branch.convs[-1:]
            channels += sum(conv.channels for conv in last) or self.in_channels
        return channels


def _conv(name: str, channels: int, height: int, width: int, stride: int = 1) -> ConvSpec:
    return ConvSpec(name, channels, (height, width), stride)


_MAX_POOL = BranchSpec((), pool="max")


def _pooled(channels: int) -> BranchSpec:
    return BranchSpec((_conv("branch_pool", channels, 1, 1),), pool="average")


def _block_a(pool_channels: int) -> tuple[BranchSpec, ...]:
    return (
        BranchSpec((_conv("branch1x1", 64, 1, 1),)),
        BranchSpec((_conv("branch5x5_1", 48, 1, 1), _conv("branch5x5_2", 64, 5, 5))),
        BranchSpec(
            (
                _conv("branch3x3dbl_1", 64, 1, 1),
                _conv("branch3x3dbl_2", 96, 3, 3),
                _conv("branch3x3dbl_3", 96, 3, 3),
            )
        ),
        _pooled(pool_channels),
    )


def _block_b() -> tuple[BranchSpec, ...]:
    return (
        BranchSpec((_conv("branch3x3", 384, 3, 3, 2),)),
        BranchSpec(
            (
                _conv("branch3x3dbl_1", 64, 1, 1),
                _conv("branch3x3dbl_2", 96, 3, 3),
                _conv("branch3x3dbl_3", 96, 3, 3, 2),
            )
        ),
        _MAX_POOL,
    )


def _block_c(inner: int) -> tuple[BranchSpec, ...]:
    return (
        BranchSpec((_conv("branch1x1", 192, 1, 1),)),
        BranchSpec(
            (
                _conv("branch7x7_1", inner, 1, 1),
                _conv("branch7x7_2", inner, 1, 7),
                _conv("branch7x7_3", 192, 7, 1),
            )
        ),
        BranchSpec(
            (
                _conv("branch7x7dbl_1", inner, 1, 1),
                _conv("branch7x7dbl_2", inner, 7, 1),
                _conv("branch7x7dbl_3", inner, 1, 7),
                _conv("branch7x7dbl_4", inner, 7, 1),
                _conv("branch7x7dbl_5", 192, 1, 7),
            )
        ),
        _pooled(192),
    )


def _block_d() -> tuple[BranchSpec, ...]:
    return (
        BranchSpec((_conv("branch3x3_1", 192, 1, 1), _conv("branch3x3_2", 320, 3, 3, 2))),
        BranchSpec(
            (
                _conv("branch7x7x3_1", 192, 1, 1),
                _conv("branch7x7x3_2", 192, 1, 7),
                _conv("branch7x7x3_3", 192, 7, 1),
                _conv("branch7x7x3_4", 192, 3, 3, 2),
            )
        ),
        _MAX_POOL,
    )


def _block_e() -> tuple[BranchSpec, ...]:
    return (
        BranchSpec((_conv("branch1x1", 320, 1, 1),)),
        BranchSpec(
            (_conv("branch3x3_1", 384, 1, 1),),
            split=(_conv("branch3x3_2a", 384, 1, 3), _conv("branch3x3_2b", 384, 3, 1)),
        ),
        BranchSpec(
            (_conv("branch3x3dbl_1", 448, 1, 1), _conv("branch3x3dbl_2", 384, 3, 3)),
            split=(_conv("branch3x3dbl_3a", 384, 1, 3), _conv("branch3x3dbl_3b", 384, 3, 1)),
        ),
        _pooled(192),
    )


# Figures 5 to 7 and table 1 of the paper, in the sizes that TensorFlow published.
BLOCKS = (
    InceptionBlockSpec("Mixed_5b", 192, _block_a(32)),
    InceptionBlockSpec("Mixed_5c", 256, _block_a(64)),
    InceptionBlockSpec("Mixed_5d", 288, _block_a(64)),
    InceptionBlockSpec("Mixed_6a", 288, _block_b()),
    InceptionBlockSpec("Mixed_6b", 768, _block_c(128)),
    InceptionBlockSpec("Mixed_6c", 768, _block_c(160)),
    InceptionBlockSpec("Mixed_6d", 768, _block_c(160)),
    InceptionBlockSpec("Mixed_6e", 768, _block_c(192)),
    InceptionBlockSpec("Mixed_7a", 768, _block_d()),
    InceptionBlockSpec("Mixed_7b", 1280, _block_e()),
    InceptionBlockSpec("Mixed_7c", 2048, _block_e()),
)
# After the last block of 17x17 places, in pictures of 299 pixels.
AUXILIARY_AFTER = "Mixed_6e"


@dataclasses.dataclass(frozen=True)
class InceptionV3Config:
    """The choices of an Inception V3.

    Args:
        origin: "torchvision" (zeros at the rim count in average pooling) or "keras" (they don't,
            and normalisation has no scale).
        num_classes: outputs of the classification head; 0 for a network without one.
        dropout_rate: share of features dropped before the classification head, in training.
        auxiliary: whether there is a second head in the middle, for `with_auxiliary`.

    Raises:
        InputError: an argument is out of its range.

    Source:
        Szegedy et al., 2015, https://arxiv.org/abs/1512.00567; torchvision.models.inception and
        keras.applications.inception_v3.

    Example:
        >>> InceptionV3Config.inception_v3(num_classes=3).preprocessing.image_size
        299
    """

    origin: Origin = "torchvision"
    num_classes: int = 1000
    dropout_rate: float = 0.0
    auxiliary: bool = False

    def __post_init__(self) -> None:
        check_origin(self.origin)
        check_num_classes(self.num_classes)
        if self.auxiliary and (self.origin == "keras" or self.num_classes == 0):
            raise InputError(
                "auxiliary needs origin 'torchvision' and num_classes of 1 or more, got "
                f"{self.origin!r} and {self.num_classes}"
            )

    @classmethod
    def inception_v3(cls, num_classes: int = 1000, *, auxiliary: bool = False) -> InceptionV3Config:
        """Return torchvision's version, which is timm's too: 23.8 million parameters.

        The auxiliary head has 3.3 million more.
        """
        return cls("torchvision", num_classes, dropout_rate=0.5, auxiliary=auxiliary)

    @classmethod
    def keras_inception_v3(cls, num_classes: int = 1000) -> InceptionV3Config:
        """Return the version of keras.applications: 23.8 million parameters."""
        return cls("keras", num_classes)

    @property
    def feature_size(self) -> int:
        """The length of the feature vectors."""
        return BLOCKS[-1].out_channels

    @property
    def norm(self) -> NormConfig:
        """How batches are normalised."""
        return _NORMS[self.origin]

    @property
    def counts_rim(self) -> bool:
        """Whether zeros at the rim count as places in average pooling."""
        return self.origin == "torchvision"

    @property
    def preprocessing(self) -> Preprocessing:
        """How the published weights were trained to see pictures: both come from TensorFlow.

        Torchvision's `transform_input` takes its own normalisation back to this one.
        """
        return symmetric_preprocessing(299, 342)
