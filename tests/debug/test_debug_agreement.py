"""Debug mode computes what compiled code computes: losses, optimizers, operations, networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import jgraph as jg
from jgraph.models._build import new_network
from tests.graph import graph_corpus as corpus

# Rounding: compiled, neighbouring operations are fused.
TOLERANCE = 1e-5
TEN_OPTIMIZERS = (
    *("adam", "adamw", "sgd", "momentum", "rmsprop", "lamb", "lion", "adagrad", "chain", "yogi"),
)
QUICK_OPERATIONS = {"loops", "branches", "remat", "own rules"}
QUICK_LOSSES = {
    *("sparse_softmax_cross_entropy", "linear_softmax_cross_entropy", "in chunks", "focal"),
    *("ordinal", "huber", "poisson_nll", "kl", "triplet", "map_objective"),
}


def same(got: Any, want: Any, tolerance: float = TOLERANCE) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (jnp.shape(a), a.dtype) == (jnp.shape(b), b.dtype)
        scale = max(1.0, float(np.abs(np.asarray(b, np.complex64)).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def agree(function: Callable[..., Any], arguments: Any, tolerance: float = TOLERANCE) -> None:
    want = jax.jit(function)(*arguments)
    with jg.debug_mode():
        same(function(*arguments), want, tolerance)


def arrays(arguments: Any) -> list[jax.Array]:
    return [jnp.asarray(x) for x in arguments]


LOSSES: dict[str, tuple[Any, ...]] = {
    **{name: (getattr(jg.losses, name), *x) for name, x in corpus._LOSSES.items()},
    **corpus._MORE_LOSSES,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK_LOSSES else pytest.mark.slow) for name in LOSSES],
)
def test_losses(name: str) -> None:
    function, *arguments = LOSSES[name]
    agree(corpus.leaves_of(function), arrays(arguments))
    if f"loss {name}" not in corpus._WITHOUT_GRADIENT:
        agree(corpus.gradient_of(function), arrays(arguments))


def update_twice(optimizer: optax.GradientTransformation, params: Any) -> Any:
    state = optimizer.init(params)
    for _ in range(2):
        gradients = jax.grad(lambda p: sum((x**3).sum() for x in jax.tree.leaves(p)))(params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in TEN_OPTIMIZERS else pytest.mark.slow)
        for name in corpus._OPTIMIZERS
        if name not in ("lbfgs",)  # only a direction, which isn't a step
    ],
)
def test_optimizers(name: str) -> None:
    params = {"kernel": jnp.asarray(corpus._floats(4, 6)), "bias": jnp.asarray(corpus._floats(6))}
    with jax.numpy_dtype_promotion("standard"):
        optimizer = corpus._OPTIMIZERS[name]()
        agree(lambda params: update_twice(optimizer, params), [params])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_OPERATIONS else pytest.mark.slow)
        for name in corpus._OPERATIONS
    ],
)
def test_operations(name: str) -> None:
    function, *arguments = corpus._OPERATIONS[name]
    # Half precision is rounded elsewhere where operations are fused; eigenvectors amplify.
    tolerance = {"half precision": 1e-2, "algebra": 1e-4}.get(name, TOLERANCE)
    agree(corpus.leaves_of(function), arrays(arguments), tolerance)
    agree(corpus.gradient_of(function), arrays(arguments), tolerance)


# Networks.


def step(model: nnx.Module, loss_fn: Callable[..., Any], batch: Any) -> Any:
    """The loss, its gradient, and the model's whole state after a step."""
    loss, gradients = nnx.value_and_grad(loss_fn)(model, batch)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients))
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return loss, nnx.to_pure_dict(gradients), nnx.to_pure_dict(state)


def agree_on_a_step(
    make: Callable[[], nnx.Module], loss_fn: Callable[..., Any], batch: Any, tolerance: float
) -> None:
    want = jg.function(step, static="loss_fn")(make(), loss_fn, batch)
    with jg.debug_mode():
        same(step(make(), loss_fn, batch), want, tolerance)


@pytest.mark.slow
def test_gpt() -> None:
    def loss_fn(model: nnx.Module, tokens: jax.Array) -> jax.Array:
        logits = model(tokens[:, :-1])
        return jg.losses.sparse_softmax_cross_entropy(logits, tokens[:, 1:]).mean()

    tokens = jnp.asarray(corpus._whole(24, 2, 9))
    agree_on_a_step(lambda: corpus._gpt_model(0.1), loss_fn, tokens, TOLERANCE)


@pytest.mark.slow
def test_a_recurrent_network() -> None:
    def make() -> nnx.Module:
        return nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))

    batch = jnp.asarray(corpus._floats(2, 5, 3))
    agree_on_a_step(make, lambda model, x: (model(x) ** 2).mean(), batch, TOLERANCE)


class Network(NamedTuple):
    """A network, and which of its blocks: one of each kind, whose widths fit."""

    kind: Callable[..., Any]
    config: Any
    blocks: tuple[int, ...]
    side: int


# The other blocks are more of the same; EfficientNet-Lite has MobileNetV2's.
NETWORKS: Mapping[str, Network] = {
    "MobileNetV2": Network(
        jg.models.MobileNetV2,
        jg.models.MobileNetV2Config(width=0.1, num_classes=3),
        (0, 1, 2, 3, 10, 13, 16),
        64,
    ),
    "ResNet": Network(
        jg.models.ResNet, jg.models.ResNetConfig((1, 1, 1, 1), num_classes=3), (0, 1, 2, 3), 64
    ),
    "Inception V3": Network(
        jg.models.InceptionV3,
        jg.models.InceptionV3Config(num_classes=3),
        (0, 1, 3, 4, 8, 9),
        75,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_picture_networks(name: str) -> None:
    kind, config, blocks, side = NETWORKS[name]

    def make() -> nnx.Module:
        model = new_network(kind, config, nnx.Rngs(0))
        model.blocks = nnx.List([model.blocks[index] for index in blocks])
        nnx.update(model, jax.tree.map(in_float64, nnx.state(model)))
        if name == "Inception V3":  # a hundred layers, and one value at the end of a picture
            model.eval()
        return model

    def loss_fn(model: nnx.Module, x: jax.Array) -> jax.Array:
        labels = jnp.array([0, 2, 1, 1])
        return jg.losses.sparse_softmax_cross_entropy(model(x), labels).mean()

    # In float32, statistics of a few values, layer upon layer, make much of the last bit. Flax's
    # BatchNorm mixes both types.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        x = jnp.asarray(corpus._floats(4, side, side, 3), jnp.float64)
        agree_on_a_step(make, loss_fn, x, TOLERANCE)


def in_float64(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float64) if x.dtype == jnp.float32 else x


# Random programs: each operation keeps float32 [4, 4] within bounds.

_W = jnp.asarray(corpus._floats(4, 4, seed=11)) * 0.5
_KEY = jax.random.key(3)
OPS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "sin": lambda x: jnp.sin(x) * 1.1,
    "softmax": lambda x: jax.nn.softmax(x, axis=0),
    "log_softmax": lambda x: jax.nn.log_softmax(x) * 0.1,
    "matmul": lambda x: x @ _W,
    "einsum": lambda x: jnp.einsum("ij,kj->ik", x, x) * 0.1,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "normalise": lambda x: (x - x.mean(0, keepdims=True)) * lax.rsqrt(x.var(0, keepdims=True) + 1),
    "scatter": lambda x: x[::-1].at[1].add(x[0] * 2),
    "gather": lambda x: x[jnp.array([0, 2, 2, 1])],
    "where": lambda x: jnp.where(jax.random.bernoulli(_KEY, 0.7, x.shape), x / 0.7, 0),
    "sort": lambda x: jnp.sort(x, axis=0),
    "maximum": lambda x: jnp.maximum(x, x[:, :1].repeat(4, 1)) - jnp.clip(x, -0.3, 0.4),
    "cumsum": lambda x: jnp.cumsum(x, 0) * 0.3,
    "bfloat16": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) * x,
    "stop": lambda x: lax.stop_gradient(x) * x,
    "scan": lambda x: lax.scan(lambda c, t: (jnp.tanh(c + t), c.sum()), x, jnp.arange(3.0))[0],
    "fori": lambda x: lax.fori_loop(0, 2, lambda i, c: c * 0.9 + x[i].mean(), x),
    "cond": lambda x: lax.cond(x.mean() > 0, lambda x: x * 2, jnp.cos, x),
    "switch": lambda x: lax.switch(
        (x.sum() > 0).astype(jnp.int32), [jnp.sin, jnp.cos, jnp.tanh], x
    ),
    "map": lambda x: lax.map(lambda v: v * v.sum(), x) * 0.2,
    "vmap": lambda x: jax.vmap(lambda v: v * jax.nn.logsumexp(v))(x),
    "checkpoint": jax.checkpoint(lambda x: jnp.exp(-(x**2))),
    "own jvp": corpus.clipped,
    "own vjp": corpus.straight_through,
    "inner gradient": jax.grad(lambda x: (jnp.tanh(x) ** 3).sum()),
    "inner jvp": lambda x: jax.jvp(jnp.sin, (x,), (x * 0.5,))[1],
    "pad": lambda x: jnp.pad(x, 1, mode="edge")[1:-1, :-2],
}


@pytest.mark.slow
# The first 60 of 200 that were run once on both ends of the versions.
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    names=st.lists(st.sampled_from(sorted(OPS)), min_size=2, max_size=7),
    mode=st.sampled_from([{}, {"vmap": "loop"}, {"level": "functions"}, {"check": ()}]),
    seed=st.integers(0, 1000),
)
def test_random_programs(names: list[str], mode: Any, seed: int) -> None:
    def loss(x: jax.Array, scale: jax.Array) -> jax.Array:
        x = x * scale
        for name in names:
            x = OPS[name](x)
            x = x / (1 + jnp.abs(lax.stop_gradient(x)).max())
        return (x * scale).sum() + jnp.mean(x**2)

    x, scale = jnp.asarray(corpus._floats(4, 4, seed=seed)), jnp.float32(1.3)
    run = jax.value_and_grad(loss, argnums=(0, 1))
    want = jax.jit(run)(x, scale)
    with jg.debug_mode(**mode):
        # bfloat16 is rounded elsewhere where operations are fused.
        same(run(x, scale), want, 1e-2 if "bfloat16" in names else 1e-4)
