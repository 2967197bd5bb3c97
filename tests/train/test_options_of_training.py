"""What a run can be told beyond data and steps: to rest parts, to average, to stop, to keep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array

import jgraph as jg
from jgraph.train import Callback, EarlyStopping, StopTraining, make_step

RATE = 0.1


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.dropout(nnx.relu(self.norm(self.linear(x))))


class Network(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(rngs) for _ in range(3)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Line(nnx.Module):
    """The mean of what it is shown: its loss is (w - x)²/2, its gradient w - x."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.float32(0))


def half_square(model: Any, batch: Any) -> Array:
    return (model.w[...] - batch["x"]) ** 2 / 2


def points(*values: float) -> list[dict[str, np.ndarray]]:
    return [{"x": np.array([x], np.float32)} for x in values]


def labels(model: Any, batch: Any) -> Array:
    return jg.losses.sparse_softmax_cross_entropy(model(batch["x"]), batch["y"])


def labelled(count: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((8, 4)).astype(np.float32),
            "y": rng.integers(0, 2, 8, dtype=np.int32),
        }
        for _ in range(count)
    ]


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Params and statistics by dotted path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {".".join(map(str, path)): np.array(variable[...]) for path, variable in state}


def moved(model: nnx.Module, before: dict[str, np.ndarray]) -> set[str]:
    return {path for path, x in arrays(model).items() if not np.array_equal(x, before[path])}


# Freezing.

FROZEN = {
    "blocks": ["blocks.0", "blocks.1", "blocks.2"],
    "blocks.[0-1]": ["blocks.0", "blocks.1"],
    "blocks.*.norm": ["blocks.0.norm", "blocks.1.norm", "blocks.2.norm"],
    "*.linear": ["blocks.0.linear", "blocks.1.linear", "blocks.2.linear"],
    "*.scale": ["blocks.0.norm.scale", "blocks.1.norm.scale", "blocks.2.norm.scale"],
    "head.bias": ["head.bias"],
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_what_is_frozen_rests_with_its_statistics(freeze: str) -> None:
    model = Network()
    before = arrays(model)
    jg.train_and_evaluate(
        model, labels, optax.sgd(RATE), train=jg.TrainSpec(labelled(), 2), freeze=freeze
    )
    rests = {path for path in before if any(path.startswith(part) for part in FROZEN[freeze])}
    assert moved(model, before) == set(before) - rests


@pytest.mark.parametrize("freeze", [("blocks.0", "head"), ["blocks.0", "head"]])
def test_several_globs(freeze: Sequence[str]) -> None:
    model = Network()
    before = arrays(model)
    step = make_step(model, labels, optax.sgd(RATE), freeze=freeze)
    step(labelled()[0])
    assert {path.rpartition(".")[0] for path in moved(step.model, before)} == {
        f"blocks.{i}.{part}" for i in (1, 2) for part in ("linear", "norm")
    }


def test_what_is_frozen_drops_nothing_and_normalises_by_its_statistics() -> None:
    """So the loss of a wholly frozen backbone is that of evaluation mode."""
    model, (batch,) = Network(), labelled(1)
    step = make_step(model, labels, optax.sgd(RATE), freeze="blocks")
    loss = float(step(batch)["loss"])
    assert loss == pytest.approx(jg.evaluate(Network(), labels, [batch])["loss"], rel=1e-6)
    assert float(make_step(Network(), labels, optax.sgd(RATE))(batch)["loss"]) != pytest.approx(
        loss, rel=1e-3
    )
    # The caller's model is in the mode it was in.
    assert not model.blocks[0].dropout.deterministic
    assert not model.blocks[0].norm.use_running_average


def test_a_frozen_param_has_no_place_in_the_optimizer() -> None:
    """Weight decay would pull it."""
    model = Network()
    before = arrays(model)
    step = make_step(model, labels, optax.adamw(RATE, weight_decay=0.5), freeze="blocks.*")
    step(labelled()[0])
    assert moved(step.model, before) == {"head.kernel", "head.bias"}
    carry: Any = step._carry
    moments = {path for path in carry.get_raw_value() if ".mu[" in path}
    assert moments == {"optimizer[0].mu['head']['kernel']", "optimizer[0].mu['head']['bias']"}


def test_freeze_and_trainable_both_count() -> None:
    model = Network()
    before = arrays(model)
    model.eval()
    jg.train_and_evaluate(
        model,
        labels,
        optax.sgd(RATE),
        train=jg.TrainSpec(labelled(), 1),
        trainable=nnx.PathContains("kernel"),
        freeze="blocks.[01]",
    )
    assert moved(model, before) == {"blocks.2.linear.kernel", "head.kernel"}


def test_a_glob_that_matches_nothing_is_refused_with_a_hint() -> None:
    message = (
        r"freeze must match a part of the model, 'block' matches none of .*, …; "
        r"did you mean blocks\?"
    )
    with pytest.raises(jg.InputError, match=message):
        make_step(Network(), labels, optax.sgd(RATE), freeze="block")
    with pytest.raises(jg.InputError, match=r"freeze must match .* 'blocks\.7' matches none"):
        make_step(Network(), labels, optax.sgd(RATE), freeze=["blocks.0", "blocks.7"])


def test_all_frozen_is_refused() -> None:
    with pytest.raises(jg.InputError, match=r"trainable must select at least one nnx\.Param"):
        make_step(Network(), labels, optax.sgd(RATE), freeze="*")


# The moving average.


def test_the_average_is_that_of_arithmetic() -> None:
    decay, x = 0.75, [4.0, -2.0, 8.0]
    w, average, losses = 0.0, 0.0, []
    for value in x:
        losses.append((w - value) ** 2 / 2)
        w += RATE * (value - w)
        average = decay * average + (1 - decay) * w
    model = Line()
    result = jg.train_and_evaluate(
        model,
        half_square,
        optax.sgd(RATE),
        train=jg.TrainSpec(points(*x), 3, log_every=1),
        evals={"val": jg.EvalSpec(points(1.0))},
        average=decay,
    )
    assert float(model.w[...]) == pytest.approx(average, rel=1e-6)
    nnx.update(model, result.states["last"])
    assert float(model.w[...]) == pytest.approx(w, rel=1e-6)
    # Training measures what it trains, evaluation the average.
    assert [row["loss"] for row in result.rows("train")] == pytest.approx(losses, rel=1e-6)
    assert result.rows("val")[0]["loss"] == pytest.approx((average - 1) ** 2 / 2, rel=1e-6)


def test_the_average_leaves_training_as_it_is() -> None:
    states = []
    for average in (None, 0.9):
        result = jg.train_and_evaluate(
            Network(),
            labels,
            optax.adam(RATE),
            train=jg.TrainSpec(labelled(), 3),
            average=average,
        )
        states.append(nnx.to_pure_dict(result.states["last"]))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_step_that_is_not_finite_leaves_the_average_alone() -> None:
    model = Line()
    step = make_step(model, half_square, optax.sgd(RATE), average=0.5)
    step(points(4.0)[0])
    before = float(step.model_leaves(averaged=True)[0][0])
    step(points(np.nan)[0])
    assert float(step.model_leaves(averaged=True)[0][0]) == before == pytest.approx(0.2)


@pytest.mark.parametrize("average", [0.0, 1.0, -0.5, 2.0])
def test_a_decay_that_is_none_is_refused(average: float) -> None:
    message = f"average must be a decay between 0 and 1, or None, got {average!r}"
    with pytest.raises(jg.InputError, match=re.escape(message)):
        make_step(Line(), half_square, optax.sgd(RATE), average=average)


# The best state, and the last.


def distance(model: Any, batch: Any) -> tuple[Array, dict[str, Array]]:
    w = model.w[...]
    # d/dw is -1: each step adds the learning rate.
    return -w + 0 * batch["x"], {"off": jnp.abs(w - batch["x"]), "near": -jnp.abs(w - batch["x"])}


def run_by(*callbacks: Callback, **options: Any) -> tuple[Any, Any]:
    model = Line()
    result = jg.train_and_evaluate(
        model,
        distance,
        optax.sgd(1.0),
        train=jg.TrainSpec(points(0.0), 6, log_every=1),
        evals={"val": jg.EvalSpec(points(2.0), every_steps=1), "other": jg.EvalSpec(points(5.0))},
        callbacks=callbacks,
        **options,
    )
    return result, model


@pytest.mark.parametrize("best", [("val/off", "min"), ("val/near", "max")])
def test_the_best_state_is_kept(best: Any) -> None:
    result, model = run_by(best=best)
    assert [row["off"] for row in result.rows("val")] == [1, 0, 1, 2, 3, 4]
    assert float(model.w[...]) == 6
    nnx.update(model, result.states["best"])
    assert float(model.w[...]) == 2
    nnx.update(model, result.states["last"])
    assert float(model.w[...]) == 6
    assert result.best(*best)["step"] == 2


def test_the_earliest_of_equals_is_the_best() -> None:
    result, model = run_by(best=("val/loss", "max"))  # -w: the first is the largest
    nnx.update(model, result.states["best"])
    assert float(model.w[...]) == 1


def test_there_is_no_best_state_unless_asked_for() -> None:
    assert set(run_by()[0].states) == {"last"}


def test_the_best_state_is_the_average_that_was_measured() -> None:
    result, model = run_by(best=("val/off", "min"), average=0.5)
    # Averages of 1, 2, 3, 4, …, from 0: 0.5, 1.25, 2.125, …
    assert [row["off"] for row in result.rows("val")][:3] == [1.5, 0.75, 0.125]
    nnx.update(model, result.states["best"])
    assert float(model.w[...]) == 2.125


@pytest.mark.parametrize(
    ("best", "message"),
    [
        (("test/off", "min"), "best must name a number of an evaluation, val, other; got 'test/"),
        (("off", "min"), "best must name a number of an evaluation, val, other; got 'off'"),
        (("val/of", "min"), "metric must be one of val/loss, val/near, val/off, got 'val/of'"),
    ],
)
def test_a_best_that_there_is_not_is_refused(best: Any, message: str) -> None:
    with pytest.raises(jg.InputError, match=message):
        run_by(best=best)


# Stopping.


@pytest.mark.parametrize(("patience", "steps"), [(1, 3), (2, 4), (4, 6), (9, 6)])
def test_early_stopping_waits(patience: int, steps: int) -> None:
    result, model = run_by(EarlyStopping("val/off", "min", patience=patience))
    assert result.steps == steps == result.history[-1]["step"]
    assert float(model.w[...]) == steps


def test_early_stopping_wants_more_than_min_delta() -> None:
    # The first value is 1, and 0 is better by 1, not more.
    assert run_by(EarlyStopping("val/off", patience=1, min_delta=1.0))[0].steps == 2
    assert run_by(EarlyStopping("val/near", "max", patience=1, min_delta=0.5))[0].steps == 3


def test_early_stopping_starts_anew_with_each_run() -> None:
    callback = EarlyStopping("val/off", patience=1)
    assert [run_by(callback)[0].steps for _ in range(2)] == [3, 3]


def test_early_stopping_and_the_best_state_go_together() -> None:
    result, model = run_by(EarlyStopping("val/off", patience=2), best=("val/off", "min"))
    assert (result.steps, float(model.w[...])) == (4, 4)
    nnx.update(model, result.states["best"])
    assert float(model.w[...]) == 2


def test_early_stopping_refuses_a_number_that_there_is_not() -> None:
    with pytest.raises(jg.InputError, match=r"metric must be one of val/loss, val/near, val/off"):
        run_by(EarlyStopping("val/accuracy"))
    with pytest.raises(jg.InputError, match="patience must be at least 1, got 0"):
        EarlyStopping("val/off", patience=0)
    with pytest.raises(jg.InputError, match="a metric must be named 'set/name', as 'val/loss'"):
        EarlyStopping("loss")


class StopsAt(Callback):
    """Raises StopTraining in one of its methods, and remembers what it was called for."""

    def __init__(self, method: str, step: int) -> None:
        self.calls: list[tuple[str, int]] = []
        self._where = method, step

    def _note(self, method: str, step: int) -> None:
        self.calls.append((method, step))
        if (method, step) == self._where:
            raise StopTraining

    def on_step(self, step: int) -> None:
        self._note("step", step)

    def on_log(self, step: int, row: dict[str, Any]) -> None:
        self._note("log", step)

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        self._note(name, step)

    def on_end(self, result: Any) -> None:
        self.calls.append(("end", result.steps))

    def close(self) -> None:
        self.calls.append(("close", 0))


@pytest.mark.parametrize(("method", "steps"), [("step", 3), ("log", 3), ("val", 3)])
def test_a_callback_stops_the_run_well(method: str, steps: int) -> None:
    stops, watches = StopsAt(method, 3), StopsAt("", 0)
    result, model = run_by(stops, watches)
    assert result.steps == steps
    assert float(model.w[...]) == steps
    assert float(result.states["last"]["w"][...]) == steps
    # The step at which it stops is logged and evaluated, and all are told.
    assert [row["step"] for row in result.rows("train")] == [1, 2, 3]
    assert watches.calls[-2:] == stops.calls[-2:] == [("end", steps), ("close", 0)]
    assert {("step", 3), ("log", 3), ("val", 3)} <= set(watches.calls)


def test_a_stop_in_the_middle_of_a_window_logs_what_there_is() -> None:
    model = Line()
    result = jg.train_and_evaluate(
        model,
        half_square,
        optax.sgd(0.0),
        train=jg.TrainSpec(points(2.0, 4.0), 100, log_every=50),
        callbacks=[StopsAt("step", 3)],
    )
    (row,) = result.history
    assert row == {"step": 3, "set": "train", "loss": pytest.approx((2 + 8 + 2) / 3)}
