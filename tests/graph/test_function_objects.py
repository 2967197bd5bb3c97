"""What flax expects of nnx.jit, expected of jg.function: objects behave as in plain Python.

After flax's tests/nnx/transforms_test.py (TestJIT, TestTreeJIT), integration_test.py, rngs_test.py,
graph_utils_test.py and module_test.py.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jgraph.graph import function

DONATE = pytest.mark.parametrize("donate", [(), "state"])


# Mutation.


@DONATE
def test_train_steps_equal_plain_python(net, optimizer, step, x, values, close, donate):
    ours, plain = net(), net()
    our_optimizer, plain_optimizer = optimizer(ours), optimizer(plain)
    compiled = function(step, donate=donate)
    for _ in range(3):
        close(compiled(ours, our_optimizer, x), step(plain, plain_optimizer, x))
    close(values(ours, our_optimizer), values(plain, plain_optimizer))
    assert len(compiled.graphs) == 1


def test_forward_passes_equal_nnx_jit(net, x, values, close):
    ours, theirs = net(), net()
    compiled, jitted = function(lambda m, x: m(x)), nnx.jit(lambda m, x: m(x))
    for _ in range(3):  # the random mask and the statistics move on
        close(compiled(ours, x), jitted(theirs, x))
    close(values(ours), values(theirs))


@DONATE
def test_a_plain_number_is_written(donate):
    m = nnx.Dict(a=nnx.Param(1))

    @function(donate=donate)
    def f(m):
        m.a[...] = 2
        return 1.0

    assert f(m) == 1.0
    assert m.a[...] == 2


def test_only_what_changes_is_written(net, x):
    model = net()
    before = model.layers[0].kernel.get_raw_value()
    function(lambda m, x: m(x))(model, x)
    assert model.layers[0].kernel.get_raw_value() is before


def test_branches_on_shape_write_different_variables(counter):
    a, b = counter(), counter()

    @function(donate="state")
    def f(a, b, x):
        a.value[...] += 1
        if x.shape[0] > 1:
            b.value[...] += 1

    for rows in (1, 2, 1, 2, 2):
        f(a, b, jnp.ones(rows))
    assert (a.value[...], b.value[...]) == (5, 3)


def test_values_of_two_variables_can_be_swapped():
    m = nnx.Dict(a=nnx.Param(jnp.array(1)), b=nnx.Param(jnp.array(2)))
    a, b = m.a, m.b

    @function
    def f(m):
        first, second = m.a.get_value(), m.b.get_value()
        m.a.set_value(second)
        m.b.set_value(first)

    for wanted in ((2, 1), (1, 2)):
        f(m)
        assert (m.a[...], m.b[...]) == wanted
    assert m.a is a
    assert m.b is b
    assert len(f.graphs) == 1


# One object in several places.


@DONATE
def test_the_same_object_twice(counter, donate):
    @function(donate=donate)
    def f(a, b):
        assert a is b
        a.value[...] += 1
        b.value[...] += 10

    c = counter()
    f(c, c)
    f(c, c)
    assert c.value[...] == 22


@DONATE
def test_a_variable_shared_by_two_arguments(counter, donate):
    c = counter()
    d = counter(c.value)

    @function(donate=donate)
    def f(a, b, x):
        assert a is not b
        assert a.value is b.value
        a.value[...] += x
        return a.value[...] + b.value[...]

    assert f(c, d, 1.0) == 2.0
    assert f(c, d, 1.0) == 4.0
    assert c.value is d.value
    assert c.value[...] == 2
    e, g = counter(), counter(10.0)
    separate = function(lambda a, b: a.value.set_value(b.value[...] + 1))
    separate(e, g)
    assert (e.value[...], g.value[...]) == (11, 10)
    separate(c, d)
    assert d.value[...] == 3
    assert len(separate.graphs) == 2  # sharing is structure


def test_pytree_of_variables_with_one_twice():
    v, w = nnx.Param(jnp.array(1)), nnx.Param(jnp.array(2))

    @function
    def f(variables):
        first, second, third = variables
        assert first is second
        first[...] += 10
        third[...] += 10

    for wanted in (11, 21):
        f([v, v, w])
        assert v[...] == wanted
    assert w[...] == 22


def test_tied_weights_stay_tied(x, close):
    class Tied(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.second = nnx.Linear(3, 3, rngs=nnx.Rngs(1))
            self.second.kernel = self.first.kernel

    def update(m):
        gradients = nnx.grad(lambda m: m.second(m.first(x)).sum())(m)
        new = jax.tree.map(lambda w, g: w - 0.1 * g, nnx.state(m, nnx.Param), gradients)
        nnx.update(m, new)

    m, plain = Tied(), Tied()
    function(update)(m)
    update(plain)
    close(m.first.kernel[...], plain.first.kernel[...])
    assert m.first.kernel is m.second.kernel


# Caching.


def test_the_body_runs_once(net, x):
    runs = []

    @function
    def f(m, x):
        runs.append(1)
        return m(x)

    model = net()
    for _ in range(3):
        assert f(model, x).shape == (4, 3)
    assert len(runs) == 1
    f(net(5), x)  # another model of the same structure
    assert len(runs) == 1


def test_two_models_keep_their_weights(net, x, close):
    a, b = net(0), net(1)
    a.eval()
    b.eval()
    f = function(lambda m, x: m(x))
    for _ in range(2):
        close(f(a, x), a(x))
        close(f(b, x), b(x))
    assert len(f.graphs) == 1


def test_nnx_jit_between_calls(net, x, close):
    model = net()
    model.eval()
    f, j = function(lambda m, x: m(x)), nnx.jit(lambda m, x: m(x))
    tag = function(lambda m: m.layers[0].kernel.get_metadata("tag", 0))
    f(model, x)
    assert tag(model) == 0
    j(model, x)
    close(f(model, x), model(x))
    assert len(f.graphs) == 1
    model.layers[0].kernel.set_metadata("tag", 5)
    assert tag(model) == 5


# Changes of structure, outside.


def test_structure_changes_between_calls(net, x, close):
    model = net()
    model.eval()
    f = function(lambda m, x: m(x))

    def change(what):
        what()
        close(f(model, x), model(x))

    f(model, x)
    change(lambda: setattr(model, "scale", 2.0))
    change(lambda: setattr(model, "scale", 1.0))
    assert len(f.graphs) == 2  # back to the first
    change(lambda: model.layers.__setitem__(1, nnx.Linear(3, 3, rngs=nnx.Rngs(9))))
    change(lambda: setattr(model.layers[0], "bias", nnx.Param(jnp.ones(3))))
    change(lambda: model.layers[0].kernel.set_value(jnp.zeros((3, 3))))
    assert len(f.graphs) == 2  # other Variables of the same structure
    change(lambda: model.layers.append(nnx.Linear(3, 3, rngs=nnx.Rngs(5))))
    change(lambda: setattr(model, "extra", nnx.Param(jnp.ones(2))))
    change(lambda: delattr(model, "extra"))
    change(lambda: setattr(model, "norm", nnx.LayerNorm(3, rngs=nnx.Rngs(0))))
    change(lambda: setattr(model.layers[2], "kernel", model.layers[0].kernel))


def test_train_and_eval_have_a_graph_each(net, x, close):
    model = net()
    f = function(lambda m, x: m(x))
    count = model.drop.rngs.count
    f(model, x)
    assert count[...] == 1
    model.eval()
    close(f(model, x), model(x))
    assert count[...] == 1
    model.train()
    f(model, x)
    assert count[...] == 2
    assert len(f.graphs) == 2


def test_an_item_of_a_plain_list_is_replaced(x, close):
    class Plain(nnx.Module):
        def __init__(self):
            self.layers = nnx.data([nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(2)])

        def __call__(self, x):
            return self.layers[1](self.layers[0](x))

    m = Plain()
    f = function(lambda m, x: m(x))
    f(m, x)
    m.layers[0] = nnx.Linear(3, 3, rngs=nnx.Rngs(7))
    close(f(m, x), m(x))


def test_a_renamed_key_is_noticed():
    m = nnx.Dict(parts=nnx.data({"a": nnx.Param(jnp.array(1.0))}))
    f = function(lambda m: dict.fromkeys(m.parts, 1))
    assert list(f(m)) == ["a"]
    m.parts["b"] = m.parts.pop("a")
    assert list(f(m)) == ["b"]


def test_metadata_is_noticed():
    v = nnx.Param(jnp.ones(2), tag=1)
    m = nnx.Dict(v=v)
    f = function(lambda m: m.v.get_metadata("tag") * m.v[...])
    assert f(m).tolist() == [1, 1]
    v.set_metadata("tag", 3)
    assert f(m).tolist() == [3, 3]


def test_raw_array_attributes():
    class Raw(nnx.Module):
        def __init__(self):
            self.a = jnp.ones(3)
            self.count = jnp.array(0)

    m = Raw()
    f = function(lambda m, x: m.a * x)
    assert f(m, 2.0).tolist() == [2, 2, 2]
    m.a = jnp.zeros(3)
    assert f(m, 2.0).tolist() == [0, 0, 0]
    assert len(f.graphs) == 1

    @function
    def count(m):
        m.count += 1

    for _ in range(3):
        count(m)
    assert m.count == 3
    assert len(count.graphs) == 1
