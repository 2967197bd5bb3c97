"""Steps as people write them themselves, under every strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array

import jgraph as jg

pytestmark = pytest.mark.slow

Strategy = jg.distribute.Strategy
MANY = {
    "DataParallel": jg.distribute.DataParallel,
    "FSDP": lambda: jg.distribute.FSDP(min_size=16),
    "Pmap": jg.distribute.Pmap,
}
# FSDP's programs are DataParallel's: it is here where it matters how the state is placed.
every = pytest.mark.parametrize("strategy", [make() for make in MANY.values()], ids=MANY)
both = pytest.mark.parametrize("strategy", [MANY["DataParallel"](), MANY["Pmap"]()], ids=str)

_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((16, 4)).astype(np.float32)
Y = _RNG.standard_normal(16).astype(np.float32)
BATCH = {"x": X, "y": Y}
UNEVEN = {"x": X[:6], "y": Y[:6]}
BATCHES = [BATCH, UNEVEN, BATCH]


class Network(nnx.Module):
    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
        self.first = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(8, 1, rngs=nnx.Rngs(1))

    def __call__(self, x: Array) -> Array:
        return self.last(jnp.tanh(self.first(self.norm(x))))[:, 0]


def errors(model: Any, batch: Any) -> Array:
    return (model(batch["x"]) - batch["y"]) ** 2


def momentum(model: nnx.Module) -> nnx.Optimizer[Any]:
    return nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)


def train(model: Any, optimizer: Any, batch: Any) -> Array:
    loss, gradients = jg.train.value_and_grad(errors)(model, batch)
    optimizer.update(model, gradients)
    return loss


def descend(model: nnx.Module, gradients: Any, rate: Any = 0.1) -> None:
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - rate * g, params, gradients))


def arrays(*models: nnx.Module) -> list[np.ndarray]:
    states = [nnx.state(model, nnx.Not(nnx.RngState)) for model in models]
    return [np.array(x) for x in jax.tree.leaves(states)]


def assert_near(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@functools.cache
def trained() -> list[np.ndarray]:
    """The arrays after the three batches on one device, uncompiled."""
    model = Network()
    optimizer = momentum(model)
    for batch in BATCHES:
        train(model, optimizer, batch)
    return arrays(model)


def placed(strategy: Strategy) -> tuple[Network, nnx.Optimizer[Any]]:
    model = strategy.put(Network())
    return model, strategy.put(momentum(model))


# What a step takes and returns.


@every
def test_a_step_equals_one_device_and_is_traced_once_a_size(strategy: Strategy) -> None:
    model, optimizer = placed(strategy)
    places = [x.sharding for x in jax.tree.leaves(nnx.state((model, optimizer)))]
    step = jg.function(train, donate="state", strategy=strategy)
    for batch in strategy.batches(BATCHES):
        step(model, optimizer, batch)
    assert_near(arrays(model), trained())
    assert len(step.graphs) == 2
    assert "batch['x']: shape was float32[16,4], is float32[6,4]" in step.graphs[1].reason
    after = [x.sharding for x in jax.tree.leaves(nnx.state((model, optimizer)))]
    ranks = [x.ndim for x in jax.tree.leaves(nnx.state((model, optimizer)))]
    assert all(map(lambda a, b, n: a.is_equivalent_to(b, n), places, after, ranks))


@both
def test_predictions_scalars_a_metric_and_a_learning_rate(strategy: Strategy) -> None:
    @jg.function(strategy=strategy, static="kind")
    def step(model: Any, seen: Any, batch: Any, rate: Any, kind: str) -> dict[str, Array]:
        def objective(model: Any, batch: Any) -> Array:
            return errors(model, batch) if kind == "squared" else jnp.abs(errors(model, batch))

        loss, gradients = jg.train.value_and_grad(objective)(model, batch)
        descend(model, gradients, rate)
        seen.update(values=loss)
        error = jg.losses.mean(jnp.abs(model(batch["x"]) - batch["y"])).value()
        return {"prediction": model(batch["x"]), "error": error, "rate": rate}

    def run(place: Strategy | None, function: Callable[..., Any]) -> tuple[Any, ...]:
        model, seen = nnx.Linear(4, 1, rngs=nnx.Rngs(0)), nnx.metrics.Average()
        column = Column(model)
        if place is not None:
            place.put(column)
            place.put(seen)
        data = BATCHES if place is None else place.batches(BATCHES)
        # Flax's metric adds integers to floats.
        with jax.numpy_dtype_promotion("standard"):
            rows = [
                function(column, seen, b, rate, "squared")
                for b, rate in zip(data, (0.1, 0.05, 0.01), strict=True)
            ]
            return *rows, seen.compute(), arrays(column)

    *rows, mean, state = run(strategy, step)
    *expected_rows, expected_mean, expected = run(None, step.fn)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        for name, value in expected_row.items():
            np.testing.assert_allclose(row[name], value, rtol=0, atol=2e-6, err_msg=name)
    assert abs(mean - expected_mean) <= 2e-6
    assert_near(state, expected)
    assert len(step.graphs) == 2  # another rate is no reason to trace


class Column(nnx.Module):
    """A network's only output as a vector."""

    def __init__(self, network: nnx.Module) -> None:
        self.network = network

    def __call__(self, x: Array) -> Array:
        return self.network(x)[:, 0]


@both
def test_static_arguments_have_a_graph_each(strategy: Strategy) -> None:
    def total(batch: Any, kind: str) -> Array:
        return jg.losses.mean(batch["x"][:, 0] if kind == "first" else batch["y"]).value()

    f = jg.function(total, strategy=strategy, static="kind")
    batch = strategy.put_batch(BATCH)
    found = [float(f(batch, kind)) for kind in ("first", "y", "first")]
    np.testing.assert_allclose(found, [X[:, 0].mean(), Y.mean(), X[:, 0].mean()], atol=1e-6)
    assert len(f.graphs) == 2
    assert "'first'" in f.graphs[1].reason


@both
def test_two_batches_and_a_penalty_are_terms_of_their_own(strategy: Strategy) -> None:
    def objective(model: Any, batch: Any, other: Any) -> dict[str, jg.losses.Mean]:
        return {
            "batch": jg.losses.mean(errors(model, batch)),
            "other": jg.losses.mean(jnp.abs(model(other["x"]))),
            "penalty": jg.losses.Mean((model.last.kernel[...] ** 2).sum(), 1),
        }

    def step(model: Any, batch: Any, other: Any) -> Array:
        loss, gradients = jg.train.value_and_grad(objective)(model, batch, other)
        descend(model, gradients)
        return loss

    twice = {"x": np.concatenate([X, 2 * X])}
    one, many = Network(), strategy.put(Network())
    f = jg.function(step, strategy=strategy, donate="state")
    # The last is split for the first term, and whole for the second.
    for batch, other in ((BATCH, twice), (BATCH, UNEVEN)):
        found = f(many, strategy.put_batch(batch), strategy.put_batch(other))
        assert abs(found - step(one, batch, other)) <= 2e-6
    assert_near(arrays(many), arrays(one))


@both
def test_each_row_draws_its_own_noise_from_rngs(strategy: Strategy) -> None:
    def noisy(rngs: nnx.Rngs, batch: Any) -> Array:
        return jax.random.normal(rngs(), batch["y"].shape)

    rngs = strategy.put(nnx.Rngs(0))
    f = jg.function(noisy, strategy=strategy)
    draws = [f(rngs, strategy.put_batch(BATCH)) for _ in range(2)]
    assert len(np.unique(np.concatenate(draws))) == 32
    assert int(rngs.default.count[...]) == 2


# Where objects come from, and what becomes of them.


@every
def test_a_model_that_nobody_placed_ends_up_placed(strategy: Strategy) -> None:
    model = Network()
    optimizer = momentum(model)
    step = jg.function(train, donate="state", strategy=strategy)
    for batch in strategy.batches(BATCHES):
        step(model, optimizer, batch)
    assert_near(arrays(model), trained())
    kernel, there = (x.first.kernel.get_raw_value() for x in (model, strategy.put(Network())))
    assert kernel.sharding.is_equivalent_to(there.sharding, 2)


@both
def test_batches_that_nobody_placed_count_the_same(strategy: Strategy) -> None:
    model, optimizer = placed(strategy)
    step = jg.function(train, donate="state", strategy=strategy)
    for batch in BATCHES:
        step(model, optimizer, batch)
    assert_near(arrays(model), trained())


def test_a_model_of_another_strategy_moves() -> None:
    strategy = MANY["FSDP"]()
    model, optimizer = placed(jg.distribute.DataParallel())
    step = jg.function(train, donate="state", strategy=strategy)
    for batch in strategy.batches(BATCHES):
        step(model, optimizer, batch)
    assert_near(arrays(model), trained())
    assert model.first.kernel.get_raw_value().addressable_shards[0].data.shape == (4, 1)


@both
def test_two_models_share_a_variable(strategy: Strategy) -> None:
    class Half(nnx.Module):
        def __init__(self, shared: nnx.Param[Any], seed: int) -> None:
            self.shared, self.last = shared, nnx.Linear(4, 1, rngs=nnx.Rngs(seed))

        def __call__(self, x: Array) -> Array:
            return self.last(jnp.tanh(x @ self.shared[...]))[:, 0]

    def halves() -> tuple[Half, Half]:
        shared = nnx.Param(0.5 * jnp.eye(4))
        return Half(shared, 0), Half(shared, 1)

    def step(first: Any, second: Any, batch: Any) -> None:
        for half in (first, second):
            descend(half, jg.train.value_and_grad(errors)(half, batch)[1])

    one, many = halves(), halves()
    for half in many:
        strategy.put(half)
    f = jg.function(step, strategy=strategy, donate="state")
    for _ in range(2):
        step(*one, BATCH)
        f(*many, strategy.put_batch(BATCH))
    assert many[0].shared is many[1].shared
    assert_near(arrays(*many), arrays(*one))


@every
def test_an_array_that_is_also_held_elsewhere_is_not_donated(strategy: Strategy) -> None:
    model, optimizer = placed(strategy)
    step = jg.function(train, donate="state", strategy=strategy)
    batch = strategy.put_batch(BATCH)
    step(model, optimizer, batch)
    held, before = model.first.kernel.get_raw_value(), arrays(model)
    with pytest.raises(jg.InputError, match=r"model\.first\.kernel is also held elsewhere"):
        step(model, optimizer, batch)
    assert_near(arrays(model), before)
    del held
    step(model, optimizer, batch)
    assert np.abs(arrays(model)[0] - before[0]).max() > 0


@both
def test_an_error_inside_leaves_everything_as_it_was(strategy: Strategy) -> None:
    model, optimizer = placed(strategy)

    def fails(model: Any, optimizer: Any, batch: Any) -> None:
        train(model, optimizer, batch)
        model.more = nnx.Param(jnp.ones(()))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jg.function(fails, donate="state", strategy=strategy)(
            model, optimizer, strategy.put_batch(BATCH)
        )
    assert_near(arrays(model), arrays(Network()))
    assert int(optimizer.step[...]) == 0
    step = jg.function(train, donate="state", strategy=strategy)
    for batch in strategy.batches(BATCHES):
        step(model, optimizer, batch)
    assert_near(arrays(model), trained())


@both
def test_a_step_may_make_state(strategy: Strategy) -> None:
    def step(model: Any, batch: Any) -> nnx.Variable[Any]:
        model.seen = nnx.Variable(jg.losses.mean(errors(model, batch)).value())
        return nnx.Variable(2 * model.seen[...])

    one, many = Network(), strategy.put(Network())
    expected = step(one, BATCH)
    found = jg.function(step, strategy=strategy)(many, strategy.put_batch(BATCH))
    assert isinstance(found, nnx.Variable)
    np.testing.assert_allclose(
        [found[...], 2 * vars(many)["seen"][...]], [expected[...]] * 2, atol=2e-6
    )


@both
def test_a_teacher_that_the_step_closes_over(strategy: Strategy) -> None:
    teacher = strategy.put(Network())
    teacher.eval()
    before = arrays(teacher)

    def towards(model: Any, batch: Any) -> Array:
        return (model(batch["x"]) - teacher(batch["x"])) ** 2

    def step(model: Any, batch: Any) -> Array:
        loss, gradients = jg.train.value_and_grad(towards)(model, batch)
        descend(model, gradients)
        return loss

    one, many = (
        Column(nnx.Linear(4, 1, rngs=nnx.Rngs(0))),
        Column(nnx.Linear(4, 1, rngs=nnx.Rngs(0))),
    )
    strategy.put(many)
    f = jg.function(step, strategy=strategy, donate="state")
    for batch in BATCHES:
        assert abs(f(many, strategy.put_batch(batch)) - step(one, batch)) <= 2e-6
    assert_near(arrays(many), arrays(one))
    for a, b in zip(arrays(teacher), before, strict=True):
        np.testing.assert_array_equal(a, b)


# Steps within steps.


@both
def test_a_function_within_the_step(strategy: Strategy) -> None:
    inner = jg.function(errors)

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        _, gradients = jg.train.value_and_grad(lambda m, b: inner(m, b))(model, batch)
        optimizer.update(model, gradients)

    model, optimizer = placed(strategy)
    f = jg.function(step, donate="state", strategy=strategy)
    for batch in strategy.batches(BATCHES):
        f(model, optimizer, batch)
    assert_near(arrays(model), trained())


@both
@pytest.mark.parametrize("outer_too", [False, True])
def test_a_step_with_a_strategy_within_a_function(strategy: Strategy, outer_too: bool) -> None:
    inner = jg.function(train, strategy=strategy)

    def steps(model: Any, optimizer: Any, batch: Any) -> Array:
        return inner(model, optimizer, batch)

    model, optimizer = placed(strategy)
    f = jg.function(steps, strategy=strategy if outer_too else None)
    for batch in strategy.batches(BATCHES):
        f(model, optimizer, batch)
    assert_near(arrays(model), trained())


@both
def test_several_steps_in_one_call(strategy: Strategy) -> None:
    def steps(model: Any, optimizer: Any, batches: Any) -> Array:
        def one(both: Any, batch: Any) -> tuple[Any, Array]:
            model, optimizer = both
            return both, train(model, optimizer, batch)

        scan: Any = nnx.scan(one, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        return scan((model, optimizer), batches)[1]

    one = Network()
    optimizer = momentum(one)
    expected = [train(one, optimizer, BATCH) for _ in range(3)]
    stacked = jax.tree.map(lambda x: np.stack([x] * 3), BATCH)
    model, optimizer = placed(strategy)
    f = jg.function(steps, donate="state", strategy=strategy)
    losses = f(model, optimizer, strategy.put_batches(stacked))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=2e-6)
    assert_near(arrays(model), arrays(one))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return x + jnp.tanh(self.norm(self.linear(x)))


class Deep(nnx.Module):
    """Blocks in one scan, computed again on the way back."""

    def __init__(self) -> None:
        make = nnx.split_rngs(splits=3)(nnx.vmap(Block))
        self.blocks = make(nnx.Rngs(0))
        self.last = nnx.Linear(4, 1, rngs=nnx.Rngs(1))

    def __call__(self, x: Array) -> Array:
        def one(x: Array, block: Block) -> Array:
            return block(x)

        layers = nnx.scan(nnx.remat(one), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.last(layers(x, self.blocks))[:, 0]


@both
def test_layers_in_a_scan_with_remat(strategy: Strategy) -> None:
    one, many = Deep(), strategy.put(Deep())
    optimizers = momentum(one), strategy.put(momentum(many))
    step = jg.function(train, donate="state", strategy=strategy)
    for batch in (BATCH, BATCH):
        expected = train(one, optimizers[0], batch)
        assert abs(step(many, optimizers[1], strategy.put_batch(batch)) - expected) <= 2e-6
    assert_near(arrays(many), arrays(one))
    assert np.abs(many.blocks.norm.mean[...]).max() > 0.01


# Looking at it, and running it line by line.


@every
def test_the_graph_of_a_step(strategy: Strategy, tmp_path: Any) -> None:
    model, optimizer = placed(strategy)
    step = jg.function(train, donate="state", strategy=strategy)
    batch = strategy.put_batch(BATCH)
    graph = step.graph(model, optimizer, batch)
    loss, state = graph.apply(graph.state, batch)
    assert abs(loss - step(model, optimizer, batch)) <= 1e-6
    np.testing.assert_allclose(
        state["model.first.kernel"], model.first.kernel.get_value(), rtol=0, atol=1e-6
    )
    assert "norm" in graph.text()
    assert "first" in graph.text()
    # Two products forwards, three backwards, 2 operations each, whoever does which part.
    assert graph.flops >= 2 * 16 * (4 * 8 * 3 + 8 * 2)
    assert "HloModule" in graph.hlo
    graph.draw(tmp_path / "step.svg")
    assert (tmp_path / "step.svg").stat().st_size > 1000


@both
def test_without_jit_it_is_the_plain_function(strategy: Strategy) -> None:
    seen: list[Any] = []

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        seen.append(float(train(model, optimizer, batch)))  # a number: nothing is traced

    model, optimizer = placed(strategy)
    f = jg.function(step, donate="state", strategy=strategy)
    with jax.disable_jit():
        for batch in strategy.batches(BATCHES):
            f(model, optimizer, batch)
    assert_near(arrays(model), trained())
    assert len(seen) == 3
    assert f.graphs == ()


# What is right on the whole batch only.


def by_nnx(model: Any, optimizer: Any, batch: Any) -> None:
    optimizer.update(model, nnx.grad(lambda m: errors(m, batch).mean())(model))


def test_gradients_of_flax_are_right_under_data_parallel() -> None:
    strategy = jg.distribute.DataParallel()
    model, optimizer = placed(strategy)
    step = jg.function(by_nnx, donate="state", strategy=strategy)
    for batch in strategy.batches(BATCHES):
        step(model, optimizer, batch)
    assert_near(arrays(model), trained())


def test_pmap_refuses_what_would_differ_between_replicas() -> None:
    strategy = jg.distribute.Pmap()
    model, optimizer = placed(strategy)
    batch = strategy.put_batch(BATCH)
    with pytest.raises(
        jg.InputError, match=r"new value of model\.[a-z.]+ is made from one replica"
    ):
        jg.function(by_nnx, strategy=strategy)(model, optimizer, batch)
    assert_near(arrays(model), arrays(Network()))
    seen = strategy.put(nnx.metrics.Average())
    count = jg.function(lambda seen, batch: seen.update(values=batch["y"]), strategy=strategy)
    refused = pytest.raises(
        jg.InputError, match=r"new value of seen\.total is made from one replica"
    )
    with refused, jax.numpy_dtype_promotion("standard"):
        count(seen, batch)
    total = jg.function(lambda batch: {"sum": batch["y"].sum()}, strategy=strategy)
    with pytest.raises(jg.InputError, match=r"result\['sum'\] of shape \(\) is made from one"):
        total(batch)


def test_whole_batches_under_pmap_need_no_reduction() -> None:
    strategy = jg.distribute.Pmap()
    model, optimizer = placed(strategy)
    one = Network()
    by_nnx(one, momentum(one), UNEVEN)
    jg.function(by_nnx, strategy=strategy)(model, optimizer, strategy.put_batch(UNEVEN))
    assert_near(arrays(model), arrays(one))
