"""Fully sharded data parallelism: each device holds a part of the state."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jgraph._errors import InputError
from jgraph.distribute._strategy import DATA, Strategy, first_devices

TENSOR = "tensor"

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class FSDP(Strategy):
    """Each device holds a part of the state, and each batch is split over the devices.

    Every array of the state (parameters and what the optimizer keeps for them) is split along its
    largest axis that the devices divide; small ones stay whole. XLA gathers a layer's parameters
    when they are needed and drops them again. Like `DataParallel`, it computes what one device
    would.

    A network that is too large even so is split a second way: with `tensor=t`, groups of t devices
    share the work on each example, by rules that say along which axis which parameters are split.

    Args:
        n: how many devices; None takes all.
        tensor: how many of them share the work on one example.
        rules: for parameters split over the `tensor` devices, a glob of the path and the axis, as
            `{"*.up.kernel": 1, "*.down.kernel": 0}`. A glob matches the end of a dotted path; the
            first that matches counts.
        min_size: arrays of fewer elements stay whole.

    Raises:
        InputError: there are fewer devices, `tensor` doesn't divide them, or (from `put`) a rule
            doesn't fit an array.

    Source:
        Rajbhandari et al. 2020, "ZeRO"; Shoeybi et al. 2019, "Megatron-LM" for `tensor`.

    Example:
        >>> import jax.numpy as jnp
        >>> s = FSDP(4, min_size=8)
        >>> kernel = s.put({"kernel": jnp.ones((8, 3))})["kernel"]
        >>> kernel.addressable_shards[0].data.shape
        (2, 3)
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        tensor: int = 1,
        rules: Mapping[str, int] | None = None,
        min_size: int = 1024,
    ) -> None:
        devices = first_devices(n)
        if tensor < 1 or len(devices) % tensor:
            raise InputError(
                f"tensor must divide the number of devices, {len(devices)}, got {tensor}"
            )
        if rules and tensor == 1:
            raise InputError("rules say how tensor > 1 devices share a layer, got tensor=1")
        super().__init__(np.reshape(np.asarray(devices), (-1, tensor)), (DATA, TENSOR))
        self._rules = dict(rules or {})
        self._unused = set(self._rules)
        self._min_size = min_size

    def put(self, tree: _T) -> _T:
        """Place state on the devices; a rule that nothing placed so far matches is logged."""
        placed = super().put(tree)
        if self._unused:
            _logger.warning(
                "no array placed so far matches %s of FSDP's rules; a glob matches the end of a "
                "dotted path, such as 'blocks.0.mlp.up.kernel'",
                ", ".join(map(repr, sorted(self._unused))),
            )
        return placed

    def spec(self, path: str, shape: tuple[int, ...], dtype: Any) -> PartitionSpec:
        """Return how an array of the state is split."""
        axes: list[str | None] = [None] * len(shape)
        by_rule = self._tensor_axis(path, shape)
        if by_rule is not None:
            axes[by_rule] = TENSOR
        if math.prod(shape) >= self._min_size and not jnp.issubdtype(dtype, jax.dtypes.prng_key):
            free = [
                i for i, size in enumerate(shape) if axes[i] is None and size % self.num_shards == 0
            ]
            if free:
                axes[max(free, key=lambda i: shape[i])] = DATA
        while axes and axes[-1] is None:
            axes.pop()
        return PartitionSpec(*axes)

    def _tensor_axis(self, path: str, shape: tuple[int, ...]) -> int | None:
        for glob, axis in self._rules.items():
            if not (fnmatchcase(f".{path}", glob) or fnmatchcase(f".{path}", f"*.{glob}")):
                continue
            self._unused.discard(glob)
            parts = self.mesh.shape[TENSOR]
            if not -len(shape) <= axis < len(shape) or shape[axis] % parts:
                raise InputError(
                    f"a rule's axis must be one that {parts} devices divide, {glob!r} gives axis "
                    f"{axis} of {path}, which has the shape {shape}"
                )
            return axis % len(shape)
        return None
