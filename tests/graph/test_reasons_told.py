"""How the reasons of retraces are told: which call is compared, the log, max_graphs, explain."""

import logging

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jgraph as jg
from jgraph.graph import function

HERE, THERE = jax.devices()[:2]


def second(f):
    assert len(f.graphs) == 2
    assert f.graphs[0].reason == "the first call"
    return f.graphs[1].reason


# Several at once, and which call is compared.


def test_the_nearest_call_is_compared():
    f = function(lambda x, y: (x, y))
    ones = jnp.ones
    f(ones(1), ones(1))
    f(ones(2), ones((2, 2)))
    f(ones(2), ones(1))
    assert f.graphs[2].reason == (
        "x: shape was float32[1], is float32[2]. "
        "Pad it to one shape, or drop the last, smaller batch."
    )
    f(ones(2), ones(2))
    assert f.graphs[3].reason == (
        "y: shape was float32[2,2], is float32[2]. Give it one number of axes."
    )


def test_several_causes_and_many_arrays(call):
    body = lambda xs, y: y  # noqa: E731
    first = [[jnp.ones(2)] * 5, jnp.ones(3)], [[jnp.ones(1)] * 5, jnp.ones(3, int)]
    assert call(*first, body=body) == (
        "xs[0]: shape was float32[2], is float32[1]; xs[1]: shape was float32[2], is float32[1]; "
        "xs[2]: shape was float32[2], is float32[1] (and 2 more). "
        "Pad it to one shape, or drop the last, smaller batch. "
        "y: dtype was float32[3], is int32[3]. Cast it, y.astype('float32'), or keep one dtype."
    )


# Telling it.


def test_logged_once_each_from_the_second_retrace_on(caplog):
    caplog.set_level(logging.INFO, "jgraph")
    f = function(lambda x: x * 2)
    for n in (1, 1, 2, 1, 3, 3, 4, 2):
        f(jnp.ones(n))
    name = "<lambda>"
    remedy = "Pad it to one shape, or drop the last, smaller batch."
    assert [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "jgraph"] == [
        (
            level,
            f"{name} was traced again (graph {n - 1}): "
            f"x: shape was float32[{before}], is float32[{n}]. {remedy}",
        )
        for level, n, before in (("INFO", 2, 1), ("WARNING", 3, 1), ("WARNING", 4, 1))
    ]
    caplog.clear()
    f(jax.device_put(jnp.ones(4), jax.devices()[3]))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{name} was compiled again (graph 4): without a trace")


def test_max_graphs(counter):
    @function(max_graphs=2, donate="state")
    def f(c, x):
        c.value[...] += x.sum()

    c = counter()
    for n in (1, 2, 1):
        f(c, jnp.ones(n))
    for _ in range(2):
        with pytest.raises(jg.RetraceError) as error:
            f(c, jnp.ones(3))
        assert str(error.value) == (
            "f may have 2 graphs (max_graphs=2), and this call needs another one: "
            "x: shape was float32[1], is float32[3]. "
            "Pad it to one shape, or drop the last, smaller batch."
        )
    assert c.value[...] == 4
    f(c, jnp.ones(2))
    assert c.value[...] == 6
    assert len(f.graphs) == 2


def test_max_graphs_counts_compilations():
    f = function(lambda x: x, max_graphs=1)
    f(jax.device_put(1.0, HERE))
    with pytest.raises(jg.RetraceError, match="without a trace, x: placement was"):
        f(jax.device_put(1.0, THERE))


def test_max_graphs_must_count_what_one_model_needs():
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    f = function(lambda model, x: model(x), max_graphs=1)
    f(model, jnp.ones(3))
    model.eval()
    with pytest.raises(jg.RetraceError) as error:
        f(model, jnp.ones(3))
    assert str(error.value) == (
        "<lambda> may have 1 graph (max_graphs=1), and this call needs another one: "
        "model.deterministic: was False, is True. "
        "model.train() and model.eval() have a graph each: max_graphs must count both."
    )
    g = function(lambda x: x, max_graphs=1)
    g(jnp.ones(3))
    with pytest.raises(jg.RetraceError, match="a graph for each: max_graphs must count both"):
        jax.jit(g)(jnp.ones(3))


@pytest.mark.parametrize("wrong", [0, -1, True])
def test_max_graphs_is_a_number(wrong):
    with pytest.raises(jg.InputError) as error:
        function(lambda x: x, max_graphs=wrong)
    assert str(error.value) == f"max_graphs must be a whole number from 1, or None, got {wrong!r}"


def test_explain(capsys):
    f = function(lambda x: x @ x)
    f.explain()
    name = "<lambda>"
    assert capsys.readouterr().out == f"{name}: no graphs yet; the first call makes one\n"
    for n in (2, 3):
        f(jnp.ones((n, n)))
    head, columns, first, then = capsys.readouterr().out.splitlines() or _explained(f, capsys)
    assert head == name
    assert columns.split() == ["graph", "operations", "FLOPs", "compiled", "in", "why"]
    assert first.split()[:3] == ["0", "1", "16"]  # 2 n^3
    assert first.endswith("s  the first call")
    assert then.split()[:3] == ["1", "1", "54"]
    assert then.endswith("or drop the last, smaller batch.")
    assert columns.index("why") == first.index("the first call") == then.index("x: shape")


def _explained(f, capsys):
    f.explain()
    return capsys.readouterr().out.splitlines()
