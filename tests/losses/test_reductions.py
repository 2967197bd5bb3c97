from __future__ import annotations

import re

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import Mean, mean


def test_weighted_mean() -> None:
    found = mean(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.0, 3.0]))
    assert (float(found.total), float(found.weight), float(found.value())) == (13.0, 4.0, 3.25)


def test_no_weights_is_the_plain_mean_of_any_shape() -> None:
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    assert float(mean(x).value()) == 5.5
    assert float(Mean.of(jnp.asarray(x)).weight) == 12


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.bfloat16])
def test_values_and_weights_of_any_real_type(dtype: type) -> None:
    found = mean(jnp.array([1, 0, 1], dtype), jnp.array([1, 1, 0], dtype))
    assert found.total.dtype == jnp.float32
    assert float(found.value()) == 0.5


def test_half_precision_sums_lose_nothing() -> None:
    # bfloat16 stops counting at 256.
    assert float(mean(jnp.ones(4096, jnp.bfloat16)).total) == 4096


def test_weight_zero_is_zero_and_not_nan() -> None:
    def value(x: Array) -> Array:
        return mean(x, jnp.zeros(2)).value()

    x = jnp.array([1.0, jnp.nan])
    assert float(value(x)) == 0.0
    np.testing.assert_array_equal(jax.grad(value)(x), [0, 0])
    assert float(mean(jnp.zeros(0)).value()) == 0.0


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_masked_row_leaks_neither_value_nor_gradient(poison: float) -> None:
    def value(x: Array) -> Array:
        return mean(x, jnp.array([1.0, 0.0, 1.0])).value()

    x = jnp.array([1.0, poison, 3.0])
    assert float(value(x)) == 2.0
    np.testing.assert_array_equal(jax.grad(value)(x), [0.5, 0.0, 0.5])


def test_a_scalar_term() -> None:
    assert float(Mean(jnp.float32(3.0), 1).value()) == 3.0
    assert float((Mean(3.0, 1) + Mean(5.0, 1)).value()) == 4.0


def test_adds_to_means_only() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = Mean(1.0, 1) + 1  # pyright: ignore[reportOperatorIssue]


def test_is_a_pytree() -> None:
    doubled = jax.tree.map(lambda x: 2 * x, Mean(jnp.array(1.0), jnp.array(2.0)))
    assert isinstance(doubled, Mean)
    assert float(doubled.weight) == 4.0
    assert jax.tree.map(lambda _: None, doubled) == Mean(None, None)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 3)])
def test_weights_are_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=re.escape(f"got weights {shape} and values (3,)")):
        mean(jnp.zeros(3), jnp.ones(shape))


@settings(deadline=None, max_examples=25)
@given(
    hnp.arrays(np.float32, 12, elements=st.floats(-100, 100, width=32)),
    hnp.arrays(np.float32, 12, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0])),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_parts_of_any_size_add_up_to_the_whole(
    values: np.ndarray, weights: np.ndarray, cuts: list[int]
) -> None:
    parts = zip(np.split(values, sorted(cuts)), np.split(weights, sorted(cuts)), strict=True)
    total = Mean(jnp.float32(0), jnp.float32(0))
    for x, w in parts:
        total = total + mean(x, w)
    w64 = weights.astype(np.float64)
    want = values.astype(np.float64) @ w64 / w64.sum() if w64.sum() else 0.0
    np.testing.assert_allclose(total.value(), want, rtol=1e-5, atol=1e-5)


def test_replicas_with_uneven_masks_equal_one_device() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 6)).astype(np.float32)
    w = (rng.random((8, 6)) < np.linspace(0, 1, 8)[:, None]).astype(np.float32)  # replica 0: none
    assert w[0].sum() == 0
    want = np.average(x.astype(np.float64), weights=w)

    def local(x: Array, w: Array) -> Array:
        return mean(x, w).psum("replica").value()

    mapped = jax.pmap(local, axis_name="replica")(x, w)
    # 8 partial sums of up to 6 float32 numbers.
    np.testing.assert_allclose(mapped, np.full(8, want), rtol=1e-6)
    mesh = Mesh(np.array(jax.devices()[:8]), ("replica",))
    spec = PartitionSpec("replica")
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=PartitionSpec())
    np.testing.assert_allclose(jax.jit(sharded)(x, w), want, rtol=1e-6)
