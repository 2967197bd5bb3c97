"""Arrays with memory of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgraph._arrays import from_numpy, host_copy, own


def aligned(count: int) -> np.ndarray:
    """Return numbers where device_put would take numpy's memory as it is."""
    memory = np.zeros(4 * count + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * count].view(np.float32)


@pytest.mark.parametrize("copy", [from_numpy, own, lambda x: jax.device_put(host_copy(x))])
def test_the_array_keeps_its_values_when_numpys_change(copy: Any) -> None:
    memory = aligned(1024)
    array = copy(memory)
    memory[:] = 7
    assert (array == 0).all()


@pytest.mark.parametrize(
    "leaf", [jnp.arange(3.0), 2.0, np.ones(3), jax.random.key(0), jnp.int32(1)], ids=type
)
def test_a_copy_may_be_given_away(leaf: Any) -> None:
    copy = own(leaf)
    assert not getattr(copy, "weak_type", False)
    jax.jit(lambda x: x, donate_argnums=0)(copy)
    assert copy.is_deleted()
    assert not getattr(leaf, "is_deleted", bool)()


def test_a_copy_stays_where_the_array_is() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    array = jax.device_put(np.arange(16.0, dtype=np.float32), sharding)
    copy = own(array)
    assert copy.sharding == sharding
    places = [[s.data.unsafe_buffer_pointer() for s in x.addressable_shards] for x in (array, copy)]
    assert not set(places[0]) & set(places[1])


def test_numpys_values_take_the_dtype() -> None:
    assert from_numpy(np.ones(2, np.float64)).dtype == jnp.float32
    assert from_numpy(np.ones(2, np.float32), jnp.bfloat16).dtype == jnp.bfloat16
