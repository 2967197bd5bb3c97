"""Where state and batches are put, and that nobody loses what was theirs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec, SingleDeviceSharding

import jgraph as jg
from jgraph.distribute import FSDP, DataParallel, OneDevice, Pmap, Strategy, auto


def test_a_donating_step_takes_the_copy(strategy: Strategy) -> None:
    mine = jnp.ones(16)
    placed = strategy.put(nnx.Variable(mine))

    def double(v: Any) -> None:
        v[...] = 2 * v[...]

    jg.function(double, strategy=strategy, donate="state")(placed)
    assert not mine.is_deleted()
    np.testing.assert_array_equal(mine, np.ones(16))
    np.testing.assert_array_equal(placed[...], np.full(16, 2.0))


def test_the_model_that_a_step_is_made_of_keeps_its_arrays(strategy: Strategy, tasks: Any) -> None:
    task = tasks["mlp"]
    model = task.model()
    strategy.put(model)
    kernel = model.head.kernel.get_raw_value()
    before = np.array(kernel)
    step = jg.train.make_step(model, task.loss, task.optimizer, strategy=strategy)
    step(strategy.put_batch(task.batches(1, 16)[0]))
    np.testing.assert_array_equal(kernel, before)
    assert step.model is model
    assert np.abs(np.array(model.head.kernel[...]) - before).max() > 1e-3


def test_put_places_a_model_and_a_tree(strategy: Strategy) -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    kernel = np.array(model.kernel[...])
    assert strategy.put(model) is model
    tree = {"a": [np.ones(4), jnp.ones(4)], "b": 2.0}
    placed = strategy.put(tree)
    assert isinstance(tree["a"][0], np.ndarray)  # pytrees are copied, models changed in place
    np.testing.assert_array_equal(model.kernel[...], kernel)
    for x in (model.kernel.get_raw_value(), *jax.tree.leaves(placed)):
        assert set(x.sharding.device_set) == set(jax.devices())
        assert x.is_fully_replicated
    np.testing.assert_array_equal(placed["b"], 2.0)
    assert not placed["b"].weak_type  # else the second step would compile again


def test_variables_that_are_shared_stay_so(strategy: Strategy) -> None:
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = {"model": model, "twin": nnx.Linear(2, 2, rngs=nnx.Rngs(0))}
    optimizer["twin"].kernel = model.kernel
    strategy.put(nnx.Dict(optimizer))
    assert optimizer["twin"].kernel is model.kernel


def test_a_batch_is_split_along_its_first_axis(strategy: Strategy) -> None:
    x = np.arange(32).reshape(16, 2)
    placed: Any = strategy.put_batch({"x": x, "y": x[:, 0]})
    for array, shape in ((placed["x"], (2, 2)), (placed["y"], (2,))):
        assert {s.data.shape for s in array.addressable_shards} == {shape}
    np.testing.assert_array_equal(placed["x"], x)
    rows = [np.array(s.data)[0, 0] for s in placed["x"].addressable_shards]
    assert sorted(rows) == [0, 4, 8, 12, 16, 20, 24, 28]
    stacked: Any = strategy.put_batches({"x": np.stack([x, x, x])})["x"]
    assert {s.data.shape for s in stacked.addressable_shards} == {(3, 2, 2)}


@pytest.mark.parametrize("rows", [0, 1, 7, 9])
def test_what_the_devices_do_not_divide_is_whole_on_each(strategy: Strategy, rows: int) -> None:
    placed = strategy.put_batch({"x": np.ones((rows, 2)), "y": np.ones(rows)})
    assert {s.data.shape for s in placed["x"].addressable_shards} == {(rows, 2)}
    assert len(placed["x"].addressable_shards) == 8


def test_a_pipeline_may_fill_its_array_anew(strategy: Strategy) -> None:
    buffer = np.zeros(8, np.float32)

    def data() -> Any:
        for i in range(6):
            buffer[:] = i
            yield {"x": buffer}

    found = [float(batch["x"].mean()) for batch in strategy.batches(data())]
    assert found == [0, 1, 2, 3, 4, 5]


def test_batches_can_be_iterated_as_often_as_their_data(strategy: Strategy) -> None:
    batches = strategy.batches([np.full(8, i) for i in range(3)])
    for _ in range(2):
        assert [int(x[0]) for x in batches] == [0, 1, 2]


def test_an_error_in_the_data_arrives() -> None:
    def data() -> Any:
        yield np.ones(8)
        raise OSError("the disk is gone")

    batches = iter(DataParallel().batches(data()))
    assert next(batches).shape == (8,)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_the_thread_ends_with_the_loop() -> None:
    def data() -> Iterator[np.ndarray]:
        while True:
            time.sleep(0.1)
            yield np.ones(8)

    for _ in OneDevice().batches(data()):
        break
    # One that is in a library while the interpreter ends would take the process down.
    assert not [t for t in threading.enumerate() if t.name == "jgraph-prefetch" and t.is_alive()]


def test_one_device() -> None:
    device = jax.devices()[3]
    s = OneDevice(device)
    assert s.num_devices == 1
    placed: Any = s.put([np.ones(3)])[0], s.put_batch(np.ones(8))
    assert {x.sharding for x in placed} == {SingleDeviceSharding(device)}
    model = s.put(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    out = jg.function(lambda model, x: model(x), strategy=s)(model, s.put_batch(np.ones((4, 2))))
    assert out.devices() == {device}
    with pytest.raises(jg.InputError, match=r"device must be one of jax.devices\(\), got 3; for"):
        OneDevice(3)


def test_auto_takes_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    s = auto()
    assert type(s) is DataParallel
    assert s.num_devices == jax.device_count() == 8
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert type(auto()) is OneDevice


@pytest.mark.parametrize("make", [DataParallel, FSDP, Pmap])
@pytest.mark.parametrize("n", [0, 9, -1, True])
def test_a_number_of_devices_that_there_are_not_is_refused(make: Any, n: int) -> None:
    message = rf"n must be a number of devices, 1 to 8 here, got {n!r}; to try a program on several"
    with pytest.raises(jg.InputError, match=message):
        make(n)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("make", [DataParallel, lambda n: FSDP(n, min_size=8), Pmap])
def test_any_number_of_devices_trains(make: Any, n: int, tasks: Any) -> None:
    """3 divide 9 examples, and none of the axes of the state."""
    task, losses = tasks["mlp"], []
    for strategy in (OneDevice(), make(n)):
        step = jg.train.make_step(task.model(), task.loss, task.optimizer, strategy=strategy)
        losses.append([float(step(b)["loss"]) for b in strategy.batches(task.batches(2, 9))])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=2e-6)


def test_a_strategy_says_what_it_is() -> None:
    assert repr(FSDP(tensor=2)) == "FSDP(data=4, tensor=2)"
    assert repr(Pmap(2)) == "Pmap(data=2)"


def test_the_spec_of_a_strategy_is_asked_for_each_path(tasks: Any) -> None:
    class Asked(DataParallel):
        def spec(self, path: str, shape: tuple[int, ...], dtype: Any) -> PartitionSpec:
            asked[path] = shape
            return PartitionSpec()

    asked: dict[str, tuple[int, ...]] = {}
    task = tasks["mlp"]
    step = jg.train.make_step(
        task.model(), task.loss, task.optimizer, strategy=Asked(), average=0.9
    )
    step(task.batches(1, 16)[0])
    asked = {path.removeprefix("carry."): shape for path, shape in asked.items()}
    of_kernel = {path for path in asked if path.endswith("head.kernel")}
    assert of_kernel == {
        "model.head.kernel",
        "average.head.kernel",
        "optimizer.0.mu.head.kernel",
        "optimizer.0.nu.head.kernel",
    }
    assert {asked[path] for path in of_kernel} == {(16, 4)}


def test_state_stays_where_the_strategy_keeps_it() -> None:
    s = FSDP(min_size=8)
    model = s.put(nnx.Linear(16, 4, rngs=nnx.Rngs(0)))

    def shrink(model: Any) -> None:
        # XLA alone would be free to hand it back whole.
        model.kernel[...] = jnp.broadcast_to(model.bias[...].sum(), (16, 4))

    jg.function(shrink, strategy=s, donate="state")(model)
    assert model.kernel.get_raw_value().addressable_shards[0].data.shape == (2, 4)


@pytest.mark.parametrize(("rows", "most"), [(1 << 17, 4), (4, 18)])
def test_no_more_batches_are_placed_ahead_than_said(rows: int, most: int) -> None:
    taken = []

    def data() -> Iterator[np.ndarray]:
        for i in range(100):
            taken.append(i)
            yield np.full(rows, i, np.float32)

    batches = iter(OneDevice().batches(data()))
    for _ in range(10):
        next(batches)
    time.sleep(0.2)  # for a thread that doesn't stop
    assert 10 < len(taken) < 10 + most
    assert [int(x[0]) for x in batches] == list(range(10, 100))
