"""Every operation stands under the path of the module that it belongs to."""

import re
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jgraph.graph import function, module_scopes


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.dense(self.norm(x)))


class Tower(nnx.Module):
    def __init__(self, depth=4):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(rngs) for _ in range(depth)])
        self.heads = nnx.Dict(
            {"cat": nnx.Linear(3, 1, rngs=rngs), "a/b": nnx.Linear(3, 1, rngs=rngs)}
        )

    def __call__(self, x):
        x = self.encode(x)
        return jnp.exp(self.heads["cat"](x)) + self.heads["a/b"](x)

    def encode(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def cosine(self, x):
        return jnp.cos(x)


class Base(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dense(x)


class Child(Base):
    def __call__(self, x):
        return jnp.tanh(super().__call__(x))


class Scanned(nnx.Module):
    def __init__(self):
        make = nnx.vmap(lambda key: Block(nnx.Rngs(key)))
        self.stack = make(jax.random.split(jax.random.key(0), 3))

    def __call__(self, x):
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.stack)


class Remat(nnx.Module):
    def __init__(self):
        self.block = Block(nnx.Rngs(0))

    def __call__(self, x):
        return nnx.remat(lambda block, x: block(x))(self.block, x)


def call(model, x):
    return model(x)


def loss_gradient(model, x):
    loss, gradients = nnx.value_and_grad(lambda m: m(x).sum())(model)
    return loss, gradients


TOWER = {f"model/blocks[{i}]/dense" for i in range(4)} | {"model/heads/cat", "model/heads['a/b']"}


def test_submodules_of_lists_and_dicts(scopes, x):
    assert scopes(call, "dot_general", Tower(), x) == TOWER
    assert scopes(call, "tanh", Tower(), x) == {f"model/blocks[{i}]" for i in range(4)}
    assert scopes(call, "exp", Tower(), x) == {"model"}


def test_name_stacks_of_the_jaxpr(x):
    graph = function(call).graph(Tower(), x)
    stacks = [
        str(eqn.source_info.name_stack)
        for eqn in graph.jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert set(stacks) == TOWER


def test_names_of_optimised_hlo(x):
    names = re.findall(r'op_name="([^"]*)"', function(call).graph(Tower(), x).hlo)
    assert any(name.endswith("call)/model/blocks[3]/dense/dot_general") for name in names)
    assert any(name.endswith("/model/heads/cat/dot_general") for name in names)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_value_and_grad(scopes, x, phase):
    assert scopes(loss_gradient, "dot_general", Tower(), x, phase=phase) == TOWER


def test_jax_transforms_that_close_over_the_model(scopes, x):
    def mapped(model, x):
        return jax.vmap(jax.grad(lambda row: model(row[None]).sum()))(x)

    assert scopes(mapped, "dot_general", Tower(), x) == TOWER


def test_scan_over_layers(scopes, x):
    assert scopes(call, "dot_general", Scanned(), x) == {"model/stack/dense"}
    assert scopes(loss_gradient, "dot_general", Scanned(), x) == {"model/stack/dense"}


def test_remat(scopes, x):
    assert scopes(call, "dot_general", Remat(), x) == {"model/block/dense"}
    assert scopes(loss_gradient, "dot_general", Remat(), x) == {"model/block/dense"}


def test_nnx_jit_inside(scopes, x):
    def body(model, x):
        return nnx.jit(lambda model, x: model(x))(model, x)

    assert scopes(body, "dot_general", Tower(), x) == TOWER


def test_function_inside(scopes, x):
    inner = function(lambda m, x: jnp.sin(m(x)))

    class Outer(nnx.Module):
        def __init__(self):
            self.first, self.second = Base(), Base()

        def __call__(self, x):
            return inner(self.second, self.first(x))

    found = scopes(call, "dot_general", Outer(), x)
    assert found == {"model/first/dense", "model/m/dense"}
    assert scopes(call, "sin", Outer(), x) == {"model"}


def test_methods_other_than_call(scopes, x):
    def body(model, x):
        return model.cosine(model.encode(x))

    assert scopes(body, "dot_general", Tower(), x) == {f"model/blocks[{i}]/dense" for i in range(4)}
    assert scopes(body, "cos", Tower(), x) == {""}


def test_super_call_is_no_module_of_its_own(scopes, x):
    assert scopes(call, "dot_general", Child(), x) == {"model/dense"}
    assert scopes(call, "tanh", Child(), x) == {"model"}


def test_names_of_arguments_closures_and_containers(scopes, x):
    outside = Base()

    def body(a, many, x):
        return outside(many["k"][0](a(x)))

    found = scopes(body, "dot_general", Child(), {"k": [Child()]}, x)
    assert found == {"a/dense", "many['k'][0]/dense", "outside/dense"}


def test_optimizer(scopes, x, optimizer):
    def body(model, opt, x):
        opt.update(model, nnx.grad(lambda m: m(x).sum())(model))

    model = Base()
    assert scopes(body, "mul", model, optimizer(model), x, phase="update") == {"opt"}


def test_a_shared_module_has_its_first_path(scopes, x):
    class Shared(nnx.Module):
        def __init__(self):
            self.a = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.inner = nnx.Sequential(jnp.sin, self.a)

        def __call__(self, x):
            return self.inner(self.a(x))

    # Inside of `inner` it isn't written as the whole path again: model/inner/model/a.
    assert scopes(call, "dot_general", Shared(), x) == {"model/a", "model/inner/a"}


def test_a_module_called_by_its_own_part(scopes, x):
    class Part(nnx.Module):
        def __call__(self, whole, x):
            return whole(x, deeper=False)

    class Whole(nnx.Module):
        def __init__(self):
            self.part = Part()

        def __call__(self, x, deeper=True):
            return self.part(self, x) if deeper else jnp.sin(x)

    assert scopes(call, "sin", Whole(), x) == {"model/part/model"}


# The user's objects and classes stay as they are.


def methods():
    return {c: vars(c)["__call__"] for c in (Tower, Block, Base, Child, nnx.Linear, nnx.Sequential)}


def test_classes_are_unpatched_after_a_trace(x):
    before = methods()
    during = []

    def body(model, x):
        during.append(methods()[Base])
        return model(x)

    function(body)(Child(), x)
    assert during[0] is not before[Base]
    assert methods() == before
    assert "update" not in vars(nnx.Linear)
    assert "__call__" not in vars(nnx.Dropout(0.5)), "instances aren't patched"


def test_classes_are_unpatched_after_an_exception(x):
    before = methods()

    def body(model, x):
        model(x)
        raise KeyError("stop")

    for _ in range(2):
        with pytest.raises(KeyError, match="stop"):
            function(body)(Child(), x)
    assert methods() == before
    assert function(call).graph(Child(), x).ops[0].scope[0] == "model"


def test_the_enclosing_path_is_left_after_an_exception(scopes, x):
    class Fails(nnx.Module):
        def __call__(self, x):
            raise KeyError("stop")

    def body(model, fails, x):
        with pytest.raises(KeyError):
            fails(x)
        return model(x)

    assert scopes(body, "dot_general", Base(), Fails(), x) == {"model/dense"}


def test_classes_stay_patched_while_another_thread_traces(x):
    before = methods()
    inside, done = threading.Event(), threading.Event()
    found = []

    def slow(model, x):
        inside.set()
        assert done.wait(60)
        return model(x)

    def trace():
        found.append(function(slow).graph(Base(), x))

    thread = threading.Thread(target=trace)
    thread.start()
    assert inside.wait(60)
    function(call)(Child(), x)  # patches the same class, and leaves
    done.set()
    thread.join()
    scopes = {op.scope for op in found[0].ops if op.name == "dot_general"}
    assert scopes == {("model", "dense")}
    assert methods() == before


def attributes(model):
    return [
        (path, sorted(vars(node)))
        for path, node in nnx.iter_graph(model)
        if hasattr(node, "__dict__")
    ]


@pytest.mark.parametrize("body", [call, loss_gradient])
def test_structures_and_attributes_stay(x, body):
    model = Tower()
    before, had = nnx.graphdef(model), attributes(model)
    kinds = vars(model)["_pytree__nodes"]
    compiled = function(body)
    for _ in range(2):
        compiled(model, x)
    assert nnx.graphdef(model) == before
    assert attributes(model) == had
    assert vars(model)["_pytree__nodes"] is kinds
    assert len(compiled.graphs) == 1


def test_returned_and_stored_copies_have_no_scope(x):
    def body(model, x):
        copy = nnx.clone(model)
        model.twin = nnx.clone(model.dense)
        return copy, model(x)

    model: Any = Base()
    copy, _ = function(body)(model, x)
    for module in (model, model.twin, copy, copy.dense):
        kinds = vars(module)["_pytree__nodes"]
        assert type(kinds) is type(vars(Base())["_pytree__nodes"])
    assert nnx.graphdef(copy) == nnx.graphdef(Base())
    assert jax.tree.structure(copy) == jax.tree.structure(Base())


# A path makes no difference to code that compares structures, as it makes none in plain Python.


def test_modules_made_in_the_body_have_the_structure_of_arguments(x):
    def body(model, x):
        both = jax.tree.map(lambda a, b: a + b, model, Base())
        chosen = jax.lax.cond(x.sum() > 0, lambda: model, Base)
        return both(x) + chosen(x)

    model = Base()
    np.testing.assert_allclose(function(body)(model, x), body(model, x), rtol=1e-6)


def test_a_graphdef_from_outside_equals_that_of_the_argument(x):
    graphdef = nnx.graphdef(Base())

    def body(model, x):
        inside, state = nnx.split(model)
        assert inside == graphdef
        assert hash(inside) == hash(graphdef)
        return nnx.merge(graphdef, state)(x)

    model = Base()
    np.testing.assert_array_equal(function(body)(model, x), model(x))


def test_an_attribute_made_in_the_body_keeps_the_path(scopes, x):
    class Grows(Base):
        def __call__(self, x):
            self.calls = 1
            return super().__call__(x)

    def body(model, x):
        model.touched = True
        return nnx.grad(lambda m: m(x).sum())(model), model.calls

    assert scopes(body, "dot_general", Grows(), x) == {"model/dense"}


# `module_scopes` for models that are made inside the traced function.


def test_module_scopes_of_a_merged_model(x):
    graphdef, state = nnx.split(Base())

    def body(state, x):
        model = nnx.merge(graphdef, state)
        with module_scopes([("net", model)]):
            y = model(x)
        assert nnx.graphdef(model) == graphdef
        return y + model(x)

    ops = function(body).graph(state, x).ops
    assert [op.scope for op in ops if op.name == "dot_general"] == [("net", "dense"), ()]


def test_module_scopes_do_nothing_without_a_trace(x):
    before = methods()
    with jax.disable_jit(), module_scopes([("net", Base())]):
        assert methods() == before
