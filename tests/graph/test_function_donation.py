"""What a call would overwrite is refused where something else holds it, before it is lost."""

import re
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jgraph as jg
from jgraph.graph import function


@pytest.fixture
def add_one():
    """Add one to every array of a Variable that holds a container, in place."""
    return function(
        lambda v: v.set_raw_value(jax.tree.map(lambda x: x + 1, v.get_raw_value())),
        donate="state",
    )


@pytest.fixture
def refused():
    """Return the paths that a call is refused for."""

    def paths(call):
        with pytest.raises(jg.InputError) as error:
            call()
        return re.findall(r"overwrites; (.*) (?:is|are) also held elsewhere\.", str(error.value))

    return paths


@jax.tree_util.register_pytree_node_class
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b

    def tree_flatten(self):
        return (self.a, self.b), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@pytest.mark.parametrize(
    ("make", "read", "path"),
    [
        (lambda: {"a": jnp.zeros(3)}, lambda v: v["a"], "v['a']"),
        (lambda: (jnp.zeros(3), [jnp.zeros(3)]), lambda v: v[1][0], "v[1][0]"),
        (lambda: {"a": [jnp.zeros(3)]}, lambda v: v["a"], "v['a']"),
        (lambda: {"a": [jnp.zeros(3)]}, lambda v: v, "v"),
        (lambda: Pair(jnp.zeros(3), {"b": jnp.zeros(3)}), lambda v: v.b["b"], "v[1]"),
    ],
)
def test_arrays_in_a_variables_container(add_one, refused, make, read, path):
    v = nnx.Variable(make())
    for _ in range(2):
        add_one(v)
    other = read(v.get_raw_value())
    assert refused(lambda: add_one(v)) == [path]
    assert all((x == 2).all() for x in jax.tree.leaves(other))
    del other
    gone = [weakref.ref(x) for x in jax.tree.leaves(v.get_raw_value())]
    add_one(v)
    assert [ref() for ref in gone] == [None] * len(gone)
    assert all((x == 3).all() for x in jax.tree.leaves(v.get_raw_value()))


def test_what_has_no_arrays_may_be_held_anywhere(add_one):
    empty = ((), [], {})
    v: Any = nnx.Variable({"a": jnp.zeros(3), "none": empty})
    for _ in range(2):
        add_one(v)
    assert (v.get_raw_value()["a"] == 2).all()


def test_beside_plain_variables(refused):
    model = nnx.Dict(w=nnx.Param(jnp.zeros(3)), t=nnx.Variable({"a": jnp.zeros(3)}))

    @function(donate="state")
    def f(model):
        model.w[...] += 1
        model.t.set_raw_value({"a": model.t.get_raw_value()["a"] + 1})

    f(model)
    array = model.t.get_raw_value()["a"]
    assert refused(lambda: f(model)) == ["model.t['a']"]
    del array
    array = model.w.get_raw_value()
    assert refused(lambda: f(model)) == ["model.w"]
    del array
    f(model)
    assert (model.w[...] == 2).all()


@pytest.mark.parametrize("what", ["object", "argument", "twice"])
def test_an_argument_that_stands_in_the_call_again(what):
    array = jnp.ones(3)
    model = nnx.Dict(w=nnx.Param(array if what == "object" else jnp.ones(3)))
    y = {"object": None, "argument": array, "twice": None}[what]
    f = function(lambda x, model, y: [a + model.w[...] for a in x], donate="x")
    with pytest.raises(jg.InputError) as error:
        f([array] if what != "twice" else [array, array], model, y)
    assert str(error.value) == (
        "<lambda> donates the memory of an argument, so each of its arrays must be given once, and "
        "no object of the call may hold it; give a copy, jnp.copy(x)"
    )
    assert (array == 1).all()
    assert (f([jnp.copy(array)], model, None)[0] == 2).all()


def test_a_clone_is_copied_as_the_message_says():
    model = nnx.Dict(a=nnx.Param(jnp.zeros(3)), b=nnx.Param(jnp.zeros(3)))
    model.c = model.a
    clone = nnx.clone(model)

    @function(donate="state")
    def f(model):
        model.a[...] += 1
        model.b[...] += 1

    with pytest.raises(jg.InputError) as error:
        f(model)
    remedy = "nnx.update(clone, jax.tree.map(jnp.copy, nnx.state(clone)))"
    assert str(error.value).endswith(
        f"Make the other a copy, jnp.copy(x), of a whole clone {remedy}, or drop it"
    )
    exec(remedy, {"nnx": nnx, "jax": jax, "jnp": jnp, "clone": clone})
    f(model)
    assert clone.c is clone.a
    assert (clone.a[...] == 0).all()
    assert (model.c[...] == 1).all()
