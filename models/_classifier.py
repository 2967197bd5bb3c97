"""A backbone with a head for a person's own classes.

Shape suffixes: B pictures, H height, W width, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing

# Far below the length of any feature vector; it only keeps the zero vector and its gradient finite.
_SMALLEST_SQUARE = 1e-24


@runtime_checkable
class Backbone(Protocol):
    """What a network must offer to carry a head: features, their length, and its stages."""

    @property
    def feature_size(self) -> int:
        """The length D of the feature vectors."""
        ...

    @property
    def stages(self) -> tuple[tuple[nnx.Module, ...], ...]:
        """What is unfrozen together, in forward order."""
        ...

    def features(self, x_BHWC: Array) -> Array:
        """Return one feature vector per normalised picture, [B, D].

        A backbone whose attribute `takes_pictures` is true gets uint8 pictures as they are.
        """
        ...


class Classifier(nnx.Module):
    """A backbone whose features, scaled to unit length, go into one linear layer.

    Pictures come in as uint8 and are normalised inside the graph. The head starts at zero, so
    that every class is equally likely at first. Like every NNX module it is in the mode its
    parts are in: a backbone from `create` is in eval mode.

    Args:
        backbone: a network with `features`, `feature_size` and `stages`.
        class_names: the names of the K classes, in the order of their ids.
        preprocessing: how the backbone wants its pictures; only `normalize` is used here.
        rngs: given to the head, whose initial values are zeros.

    Raises:
        InputError: there is no class name, or a name stands twice.

    Example:
        >>> import jax, numpy as np
        >>> from flax import nnx
        >>> from jgraph.models import create
        >>> backbone = create("efficientnet_lite0", num_classes=0)
        >>> rngs = nnx.Rngs(0)
        >>> model = Classifier(backbone, ("cat", "dog"), backbone.preprocessing, rngs=rngs)
        >>> pictures = np.zeros((8, 224, 224, 3), np.uint8)
        >>> jax.eval_shape(lambda pictures: model(pictures), pictures).shape
        (8, 2)
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        class_names = tuple(class_names)
        if not class_names or len(set(class_names)) < len(class_names):
            raise InputError(
                f"class_names must be one or more names without repeats, got {list(class_names)}"
            )
        self.backbone = backbone
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.head = nnx.Linear(
            backbone.feature_size,
            len(class_names),
            kernel_init=nnx.initializers.zeros_init(),
            rngs=rngs,
        )

    def features(self, pictures_BHWC: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b d"]:
        """Return the backbone's feature vectors as they are.

        Args:
            pictures_BHWC: RGB pictures, uint8, of any height and width.

        Returns:
            Features, [B, D].

        Raises:
            InputError: the pictures are not a batch of uint8 RGB pictures.
        """
        _check_pictures(pictures_BHWC)
        pictures_BHWC = jnp.asarray(pictures_BHWC)
        if getattr(self.backbone, "takes_pictures", False):
            return self.backbone.features(pictures_BHWC)
        return self.backbone.features(self.preprocessing.normalize(pictures_BHWC))

    def embed(self, pictures_BHWC: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b d"]:
        """Return what the head sees: the feature vectors, scaled to unit length.

        Args:
            pictures_BHWC: RGB pictures, uint8, of any height and width.

        Returns:
            Features of length 1, or 0 where all are zero, [B, D].

        Raises:
            InputError: the pictures are not a batch of uint8 RGB pictures.
        """
        return _unit_length(self.features(pictures_BHWC))

    def __call__(self, pictures_BHWC: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b k"]:
        """Return the logits of the classes.

        Args:
            pictures_BHWC: RGB pictures, uint8, of any height and width.

        Returns:
            Logits, [B, K].

        Raises:
            InputError: the pictures are not a batch of uint8 RGB pictures.
        """
        return self.head(self.embed(pictures_BHWC))

    def trainable(self, last_stages: int) -> Callable[[tuple[Any, ...], Any], bool]:
        """Return an NNX filter: the Params of the head and of the backbone's last stages.

        Args:
            last_stages: how many of `backbone.stages` are trained, from the end; 0 for the head
                alone. Params of the backbone outside its stages are never trained.

        Returns:
            A filter for `nnx.state`, `nnx.split` and `nnx.grad`.

        Raises:
            InputError: there are not as many stages.

        Example:
            >>> from flax import nnx
            >>> from jgraph.models import create
            >>> backbone = create("efficientnet_lite0", num_classes=0)
            >>> model = Classifier(backbone, ("a", "b"), backbone.preprocessing, rngs=nnx.Rngs(0))
            >>> sorted(nnx.state(model, model.trainable(0))["head"])
            ['bias', 'kernel']
        """
        stages = self.backbone.stages
        if not 0 <= last_stages <= len(stages):
            raise InputError(
                f"the last stages to train must be from 0 to {len(stages)}, got {last_stages}"
            )
        chosen = {id(module) for stage in stages[len(stages) - last_stages :] for module in stage}
        chosen.add(id(self.head))
        prefixes = {path for path, node in nnx.iter_graph(self) if id(node) in chosen}

        def is_trainable(path: tuple[Any, ...], value: Any) -> bool:
            starts = (path[:length] for length in range(len(path)))
            is_param = issubclass(getattr(value, "type", type(value)), nnx.Param)
            return is_param and any(start in prefixes for start in starts)

        return is_trainable


def _check_pictures(pictures_BHWC: Array | np.ndarray) -> None:
    shape, dtype = jnp.shape(pictures_BHWC), jnp.result_type(pictures_BHWC)
    if dtype != jnp.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise InputError(
            "pictures must be uint8 of shape [B, H, W, 3], in the order red, green, blue; got "
            f"{dtype} of shape {list(shape)}"
        )


def _unit_length(features_BD: Float[Array, "b d"]) -> Float[Array, "b d"]:
    squares_B1 = jnp.sum(jnp.square(features_BD), axis=-1, keepdims=True)
    return features_BD * jax.lax.rsqrt(jnp.maximum(squares_B1, _SMALLEST_SQUARE))
