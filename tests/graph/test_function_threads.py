"""Calls from several threads, with a switch after nearly every bytecode."""

import sys
import threading

import jax.numpy as jnp
import pytest
from flax import nnx

from jgraph.graph import function


@pytest.fixture
def together():
    """Run functions in a thread each, starting at once; raise the first error."""

    def run(*bodies):
        errors = []
        barrier = threading.Barrier(len(bodies))

        def guarded(body):
            try:
                barrier.wait()
                body()
            except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
                errors.append(error)

        threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        if errors:
            raise errors[0]

    return run


def repeat(times, f, *args):
    def body():
        for _ in range(times):
            f(*args)

    return body


def test_each_thread_trains_its_own_model(net, optimizer, step, x, values, close, together):
    models, references = ([net(i) for i in range(3)] for _ in range(2))
    optimizers, others = ([optimizer(m) for m in group] for group in (models, references))
    f = function(step, donate="state")
    jitted = nnx.jit(step)
    together(*(repeat(10, f, m, o, x) for m, o in zip(models, optimizers, strict=True)))
    for m, o in zip(references, others, strict=True):
        repeat(10, jitted, m, o, x)()
    close([values(m) for m in models], [values(m) for m in references])


def test_donating_calls_on_one_object(counter, together):
    c = counter()
    f = function(lambda c: c.value.set_value(c.value[...] + 1), donate="state")
    together(*[repeat(50, f, c)] * 4)
    assert c.value[...] == 200


def test_one_trains_and_others_read(net, optimizer, step, x, together):
    model = net()
    train = function(step, donate="state")
    read = function(lambda m, x: [layer(x) for layer in m.layers])
    o = optimizer(model)
    train(model, o, x)
    read(model, x)
    together(repeat(200, train, model, o, x), *[repeat(300, read, model, x)] * 2)
    assert o.step[...] == 201
    assert (len(train.graphs), len(read.graphs)) == (1, 1)


def test_traces_at_the_same_time(net, x, close, together):
    """Classes are patched while a trace lasts, and each thread has scopes of its own."""
    models = [net(i, layers=i + 1) for i in range(4)]
    for model in models:
        model.eval()
    wanted = [m(x) for m in models]
    call = vars(type(models[0]))["__call__"]
    f = function(lambda m, x: m(x))
    found = {}

    def body(i):
        return lambda: found.setdefault(i, f(models[i], x))

    together(*map(body, range(4)))
    close([found[i] for i in range(4)], wanted)
    assert len(f.graphs) == 4
    assert sum(g.reason == "the first call" for g in f.graphs) == 1
    assert vars(type(models[0]))["__call__"] is call
    for graph in f.graphs:
        scopes = {op.scope for op in graph.ops}
        assert ("m", "norm") in scopes
        assert all(scope[0] == "m" for scope in scopes if scope)


def test_one_trace_for_threads_that_ask_for_the_same(net, x, together):
    model = net()
    model.eval()
    f = function(lambda m, x: m(x))
    together(*[repeat(3, f, model, x)] * 4)
    assert 1 <= len(f.graphs) <= 4
    assert all("caches were cleared" not in g.reason for g in f.graphs)


def test_first_calls_of_a_traced_graph(net, x, together):
    model = net()
    model.eval()
    f = function(lambda m, x: m(x))
    f.graph(model, x)
    together(*[repeat(3, f, model, x)] * 4)
    assert all("caches were cleared" not in g.reason for g in f.graphs)


def test_objects_that_die_while_others_are_bound(net, x, together):
    f = function(lambda m, x: m.layers[0](x))
    f(net(), x)

    def body():
        for i in range(25):
            assert jnp.isfinite(f(net(i), x)).all()

    together(body, body)
    assert len(f.graphs) == 1
