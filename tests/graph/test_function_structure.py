"""What flax expects of nnx.jit, expected of jg.function: structures that the body changes.

After flax's tests/nnx/transforms_test.py (TestJIT, TestTreeJIT), integration_test.py, rngs_test.py,
graph_utils_test.py and module_test.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jgraph.graph import function

DONATE = pytest.mark.parametrize("donate", [(), "state"])


class Pair(nnx.Module):
    """Two parts of different kinds."""

    def __init__(self):
        self.a = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.b = nnx.BatchNorm(2, rngs=nnx.Rngs(0))


class Twins(nnx.Module):
    """Two parts of one kind."""

    def __init__(self):
        self.a = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(2, 2, rngs=nnx.Rngs(1))


class Cyclic(nnx.Module):
    def __init__(self):
        self.ref = nnx.data(None)


# Changes of structure, inside.


@DONATE
def test_parts_of_two_kinds_are_swapped(donate):
    runs = []

    @function(donate=donate)
    def f(m):
        runs.append(1)
        m.a, m.b = m.b, m.a

    m = Pair()
    a, b, kernel = m.a, m.b, np.array(m.a.kernel[...])
    for n in range(4):
        f(m)
        assert (m.a, m.b) == ((b, a) if n % 2 == 0 else (a, b))
    np.testing.assert_array_equal(a.kernel[...], kernel)
    assert len(runs) == 2 if not donate else len(f.graphs) == 2


def test_parts_of_one_kind_are_swapped():
    @function
    def f(m):
        m.a, m.b = m.b, m.a

    m = Twins()
    a, b = m.a, m.b
    f(m)
    assert m.a is b
    assert m.b is a
    f(m)
    assert m.a is a
    assert len(f.graphs) == 1


def test_variables_are_swapped():
    m = nnx.Dict(a=nnx.Param(jnp.array(1)), b=nnx.Param(jnp.array(2)))
    a, b = m.a, m.b

    @function
    def f(m):
        m.a, m.b = m.b, m.a

    f(m)
    assert m.a is b
    assert m.b is a
    assert (a[...], b[...]) == (1, 2)


def test_objects_in_a_container_are_swapped():
    @function
    def f(tree):
        m = tree[0]["m"]
        m.a, m.b = m.b, m.a

    m = Twins()
    a, b = m.a, m.b
    f(({"m": m},))
    assert m.a is b
    assert m.b is a
    f(({"m": m},))
    assert m.a is a
    assert len(f.graphs) == 1


def test_a_reference_to_itself_is_added():
    @function
    def f(m):
        m.ref = m
        return m

    m = Cyclic()
    for graphs in (1, 2, 2):
        assert f(m) is m
        assert m.ref is m
        assert len(f.graphs) == graphs


@DONATE
def test_variables_and_numbers_are_added_and_removed(donate):
    m: Any = nnx.Dict(n=nnx.static(0), w=nnx.Param(jnp.ones(2)))

    @function(donate=donate)
    def f(m, x):
        m.n += 1
        m.w[...] *= 2
        m.seen = nnx.BatchStat(x * m.w[...])

    @function(donate=donate)
    def g(m):
        del m.seen

    f(m, 3.0)
    assert m.n == 1
    assert m.seen[...].tolist() == [6, 6]
    assert type(m.seen) is nnx.BatchStat
    f(m, 1.0)
    assert m.n == 2
    assert m.seen[...].tolist() == [4, 4]
    g(m)
    assert not hasattr(m, "seen")
    f(m, 1.0)
    assert m.seen[...].tolist() == [8, 8]


# Flax prefers nnx.capture, which the end of the test goes through.
@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@DONATE
def test_sown_values(x, close, donate):
    class Sower(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            x = self.linear(x)
            self.sow(nnx.Intermediate, "hidden", x)
            return 2 * x

    m: Any = Sower()
    f = function(lambda m, x: m(x), donate=donate)
    f(m, x)
    close(m.hidden[0], m.linear(x))
    f(m, x)
    assert len(m.hidden) == 2
    nnx.pop(m, nnx.Intermediate)
    f(m, x)
    assert len(m.hidden) == 1
    nnx.pop(m, nnx.Intermediate)
    capture = function(lambda m, x: nnx.capture(m, nnx.Intermediate)(x), donate=donate)
    out, found = capture(m, x)
    close(out, 2 * m.linear(x))
    close(found["hidden"][0], m.linear(x))


# What is returned.


def test_a_module_is_made(close):
    class Foo(nnx.Module):
        def __init__(self, din, dout, *, rngs):
            self.w = nnx.Param(jax.random.normal(rngs.params(), (din, dout)))
            self.din, self.dout = din, dout

    runs = []

    @function(static=("din", "dout"))
    def create(din, dout, *, rngs):
        runs.append(1)
        return Foo(din, dout, rngs=rngs)

    for seed in (0, 1):
        rngs = nnx.Rngs(seed)
        m = create(2, 3, rngs=rngs)
        assert isinstance(m, Foo)
        assert (m.din, m.dout) == (2, 3)
        assert isinstance(m.din, int)
        close(m.w[...], Foo(2, 3, rngs=nnx.Rngs(seed)).w[...])
        assert rngs.params.count[...] == 1
    assert len(runs) == 1


def test_a_class_is_compiled(close):
    create = function(nnx.Linear, static=("in_features", "out_features"))
    m = create(2, 3, rngs=nnx.Rngs(0))
    close(m.kernel[...], nnx.Linear(2, 3, rngs=nnx.Rngs(0)).kernel[...])


def test_new_and_old_objects_among_results(counter):
    @function
    def f(c, x):
        return {"old": [c, x], "new": nnx.Param(x + 1), "value": (c.value, c.value[...])}

    c = counter(3.0)
    found = f(c, 1.0)
    assert found["old"][0] is c
    assert found["old"][1] == 1
    assert found["value"][0] is c.value
    assert found["value"][1] == 3
    assert isinstance(found["new"], nnx.Param)
    assert found["new"][...] == 2
    assert f(c, 5.0)["new"][...] == 6
    assert found["new"][...] == 2
    assert len(f.graphs) == 1


def test_a_new_object_around_an_old_variable(counter):
    c = counter(1.0)

    @function
    def f(c):
        c.value[...] += 1
        return counter(c.value)

    d = f(c)
    assert d is not c
    assert d.value is c.value
    assert c.value[...] == 2


def test_state_partial_init(close):
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = nnx.state(linear)
    del state["bias"]

    @function
    def init(state):
        m = nnx.Linear(2, 3, bias_init=nnx.initializers.ones, rngs=nnx.Rngs(1))
        nnx.update(m, state)
        return m

    made = init(state)
    close(made.kernel[...], linear.kernel[...])
    assert made.bias[...].tolist() == [1, 1, 1]
