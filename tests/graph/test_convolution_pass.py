"""Where convolutions are rewritten, and where never: other platforms, files, pictures."""

import functools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jgraph import models
from jgraph.distribute import DataParallel
from jgraph.graph import Graph, function
from jgraph.graph._convolutions import compile_factor
from jgraph.graph._passes import fast_convolutions, run_passes


def depthwise(x, kernel):
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.fixture
def picture():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 8)), jnp.float32)


@pytest.fixture
def kernel():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 1, 8)), jnp.float32)


def in_scan(x, kernel):
    return lax.scan(lambda c, k: (depthwise(c, k), None), x, jnp.stack([kernel, 2 * kernel]))[0]


def in_while(x, kernel):
    return lax.while_loop(lambda c: c.sum() < 0, lambda c: depthwise(c, kernel) + 1e6, x - 9)


def in_cond(x, kernel):
    return lax.cond(x.sum() > 0, depthwise, lambda x, k: depthwise(x, k) * 2, x, kernel)


def nested(x, kernel):
    return jax.jit(lambda x: in_scan(jax.checkpoint(in_cond)(x, kernel), kernel))(x)


BODIES = {
    "plain": depthwise,
    "jit": jax.jit(depthwise),
    "scan": in_scan,
    "cond": in_cond,
    "remat": jax.checkpoint(depthwise),
    "nested": nested,
}


def convolutions(program):
    """Count those that run on a CPU: not those kept for other platforms."""
    count = 0
    for eqn in program.eqns:
        count += eqn.primitive.name == "conv_general_dilated"
        if eqn.params.get("branches_platforms"):
            assert eqn.params["branches_platforms"] == (("cpu",), None)
            count += convolutions(eqn.params["branches"][0])
            continue
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                count += convolutions(inner) if isinstance(inner, (Jaxpr, ClosedJaxpr)) else 0
    return count


def evaluated(program):
    return jax.jit(functools.partial(jax.core.eval_jaxpr, program.jaxpr, program.consts))


@pytest.mark.parametrize("name", [*BODIES, "while"])
def test_none_is_left_in_any_body(name, picture, kernel, close):
    body = {**BODIES, "while": in_while}[name]
    before = jax.make_jaxpr(body)(picture, kernel)
    after = run_passes(before)
    assert convolutions(before)
    assert not convolutions(after)
    close(evaluated(after)(picture, kernel), body(picture, kernel))


@pytest.mark.parametrize("name", BODIES)
def test_nor_in_its_gradient(name, picture, kernel, close):
    gradient = jax.grad(lambda x, k: jnp.sin(BODIES[name](x, k)).sum(), (0, 1))
    before = jax.make_jaxpr(gradient)(picture, kernel)
    after = run_passes(before)
    assert convolutions(before) >= 3
    assert not convolutions(after)
    ours = evaluated(after)(picture, kernel)
    for mine, theirs in zip(ours, gradient(picture, kernel), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * float(jnp.abs(theirs).max()))


# Other platforms.


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("name", ["plain", "nested"])
def test_other_platforms_compile_the_convolution(platform, name, picture, kernel):
    gradient = jax.grad(lambda x, k: BODIES[name](x, k).sum(), (0, 1))
    before = jax.make_jaxpr(gradient)(picture, kernel)

    def text(program, platform):
        traced = evaluated(program).trace(picture, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    ours, theirs = text(run_passes(before), platform), text(before, platform)
    assert ours.count("stablehlo.convolution") >= 2
    # No sum over taps, no loop over rows.
    for name in ("stablehlo.slice", "stablehlo.pad", "stablehlo.while"):
        assert ours.count(name) == theirs.count(name)
    assert "stablehlo.convolution" not in text(run_passes(before), "cpu")


def test_a_program_for_several_platforms_chooses_when_it_is_compiled(picture, kernel, close):
    after = run_passes(jax.make_jaxpr(depthwise)(picture, kernel))
    exported = jax.export.export(evaluated(after), platforms=("cpu", "tpu"))(picture, kernel)
    assert "stablehlo.convolution" in exported.mlir_module()
    close(exported.call(picture, kernel), [depthwise(picture, kernel)])


# What is compiled, and what only looks at it.


def test_a_compiled_function(picture, kernel, close):
    compiled = function(depthwise)
    close(compiled(picture, kernel), depthwise(picture, kernel))
    graph = compiled.graphs[0]
    assert "stablehlo.convolution" not in graph.stablehlo
    assert convolutions(graph.jaxpr) == 1
    assert [op.name for op in graph.ops] == ["conv_general_dilated"]


def test_off_by_an_argument(picture, kernel, close):
    compiled = function(depthwise, fast_convolutions=False)
    close(compiled(picture, kernel), depthwise(picture, kernel))
    assert "stablehlo.convolution" in compiled.graphs[0].stablehlo


@pytest.mark.parametrize("said", ["0", "false", "1", ""])
def test_off_by_a_variable(said, picture, kernel, monkeypatch):
    monkeypatch.setenv("JGRAPH_FAST_CONV", said)
    graph = function(depthwise).graph(picture, kernel)
    assert ("stablehlo.convolution" in graph.stablehlo) == (said in ("0", "false"))


def test_what_an_outer_function_traces_is_saved_as_written(picture, kernel, tmp_path, close):
    inner = function(depthwise)
    graph = inner.graph(picture, kernel)
    for body in (inner, lambda x, kernel: graph.apply({}, x, kernel)[0]):
        outer = function(lambda x, kernel, body=body: 2 * body(x, kernel))
        traced = outer.graph(picture, kernel)
        assert convolutions(traced.jaxpr) == 1
        assert "branches_platforms" not in str(traced.jaxpr)
        assert "stablehlo.convolution" not in traced.stablehlo
        traced.save(tmp_path / "graph.jgraph")
        loaded = Graph.load(tmp_path / "graph.jgraph")
        assert "stablehlo.convolution" not in loaded.stablehlo
        close(loaded.apply({}, picture, kernel)[0], 2 * depthwise(picture, kernel))
        close(outer(picture, kernel), 2 * depthwise(picture, kernel))


def test_a_function_within_a_gradient(picture, kernel, close):
    """Its convolution is differentiated as written; the outer one rewrites what comes of it."""
    inner = function(depthwise)
    gradient = function(jax.grad(lambda x, k: inner(x, k).sum()))
    expected = jax.grad(lambda x: depthwise(x, kernel).sum())(picture)
    close(gradient(picture, kernel), expected)
    assert convolutions(gradient.graphs[0].jaxpr) >= 1
    assert "stablehlo.convolution" not in gradient.graphs[0].stablehlo
    close(jax.grad(lambda x: inner(x, kernel).sum())(picture), expected)


def test_a_program_over_several_devices_keeps_its_convolutions(picture, kernel, close):
    """A loop over the batch would gather what the devices hold."""
    for devices, kept in ((2, True), (1, False)):
        strategy = DataParallel(devices)
        compiled = function(depthwise, strategy=strategy)
        result = compiled(strategy.put_batch(picture), strategy.put(kernel))
        close(result, depthwise(picture, kernel))
        assert ("stablehlo.convolution" in compiled.graphs[0].stablehlo) == kept


def test_equal_convolutions_are_lowered_once(picture, kernel):
    def body(x, kernel):
        for _ in range(4):
            x = jnp.tanh(depthwise(x, kernel))
        return x

    text = function(body).graph(picture, kernel).stablehlo
    assert text.count("stablehlo.pad") == 1
    assert text.count("call @convolution") == 4


# What isn't rewritten.


def dense(x, kernel, groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=groups
    )


def over_three_axes(x, kernel):
    x, kernel = x[:, None], kernel[None]
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), "SAME", dimension_numbers=layout, feature_group_count=8
    )


def in_half(x, kernel):
    return depthwise(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (dense, (3, 3, 8, 8)),
        (dense, (1, 1, 8, 16)),
        (functools.partial(dense, groups=2), (1, 1, 4, 64)),
        (functools.partial(dense, groups=8), (3, 3, 1, 16)),
        (over_three_axes, (3, 3, 1, 8)),
        (in_half, (3, 3, 1, 8)),
        (depthwise, (9, 9, 1, 8)),
    ],
)
def test_where_nothing_is_gained_the_program_stays(body, shape, picture):
    program = jax.make_jaxpr(body)(picture, jnp.ones(shape))
    assert convolutions(program) == 1
    assert run_passes(program) is program


def test_with_symbolic_sizes_the_program_stays(kernel):
    batch, width = jax.export.symbolic_shape("batch, width")
    x = jax.ShapeDtypeStruct((batch, 6, width, 8), jnp.float32)
    program = jax.make_jaxpr(depthwise)(x, kernel)
    assert run_passes(program) is program


def test_an_empty_batch(kernel):
    x = jnp.ones((0, 5, 5, 8))
    assert function(depthwise)(x, kernel).shape == (0, 5, 5, 8)


# Whole networks.


class Block(nnx.Module):
    """A 1x1 convolution and a depthwise one, each with BatchNorm."""

    def __init__(self, rngs):
        def layer(inputs, outputs, size, groups=1):
            return nnx.Conv(
                inputs, outputs, (size, size), feature_group_count=groups, use_bias=False, rngs=rngs
            )

        self.layers = nnx.List([layer(8, 48, 1), layer(48, 48, 3, 48)])
        self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for n in (48, 48)])

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return x


def gradients(model, x):
    return nnx.grad(lambda m: (m(x) ** 2).mean())(model)


def compare(model, x):
    """Compare gradients leaf by leaf; one that is zero but for rounding has no digits."""
    fast = function(gradients)(model, x)
    plain = function(gradients, fast_convolutions=False)(model, x)
    leaves = list(zip(*map(jax.tree.leaves, (fast, plain)), strict=True))
    largest = max(float(jnp.abs(theirs).max()) for _, theirs in leaves)
    for ours, theirs in leaves:
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * scale + 1e-5 * largest)


def test_the_gradients_of_a_block(picture):
    model = Block(nnx.Rngs(0))
    compare(model, picture)
    graph = function(gradients).graph(model, picture)
    assert convolutions(graph.jaxpr) == 5  # results, kernels, and one input
    assert "stablehlo.convolution" not in graph.stablehlo


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2"])  # Lite0 has the same blocks, and more
def test_the_gradients_of_a_network(name):
    """In float64 to its rounding; in float32 about as far from those as XLA's own are.

    Rounding moves single values over the kinks of ReLU6, which moves every gradient before them:
    by 2 % for XLA's own convolutions with some inputs, by 0.01 % with others.
    """
    model = models.create(name, num_classes=10, rngs=nnx.Rngs(0))
    model.train()
    definition, params, rest = nnx.split(model, nnx.Param, ...)

    def gradient(params, rest, x):
        def loss(params):
            return (nnx.merge(definition, params, rest, copy=True)(x) ** 2).mean()

        return jax.tree.leaves(jax.grad(loss)(params))

    def both(dtype):
        x = np.random.default_rng(0).normal(size=(4, 96, 96, 3))
        args = jax.tree.map(
            lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a,
            (params, rest, jnp.asarray(x)),
        )
        program = jax.make_jaxpr(gradient)(*args)
        flat = jax.tree.leaves(args)
        return [evaluated(p)(*flat) for p in (run_passes(program), program)]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, truth = both("float64")
        largest = max(float(np.abs(true).max()) for true in truth)
        for mine, true in zip(ours, truth, strict=True):
            assert distance(mine, true) <= 1e-9 * np.linalg.norm(true) + 1e-11 * largest
        ours, theirs = both("float32")
        for found, true in (*zip(ours, truth, strict=True), *zip(theirs, truth, strict=True)):
            assert distance(found, true) <= 0.1 * np.linalg.norm(true) + 1e-3 * largest


def distance(left, right):
    return np.linalg.norm(np.asarray(left, "float64") - right)


# What it costs to compile.


def chain(x, *kernels):
    for kernel in kernels:
        x = jnp.tanh(depthwise(x, kernel))
    return x


def test_a_network_that_compiles_much_longer_says_so_once(caplog):
    x = jnp.ones((1, 9, 9, 8))
    kernels = [jnp.ones((7, width, 1, 8)) for width in range(1, 10)]
    program = jax.make_jaxpr(chain)(x, *kernels)
    for _ in range(2):
        fast_convolutions(program, "Net.loss")
    (said,) = caplog.messages
    # 315 terms, each half as dear again as one of 18 equations.
    assert said.startswith("Net.loss compiles about 27 times as long")
    assert "jg.enable_compilation_cache()" in said


@pytest.mark.parametrize("repeats", [1, 40])
def test_equal_convolutions_and_few_terms_cost_nothing(repeats, caplog):
    """Here one kernel of 64 taps, which is compiled once; in small programs nobody waits."""
    kernels = [jnp.ones((8, 8, 1, 8))] * repeats
    program = jax.make_jaxpr(chain)(jnp.ones((1, 9, 9, 8)), *kernels)
    assert compile_factor(program) == 1
    assert fast_convolutions(program) is not program
    assert not caplog.messages


def test_a_dense_network_compiles_as_long(caplog):
    """Of a gradient by a kernel of one tap, the window is a whole map; it is one product."""
    kernels = [jnp.ones((1, 1, 20 + i, 21 + i)) for i in range(3)]

    def loss(kernels, x):
        for kernel in kernels:
            x = jnp.tanh(dense(x, kernel))
        return x.sum()

    program = jax.make_jaxpr(jax.grad(loss))(kernels, jnp.ones((1, 24, 24, 20)))
    assert fast_convolutions(program) is not program
    assert compile_factor(program) == 1
