"""Folding in whole functions and networks: gradients, platforms, switches, files."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jgraph as jg
from jgraph import models
from jgraph.graph import Graph, _folding, _passes, function
from jgraph.graph._passes import Passes, fold_batch_norms, run_passes
from tests.graph.test_batch_norm_folding import (
    CHAINS,
    IMAGES,
    LAYER,
    agree,
    count,
    draw,
    evaluated,
    layer,
    normalise,
    of_channels,
    statistics,
)

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


@pytest.mark.parametrize("groups", [1, 3])  # a depthwise one is rewritten otherwise
def test_types_that_say_how_they_are_split(groups):
    def layer(x, kernel, v):
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=IMAGES, feature_group_count=groups
        )
        return normalise(y, v)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, kernel = draw((4, 16, 16, 3), (3, 3, 3 // groups, 3))
    v = statistics(3)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
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
