"""A small network with everything a call has to carry, and what tests ask about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jgraph.graph import function


class Net(nnx.Module):
    """Linear layers, statistics, a random mask and a static number."""

    def __init__(self, seed: int = 0, layers: int = 2) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.scale = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.drop(self.norm(x)) * self.scale


@pytest.fixture
def x() -> jax.Array:
    return jnp.sin(jnp.arange(12.0)).reshape(4, 3)


@pytest.fixture
def net() -> Callable[..., Any]:
    """Make networks: `net(seed)`."""
    return Net


@pytest.fixture
def optimizer() -> Callable[[Any], Any]:
    """Make an optimizer for a network."""
    return lambda model: nnx.Optimizer(model, optax.sgd(0.01, momentum=0.9), wrt=nnx.Param)


@pytest.fixture
def step() -> Callable[..., jax.Array]:
    """The body of a train step, in plain Python."""

    def step(model: Any, optimizer: Any, x: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    return step


@pytest.fixture
def values() -> Callable[..., list[np.ndarray]]:
    """Copy the arrays that objects hold."""

    def number(leaf: Any) -> np.ndarray:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return lambda *objects: [number(x) for x in jax.tree.leaves(nnx.split(objects)[1])]


@pytest.fixture
def close() -> Callable[..., None]:
    """Assert that arrays are equal but for the order of float32 sums.

    The gradient of a bias before BatchNorm is a sum of terms that cancel, hence `atol`.
    """

    def check(left: Any, right: Any) -> None:
        left, right = jax.tree.leaves(left), jax.tree.leaves(right)
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)

    return check


@pytest.fixture
def counter() -> Callable[..., Any]:
    """Make modules that hold one number, `counter().value`."""

    class Counter(nnx.Module):
        def __init__(self, value: Any = 0.0) -> None:
            is_variable = isinstance(value, nnx.Variable)
            self.value = value if is_variable else nnx.Variable(jnp.array(value, jnp.float32))

    return Counter


@pytest.fixture
def call() -> Callable[..., str]:
    """Call a new function, and again; return why it was traced or compiled the second time."""

    def why(first: Any, then: Any, body: Any = lambda x: x * 2, **options: Any) -> str:
        f = function(body, **options)
        f(*first)
        f(*then)
        reasons = [graph.reason for graph in f.graphs]
        assert reasons[:1] == ["the first call"]
        assert len(reasons) == 2
        return reasons[1]

    return why


@pytest.fixture
def scopes() -> Callable[..., set[str]]:
    """Return the scopes of the operations of one name: `scopes(body, name, *args)`."""

    def find(body: Any, name: str, *args: Any, phase: str | None = None) -> set[str]:
        ops = function(body).graph(*args).ops
        found = {"/".join(op.scope) for op in ops if op.name == name and phase in (None, op.phase)}
        assert found, f"no {name} among {[op.name for op in ops]}"
        return found

    return find


@pytest.fixture
def no_cache() -> Iterator[None]:
    """Start and end without JAX's caches of traces."""
    jax.clear_caches()
    yield
    jax.clear_caches()
