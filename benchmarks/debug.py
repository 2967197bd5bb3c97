"""Debug mode beside compiled: one training step, in turn, with the same data and optimizer.

Three networks of the size that a person debugs with: an MLP, a small CNN with BatchNorm and
dropout, and a GPT of one block. Each is trained by `jgraph.train.make_step`, compiled and in both
levels of debug mode; `jax.disable_jit` stands beside them, which is what there was before. Wall
time, since compiled steps spread over threads. The first steps, which compile, aren't counted: a
compiled step once, and debug mode until the backward of each operation is compiled.

What must hold: at most 5 times for the CNN.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jgraph as jg
from benchmarks._paired import paired

_WARM_UP = 4  # debug mode compiles a backward at its third use


class MLP(nnx.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        sizes = [(64, 128), (128, 128), (128, 10)]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in sizes])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits, (rows, 10)."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class CNN(nnx.Module):
    """Three convolutions with BatchNorm, dropout and a linear layer."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        widths = (3, 32, 64, 64)
        pairs = list(itertools.pairwise(widths))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([nnx.BatchNorm(b, rngs=rngs) for _, b in pairs])
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits, (rows, 10)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


def gpt_block() -> nnx.Module:
    """Return a GPT of one block."""
    config = jg.models.GPTConfig(vocab_size=96, context=64, width=128, depth=1)
    return jg.models.GPT(config, rngs=nnx.Rngs(0))


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 32).astype(np.int32)
    pictures = rng.standard_normal((32, 32, 32, 3), np.float32)
    tokens = rng.integers(0, 96, (8, 65)).astype(np.int32)
    tasks: dict[str, tuple[Callable[[], nnx.Module], Any, Any]] = {
        "MLP, 32 rows": (MLP, rng.standard_normal((32, 64), np.float32), labels),
        "CNN, 32 pictures of 32 px": (CNN, pictures, labels),
        "GPT block, 8 x 64 tokens": (gpt_block, tokens[:, :-1], tokens[:, 1:]),
    }
    ways: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "debug mode": jg.debug_mode,
        "debug mode, level functions": lambda: jg.debug_mode("functions"),
        "jax.disable_jit": jax.disable_jit,
    }
    for name, (network, x, y) in tasks.items():
        batch = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
        compiled = stepping(network(), batch, contextlib.nullcontext)
        for way, mode in ways.items():
            debugged = stepping(network(), batch, mode)
            ratio = paired(debugged, compiled, rounds, clock=time.perf_counter)
            yield f"{name}: {way} over compiled {ratio}"


def stepping(
    model: nnx.Module,
    batch: dict[str, jax.Array],
    mode: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Callable[[], Any]:
    """Return a call that takes a training step, after the steps that compile."""
    step = jg.train.make_step(model, cross_entropy, optax.adam(1e-3))

    def call() -> Any:
        with mode():
            return step(batch)

    for _ in range(_WARM_UP):
        jax.block_until_ready(call())
    return call


def cross_entropy(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Return the cross entropies, (rows,) or (rows, tokens)."""
    return jg.losses.sparse_softmax_cross_entropy(model(batch["x"]), batch["y"])
