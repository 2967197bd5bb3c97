"""A training step of EfficientNet-Lite0 on a CPU: jg.function beside jax.jit and other libraries.

96 px, 16 pictures, 1000 classes, momentum. The step under plain `jax.jit` is split by hand, once,
and is the same network but for its convolutions, which XLA compiles as they are; the times of the
first calls are those of tracing and compiling both. CPU time; `--cores 1` for one thread. With
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment, all libraries' memory is in large pages.

What must hold with one core: 0.13 of jax.jit (0.10 with large pages) and twice its compile time at
most, 1/7 of Keras 3 on JAX, 1.15 of torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import _lite0_peers
from benchmarks._paired import Ratio, paired
from jgraph import models
from jgraph.graph import function

BATCH, SIZE, CLASSES = 16, 96, 1000


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, SIZE, SIZE, 3), np.float32)
    y = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    peers = dict(_lite0_peers.train_steps(CLASSES))  # before JAX compiles, or TensorFlow crashes
    objects = build()
    compiled = function(step, donate="state")
    ours, theirs = (lambda: compiled(*objects, x, y)), by_hand(x, y)
    first = Ratio.of([first_call(ours)], [first_call(theirs)])
    yield f"first call, jg.function over jax.jit: {first}"
    yield f"step, jg.function over jax.jit: {paired(ours, theirs, rounds)}"
    for name, call in peers.items():
        ratio = paired(ours, lambda call=call: call(x, y), rounds)
        yield f"step, jg.function over {name}: {ratio}"


def build() -> tuple[nnx.Module, nnx.Optimizer[Any]]:
    """Return the network in training mode, and its optimizer."""
    model = models.create("efficientnet_lite0", num_classes=CLASSES, rngs=nnx.Rngs(0))
    model.train()
    return model, nnx.Optimizer(model, optax.sgd(0.01, momentum=0.9), wrt=nnx.Param)


def step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Take a step on the cross entropy, and return it."""

    def loss(model: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


def by_hand(x: np.ndarray, y: np.ndarray) -> Callable[[], jax.Array]:
    """Return the step under jax.jit, on leaves that were split once."""
    structure, state = nnx.split(build())
    leaves, tree = jax.tree.flatten(state)
    carry = [list(map(jnp.copy, leaves))]

    def flat(leaves: list[Any], x: jax.Array, y: jax.Array) -> tuple[jax.Array, list[Any]]:
        objects = nnx.merge(structure, jax.tree.unflatten(tree, leaves))
        loss = step(*objects, x, y)
        return loss, jax.tree.leaves(nnx.split(objects)[1])

    compiled = jax.jit(flat, donate_argnums=0)

    def call() -> jax.Array:
        loss, carry[0] = compiled(carry[0], x, y)
        return loss

    return call


def first_call(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start
