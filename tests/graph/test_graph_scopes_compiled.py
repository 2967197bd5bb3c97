"""A module whose call is compiled by itself has the scope of one whose call isn't."""

import jax.numpy as jnp
import pytest
from flax import nnx

from jgraph.graph import function


class Dense(nnx.Module):
    def __init__(self, size=3):
        self.dense = nnx.Linear(size, size, rngs=nnx.Rngs(0))


class Plain(Dense):
    def __call__(self, x):
        return jnp.sin(self.dense(self.encode(x)))

    def encode(self, x):
        return self.dense(x)


class Compiled(Dense):
    @function
    def __call__(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        return jnp.sin(self.dense(self.encode(x)))

    @function
    def encode(self, x):
        return self.dense(x)


class Jitted(Dense):
    @nnx.jit
    def __call__(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        return jnp.sin(self.dense(self.dense(x)))


class Child(Dense):
    __call__ = Compiled.__call__
    encode = Compiled.encode


class Outer(nnx.Module):
    def __init__(self, kind):
        self.first, self.second, self.wide = kind(), kind(), kind(4)

    def __call__(self, x):
        return self.wide(jnp.pad(self.second(self.first(x)), ((0, 0), (0, 1))))


def call(model, x):
    return model(x)


@pytest.mark.parametrize("kind", [Plain, Compiled, Jitted, Child])
def test_a_submodule(scopes, x, kind):
    expected = {f"model/{name}" for name in ("first", "second", "wide")}
    assert scopes(call, "sin", Outer(kind), x) == expected
    assert scopes(call, "dot_general", Outer(kind), x) == {f"{path}/dense" for path in expected}


def test_the_class_stays_as_it_was(x):
    before = vars(Compiled)["__call__"]
    function(call).graph(Outer(Compiled), x)
    assert vars(Compiled)["__call__"] is before


def test_several_shapes(scopes, x):
    class Outer(nnx.Module):
        def __init__(self):
            self.first, self.second = Compiled(), Compiled()

        def __call__(self, x):
            return self.second(self.first(x)[:2])

    assert scopes(call, "sin", Outer(), x) == {"model/first", "model/second"}
    found = scopes(call, "dot_general", Outer(), x)
    assert found == {"model/first/dense", "model/second/dense"}


def test_an_argument_that_is_called_like_the_outer_one(scopes, x):
    inner = function(call)

    class Outer(nnx.Module):
        def __init__(self):
            self.part = Plain()

        def __call__(self, x):
            return inner(self.part, x)

    assert scopes(call, "sin", Outer(), x) == {"model/model"}
