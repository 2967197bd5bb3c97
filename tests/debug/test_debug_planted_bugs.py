"""Twelve mistakes that people make: what they read names the line and the module.

Each runs through `train_and_evaluate`, compiled and in debug mode.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jgraph as jg

ROWS, SIZE, CLASSES = 6, 4, 3
Batch = dict[str, Any]


class Part(nnx.Module):
    """A layer; its subclasses do something wrong beside it."""

    def __init__(self) -> None:
        self.linear = nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)


class Network(nnx.Module):
    """Two good layers around a part."""

    def __init__(self, part: nnx.Module, classes: int = CLASSES) -> None:
        self.first = nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(1))
        self.parts = nnx.List([part])
        self.head = nnx.Linear(SIZE, classes, rngs=nnx.Rngs(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        for part in self.parts:
            x = part(x)
        return self.head(x)  # here: head


def loss_fn(model: Network, batch: Batch) -> jax.Array:
    logits = model(batch["x"])
    return jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])  # here: loss


def good_batch() -> Batch:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, SIZE)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int32)}


# The mistakes.


class Logarithm(Part):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.log(self.linear(x))  # here: log


class RootOfZero(Part):
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear(x)
        return x + jnp.sqrt(jnp.sum((x - x) ** 2, -1, keepdims=True))  # here: root


class MaskedMean(Part):
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear(x)
        mask = jnp.where(x > 100.0, 1.0, 0.0)
        return x + (x * mask).sum(-1, keepdims=True) / mask.sum(-1, keepdims=True)  # here: mask


class WrongAxis(Part):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.linear(jnp.concatenate([x, x], axis=1))  # here: axis


class WrongChannels(nnx.Module):
    def __init__(self) -> None:
        self.conv = nnx.Conv(3, SIZE, (3, 3), rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x[:, None, None, :])[:, 0, 0]  # here: channels


class NoBatchAxis(Part):
    def __call__(self, x: jax.Array) -> jax.Array:
        example = x[0]
        scale = jnp.ones((ROWS, SIZE))
        return jax.lax.dot_general(example, scale, (((0,), (0,)), ((), ())))  # here: batch axis


class Uninitialised(nnx.Module):
    def __init__(self) -> None:
        self.mean = nnx.BatchStat(jnp.zeros((1, SIZE)))
        self.var = nnx.BatchStat(jnp.zeros((1, SIZE)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(x)
        return (x - self.mean[...]) / jnp.sqrt(self.var[...])  # here: statistics


class Exploding(Part):
    def __call__(self, x: jax.Array) -> jax.Array:
        def grow(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return carry * carry - carry, None  # here: scan

        return jax.lax.scan(grow, 10 * self.linear(x), None, length=20)[0]


class Bug(NamedTuple):
    """A mistake, and what must be read.

    Attributes:
        words: parts of the message and its notes.
        line: the mark at the line that is named; None where it isn't a line that is wrong.
        network: makes the network.
        change: makes a good batch a bad one.
        learning_rate: of plain SGD.
    """

    words: tuple[str, ...]
    line: str | None
    network: Callable[[], Network]
    change: Callable[[Batch], Batch] = lambda batch: batch
    learning_rate: float = 0.1


def part(kind: type[nnx.Module]) -> Callable[[], Network]:
    return lambda: Network(kind())


def with_nan(batch: Batch) -> Batch:
    x = batch["x"].copy()
    x[2, 1] = np.nan
    return {**batch, "x": x}


PART = "model.parts[0]"
BUGS = {
    "NaN from log": Bug(("log made NaN", PART, "forward"), "log", part(Logarithm)),
    "sqrt at 0": Bug(("made NaN", PART, "backward"), "root", part(RootOfZero)),
    "0/0 in a mask": Bug(("div made NaN", PART, "forward"), "mask", part(MaskedMean)),
    "infinite learning rate": Bug(
        ("the update was not finite", "learning rate"), None, part(Part), learning_rate=float("inf")
    ),
    "wrong axis": Bug(
        (f"{PART}.linear", "[6, 8]", "kernel: float32[4, 4]"), "axis", part(WrongAxis)
    ),
    "wrong channel count": Bug(
        (f"{PART}.conv", "[6, 1, 1, 4]", "in_features=3"), "channels", part(WrongChannels)
    ),
    "missing batch axis": Bug((PART, "NoBatchAxis", "[6, 4]"), "batch axis", part(NoBatchAxis)),
    "labels that are floats": Bug(
        ("labels", "float32"),
        "loss",
        part(Part),
        lambda batch: {**batch, "y": batch["y"].astype(np.float32)},
    ),
    "wrong class count": Bug(
        ("labels must lie in [0, 2)", "row 0 has label 2"),
        "loss",
        lambda: Network(Part(), classes=2),
        lambda batch: {**batch, "y": np.full(ROWS, 2, np.int32)},
    ),
    "uninitialised statistics": Bug(("div made NaN", PART), "statistics", part(Uninitialised)),
    "exploding scan": Bug(("made", PART, "forward"), "scan", part(Exploding)),
    "NaN in one picture": Bug(("the batch['x'] holds NaN", "row 2"), None, part(Part), with_nan),
}


def lines(mark: str) -> tuple[str, str]:
    """Return how a message, and how a traceback, names the line with a mark."""
    file = Path(__file__)
    texts = file.read_text().splitlines()
    number = next(i for i, text in enumerate(texts, 1) if text.endswith(f"# here: {mark}"))
    return f"at {file.name}:{number} ", f'{file.name}", line {number}, in '


def read(bug: Bug, mode: contextlib.AbstractContextManager[None]) -> str:
    """Train until it fails, and return what the terminal shows."""
    batch, optimizer = bug.change(good_batch()), optax.sgd(bug.learning_rate)
    try:
        with mode:
            train = jg.TrainSpec([batch], max_steps=3)
            jg.train_and_evaluate(bug.network(), loss_fn, optimizer, train=train)
    except Exception as error:  # noqa: BLE001 (whatever a person reads)
        return "".join(traceback.format_exception(error))
    return "nothing"


@pytest.mark.parametrize("mode", ["compiled", "debug"])
@pytest.mark.parametrize("name", BUGS)
def test_what_is_read_names_the_line_and_the_module(name: str, mode: str) -> None:
    bug = BUGS[name]
    message = read(bug, jg.debug_mode() if mode == "debug" else contextlib.nullcontext())
    for words in bug.words:
        assert words in message, message
    assert bug.line is None or any(text in message for text in lines(bug.line)), message
