"""What every picture network offers: features, logits, a head that can be replaced.

Shape suffixes: B pictures, H height, W width, D features, K classes.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.models._imagenet import imagenet_class_names

Pictures = (
    Float[Array, "b h w 3"] | Float[np.ndarray, "b h w 3"] | UInt8[Array | np.ndarray, "b h w 3"]
)

# Uniform between plus and minus the inverse square root of the number of classes.
_CLASSIFIER_INIT = jax.jit(
    nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform"), static_argnums=(1, 2)
)

# Whose version of a network: torchvision's, which is timm's too, or that of keras.applications.
# Their weights fit only the version they were trained in.
Origin = Literal["torchvision", "keras"]


@runtime_checkable
class NetworkConfig(Protocol):
    """What the frozen config of a picture network holds beside its sizes; a dataclass."""

    @property
    def num_classes(self) -> int:
        """Outputs of the classification head; 0 for none."""
        ...

    @property
    def dropout_rate(self) -> float:
        """Share of the features that training drops before the head."""
        ...

    @property
    def feature_size(self) -> int:
        """The length D of the feature vectors."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How the network wants its pictures."""
        ...


def check_num_classes(num_classes: int) -> None:
    """Refuse a negative number of classes.

    Raises:
        InputError: it is negative.
    """
    if num_classes < 0:
        raise InputError(
            f"num_classes must be 0 (no classification head) or more, got {num_classes}"
        )


def check_origin(origin: str) -> None:
    """Refuse an origin that there isn't.

    Raises:
        InputError: it is none of `Origin`.
    """
    if origin not in get_args(Origin):
        raise InputError(f"origin must be one of {', '.join(get_args(Origin))}, got {origin!r}")


class PictureNetwork(nnx.Module, abc.ABC):
    """A backbone, the mean of whose feature map goes through dropout and one linear layer.

    Like every NNX module a new one is in training mode: batch statistics are taken from the
    batch and dropout is on. `eval()` switches to the stored statistics. A network derives from
    this class, makes its layers and then calls `reset_classifier`.
    """

    config: Any
    stem: Any
    blocks: Any
    classifier: nnx.Linear | None

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        """What is unfrozen together, in forward order; the classification head belongs to none."""

    @abc.abstractmethod
    def _feature_map(self, x_BHWC: Array) -> Array:
        """Return the last feature map of pictures that have been checked."""

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
            nnx.Linear(self.feature_size, num_classes, kernel_init=_CLASSIFIER_INIT, rngs=rngs)
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
        return self.config.feature_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in order: ImageNet's with its weights, otherwise empty."""
        return imagenet_class_names() if self.knows_imagenet else ()

    def feature_map(self, x_BHWC: Pictures) -> Float[Array, "b h2 w2 d"]:
        """Return the last feature map, at about a 32nd of the height and width.

        Args:
            x_BHWC: RGB pictures of any height and width: uint8, or float after
                `preprocessing.normalize`.

        Returns:
            Features per place, [B, H', W', D].

        Raises:
            InputError: `x_BHWC` is not a batch of RGB pictures.
        """
        return self._feature_map(self._normalised(x_BHWC))

    def features(self, x_BHWC: Pictures) -> Float[Array, "b d"]:
        """Return one feature vector per picture: the mean of `feature_map` over the places.

        Args:
            x_BHWC: RGB pictures of any height and width: uint8, or float after
                `preprocessing.normalize`.

        Returns:
            Features, [B, D].

        Raises:
            InputError: `x_BHWC` is not a batch of RGB pictures.
        """
        return self.feature_map(x_BHWC).mean((1, 2))

    def __call__(self, x_BHWC: Pictures) -> Float[Array, "b k"]:
        """Return the logits of the classes, or the features where `num_classes` is 0.

        Args:
            x_BHWC: RGB pictures of any height and width: uint8, or float after
                `preprocessing.normalize`.

        Returns:
            Logits, [B, K].

        Raises:
            InputError: `x_BHWC` is not a batch of RGB pictures.
        """
        return self._classify(self.features(x_BHWC))

    def _classify(self, features_BD: Float[Array, "b d"]) -> Float[Array, "b k"]:
        if self.classifier is None:
            return features_BD
        return self.classifier(self.dropout(features_BD))

    def _normalised(self, x_BHWC: Array | np.ndarray) -> Array:
        if x_BHWC.ndim == 4 and x_BHWC.shape[-1] == 3:
            if x_BHWC.dtype == jnp.uint8:
                return self.preprocessing.normalize(jnp.asarray(x_BHWC))
            if jnp.issubdtype(x_BHWC.dtype, jnp.floating):
                return jnp.asarray(x_BHWC)
        raise InputError(
            f"{type(self).__name__} takes pictures of shape [B, H, W, 3], uint8 or normalised "
            f"floats, got {x_BHWC.dtype} of shape {list(x_BHWC.shape)}"
        )
