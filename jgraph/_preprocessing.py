"""How a network wants its pictures: one description shared by networks, data and module folders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jgraph._errors import InputError

Interpolation = Literal["bilinear", "bicubic", "lanczos"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Geometry on the host, normalisation in the graph.

    Pictures are RGB. The short side is resized to `resize_size` pixels, the centre
    `image_size` x `image_size` pixels are cut out, and `(x - mean) / std` is taken per channel.

    Args:
        image_size: side of the square the network sees, in pixels.
        resize_size: length the short side is resized to before the crop, in pixels.
        interpolation: filter of the resize.
        mean: per channel (R, G, B), on the 0-255 scale.
        std: per channel (R, G, B), on the 0-255 scale.

    Raises:
        InputError: a size is not positive or the crop is larger than the resized picture.

    Example:
        >>> p = Preprocessing(224, 256, "bicubic", mean=(127.0,) * 3, std=(128.0,) * 3)
        >>> p.at(112).resize_size
        128
    """

    image_size: int
    resize_size: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize_size:
            raise InputError(
                "preprocessing needs 1 <= image_size <= resize_size, "
                f"got image_size {self.image_size} and resize_size {self.resize_size}"
            )

    def at(self, image_size: int) -> Preprocessing:
        """Return the same preprocessing at another `image_size`, the margin kept in proportion."""
        resize_size = max(image_size, round(image_size * self.resize_size / self.image_size))
        return dataclasses.replace(self, image_size=image_size, resize_size=resize_size)

    def normalize(self, pictures_BHWC: UInt8[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
        """Return `(x - mean) / std` of uint8 RGB pictures, float32; runs inside the graph."""
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        shape = (1,) * (pictures_BHWC.ndim - 1) + (3,)
        x = pictures_BHWC.astype(jnp.float32)
        return (x - mean.reshape(shape)) / std.reshape(shape)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_json` wrote.

        Raises:
            InputError: a value is missing, unknown or of another kind; it is named.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        wrong = sorted(fields ^ value.keys())
        wrong += [k for k in ("image_size", "resize_size") if type(value.get(k)) is not int]
        wrong += [k for k in ("mean", "std") if not _is_color(value.get(k))]
        if value.get("interpolation") not in get_args(Interpolation):
            wrong.append("interpolation")
        if wrong:
            raise InputError(
                f"preprocessing needs whole image_size and resize_size, interpolation of "
                f"{', '.join(get_args(Interpolation))}, and three numbers each for mean and std; "
                f"wrong: {', '.join(dict.fromkeys(wrong))}"
            )
        return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(x) in (int, float) and math.isfinite(x) for x in value)
    )
