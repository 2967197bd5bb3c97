"""Scopes, transformations and source lines, as JAX records them under each transformation."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jgraph.graph._jaxpr import (
    aval_text,
    call_body,
    call_name,
    control_bodies,
    frame_of,
    split_scope,
    stack_of,
)


def product(x, w):
    with jax.named_scope("model/blocks[3]"), jax.named_scope("conv"):
        return jnp.sum(jnp.tanh(x @ w))


def remat_inside(x, w):
    with jax.named_scope("model"):
        return jax.checkpoint(product_of_block)(x, w)


def product_of_block(x, w):
    with jax.named_scope("blocks[3]/conv"):
        return jnp.sum(jnp.tanh(x @ w))


def products(program):
    """Return the stack of each product, with those of the calls around it."""

    def walk(jaxpr, stack):
        for eqn in jaxpr.eqns:
            here = stack_of(eqn)
            whole = (stack[0] + here.scopes, stack[1] + here.transforms)
            if eqn.primitive.name == "dot_general":
                yield whole
            for body in (call_body(eqn), *control_bodies(eqn)):
                if body is not None:
                    yield from walk(body.jaxpr, whole)

    return list(walk(program.jaxpr, ((), ())))


ARGS = (jnp.ones((3, 3)), jnp.ones((3, 3)))
PATH = ("model", "blocks[3]", "conv")


@pytest.mark.parametrize(
    ("transform", "args"),
    [
        (lambda f: f, ARGS),
        (jax.jit, ARGS),
        (jax.grad, ARGS),
        (lambda f: jax.grad(jax.checkpoint(f)), ARGS),
        (lambda f: jax.vmap(jax.grad(f), (0, None)), (jnp.ones((2, 3, 3)), ARGS[1])),
        (lambda f: jax.jacfwd(jax.grad(f)), ARGS),
    ],
)
def test_a_scope_survives_every_transformation(transform, args):
    found = products(jax.make_jaxpr(transform(product))(*args))
    assert found
    assert {scopes for scopes, _ in found} == {PATH}


def test_remat_inside_a_module_does_not_name_it_twice():
    found = products(jax.make_jaxpr(jax.grad(remat_inside))(*ARGS))
    assert len(found) >= 3
    assert {scopes for scopes, _ in found} == {PATH}


def test_a_transposition_is_told_from_the_forward_pass():
    found = products(jax.make_jaxpr(jax.grad(product))(*ARGS))
    assert [("transpose" in transforms) for _, transforms in found] == [False, True]


def test_scopes_in_a_scan_are_relative_to_it():
    def scanned(x, w):
        with jax.named_scope("outer"):
            return lax.scan(lambda c, _: (c * product(c, w), None), x, None, length=4)[0]

    assert products(jax.make_jaxpr(scanned)(*ARGS)) == [(("outer", *PATH), ())]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model/blocks[3]/conv", ("model", "blocks[3]", "conv")),
        ("heads['cat/dog']/out", ("heads['cat/dog']", "out")),
        ('heads["a]/b"]', ('heads["a]/b"]',)),
        ("one", ("one",)),
        ("", ()),
    ],
)
def test_scopes_are_split_outside_brackets(name, parts):
    assert split_scope(name) == parts


def test_the_source_is_the_users_own_line():
    lines, first = inspect.getsourcelines(product)
    wanted = first + next(i for i, line in enumerate(lines) if "@" in line)
    for eqn in jax.make_jaxpr(product)(*ARGS).eqns:
        frame = frame_of(eqn)
        assert frame is not None
        assert frame[0].endswith("test_jaxpr.py")
        assert frame[1] == wanted


def test_a_called_functions_name():
    program = jax.make_jaxpr(jax.nn.silu)(jnp.ones(3))
    assert [call_name(eqn) for eqn in program.eqns] == ["silu"]


def test_types_are_short():
    program = jax.make_jaxpr(lambda x: x.astype(jnp.bfloat16))(jnp.ones((8, 3)))
    assert aval_text(program.jaxpr.invars[0]) == "f32[8,3]"
    assert aval_text(program.jaxpr.outvars[0]) == "bf16[8,3]"


def test_a_while_has_two_bodies_fed_by_the_right_inputs():
    def loop(limit, step, x):
        return lax.while_loop(lambda c: c < limit, lambda c: c + step, x)

    program = jax.make_jaxpr(loop)(9.0, 2.0, 1.0)
    (eqn,) = program.eqns
    test, body = control_bodies(eqn)
    limit, step, x = program.jaxpr.invars
    assert [eqn.invars[i] for i in test.inputs] == [limit, x]
    assert [eqn.invars[i] for i in body.inputs] == [step, x]
    assert (test.has_outputs, body.has_outputs, body.carried) == (False, True, 1)


def test_a_scan_carries_what_it_does_not_stack():
    def scanned(a, b, xs):
        return lax.scan(lambda c, x: ((c[0] + x, c[1]), (c[0], x * 2.0)), (a, b), xs)

    (eqn,) = jax.make_jaxpr(scanned)(1.0, jnp.ones(3), jnp.ones(5)).eqns
    (body,) = control_bodies(eqn)
    assert body.repeat == 5
    # The second value never changes; JAX may pass it round the loop instead of through it.
    assert body.carried == len(eqn.outvars) - 2
