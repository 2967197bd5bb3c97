"""Steps a second: train_and_evaluate beside a loop written by hand, and beside Keras' fit.

All train the same network on the same batches, in one process and one run of each. They take
turns: a callback of `train_and_evaluate` stops the clock after so many steps, lets the others take
as many of theirs, and goes on. So nothing is compiled while a clock runs, each turn finds its
pipeline as it left it, and what else the machine does falls on neighbours alike. A turn ends when
the devices are done. A ratio is that of steps a second within one round, in wall time; the first
round is not counted.

The loop by hand is what a person would write for speed: one `jax.jit` of a flat carry that is given
away, no sums for a log, two batches placed ahead, and a loss fetched one window late. It is there
twice, since `train_and_evaluate` does more: a step that isn't finite changes nothing. "By hand,
guarded" does that too, so it shows what the loop costs; "by hand" shows what the guard costs on
top. Keras takes its turns within `fit`, between the callbacks of an epoch's begin and end.

What must hold, with `--threads 1`: 0.98 of the loop by hand at 2 ms a step; 1.4 times it, with its
one step a call, at 0.1 ms and steps_per_call=32; 2 times Keras. One thread, since the CPU stands
for a device here, and a device doesn't compute with the core that Python runs on. Where XLA has all
cores, each microsecond of Python on whatever thread delays a step by as much: it waits for its
slowest part.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import _peers
from benchmarks._paired import Ratio
from jgraph.train import Callback, TrainSpec, train_and_evaluate

LAYERS, RATE = 3, 1e-3

Turn = Callable[[int], float]
"""`turn(steps)` takes so many steps and returns the seconds."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A network's width, its batches' rows, and how often what is done."""

    width: int
    rows: int
    steps: int  # a turn
    log_every: int = 50


LARGE = Task(width=128, rows=768, steps=200)  # about 2 ms a step on one core
SMALL = Task(width=64, rows=32, steps=2048, log_every=64)  # about 0.1 ms


class Network(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(LAYERS)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output, of the shape of x."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    keras = _peers.keras_fit()
    for task, calls in ((LARGE, (1,)), (SMALL, (1, 32))):
        data = batches(task)
        for steps_per_call in calls:
            others = {
                "by hand": by_hand(task, data, guarded=False),
                "by hand, guarded": by_hand(task, data, guarded=True),
            }
            if keras is not None:
                others["Keras 3 fit on JAX"] = keras(LAYERS, task.width, RATE, data)
            ours, theirs = take_turns(task, data, others, rounds, steps_per_call)
            millis = 1e3 * statistics.median(theirs["by hand"]) / task.steps
            for name, seconds in theirs.items():
                ratio = Ratio(
                    tuple(b / a for a, b in zip(ours, seconds, strict=True)),
                    (statistics.median(seconds), statistics.median(ours)),
                )
                yield (
                    f"{millis:.2f} ms a step, steps_per_call={steps_per_call}: "
                    f"steps a second over {name} {ratio}"
                )
    if keras is None:
        yield "Keras 3 fit on JAX: Keras is not installed here"


def take_turns(
    task: Task,
    data: list[dict[str, np.ndarray]],
    others: Mapping[str, Turn],
    rounds: int,
    steps_per_call: int,
) -> tuple[list[float], dict[str, list[float]]]:
    """Return the seconds of each round: of `train_and_evaluate`, and by name of the others."""
    turns = Turns(task.steps, others)
    spec = TrainSpec(
        data, task.steps * (rounds + 1), log_every=task.log_every, steps_per_call=steps_per_call
    )
    train_and_evaluate(
        Network(task.width), squared_error, optax.adam(RATE), train=spec, callbacks=[turns]
    )
    return turns.seconds[1:], {name: found[1:] for name, found in turns.others.items()}


class Turns(Callback):
    """Let others take their turns after each `steps` of the run, and keep everybody's time."""

    def __init__(self, steps: int, others: Mapping[str, Turn]) -> None:
        self._steps, self._turns = steps, others
        self._start = time.perf_counter()
        self.seconds: list[float] = []
        self.others: dict[str, list[float]] = {name: [] for name in others}

    def on_step(self, step: int) -> None:
        """End this turn where it is due."""
        if step % self._steps:
            return
        jax.block_until_ready(jax.live_arrays())
        self.seconds.append(time.perf_counter() - self._start)
        for name, turn in self._turns.items():
            self.others[name].append(turn(self._steps))
        self._start = time.perf_counter()


def squared_error(model: Any, batch: dict[str, Any]) -> jax.Array:
    """Return the squared errors, (rows, width)."""
    return (model(batch["x"]) - batch["y"]) ** 2


def batches(task: Task) -> list[dict[str, np.ndarray]]:
    """Return batches of numpy arrays, as a pipeline gives them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, task.rows, task.width), np.float32)
    return [{"x": a, "y": np.tanh(a[:, ::-1])} for a in x]


def by_hand(task: Task, data: list[dict[str, np.ndarray]], *, guarded: bool) -> Turn:
    """Return the turns of the loop by hand."""
    step, carry = step_by_hand(Network(task.width), guarded=guarded)
    placed = prefetched(itertools.cycle(data))

    def turn(steps: int) -> float:
        nonlocal carry
        late = None
        start = time.perf_counter()
        for i, batch in enumerate(itertools.islice(placed, steps), 1):
            carry, loss = step(carry, batch)
            if i % task.log_every == 0:
                if late is not None:
                    float(late)
                late = loss
        jax.block_until_ready(carry)
        return time.perf_counter() - start

    return turn


def step_by_hand(model: nnx.Module, *, guarded: bool) -> tuple[Callable[..., Any], list[jax.Array]]:
    """Return `step(carry, batch) -> (carry, loss)` and the first carry, both flat."""
    structure, state = nnx.split(model)
    params, tree = jax.tree.flatten(state)
    optimizer = optax.adam(RATE)
    carry, carry_tree = jax.tree.flatten((params, optimizer.init(params)))

    def objective(params: list[jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        model = nnx.merge(structure, jax.tree.unflatten(tree, params))
        return squared_error(model, batch).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: list[jax.Array], batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        params, opt_state = jax.tree.unflatten(carry_tree, carry)
        loss, gradients = jax.value_and_grad(objective)(params, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        new = jax.tree.leaves((optax.apply_updates(params, updates), opt_state))
        if guarded:
            finite = [jnp.isfinite(x).all() for x in (loss, *jax.tree.leaves(updates))]
            new = jax.tree.map(functools.partial(jnp.where, jnp.stack(finite).all()), new, carry)
        return new, loss

    return step, [jnp.copy(x) for x in carry]


def prefetched(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches on the device, two ahead of what is asked for."""
    ahead: deque[Any] = deque()
    for batch in batches:
        ahead.append(jax.device_put(batch))
        if len(ahead) > 2:
            yield ahead.popleft()
    yield from ahead
