from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array

from jgraph._cli._interrupt import interrupts_that_arrive
from jgraph._errors import InputError
from jgraph.losses import Mean, mean, sparse_softmax_cross_entropy
from jgraph.train import (
    Callback,
    EvalSpec,
    NonFiniteError,
    TrainSpec,
    train_and_evaluate,
)

Batch = dict[str, np.ndarray]


class Network(nnx.Module):
    """Everything that a state can hold: Params, running statistics, random state."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([nnx.Linear(3, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(self.dropout(self.norm(x)))


def classify(model: Any, batch: Any) -> tuple[Array, dict[str, Array]]:
    logits = model(batch["x"])
    correct = logits.argmax(-1) == batch["y"]
    return sparse_softmax_cross_entropy(logits, batch["y"]), {"accuracy": correct}


def squared_error(model: Any, batch: Any) -> Array:
    return ((model(batch["x"]) - batch["y"]) ** 2)[:, 0]


def class_batches(count: int = 3, size: int = 6) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((size, 3)).astype(np.float32),
            "y": rng.integers(0, 4, size, dtype=np.int32),
        }
        for _ in range(count)
    ]


def line_batches() -> list[Batch]:
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((n, 2)).astype(np.float32) for n in (5, 3, 4)]
    return [{"x": a, "y": a @ np.array([[2.0], [-1.0]], np.float32) + 0.5} for a in x]


def leaves(model: nnx.Module) -> list[np.ndarray]:
    state = jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngState)))
    return [np.array(leaf) for leaf in state]


def assert_same(first: nnx.Module, second: nnx.Module) -> None:
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def numpy_sgd(model: nnx.Linear, batches: list[Batch], steps: int, rate: float) -> tuple[Any, Any]:
    """Least squares by hand, in float64: the losses before each step, and the kernel after."""
    kernel = np.asarray(model.kernel.get_value(), np.float64)
    bias = np.zeros(1)
    losses = []
    for step in range(steps):
        x, y = (batches[step % len(batches)][k].astype(np.float64) for k in "xy")
        error = x @ kernel + bias - y
        losses.append(float((error**2).mean()))
        kernel = kernel - rate * 2 * x.T @ error / len(x)
        bias = bias - rate * 2 * error.mean(0)
    return losses, kernel


def test_equals_gradient_descent_by_hand() -> None:
    model, batches = nnx.Linear(2, 1, rngs=nnx.Rngs(0)), line_batches()
    losses, kernel = numpy_sgd(model, batches, steps=7, rate=0.1)
    spec = TrainSpec(batches, max_steps=7, log_every=1)
    result = train_and_evaluate(model, squared_error, optax.sgd(0.1), train=spec)
    # 7 steps of float32, each rounding at 1e-7.
    np.testing.assert_allclose(model.kernel.get_value(), kernel, rtol=2e-6)
    np.testing.assert_allclose([row["loss"] for row in result.rows("train")], losses, rtol=1e-5)
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5, 6, 7]
    assert result.steps == 7


def test_a_window_is_the_mean_over_its_examples() -> None:
    model, batches = nnx.Linear(2, 1, rngs=nnx.Rngs(0)), line_batches()
    kernel = np.asarray(model.kernel.get_value(), np.float64)
    spec = TrainSpec(batches, max_steps=5, log_every=3)
    result = train_and_evaluate(model, squared_error, optax.sgd(0.0), train=spec)
    errors = [(b["x"] @ kernel - b["y"]) ** 2 for b in batches]
    windows = np.concatenate(errors).mean(), np.concatenate(errors[:2]).mean()
    assert [row["step"] for row in result.history] == [3, 5]
    np.testing.assert_allclose([row["loss"] for row in result.history], windows, rtol=1e-6)


@pytest.mark.parametrize("kind", ["weight", "mean"])
def test_padding_of_weight_zero_changes_nothing(kind: str) -> None:
    plain = line_batches()
    padded = [
        {k: np.concatenate([v, v[:1], v[:1]]) for k, v in b.items()}
        | {"weight": np.array([1] * len(b["x"]) + [0, 0], np.float32)}
        for b in plain
    ]

    def by_mean(model: Any, batch: Any) -> Mean:
        return mean(squared_error(model, batch), batch["weight"])

    models = [nnx.Linear(2, 1, rngs=nnx.Rngs(0)) for _ in range(2)]
    functions = squared_error, squared_error if kind == "weight" else by_mean
    results = [
        train_and_evaluate(m, f, optax.sgd(0.1), train=TrainSpec(d, 6, 6), evals={"v": EvalSpec(d)})
        for m, f, d in zip(models, functions, (plain, padded), strict=True)
    ]
    np.testing.assert_allclose(
        models[0].kernel.get_value(), models[1].kernel.get_value(), rtol=1e-6
    )
    for one, two in zip(results[0].history, results[1].history, strict=True):
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-6)


def test_terms_have_their_own_denominators() -> None:
    model = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    batch = {"x": np.array([[1], [2]], np.float32), "task": np.array([1, 0], np.float32)}

    def two_tasks(model: Any, batch: Any) -> tuple[dict[str, Mean], dict[str, Mean]]:
        y = model(batch["x"])[:, 0]
        penalty = Mean((model.kernel[...] ** 2).sum(), 1)
        return {"all": mean(y), "one": mean(3 * y, batch["task"]), "penalty": penalty}, {}

    spec = TrainSpec([batch], max_steps=1)
    row = train_and_evaluate(model, two_tasks, optax.sgd(1.0), train=spec).history[0]
    assert row == {"step": 1, "set": "train", "all": 1.5, "one": 3.0, "penalty": 1.0, "loss": 5.5}
    # d/dk of mean(k, 2k) + 3k + k^2 at k = 1 is 1.5 + 3 + 2.
    assert float(model.kernel[0, 0]) == 1 - 6.5


def test_only_trainable_params_move() -> None:
    model = Network(nnx.Rngs(0))
    model.eval()
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model.blocks))]
    statistics = np.array(model.norm.mean.get_value())
    head = np.array(model.head.kernel.get_value())
    train_and_evaluate(
        model,
        classify,
        optax.adam(0.1),
        train=TrainSpec(class_batches(), 3),
        trainable=nnx.PathContains("head"),
    )
    for old, new in zip(before, jax.tree.leaves(nnx.state(model.blocks)), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(statistics, model.norm.mean.get_value())
    assert np.abs(head - model.head.kernel.get_value()).min() > 0.01


def test_statistics_follow_in_train_mode_and_evaluation_leaves_them() -> None:
    model, batches = Network(nnx.Rngs(0)), class_batches(1)
    x = jnp.asarray(batches[0]["x"])
    hidden = nnx.relu(model.blocks[0](x))
    want = 0.01 * np.asarray(hidden, np.float64).mean(0)  # momentum 0.99, from zero
    evals = {"val": EvalSpec(batches, every_steps=1)}
    spec = TrainSpec(batches, 1)
    train_and_evaluate(model, classify, optax.sgd(0.0), train=spec, evals=evals)
    np.testing.assert_allclose(model.norm.mean.get_value(), want, rtol=1e-5)
    assert not model.norm.use_running_average
    assert not model.dropout.deterministic


def test_optimizer_sees_nested_dicts_of_parameters() -> None:
    def label(path: tuple[Any, ...], _: Any) -> str:
        return "head" if path[0].key == "head" else "backbone"

    model = Network(nnx.Rngs(0))
    before = leaves(model.blocks), leaves(model.head)
    optimizer = optax.multi_transform(
        {"head": optax.sgd(0.1), "backbone": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    train_and_evaluate(model, classify, optimizer, train=TrainSpec(class_batches(), 2))
    for old, new in zip(before[0], leaves(model.blocks), strict=True):
        np.testing.assert_array_equal(old, new)
    assert np.abs(before[1][0] - leaves(model.head)[0]).max() > 0


def test_same_seed_same_result_bit_for_bit() -> None:
    results, models = [], [Network(nnx.Rngs(3)), Network(nnx.Rngs(3))]
    for model in models:
        spec = TrainSpec(class_batches(), 8, log_every=3)
        results.append(train_and_evaluate(model, classify, optax.adam(0.01), train=spec))
    assert_same(*models)
    assert results[0] == results[1]


def test_compiles_once_and_evaluates_with_one_program() -> None:
    traces = []

    def traced(model: Any, batch: Any) -> Any:
        traces.append(batch["x"].shape)
        return classify(model, batch)

    spec = TrainSpec(class_batches(), 9, log_every=2)
    evals = {"val": EvalSpec(class_batches(2, 5), every_steps=3)}
    train_and_evaluate(Network(nnx.Rngs(0)), traced, optax.adam(0.01), train=spec, evals=evals)
    # The names of the metrics, the step, the evaluation.
    assert traces == [(6, 3), (6, 3), (5, 3)]


@pytest.mark.slow
def test_without_jit_it_is_the_same_program() -> None:
    models = [Network(nnx.Rngs(0)) for _ in range(2)]
    threads = []

    class Watched(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            threads.append(threading.current_thread())
            return super().__iter__()

    evals = {"val": EvalSpec(class_batches(1), every_steps=2)}
    arguments: dict[str, Any] = {"train": TrainSpec(Watched(class_batches()), 3, 2), "evals": evals}
    compiled = train_and_evaluate(models[0], classify, optax.sgd(0.1), **arguments)
    with jax.disable_jit():
        eager = train_and_evaluate(models[1], classify, optax.sgd(0.1), **arguments)
    for a, b in zip(leaves(models[0]), leaves(models[1]), strict=True):
        # Three steps of float32, summed in another order.
        np.testing.assert_allclose(a, b, atol=1e-5)
    for one, two in zip(compiled.history, eager.history, strict=True):
        assert (one.pop("step"), one.pop("set")) == (two.pop("step"), two.pop("set"))
        assert one == pytest.approx(two, rel=1e-4)
    # Breakpoints in a data pipeline are hit on the main thread when jit is off.
    assert threads[0] is not threading.main_thread()
    assert threads[1] is threading.main_thread()


def test_the_callers_arrays_survive() -> None:
    model = Network(nnx.Rngs(0))
    state = nnx.state(model)
    aliases = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    spec = TrainSpec(class_batches(), 2)
    train_and_evaluate(model, classify, optax.sgd(0.1), train=spec)
    assert not any(alias.is_deleted() for alias in aliases)


def test_a_pipeline_may_reuse_its_buffer() -> None:
    batches = line_batches()

    class Reusing:
        def __iter__(self) -> Iterator[Batch]:
            buffer = {"x": np.empty((64, 2), np.float32), "y": np.empty((64, 1), np.float32)}
            for batch in batches:
                for key, value in batch.items():
                    buffer[key][:] = np.resize(value, buffer[key].shape)
                yield buffer
            for value in buffer.values():
                value[:] = np.nan

    def full(batch: Batch) -> Batch:
        return {"x": np.resize(batch["x"], (64, 2)), "y": np.resize(batch["y"], (64, 1))}

    models = [nnx.Linear(2, 1, rngs=nnx.Rngs(0)) for _ in range(2)]
    for model, data in zip(models, (Reusing(), [full(b) for b in batches]), strict=True):
        train_and_evaluate(model, squared_error, optax.sgd(0.1), train=TrainSpec(data, 9))
    assert_same(*models)


def test_epochs_are_asked_for_by_number() -> None:
    asked = []

    class Epochs:
        def epoch(self, number: int) -> Iterator[Batch]:
            asked.append(number)
            return iter(line_batches())

        def __iter__(self) -> Iterator[Batch]:
            return self.epoch(0)

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    train_and_evaluate(model, squared_error, optax.sgd(0.1), train=TrainSpec(Epochs(), 7))
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("disable_jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_at_the_last_good_state(disable_jit: bool) -> None:
    good = class_batches(5)
    bad = [*good[:2], {**good[2], "x": good[2]["x"] * np.float32(np.nan)}, *good[3:]]
    models = [Network(nnx.Rngs(0)) for _ in range(2)]
    with jax.disable_jit(disable_jit):
        spec = TrainSpec(good, 2)
        train_and_evaluate(models[0], classify, optax.adam(0.01), train=spec)
        message = (
            r"at step 3 the loss was nan: the batch\['x'\] holds NaN \(.* The model holds the "
            r"state after step 2\. Mend the data"
        )
        with pytest.raises(NonFiniteError, match=message) as caught:
            train_and_evaluate(models[1], classify, optax.adam(0.01), train=TrainSpec(bad, 50, 2))
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, FloatingPointError)
    assert caught.value.step == 3
    assert np.isnan(caught.value.loss)
    assert_same(*models)


def test_a_wrong_label_is_to_be_mended_not_the_learning_rate() -> None:
    batch = class_batches(1)[0]
    wrong = {**batch, "y": np.full_like(batch["y"], 99)}
    message = (
        r"InputError: labels must lie in .*\. The model holds .*\. Mend what that names first$"
    )
    with pytest.raises(NonFiniteError, match=message):
        train_and_evaluate(
            Network(nnx.Rngs(0)), classify, optax.adam(0.01), train=TrainSpec([wrong], 2)
        )


def test_an_update_that_is_not_finite_stops_as_well() -> None:
    def root(model: Any, batch: Any) -> Array:
        return jnp.sqrt(jnp.abs(model(batch["x"])))[:, 0]  # infinitely steep at 0

    model = nnx.Linear(1, 1, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    spec = TrainSpec([{"x": np.ones((2, 1), np.float32)}], 5)
    message = (
        r"at step 1 the loss was 0 and the update was not finite: div made inf .* at "
        r"test_loop\.py:\d+, backward \(gradient of sqrt\)"
    )
    with pytest.raises(NonFiniteError, match=message):
        train_and_evaluate(model, root, optax.sgd(0.1), train=spec)
    assert float(model.kernel[0, 0]) == 0


def test_an_optimizer_may_deal_with_gradients_that_are_not_finite() -> None:
    def root(model: Any, batch: Any) -> Array:
        return jnp.sqrt(jnp.abs(model(batch["x"])))[:, 0]

    model = nnx.Linear(1, 1, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    to_finite = optax.stateless(lambda updates, _: jax.tree.map(jnp.nan_to_num, updates))
    optimizer = optax.chain(to_finite, optax.clip(1.0), optax.sgd(0.1))
    spec = TrainSpec([{"x": np.ones((2, 1), np.float32)}], 5)
    assert train_and_evaluate(model, root, optimizer, train=spec).steps == 5


def trained(steps: int, data: Any = None) -> Network:
    model = Network(nnx.Rngs(0))
    spec = TrainSpec(class_batches() if data is None else data, steps)
    train_and_evaluate(model, classify, optax.adam(0.01), train=spec)
    return model


def test_ctrl_c_between_steps_leaves_the_last_state() -> None:
    class Interrupt(Callback):
        def on_step(self, step: int) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    model = Network(nnx.Rngs(0))
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(
            model,
            classify,
            optax.adam(0.01),
            train=TrainSpec(class_batches(), 50),
            callbacks=[Interrupt()],
        )
    assert_same(model, trained(3))


def test_ctrl_c_at_any_moment_loses_no_step() -> None:
    class Interrupting:
        """Runs on the thread that prefetches, so that the signal finds the main one anywhere."""

        def __iter__(self) -> Iterator[Batch]:
            for _ in range(10):
                yield from class_batches()
            signal.raise_signal(signal.SIGINT)
            while True:
                yield from class_batches()

    model, done = Network(nnx.Rngs(0)), Steps()
    spec = TrainSpec(Interrupting(), 10_000)
    with pytest.raises(KeyboardInterrupt), interrupts_that_arrive():
        train_and_evaluate(model, classify, optax.adam(0.01), train=spec, callbacks=[done])
    assert 10 < done.steps < 10_000  # small batches are placed up to 16 ahead
    # The signal may have come after a step, and before its callback.
    after = [leaves(trained(steps)) for steps in (done.steps, done.steps + 1)]
    equal = [all(map(np.array_equal, leaves(model), state)) for state in after]
    assert any(equal)


class Steps(Callback):
    steps = 0

    def on_step(self, step: int) -> None:
        self.steps = step


def test_an_error_in_the_data_leaves_the_last_state() -> None:
    class Broken:
        def __iter__(self) -> Iterator[Batch]:
            yield from class_batches(2)
            raise OSError("disk gone")

    model = Network(nnx.Rngs(0))
    with pytest.raises(OSError, match="disk gone"):
        train_and_evaluate(model, classify, optax.adam(0.01), train=TrainSpec(Broken(), 9))
    assert_same(model, trained(2))


def test_an_error_on_the_device_leaves_the_first_state_and_says_so() -> None:
    def fail(x: np.ndarray) -> np.ndarray:
        raise ValueError("no such sensor")

    def failing(model: Any, batch: Any) -> Any:
        loss, metrics = classify(model, batch)
        shape = jax.ShapeDtypeStruct(loss.shape, loss.dtype)
        return loss + jax.pure_callback(fail, shape, jax.lax.stop_gradient(loss)), metrics

    model = Network(nnx.Rngs(0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such sensor") as caught:
        train_and_evaluate(model, failing, optax.sgd(0.1), train=TrainSpec(class_batches(), 9))
    assert any("holds the values it had before" in note for note in caught.value.__notes__)
    assert_same(model, Network(nnx.Rngs(0)))


def test_shared_variables_are_trained_once() -> None:
    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
            self.outer = self.inner

        def __call__(self, x: Array) -> Array:
            return self.outer(self.inner(x))

    model = Tied()
    batch = {"x": np.array([[1]], np.float32), "y": np.array([[0]], np.float32)}
    train_and_evaluate(model, squared_error, optax.sgd(0.125), train=TrainSpec([batch], 1))
    # d/dk (k^2)^2 = 4 at k = 1.
    assert float(model.inner.kernel[0, 0]) == 0.5
    assert model.inner.kernel is model.outer.kernel


def test_sown_values_are_dropped() -> None:
    class Sowing(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(2, 1, rngs=nnx.Rngs(0))

        def __call__(self, x: Array) -> Array:
            self.seen = nnx.Intermediate(x)
            return self.linear(x)

    model = Sowing()
    train_and_evaluate(model, squared_error, optax.sgd(0.1), train=TrainSpec(line_batches(), 4))
    assert not hasattr(model, "seen")


def test_weight_covers_trailing_axes() -> None:
    model = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    batch = {
        "x": np.array([[[1], [3]], [[100], [100]]], np.float32),
        "weight": np.array([1, 0], np.float32),
    }

    def tokens(model: Any, batch: Any) -> Array:
        return model(batch["x"])[..., 0]

    result = train_and_evaluate(model, tokens, optax.sgd(0.0), train=TrainSpec([batch], 1))
    assert result.history[0]["loss"] == 2.0


def test_the_error_names_the_line_and_the_module_that_made_it() -> None:
    class Norm(nnx.Module):
        def __call__(self, x: Array) -> Array:
            return x / jnp.log(x.min())  # infinite where the least is 1

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.blocks = nnx.List([Norm(), Norm()])

        def __call__(self, x: Array) -> Array:
            return self.blocks[1](x - 1) + 0 * self.first(x)

    def loss_fn(model: Any, batch: Any) -> Array:
        return model(batch["x"])[:, 0]

    good, bad = np.full((4, 2), 3, np.float32), np.full((4, 2), 2, np.float32)
    data = [{"x": x} for x in (good, good, bad, good)]
    for steps_per_call in (1, 2):
        spec = TrainSpec(data, 40, log_every=20, steps_per_call=steps_per_call)
        with pytest.raises(NonFiniteError) as caught:
            train_and_evaluate(Model(), loss_fn, optax.sgd(0.1), train=spec)
        assert caught.value.step == 3
        where = caught.value.where
        assert where is not None
        assert re.search(r"div|log", where)
        assert "model.blocks[1]" in where
        assert re.search(r"test_loop\.py:\d+", where)


def test_an_infinite_learning_rate_is_the_optimizers() -> None:
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    spec = TrainSpec(line_batches(), 5)
    before = nnx.state(model)
    with pytest.raises(NonFiniteError, match=r"at step 1 .* the optimizer's own numbers, such as"):
        train_and_evaluate(model, squared_error, optax.adam(float("inf")), train=spec)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before, nnx.state(model)))
