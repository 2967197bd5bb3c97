"""A Variable whose value would be frozen into a graph is refused by its name."""

import functools
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jgraph as jg
from jgraph.graph import function


def linear():
    return nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))


MODELS = [linear()]


class Config:
    model = linear()


@pytest.fixture
def refused(x):
    """Return what the first call of a function of x is refused with."""

    def message(body):
        with pytest.raises(jg.InputError) as error:
            function(body)(x)
        return str(error.value)

    return message


def frozen(name, path, holder, what="a Param of type float32[3,3]"):
    return (
        f"{name} reads {path} ({what}) in a way that would freeze its value into the graph; pass "
        f"{holder} as an argument"
    )


def test_containers(refused, x):
    m = linear()
    box: Any = {"m": m, 1: [nnx.Dict(deep=nnx.List([linear()]))]}
    in_box = frozen("<lambda>", "box['m'].kernel", "box['m']")
    assert refused(lambda x: box["m"](x)) == in_box
    with pytest.raises(jg.InputError) as error:
        function(lambda x: box["m"](x)).graph(x)
    assert str(error.value) == in_box
    deep = frozen("<lambda>", "box[1][0].deep[0].kernel", "box[1][0]")
    assert refused(lambda x: box[1][0].deep[0](x)) == deep
    assert refused(lambda x, m=m: m(x)) == frozen("<lambda>", "m.kernel", "m")
    assert refused(lambda x: MODELS[0](x)) == frozen("<lambda>", "MODELS[0].kernel", "MODELS[0]")


def test_attributes(refused):
    class Trainer:
        def __init__(self):
            self.model = linear()

        def forward(self, x):
            return jax.lax.scan(lambda x, _: (self.model(x), None), x, length=2)[0]

    trainer = Trainer()
    expected = frozen("Trainer.forward", "self.model.kernel", "self.model")
    assert refused(trainer.forward) == expected
    expected = frozen("<lambda>", "trainer.model.kernel", "trainer.model")
    assert refused(lambda x: trainer.forward(x)) == expected
    expected = frozen("<lambda>", "Config.model.kernel", "Config.model")
    assert refused(lambda x: Config.model(x)) == expected


def test_a_single_variable(refused):
    box = [nnx.Variable(jnp.array(2.0))]
    expected = frozen("<lambda>", "box[0]", "box[0]", "a Variable of type ~float32[]")
    assert refused(lambda x: x * box[0][...]) == expected


def test_other_modules_partials_and_compiled_functions(refused):
    other = types.ModuleType("other")
    exec("def read(x): return model(x)", vars(other))
    vars(other)["model"] = model = linear()
    expected = frozen("<lambda>", "other.model.kernel", "other.model")
    assert refused(lambda x: other.model(x)) == expected
    read = vars(other)["read"]
    part = functools.partial(lambda f, x: f(x), read)
    assert refused(lambda x: part(x)) == frozen("<lambda>", "model.kernel", "model")
    many = {"f": function(lambda x: model(x))}
    assert refused(lambda x: many["f"](x)) == frozen("<lambda>", "model.kernel", "model")


def test_several_variables(refused):
    box = [nnx.Linear(3, 3, rngs=nnx.Rngs(0)), linear()]
    found = refused(lambda x: box[1](box[0](x)))
    assert found == (
        "<lambda> reads box[0].kernel (a Param of type float32[3,3]) and 2 more Variables in a way "
        "that would freeze their values into the graph; pass box[0] as an argument"
    )


def test_where_the_way_to_it_cannot_be_seen(refused, monkeypatch):
    monkeypatch.setattr(sys, "hidden", linear(), raising=False)
    assert refused(lambda x: sys.__dict__["hidden"](x)) == (
        "<lambda> reads a Param of type float32[3,3] in a way that would freeze its value into the "
        "graph, through a container or a function of another module; pass the object that holds it "
        "as an argument"
    )
