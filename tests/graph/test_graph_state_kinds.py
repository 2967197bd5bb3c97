"""What else can be a Graph's state and arguments, and what it was traced under."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph.graph import function


def test_raw_arrays_and_pytrees_are_state():
    m = nnx.Dict(a=nnx.data(jnp.ones(2)), v=nnx.Variable({"k": jnp.zeros(3)}))
    g = function(lambda m, x: m.a.sum() + m.v.get_value()["k"].sum() + x).graph(m, 1.0)
    assert sorted(g.state) == ["m.a", "m.v"]
    assert g.input_paths == ["m.a", "m.v['k']", "x"]
    assert g(1.0) == 3
    assert g.apply({**g.state, "m.v": {"k": jnp.ones(3)}}, 1.0)[0] == 6


def test_shared_variables_are_one_entry(counter):
    c = counter(1.0)
    d = counter(c.value)
    g = function(lambda a, b: a.value[...] + b.value[...]).graph(c, d)
    assert list(g.state) == ["a.value"]
    assert g() == 2
    assert g.apply({"a.value": jnp.float32(4)})[0] == 8


def test_keywords():
    g = function(lambda x, **more: x + more["b"] - more["a"]).graph(1.0, b=5.0, a=2.0)
    assert g(1.0, a=2.0, b=5.0) == 4
    with pytest.raises(jg.InputError, match=r"takes the arguments \(x, a, b\), 1 of them by pos"):
        g(1.0, 2.0)


def test_what_a_function_closes_over_is_state(x):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    g = function(lambda x: model(x) * 2).graph(x)
    assert sorted(g.state) == ["model.bias", "model.kernel"]
    np.testing.assert_allclose(g(x), 2 * model(x), rtol=1e-6)


def test_a_closure_is_not_kept_alive(x):
    def make():
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        f = function(lambda x: model(x))
        graphs = [f.graph(x), (f(x), *f.graphs)[1]]
        assert [len(g.state) for g in graphs] == [2, 2]
        return graphs, (weakref.ref(model), weakref.ref(model.kernel.get_raw_value()))

    graphs, gone = make()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert all(g.jaxpr.eqns for g in graphs)


def test_a_trace_is_used_under_its_own_settings_only():
    f = function(lambda x: x @ x)
    x = jnp.ones((2, 2))
    with jax.default_matmul_precision("float32"):
        f.graph(x)
    f(x)
    (product,) = f.graphs[0].jaxpr.eqns
    assert product.params["precision"] is None


def test_tracing_writes_and_counts_nothing(counter):
    c = counter()
    f = function(lambda c: c.value.set_value(c.value[...] + 1), donate="state", max_graphs=1)
    f.graph(c)
    f.graph(c)
    assert c.value[...] == 0
    assert not f.graphs
    f(c)
    assert c.value[...] == 1


def test_objects_without_arrays(x):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    abstract = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    f = function(lambda model, x: model(x))
    g = f.graph(abstract, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    state = f.graph(model, x).state
    np.testing.assert_allclose(g.apply(state, x)[0], model(x), rtol=1e-6)
