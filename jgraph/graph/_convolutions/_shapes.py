"""A convolution as its shapes and options, in one layout."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from jax.extend.core import JaxprEqn

from jgraph.graph._jaxpr import shape_of

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
    """The order of axes that puts x into NHWC, the kernel into HWIO and the result back.

    Over one axis: NWC and WIO.
    """

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]

    @property
    def is_gradient(self) -> bool:
        """Whether it seems to be the gradient by a kernel: JAX swaps batch and channels there."""
        return self.x[0] > self.x[-1]


def read(eqn: JaxprEqn) -> tuple[Convolution, Axes] | None:
    """Return an equation's convolution over one axis (then the height is 1) or two; else None.

    None, too, where a size is symbolic or zero.
    """
    p, (x, kernel) = eqn.params, map(shape_of, eqn.invars)
    spec = p["dimension_numbers"]
    missing = 4 - len(x)
    if missing not in (0, 1) or not all(isinstance(size, int) and size for size in x + kernel):
        return None
    axes = Axes(
        (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]),
        (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]),
        _inverse((spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])),
    )
    sizes = [x[i] for i in axes.x]
    window = [kernel[i] for i in axes.kernel]
    ones = (1,) * missing
    found = Convolution(
        x=_four(sizes[0], *ones, *sizes[1:]),
        kernel=_four(*ones, *window),
        strides=_two(*ones, *p["window_strides"]),
        padding=_two(*((0, 0),) * missing, *map(tuple, p["padding"])),
        x_dilation=_two(*ones, *p["lhs_dilation"]),
        dilation=_two(*ones, *p["rhs_dilation"]),
        groups=p["feature_group_count"],
        batch_groups=p["batch_group_count"],
        precision=p["precision"],
    )
    return found, axes


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(i) for i in range(len(order)))


def _two(first: Any, second: Any) -> tuple[Any, Any]:
    return first, second


def _four(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    return a, b, c, d
