"""The table and the picture count parameters: elements of nnx.Param, and no other state."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from jgraph.graph import function

# Two layers of 3 x 3 + 3, and BatchNorm's scale and bias: its statistics, and the key and count
# of the dropout, are no parameters.
PARAMS = 2 * (3 * 3 + 3) + 2 * 3


def counts(graph, tmp_path):
    """Return the totals of the table, of the still picture and of the page."""
    graph.draw(tmp_path / "net.svg")
    graph.draw(tmp_path / "net.html")
    files = [(tmp_path / name).read_text() for name in ("net.svg", "net.html")]
    found = [re.findall(r"([\d.]+(?: k)?) parameters", file) for file in files]
    return graph.text().splitlines()[-1].split()[1], *(first for first, *_ in found)


@pytest.fixture
def frozen_scale(step):
    """A train step with a parameter that only its update reads."""

    def body(model, optimizer, scale, x):
        loss = step(model, optimizer, x)
        model.layers[0].bias[...] *= scale[...]
        return loss

    return body


def test_a_forward_pass(net, x, tmp_path):
    graph = function(lambda model, x: model(x)).graph(model := net(), x)
    assert model
    assert counts(graph, tmp_path) == ("30", "30", "30")
    assert PARAMS == 30
    (norm,) = [line for line in graph.text().splitlines() if line.split()[0] == "norm"]
    assert re.search(r"f32\[4,3\]\s+6 ", norm)


def test_a_train_step(net, step, x, tmp_path):
    model = net()
    adam = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    with jax.numpy_dtype_promotion("standard"):  # optax isn't written to strict promotion
        graph = function(step).graph(model, adam, x)
    assert counts(graph, tmp_path) == ("30", "30", "30")
    (update,) = [line for line in graph.text().splitlines() if line.startswith("optimizer ")]
    assert re.search(r"gradients → parameters\s+\d+ ", update)  # its FLOPs, and no parameters


def test_a_parameter_that_only_the_update_reads(net, optimizer, frozen_scale, x, tmp_path):
    graph = function(frozen_scale).graph(
        model := net(), optimizer(model), nnx.Param(jnp.ones(3)), x
    )
    assert counts(graph, tmp_path) == ("33", "33", "33")


def test_arrays_that_are_no_variables_are_no_parameters(tmp_path):
    model = nnx.Dict(w=nnx.Param({"a": jnp.ones(2), "b": jnp.ones(3)}), raw=nnx.data(jnp.ones(3)))
    graph = function(lambda m: m.w["a"].sum() + m.w["b"].sum() * m.raw).graph(model)
    assert counts(graph, tmp_path) == ("5", "5", "5")
