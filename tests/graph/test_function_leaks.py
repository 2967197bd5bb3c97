"""Nothing stays of models that are gone, and calls leave nothing behind: by counts of objects."""

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.core import Tracer

from jgraph.graph import function


def alive(kind):
    gc.collect()
    return sum(issubclass(type(x), kind) for x in gc.get_objects())


@pytest.fixture
def bound():
    """Say how many bindings a function keeps."""
    return lambda f: len(f._binder._bound)


def test_a_discarded_model_is_freed(net, optimizer, step, x, bound):
    forward, train = function(lambda m, x: m(x)), function(step, donate="state")
    model = net()
    o = optimizer(model)
    forward(model, x)
    train(model, o, x)
    graph = train.graphs[0]
    assert graph.state
    gone = weakref.ref(model), weakref.ref(model.layers[0].kernel.get_raw_value())
    del model, o
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert (bound(forward), bound(train)) == (0, 0)
    assert graph.jaxpr.eqns


@pytest.mark.slow
def test_a_thousand_models_leave_nothing(counter, bound):
    @function(donate="state")
    def f(c, tree, x):
        c.value[...] += x
        tree["other"].value[...] += 1
        return c.value[...] + tree["other"].value[...]

    def use():
        c, other = counter(), counter(1.0)
        f(c, {"other": other}, 1.0)
        f(c, {"other": other}, 1.0)
        return f(c, {"other": other}, 1.0)

    assert use() == 7
    variables, arrays = alive(nnx.Variable), len(jax.live_arrays())
    for _ in range(1000):
        use()
    assert bound(f) == 0
    assert alive(nnx.Variable) == variables
    assert len(jax.live_arrays()) <= arrays
    assert len(f.graphs) == 1


def test_models_with_new_structures_leave_nothing_but_programs(x):
    f = function(lambda m: m.w[...])
    for i in range(3):
        f(nnx.Dict(w=nnx.Param(jnp.ones(2)), n=nnx.static(i)))
    variables, arrays = alive(nnx.Variable), len(jax.live_arrays())
    for i in range(3, 8):
        f(nnx.Dict(w=nnx.Param(jnp.ones(2)), n=nnx.static(i)))
    assert alive(nnx.Variable) == variables
    assert len(jax.live_arrays()) == arrays


def test_variables_as_arguments_are_kept_for_a_while_only(bound):
    f = function(lambda v: v.set_value(v[...] + 1))
    for _ in range(200):
        f(nnx.Param(jnp.zeros(())))
    assert bound(f) <= 64
    assert len(f.graphs) == 1


def test_a_cycle_is_kept_for_a_while_only(net, bound):
    f = function(lambda m: m.layers[0].bias[...])
    gone = []
    model: Any = None
    for _ in range(100):
        model = net()
        model.layers[0].parent = model
        f(model)
        gone.append(weakref.ref(model))
    del model
    gc.collect()
    assert sum(ref() is not None for ref in gone) <= 64
    assert bound(f) <= 64
    assert len(f.graphs) == 1


def test_what_a_changed_model_held_is_freed(net, x):
    f = function(lambda m, x: m.layers[0](x))
    model = net()
    f(model, x)
    old = weakref.ref(model.layers[0]), weakref.ref(model.layers[0].kernel.get_raw_value())
    model.layers[0] = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    f(model, x)
    gc.collect()
    assert [ref() for ref in old] == [None, None]


def test_outer_traces_leave_nothing(counter):
    f = function(lambda c, x: c.value[...] * x)
    c = counter(2.0)
    jax.grad(lambda x: f(c, x))(1.0)
    variables, tracers = alive(nnx.Variable), alive(Tracer)
    for _ in range(20):
        jax.grad(lambda x: f(c, x))(1.0)
    assert alive(nnx.Variable) == variables
    assert alive(Tracer) <= tracers


def test_a_function_is_freed(counter):
    def make():
        f = function(lambda c: c.value[...])
        f(counter())
        return weakref.ref(f)

    gone = make()
    gc.collect()
    assert gone() is None


def test_many_calls_leave_nothing(counter):
    c = counter()
    f = function(lambda c, x: c.value.set_value(c.value[...] + x), donate="state")
    x = jnp.float32(1)
    for _ in range(100):
        f(c, x)
    assert c.value[...] == 100  # the comparison itself is compiled once, and kept
    gc.collect()
    before = len(gc.get_objects())
    arrays = len(jax.live_arrays())
    for _ in range(10_000):
        f(c, x)
    gc.collect()
    assert c.value[...] == 10_100
    assert len(gc.get_objects()) - before < 50
    assert len(jax.live_arrays()) == arrays
