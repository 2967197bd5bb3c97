"""Programs that graph files must hold: each makes a graph and the arrays it is called with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import jgraph as jg
from jgraph import losses
from jgraph.train import make_step


class Program(NamedTuple):
    """A graph, what it is called with, its state, and the objects that is read from."""

    graph: jg.Graph
    arguments: tuple[Any, ...]
    objects: tuple[Any, ...] = ()
    numbers: jg.Graph | None = None  # traced with the arguments' sizes

    @property
    def source(self) -> jg.Graph:
        """The graph that can be run: one with symbolic sizes can't be until it is loaded."""
        return self.numbers or self.graph

    @property
    def state(self) -> dict[str, Any]:
        """The state to save and to run it with."""
        return self.source.state if self.objects else {}


Make = Callable[[], Program]


def _of(function: Callable[..., Any], *arguments: Any) -> Make:
    """A program of arrays alone."""

    def make() -> Program:
        arrays = tuple(x if isinstance(x, jax.Array) else jnp.asarray(x) for x in arguments)
        return Program(jg.function(function).graph(*arrays), arrays)

    return make


def _floats(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    found = np.random.default_rng(seed).uniform(low, high, shape)
    return found.astype(np.float32)


def _whole(limit: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, limit, shape, dtype=np.int32)


def leaves_of(function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    """Return a function whose result is a list of arrays; the keys among them become numbers."""

    @functools.wraps(function)
    def flat(*args: Any) -> list[jax.Array]:
        def number(x: jax.Array) -> jax.Array:
            is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            return jax.random.key_data(x) if is_key else x

        return [number(x) for x in jax.tree.leaves(function(*args))]

    return flat


def gradient_of(function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    """Return the gradient of the sum of a function's float results, for its float arguments."""

    def gradient(*args: Any) -> list[jax.Array]:
        is_float = [jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact) for x in args]

        def of_floats(floats: list[Any]) -> list[jax.Array]:
            rest = iter(floats)
            given = [next(rest) if f else x for x, f in zip(args, is_float, strict=True)]
            found = jax.tree.leaves(function(*given))
            return [x for x in found if jnp.issubdtype(x.dtype, jnp.inexact)]

        found, pull = jax.vjp(of_floats, [x for x, f in zip(args, is_float, strict=True) if f])
        return pull([jnp.ones_like(x) for x in found])[0]

    return gradient


# Networks.


def _labels() -> np.ndarray:
    return np.array([0, 2, 1, 1], np.int32)


def lite0(size: int, *, train: bool = False, batch: int = 2) -> Program:
    """EfficientNet-Lite0 for three classes; a graph of its logits."""
    model = jg.models.create("efficientnet_lite0", num_classes=3, rngs=nnx.Rngs(0))
    model.train() if train else model.eval()
    x = jnp.asarray(_floats(batch, size, size, 3))
    return Program(jg.function(call).graph(model, x), (x,), (model,))


def call(model: Any, x: jax.Array) -> jax.Array:
    return model(x)


def _lite0_gradient() -> Program:
    model = jg.models.create("efficientnet_lite0", num_classes=3, rngs=nnx.Rngs(0))
    model.train()
    x, labels = jnp.asarray(_floats(4, 64, 64, 3)), jnp.asarray(_labels())

    def loss(model: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.sparse_softmax_cross_entropy(model(x), labels).mean()

    def gradient(model: Any, x: jax.Array, labels: jax.Array) -> Any:
        value, found = nnx.value_and_grad(loss)(model, x, labels)
        return value, jax.tree.leaves(found)

    return Program(jg.function(gradient).graph(model, x, labels), (x, labels), (model,))


def _gpt_model(dropout: float) -> Any:
    sizes = jg.models.GPTConfig(
        vocab_size=24, context=8, width=16, depth=2, heads=2, dropout=dropout
    )
    return jg.models.GPT(sizes, rngs=nnx.Rngs(0))


def _gpt() -> Program:
    model, tokens = _gpt_model(0.0), jnp.asarray(_whole(24, 2, 8))
    return Program(jg.function(call).graph(model, tokens), (tokens,), (model,))


def _gpt_step() -> Program:
    model, tokens = _gpt_model(0.1), jnp.asarray(_whole(24, 2, 9))

    def loss(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits = model(batch["tokens"][:, :-1])
        return losses.sparse_softmax_cross_entropy(logits, batch["tokens"][:, 1:])

    step = make_step(model, loss, optax.adamw(1e-3), compute_dtype=jnp.bfloat16)
    batch = {"tokens": tokens}
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in int32
        graph = step.graph(batch)
    return Program(graph, (batch,), (model,))


def _recurrent() -> Program:
    model = nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    x = jnp.asarray(_floats(2, 5, 3))
    return Program(jg.function(call).graph(model, x), (x,), (model,))


NETWORKS: dict[str, Make] = {
    "lite0": lambda: lite0(32),
    # Larger: statistics of a few values turn rounding into noise.
    "lite0 train": lambda: lite0(64, train=True, batch=4),
    "lite0 gradient": _lite0_gradient,
    "gpt": _gpt,
    "gpt step": _gpt_step,
    "lstm": _recurrent,
}

# Losses.

_LOGITS, _CLASSES = _floats(4, 3), np.array([0, 2, 1, 1], np.int32)
_P, _Q = (np.random.default_rng(i).dirichlet([1, 1, 1], 4).astype(np.float32) for i in (1, 2))
_FIRST, _SECOND, _THIRD = (_floats(4, 5, seed=i) for i in range(3, 6))
_YES = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]], np.int32)
_LOC, _TARGETS, _COUNTS = _floats(4), _floats(4, seed=7), _whole(5, 4)
_SCALE = _floats(4, seed=8, low=0.5)
_LOSSES: dict[str, tuple[Any, ...]] = {
    "sparse_softmax_cross_entropy": (_LOGITS, _CLASSES),
    "softmax_cross_entropy": (_LOGITS, _P),
    "linear_softmax_cross_entropy": (_FIRST, _floats(5, 3), _CLASSES),
    "sigmoid_cross_entropy": (_LOGITS, _YES),
    "weighted_cross_entropy": (_LOGITS, _YES, np.float32(2.0)),
    "focal": (_LOGITS, _YES),
    "multiclass_focal": (_LOGITS, _CLASSES),
    "hinge": (_LOGITS, _YES),
    "multiclass_hinge": (_LOGITS, _CLASSES),
    "euclidean": (_LOGITS, _P),
    "ordinal": (_LOGITS, _CLASSES),
    "proportional_odds": (_LOC, _CLASSES, np.array([-1.0, 1.0], np.float32)),
    "normal_nll": (_LOC, _TARGETS, _SCALE),
    "laplace_nll": (_LOC, _TARGETS, _SCALE),
    "student_t_nll": (_LOC, _TARGETS, np.float32(3.0), _SCALE),
    "poisson_nll": (_LOC, _COUNTS),
    "huber": (_LOC, _TARGETS),
    "kl_divergence": (_P, _Q),
    "js_divergence": (_P, _Q),
    "wasserstein1": (_P, _Q),
    "info_nce": (_FIRST, _SECOND),
    "nt_xent": (_FIRST, _SECOND),
    "triplet": (_FIRST, _SECOND, _THIRD),
    "contrastive": (_FIRST, _SECOND, np.array([1, 0, 1, 0], np.int32)),
    "accuracy": (_LOGITS, _CLASSES),
    "auc": (_LOGITS, _YES),
    "binary_confusion_matrix": (_LOGITS, _YES),
    "confusion_matrix": (_LOGITS, _CLASSES),
    "calibration_error": (_LOGITS, _CLASSES),
    "class_weights": (_CLASSES, np.array([1.0, 2.0, 3.0], np.float32)),
    "ignore": (_CLASSES,),
    "mean": (_LOC, _SCALE),
    "perplexity": (_SCALE,),
    "normal_log_prior": (_FIRST,),
    "laplace_log_prior": (_FIRST,),
}
_LAWS = (losses.Normal, losses.Laplace)
_MORE_LOSSES: dict[str, tuple[Any, ...]] = {
    "smoothed": (
        lambda z, y: losses.sparse_softmax_cross_entropy(
            z, y, label_smoothing=0.1, temperature=2.0, z_loss=0.1
        ),
        _LOGITS,
        _CLASSES,
    ),
    "in chunks": (
        lambda x, w, y: losses.linear_softmax_cross_entropy(
            x, w, y, chunk=2, over="vocabulary", label_smoothing=0.1, z_loss=0.1, softcap=5.0
        ),
        *(_FIRST, _floats(5, 3), _CLASSES),
    ),
    "renyi_divergence": (lambda p, q: losses.renyi_divergence(p, q, 0.5), _P, _Q),
    "top_k_accuracy": (lambda z, y: losses.top_k_accuracy(z, y, k=2), _LOGITS, _CLASSES),
    "map_objective": (
        lambda z, y, w: losses.map_objective(
            losses.mean(losses.sparse_softmax_cross_entropy(z, y)), losses.normal_log_prior(w), 10
        ),
        *(_LOGITS, _CLASSES, _FIRST),
    ),
    "last_layer_laplace": (
        lambda x, w: losses.last_layer_laplace(x, w, prior_scale=1.0),
        *(_FIRST, _floats(5, 3)),
    ),
    "nll": (
        lambda m, s, y: [losses.nll(law(m, s), y) for law in _LAWS],
        *(_LOC, _SCALE, _TARGETS),
    ),
    "nll of counts": (lambda r, y: losses.nll(losses.Poisson(r), y), _LOC, _COUNTS),
    "nll of student": (
        lambda m, s, y: losses.nll(losses.StudentT(jnp.float32(3), m, s), y),
        *(_LOC, _SCALE, _TARGETS),
    ),
    "entropy": (
        lambda z, m, s: [
            losses.entropy(losses.Categorical(z)),
            losses.entropy(losses.Bernoulli(z)),
            losses.entropy(losses.Normal(m, s)),
        ],
        *(_LOGITS, _LOC, _SCALE),
    ),
    "kl": (
        lambda a, b: [
            losses.kl(losses.Categorical(a), losses.Categorical(b)),
            losses.cross_entropy(losses.Categorical(a), losses.Categorical(b)),
        ],
        *(_LOGITS, _floats(4, 3, seed=9)),
    ),
}


_WITHOUT_GRADIENT = {
    f"loss {name}"
    for name in (
        *("accuracy", "top_k_accuracy", "auc", "binary_confusion_matrix", "confusion_matrix"),
        *("calibration_error", "class_weights", "ignore"),
    )
}


def _losses() -> Iterator[tuple[str, Make]]:
    for name, arguments in _LOSSES.items():
        yield from _with_gradient(f"loss {name}", getattr(losses, name), *arguments)
    for name, (function, *arguments) in _MORE_LOSSES.items():
        yield from _with_gradient(f"loss {name}", function, *arguments)


def _with_gradient(name: str, function: Any, *arguments: Any) -> Iterator[tuple[str, Make]]:
    yield name, _of(leaves_of(function), *arguments)
    if name not in _WITHOUT_GRADIENT:
        yield f"{name}, gradient", _of(gradient_of(function), *arguments)


# Optimizers.

_SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)
_OPTIMIZERS: dict[str, Callable[[], Any]] = {
    **{
        name: functools.partial(getattr(optax, name), 0.1)
        for name in (
            *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw"),
            *("adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw"),
            *("novograd", "optimistic_gradient_descent", "radam", "rmsprop"),
            *("rprop", "sgd", "sign_sgd", "sm3", "yogi"),
        )
    },
    "momentum": lambda: optax.sgd(_SCHEDULE, momentum=0.9, nesterov=True),
    "chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_noise(0.1, 0.5, 0),
        optax.add_decayed_weights(0.1),
        optax.adam(_SCHEDULE),
        optax.ema(0.9),
    ),
    "clip": lambda: optax.chain(
        optax.clip(0.5), optax.adaptive_grad_clip(0.1), optax.clip_by_block_rms(0.5), optax.sgd(0.1)
    ),
    "finite": lambda: optax.apply_if_finite(optax.adam(0.1), 5),
    "accumulated": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "lookahead": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=_SCHEDULE),
    "muon": lambda: optax.contrib.muon(0.1),
    "lbfgs": lambda: optax.scale_by_lbfgs(memory_size=2),
}


def _updates(make: Callable[[], Any]) -> Make:
    def program() -> Program:
        with jax.numpy_dtype_promotion("standard"):
            optimizer = make()
            params = {"kernel": jnp.asarray(_floats(4, 6)), "bias": jnp.asarray(_floats(6, seed=1))}
            leaves, structure = jax.tree.flatten((optimizer.init(params), params, params))
        is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
        numbers = [jax.random.key_data(x) if k else x for x, k in zip(leaves, is_key, strict=True)]

        def update(*numbers: jax.Array) -> list[jax.Array]:
            pairs = zip(numbers, is_key, strict=True)
            leaves = [jax.random.wrap_key_data(x) if k else x for x, k in pairs]
            state, gradients, params = jax.tree.unflatten(structure, leaves)
            updates, state = optimizer.update(gradients, state, params)
            return jax.tree.leaves((optax.apply_updates(params, updates), state))

        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in int32
            return _of(leaves_of(update), *numbers)()

    return program


# Operations.

_X, _M, _I = _floats(4) + 2.5, _floats(4, 3), np.array([0, 2, 2], np.int32)
_PICTURE = _floats(1, 6, 6, 2)


def _elementwise(x: Any) -> Any:
    y = x * 0.1
    return (
        *(jnp.sin(x), jnp.cos(x), jnp.tan(x), jnp.arcsin(y), jnp.arccos(y), jnp.arctan(x)),
        *(jnp.sinh(y), jnp.cosh(y), jnp.tanh(x), jnp.arcsinh(x), jnp.arccosh(x + 1)),
        *(jnp.arctanh(y), jnp.exp(y), jnp.exp2(y), jnp.expm1(y), jnp.log(x), jnp.log1p(x)),
        *(jnp.sqrt(x), lax.rsqrt(x), jnp.cbrt(x), jnp.square(x), lax.integer_pow(x, 5), x**y),
        *(jnp.abs(-x), jnp.maximum(x, 2.0), jnp.minimum(x, 2.0), x % 2.0, jnp.arctan2(x, y)),
        *(lax.erf(y), lax.erfc(y), lax.erf_inv(y), lax.lgamma(x), lax.digamma(x), -x / y),
        *(jax.nn.gelu(x), jax.nn.silu(x), jax.nn.relu6(x), jax.nn.elu(x), jax.nn.softplus(x)),
        *(jax.nn.log_softmax(x), jax.nn.softmax(x), jax.nn.logsumexp(x), jax.nn.selu(x)),
        *(jax.nn.hard_swish(x), jax.nn.leaky_relu(x), jax.nn.celu(x), jnp.clip(x, 0.0, 1.0)),
        *(jnp.logaddexp(x, y), jnp.nan_to_num(x), jnp.where(x > 2, x, y), jnp.hypot(x, y)),
    )


def _whole_numbers(x: Any) -> Any:
    n, u = x.astype(jnp.int32), x.astype(jnp.uint32)
    two = jnp.full_like(u, 2)
    return (
        *(jnp.floor(x), jnp.ceil(x), jnp.round(x), jnp.trunc(x), jnp.sign(x), jnp.isnan(x)),
        *(n // 3, n % 3, n & 1, n | 1, n ^ 1, ~n, u << two, u >> two, n >> 1, x > 1, x != x),
        *(lax.population_count(u), lax.clz(u), lax.bitcast_convert_type(x, jnp.int32)),
        *(jnp.isfinite(x), (x > 2) & (x < 3), x == x, x >= 2, x <= 2, jnp.nextafter(x, -x)),
        *((x > 0).all(), (x > 5).any(), n.argmax(), x.argmin(), n.max(), n.min(), n.sum()),
        lax.reduce_precision(x, 5, 10),
        jnp.searchsorted(jnp.sort(x), x),
    )


def _special(x: Any) -> Any:
    return lax.igamma(x, x), lax.igammac(x, x), lax.betainc(x, x, 0.1 * x)


def _reductions(m: Any) -> Any:
    return (
        *(m.sum(0), m.prod(1), m.max(0), m.min(1), m.mean(), m.std(0), m.var()),
        *(jnp.cumsum(m, 0), jnp.cumprod(m, 1), lax.cummax(m), lax.cummin(m, axis=1)),
        *(lax.cumlogsumexp(m), lax.cumsum(m, axis=1, reverse=True), jnp.median(m)),
        lax.associative_scan(jnp.multiply, m),
    )


def _shapes(m: Any) -> Any:
    return (
        *(m.T, m.reshape(-1), m[::-1], m[1:3, ::2], jnp.pad(m, 1), jnp.roll(m, 1, 0), m[None]),
        *(jnp.concatenate([m, m], 1), jnp.stack([m, m]), jnp.split(m, 2), jnp.tile(m, (2, 1))),
        *(jnp.repeat(m, 2, 0), m[:, :1] * jnp.ones((4, 3)), jnp.diagonal(m), jnp.triu(m)),
        *(
            jnp.arange(3),
            jnp.linspace(0, 1, 4),
            jnp.eye(3),
            lax.pad(m, 0.0, [(1, 0, 1), (-1, 0, 0)]),
        ),
        *(jnp.unstack(m), jnp.squeeze(m[:1]), jnp.flip(m, 1), jnp.broadcast_to(m, (2, 4, 3))),
        jax.image.resize(m, (8, 6), "bilinear"),
    )


def _gather(x: Any, m: Any, i: Any) -> Any:
    return (
        *(x[i], m[i, i[:1]], m[i[:2]], m.at[i].get(mode="fill", fill_value=7.0), x[i[0]]),
        *(m.at[i].get(mode="clip"), jnp.take_along_axis(m, i[None], 0), jnp.take(m, i, 1)),
        jax.vmap(lambda row, at: row[at])(m[:3], i),
        lax.dynamic_slice(m, (i[0], i[1]), (2, 1)),
        lax.dynamic_index_in_dim(m, i[1], 0),
    )


def _scatter(x: Any, m: Any, i: Any) -> Any:
    rows = jnp.ones((3, 3))
    return (
        *(x.at[i].set(x[:3]), x.at[i].add(x[:3]), x.at[i].subtract(x[:3]), x.at[i[:2]].min(x[:2])),
        *(
            x.at[i[:2]].multiply(x[:2], unique_indices=True),
            x.at[i[:2]].max(x[:2]),
            m.at[i].add(rows, mode="drop"),
        ),
        *(
            m.at[i, i].add(x[:3]),
            m.at[1:3].set(0.0),
            m.at[:2].set(m[1:3]),
            m.at[i[:2]].set(rows[:2]),
        ),
        jax.vmap(lambda row, at: row.at[at].add(1.0))(m[:3], i),
        lax.dynamic_update_slice(m, rows[:2, :1], (i[0], i[1])),
    )


def _loops(x: Any) -> Any:
    return (
        lax.scan(lambda c, a: (c + a, c * a), jnp.float32(0), x),
        lax.scan(lambda c, a: (c * a, c), x[0], x, reverse=True, unroll=2),
        lax.fori_loop(0, 3, lambda i, c: c * (i + 1).astype(x.dtype), x),
        lax.map(jnp.sin, x),
        lax.scan(lambda c, _: (c * x, None), x, None, length=2),
    )


def _while(x: Any) -> Any:
    limit = x.sum() * 3
    return lax.while_loop(lambda c: c[1].sum() < limit, lambda c: (c[0] + 1, c[1] * x), (0, x))


def _branches(x: Any) -> Any:
    number = x.astype(jnp.int32)[1] % 3
    return (
        lax.cond(x[0] > 2, lambda y: y * 2, lambda y: -y, x),
        lax.switch(number, [jnp.sin, jnp.cos, lambda y: y * y], x),
        jax.vmap(lambda a: lax.cond(a > 2, jnp.sin, jnp.cos, a))(x),
    )


def _order(x: Any, m: Any, i: Any) -> Any:
    return (
        *(jnp.sort(m, 0), jnp.argsort(x), lax.top_k(m, 2), jnp.lexsort((x, -x)), jnp.sort(-i)),
        *(lax.sort((i, x[:3]), num_keys=1), jnp.argsort(-x, descending=True)),
    )


def _random(seed: Any, logits: Any) -> Any:
    keys = jax.random.split(jax.random.key(seed), 10)
    draw = jax.random
    return (
        *(
            draw.normal(keys[0], (3,)),
            draw.uniform(keys[1], (3,)),
            draw.bernoulli(keys[2], 0.5, (3,)),
        ),
        *(draw.categorical(keys[3], logits), draw.permutation(keys[4], logits)),
        *(draw.randint(keys[5], (3,), 0, 9), draw.truncated_normal(keys[6], -1.0, 1.0, (3,))),
        *(
            draw.fold_in(keys[7], seed),
            keys,
            draw.gumbel(keys[8], (2,)),
            draw.choice(keys[9], logits),
        ),
        *(jax.vmap(lambda k: draw.normal(k, (2,)))(keys), draw.bits(keys[0], (3,), "uint8")),
        draw.key_data(draw.wrap_key_data(draw.key_data(keys[1]))),
        draw.normal(draw.PRNGKey(seed), (2,)),
    )


def _products(x: Any, m: Any) -> Any:
    return (
        *(jnp.einsum("i,ij->j", x, m), jnp.einsum("ij,kj->ik", m, m), jnp.einsum("ij,ij->i", m, m)),
        *(m.T @ m, jnp.einsum("ij,ik,il->jkl", m, m, m), jnp.tensordot(m, m, 2)),
        *(jnp.outer(x, x), jnp.vdot(x, x), jnp.dot(m.T, m, precision="highest")),
        jnp.dot(m.T, m, preferred_element_type=jnp.float32),
    )


def _half(m: Any) -> Any:
    b = m.astype(jnp.bfloat16)
    return (
        *(b.T @ b, jnp.dot(b.T, b, preferred_element_type=jnp.float32), b.sum(0), jax.nn.gelu(b)),
        *(jnp.sin(b), jax.nn.softmax(b), b.astype(jnp.float16), b * b[:1, :1], jnp.cumsum(b, 0)),
    )


def _pools(x: Any) -> Any:
    window = lax.reduce_window
    return (
        *(
            nnx.max_pool(x, (2, 2), (2, 2)),
            window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"),
        ),
        *(nnx.min_pool(x, (2, 2), (2, 2)), nnx.max_pool(x, (3, 3), (2, 2), "SAME")),
        window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 2, 1)),
    )


def _convolutions(x: Any, k: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=numbers)
    return (
        conv(x, k, (1, 1), "SAME"),
        conv(x, k, (2, 2), "VALID", rhs_dilation=(2, 2)),
        conv(x, k[:, :, :1], (1, 1), [(1, 0), (0, 2)], feature_group_count=2),
        lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=numbers),
    )


def _algebra(m: Any) -> Any:
    square = m.T @ m + jnp.eye(3)
    lower = jnp.linalg.cholesky(square)
    return (
        lower,
        jax.scipy.linalg.solve_triangular(lower, m.T, lower=True),
        lax.linalg.lu(square)[0],
        *jnp.linalg.qr(m),
    )


def _systems(m: Any) -> Any:
    square = m.T @ m + jnp.eye(3) + jnp.triu(jnp.ones((3, 3)))
    symmetric = square + square.T
    return (
        *(jnp.linalg.solve(square, m.T), jnp.linalg.inv(square), jnp.linalg.det(square)),
        jax.scipy.sparse.linalg.cg(lambda v: symmetric @ v, m[0])[0],
    )


def _spectra(x: Any) -> Any:
    return jnp.fft.irfft(jnp.fft.rfft(x) * 2), jnp.abs(jnp.fft.fft(x)), jnp.fft.ifft(x).imag


def _platforms(x: Any) -> Any:
    on_cpu = lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)
    return on_cpu, lax.platform_dependent(x, cuda=jnp.sin, tpu=jnp.sin, default=jnp.cos)


def _polynomials(x: Any) -> Any:
    return jnp.polyval(x, x), jnp.polyval(jnp.asarray([1.0, -2.0, 0.5]), x)


def _rematerialised(x: Any) -> Any:
    return jax.checkpoint(lambda y: jnp.sin(jnp.sin(y)) * y)(x)


def _complex(x: Any, y: Any) -> Any:
    z = lax.complex(x, y)
    return (
        *(z * z, jnp.abs(z), z.real, z.imag, jnp.conj(z), jnp.exp(z * 0.1), z.sum(), z / (z + 1)),
        *(jnp.outer(z, z), jnp.angle(z)),
    )


@jax.custom_jvp
def straight_through(x: jax.Array) -> jax.Array:
    """Round, with the derivative 1."""
    return jnp.round(x)


straight_through.defjvp(lambda primals, tangents: (jnp.round(primals[0]), tangents[0]))


@jax.custom_vjp
def clipped(x: jax.Array) -> jax.Array:
    """Return x; its gradient is clipped to 0.5."""
    return x * 1


clipped.defvjp(lambda x: (x * 1, None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))


@jax.custom_jvp
def recursive(x: jax.Array) -> jax.Array:
    """The exponential, whose rule calls itself."""
    return jnp.exp(x)


@recursive.defjvp
def _recursive_rule(primals: Any, tangents: Any) -> Any:
    y = recursive(*primals)
    return y, y * tangents[0]


def _own_rules(x: Any) -> Any:
    return straight_through(x * 1.3), clipped(x) * x, recursive(x * 0.1)


_OPERATIONS: dict[str, tuple[Any, ...]] = {
    "elementwise": (_elementwise, _X),
    "reductions": (_reductions, _M),
    "shapes": (_shapes, _M),
    "gather": (_gather, _X, _M, _I),
    "scatter": (_scatter, _X, _M, _I),
    "loops": (_loops, _X),
    "branches": (_branches, _X),
    "order": (_order, _X, _M, _I),
    "products": (_products, _X, _M),
    "half precision": (_half, _M),
    "pools": (_pools, _PICTURE),
    "convolutions": (_convolutions, _PICTURE, _floats(3, 3, 2, 2)),
    "algebra": (_algebra, _M),
    "systems": (_systems, _M),
    "spectra": (_spectra, _X),
    "platforms": (_platforms, _X),
    "polynomials": (_polynomials, _X),
    "remat": (_rematerialised, _X),
    "complex": (
        lambda x, y: [f(v) for v in _complex(x, y) for f in (jnp.real, jnp.imag)],
        _X,
        _X + 1,
    ),
    "own rules": (_own_rules, _X),
}


def _symbolic(
    function: Any, shapes: Sequence[str], arguments: Sequence[np.ndarray], constraints: Any = ()
) -> Make:
    def make() -> Program:
        scope = jax.export.SymbolicScope(constraints)
        structs = [
            jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), x.dtype)
            for shape, x in zip(shapes, arguments, strict=True)
        ]
        arrays = tuple(map(jnp.asarray, arguments))
        numbers = jg.function(function).graph(*arrays)
        return Program(jg.function(function).graph(*structs), arrays, numbers=numbers)

    return make


def _picture_network(x: Any, kernel: Any) -> Any:
    x = lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = nnx.max_pool(jax.nn.relu(x), (2, 2), (2, 2))
    return x.reshape(x.shape[0], -1).sum(1), x.mean((1, 2))


def _symbolic_lite0() -> Program:
    model = jg.models.create("efficientnet_lite0", num_classes=3, rngs=nnx.Rngs(0))
    model.eval()
    x = jnp.asarray(_floats(2, 32, 64, 3))
    shape = jax.export.symbolic_shape("b, 32*h, 32*w, 3", constraints=["h >= 1", "w >= 1"])
    graph = jg.function(call).graph(model, jax.ShapeDtypeStruct(shape, x.dtype))
    return Program(graph, (x,), (model,), numbers=jg.function(call).graph(model, x))


OPERATIONS: dict[str, Make] = {
    **dict(
        item
        for name, (function, *arguments) in _OPERATIONS.items()
        for item in _with_gradient(name, function, *arguments)
    ),
    "whole numbers": _of(_whole_numbers, _X),
    "while": _of(_while, _X),
    "special": _of(_special, _X),
    "special, gradient": _of(gradient_of(lambda x: (lax.igamma(x, x), lax.digamma(x))), _X),
    "random": _of(leaves_of(_random), np.int32(3), _X),
    "complex arrays": _of(_complex, _X, _X + 1),
    "symbolic": _symbolic(
        lambda x: (x.sum(0), x * jnp.float32(x.shape[0]), jnp.arange(x.shape[1])),
        ["b, 2*n + 1"],
        [_floats(3, 5)],
    ),
    "symbolic picture": _symbolic(
        _picture_network,
        ["b, 32*h, 32*w, 3", "3, 3, 3, 4"],
        [_floats(2, 32, 64, 3), _floats(3, 3, 3, 4)],
        ["h >= 1", "w >= 1", "w <= 4"],
    ),
}

CORPUS: dict[str, Make] = {
    **NETWORKS,
    "lite0 symbolic": _symbolic_lite0,
    **dict(_losses()),
    **{f"optimizer {name}": _updates(make) for name, make in _OPTIMIZERS.items()},
    **OPERATIONS,
}

LARGE = ("lite0 train", "lite0 gradient", "lite0 symbolic")
"""What takes seconds to compile."""
