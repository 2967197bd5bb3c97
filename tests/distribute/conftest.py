"""Three small tasks, each with what makes strategies differ, and what tests ask of a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array

import jgraph as jg

Batch = dict[str, np.ndarray]

CLASSES, TOKENS, WIDTH = 4, 32, 16


class Perceptron(nnx.Module):
    """A network without statistics and random state."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(6, 32, rngs=rngs)
        self.second = nnx.Linear(32, 16, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x_BF: Array) -> Array:
        return self.head(jnp.tanh(self.second(jnp.tanh(self.first(x_BF)))))


class ConvNet(nnx.Module):
    """A convolution, followed by statistics of the whole batch."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x_BHWC: Array) -> Array:
        return self.head(nnx.relu(self.norm(self.conv(x_BHWC))).mean((1, 2)))


class Transformer(nnx.Module):
    """A GPT of one block; the output shares the embedding's array."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, tokens_BT: Array) -> Array:
        x = self.embed(tokens_BT)
        x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(tokens_BT))
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.embed.attend(x)


def classify(model: Any, batch: Any) -> tuple[Array, dict[str, Array]]:
    logits = model(batch["x"])
    values = jg.losses.sparse_softmax_cross_entropy(logits, batch["y"])
    return values, {"accuracy": logits.argmax(-1) == batch["y"]}


def next_token(model: Any, batch: Any) -> jg.losses.Mean:
    logits = model(batch["tokens"][:, :-1])
    values = jg.losses.sparse_softmax_cross_entropy(logits, batch["tokens"][:, 1:])
    return jg.losses.mean(values, batch["mask"])


def labelled(count: int, size: int, shape: tuple[int, ...]) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((size, *shape)).astype(np.float32),
            "y": rng.integers(0, CLASSES, size, dtype=np.int32),
        }
        for _ in range(count)
    ]


def sentences(count: int, size: int) -> list[Batch]:
    """Sentences of all lengths, sorted, so that each replica has another number of tokens."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(1, 7, size).round()
    return [
        {
            "tokens": rng.integers(0, TOKENS, (size, 8), dtype=np.int32),
            "mask": (np.arange(7) < lengths[:, None]).astype(np.float32),
        }
        for _ in range(count)
    ]


class Task(NamedTuple):
    model: Callable[[], Any]
    loss: Callable[[Any, Any], Any]
    optimizer: optax.GradientTransformation
    batches: Callable[[int, int], list[Batch]]
    """`batches(count, size)`."""


# Adam divides by the gradient's own size. Where that is zero but for rounding, as for a bias before
# BatchNorm and for the keys' bias in attention, any other order of summing gives another step, of
# full length: so the networks that have such parameters are trained with momentum.
_MOMENTUM = optax.sgd(0.1, momentum=0.9)

_TASKS = {
    "mlp": Task(Perceptron, classify, optax.adam(1e-2), lambda n, size: labelled(n, size, (6,))),
    "cnn": Task(ConvNet, classify, _MOMENTUM, lambda n, size: labelled(n, size, (6, 6, 3))),
    "gpt": Task(Transformer, next_token, _MOMENTUM, sentences),
}
_STRATEGIES = {
    "DataParallel": jg.distribute.DataParallel,
    "FSDP": lambda: jg.distribute.FSDP(min_size=64),
    "Pmap": jg.distribute.Pmap,
}


@pytest.fixture(autouse=True)
def _compiled_once(workplace: Path) -> None:
    """Many tests compile the same program."""


@pytest.fixture(scope="session")
def tasks() -> dict[str, Task]:
    """By name: what is trained, on what, and with which optimizer."""
    return _TASKS


@pytest.fixture(params=_STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> jg.distribute.Strategy:
    return _STRATEGIES[request.param]()


@pytest.fixture(scope="session")
def values() -> Callable[[Any], dict[str, np.ndarray]]:
    """Copy the arrays of a model or a pytree, by path."""

    def number(leaf: Any) -> np.ndarray:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    def read(tree: Any) -> dict[str, np.ndarray]:
        state = nnx.to_pure_dict(nnx.state(tree)) if isinstance(tree, nnx.Module) else tree
        return {jax.tree_util.keystr(k): number(x) for k, x in jax.tree.leaves_with_path(state)}

    return read


@pytest.fixture(scope="session")
def close(values: Callable[[Any], dict[str, np.ndarray]]) -> Callable[[Any, Any], None]:
    """Assert that two models or pytrees hold the same arrays.

    Absolute: the parameters are of size 1, and a relative error would be large where a gradient
    is zero but for rounding.
    """

    def check(found: Any, want: Any) -> None:
        found, want = values(found), values(want)
        assert found.keys() == want.keys()
        for path in want:
            np.testing.assert_allclose(found[path], want[path], rtol=0, atol=1e-6, err_msg=path)

    return check


@pytest.fixture(scope="session")
def same_rows() -> Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], None]:
    """Assert that two histories hold the same rows; losses of size 1, as float32 adds them up."""

    def check(found: Sequence[dict[str, Any]], want: Sequence[dict[str, Any]]) -> None:
        assert [list(row) for row in found] == [list(row) for row in want]
        for row, other in zip(found, want, strict=True):
            assert (row["step"], row["set"]) == (other["step"], other["set"])
            for name in row.keys() - {"step", "set"}:
                np.testing.assert_allclose(row[name], other[name], rtol=0, atol=2e-6, err_msg=name)

    return check
