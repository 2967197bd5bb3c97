"""What a compiled function closes over is state of the compiled functions that call it, too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph.graph import function


class Scale(nnx.Module):
    """A number to multiply with."""

    def __init__(self, value=2.0):
        self.value = nnx.Param(jnp.array(value))

    def __call__(self, x):
        return x * self.value[...]


MODEL = Scale()


@function
def by_global(x):
    return MODEL(x)


def helper(x):
    return by_global(x) + 1


@pytest.fixture
def model():
    return Scale()


@pytest.fixture
def inner(model):
    """A compiled function that closes over the model."""

    @function
    def inner(x):
        return model(x)

    return inner


@pytest.fixture
def follows(model):
    """Assert that a compiled function of x is 2 x, and 3 x after the model changed."""

    def check(f, model=model):
        assert f(1.0) == 2
        model.value[...] = jnp.array(3.0)
        assert f(1.0) == 3
        model.value[...] = jnp.array(2.0)

    return check


def test_a_value_that_changes_is_followed(inner, follows):
    outer = function(lambda x: inner(x))
    follows(outer)
    assert list(outer.graphs[0].state) == ["model.value"]
    assert len(inner.graphs) == len(outer.graphs) == 1


def test_through_a_helper_and_two_functions(inner, follows):
    middle = function(lambda x: inner(x) / 2)

    def twice(x):
        return middle(x) + middle(x)

    follows(function(twice))


def test_globals(follows):
    follows(function(lambda x: helper(x) - 1), MODEL)


def test_within_transforms(inner, follows):
    follows(function(lambda x: jax.grad(inner)(x)))
    follows(function(lambda x: jax.jit(lambda x: inner(x))(x)))
    follows(function(lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, length=1)[0]))


def test_the_same_model_as_an_argument(model, inner):
    @function
    def outer(model, x):
        before = inner(x)
        model.value[...] *= 10
        return before, inner(x)

    assert outer(model, 1.0) == (2, 20)
    assert model.value[...] == 20
    assert inner(1.0) == 20


def test_gradients_of_what_the_inner_one_reads(model, inner):
    @function
    def outer(model, x):
        return nnx.grad(lambda m: m(x) * inner(x))(model)

    # inner reads the model outside of the gradient, so it counts as a constant: 2 x · x.
    assert outer(model, 3.0)["value"][...] == 18


def test_writing_raises_and_leaves_nothing_behind(model):
    @function
    def writes(x):
        model.value[...] += 1
        return x

    with pytest.raises(jg.InputError, match=r"writes may only read .* it writes model\.value"):
        function(lambda x: writes(x))(1.0)
    assert model.value[...] == 2
    assert function(lambda x: model(x))(1.0) == 2


def test_alone_it_reads_the_model_itself(inner, follows):
    def fails(x):
        inner(x)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        function(fails)(1.0)
    follows(inner)


def test_a_function_that_calls_itself():
    @function
    def power(x, n):
        return MODEL(power(x, n[1:])) if n.size else x

    np.testing.assert_array_equal(power(jnp.ones(2), jnp.zeros(3)), [8, 8])
