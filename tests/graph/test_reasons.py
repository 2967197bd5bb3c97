"""Why a call was traced or compiled again: a sentence for each cause."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jgraph.graph import function
from jgraph.graph._reasons import reason
from jgraph.graph._signature import Leaf, Signature

HERE, THERE = jax.devices()[:2]


def mesh():
    return Mesh(np.array(jax.devices()), ("data",))


def reasons(f):
    return [g.reason for g in f.graphs]


def second(f):
    assert len(f.graphs) == 2
    assert f.graphs[0].reason == "the first call"
    return f.graphs[1].reason


# Arrays.


def test_shape(call):
    assert call([jnp.ones((8, 3))], [jnp.ones((5, 3))]) == (
        "x: shape was float32[8,3], is float32[5,3]. "
        "Pad it to one shape, or drop the last, smaller batch."
    )


def test_number_of_axes(call):
    assert call([jnp.ones((8, 3))], [jnp.ones(8)]) == (
        "x: shape was float32[8,3], is float32[8]. Give it one number of axes."
    )
    assert call([jnp.ones(1)], [jnp.ones(())]) == (
        "x: shape was float32[1], is float32[]. Give it one number of axes."
    )


def test_dtype(call):
    assert call([jnp.ones(3)], [jnp.ones(3, jnp.int32)]) == (
        "x: dtype was float32[3], is int32[3]. Cast it, x.astype('float32'), or keep one dtype."
    )


@pytest.mark.parametrize(
    ("first", "then", "dtypes", "to"),
    [
        (1, 1.0, ("int32", "float32"), "float32"),
        (1.0, True, ("float32", "bool"), "float32"),
        (1, 2j, ("int32", "complex64"), "complex64"),
        (np.float16(1), 1, ("float16", "int32"), "float16"),
        (1, jnp.bfloat16(1), ("int32", "bfloat16"), "bfloat16"),
    ],
)
def test_dtype_of_a_number(call, first, then, dtypes, to):
    found = call([first], [then], body=lambda x: x)
    assert found == (
        f"x: dtype was {dtypes[0]}[], is {dtypes[1]}[]. "
        f"Pass it as an array of one dtype, jnp.asarray(x, {to!r})."
    )
    assert jnp.asarray(first, to).dtype == to


def test_weak_type(call):
    assert call([jnp.float32(1)], [2.0]) == (
        "x: weak type was strong, is weak (a Python number, or made of them), float32[]. "
        "Make it strong once, jnp.asarray(x, 'float32')."
    )
    assert call([2.0], [jnp.float32(1)]) == (
        "x: weak type was weak (a Python number, or made of them), is strong, float32[]. "
        "Make it strong once, jnp.asarray(x, 'float32')."
    )


def test_an_array_in_a_container(call):
    batch = lambda n: {"picture": jnp.ones((n, 2)), "label": jnp.ones(n)}  # noqa: E731
    assert call([batch(4)], [batch(3)], body=lambda batch: batch["label"]) == (
        "batch['label']: shape was float32[4], is float32[3]; "
        "batch['picture']: shape was float32[4,2], is float32[3,2]. "
        "Pad it to one shape, or drop the last, smaller batch."
    )


def test_state_of_another_dtype(call):
    model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
    other = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
    other.kernel.set_value(other.kernel[...].astype(jnp.bfloat16))
    assert call([model], [other], body=lambda model: model.kernel[...]) == (
        "model.kernel: dtype was float32[2,2], is bfloat16[2,2]. "
        "Cast it, model.kernel.astype('float32'), or keep one dtype."
    )


# What isn't an array.


def test_static_value(call):
    body = lambda x, mode: x  # noqa: E731
    remedy = (
        "Each static value has a graph of its own; pass it as an array if the code needn't branch "
        "on it in Python."
    )
    assert call([1.0, "train"], [1.0, "test"], body=body, static="mode") == (
        f"mode: static value was 'train', is 'test'. {remedy}"
    )
    assert call([1.0, 1], [1.0, True], body=body, static="mode") == (
        f"mode: static value was 1, is True. {remedy}"
    )
    optional = lambda x, mode="a": x  # noqa: E731
    assert call([1.0], [1.0, "b"], body=optional, static="mode") == (
        f"mode: static value was not given, is 'b'. {remedy}"
    )


def test_structure_of_a_container(call):
    body = lambda batch: batch["a"]  # noqa: E731
    one = jnp.ones(2)
    assert call([{"a": one}], [{"a": one, "b": one}], body=body) == (
        "batch: structure was PyTreeDef({'a': *}), is PyTreeDef({'a': *, 'b': *}). "
        "Pass the same keys and lengths in every call."
    )
    assert call([one], [[one]], body=lambda x: 1.0) == (
        "x: structure was one array, is PyTreeDef([*]). "
        "Pass the same keys and lengths in every call."
    )


def test_an_argument_comes_and_goes(call):
    body = lambda x, y=2.0: x * y  # noqa: E731
    one = jnp.ones(2)
    assert call([one], [one, jnp.float32(3)], body=body) == (
        "y: is new, float32[]. Pass it in every call."
    )
    assert call([one, jnp.float32(3)], [one], body=body) == (
        "y: is gone, it was float32[]. Pass it in every call."
    )


# Where arrays are.


def test_placement():
    f = function(lambda x: x * 2)
    x = jnp.ones((8, 2))
    f(x)
    np.testing.assert_array_equal(f(jax.device_put(x, NamedSharding(mesh(), P("data")))), 2 * x)
    assert second(f) == (
        f"x: placement was {HERE}, is {P('data')} over {{'data': 8}}. "
        "Put it there before the first call, jax.device_put(x, sharding)."
    )
    f(jax.device_put(x, NamedSharding(mesh(), P(None, None))))
    assert f.graphs[2].reason == (
        f"without a trace, x: placement was {HERE}, "  # as near as the second, and first
        f"is {P(None, None)} over {{'data': 8}}. "
        "Put it there before the first call, jax.device_put(x, sharding)."
    )
    assert f.graphs[1].jaxpr is f.graphs[2].jaxpr


def test_placement_on_a_mesh_with_explicit_axes(call):
    x = jnp.ones((8, 2))
    explicit = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Explicit,))
    assert call([x], [jax.device_put(x, NamedSharding(explicit, P("data")))]) == (
        f"x: placement was {HERE}, is {P('data')} over {{'data': 8}}. "
        "Put it there before the first call, jax.device_put(x, sharding)."
    )


def test_another_device(call):
    x = jnp.ones(2)
    assert call([jax.device_put(x, HERE)], [jax.device_put(x, THERE)]) == (
        f"without a trace, x: placement was {HERE}, is {THERE}. "
        "Put it there before the first call, jax.device_put(x, sharding)."
    )


def test_committed():
    old, new = (
        Signature({"x": Leaf("float32[2]", False, f"{HERE}", c)}, {}, {}, {}, {}, {})
        for c in (False, True)
    )
    assert reason(new, [old], traced=False) == (
        "without a trace, x: committed was uncommitted, is committed to a device. "
        "Put it there each time with jax.device_put, or never."
    )
    assert reason(old, [new], traced=False) == (
        "without a trace, x: committed was committed to a device, is uncommitted. "
        "Put it there each time with jax.device_put, or never."
    )


def test_the_graph_of_a_compilation_is_the_one_of_its_trace():
    f = function(lambda x: x * 2)
    x = jnp.ones((8, 2))
    f(x)
    f(x[:4])
    f(jax.device_put(x, THERE))
    assert [g.inputs["x"].shape for g in f.graphs] == [(8, 2), (4, 2), (8, 2)]
    assert f.graphs[2].reason.startswith("without a trace, x: placement was")


# Models.


def test_train_and_eval(net, x):
    model, f = net(), function(lambda model, x: model(x))
    f(model, x)
    model.eval()
    f(model, x)
    assert second(f) == (
        "model.drop.deterministic: was False, is True; "
        "model.norm.use_running_average: was False, is True. "
        "model.train() and model.eval() have a graph each: two are enough, switch freely."
    )


def test_static_attribute(net, x):
    model, f = net(), function(lambda model, x: model(x))
    f(model, x)
    model.scale = 2.0
    f(model, x)
    assert second(f) == (
        "model.scale: was 1.0, is 2.0. Make it a Variable if it is to change between calls."
    )


def test_a_long_attribute_is_shown_where_it_differs():
    names = [f"class {i}" for i in range(1000)]
    model, f = nnx.Dict(names=nnx.static(tuple(names))), function(lambda model: 1.0)
    f(model)
    model.names = nnx.static((*names[:700], "cat", *names[701:]))
    f(model)
    why = second(f)
    assert why.startswith("model.names: was …")
    assert "'class 699', 'class 700'" in why
    assert "'class 699', 'cat'" in why
    assert len(why) < 600


def test_a_variable_is_added_and_removed():
    model: Any = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    f = function(lambda model: 1.0)
    f(model)
    model.extra = nnx.BatchStat(jnp.ones(3))
    f(model)
    assert second(f).startswith("model.extra: is new, BatchStat")
    assert second(f).endswith(" Add it before the first call.")
    g = function(lambda model: 1.0)
    g(model)
    del model.extra
    g(model)
    assert second(g).startswith("model.extra: is gone, it was BatchStat")
    assert second(g).endswith(" Remove it before the first call.")


def test_a_module_is_added():
    model = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))])
    f = function(lambda model: model[0].kernel[...])
    f(model)
    model.append(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    f(model)
    assert second(f) == "model[1]: is new, Linear. Add it before the first call."


def test_a_module_of_another_class():
    model: Any = nnx.Dict(norm=nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    f = function(lambda model: model.norm.scale[...])
    f(model)
    model.norm = nnx.LayerNorm(2, rngs=nnx.Rngs(0))
    f(model)
    assert "model.norm: was BatchNorm, is LayerNorm." in second(f).replace(";", ".")


def test_another_optimizer(x):
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    f = function(lambda optimizer: optimizer.step[...])
    f(nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))
    f(nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))
    why = second(f)
    assert why.startswith("optimizer.tx: is another object than before, GradientTransformation")
    assert why.endswith(". Make it once, outside the loop, and pass the same one.")


def test_sharing(counter):
    f = function(lambda a, b: a.value[...] + b.value[...])
    a = counter()
    f(a, counter())
    f(a, counter(a.value))
    assert second(f).startswith("b.value: was Variable")
    assert ", is the same object as a.value. " in second(f)
    g = function(lambda a, b: a.value[...] + b.value[...])
    g(a, counter())
    g(a, a)
    assert second(g).startswith("b: was Counter, is the same object as a. ")


def test_metadata():
    f = function(lambda v: v[...])
    f(nnx.Param(1.0, eager_sharding=False))
    f(nnx.Param(1.0, eager_sharding=False, tag="new"))
    assert second(f) == (
        "v: was Param, is Param {'tag': 'new'}. "
        "Make it a Variable if it is to change between calls."
    )


def test_a_change_that_representations_hide():
    class Mute:
        def __repr__(self):
            return "mute"

    model, f = nnx.Dict(a=nnx.static(Mute())), function(lambda model: 1.0)
    f(model)
    model.a = nnx.static(Mute())
    f(model)
    assert second(f) == (
        "the structure of the objects or the static values differ in a part that looks the same "
        "when printed: give its class __eq__ and __hash__, or make it once and pass the same one"
    )


# JAX.


def test_a_setting(call):
    f = function(lambda x: x @ x)
    x = jnp.ones((2, 2))
    f(x)
    with jax.default_matmul_precision("float32"):
        f(x)
        f(x)
    f(x)
    assert second(f) == (
        "JAX setting jax_default_matmul_precision: was None, is float32. "
        "Set it once, before the first call."
    )


def test_double_precision():
    f = function(lambda x: x * 2)
    x = np.ones(2, np.float32)
    f(x)
    with jax.enable_x64(True):
        f(x)
    assert second(f) == (
        "JAX setting jax_enable_x64: was False, is True. Set it once, before the first call."
    )


def test_inside_another_trace():
    f = function(lambda x: x * 2)
    f(1.0)
    jax.jit(f)(1.0)
    jax.grad(f)(1.0)
    assert second(f) == (
        "the call: was at top level, is inside another trace. "
        "There is a graph for each: two are enough, switch freely."
    )


@pytest.mark.usefixtures("no_cache")
def test_cleared_caches():
    f = function(lambda x: x * 2)
    f(1.0)
    jax.clear_caches()
    f(1.0)
    assert second(f) == (
        "nothing about the call changed: JAX's caches were cleared (jax.clear_caches()), or this "
        "program had left them; call it with fewer kinds of arguments, or don't clear them"
    )


def test_a_reason_tells_what_the_call_was_given_not_what_it_left():
    class Counting(nnx.Module):
        def __init__(self):
            self.count = 0

        def __call__(self, x):
            self.count += 1
            return x * self.count

    f, model = function(lambda model, x: model(x)), Counting()
    for wanted in (1, 2):
        assert float(f(model, jnp.ones(()))) == wanted
    assert second(f).startswith("model.count: was 0, is 1.")


def test_none_in_place_of_nothing(call):
    assert call((1.0,), (1.0, None), lambda x, mask=None: x).startswith(
        "mask: structure was one array, is None."
    )
