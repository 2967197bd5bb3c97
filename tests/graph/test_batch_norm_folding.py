"""Scales and shifts of channels go into the convolution before them, and nothing else does."""

import functools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jgraph.graph._passes import fold_batch_norms

IMAGES = ("NHWC", "HWIO", "NHWC")
LAYER = ((4, 16, 16, 3), (3, 3, 3, 4))
# What each convolution is given: shapes of x and of the kernel, options; 32 results for each
# number of the kernel, at least.
CONVOLUTIONS = {
    "dense": (*LAYER, {}),
    "strided": ((4, 33, 33, 3), (3, 3, 3, 4), {"window_strides": (2, 2)}),
    "pointwise": ((2, 16, 16, 9), (1, 1, 9, 12), {}),
    "depthwise": ((2, 16, 16, 8), (3, 3, 1, 8), {"feature_group_count": 8}),
    "multiplied": ((2, 16, 16, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
    "grouped": ((4, 16, 16, 6), (3, 3, 3, 4), {"feature_group_count": 2}),
    "groups of the batch": ((4, 24, 24, 2), (3, 3, 2, 6), {"batch_group_count": 2}),
    "dilated": ((4, 16, 16, 3), (3, 3, 3, 4), {"rhs_dilation": (2, 3)}),
    "transposed": ((2, 12, 12, 3), (3, 3, 3, 4), {"lhs_dilation": (2, 2)}),
    "channels first": (
        (4, 3, 16, 16),
        (4, 3, 3, 3),
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ),
    "channels between": (
        (16, 16, 3, 4),
        (3, 4, 3, 3),
        {"dimension_numbers": ("HWCN", "IOHW", "NHCW")},
    ),
    "of one axis": ((8, 64, 3), (3, 3, 4), {"dimension_numbers": ("NWC", "WIO", "NWC")}),
    "of three axes": (
        (3, 6, 7, 8, 3),
        (2, 2, 2, 3, 4),
        {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
    ),
}


def convolve(x, kernel, **options):
    spatial = x.ndim - 2
    given = {"window_strides": (1,) * spatial, "padding": "SAME", "dimension_numbers": IMAGES}
    if "lhs_dilation" in options:
        given["padding"] = [(1, 2)] * spatial
    return lax.conv_general_dilated(x, kernel, **given | options)


def channels_of(options):
    return options.get("dimension_numbers", IMAGES)[2].index("C")


def normalise(y, v, axis=-1):
    """Apply BatchNorm in evaluation mode, as NNX writes it; v is (4, C)."""
    v = jnp.expand_dims(v, [1 + i for i in range(y.ndim) if i != axis % y.ndim])
    mean, var, scale, bias = v
    return (y - mean) * (lax.rsqrt(var + 1e-5) * scale) + bias


def count(program):
    """Count what was folded, in bodies too: each has its own barrier."""
    if isinstance(program, (list, tuple)):
        return sum(map(count, program))
    if not isinstance(program, (Jaxpr, ClosedJaxpr)):
        return 0
    here = sum(eqn.primitive.name == "optimization_barrier" for eqn in program.eqns)
    return here + sum(count(list(eqn.params.values())) for eqn in program.eqns)


def evaluated(program):
    return jax.jit(functools.partial(jax.core.eval_jaxpr, program.jaxpr, program.consts))


def draw(*shapes, dtype="float32"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def statistics(channels, dtype="float32"):
    """Mean, variance, scale and bias."""
    (v,) = draw((4, channels), dtype=dtype)
    return v.at[1].set(jnp.abs(v[1]) + 0.1)


def agree(body, *args, folded=1):
    """Fold a function of arrays; compare with itself as XLA computes it in float64."""
    after = fold_batch_norms(jax.make_jaxpr(body)(*args))
    assert count(after) == folded
    with jax.enable_x64(True):
        doubles = [np.asarray(x, "float64") for x in args]
        exact = jax.make_jaxpr(body)(*doubles)
        (true,) = evaluated(exact)(*doubles)
        (same,) = evaluated(fold_batch_norms(exact))(*doubles)
    scale = float(np.abs(true).max())
    np.testing.assert_allclose(same, true, rtol=0, atol=1e-10 * scale)
    (found,) = evaluated(after)(*args)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution(name):
    shape, window, options = CONVOLUTIONS[name]
    x, kernel = draw(shape, window)
    axis = channels_of(options)
    channels = jax.eval_shape(functools.partial(convolve, **options), x, kernel).shape[axis]
    v = statistics(channels)
    agree(lambda x, k, v: normalise(convolve(x, k, **options), v, axis), x, kernel, v)


# What may follow: y is the convolution's result, v (4, 1, 1, 1, C).
CHAINS = {
    "without a scale": lambda y, v: (y - v[0]) * lax.rsqrt(v[1]) + v[3],
    "without a bias": lambda y, v: (y - v[0]) * (lax.rsqrt(v[1]) * v[2]),
    "nothing but a scale": lambda y, v: y * v[2],
    "after a bias": lambda y, v: (y + v[3] - v[0]) * v[2] + v[3],
    "values first": lambda y, v: v[3] + v[2] * (v[0] + y),
    "from a value": lambda y, v: (v[0] - y) * v[2],
    "from a value, after a scale": lambda y, v: v[0] - (y * v[2] + v[3]),
    "divided": lambda y, v: (y - v[0]) / jnp.sqrt(v[1]) + v[3],
    "with numbers": lambda y, v: (2 * y + 0.5) * v[2] - 3,
    "repeated": lambda y, v: y * jnp.broadcast_to(v[2], y.shape) + jnp.broadcast_to(v[3], y.shape),
    "twice": lambda y, v: (y * v[2] + v[3]) * v[1] - v[0],
    "from one number for all": lambda y, v: y * v[2] + v[3, :, :, :, :1],
}


def of_channels(chain):
    return lambda x, kernel, v: chain(convolve(x, kernel), v[:, None, None, None])


@pytest.mark.parametrize("name", CHAINS)
def test_every_chain(name):
    x, kernel = draw(*LAYER)
    agree(of_channels(CHAINS[name]), x, kernel, statistics(4))


def test_what_follows_the_chain_stays():
    """It ends where something else is added, and where a result is taken twice."""

    def body(x, kernel, v):
        y = normalise(convolve(x, kernel), v) + x
        return (y * v[0, None, None, None]) * y

    x, kernel = draw((5, 16, 16, 4), (3, 3, 4, 4))
    agree(body, x, kernel, statistics(4))


# What isn't folded.


def trained(y, v):
    mean, var = y.mean((0, 1, 2), keepdims=True), y.var((0, 1, 2), keepdims=True)
    return (y - mean) * lax.rsqrt(var + 1e-5) * v[2] + v[3]


def with_two_uses(y, v):
    return y * v[2] + jnp.tanh(y)


def divisor(y, v):
    return v[0] / y


LEFT = {
    "training": trained,
    "two uses": with_two_uses,
    "by itself": lambda y, v: y * y,
    "squeeze and excite": lambda y, v: y * y.mean((1, 2), keepdims=True),
    "a divisor": divisor,
    "only shifts": lambda y, v: y - v[0] + v[3],
    "only a number": lambda y, v: y * 2 + v[3],
    "rows": lambda y, v: y * y.shape[1] * jnp.arange(16.0)[None, :, None, None],
    "repeated rows": lambda y, v: y * jnp.broadcast_to(jnp.ones((16, 1, 1)), y.shape),
    "a residual first": lambda y, v: (y + jnp.sin(jnp.arange(4096.0).reshape(y.shape))) * v[2],
    "a larger result": lambda y, v: y[..., :1] * v[2],
    "in between": lambda y, v: jnp.tanh(y) * v[2],
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name):
    program = jax.make_jaxpr(of_channels(LEFT[name]))(*draw(*LAYER), statistics(4))
    assert fold_batch_norms(program) is program


def test_a_result_that_is_returned_too():
    def body(x, kernel, v):
        y = convolve(x, kernel)
        return y, normalise(y, v)

    program = jax.make_jaxpr(body)(*draw(*LAYER), statistics(4))
    assert fold_batch_norms(program) is program


@pytest.mark.parametrize(
    ("dtypes", "options"),
    [
        (("bfloat16", "bfloat16", "bfloat16"), {}),
        (("bfloat16", "bfloat16", "float32"), {}),
        (("bfloat16", "bfloat16", "float32"), {"preferred_element_type": "float32"}),
        (("float32", "float32", "float32"), {"precision": "default"}),
        (("float32", "float32", "float32"), {"precision": "high"}),
    ],
)
def test_numbers_that_would_be_rounded_elsewhere(dtypes, options):
    args = [*draw(*LAYER), statistics(4)]
    args = [x.astype(dtype) for x, dtype in zip(args, dtypes, strict=True)]

    def body(x, kernel, v):
        return normalise(convolve(x, kernel, **options).astype(v.dtype), v)

    program = jax.make_jaxpr(body)(*args)
    assert fold_batch_norms(program) is program


def test_precision_highest_changes_nothing_on_a_cpu():
    x, kernel = draw(*LAYER)
    agree(
        lambda x, k, v: normalise(convolve(x, k, precision="highest"), v), x, kernel, statistics(4)
    )


@pytest.mark.parametrize(("size", "folded"), [(15, 0), (16, 1)])
def test_a_kernel_that_is_large_beside_the_result_is_not_scaled(size, folded):
    """The bound is 32 results for each number: 8 x 16 pixels, of 4 in the kernel."""
    x, kernel = draw((1, 8, size, 4), (1, 1, 4, 4))
    agree(lambda x, k, v: normalise(convolve(x, k), v), x, kernel, statistics(4), folded=folded)


def test_symbolic_sizes():
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.float32)
    program = jax.make_jaxpr(lambda x, k, v: normalise(convolve(x, k), v))(
        x, *draw((3, 3, 3, 4)), statistics(4)
    )
    assert fold_batch_norms(program) is program


# Bodies.


def layer(x, kernel, v):
    return normalise(convolve(x, kernel), v)


@jax.custom_jvp
def with_jvp(x, kernel, v):
    return layer(x, kernel, v)


with_jvp.defjvp(functools.partial(jax.jvp, layer))


def in_scan(x, kernel, v):
    return lax.scan(lambda c, k: (layer(c, k, v), None), x, jnp.stack([kernel, 2 * kernel]))[0]


def in_while(x, kernel, v):
    return lax.while_loop(lambda c: c.sum() < 0, lambda c: layer(c, kernel, v) + 1e5, x - 9)


def in_cond(x, kernel, v):
    return lax.cond(x.sum() > 0, layer, lambda x, k, v: layer(x, k, 2 * v), x, kernel, v)


def nested(x, kernel, v):
    return jax.jit(lambda x: in_scan(jax.checkpoint(layer)(x, kernel, v), kernel, v))(x)


BODIES = {
    "jit": (jax.jit(layer), 1),
    "scan": (in_scan, 1),
    "while": (in_while, 1),
    "cond": (in_cond, 2),
    "remat": (jax.checkpoint(layer), 1),
    "custom_jvp": (with_jvp, 1),
    "nested": (nested, 2),
}


@pytest.mark.parametrize("name", BODIES)
def test_every_body(name):
    body, folded = BODIES[name]
    agree(body, *draw((2, 24, 24, 4), (3, 3, 4, 4)), statistics(4), folded=folded)
