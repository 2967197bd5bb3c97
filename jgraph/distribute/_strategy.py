"""What a strategy is: devices in a grid, where state lives on it, and how a program runs there."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jgraph._arrays import host_copy, own
from jgraph._errors import InputError
from jgraph.distribute._batches import Batches
from jgraph.graph import Body, Output, named_variables

_T = TypeVar("_T")

DATA = "data"
"""The grid's axis that batches are split over."""


class Strategy:
    """Where a program runs.

    A strategy is used in three places: `put` places the state, `batches` places the data, and
    `jgraph.function(step, strategy=…)` runs the program. `jgraph.train_and_evaluate` does all
    three. The base class keeps the whole state on every device and lets XLA split the work; a new
    strategy is one file that overrides `spec`, or `run` where the program itself is to change.

    Args:
        devices: a list, or an array with one dimension per axis.
        axes: the names of the grid's axes; batches are split over `"data"`.

    Attributes:
        mesh: the grid of devices.
    """

    def __init__(self, devices: Sequence[Any] | np.ndarray, axes: Sequence[str] = (DATA,)) -> None:
        grid = np.asarray(devices)
        self.mesh = Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * grid.ndim)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        return f"{type(self).__name__}({sizes})"

    @property
    def num_devices(self) -> int:
        """How many devices it uses."""
        return self.mesh.size

    @property
    def num_shards(self) -> int:
        """Into how many parts a batch is split."""
        return self.mesh.shape[DATA]

    # What a new strategy overrides.

    def spec(self, path: str, shape: tuple[int, ...], dtype: Any) -> PartitionSpec:
        """Return how an array of the state is split; by default it is not.

        Args:
            path: dotted, `model.layers.0.kernel`; statistics of the optimizer end in the path of
                their parameter.
            shape: of the array.
            dtype: of the array.
        """
        return PartitionSpec()

    def run(
        self,
        body: Body,
        state: list[Any],
        arrays: list[Any],
        splits: tuple[int | None, ...],
        outputs: Callable[[], Sequence[Output]],
    ) -> list[Any]:
        """Run a function on the whole batch; see `jgraph.graph.Strategy`."""
        return body(*state, *arrays)

    def splits(self, arrays: Sequence[Any]) -> tuple[int | None, ...]:
        """Return () since the program sees the whole batch; see `jgraph.graph.Strategy`."""
        return ()

    # What people use.

    def put(self, tree: _T) -> _T:
        """Place state on the devices.

        Args:
            tree: an NNX object, whose arrays are replaced in place, or a pytree of arrays.

        Returns:
            The object itself, or a new pytree. Arrays are copied: a step that donates them takes
            nothing from their earlier owners.
        """
        if isinstance(tree, (nnx.Pytree, nnx.Variable)):
            for path, variable in named_variables(tree):
                variable.set_raw_value(self._put_below(path, variable.get_raw_value()))
            return tree
        return self._put_below("", tree)

    def put_batch(self, batch: _T) -> _T:
        """Place one batch: its arrays are split along their first axis.

        Where the devices don't divide the batch, each gets all of it: the last batch of an epoch
        then counts as exactly as on one device.
        """
        return jax.tree.map(lambda x: self._put_rows(x, 0), batch)

    def put_batches(self, batches: _T) -> _T:
        """Place several batches stacked along a new first axis: each is split as `put_batch`."""
        return jax.tree.map(lambda x: self._put_rows(x, 1), batches)

    def put_part(self, batch: _T, axis: int = 0) -> _T:
        """Place a batch of which each process has its own rows, in the order of the processes.

        Args:
            batch: this process's part; `is_split_by_process` holds for its rows.
            axis: of the examples; 1 for several batches stacked.
        """
        return jax.tree.map(lambda x: self._put_own_rows(x, axis), batch)

    def is_split_by_process(self, rows: int) -> bool:
        """Return whether the devices of each process take the rows that it brings, and no others.

        Args:
            rows: that each process brings.
        """
        return _is_split_by_process(self._named(PartitionSpec(DATA)), self.num_shards, rows)

    def batches(self, data: Iterable[Any]) -> Batches:
        """Place batches while the program works on the ones before.

        Args:
            data: an iterable of batches, pytrees of arrays whose first axis is the examples.

        Returns:
            An iterable of the placed batches; they come from a background thread, which is 2
            batches ahead, and up to 16 where they have less than 256 KiB.
        """
        return Batches(data, self.put_batch)

    def placed(self, path: str, value: Any) -> Any:
        """Return a new value of a state's array, held where the strategy keeps it."""
        if self.num_devices == 1 or not hasattr(value, "dtype"):
            return value
        return jax.lax.with_sharding_constraint(value, self._sharding(path, value))

    def _put_below(self, path: str, tree: Any) -> Any:
        def put(keys: Any, x: Any) -> Any:
            array = own(x)
            name = path + jax.tree_util.keystr(keys)
            return _put_whole(array, self._sharding(name, array))

        return jax.tree.map_with_path(put, tree)

    def _sharding(self, path: str, x: Any) -> jax.sharding.Sharding:
        return self._named(self.spec(dotted(path), x.shape, x.dtype))

    def _named(self, spec: PartitionSpec) -> jax.sharding.Sharding:
        if self.num_devices == 1:
            return jax.sharding.SingleDeviceSharding(self.mesh.devices.item())
        return NamedSharding(self.mesh, spec)

    def _put_rows(self, x: Any, axis: int) -> Any:
        shape = np.shape(x)
        split = len(shape) > axis and shape[axis] and shape[axis] % self.num_shards == 0
        spec = PartitionSpec(*[None] * axis, DATA) if split else PartitionSpec()
        return _put_whole(host_copy(x), self._named(spec))

    def _put_own_rows(self, x: Any, axis: int) -> Any:
        if np.ndim(x) <= axis:
            return self._put_rows(x, axis)
        shape = list(np.shape(x))
        shape[axis] *= jax.process_count()
        sharding = self._named(PartitionSpec(*[None] * axis, DATA))
        return jax.make_array_from_process_local_data(sharding, x, tuple(shape))


@functools.lru_cache(maxsize=64)
def _is_split_by_process(sharding: jax.sharding.Sharding, shards: int, rows: int) -> bool:
    total = rows * jax.process_count()
    if not rows or total % shards:
        return False
    places = sharding.devices_indices_map((total,))
    bounds = ((device.process_index, *of[0].indices(total)[:2]) for device, of in places.items())
    return all(rows * p <= start and stop <= rows * (p + 1) for p, start, stop in bounds)


def _put_whole(x: Any, sharding: jax.sharding.Sharding) -> Any:
    """Place an array that every process has all of: each takes the parts of its own devices."""
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(x)
        return jax.random.wrap_key_data(_put_whole(jax.random.key_data(x), sharding), impl=impl)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def first_devices(n: int | None) -> list[Any]:
    """Return the first n devices, all for None.

    Raises:
        InputError: there are fewer.
    """
    devices = jax.devices()
    if n is None:
        return devices
    is_count = isinstance(n, int) and not isinstance(n, bool) and n >= 1
    if not is_count or n > len(devices):
        raise InputError(
            f"n must be a number of devices, 1 to {len(devices)} here, got {n!r}; to try a program "
            "on several virtual CPU devices set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={n if is_count else 8} before Python starts"
        )
    return devices[:n]


def dotted(path: str) -> str:
    """Return a path with dots only.

    Example:
        >>> dotted("carry['model.layers[0].kernel'][1]")
        'carry.model.layers.0.kernel.1'
    """
    return re.sub(r"\.?\[['\"]?|['\"]?\]", ".", path).replace("..", ".").strip(".")
