"""FLOPs against XLA's own analysis of the same program, and against formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from jgraph import models
from jgraph.graph._flops import flops, total_flops
from jgraph.graph._ops import ops_of


def ours(f, *args):
    return total_flops(jax.make_jaxpr(f)(*args))


def xla(f, *args):
    costs = jax.jit(f).lower(*args).cost_analysis()
    assert costs is not None
    return costs["flops"]


@pytest.mark.parametrize(
    ("spec", "a", "b"),
    [
        ("ij,jk->ik", (5, 7), (7, 11)),
        ("bij,bjk->bik", (3, 5, 7), (3, 7, 2)),
        ("bhqd,bkhd->bhqk", (2, 4, 5, 8), (2, 6, 4, 8)),
        ("i,i->", (9,), (9,)),
    ],
)
def test_products_cost_what_xla_says(spec, a, b):
    f = lambda x, y: jnp.einsum(spec, x, y)  # noqa: E731
    assert ours(f, jnp.ones(a), jnp.ones(b)) == xla(f, jnp.ones(a), jnp.ones(b))


@pytest.mark.parametrize(
    ("size", "kernel", "options"),
    [
        ((2, 9, 9, 6), (3, 3, 6, 4), {}),
        ((2, 9, 8, 6), (3, 2, 6, 4), {"window_strides": (2, 3)}),
        ((2, 9, 9, 6), (5, 5, 6, 4), {"padding": "VALID"}),
        ((2, 9, 9, 6), (3, 3, 3, 4), {"feature_group_count": 2}),
        ((2, 9, 9, 6), (3, 3, 1, 6), {"feature_group_count": 6, "window_strides": (2, 2)}),
        ((2, 11, 11, 6), (3, 3, 6, 4), {"rhs_dilation": (2, 3)}),
        ((2, 5, 5, 6), (3, 3, 6, 4), {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))}),
        ((4, 9, 9, 6), (3, 3, 6, 4), {"batch_group_count": 2}),
        ((1, 3, 3, 1), (7, 7, 1, 1), {"padding": ((9, 9), (9, 9))}),
        ((1, 9, 9, 2), (3, 3, 2, 2), {"padding": ((-2, 0), (0, -3))}),
    ],
)
def test_convolutions_cost_what_xla_says(size, kernel, options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options

    def f(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)

    assert ours(f, jnp.ones(size), jnp.ones(kernel)) == xla(f, jnp.ones(size), jnp.ones(kernel))


def test_a_convolution_counts_only_taps_on_real_inputs():
    # 4 outputs of 3 taps each; the first and the last reach over the edge by one.
    def f(x, w):
        return lax.conv(x, w, (1,), "SAME")

    assert ours(f, jnp.ones((1, 1, 4)), jnp.ones((1, 1, 3))) == 2 * (2 + 3 + 3 + 2)


def mlp_step(params, opt_state, x, labels):
    def loss(params):
        h = x
        for w in params[:-1]:
            h = jax.nn.relu(h @ w)
        logits = h @ params[-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its counter with floats
        updates, opt_state = optax.adam(1e-3).update(gradients, opt_state, params)
    return value, optax.apply_updates(params, updates), opt_state


def test_a_training_step_is_within_five_percent_of_xla():
    sizes = [(64, 256), (256, 256), (256, 10)]
    params = [jnp.ones(size) for size in sizes]
    args = (params, optax.adam(1e-3).init(params), jnp.ones((128, 64)), jnp.ones(128, jnp.int32))
    assert ours(mlp_step, *args) == pytest.approx(xla(mlp_step, *args), rel=0.05)


def test_efficientnet_lite0_is_within_five_percent_of_xla():
    model = models.create("efficientnet_lite0", rngs=nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)

    def f(state, x):
        return nnx.merge(graph, state)(x)

    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    count = ours(f, state, x)
    assert count == pytest.approx(xla(f, state, x), rel=0.05)
    # The paper's table has 407 M multiply-adds, padding counted and elementwise work left out.
    assert count == pytest.approx(2 * 407e6, rel=0.05)


def test_elementwise_reductions_and_moves():
    x = jnp.ones((4, 6))
    assert ours(lambda x: x * x + 1.0, x) == 48
    assert ours(jnp.exp, x) == 24
    assert ours(lambda x: lax.reduce_max(x, axes=(0,)), x) == 24
    assert ours(lambda x: x.T.reshape(3, 8)[:2].astype(jnp.int32), x) == 0
    assert ours(lambda x: lax.cumsum(x, axis=1), x) == 24


def test_control_flow():
    w = jnp.ones((3, 3))
    once = 2 * 27

    def scanned(w):
        return lax.scan(lambda c, _: (c @ w, None), w, None, length=5)[0]

    def branched(w):
        return lax.cond(w[0, 0] > 0, lambda w: w, lambda w: w @ w @ w, w)

    def nested(w):
        return lax.scan(lambda c, _: (scanned(c), None), w, None, length=2)[0]

    def looped(w):
        return lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, c[1] @ w), (0, w))[1]

    assert ours(scanned, w) == 5 * once
    assert ours(branched, w) == 1 + 2 * once
    assert ours(nested, w) == 10 * once
    assert ours(looped, w) == once + 2  # one round, its comparison and its counter
    assert ours(jax.checkpoint(scanned), w) == ours(jax.jit(scanned), w) == 5 * once


def test_a_shard_map_costs_its_body_on_every_device():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    f = jax.shard_map(lambda x: x * x, mesh=mesh, in_specs=spec, out_specs=spec)
    assert ours(f, jnp.ones((8, 3))) == 24


@pytest.mark.parametrize("f", [mlp_step])
def test_operations_sum_to_the_program(f):
    params = [jnp.ones((8, 16)), jnp.ones((16, 4))]
    args = (params, optax.adam(1e-3).init(params), jnp.ones((5, 8)), jnp.ones(5, jnp.int32))
    program = jax.make_jaxpr(f)(*args)
    assert sum(op.total_flops for op in ops_of(program)) == total_flops(program)


def test_a_linear_solve_is_counted():
    n = 30
    a = jnp.eye(n)
    (cholesky,) = (
        flops(eqn)
        for eqn in jax.make_jaxpr(lambda a: lax.linalg.cholesky(a, symmetrize_input=False))(a).eqns
        if eqn.primitive.name == "cholesky"
    )
    assert np.isclose(cholesky, n**3 / 3)
