"""Scales and shifts of channels go into the convolution before them, and nothing else does."""

import functools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

import jgraph as jg
from jgraph import models
from jgraph.graph import Graph, _folding, _passes, function
from jgraph.graph._passes import Passes, fold_batch_norms, run_passes

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


# Gradients.


class Net(nnx.Module):
    """Two convolutions with BatchNorm, one of them depthwise."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.convs = nnx.List(
            [
                nnx.Conv(3, 8, (3, 3), rngs=rngs),
                nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs),
            ]
        )
        self.norms = nnx.List([nnx.BatchNorm(8, rngs=rngs) for _ in self.convs])
        for norm in self.norms:
            assert norm.scale is not None
            assert norm.bias is not None
            mean, var, scale, bias = statistics(8)
            norm.mean[...], norm.var[...], norm.scale[...], norm.bias[...] = mean, var, scale, bias

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return x


@pytest.fixture
def picture():
    (x,) = draw((4, 20, 20, 3))
    return x


@pytest.fixture
def net():
    """A network in evaluation mode."""
    model = Net()
    model.eval()
    return model


def forward(model, x):
    return model(x)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_training_graph_stays(mode, net, picture):
    getattr(net, mode)()
    program = function(nnx.grad(lambda m, x: (m(x) ** 2).mean())).graph(net, picture).jaxpr
    assert fold_batch_norms(program) is program


def test_gradients_past_frozen_layers_are_those_of_the_convolution(picture):
    """What is folded going forward, since nothing there is differentiated by its numbers."""
    (kernel,) = draw((3, 3, 3, 4))
    agree(jax.grad(lambda x, k, v: jnp.sin(layer(x, k, v)).sum()), picture, kernel, statistics(4))


# Other platforms.


def lowered(program, args, platform):
    return evaluated(program).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("name", ["repeated", "from a value", "with numbers"])
def test_other_platforms_compile_it_as_written(platform, name):
    args = [*draw(*LAYER), statistics(4)]
    before = jax.make_jaxpr(of_channels(CHAINS[name]))(*args)
    after = run_passes(before)
    ours, theirs = (lowered(p, args, platform) for p in (after, before))
    for op in ("convolution", "multiply", "add", "subtract", "optimization_barrier"):
        assert ours.count(f"stablehlo.{op}") == theirs.count(f"stablehlo.{op}")
    assert "stablehlo.optimization_barrier" in lowered(after, args, "cpu")


def test_a_program_for_several_platforms_chooses_when_it_is_compiled(close):
    args = [*draw(*LAYER), statistics(4)]
    before = jax.make_jaxpr(of_channels(CHAINS["with numbers"]))(*args)
    after = fold_batch_norms(before)
    for program in (before, after):
        exported = jax.export.export(evaluated(program), platforms=("cpu", "tpu"))(*args)
        close(exported.call(*args), evaluated(before)(*args))


# Numbers that aren't finite.


def test_scales_of_zero_and_infinity():
    x, kernel = draw(*LAYER)
    v = statistics(4).at[2].set(jnp.asarray([0.0, jnp.inf, 1.0, jnp.nan]))
    program = jax.make_jaxpr(layer)(x, kernel, v)
    (y,) = evaluated(fold_batch_norms(program))(x, kernel, v)
    np.testing.assert_array_equal(y[..., 0], v[3, 0])
    assert not jnp.isfinite(y[..., 1]).any()
    assert jnp.isfinite(y[..., 2]).all()
    assert jnp.isnan(y[..., 3]).all()
    (y,) = evaluated(fold_batch_norms(program))(x.at[0, 4, 4].set(jnp.nan), kernel, v)
    assert jnp.isnan(y[0, 3:6, 3:6]).all()
    assert jnp.isfinite(y[1, ..., ::2]).all()


# Compiled functions.


def test_a_compiled_function_and_what_looks_at_it(net, picture):
    state = [np.asarray(x) for x in jax.tree.leaves(nnx.state(net))]
    folding = function(forward)
    np.testing.assert_allclose(folding(net, picture), net(picture), rtol=0, atol=1e-4)
    for old, new in zip(state, jax.tree.leaves(nnx.state(net)), strict=True):
        np.testing.assert_array_equal(old, new)
    (graph,) = folding.graphs
    assert graph.stablehlo.count("stablehlo.optimization_barrier") == 2
    assert graph.stablehlo.count("stablehlo.convolution") == 1  # the depthwise one is a sum
    names = [op.name for op in graph.ops]
    plain = function(forward, fold_batch_norms=False)
    assert names == [op.name for op in plain.graph(net, picture).ops]
    assert names.count("rsqrt") == 2
    assert "optimization_barrier" not in names


def test_off_by_an_argument(net, picture):
    plain = function(forward, fold_batch_norms=False)
    np.testing.assert_allclose(plain(net, picture), net(picture), rtol=0, atol=1e-4)
    (graph,) = plain.graphs
    assert "stablehlo.optimization_barrier" not in graph.stablehlo
    assert graph.stablehlo.count("stablehlo.convolution") == 1
    kept = function(forward, fast_convolutions=False).graph(net, picture).stablehlo
    assert kept.count("stablehlo.optimization_barrier") == 2
    assert kept.count("stablehlo.convolution") == 2


@pytest.mark.parametrize("said", ["0", "off", "1", ""])
def test_off_by_a_variable(said, net, picture, monkeypatch):
    monkeypatch.setenv("JGRAPH_FOLD_BATCH_NORMS", said)
    graph = function(forward).graph(net, picture)
    assert ("stablehlo.optimization_barrier" in graph.stablehlo) == (said not in ("0", "off"))
    assert graph.stablehlo.count("stablehlo.convolution") == 1


def test_debug_mode_folds_nothing(net, picture, monkeypatch):
    def refuse(program):
        raise AssertionError("folded")

    monkeypatch.setattr(_passes, "fold_batch_norms", refuse)
    with jg.debug_mode():
        assert function(forward)(net, picture).shape == (4, 20, 20, 8)
    with pytest.raises(AssertionError, match="folded"):
        function(forward)(net, picture)


def test_what_is_saved_is_as_written_and_folded_where_it_is_loaded(net, picture, tmp_path, close):
    graph = function(forward).graph(net, picture)
    graph.save(tmp_path / "net.jgraph")
    loaded = Graph.load(tmp_path / "net.jgraph")
    assert count(loaded.jaxpr) == 0
    assert loaded.stablehlo.count("stablehlo.optimization_barrier") == 2
    outer = function(lambda x: loaded(x)).graph(picture)
    assert count(outer.jaxpr) == 0
    assert outer.stablehlo.count("stablehlo.optimization_barrier") == 2
    close(loaded(picture), graph(picture))


def test_equal_layers_are_lowered_once(picture):
    def body(kernels, v, x):
        for kernel in kernels:
            x = nnx.relu(layer(x, kernel, v))
        return x

    kernels = draw(*[(3, 3, 3, 3)] * 3)
    text = function(body).graph(kernels, statistics(3), picture).stablehlo
    assert text.count("stablehlo.optimization_barrier") == 1


def test_weights_on_every_device_stay_there(picture):
    """Pictures that were split by hand: no weight is gathered or split, nor any result."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    args = [jax.device_put(picture, split)]
    args += jax.device_put([*draw((3, 3, 3, 4)), statistics(4)], jax.NamedSharding(mesh, jax.P()))
    texts = []
    for folds in (True, False):
        compiled = function(layer, fold_batch_norms=folds)
        assert compiled(*args).sharding.is_equivalent_to(split, 4)
        program = run_passes(compiled.graphs[0].jaxpr, Passes(fold_batch_norms=folds))
        texts.append(evaluated(program).lower(*args).compile().as_text())
    for text in texts:
        assert not [op for op in ("all-gather", "all-reduce", "all-to-all") if op in text]


def test_types_that_say_how_they_are_split():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, kernel = draw(*LAYER)
    v = statistics(4)
    expected = layer(x, kernel, v)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        whole = jax.device_put((kernel, v), jax.NamedSharding(mesh, jax.P()))
        compiled = function(layer)
        found = compiled(x, *whole)
        assert jax.typeof(found).sharding.spec[0] == "data"
        assert count(fold_batch_norms(compiled.graphs[0].jaxpr)) == 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


# Whole networks.


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def new(name):
    """Return a network in evaluation mode, whose statistics are anything but 0 and 1."""
    if name == "resnet":
        config = models.ResNetConfig(depths=(1, 1, 1, 1), num_classes=10)
        model = models.ResNet(config, rngs=nnx.Rngs(0))
    else:
        model = models.create(name, num_classes=10, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, nnx.BatchNorm):
            assert norm.scale is not None
            norm.mean[...] = rng.normal(0, 0.2, norm.mean.shape).astype("float32")
            for values in (norm.var, norm.scale):
                values[...] = rng.uniform(0.5, 1.5, values.shape).astype("float32")
    model.eval()
    return model


def features(model, x):
    return model.features(x)


def layers(model):
    return sum(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(model))


NETWORKS = ("efficientnet_lite0", "mobilenet_v2", "resnet")


def test_a_network_at_its_bound():
    """Of 49 layers, those with large results."""
    model = new("efficientnet_lite0")
    (x,) = draw((1, 96, 96, 3))
    graph = function(features).graph(model, x)
    assert layers(model) == 49
    assert count(fold_batch_norms(graph.jaxpr)) == 6


@pytest.mark.parametrize("name", [*map(slow, NETWORKS[:2]), NETWORKS[2]])
def test_every_layer_of_a_network(name, monkeypatch):
    monkeypatch.setattr(_folding, "_LEAST_RESULTS", 1e-9)
    model = new(name)
    (x,) = draw((1, 64, 64, 3))
    folding, plain = function(features), function(features, fold_batch_norms=False)
    found, expected = folding(model, x), plain(model, x)
    assert count(fold_batch_norms(folding.graphs[0].jaxpr)) == layers(model)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_network_in_float64(name, monkeypatch):
    monkeypatch.setattr(_folding, "_LEAST_RESULTS", 1e-9)
    model = new(name)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        nnx.update(model, jax.tree.map(in_float64, nnx.state(model)))
        x = np.random.default_rng(0).normal(size=(1, 64, 64, 3))
        graph = function(features).graph(model, x)
        after = fold_batch_norms(graph.jaxpr)
        assert count(after) == layers(model)
        inputs = [*graph.state.values(), x]
        (found,), (true,) = (evaluated(p)(*inputs) for p in (after, graph.jaxpr))
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-10 * float(np.abs(true).max()))


def in_float64(x):
    return x.astype("float64") if x.dtype == jnp.float32 else x
