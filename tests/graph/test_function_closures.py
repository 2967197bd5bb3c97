"""Functions over a closed-over or global model: what they read is state, and a write raises."""

from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph.graph import function


class Line(nnx.Module):
    def __init__(self, seed=0):
        self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(seed))
        self.count = nnx.Variable(jnp.array(0, jnp.int32))
        self.scale = 1.0

    def __call__(self, x):
        return self.linear(x) * self.scale


MODEL = Line()
RUNS = 0
CALLS = []
MODELS = [Line()]


def read_global(x):
    return MODEL(x)


def read_through_helpers(x):
    return first_helper(x) + 1


def first_helper(x):
    return second_helper(x) * 2


def second_helper(x, depth=1):
    return second_helper(x, depth - 1) if depth else MODEL(x)


def count_global_runs(x):
    global RUNS
    RUNS += 1
    count_calls()
    return MODEL(x) * RUNS


def count_calls():
    global CALLS
    CALLS = [*CALLS, 1]


def change(model):
    model.linear.kernel[...] = jnp.ones((3, 3)) * 5


def message(call):
    with pytest.raises(jg.InputError) as error:
        call()
    return str(error.value)


def write(path, name):
    return (
        f"{name} may only read what it closes over, and it writes {path}: pass the object as an "
        "argument, and what changes is written back"
    )


# Reading.


def test_a_closed_over_model_is_state(x, close):
    m = Line()
    f = function(lambda x: m(x))
    close(f(x), m(x))
    assert sorted(f.graphs[0].state) == ["m.count", "m.linear.bias", "m.linear.kernel"]
    change(m)
    close(f(x), m(x))
    m = Line(5)  # another object under the same name
    close(f(x), m(x))
    assert len(f.graphs) == 1
    m.scale = 2.0
    close(f(x), m(x))
    assert [g.reason for g in f.graphs][1] == (
        "m.scale: was 1.0, is 2.0. Make it a Variable if it is to change between calls."
    )


def test_gradients_reach_a_closed_over_model_from_outside(x, close):
    m = Line()
    f = function(lambda x: m(x).sum())
    plain = lambda x: m(x).sum()  # noqa: E731
    close(jax.grad(f)(x), jax.grad(plain)(x))
    close(jax.jit(f)(x), plain(x))

    def loss(kernel):
        inner = nnx.clone(m)
        inner.linear.kernel[...] = kernel
        return function(lambda x: inner(x).sum())(x)

    close(jax.grad(loss)(m.linear.kernel[...]), jnp.tile(x.sum(0)[:, None], (1, 3)))


@pytest.mark.parametrize("body", [read_global, read_through_helpers])
def test_globals_also_through_helpers(x, close, body):
    f = function(body)
    old = np.array(MODEL.linear.kernel[...])
    try:
        for _ in range(2):
            close(f(x), body(x))
            change(MODEL)
        close(f(x), body(x))
    finally:
        MODEL.linear.kernel[...] = old
    assert len(f.graphs) == 1
    assert "MODEL.linear.kernel" in f.graphs[0].state


def test_a_helper_in_the_closure(x, close):
    m = Line()

    def helper(x):
        return m(x)

    def other(x):
        return helper(x) * 2

    f = function(lambda x: other(x) + m(x))
    change(m)
    close(f(x), 3 * m(x))
    assert sorted(f.graphs[0].state) == ["m.count", "m.linear.bias", "m.linear.kernel"]
    change(m)
    close(f(x), 3 * m(x))


def test_several_objects_and_an_argument(x, close):
    a, b, c = Line(0), Line(1), Line(2)
    rate = nnx.Variable(jnp.array(2.0))
    f = function(lambda m, x: m(x) + a(x) * rate[...] + b(x))
    for _ in range(2):
        close(f(c, x), c(x) + a(x) * rate[...] + b(x))
        change(b)
        rate[...] = jnp.array(3.0)
    assert len(f.graphs) == 1


def test_two_objects_of_one_name(x, close):
    def make(seed):
        m = Line(seed)
        return lambda x: m(x)

    m, inner = Line(0), make(1)
    f = function(lambda x: inner(x) + m(x))
    close(f(x), inner(x) + m(x))
    assert len(f.graphs[0].state) == 6
    assert {path.partition(".linear")[0] for path in f.graphs[0].state if "linear" in path} == {
        "<lambda>.m",
        "<lambda>.m#2",
    }
    g = function(lambda m, x: inner(x) + m(x))
    close(g(m, x), inner(x) + m(x))
    assert len(g.graphs[0].state) == 6


def test_the_same_object_as_argument_and_closed_over():
    m = Line()

    @function
    def f(model):
        model.count[...] += 1
        return m.count[...]

    assert f(m) == 1
    assert f(m) == 2
    assert m.count[...] == 2


def test_names_that_the_body_assigns(x, close):
    runs = 0
    m = Line()

    def body(x):
        nonlocal runs
        runs += 1
        return m(x)

    f = function(body)
    f(x)
    f(x)
    assert runs == 1

    g, before, calls = function(count_global_runs), RUNS, len(CALLS)
    close(g(x), MODEL(x) * (before + 1))
    g(x)
    assert before + 1 == RUNS
    assert len(CALLS) == calls + 1


def test_a_recursive_closure(x, close):
    m = Line()

    def repeat(x, n):
        return m(repeat(x, n - 1)) if n else x

    f = function(lambda x: repeat(x, 2))
    close(f(x), m(m(x)))
    change(m)
    close(f(x), m(m(x)))


def test_a_model_that_is_assigned_later(x, close):
    def body(x):
        return m(x)

    f = function(body)
    m = Line()
    close(f(x), m(x))
    change(m)
    close(f(x), m(x))


def test_arrays_in_a_closure_are_constants(x, close):
    m = Line()
    anchor = m.linear.kernel[...]  # as in a penalty on the distance from where training began
    anchors = {"kernel": anchor}
    f = function(lambda m: ((m.linear.kernel[...] - anchor) ** 2).sum())
    g = function(lambda m: ((m.linear.kernel[...] - anchors["kernel"]) ** 2).sum())
    h = function(lambda m, anchor=anchor: ((m.linear.kernel[...] - anchor) ** 2).sum())
    assert f(m) == g(m) == h(m) == 0
    m.linear.kernel[...] = anchor + 2
    close([f(m), g(m), h(m)], [36.0, 36.0, 36.0])


# Writing.


@pytest.mark.parametrize("donate", [(), "state"])
def test_writing_a_value_raises(x, donate):
    m = Line()

    def body(x):
        m.count[...] += 1
        return m(x)

    for _ in range(2):
        f = function(body, donate=donate)
        name = "body"
        assert message(lambda: f(x)) == write("m.count", name)  # noqa: B023
    assert m.count[...] == 0


def test_writing_a_global_through_a_helper_raises(x):
    def body(x):
        change(MODEL)
        return x

    before = np.array(MODEL.linear.kernel[...])
    name = "body"
    assert message(lambda: function(body)(x)) == write("MODEL.linear.kernel", name)
    np.testing.assert_array_equal(MODEL.linear.kernel[...], before)


def test_changing_the_structure_raises(x):
    m: Any = Line()

    def scale(x):
        m.scale = 3.0
        return x

    def add(x):
        m.extra = nnx.Param(x)
        return x

    def swap(x):
        m.linear, m.other = m.other, m.linear
        return x

    m.other = nnx.Linear(3, 3, rngs=nnx.Rngs(5))
    linear = m.linear
    for body in (scale, add, swap):
        assert message(lambda: function(body)(x)) == write("m", body.__name__)  # noqa: B023
    assert m.scale == 1.0
    assert not hasattr(m, "extra")
    assert m.linear is linear


def test_writing_beside_a_new_structure_of_an_argument_raises(x):
    m, argument = Line(), Line()

    def body(model, x):
        model.extra = nnx.Param(x)
        m.count[...] += 1

    name = "body"
    assert message(lambda: function(body)(argument, x)) == write("m.count", name)
    assert m.count[...] == 0
    assert not hasattr(argument, "extra")


def test_writing_a_raw_array_raises(x):
    m = nnx.Dict(a=nnx.data(jnp.ones(2)))

    def body():
        m.a = m.a + 1

    name = "body"
    assert message(function(body)) == write("m.a", name)
    assert (m.a == 1).all()


# What would be frozen.


def test_writing_into_a_container_raises(x):
    box = [Line()]

    def body(x):
        box[0].count[...] += 1
        return x

    with pytest.raises(flax.errors.TraceContextError, match="Cannot mutate Variable"):
        function(body)(x)
    assert box[0].count[...] == 0


def test_a_host_callback_reads_the_object_itself(counter):
    """It runs after the trace, so it must not see what the trace put in the object's place."""
    c = counter(2.0)
    seen = []

    def look(x):
        seen.append(float(c.value[...] + x))

    @function
    def f(x):
        jax.debug.callback(look, x)
        return c.value[...] * x

    for value in (2.0, 5.0):
        c.value[...] = jnp.array(value)
        assert f(jnp.float32(1)) == value
        jax.effects_barrier()
    assert seen == [3.0, 6.0]
