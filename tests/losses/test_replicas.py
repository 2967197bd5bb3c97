"""8 replicas with uneven masks are one device: value and gradient, by every road."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jgraph.losses import (
    Mean,
    info_nce,
    mean,
    nt_xent,
    sigmoid_cross_entropy,
    sparse_softmax_cross_entropy,
    triplet,
)

REPLICAS, ROWS, D = 8, 6, 5
N = REPLICAS * ROWS

# Sums of up to 48 float32 numbers of size 1, in another order.
CLOSE: Any = {"rtol": 1e-6, "atol": 1e-6}

Batch = dict[str, Array]
Axis = str | None


def data() -> Batch:
    rng = np.random.default_rng(0)
    kept = rng.random((REPLICAS, ROWS)) < np.linspace(0, 1, REPLICAS)[:, None]  # replica 0: none
    weights = kept * rng.choice([0.5, 1.0, 3.0], kept.shape)
    return {
        "x": jnp.asarray(rng.standard_normal((N, D)), jnp.float32),
        "x2": jnp.asarray(rng.standard_normal((N, D)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, D, N), jnp.int32),
        "w": jnp.asarray(weights.reshape(N), jnp.float32),
    }


def softmax(params: Array, batch: Batch, axis: Axis) -> Mean:
    return mean(sparse_softmax_cross_entropy(batch["x"] @ params, batch["y"]), batch["w"])


def sigmoid(params: Array, batch: Batch, axis: Axis) -> Mean:
    values = sigmoid_cross_entropy(batch["x"] @ params, (batch["x2"] > 0).astype(jnp.float32))
    return mean(values.sum(-1) if values.ndim == 2 else values, batch["w"])


def in_triplets(params: Array, batch: Batch, axis: Axis) -> Mean:
    a, b = batch["x"] @ params, batch["x2"] @ params
    return mean(triplet(a, b, a + 0.5 * b), batch["w"])


def by_keys(params: Array, batch: Batch, axis: Axis) -> Mean:
    q, k, w = batch["x"] @ params, batch["x2"] @ params, batch["w"]
    return mean(info_nce(q, k, weights=w, axis_name=axis, temperature=0.5), w)


def by_views(params: Array, batch: Batch, axis: Axis) -> Mean:
    a, b, w = batch["x"] @ params, batch["x2"] @ params, batch["w"]
    return mean(nt_xent(a, b, weights=w, axis_name=axis), w)


PLAIN = [softmax, sigmoid, in_triplets]
COUPLED = [by_keys, by_views]
Objective = Callable[[Array, Batch, Axis], Mean]

PARAMS = jnp.asarray(np.random.default_rng(1).standard_normal((D, D)), jnp.float32)


def whole(objective: Objective) -> tuple[Array, Array]:
    return jax.value_and_grad(lambda p: objective(p, data(), None).value())(PARAMS)


def replica_step(objective: Objective, params: Array, batch: Batch) -> tuple[Array, Array]:
    """One replica's part as a strategy does it: gradients of totals add up, then one division."""
    axis = "replica"

    def total(p: Array) -> tuple[Array, Mean]:
        found = objective(p, batch, axis)
        return found.total, found

    slope, found = jax.grad(total, has_aux=True)(params)
    everywhere = found.psum(axis)
    return everywhere.value(), Mean(jax.lax.psum(slope, axis), everywhere.weight).total / jnp.where(
        everywhere.weight == 0, 1.0, everywhere.weight
    )


def split(batch: Batch, parts: int) -> Batch:
    return {k: v.reshape(parts, -1, *v.shape[1:]) for k, v in batch.items()}


@pytest.mark.parametrize("objective", PLAIN + COUPLED)
def test_pmap(objective: Objective) -> None:
    want = whole(objective)
    run = jax.pmap(
        lambda p, b: replica_step(objective, p, b), axis_name="replica", in_axes=(None, 0)
    )
    value, slope = run(PARAMS, split(data(), REPLICAS))
    for i in range(REPLICAS):
        np.testing.assert_allclose(value[i], want[0], **CLOSE)
        np.testing.assert_allclose(slope[i], want[1], **CLOSE)


@pytest.mark.parametrize("objective", PLAIN + COUPLED)
@pytest.mark.parametrize("differentiate", ["inside", "outside"])
def test_shard_map(objective: Objective, differentiate: str) -> None:
    want = whole(objective)
    mesh, spec = mesh_of_replicas()

    if differentiate == "inside":

        def step(params: Array, batch: Batch) -> tuple[Array, Array]:
            # Params that every replica holds alike would be summed by the transpose already.
            own = jax.lax.pcast(params, ("replica",), to="varying")
            return replica_step(objective, own, batch)

        run = jax.shard_map(
            step, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec()
        )
    else:
        value = jax.shard_map(
            lambda p, b: objective(p, b, "replica").psum("replica").value(),
            mesh=mesh,
            in_specs=(PartitionSpec(), spec),
            out_specs=PartitionSpec(),
        )
        run = jax.value_and_grad(value)
    found = jax.jit(run)(PARAMS, data())
    np.testing.assert_allclose(found[0], want[0], **CLOSE)
    np.testing.assert_allclose(found[1], want[1], **CLOSE)


@pytest.mark.parametrize("objective", PLAIN + COUPLED)
def test_sharded_jit(objective: Objective) -> None:
    want = whole(objective)
    mesh, spec = mesh_of_replicas()
    batch = jax.device_put(data(), NamedSharding(mesh, spec))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    run = jax.jit(jax.value_and_grad(lambda p, b: objective(p, b, None).value()))
    found = run(params, batch)
    np.testing.assert_allclose(found[0], want[0], **CLOSE)
    np.testing.assert_allclose(found[1], want[1], **CLOSE)


def mesh_of_replicas() -> tuple[Mesh, PartitionSpec]:
    return Mesh(np.array(jax.devices()[:REPLICAS]), ("replica",)), PartitionSpec("replica")


@pytest.mark.parametrize("objective", PLAIN)
@pytest.mark.parametrize("microbatches", [2, 8])
def test_gradient_accumulation(objective: Objective, microbatches: int) -> None:
    want = whole(objective)

    def body(carry: Any, batch: Batch) -> tuple[Any, None]:
        found, slope = carry

        def total(p: Array) -> tuple[Array, Mean]:
            part = objective(p, batch, None)
            return part.total, part

        own, part = jax.grad(total, has_aux=True)(PARAMS)
        return (found + part, slope + own), None

    nothing = (Mean(jnp.float32(0), jnp.float32(0)), jnp.zeros_like(PARAMS))
    (found, slope), _ = jax.lax.scan(body, nothing, split(data(), microbatches))
    np.testing.assert_allclose(found.value(), want[0], **CLOSE)
    np.testing.assert_allclose(slope / found.weight, want[1], **CLOSE)


def test_a_mean_of_means_is_another_number() -> None:
    """What the others guard against: the figure and gradient a naive pmean gives."""
    want = whole(softmax)

    def naive(p: Array, b: Batch) -> tuple[Array, Array]:
        out = jax.value_and_grad(lambda p: softmax(p, b, None).value())(p)
        return jax.lax.pmean(out, "replica")

    run = jax.pmap(naive, axis_name="replica", in_axes=(None, 0))
    value, slope = run(PARAMS, split(data(), REPLICAS))
    assert abs(float(value[0] / want[0]) - 1) > 0.02
    assert float(jnp.linalg.norm(slope[0] - want[1]) / jnp.linalg.norm(want[1])) > 0.1


@pytest.mark.parametrize("objective", PLAIN + COUPLED)
def test_a_fully_masked_batch_is_zero_with_weight_zero(objective: Objective) -> None:
    batch = data() | {"w": jnp.zeros(N)}
    found = objective(PARAMS, batch, None)
    assert (float(found.total), float(found.weight), float(found.value())) == (0.0, 0.0, 0.0)
    slope = jax.grad(lambda p: objective(p, batch, None).value())(PARAMS)
    np.testing.assert_array_equal(slope, np.zeros((D, D)))
    run = jax.pmap(
        lambda p, b: replica_step(objective, p, b), axis_name="replica", in_axes=(None, 0)
    )
    value, slopes = run(PARAMS, split(batch, REPLICAS))
    np.testing.assert_array_equal(value, np.zeros(REPLICAS))
    np.testing.assert_array_equal(slopes, np.zeros((REPLICAS, D, D)))


def test_one_replicas_bad_label_under_weight_zero_leaks_nowhere() -> None:
    batch = data()
    masked = int(np.flatnonzero(np.asarray(batch["w"]) == 0)[0])
    batch["y"] = batch["y"].at[masked].set(-100)
    want = whole(softmax)
    run = jax.pmap(lambda p, b: replica_step(softmax, p, b), axis_name="replica", in_axes=(None, 0))
    value, slope = run(PARAMS, split(batch, REPLICAS))
    np.testing.assert_allclose(value[0], want[0], **CLOSE)
    np.testing.assert_allclose(slope[0], want[1], **CLOSE)
