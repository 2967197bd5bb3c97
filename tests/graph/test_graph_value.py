"""A Graph as a pure value: what it says of itself, and what running it gives."""

import gc
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from jgraph._errors import InputError
from jgraph.graph import Memory, function

FLOAT = jnp.float32


def call(model, x):
    return model(x)


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, FLOAT)


@pytest.fixture
def linear():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


@pytest.fixture
def affine(linear, x):
    """The graph of a linear layer, which is kept alive by its fixture."""
    return function(call).graph(linear, x)


@pytest.fixture
def plain(affine):
    """The same in plain numbers, of a state."""
    return lambda state, x: x @ state["model.kernel"] + state["model.bias"][None]


# What goes in and comes out.


def test_inputs_outputs_and_state_paths(net, optimizer, step, x):
    def body(model, opt, batch, *, scale):
        return {"loss": step(model, opt, batch["x"][0]) * scale}, scale

    model = net()
    opt = optimizer(model)
    graph = function(body).graph(model, opt, {"x": [x]}, scale=2.0)
    assert graph.inputs == {
        "batch['x'][0]": struct(4, 3),
        "scale": jax.ShapeDtypeStruct((), FLOAT, weak_type=True),
    }
    assert list(graph.outputs) == ["result[0]['loss']", "result[1]"]
    assert graph.outputs["result[0]['loss']"] == struct()
    assert {"model.layers[1].kernel", "model.drop.rngs.count", "model.norm.mean"} < set(graph.state)
    assert {p.partition(".")[0] for p in graph.state} == {"model", "opt"}
    assert graph.state["model.layers[1].kernel"] is model.layers[1].kernel.get_raw_value()
    assert graph.input_paths == [*graph.state, *graph.inputs]


def test_state_is_that_of_the_objects_now(affine, linear):
    linear.bias[...] = jnp.full(2, 7.0)
    np.testing.assert_array_equal(affine.state["model.bias"], [7, 7])


def test_state_of_objects_that_are_gone_or_changed(linear, x):
    graph = function(call).graph(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), x)
    gc.collect()
    message = re.escape(
        "are gone, have another structure by now, or are single Variables; give a state"
    )
    with pytest.raises(InputError, match=message):
        _ = graph.state
    graph = function(call).graph(linear, x)
    linear.extra = nnx.Param(jnp.ones(1))
    with pytest.raises(InputError, match=message):
        graph(x)


def test_a_graph_keeps_no_object_alive(net, optimizer, step, x):
    model = net()
    opt = optimizer(model)
    compiled = function(step)
    graph = compiled.graph(model, opt, x)
    compiled(model, opt, x)
    alive = [weakref.ref(y) for y in (model, opt, model.layers[0].kernel.get_raw_value())]
    del model, opt
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3
    assert graph.jaxpr is not None
    assert compiled.graphs[0].reason


# Running it.


def test_apply_equals_plain_numbers(affine, plain, x):
    state = {"model.kernel": jnp.full((3, 2), 0.5), "model.bias": jnp.array([1.0, -1.0])}
    outputs, after = affine.apply(state, x)
    np.testing.assert_allclose(outputs, plain(state, x), rtol=1e-6)
    assert after.keys() == state.keys()
    np.testing.assert_array_equal(after["model.bias"], state["model.bias"])
    np.testing.assert_allclose(affine(x), plain(affine.state, x), rtol=1e-6)


def test_apply_under_jit_grad_and_vmap(affine, plain, x, close):
    state = affine.state
    close(jax.jit(affine.apply)(state, x)[0], plain(state, x))

    def loss(run):
        return lambda state, x: jnp.sum(run(state, x) ** 2)

    ours = jax.grad(loss(lambda s, x: affine.apply(s, x)[0]), (0, 1))(state, x)
    close(ours, jax.grad(loss(plain), (0, 1))(state, x))
    xs = jnp.stack([x, 2 * x])
    mapped = jax.vmap(lambda x: affine.apply(state, x)[0])(xs)
    close(mapped, jnp.stack([plain(state, x), plain(state, 2 * x)]))


@pytest.mark.parametrize("donate", [(), "state"])
def test_new_state_equals_mutation(net, optimizer, step, x, values, close, donate):
    model, twin = net(), net()
    opt, other = optimizer(model), optimizer(twin)
    compiled = function(step, donate=donate)
    graph = compiled.graph(model, opt, x)
    state = graph.state
    for _ in range(3):
        loss, state = graph.apply(state, x)
        close(loss, step(twin, other, x))
    before = values(model, opt)
    for _ in range(3):
        compiled(model, opt, x)
    assert any((a != b).any() for a, b in zip(before, values(model, opt), strict=True))
    for path, value in graph.state.items():
        if path != "model.drop.rngs.key":
            np.testing.assert_allclose(state[path], value, rtol=2e-5, atol=2e-5, err_msg=path)


def test_apply_changes_no_object(net, x, values):
    model = net()
    graph = function(call).graph(model, x)
    before = values(model)
    _, after = graph.apply(graph.state, x)
    assert any((after[p] != v).any() for p, v in graph.state.items() if "norm.mean" in p)
    for a, b in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_apply_gives_no_donated_memory_away(net, optimizer, step, x):
    model = net()
    opt = optimizer(model)
    graph = function(step, donate="state").graph(model, opt, x)
    state = graph.state
    first, second = graph.apply(state, x)[0], graph.apply(state, x)[0]
    assert first == second
    assert not any(v.is_deleted() for v in state.values())


def test_static_arguments_and_numbers(linear, x):
    def body(model, scale, x, mode, *, shift):
        return model(x) * scale + shift if mode == "scaled" else x

    graph = function(body, static="mode").graph(linear, 2.0, x, "scaled", shift=1.0)
    np.testing.assert_allclose(graph(3.0, x, shift=0.5), linear(x) * 3 + 0.5, rtol=1e-6)
    assert list(graph.inputs) == ["scale", "x", "shift"]


def test_objects_in_containers(linear, x):
    def body(parts, x):
        return parts["model"](x) * parts["scale"]

    graph = function(body).graph({"model": linear, "scale": 2.0}, x)
    assert sorted(graph.state) == ["parts['model'].bias", "parts['model'].kernel"]
    assert list(graph.inputs) == ["parts['scale']", "x"]
    result = graph({"model": None, "scale": 3.0}, x)
    np.testing.assert_allclose(result, linear(x) * 3, rtol=1e-6)


def test_objects_in_the_result(linear, x):
    def body(model, x):
        model.extra = nnx.Param(x.sum())
        return {"new": nnx.Linear(3, 1, rngs=nnx.Rngs(1)), "y": x * 2, "bias": model.bias}

    graph = function(body).graph(linear, x)
    result, state = graph.apply(graph.state, x)
    assert sorted(result["new"]) == ["bias", "kernel"]
    kernel = nnx.Linear(3, 1, rngs=nnx.Rngs(1)).kernel
    np.testing.assert_allclose(result["new"]["kernel"], kernel[...], rtol=1e-6)
    np.testing.assert_array_equal(result["bias"], linear.bias[...])
    assert sorted(state) == ["model.bias", "model.extra", "model.kernel"]
    np.testing.assert_allclose(state["model.extra"], x.sum(), rtol=1e-6)
    assert not hasattr(linear, "extra")


def test_a_variable_as_an_argument(x):
    variable = nnx.Param(jnp.ones((1, 3)))

    def body(v, x):
        v[...] += 1.0
        return v * x

    graph = function(body).graph(variable, x)
    assert graph.input_paths == ["v", "x"]
    # It can't be read again without being kept alive: Variables have no weak references.
    with pytest.raises(InputError, match="or are single Variables; give a state"):
        graph(x)
    result, state = graph.apply({"v": jnp.full((1, 3), 4.0)}, x)
    np.testing.assert_allclose(result, x * 5)
    np.testing.assert_array_equal(state["v"], [[5, 5, 5]])


# Errors of apply.


def test_missing_and_extra_paths(affine, x):
    state = affine.state
    state["model.bais"] = state.pop("model.bias")
    expected = "missing model.bias; left over model.bais; did you mean model.bias?"
    with pytest.raises(InputError, match=re.escape(f"the paths of {affine!r}: {expected}")):
        affine.apply(state, x)
    del state["model.bais"]
    with pytest.raises(InputError, match=r"missing model\.bias; left over none$"):
        affine.apply(state, x)
    extra = {**affine.state, **{f"k{i}": x for i in range(5)}}
    with pytest.raises(InputError, match=r"missing none; left over k0, k1, k2 and 2 more$"):
        affine.apply(extra, x)


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (jnp.ones((3, 3)), "float32[3, 3]"),
        (jnp.ones((4, 3), "int32"), "int32[4, 3]"),
        (np.ones((4, 3)), "float32[4, 3]"),
        (1, "int32[]"),
        ("cat", "the str 'cat'"),
    ],
)
def test_another_type(affine, value, came):
    if isinstance(value, np.ndarray):  # JAX takes float64 as float32
        assert affine(value).shape == (4, 2)
        return
    message = f"x must be float32[4, 3] as {affine!r} was traced, got {came}; trace another graph"
    with pytest.raises(InputError, match=re.escape(message)):
        affine(value)


def test_another_type_in_the_state(affine, x):
    state = {**affine.state, "model.bias": jnp.ones(5)}
    message = "model.bias must be float32[2] as Graph('call', "
    with pytest.raises(InputError, match=re.escape(message) + r".* got float32\[5\];"):
        affine.apply(state, x)


@pytest.mark.parametrize(("value", "came"), [({"a": 1.0}, "{'a': *}"), (None, "None"), ([], "[]")])
def test_another_structure(affine, x, value, came):
    message = f"must have the structure {affine!r} was traced with, PyTreeDef(*); got PyTreeDef("
    with pytest.raises(InputError, match=re.escape(f"x {message}{came})")):
        affine(value)
    with pytest.raises(InputError, match=re.escape(f"model.bias {message}{came})")):
        affine.apply({**affine.state, "model.bias": value}, x)


@pytest.mark.parametrize(
    ("args", "kwargs", "came"),
    [
        ((), {}, "0 by position and [] by name"),
        ((1, 2), {}, "2 by position and [] by name"),
        ((1,), {"y": 2}, "1 by position and ['y'] by name"),
    ],
)
def test_number_of_arguments(affine, args, kwargs, came):
    message = f"{affine!r} takes the arguments (x), 1 of them by position; got {came}"
    with pytest.raises(InputError, match=re.escape(message)):
        affine(*args, **kwargs)


def test_the_object_in_place_of_its_none(linear, x):
    graph = function(lambda parts, x: parts[0](x) * parts[1]).graph([linear, 2.0], x)
    message = "parts[1] must have the structure"
    with pytest.raises(InputError, match=re.escape(message)):
        graph([linear, 2.0], x)


# Tracing without arrays.


def test_abstract_arguments(linear, affine, x):
    graph = function(call).graph(linear, struct(4, 3))
    assert str(graph.jaxpr) == str(affine.jaxpr)
    np.testing.assert_allclose(graph(x), linear(x), rtol=1e-6)


def test_symbolic_batch(linear):
    (batch,) = export.symbolic_shape("batch")
    graph = function(call).graph(linear, jax.ShapeDtypeStruct((batch, 3), FLOAT))
    assert str(graph.outputs["result"].shape) == "(batch, 2)"
    assert "f32[batch,2]" in str(graph.jaxpr)
    assert "tensor<?x2xf32>" in graph.stablehlo


def test_costs_of_symbolic_sizes(linear, tmp_path, capsys):
    sizes = export.symbolic_shape("batch, time")
    f = function(call)
    graph = f.graph(linear, jax.ShapeDtypeStruct((*sizes, 3), FLOAT))
    with pytest.raises(InputError) as error:
        assert graph.flops
    assert str(error.value) == (
        f"the FLOPs of {graph!r} depend on batch, time, which must have a number; trace it with "
        "sizes that have one"
    )
    assert "total, for batch = time = 1  " in graph.text()
    graph.draw(tmp_path / "net.html")
    assert "14 FLOP for batch = time = 1 · 8 parameters" in (tmp_path / "net.html").read_text()
    export.export(jax.jit(lambda x: f(linear, x)))(jax.ShapeDtypeStruct((*sizes, 3), FLOAT))
    f.explain()
    assert re.search(r"\n +0 +\d+ +the first call$", capsys.readouterr().out.rstrip())


@pytest.mark.parametrize("donate", [(), "state"])
def test_the_next_call_needs_no_trace(net, optimizer, step, x, donate):
    runs = []

    def body(model, opt, x):
        runs.append(1)
        return step(model, opt, x)

    compiled = function(body, donate=donate)
    model = net()
    opt = optimizer(model)
    graph = compiled.graph(model, opt, x)
    assert (len(runs), compiled.graphs, graph.reason) == (1, (), "")
    assert graph.compile_seconds is None
    for _ in range(3):
        compiled(model, opt, x)
    assert len(runs) == 1
    assert len(compiled.graphs) == 1
    seconds = compiled.graphs[0].compile_seconds
    assert seconds is not None
    assert seconds > 0


# What it is compiled to.


def test_stablehlo_hlo_and_memory(affine):
    assert "stablehlo.dot_general" in affine.stablehlo
    assert affine.stablehlo.startswith("module @jit_call")
    assert "ENTRY" in affine.hlo
    memory = affine.memory
    assert isinstance(memory, Memory)
    # Kernel 3x2, bias 2, x 4x3, result 4x2: numbers of 4 bytes.
    assert (memory.arguments, memory.outputs, memory.reused) == (4 * (6 + 2 + 12), 4 * 8, 0)


def test_donated_memory_is_reused(counter, x):
    def body(model):
        model.value[...] += 1.0

    model = counter(jnp.ones(64))
    assert function(body, donate="state").graph(model).memory.reused == 64 * 4
    assert function(body).graph(model).memory.reused == 0


def test_a_sum_costs_an_addition_per_number(x):
    graph = function(lambda x: x + x).graph(x)
    assert graph.flops == 12
    assert [op.name for op in graph.ops] == ["add"]
    assert repr(graph) == "Graph('<lambda>', 1 operations)"


def test_apply_takes_a_dict_of_arrays():
    graph = function(lambda x: x).graph(jnp.ones(2))
    with pytest.raises(InputError, match="takes the state first, a dict of arrays by path"):
        graph.apply(nnx.State({}))


def test_a_picture_needs_its_folder(tmp_path):
    graph = function(lambda x: x + 1).graph(jnp.ones(2))
    with pytest.raises(InputError, match=r"^the picture's folder must exist, and .*no doesn't$"):
        graph.draw(tmp_path / "no" / "x.svg")
