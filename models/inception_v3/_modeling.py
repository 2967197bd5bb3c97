"""Inception V3 as a Flax NNX module.

Shape suffixes: B pictures, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph.models._layers import ConvNorm
from jgraph.models._network import PictureNetwork, Pictures
from jgraph.models.inception_v3._config import (
    AUXILIARY_AFTER,
    BLOCKS,
    BranchSpec,
    InceptionBlockSpec,
    InceptionV3Config,
)

# Side of the smallest picture: below it a layer without padding has nothing left to look at.
_SMALLEST = 75
# The auxiliary head pools 5x5 places at stride 3 and filters 5x5 of what is left.
_SMALLEST_AUXILIARY = 299


class InceptionBlock(nnx.Module):
    """Branches side by side, joined along the channels.

    Args:
        spec: the sizes.
        config: of the network.
        rngs: source of the initial values.
    """

    def __init__(
        self, spec: InceptionBlockSpec, *, config: InceptionV3Config, rngs: nnx.Rngs
    ) -> None:
        self.branches = spec.branches
        self.counts_rim = config.counts_rim
        for branch in spec.branches:
            channels = spec.in_channels
            for conv in (*branch.convs, *branch.split):
                layer = ConvNorm(
                    channels,
                    conv.channels,
                    conv.kernel_size,
                    norm=config.norm,
                    activation=jax.nn.relu,
                    stride=conv.stride,
                    padding="SAME" if conv.stride == 1 else "VALID",
                    rngs=rngs,
                )
                setattr(self, conv.name, layer)
                # What is split reads the last of the others.
                if conv in branch.convs:
                    channels = conv.channels

    def __call__(self, x_BHWC: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the outputs of the branches, one behind the other."""
        outputs = [y_BHWC for branch in self.branches for y_BHWC in self._run(branch, x_BHWC)]
        return jnp.concatenate(outputs, axis=-1)

    def _run(self, branch: BranchSpec, x_BHWC: Array) -> list[Array]:
        if branch.pool == "max":
            x_BHWC = nnx.max_pool(x_BHWC, (3, 3), (2, 2))
        elif branch.pool == "average":
            x_BHWC = _average_pool(x_BHWC, 3, 1, "SAME", counts_rim=self.counts_rim)
        for conv in branch.convs:
            x_BHWC = getattr(self, conv.name)(x_BHWC)
        return [getattr(self, conv.name)(x_BHWC) for conv in branch.split] or [x_BHWC]


class AuxiliaryHead(nnx.Module):
    """Logits from the middle of the network, which help it learn and are not used afterwards.

    Args:
        in_channels: of the feature map.
        config: of the network.
        rngs: source of the initial values.
    """

    def __init__(self, in_channels: int, *, config: InceptionV3Config, rngs: nnx.Rngs) -> None:
        conv = functools.partial(
            ConvNorm, norm=config.norm, activation=jax.nn.relu, padding="VALID", rngs=rngs
        )
        self.conv0 = conv(in_channels, 128, 1)
        self.conv1 = conv(128, in_channels, 5)
        self.classifier = nnx.Linear(in_channels, config.num_classes, rngs=rngs)

    def __call__(self, x_BHWC: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Return the logits, [B, K]."""
        x_BHWC = _average_pool(x_BHWC, 5, 3, "VALID")
        return self.classifier(self.conv1(self.conv0(x_BHWC)).mean((1, 2)))


class InceptionV3(PictureNetwork):
    """Inception V3: a picture network whose blocks are branches of small convolutions.

    A new one is in training mode; `eval()` switches to the stored statistics and ends dropout.

    Args:
        config: the choices, for instance `InceptionV3Config.inception_v3()`.
        rngs: source of the initial values (stream `params`) and of dropout (stream `dropout`).

    Source:
        Szegedy et al., 2015, https://arxiv.org/abs/1512.00567; parity with torchvision and Keras
        is tested.

    Example:
        >>> from flax import nnx
        >>> config = InceptionV3Config.inception_v3(num_classes=3)
        >>> model = nnx.eval_shape(lambda: InceptionV3(config, rngs=nnx.Rngs(0)))
        >>> len(model.blocks), model.feature_size
        (11, 2048)
    """

    def __init__(self, config: InceptionV3Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        conv = functools.partial(
            ConvNorm, norm=config.norm, activation=jax.nn.relu, padding="VALID", rngs=rngs
        )
        self.stem = nnx.List(
            [
                conv(3, 32, 3, stride=2),
                conv(32, 32, 3),
                conv(32, 64, 3, padding="SAME"),
                conv(64, 80, 1),
                conv(80, 192, 3),
            ]
        )
        self.blocks = nnx.List([InceptionBlock(spec, config=config, rngs=rngs) for spec in BLOCKS])
        self.reset_classifier(config.num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the classification head, its dropout and the auxiliary head by new ones.

        Args:
            num_classes: outputs; 0 for no head, and no auxiliary one either.
            rngs: source of the initial values (stream `params`) and of dropout (`dropout`).

        Raises:
            InputError: `num_classes` is negative.
        """
        if num_classes == 0:
            self.config = dataclasses.replace(self.config, auxiliary=False)
        super().reset_classifier(num_classes, rngs=rngs)
        self.auxiliary = nnx.data(
            AuxiliaryHead(BLOCKS[_AUXILIARY_INDEX].out_channels, config=self.config, rngs=rngs)
            if self.config.auxiliary
            else None
        )

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        """What is unfrozen together, in forward order: the stem, then each block.

        The classification heads belong to none.
        """
        return (tuple(self.stem), *((block,) for block in self.blocks))

    def with_auxiliary(self, x_BHWC: Pictures) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        """Return the logits, and those of the auxiliary head, for a loss of both.

        The paper adds 0.3 times the auxiliary loss, torchvision's training script 0.4 times.

        Args:
            x_BHWC: RGB pictures of 299 pixels or more: uint8, or float after
                `preprocessing.normalize`.

        Returns:
            Logits and auxiliary logits, [B, K] each.

        Raises:
            InputError: there is no auxiliary head, or `x_BHWC` is not a batch of RGB pictures
                that are large enough.
        """
        if self.auxiliary is None:
            raise InputError(
                "with_auxiliary needs the auxiliary head: make the network with "
                "InceptionV3Config.inception_v3(auxiliary=True)"
            )
        x_BHWC = self._normalised(x_BHWC)
        _check_side(x_BHWC, _SMALLEST_AUXILIARY)
        middle_BHWC = self._run(x_BHWC, 0, _AUXILIARY_INDEX + 1)
        last_BHWC = self._run(middle_BHWC, _AUXILIARY_INDEX + 1, len(self.blocks))
        return self._classify(last_BHWC.mean((1, 2))), self.auxiliary(middle_BHWC)

    def _feature_map(self, x_BHWC: Array) -> Array:
        _check_side(x_BHWC, _SMALLEST)
        return self._run(x_BHWC, 0, len(self.blocks))

    def _run(self, x_BHWC: Array, first: int, end: int) -> Array:
        if first == 0:
            for index, conv in enumerate(self.stem):
                x_BHWC = conv(x_BHWC)
                if index in (2, 4):
                    x_BHWC = nnx.max_pool(x_BHWC, (3, 3), (2, 2))
        for block in list(self.blocks)[first:end]:
            x_BHWC = block(x_BHWC)
        return x_BHWC


_AUXILIARY_INDEX = [spec.name for spec in BLOCKS].index(AUXILIARY_AFTER)


def _average_pool(
    x_BHWC: Array, size: int, stride: int, padding: str, *, counts_rim: bool = True
) -> Array:
    # nnx.avg_pool divides by an integer, which strict dtype promotion refuses.
    def window_sum(x_BHWC: Array) -> Array:
        zero = np.zeros((), x_BHWC.dtype)
        return jax.lax.reduce_window(
            x_BHWC, zero, jax.lax.add, (1, size, size, 1), (1, stride, stride, 1), padding
        )

    if counts_rim:
        return window_sum(x_BHWC) / (size * size)
    return window_sum(x_BHWC) / jnp.broadcast_to(
        window_sum(jnp.ones_like(x_BHWC[:1, :, :, :1])), x_BHWC.shape
    )


def _check_side(x_BHWC: Array, smallest: int) -> None:
    # A symbolic size, of a graph for many sizes, can't be compared.
    if any(isinstance(side, int) and side < smallest for side in x_BHWC.shape[1:3]):
        raise InputError(
            f"InceptionV3 needs pictures of {smallest} pixels or more here, got "
            f"{x_BHWC.shape[1]}x{x_BHWC.shape[2]}; resize them first"
        )
