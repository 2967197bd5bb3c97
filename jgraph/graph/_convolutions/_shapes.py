"""A convolution as its shapes and options, in one layout."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from jax.extend.core import JaxprEqn

Pair: TypeAlias = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """What `lax.conv_general_dilated` is asked for, with x as NHWC and the kernel as HWIO.

    Args:
        x: the shape of x, `(batch, height, width, channels)`.
        kernel: `(height, width, channels / groups, outputs)`.
        strides: of the window.
        padding: of height and of width, before and after; negative crops.
        x_dilation: the distance of x's pixels once zeros stand between them.
        dilation: the distance of the kernel's taps.
        groups: of the channels.
        batch_groups: of the batch.
        precision: as `lax.conv_general_dilated` takes it.
    """

    x: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    strides: Pair
    padding: tuple[Pair, Pair]
    x_dilation: Pair
    dilation: Pair
    groups: int
    batch_groups: int
    precision: Any = None

    @property
    def size(self) -> Pair:
        """Height and width of the result."""
        return (self._size(0), self._size(1))

    def _size(self, axis: int) -> int:
        length = (self.x[axis + 1] - 1) * self.x_dilation[axis] + 1 + sum(self.padding[axis])
        window = (self.kernel[axis] - 1) * self.dilation[axis] + 1
        return max(0, (length - window) // self.strides[axis] + 1)


@dataclasses.dataclass(frozen=True)
class Axes:
    """The order of axes that puts x into NHWC, the kernel into HWIO and the result back."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]


def read(eqn: JaxprEqn) -> tuple[Convolution, Axes] | None:
    """Return the convolution of an equation, None for any that isn't of fixed size and over 2 axes."""
    p, (x, kernel) = eqn.params, (v.aval for v in eqn.invars)
    spec = p["dimension_numbers"]
    sizes = (*x.shape, *kernel.shape)
    if len(spec.lhs_spec) != 4 or not all(isinstance(size, int) and size for size in sizes):
        return None
    to_x = (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1])
    to_kernel = (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0])
    back = [0] * 4
    for source, axis in zip((0, 3, 1, 2), spec.out_spec, strict=True):
        back[axis] = source
    found = Convolution(
        x=tuple(x.shape[i] for i in to_x),
        kernel=tuple(kernel.shape[i] for i in to_kernel),
        strides=tuple(p["window_strides"]),
        padding=tuple(map(tuple, p["padding"])),
        x_dilation=tuple(p["lhs_dilation"]),
        dilation=tuple(p["rhs_dilation"]),
        groups=p["feature_group_count"],
        batch_groups=p["batch_group_count"],
        precision=p["precision"],
    )
    return found, Axes(to_x, to_kernel, tuple(back))
