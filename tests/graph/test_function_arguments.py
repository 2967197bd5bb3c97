"""What flax expects of nnx.jit, expected of jg.function: arguments and functions of all kinds.

After flax's tests/nnx/transforms_test.py (TestJIT, TestTreeJIT), integration_test.py, rngs_test.py,
graph_utils_test.py and module_test.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jgraph.graph import function

DONATE = pytest.mark.parametrize("donate", [(), "state"])


# Arguments of all kinds.


def test_containers_and_keywords(net, x, close):
    a, b = net(0), net(1)
    a.eval()
    b.eval()

    @function
    def f(models, *more, extra=None, **named):
        out = models["a"](x) + models["rest"][0](x)
        for m, k in more:
            out += m(x) * k
        return out + sum(m(x) for m in named.values()) + (0.0 if extra is None else extra)

    wanted = 2 * a(x) + b(x)
    tree = {"a": a, "rest": (b, jnp.zeros(2))}
    close(f(tree, (a, 1.0)), wanted)
    close(f(tree, z=a), wanted)
    close(f(tree, z=a, extra=2.0), wanted + 2)
    assert a(x).shape == (4, 3)


def test_changes_in_containers_are_written(counter):
    a, b = counter(), counter(5.0)

    @function(donate="state")
    def f(tree, x):
        tree["b"].value[...] += x * tree["k"]

    for _ in range(2):
        f({"a": [a], "b": b, "k": 2.0}, 1.0)
    assert (a.value[...], b.value[...]) == (0, 9)
    assert len(f.graphs) == 1


def test_however_an_argument_is_passed_it_is_one_graph(net, x, close):
    model = net()
    model.eval()

    @function(static="mode")
    def f(m, x, mode="plus", k=1.0):
        return (m(x) if mode == "plus" else -m(x)) * k

    wanted = model(x)
    for out in (f(model, x), f(x=x, m=model), f(model, x=x)):
        close(out, wanted)
    assert len(f.graphs) == 1
    for out in (f(model, x, "minus"), f(model, x, mode="minus"), f(mode="minus", x=x, m=model)):
        close(out, -wanted)
    assert len(f.graphs) == 2
    close(f(model, x, "plus", 2.0), 2 * wanted)
    close(f(model, x, k=2.0), 2 * wanted)


def test_wrong_arguments_raise_as_in_python(x):
    f = function(lambda a, b=1: a)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'a'"):
        f()
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'c'"):
        f(x, c=1)
    with pytest.raises(TypeError, match=r"takes from 1 to 2 positional arguments but 3 were given"):
        f(x, x, x)
    with pytest.raises(TypeError, match=r"multiple values for argument 'a'"):
        f(x, a=x)


def test_a_state_is_a_pytree_of_values(net, x, close):
    model = net()
    model.eval()
    structure, state = nnx.split(model)

    @function
    def f(state, x):
        m: Any = nnx.merge(structure, state)
        m.layers[0].kernel[...] = jnp.zeros((3, 3))
        return m(x), nnx.state(m)

    before = np.array(model.layers[0].kernel[...])
    _, new = f(state, x)
    np.testing.assert_array_equal(model.layers[0].kernel[...], before)
    np.testing.assert_array_equal(state["layers"][0]["kernel"][...], before)
    assert isinstance(new, nnx.State)
    np.testing.assert_array_equal(new["layers"][0]["kernel"][...], np.zeros((3, 3)))
    model.layers[0].kernel[...] = jnp.zeros((3, 3))
    close(f(new, x)[0], model(x))
    assert len(f.graphs) == 1


def test_a_variable_is_an_argument():
    v, w = nnx.Param(jnp.array(0.0)), nnx.Param(jnp.array(2.0))

    @function
    def f(v, w):
        v[...] += w[...]
        return v[...] + 1

    assert f(v, w) == 3
    assert f(v, w=w) == 5
    assert (v[...], w[...]) == (4, 2)


def test_variables_alone_as_in_a_functional_layer():
    rngs = nnx.Rngs(0)
    w = nnx.Param(jax.random.normal(rngs.params(), (2, 3)))
    b, count = nnx.Param(jnp.zeros(3)), nnx.Variable(jnp.array(0))

    @function
    def linear(w, b, count, x):
        count[...] += 1
        return x @ w[...] + b[...][None]

    x = jnp.ones((1, 2))
    for n in (1, 2):
        np.testing.assert_allclose(linear(w, b, count, x), w[...].sum(0)[None], rtol=1e-6)
        assert count[...] == n


def test_a_variable_holds_a_pytree():
    v: Any = nnx.Variable({"a": jnp.ones(2), "b": [jnp.zeros(())]})
    m = nnx.Dict(v=v)

    @function
    def f(m):
        value = m.v.get_value()
        m.v.set_value({"a": value["a"] + 1, "b": [value["b"][0] - 1]})

    f(m)
    f(m)
    assert v.get_value()["a"].tolist() == [3, 3]
    assert v.get_value()["b"][0] == -2


def test_rngs_as_argument():
    drop = nnx.Dropout(0.5)
    f = function(lambda x, rngs: drop(x, rngs=rngs))
    j = nnx.jit(lambda x, rngs: drop(x, rngs=rngs))
    ours, theirs = nnx.Rngs(0), nnx.Rngs(0)
    x = jnp.ones((8, 8))
    masks = [f(x, ours) for _ in range(3)]
    for mask in masks:
        np.testing.assert_array_equal(mask, j(x, theirs))
    assert not (masks[0] == masks[1]).all()
    assert ours.default.count[...] == 3
    assert len(f.graphs) == 1


def test_two_models_share_an_rng_stream():
    class Model(nnx.Module):
        def __init__(self, drop):
            self.drop = drop

        def __call__(self, x):
            return self.drop(x)

    train: Any = Model(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    evaluate: Any = nnx.clone(train)
    evaluate.drop.rngs = train.drop.rngs
    evaluate.drop.deterministic = True
    f = function(lambda m, x: m(x))
    f(train, jnp.ones(4))
    assert evaluate.drop.rngs.count[...] == 1
    f(evaluate, jnp.ones(4))
    assert train.drop.rngs.count[...] == 1


@DONATE
def test_metrics(donate):
    metrics: Any = nnx.MultiMetric(
        loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy()
    )

    @function(donate=donate)
    def update(metrics, loss, logits, labels):
        with jax.numpy_dtype_promotion("standard"):
            metrics.update(loss=loss, logits=logits, labels=labels)

    logits, labels = jnp.eye(4), jnp.array([0, 1, 2, 0])
    update(metrics, jnp.array(1.0), logits, labels)
    update(metrics, jnp.array(3.0), logits, labels)
    with jax.numpy_dtype_promotion("standard"):
        found = metrics.compute()
    assert found["loss"] == 2.0
    assert found["accuracy"] == 0.75
    metrics.reset()
    update(metrics, jnp.array(5.0), logits, labels)
    assert metrics.loss.total[...] == 5.0
    assert len(update.graphs) == 1


def test_model_and_optimizer_in_one_object(x, values, close):
    def step(state, x):
        gradients = nnx.grad(lambda m: (m(x) ** 2).sum())(state.model)
        with jax.numpy_dtype_promotion("standard"):
            state.update(gradients)

    def make():
        return nnx.ModelAndOptimizer(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), optax.adam(0.1))

    ours, plain = make(), make()
    f = function(step, donate="state")
    for _ in range(2):
        f(ours, x)
        step(plain, x)
    close(values(ours), values(plain))
    assert ours.step[...] == 2


# Functions of all kinds.


def test_methods(net, x, close):
    class Model(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.count = nnx.Variable(jnp.array(0))

        @function
        def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, x, *, k=1.0
        ):
            """Say what it does."""
            self.count[...] += 1
            return self.linear(x) * k

    m = Model()
    close(m(x, k=2.0), 2 * m.linear(x))
    close(m(x), m.linear(x))
    m(x)
    assert m.count[...] == 3
    assert m.__call__.__doc__ == Model.__call__.__doc__ == "Say what it does."
    assert len(Model.__call__.graphs) == 2
    assert m.__call__.graphs == Model.__call__.graphs
    outer = function(lambda m, x: m(x))
    close(outer(m, x), m.linear(x))
    assert m.count[...] == 4


def test_bound_methods_partials_and_callables(net, x, close):
    a = net()
    a.eval()
    close(function(a.__call__)(x), a(x))
    close(function(a)(x), a(x))

    def scaled(m, x, k, *, shift):
        return m(x) * k + shift

    f = function(functools.partial(functools.partial(scaled, a), shift=1.0))
    close(f(x, 2.0), 2 * a(x) + 1)
    close(f(x, 2.0, shift=3.0), 2 * a(x) + 3)
    a.layers[0].kernel[...] = jnp.zeros((3, 3))
    close(f(x, 2.0), 2 * a(x) + 1)
    close(function(function(a.__call__))(x), a(x))


def test_a_partial_shares_its_objects_with_the_arguments(counter):
    c = counter()

    def f(cached, c):
        assert cached.value is c.value
        return cached

    g = function(functools.partial(f, c))
    assert g(counter(c.value)) is c


def test_under_disable_jit_it_is_the_plain_function(counter):
    c, seen = counter(), []
    f = function(lambda c: seen.append(c))
    with jax.disable_jit():
        f(c)
    assert seen == [c]
    assert not f.graphs


def test_names_and_representation():
    def f(x):
        """Double."""
        return 2 * x

    compiled = function(f)
    assert compiled.__name__ == "f"
    assert compiled.__doc__ == "Double."
    compiled(1.0)
    assert repr(compiled) == "<jgraph.function f, 1 graphs>"
