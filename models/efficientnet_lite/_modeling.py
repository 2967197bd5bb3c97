"""EfficientNet-Lite as a Flax NNX module.

Shape suffixes: B pictures, H height, W width, C channels, D features, K classes.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.models._imagenet import imagenet_class_names
from jgraph.models.efficientnet_lite._config import (
    FEATURE_SIZE,
    STEM_CHANNELS,
    BlockSpec,
    EfficientNetLiteConfig,
)

# Uniform between plus and minus the inverse square root of the number of classes.
_CLASSIFIER_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def kernel_std(shape: tuple[int, ...]) -> float:
    """Return the standard deviation of a new convolution kernel: He's, by fan-out.

    Args:
        shape: height, width, inputs per group, outputs.

    Returns:
        The standard deviation; a depthwise kernel, with one input per group, has one output each.

    Source:
        `conv_kernel_initializer` of the original's efficientnet_model.py.

    Example:
        >>> kernel_std((1, 1, 16, 8)), kernel_std((1, 1, 1, 8))
        (0.5, 1.4142135623730951)
    """
    height, width, inputs, outputs = shape
    fan_out = height * width * (1 if inputs == 1 else outputs)
    return math.sqrt(2.0 / fan_out)


def _draw_kernel(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return kernel_std(shape) * jax.random.normal(key, shape, dtype)


class ConvNorm(nnx.Module):
    """A convolution without bias, batch normalisation and, if asked for, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activate: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel_size, kernel_size),
            strides=stride,
            padding="SAME",
            feature_group_count=in_channels if depthwise else 1,
            use_bias=False,
            kernel_init=_draw_kernel,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(out_channels, momentum=0.99, epsilon=1e-3, rngs=rngs)
        self.activate = activate

    def __call__(self, x_BHWC: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the normalised, maybe activated, convolution of `x_BHWC`."""
        x_BHWC = self.norm(self.conv(x_BHWC))
        return jax.nn.relu6(x_BHWC) if self.activate else x_BHWC


class InvertedResidual(nnx.Module):
    """Widen by a 1x1 convolution, filter depthwise, narrow by a 1x1 convolution without ReLU.

    Args:
        spec: the sizes.
        rngs: source of the initial values.

    Source:
        Sandler et al., 2018, MobileNetV2, https://arxiv.org/abs/1801.04381, section 3.3.
    """

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs) -> None:
        inner = spec.in_channels * spec.expansion
        self.expand = (
            ConvNorm(spec.in_channels, inner, 1, rngs=rngs) if spec.expansion != 1 else None
        )
        self.depthwise = ConvNorm(
            inner, inner, spec.kernel_size, stride=spec.stride, depthwise=True, rngs=rngs
        )
        self.project = ConvNorm(inner, spec.out_channels, 1, activate=False, rngs=rngs)
        self.has_skip = spec.has_skip

    def __call__(self, x_BHWC: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the block's output, the input added where `has_skip`."""
        y_BHWC = x_BHWC if self.expand is None else self.expand(x_BHWC)
        y_BHWC = self.project(self.depthwise(y_BHWC))
        return x_BHWC + y_BHWC if self.has_skip else y_BHWC


class EfficientNetLite(nnx.Module):
    """EfficientNet-Lite: a picture network of inverted residual blocks.

    Like every NNX module a new one is in training mode: batch statistics are taken from the
    batch and dropout is on. `eval()` switches to the stored statistics. The stochastic depth of
    the original training recipe is not part of the network.

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
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, stride=2, rngs=rngs)
        self.blocks = nnx.List([InvertedResidual(spec, rngs=rngs) for spec in config.blocks])
        self.head = ConvNorm(config.blocks[-1].out_channels, FEATURE_SIZE, 1, rngs=rngs)
        self.reset_classifier(config.num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the classification head, and its dropout, by a new one.

        Args:
            num_classes: its outputs; 0 for no head.
            rngs: source of its initial values (stream `params`) and of dropout (`dropout`).

        Raises:
            InputError: `num_classes` is negative.
        """
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        self.reset_dropout(rngs=rngs)
        # nnx.data: an attribute that was None may hold a module later.
        self.classifier = nnx.data(
            nnx.Linear(FEATURE_SIZE, num_classes, kernel_init=_CLASSIFIER_INIT, rngs=rngs)
            if num_classes
            else None
        )
        self.knows_imagenet = False

    def reset_dropout(self, *, rngs: nnx.Rngs) -> None:
        """Replace the source of randomness of dropout.

        Args:
            rngs: the new source (stream `dropout`).
        """
        self.dropout = nnx.Dropout(self.config.dropout_rate, rngs=rngs)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the network wants its pictures."""
        return self.config.preprocessing

    @property
    def feature_size(self) -> int:
        """The length D of the feature vectors."""
        return FEATURE_SIZE

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in order: ImageNet's with its weights, otherwise empty."""
        return imagenet_class_names() if self.knows_imagenet else ()

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        """What is unfrozen together, in forward order: the stem, then each block.

        The convolution after the last block belongs to the last entry. The classification head
        belongs to none.
        """
        blocks = [(block,) for block in self.blocks]
        return ((self.stem,), *blocks[:-1], (*blocks[-1], self.head))

    def feature_map(self, x_BHWC: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 d"]:
        """Return the last feature map, at a 32nd of the height and width.

        Args:
            x_BHWC: RGB pictures after `preprocessing.normalize`, float, of any height and width.

        Returns:
            Features per place, [B, ceil(H/32), ceil(W/32), D].

        Raises:
            InputError: `x_BHWC` is not a batch of normalised RGB pictures.
        """
        _check_pictures(x_BHWC)
        x_BHWC = self.stem(x_BHWC)
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return self.head(x_BHWC)

    def features(self, x_BHWC: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Return one feature vector per picture: the mean of `feature_map` over the places.

        Args:
            x_BHWC: RGB pictures after `preprocessing.normalize`, float, of any height and width.

        Returns:
            Features, [B, D].

        Raises:
            InputError: `x_BHWC` is not a batch of normalised RGB pictures.
        """
        return self.feature_map(x_BHWC).mean((1, 2))

    def __call__(self, x_BHWC: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Return the logits of the classes, or the features where `num_classes` is 0.

        Args:
            x_BHWC: RGB pictures after `preprocessing.normalize`, float, of any height and width.

        Returns:
            Logits, [B, K].

        Raises:
            InputError: `x_BHWC` is not a batch of normalised RGB pictures.
        """
        features_BD = self.features(x_BHWC)
        if self.classifier is None:
            return features_BD
        return self.classifier(self.dropout(features_BD))


def _check_pictures(x_BHWC: Array) -> None:
    is_float = jnp.issubdtype(x_BHWC.dtype, jnp.floating)
    if not is_float or x_BHWC.ndim != 4 or x_BHWC.shape[-1] != 3:
        raise InputError(
            "EfficientNetLite takes normalised float pictures of shape [B, H, W, 3], got "
            f"{x_BHWC.dtype} of shape {list(x_BHWC.shape)}; uint8 pictures go through "
            "model.preprocessing.normalize first"
        )
