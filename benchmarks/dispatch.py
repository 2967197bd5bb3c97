"""What a call costs: jg.function, nnx.jit and other libraries beside a hand-flattened jax.jit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import _peers
from benchmarks._paired import Ratio, paired
from jgraph.graph import function

ROWS = 4


class Network(nnx.Module):
    """Linear layers, each added to its input."""

    def __init__(self, layers: int, width: int) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(layers)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output, of the shape of x."""
        for layer in self.layers:
            x = x + 0.1 * jnp.tanh(layer(x))
        return x


def run(rounds: int) -> Iterator[str]:
    """Yield the report's lines."""
    for layers, width in ((4, 16), (100, 8)):
        for donate in (True, False):
            yield from steps(layers, width, rounds, donate=donate)
        yield from forwards(layers, width, rounds)
        yield from peers(layers, width, rounds)


def peers(layers: int, width: int, rounds: int) -> Iterator[str]:
    """Yield the ratios of other libraries' train steps to a hand-flattened jax.jit."""
    x, y = np.ones((ROWS, width), np.float32), np.zeros((ROWS, width), np.float32)
    baseline, leaves = flat_step(*build(layers, width), donate=True)
    for name, call in _peers.steps(layers, width):
        ratio = _ratio(lambda call=call: call(x, y), lambda: baseline(x, y), rounds)
        yield f"step, {leaves} leaves: {name} over jax.jit {ratio}"


def _ratio(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> Ratio:
    # Wall time: a call that waits for its result is what a training loop sees.
    return paired(first, second, rounds, clock=time.perf_counter)


def steps(layers: int, width: int, rounds: int, *, donate: bool) -> Iterator[str]:
    """Yield the ratios of a train step to a hand-flattened jax.jit."""
    x, y = jnp.ones((ROWS, width)), jnp.zeros((ROWS, width))
    baseline, leaves = flat_step(*build(layers, width), donate=donate)
    contenders = {
        "jg.function": function(step, donate="state" if donate else ()),
        "nnx.jit": nnx.jit(step),
    }
    for name, compiled in contenders.items():
        # Each has a model of its own: nnx.jit replaces the parts of the one it ran on.
        call = bind(compiled, *build(layers, width))
        ratio = _ratio(lambda call=call: call(x, y), lambda: baseline(x, y), rounds)
        yield f"step, {leaves} leaves, donate={donate}: {name} over jax.jit {ratio}"


def forwards(layers: int, width: int, rounds: int) -> Iterator[str]:
    """Yield the ratios of a forward call to a hand-flattened jax.jit."""
    x = jnp.ones((ROWS, width))
    baseline, leaves = flat_forward(build(layers, width)[0])
    contenders = {"jg.function": function(forward), "nnx.jit": nnx.jit(forward)}
    for name, compiled in contenders.items():
        call = bind(compiled, build(layers, width)[0])
        ratio = _ratio(lambda call=call: call(x), lambda: baseline(x), rounds)
        yield f"forward, {leaves} leaves: {name} over jax.jit {ratio}"


def step(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Take one step of Adam on the squared error."""
    loss, gradients = nnx.value_and_grad(lambda m: ((m(x) - y) ** 2).mean())(model)
    optimizer.update(model, gradients)
    return loss


def forward(model: Any, x: jax.Array) -> jax.Array:
    """Return the model's output."""
    return model(x)


def build(layers: int, width: int) -> tuple[Network, nnx.Optimizer[Network]]:
    """Return a new model and its optimizer."""
    model = Network(layers, width)
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def bind(compiled: Callable[..., Any], *objects: Any) -> Callable[..., Any]:
    """Return the call with its objects given."""
    return lambda *arrays: compiled(*objects, *arrays)


def flat_step(model: Any, optimizer: Any, *, donate: bool) -> tuple[Callable[..., Any], int]:
    """Return the step as a person would write it for speed: split once, carry flat leaves."""
    structure, state = nnx.split((model, optimizer))
    leaves, tree = jax.tree.flatten(state)

    def flat(leaves: list[Any], x: jax.Array, y: jax.Array) -> tuple[jax.Array, list[Any]]:
        objects = nnx.merge(structure, jax.tree.unflatten(tree, leaves))
        loss = step(*objects, x, y)
        return loss, jax.tree.leaves(nnx.split(objects)[1])

    compiled = jax.jit(flat, donate_argnums=0 if donate else ())
    carry = [list(map(jnp.copy, leaves))]

    def call(x: jax.Array, y: jax.Array) -> jax.Array:
        loss, carry[0] = compiled(carry[0], x, y)
        return loss

    return call, len(leaves)


def flat_forward(model: Any) -> tuple[Callable[..., Any], int]:
    """Return the forward call on leaves that were split once."""
    structure, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    compiled = jax.jit(lambda leaves, x: nnx.merge(structure, jax.tree.unflatten(tree, leaves))(x))
    return lambda x: compiled(leaves, x), len(leaves)
