"""Runs that are stopped and started again end as if they hadn't been, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg
from jgraph._errors import CheckpointMismatchError, CheckpointWriteError, InputError
from jgraph.train._checkpoint import _folder

STEPS = 24


class Network(nnx.Module):
    """Everything that a state can hold: Params, running statistics, random state."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.norm(nnx.relu(self.first(x)))))


def classify(model: Any, batch: Any) -> Any:
    logits = model(batch["x"])
    values = jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])
    return values, {"accuracy": logits.argmax(-1) == batch["y"]}


class Shuffled:
    """Five batches in another order each epoch; it counts what is drawn."""

    def __init__(self) -> None:
        self.drawn = 0
        rng = np.random.default_rng(0)
        self.batches = [
            {
                "x": rng.standard_normal((8, 3)).astype(np.float32),
                "y": rng.integers(0, 4, 8, dtype=np.int32),
            }
            for _ in range(5)
        ]

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(0)

    def epoch(self, n: int) -> Iterator[Any]:
        for i in np.random.default_rng(n).permutation(5):
            self.drawn += 1
            yield self.batches[i]


class StopAt(jg.train.Callback):
    """What ends the process, as far as a test can go on after it."""

    def __init__(self, step: int, stop: Callable[[], Any]) -> None:
        self._step, self._stop = step, stop

    def on_step(self, step: int) -> None:
        if step == self._step:
            self._stop()


class Killed(Exception):  # noqa: N818  it is no error
    pass


def kill() -> None:
    raise Killed


def train(
    folder: Path | None,
    *callbacks: jg.train.Callback,
    data: Any = None,
    strategy: Any = None,
    steps: int = STEPS,
    optimizer: Any = None,
    every_steps: int = 4,
    steps_per_call: int = 1,
    log_every: int = 6,
    best: Any = ("val/loss", "min"),
    **options: Any,
) -> tuple[Network, Any]:
    """Train a network anew, or from what is in the folder."""
    model = Network()
    data = data or Shuffled()
    checkpoint = None
    if folder is not None:
        checkpoint = jg.Checkpoint(folder, every_steps=every_steps, best=best, **options)
    result = jg.train_and_evaluate(
        model,
        classify,
        optimizer or optax.adam(3e-2),
        train=jg.TrainSpec(data, steps, log_every=log_every, steps_per_call=steps_per_call),
        evals={"val": jg.EvalSpec(Shuffled().batches[:2], every_steps=6)},
        strategy=strategy,
        average=0.9,
        best=best,
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    return model, result


def values(tree: Any) -> list[np.ndarray]:
    def number(x: Any) -> np.ndarray:
        is_key = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if is_key else x)

    return [number(x) for x in jax.tree.leaves(tree)]


def assert_same(first: tuple[Network, Any], second: tuple[Network, Any]) -> None:
    """Assert that two runs have the same curves and states, to the bit."""
    (model, result), (other, expected) = first, second
    assert result.history == expected.history
    assert result.steps == expected.steps
    pairs = [(nnx.state(model), nnx.state(other))]
    pairs += [(result.states[name], expected.states[name]) for name in expected.states]
    for a, b in pairs:
        for x, y in zip(values(a), values(b), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.fixture(autouse=True)
def _compiled_once(workplace: Path) -> None:
    """Most tests compile the same program."""


@pytest.fixture(scope="module")
def whole() -> tuple[Network, Any]:
    """The run that nothing stops."""
    return train(None)


@pytest.mark.parametrize(
    "at", [13, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 5, 24))]
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: tuple[Network, Any], at: int
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, StopAt(at, kill))
    assert_same(train(tmp_path), whole)
    # Once at its end, it takes no more steps.
    data = Shuffled()
    assert_same(train(tmp_path, StopAt(1, kill), data=data), whole)
    assert data.drawn == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        jg.distribute.DataParallel,
        lambda: jg.distribute.FSDP(min_size=8),
        jg.distribute.Pmap,
    ],
    ids=["DataParallel", "FSDP", "Pmap"],
)
def test_under_strategies(tmp_path: Path, make: Callable[[], Any]) -> None:
    with pytest.raises(Killed):
        train(tmp_path, StopAt(11, kill), strategy=make())
    assert_same(train(tmp_path, strategy=make()), train(None, strategy=make()))


@pytest.mark.slow
def test_from_many_devices_to_one(tmp_path: Path, whole: tuple[Network, Any]) -> None:
    with pytest.raises(Killed):
        train(tmp_path, StopAt(11, kill), strategy=jg.distribute.FSDP(min_size=8))
    _, result = train(tmp_path)
    for row, other in zip(result.history, whole[1].history, strict=True):
        np.testing.assert_allclose(row["loss"], other["loss"], atol=2e-6)


@pytest.mark.slow
def test_several_steps_a_call(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps_per_call": 2}
    with pytest.raises(Killed):
        train(tmp_path, StopAt(15, kill), **options)
    assert_same(train(tmp_path, **options), train(None, **options))
    with pytest.raises(InputError, match="steps_per_call must divide every_steps of the checkp"):
        train(tmp_path, every_steps=3, **options)


def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, whole: tuple[Network, Any], caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"saved after step 7 in .*start the same program"):
        train(tmp_path, StopAt(7, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before
    assert jg.Checkpoint(tmp_path).steps()[-1] == 7
    with caplog.at_level("INFO", "jgraph"):
        assert_same(train(tmp_path), whole)
        assert f"{tmp_path}: the run goes on after step 7 of " in caplog.text
        assert_same(train(tmp_path), whole)
    assert "nothing is left to train; raise it" in caplog.text


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train(tmp_path, StopAt(7, twice))
    assert jg.Checkpoint(tmp_path).steps()[-1] == 6  # of the best evaluation


@pytest.mark.parametrize(
    ("rank", "code"), [pytest.param(None, 143, marks=pytest.mark.slow), ("0", 42)]
)
def test_sigterm_saves_and_exits(
    tmp_path: Path,
    whole: tuple[Network, Any],
    rank: str | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if rank is not None:
        monkeypatch.setenv("JGRAPH_PROCESS_ID", rank)
    with pytest.raises(SystemExit) as end:
        train(tmp_path, StopAt(9, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert end.value.code == code
    assert "stopped by SIGTERM; saved after step 9 in" in capsys.readouterr().err
    assert_same(train(tmp_path), whole)


def test_the_best_state_and_its_score_survive(tmp_path: Path) -> None:
    # A rate that makes it worse and worse: the first evaluation stays the best.
    def worse(folder: Path | None, *callbacks: jg.train.Callback) -> tuple[Network, Any]:
        return train(folder, *callbacks, optimizer=optax.sgd(-0.1), log_every=24)

    with pytest.raises(Killed):
        worse(tmp_path, StopAt(14, kill))
    found = worse(tmp_path)
    assert found[1].best("val/loss", "min")["step"] == 6
    assert_same(found, worse(None))


class Counting(jg.train.EarlyStopping):
    """Early stopping that says how often it was asked."""

    asked = 0

    def on_eval(self, step: int, name: str, row: dict[str, Any]) -> None:
        self.asked += 1
        super().on_eval(step, name, row)


def test_patience_goes_on(tmp_path: Path) -> None:
    def stopping() -> Counting:
        return Counting("val/loss", patience=2)

    options: dict[str, Any] = {"optimizer": optax.sgd(-0.1)}
    with pytest.raises(Killed):
        train(tmp_path, StopAt(14, kill), stopping(), **options)
    second = stopping()
    result = train(tmp_path, second, **options)[1]
    assert result.steps == 18  # 6 was the best, 12 and 18 no better
    assert second.asked == 1
    third = stopping()
    assert train(tmp_path, third, StopAt(19, kill), **options)[1].steps == 18


@pytest.mark.slow
def test_the_csv_file_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "run", StopAt(15, kill), jg.train.CSVLog(tmp_path / "a.csv"))
    train(tmp_path / "run", jg.train.CSVLog(tmp_path / "a.csv"))
    train(None, jg.train.CSVLog(tmp_path / "b.csv"))
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


@pytest.mark.slow
def test_what_was_drawn_before_is_not_drawn_again(tmp_path: Path) -> None:
    train(tmp_path, steps=12)
    data = Shuffled()
    train(tmp_path, data=data, steps=14)
    assert data.drawn <= 2 + 2 + 4  # two passed over, two used, and what is fetched ahead


def test_another_optimizer_is_refused_and_the_model_can_be_taken(tmp_path: Path) -> None:
    model, _ = train(tmp_path, steps=12)
    kernel = np.array(model.head.kernel)
    sgd = optax.sgd(0.0, momentum=0.9)
    with pytest.raises(CheckpointMismatchError) as error:
        train(tmp_path, optimizer=sgd)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("the optimizer has changed")
    assert 'restore="model"' in first
    assert "missing: optimizer[0].trace['first']['kernel'] float32[3,8]; did you" in str(
        error.value
    )
    assert len(lines) == 6
    assert lines[-1].strip().startswith("and ")
    assert lines[-1].endswith(" more")
    train(tmp_path, StopAt(25, kill), optimizer=sgd, restore=["model", "average"])
    last = jg.Checkpoint(tmp_path).restore()
    assert last is not None
    assert last.step == STEPS
    decay = 0.9 ** (STEPS - 12)  # the average nears what no longer changes
    parameters = last.arrays["model.head.kernel"]
    np.testing.assert_allclose(
        last.arrays["average.head.kernel"], parameters + decay * (kernel - parameters), rtol=1e-4
    )
    # The checkpoint is now the new optimizer's: the same program goes on from all of it.
    train(tmp_path, optimizer=sgd, restore=["model", "average"], steps=30)
    assert jg.Checkpoint(tmp_path).steps()[-1] == 30


@pytest.mark.slow
def test_an_average_can_begin_late(tmp_path: Path) -> None:
    train(tmp_path, steps=12)
    train(tmp_path, steps=12 + 1, restore="model", optimizer=optax.sgd(0.0))
    last = jg.Checkpoint(tmp_path).restore()
    assert last is not None
    np.testing.assert_allclose(
        last.arrays["average.head.kernel"], last.arrays["model.head.kernel"], rtol=1e-6
    )


def test_another_network_is_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=4)
    small = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(CheckpointMismatchError, match=r"extra: model\.first\.kernel"):
        jg.train_and_evaluate(
            small,
            classify,
            optax.adam(0.1),
            train=jg.TrainSpec(Shuffled(), 5),
            checkpoint=jg.Checkpoint(tmp_path),
        )


@pytest.mark.slow
def test_data_that_became_shorter_is_refused(tmp_path: Path) -> None:
    batches = Shuffled().batches
    train(tmp_path, data=batches, steps=4)
    with pytest.raises(InputError, match="of epoch 0 4 batches were taken, and now it has 3"):
        train(tmp_path, data=batches[:3], steps=5)


def test_checkpoints_of_another_loop_are_refused(tmp_path: Path) -> None:
    with jg.Checkpoint(tmp_path) as checkpoint:
        checkpoint.save(3, model=Network(), force=True)
    with pytest.raises(InputError, match="those of another loop; choose another folder"):
        train(tmp_path)


def test_a_full_disk_ends_the_run_and_loses_nothing(
    tmp_path: Path, whole: tuple[Network, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _folder.write_manifest

    def refuse(folder: Path, manifest: Any) -> None:
        if manifest.step == 8:
            raise OSError(28, "No space left on device")
        real(folder, manifest)

    with monkeypatch.context() as patched:
        patched.setattr(_folder, "write_manifest", refuse)
        with pytest.raises(CheckpointWriteError, match="No space left"):
            train(tmp_path)
    assert jg.Checkpoint(tmp_path).steps() == [4, 6]
    assert_same(train(tmp_path), whole)


def test_two_ways_to_say_what_is_best_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best must be one number"):
        jg.train_and_evaluate(
            Network(),
            classify,
            optax.adam(0.1),
            train=jg.TrainSpec(Shuffled(), 5),
            evals={"val": jg.EvalSpec(Shuffled())},
            best=("val/accuracy", "max"),
            checkpoint=jg.Checkpoint(tmp_path, best=("val/loss", "min")),
        )


def test_a_step_made_by_make_step(tmp_path: Path) -> None:
    def loop(until: int, checkpoint: jg.Checkpoint | None) -> nnx.Module:
        model = Network()
        step = jg.train.make_step(model, classify, optax.adam(3e-2), average=0.9)
        found = None if checkpoint is None else checkpoint.restore(train=step)
        data = Shuffled().batches
        for i in range(found.step if found else 0, until):
            step(data[i % 5])
            if checkpoint is not None:
                checkpoint.save(i + 1, train=step)
        return step.model

    with jg.Checkpoint(tmp_path, every_steps=3) as checkpoint:
        loop(8, checkpoint)
    with jg.Checkpoint(tmp_path, every_steps=3) as checkpoint:
        assert checkpoint.steps() == [3, 6]
        found = loop(10, checkpoint)
    for a, b in zip(values(nnx.state(found)), values(nnx.state(loop(10, None))), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_in_debug_mode(tmp_path: Path) -> None:
    with jg.debug_mode():
        train(tmp_path, steps=2, log_every=2)
        _, result = train(tmp_path, steps=3, log_every=2)
    assert result.steps == 3


def test_a_best_of_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best must name a number of an evaluation, and there is"):
        jg.train_and_evaluate(
            Network(),
            classify,
            optax.adam(0.1),
            train=jg.TrainSpec(Shuffled(), 5),
            checkpoint=jg.Checkpoint(tmp_path, best=("val/loss", "min")),
        )
