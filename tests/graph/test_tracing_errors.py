"""JAX's errors about traced values name the user's function, its place and its arguments."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jgraph.graph import function


def branches_on_a_picture(model, batch):
    return model(batch["picture"]) if batch["picture"].sum() > 0 else batch


def branches_on_a_weight(model, batch):
    return batch if model.layers[0].kernel[0, 0] > 0 else model


def branches_on_a_variable(model, batch):
    return batch if model.extra["b"] > 0 else model


def branches_on_a_keyword(model, batch, *, scale, **options):
    return batch if scale + options["other"] > 0 else model


@pytest.fixture
def model():
    """A model with a Variable that holds a dict."""
    return nnx.Dict(
        layers=nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))]),
        extra=nnx.Variable({"a": jnp.ones(()), "b": jnp.ones(())}),
    )


@pytest.fixture
def message(model):
    """Return what JAX says where a function branches on a traced value."""

    def of(body, *others, **kwargs):
        args = others or (model, {"picture": jnp.ones(2)})
        with pytest.raises(jax.errors.TracerBoolConversionError) as error:
            function(body)(*args, **kwargs)
        return str(error.value)

    return of


@pytest.mark.parametrize(
    ("body", "argument"),
    [
        (branches_on_a_picture, "argument batch['picture']."),
        (branches_on_a_weight, "argument model.layers[0].kernel."),
        (branches_on_a_variable, "argument model.extra['b']."),
    ],
)
def test_a_branch_on_a_traced_value(message, body, argument):
    said = message(body)
    place = f"{body.__name__} at {__file__}:{body.__code__.co_firstlineno} for jit"
    assert f"tracing the function {place}." in said
    assert argument in said


def test_keywords(message, model):
    said = message(branches_on_a_keyword, model, jnp.ones(2), scale=1.0, other=2.0)
    assert "arguments other and scale." in said


def test_arguments_without_names(message):
    assert "argument args[1]." in message(lambda *args: args[0] if args[1] > 0 else 0, 1.0, 2.0)


def test_objects_in_containers(message, model):
    def body(both):
        return both["x"] if both["model"].layers[0].bias.sum() > both["x"].sum() else 0

    said = message(body, {"model": model, "x": jnp.ones(2)})
    assert "arguments both['model'].layers[0].bias and both['x']." in said


def test_closed_over_models(message, model):
    said = message(lambda x: x if model.layers[0].bias.sum() > 0 else 0, jnp.ones(2))
    assert "argument model.layers[0].bias." in said


def test_inside_another_trace(model):
    inner = function(branches_on_a_weight)
    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"argument model\.layers\[0\]"):
        jax.jit(lambda x: inner(model, x))(jnp.ones(2))


def test_paths_that_are_the_same():
    @jax.tree_util.register_pytree_with_keys_class
    class Same:
        def __init__(self, a, b):
            self.a, self.b = a, b

        def tree_flatten_with_keys(self):
            key = jax.tree_util.GetAttrKey("x")
            return [(key, self.a), (key, self.b)], None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    assert function(lambda same: same.a - same.b)(Same(3.0, 1.0)) == 2


def test_a_decorated_function_is_placed_where_it_is_written(message, model):
    @functools.wraps(branches_on_a_picture)
    def wrapped(*args):
        return branches_on_a_picture(*args)

    line = branches_on_a_picture.__code__.co_firstlineno
    assert f"branches_on_a_picture at {__file__}:{line}" in message(wrapped)


def test_a_leaked_value():
    leaked = []

    def leaks(x):
        leaked.append(x * 2)

    function(leaks)(jnp.ones(3))
    with pytest.raises(jax.errors.UnexpectedTracerError, match=r"leaks at .*test_tracing_errors"):
        jnp.sin(leaked[0])
