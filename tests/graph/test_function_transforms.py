"""jg.function inside of other transforms, and they inside of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jgraph.graph import function


@pytest.fixture
def model(net):
    model = net()
    model.eval()
    return model


class Stack(nnx.Module):
    """Layers with a leading axis, run by nnx.scan; `remat` runs each again backwards."""

    def __init__(self, remat=False):
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(key):
            return nnx.Linear(3, 3, rngs=nnx.Rngs(key))

        self.layers = make(jax.random.split(jax.random.key(0), 4))
        self.remat = remat

    def __call__(self, x):
        def run(x, layer):
            return jnp.tanh(layer(x))

        body = nnx.remat(run) if self.remat else run
        return nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)


def unrolled(stack, x):
    for i in range(4):
        kernel, bias = stack.layers.kernel[...][i], stack.layers.bias[...][i]
        x = jnp.tanh(x @ kernel + bias[None])
    return x


# Others around it.


def test_gradients_through_it(model, x, close):
    f = function(lambda m, x: m(x))
    close(jax.grad(lambda x: f(model, x).sum())(x), jax.grad(lambda x: model(x).sum())(x))
    ours = nnx.grad(lambda m: f(m, x).sum())(model)
    close(ours, nnx.grad(lambda m: m(x).sum())(model))
    close(jax.jvp(lambda x: f(model, x), (x,), (x,)), jax.jvp(model, (x,), (x,)))
    second = jax.hessian(lambda x: f(model, x).sum())(x[:2])
    close(second, jax.hessian(lambda x: model(x).sum())(x[:2]))


def test_vmap_and_scan_and_jit_around(model, x, close):
    f = function(lambda m, x: m(x[None])[0])
    wanted = model(x)
    close(jax.vmap(lambda x: f(model, x))(x), wanted)
    close(jax.vmap(f, in_axes=(None, 0))(model, x), wanted)
    close(jax.jit(f)(model, x[0]), wanted[0])
    close(jax.lax.map(lambda x: f(model, x), x), wanted)
    close(jax.lax.scan(lambda c, x: (c, f(model, x)), 0, x)[1], wanted)
    close(nnx.jit(lambda m, x: f(m, x))(model, x[0]), wanted[0])
    close(jax.checkpoint(lambda x: f(model, x))(x[0]), wanted[0])
    assert len(f.graphs) == 1  # each time the same program of the same types
    close(f(model, x[0]), wanted[0])
    assert len(f.graphs) == 2


def test_mutation_inside_of_nnx_transforms(net, x, values, close):
    f = function(lambda m, x: m(x))
    ours, plain = net(), net()

    def loss(run):
        return lambda m: (run(m, x) ** 2).sum()

    close(nnx.grad(loss(f))(ours), nnx.grad(loss(lambda m, x: m(x)))(plain))
    close(values(ours), values(plain))
    nnx.jit(f)(ours, x)
    plain(x)
    close(values(ours), values(plain))
    assert ours.drop.rngs.count[...] == 2


def test_structure_changes_inside_of_nnx_jit(counter):
    @function
    def add(c, x):
        c.extra = nnx.Param(x * 2)
        return c

    @nnx.jit
    def outer(c, x):
        assert add(c, x) is c
        return c.extra[...] + 1

    c = counter()
    assert outer(c, 3.0) == 7
    assert c.extra[...] == 6


def test_writing_an_outer_variable_in_an_inner_trace_is_flax_own_error(counter):
    c = counter()
    f = function(lambda c, x: c.value.set_value(c.value[...] + x))
    with pytest.raises(Exception, match="Cannot mutate Variable from a different trace level"):
        jax.vmap(lambda x: f(c, x))(jnp.ones(3))
    assert c.value[...] == 0


def test_static_arguments_and_containers_inside(counter):
    c = counter(3.0)
    f = function(lambda d, k: d["c"].value[...] * d["x"] * k, static="k")
    assert jax.jit(lambda x: f({"c": c, "x": x}, 2))(5.0) == 30
    assert jax.grad(lambda x: f({"c": c, "x": x}, 2))(5.0) == 6


# Others inside of it.


def test_jax_transforms_inside(model, x, close):
    wanted = model(x)
    vmapped = function(lambda m, x: jax.vmap(lambda row: m(row[None])[0])(x))
    close(vmapped(model, x), wanted)
    mapped = function(lambda m, x: jax.lax.map(lambda row: m(row[None])[0], x))
    close(mapped(model, x), wanted)
    scanned = function(lambda m, x: jax.lax.scan(lambda c, r: (c, m(r[None])[0]), 0, x)[1])
    close(scanned(model, x), wanted)
    gradient = function(lambda m, x: jax.grad(lambda x: m(x).sum())(x))
    close(gradient(model, x), jax.grad(lambda x: model(x).sum())(x))
    branched = function(lambda m, x, b: jax.lax.cond(b, m, lambda x: -m(x), x))
    close(branched(model, x, False), -wanted)
    jitted = function(lambda m, x: jax.jit(lambda x: m(x))(x))
    close(jitted(model, x), wanted)


def test_nnx_transforms_inside(net, x, values, close):
    def body(m, x):
        loss, gradients = nnx.value_and_grad(lambda m: (m(x) ** 2).sum())(m)
        again = nnx.jit(lambda m, x: m(x).sum())(m, x)
        return loss, gradients, again

    ours, plain = net(), net()
    for donate in ((), "state"):
        close(function(body, donate=donate)(ours, x), body(plain, x))
        close(values(ours), values(plain))
    assert ours.drop.rngs.count[...] == 4


@pytest.mark.parametrize("remat", [False, True])
def test_nnx_scan_and_remat_inside(x, close, remat):
    stack = Stack(remat)
    f = function(lambda m, x: m(x))
    close(f(stack, x), unrolled(stack, x))
    ours = function(lambda m, x: nnx.grad(lambda m: m(x).sum())(m))(stack, x)
    wanted = nnx.grad(lambda m: unrolled(m, x).sum())(stack)
    close(ours, wanted)


def test_disabled_jit_runs_plain_python(model, x, close):
    seen = []

    def body(m, x):
        seen.append(float(x[0, 0]))
        return m(x)

    f = function(body)
    with jax.disable_jit():
        close(f(model, x), model(x))
        f(model, x)
    assert seen == [0.0, 0.0]
    assert not f.graphs


def test_nested_functions(net, optimizer, step, x, values, close):
    forward = function(lambda m, x: m(x))
    train = function(step, donate="state")

    @function(donate="state")
    def outer(m, o, x):
        return forward(m, x).sum() + train(m, o, x)

    def plain(m, o, x):
        return m(x).sum() + step(m, o, x)

    ours, theirs = net(), net()
    a, b = optimizer(ours), optimizer(theirs)
    for _ in range(2):
        close(outer(ours, a, x), plain(theirs, b, x))
    close(values(ours, a), values(theirs, b))
    assert [len(f.graphs) for f in (outer, forward, train)] == [1, 1, 1]
    forward(ours, x)
    assert len(forward.graphs) == 2
    assert outer.graphs[0].reason == forward.graphs[0].reason == "the first call"


def test_a_donating_function_donates_nothing_inside(counter):
    inner = function(lambda c, x: c.value.set_value(c.value[...] + x), donate=["c", "x"])
    c = counter()
    x = jnp.ones(())
    before = c.value.get_raw_value()
    outer = function(lambda c, x: inner(c, x))
    outer(c, x)
    assert not before.is_deleted()
    assert not x.is_deleted()
    assert c.value[...] == 1


def test_batches_are_sharded_over_devices(model, x, close):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    wanted = model(x)
    nnx.update(model, jax.device_put(nnx.state(model), everywhere))
    f = function(lambda m, x: m(x))
    out = f(model, jax.device_put(x, spread))
    close(out, wanted)
    assert len(out.sharding.device_set) == 4
