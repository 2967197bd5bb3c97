"""Static arguments, donation, and errors that leave everything as it was."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph.graph import function


def message(call):
    with pytest.raises(jg.InputError) as error:
        call()
    return str(error.value)


def held(variable):
    return variable.get_raw_value()


# Static arguments.


@pytest.mark.parametrize("static", ["mode", ["mode"], 1, (1,)])
def test_static_by_name_and_position(static):
    f = function(lambda x, mode: x + 1 if mode == "up" else x - 1, static=static)
    assert f(1.0, "up") == 2
    assert f(1.0, "down") == 0
    assert f(1.0, mode="up") == 2
    assert len(f.graphs) == 2


def test_static_values_of_other_types_are_other_values():
    f = function(lambda k: (jnp.zeros(()), str(type(k)) == "<class 'bool'>")[1], static="k")
    assert [bool(f(k)) for k in (1, True, 1.0, 1)] == [False, True, False, False]
    assert len(f.graphs) == 3


def test_static_keyword_of_an_open_signature():
    f = function(lambda x, **options: x * options["k"], static="k")
    assert f(2.0, k=3) == 6


def test_static_options_are_checked():
    assert message(lambda: function(lambda x, mode: x, static="mood")) == (
        "static must name arguments of the function, x, mode; got 'mood'"
    )
    assert message(lambda: function(lambda x: x, static=1)) == (
        "static must name arguments of the function, x; got 1"
    )
    assert message(lambda: function(lambda: 1.0, static="x")) == (
        "static must name arguments of the function, which has none; got 'x'"
    )


def test_static_values_must_be_hashable():
    f = function(lambda x, names: x, static="names")
    assert message(lambda: f(1.0, ["a"])) == (
        "a static argument must be hashable, since each value has a graph of its own; names is "
        "the list ['a']. Pass it as an ordinary argument, or as a tuple or frozen dataclass"
    )


def test_arguments_that_cannot_be_traced():
    name = "<lambda>"
    f = function(lambda x, options: x)
    assert message(lambda: f(1.0, {"mode": "up"})) == (
        f"{name}: arguments must be arrays, numbers, NNX objects or pytrees of them, and "
        "options['mode'] is the str 'up'; to choose code by it write "
        "jg.function(static='options')"
    )
    f(1.0, {"mode": 1.0})
    assert "options['mode'] is the str 'up'" in message(lambda: f(1.0, {"mode": "up"}))
    assert "options is the object <object object at" in message(lambda: f(1.0, object()))


def test_options_of_a_wrong_kind():
    assert message(lambda: function(lambda m, x: m, donate="model")) == (
        "donate must be 'state' or names of arguments, m, state, x; got 'model'"
    )


# Donation.


@pytest.mark.parametrize("donate", ["state", "c", ["c"]])
def test_memory_is_reused(counter, donate):
    c = counter()
    c.value.set_value(jnp.zeros(1000))

    @function(donate=donate)
    def f(c, x):
        c.value[...] += x[0]

    f(c, jnp.ones(3))
    old = weakref.ref(held(c.value))
    place = held(c.value).unsafe_buffer_pointer()
    f(c, jnp.ones(3))
    assert old() is None
    assert held(c.value).unsafe_buffer_pointer() == place
    assert (c.value[...] == 2).all()
    assert f.graphs[0].memory.reused == 4000


def test_nothing_is_reused_without_donation(counter):
    c = counter()
    f = function(lambda c: c.value.set_value(c.value[...] + 1))
    f(c)
    old = held(c.value)
    f(c)
    assert old == 1
    assert f.graphs[0].memory.reused == 0


def test_only_named_arguments_are_donated(counter):
    a, b = counter(), counter()

    @function(donate="a")
    def f(a, b):
        a.value[...] += 1
        b.value[...] += 1

    f(a, b)
    old = held(b.value)
    f(a, b)
    assert (old, a.value[...], b.value[...]) == (1, 2, 2)


def test_arrays_can_be_donated():
    f = function(lambda x, y: {"a": x["a"] + y}, donate="x")
    x, y = {"a": jnp.ones(100)}, jnp.ones(100)
    assert (f(x, y)["a"] == 2).all()
    assert x["a"].is_deleted()
    assert not y.is_deleted()


def test_only_what_is_overwritten_is_donated(counter):
    model = nnx.Dict(frozen=nnx.Param(jnp.ones(3)), w=nnx.Param(jnp.ones(3)))
    f = function(lambda m: m.w.set_value(m.w[...] * m.frozen[...].sum()), donate="state")
    frozen = held(model.frozen)
    for _ in range(2):
        f(model)
    assert (frozen == 1).all()
    assert (model.w[...] == 9).all()


def test_an_array_held_elsewhere_is_refused(net, optimizer, step, x, values, close):
    model = net()
    optimizer = optimizer(model)
    f = function(step, donate="state")
    f(model, optimizer, x)
    keep = held(model.layers[0].kernel)
    before = values(model, optimizer)
    for _ in range(2):
        assert message(lambda: f(model, optimizer, x)) == (
            f"{f._name} donates its state, so it must be the only one to hold the arrays it "
            "overwrites; model.layers[0].kernel is also held elsewhere. "
            "Make the other a copy, jnp.copy(x), or drop it"
        )
    close(values(model, optimizer), before)
    del keep
    f(model, optimizer, x)
    model.layers[1].bias.set_value(held(model.layers[0].bias))
    assert "model.layers[0].bias, model.layers[1].bias are also" in message(
        lambda: f(model, optimizer, x)
    )
    model.layers[1].bias.set_value(jnp.copy(held(model.layers[0].bias)))
    f(model, optimizer, x)


def test_many_arrays_held_elsewhere():
    model = nnx.List([nnx.Param(jnp.ones(2)) for _ in range(7)])

    @function(donate="state")
    def f(model):
        for v in model:
            v[...] += 1

    keep = [held(v) for v in model]
    assert "model[3], model[4] and 2 more are also" in message(lambda: f(model))
    assert len(keep) == 7


def test_looking_at_a_variable_is_no_alias(net, optimizer, step, x):
    model = net()
    optimizer = optimizer(model)
    f = function(step, donate="state")
    f(model, optimizer, x)
    kernel = model.layers[0].kernel
    assert str(kernel)
    assert repr(model)
    assert float(kernel[0, 0]) == np.asarray(kernel[...])[0, 0]
    f(model, optimizer, x)


def test_a_numpy_view_is_an_alias(counter):
    c = counter()
    c.value.set_value(jnp.zeros(1000))
    f = function(lambda c: c.value.set_value(c.value[...] + 1), donate="state")
    f(c)
    view = np.asarray(held(c.value))
    assert "c.value is also held elsewhere" in message(lambda: f(c))
    assert (view == 1).all()
    del view
    f(c)
    assert (c.value[...] == 2).all()


def test_a_pytree_in_a_variable_is_donated():
    v = nnx.Variable((jnp.ones(3), [jnp.zeros(1000)]))

    @function(donate="state")
    def f(v):
        a, (b,) = v.get_raw_value()
        v.set_raw_value((a, [b + a.sum()]))

    f(v)
    old = v.get_raw_value()
    assert message(lambda: f(v)).split("; ")[1].startswith("v is also held elsewhere")
    gone = [weakref.ref(x) for x in jax.tree.leaves(old)]
    del old
    f(v)
    assert [ref() for ref in gone] == [None, None]
    np.testing.assert_array_equal(v.get_raw_value()[1][0], np.full(1000, 6))


def test_a_number_in_a_variable_is_not_donated():
    v = nnx.Variable(1)
    f = function(lambda v: v.set_value(v.get_value() + 1), donate="state")
    f(v)
    f(v)
    assert v.get_value() == 3


def test_two_variables_set_to_one_value_can_be_donated():
    m = nnx.Dict(a=nnx.Param(jnp.ones(2)), b=nnx.Param(jnp.ones(2)))

    @function(donate="state")
    def f(m):
        new = m.a[...] + 1
        m.a[...] = new
        m.b[...] = new

    for _ in range(3):
        f(m)
    assert (m.b[...] == 4).all()


# Errors leave everything as it was.


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("donate", [(), "state"])
def test_errors_leave_objects_as_they_were(net, optimizer, step, x, values, close, donate, error):
    model = net()
    optimizer = optimizer(model)
    before, structure = values(model, optimizer), nnx.graphdef((model, optimizer))
    fail = True

    @function(donate=donate)
    def f(model, optimizer, x):
        step(model, optimizer, x)
        if fail:
            model.layers[0].kernel[...] = jnp.zeros((3, 3))
            model.scale = 7.0
            model.extra = nnx.Param(x)
            raise error("boom")

    with pytest.raises(error, match="boom") as caught:
        f(model, optimizer, x)
    close(values(model, optimizer), before)
    assert nnx.graphdef((model, optimizer)) == structure
    assert not f.graphs
    fail = False
    for _ in range(2):  # while someone holds the traceback
        f(model, optimizer, x)
    assert caught.value.args == ("boom",)
    assert f.graphs[0].reason == "the first call"
    assert len(f.graphs) == 1
    assert not (values(model)[2] == before[2]).all()


@pytest.mark.parametrize("donate", [(), "state"])
def test_errors_in_a_second_trace(counter, donate):
    @function(donate=donate)
    def f(c, x):
        c.value[...] += x.sum()
        if x.shape == (2,):
            raise KeyError("boom")

    c = counter()
    f(c, jnp.ones(1))
    with pytest.raises(KeyError, match="boom") as caught:
        f(c, jnp.ones(2))
    f(c, jnp.ones(1))
    assert c.value[...] == 2
    assert caught.value.args == ("boom",)


def test_an_interrupt_while_compiling(counter, monkeypatch):
    from jax._src import compiler  # the one place where a compilation can be made to fail

    c, f = counter(), function(lambda c: c.value.set_value(c.value[...] * 1.25), donate="state")
    c.value.set_value(jnp.ones(()))
    compile_it = compiler.backend_compile_and_load
    with monkeypatch.context() as patch:

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        patch.setattr(compiler, "backend_compile_and_load", interrupt)
        with pytest.raises(KeyboardInterrupt):
            f(c)
    assert compiler.backend_compile_and_load is compile_it
    assert c.value[...] == 1
    f(c)
    assert c.value[...] == 1.25
    assert [g.reason for g in f.graphs] == ["the first call"]


def test_a_result_that_is_no_array(counter):
    f = function(lambda c: (c.value[...], "text"))
    with pytest.raises(TypeError, match=r"value of type <class 'str'> at output component \[1\]"):
        f(counter())


def test_a_variable_with_a_reference_is_refused():
    v = nnx.Variable(jnp.ones(2), ref=True)
    m = nnx.Dict(v=v)
    assert message(lambda: function(lambda m: m.v[...])(m)) == (
        "m.v holds a jax Ref, which jg.function doesn't take: make it a plain Variable "
        "(nnx.Variable(value, ref=False))"
    )


def test_a_plain_object_that_holds_a_model_is_named(net):
    class Trainer:
        def __init__(self):
            self.model = net()

        @function
        def forward(self, x):
            return self.model(x)

    trainer = Trainer()
    with pytest.raises(jg.InputError) as error:
        trainer.forward(jnp.ones((1, 3)))
    assert str(error.value).startswith("Trainer.forward: arguments must be arrays, ")
    assert str(error.value).endswith(
        "pass self.model, which it holds, as an argument of its own, or make Trainer an nnx.Module"
    )


def test_code_chosen_by_a_traced_value_says_what_is_static():
    f = function(lambda x, train: x if train else -x)
    with pytest.raises(jax.errors.TracerBoolConversionError) as error:
        f(jnp.ones(2), True)
    note = (
        "<lambda> was traced, so its arguments had shapes and types, and no values. "
        "What chooses code is static: jg.function(static='name of the argument')"
    )
    assert note in error.value.__notes__
