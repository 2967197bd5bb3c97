"""Pmap runs one program per device: what differs between replicas, and what must not."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph.distribute import DataParallel, OneDevice, Pmap, Strategy, _pmap
from jgraph.losses import mean

# Through jax.pmap, and nothing else.


@pytest.fixture
def pmaps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices of each jax.pmap that is made."""
    pmap, found = jax.pmap, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(kwargs.get("devices"))
        return pmap(*args, **kwargs)

    monkeypatch.setattr(jax, "pmap", counted)
    return found


def test_pmap_is_jax_pmap(strategy: Strategy, tasks: Any, pmaps: list[Any]) -> None:
    task = tasks["mlp"]
    batches = task.batches(2, 16)
    model = task.model()
    jg.train_and_evaluate(
        model,
        task.loss,
        task.optimizer,
        train=jg.TrainSpec(batches, 2),
        evals={"val": jg.EvalSpec(batches)},
        strategy=strategy,
    )
    jg.predict(model, lambda model, batch: model(batch["x"]), batches, strategy=strategy)
    # One each for the step, the evaluation and the prediction, which are traced once.
    expected = 3 if isinstance(strategy, Pmap) else 0
    assert pmaps == [jax.devices()] * expected


def test_it_runs_on_the_devices_asked_for(pmaps: list[Any]) -> None:
    s = Pmap(2)
    double = jg.function(lambda x: 2 * x, strategy=s)
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(double(s.put_batch(x)), 2 * x)
    assert pmaps == [jax.devices()[:2]]


def test_each_replica_sees_its_part() -> None:
    s = Pmap()
    shapes = []

    @jg.function(strategy=s)
    def first_of_mine(x: jax.Array, table: jax.Array) -> jax.Array:
        shapes.append((x.shape, table.shape))
        return jnp.broadcast_to(x[:1], x.shape)

    table = jnp.zeros((16, 1))  # placed by nobody: the same on each
    found = first_of_mine(s.put_batch(np.arange(16)), table)
    np.testing.assert_array_equal(found, np.repeat(np.arange(0, 16, 2), 2))
    assert ((2,), (16, 1)) in shapes


def test_a_batch_that_the_devices_do_not_divide_is_run_whole_on_each() -> None:
    s = Pmap()
    first = jg.function(lambda x: jnp.broadcast_to(x[:1], x.shape), strategy=s)
    np.testing.assert_array_equal(first(s.put_batch(np.arange(7))), np.zeros(7))


# Dropout.


def ones(size: int = 16) -> np.ndarray:
    return np.ones((size, 64), np.float32)


def masks(strategy: Strategy, calls: int = 2) -> tuple[list[np.ndarray], Any]:
    model = strategy.put(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    drop = jg.function(lambda model, x: model(x), strategy=strategy, donate="state")
    return [np.array(drop(model, x)) for x in strategy.batches([ones()] * calls)], model


def test_dropout_differs_between_examples_and_so_between_replicas(strategy: Strategy) -> None:
    (first, second), _ = masks(strategy)
    rows = {row.tobytes() for row in (*first, *second)}
    assert len(rows) == 32  # 64 fair coins each
    assert set(np.unique(first)) == {0.0, 2.0}
    np.testing.assert_array_equal((first, second), masks(strategy)[0])  # the same seed again


def test_dropout_of_a_whole_batch_is_that_of_one_device(strategy: Strategy) -> None:
    same = np.array_equal(masks(strategy)[0], masks(OneDevice())[0])
    assert same == (not isinstance(strategy, Pmap))


def test_keys_stay_the_same_on_all_replicas(strategy: Strategy) -> None:
    model = masks(strategy, calls=3)[1]
    key, count = model.rngs.key.get_raw_value(), model.rngs.count.get_raw_value()
    assert int(count) == 3
    fresh: Any = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    want = jax.random.key_data(fresh.rngs.key.get_raw_value())
    for part in jax.random.key_data(key).addressable_shards:
        np.testing.assert_array_equal(part.data, want)
    assert {int(part.data) for part in count.addressable_shards} == {3}


class Noisy(nnx.Module):
    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(8))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(x * self.scale[None, :])


def kept(model: Any, batch: Any) -> Any:
    x = model(batch)
    return (x**2).sum(-1), {f"unit{i}": x[:, i] != 0 for i in range(8)}


@pytest.mark.parametrize("make", [Pmap, DataParallel])
def test_training_drops_other_units_on_each_replica(make: Any, values: Any) -> None:
    """One example per replica: were the masks the same, each unit were kept by all or by none."""
    strategy, found, model = make(), [], Noisy()
    for _ in range(2):
        model = Noisy()
        step = jg.train.make_step(model, kept, optax.sgd(0.0), strategy=strategy)
        x = strategy.put_batch(np.ones((8, 8), np.float32))
        rows = [step(x) for _ in range(2)]
        found.append([[float(row[f"unit{i}"]) for i in range(8)] for row in rows])
        assert step.model is model
    assert any(0 < share < 1 for share in found[0][0])
    assert found[0][0] != found[0][1]  # steps differ
    assert found[0] == found[1]  # runs from one seed don't
    fresh = values(Noisy())
    trained = values(model)
    key = "['dropout']['rngs']['key']"
    np.testing.assert_array_equal(trained[key], fresh[key])
    assert int(trained["['dropout']['rngs']['count']"]) == 2


# What it refuses.


def one_row_each(s: Strategy) -> Any:
    return s.put_batch({"x": np.arange(16, dtype=np.float32).reshape(8, 2), "y": np.ones(8)})


def test_state_made_of_one_replicas_part_is_refused() -> None:
    s = Pmap()
    model = s.put(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    optimizer = s.put(nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        gradients = nnx.grad(lambda model: (model(batch["x"]) ** 2).mean())(model)
        optimizer.update(model, gradients)

    message = (
        "under Pmap the state must stay the same on all replicas, but the new value of model.bias "
        "is made from one replica's part of the batch.*; take gradients with "
        r"jgraph\.train\.value_and_grad and reduce with jgraph\.losses\.mean\(…\)\.value\(\), or "
        "use DataParallel, under which any program is right"
    )
    before = np.array(model.kernel[...])
    with pytest.raises(jg.InputError, match=message):
        jg.function(step, strategy=s, donate="state")(model, optimizer, one_row_each(s))
    np.testing.assert_array_equal(model.kernel[...], before)
    # The same program, and the strategy that the message names.
    s = DataParallel()
    s.put(model)
    s.put(optimizer)
    jg.function(step, strategy=s, donate="state")(model, optimizer, one_row_each(s))
    assert np.abs(model.kernel[...] - before).max() > 0.01


@pytest.mark.parametrize(
    ("result", "path"),
    [
        (lambda x: {"loss": (x**2).mean()}, r"result\['loss'\] of shape \(\)"),
        (lambda x: (x, x.sum(0)), r"result\[1\] of shape \(2,\)"),
        (lambda x: x.T, r"result of shape \(2, [18]\)"),
    ],
)
def test_a_result_made_of_one_replicas_part_is_refused(result: Any, path: str) -> None:
    s = Pmap()
    message = (
        "under Pmap a result must be per example or the same on all replicas, but "
        f"{path} is made from one replica's part of the batch; reduce it with "
        r"jgraph\.losses\.mean\(…\)\.value\(\)"
    )
    with pytest.raises(jg.InputError, match=message):
        jg.function(lambda batch: result(batch["x"]), strategy=s)(one_row_each(s))


def test_a_result_over_all_replicas_is_handed_back() -> None:
    s = Pmap()
    square = jg.function(lambda b: mean(b["x"][:, 0] ** 2, b["x"][:, 1]).value(), strategy=s)
    x, w = np.arange(16.0).reshape(8, 2).T
    assert float(square(one_row_each(s))) == pytest.approx((x**2 * w).sum() / w.sum(), rel=1e-6)


@pytest.mark.parametrize("put", ["put_batch", "put_batches"])
def test_arrays_of_different_lengths_are_refused(put: str) -> None:
    lead = () if put == "put_batch" else (2,)
    batch = {"x": np.ones((*lead, 16, 3)), "table": np.ones((*lead, 5))}
    message = (
        "under Pmap every array of a batch must have one row per example, got "
        f"batch['table'] {(*lead, 5)}, batch['x'] {(*lead, 16, 3)}; pass what isn't per example "
        "as an argument of its own, or use DataParallel"
    )
    with pytest.raises(jg.InputError, match=f"^{re.escape(message)}$"):
        getattr(Pmap(), put)(batch)
    placed = getattr(DataParallel(), put)(batch)
    assert placed["table"].shape == (*lead, 5)


def test_arrays_of_different_lengths_stop_a_run(tasks: Any) -> None:
    task = tasks["mlp"]
    batches = [task.batches(1, 16)[0] | {"table": np.ones(8, np.float32)}]
    with pytest.raises(jg.InputError, match="must have one row per example"):
        jg.train_and_evaluate(
            task.model(),
            task.loss,
            task.optimizer,
            train=jg.TrainSpec(batches, 1),
            strategy=Pmap(),
        )


def test_devices_of_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [SimpleNamespace(process_index=number) for number in (0, 1)]
    monkeypatch.setattr(_pmap, "first_devices", lambda n: devices)
    with pytest.raises(jg.InputError, match=r"devices of one process, .*; DataParallel"):
        jg.distribute.Pmap()
