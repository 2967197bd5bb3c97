"""Which outputs may differ between replicas, read off the traced program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jgraph.distribute._varying import varying_outputs

AXIS = "data"
SAME, MINE = False, True
ONE, ROW = jnp.float32(1), jnp.ones(8)


def varying(fn: Callable[..., Any], *args: Any, differs: list[bool]) -> list[bool]:
    traced = jax.make_jaxpr(fn, axis_env=[(AXIS, 4)])(*args)
    return varying_outputs(traced.jaxpr, AXIS, differs)


def of_two(fn: Callable[..., Any], x: Any = ONE) -> list[bool]:
    """For arguments `same` and `mine`."""
    return varying(fn, x, x, differs=[SAME, MINE])


def test_what_is_computed_from_a_part_differs() -> None:
    found = of_two(lambda same, mine: (same, mine, same + 1, mine + 1, same * mine, 3.0))
    assert found == [SAME, MINE, SAME, MINE, MINE, SAME]


def test_where_two_values_meet_in_an_array_it_differs() -> None:
    assert of_two(lambda same, mine: jnp.stack([same, mine])) == [MINE]


REDUCTIONS = {
    "psum": lambda x: lax.psum(x, AXIS),
    "pmean": lambda x: lax.pmean(x, AXIS),
    "pmax": lambda x: lax.pmax(x, AXIS),
    "pmin": lambda x: lax.pmin(x, AXIS),
    "all_gather": lambda x: lax.all_gather(x, AXIS),
    "all_gather tiled": lambda x: lax.all_gather(x, AXIS, tiled=True),
    "in a jit": lambda x: jax.jit(lambda y: lax.psum(y, AXIS))(x),
    "of several": lambda x: lax.psum({"a": x, "b": 2 * x}, AXIS)["b"],
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction_over_the_axis_is_the_same(name: str) -> None:
    assert varying(REDUCTIONS[name], ROW, differs=[MINE]) == [SAME]


DIFFERENT = {
    "axis_index": lambda x: lax.axis_index(AXIS) + x.astype(jnp.int32),
    "psum_scatter": lambda x: lax.psum_scatter(x, AXIS, tiled=True),
    "ppermute": lambda x: lax.ppermute(x, AXIS, [(0, 1)]),
    "all_to_all": lambda x: lax.all_to_all(x.reshape(4, -1), AXIS, 0, 0),
    "after a reduction": lambda x: lax.psum(x, AXIS) + lax.axis_index(AXIS).astype(x.dtype),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_depends_on_the_replica_differs(name: str) -> None:
    """Of a value that is the same on all, too."""
    assert varying(DIFFERENT[name], ROW, differs=[SAME]) == [MINE]


def test_a_reduction_within_groups_is_not_one_over_the_axis() -> None:
    def in_pairs(x: Any) -> Any:
        return lax.psum(x, AXIS, axis_index_groups=[[0, 1], [2, 3]])

    assert varying(in_pairs, ROW, differs=[MINE]) == [MINE]
    assert varying(in_pairs, ROW, differs=[SAME]) == [SAME]


def test_a_permutation_hands_parts_around() -> None:
    def around(x: Any) -> Any:
        return lax.ppermute(x, AXIS, [(i, (i + 1) % 4) for i in range(4)])

    assert varying(around, ROW, differs=[MINE]) == [MINE]


def test_a_reduction_over_another_axis_is_none() -> None:
    def over_both(same: Any, mine: Any) -> Any:
        inner = jax.vmap(lambda x: lax.psum(x, "inner"), axis_name="inner")
        return inner(same), inner(mine), lax.psum(mine, AXIS)

    assert of_two(over_both, ROW) == [SAME, MINE, SAME]


def test_a_constant_is_the_same() -> None:
    table = jnp.arange(8.0)
    assert varying(lambda x: (table * 2, table * x), ROW, differs=[MINE]) == [SAME, MINE]


# Loops.


def test_scan_by_its_parts() -> None:
    """Constants, the carry, and what is taken row by row are told apart."""

    def outputs(const: Any, carry: Any, rows: Any) -> Any:
        def step(carry: Any, row: Any) -> Any:
            a, b = carry
            return (a + const, b + 1), (row, a * 2, b * 2)

        (a, b), (out, of_a, of_b) = lax.scan(step, (carry, carry), rows)
        return a, b, out, of_a, of_b

    every = functools.partial(varying, outputs, ONE, ONE, ROW)
    assert every(differs=[SAME, SAME, SAME]) == [SAME] * 5
    assert every(differs=[SAME, SAME, MINE]) == [SAME, SAME, MINE, SAME, SAME]
    assert every(differs=[MINE, SAME, SAME]) == [MINE, SAME, SAME, MINE, SAME]
    assert every(differs=[SAME, MINE, SAME]) == [MINE, MINE, SAME, MINE, MINE]


def test_a_carry_that_differs_from_the_second_round_on() -> None:
    """`a` takes what `b` was, and `b` what `c` was: it needs two more looks at the body."""

    def step(carry: Any, row: Any) -> Any:
        a, b, c = carry
        return (b, c, c + row), a

    def outputs(same: Any, rows: Any) -> Any:
        return lax.scan(step, (same, same, same), rows)

    assert varying(outputs, ONE, ROW, differs=[SAME, MINE]) == [MINE] * 4
    assert varying(outputs, ONE, ROW, differs=[SAME, SAME]) == [SAME] * 4


def test_a_scan_may_reduce_each_row() -> None:
    def total(same: Any, rows: Any) -> Any:
        return lax.scan(lambda c, row: (c + lax.psum(row, AXIS), row), same, rows)

    assert varying(total, ONE, ROW, differs=[SAME, MINE]) == [SAME, MINE]


def test_a_scan_within_a_scan() -> None:
    def total(same: Any, rows: Any) -> Any:
        def outer(c: Any, row: Any) -> Any:
            inner = lax.scan(lambda d, _: (d + row, None), c, None, length=2)[0]
            return lax.psum(inner, AXIS), inner

        return lax.scan(outer, same, rows)

    assert varying(total, ONE, ROW, differs=[SAME, MINE]) == [SAME, MINE]


def test_while_by_its_carry() -> None:
    def outputs(same: Any, mine: Any) -> Any:
        def step(carry: Any) -> Any:
            i, a, b, c = carry
            return i + 1, a + same, b, c + b

        return lax.while_loop(lambda carry: carry[0] < 3, step, (0, same, mine, same))

    # c takes in b, from the first round on; the count of rounds is the same on all.
    assert of_two(outputs) == [SAME, SAME, MINE, MINE]


def test_while_that_ends_at_other_rounds_differs_in_all() -> None:
    def outputs(same: Any, mine: Any) -> Any:
        return lax.while_loop(lambda c: c[0] < mine, lambda c: (c[0] + 1, c[1] * 2), (same, same))

    assert of_two(outputs) == [MINE, MINE]


def test_while_whose_test_differs_from_the_second_round_on() -> None:
    def outputs(same: Any, mine: Any) -> Any:
        def step(carry: Any) -> Any:
            return carry[1], carry[1] + mine, carry[2] + 1

        return lax.while_loop(lambda carry: carry[0] < 3, step, (same, same, same))

    assert of_two(outputs) == [MINE, MINE, MINE]


def test_while_whose_test_reduces_is_the_same() -> None:
    def outputs(same: Any, mine: Any) -> Any:
        return lax.while_loop(lambda c: c < lax.psum(mine, AXIS), lambda c: c + 1, same)

    assert of_two(outputs) == [SAME]


# Choices.


def test_a_choice_by_what_differs_differs() -> None:
    def chosen(by: Any, a: Any) -> Any:
        return lax.cond(by > 0, lambda x: (x * 2, x + 1), lambda x: (x * 3, x + 2), a)

    assert varying(chosen, ONE, ONE, differs=[MINE, SAME]) == [MINE, MINE]
    assert varying(chosen, ONE, ONE, differs=[SAME, SAME]) == [SAME, SAME]


def test_a_choice_by_what_is_the_same_differs_where_a_branch_does() -> None:
    def chosen(same: Any, mine: Any) -> Any:
        return lax.switch(
            same.astype(int),
            [lambda a, b: (a, a), lambda a, b: (a, b), lambda a, b: (a, lax.psum(b, AXIS))],
            same,
            mine,
        )

    assert of_two(chosen) == [SAME, MINE]


# Calls, and what autodiff makes of them.


@jax.custom_jvp
def clipped(x: Any) -> Any:
    return jnp.clip(x, -1, 1)


clipped.defjvp(lambda primals, tangents: (clipped(*primals), tangents[0]))


@jax.custom_vjp
def passed(x: Any, y: Any) -> Any:
    return x * 2, y * 2


passed.defvjp(lambda x, y: (passed(x, y), None), lambda _, g: g)

CALLS = {
    "jit": jax.jit(lambda a, b: (a * 2, b * 2)),
    "jit in jit": jax.jit(lambda a, b: jax.jit(lambda c: (c, b))(a)),
    "custom_jvp": lambda a, b: (clipped(a), clipped(b)),
    "custom_vjp": passed,
    "checkpoint": jax.checkpoint(lambda a, b: (jnp.sin(a), jnp.sin(b))),
    "vmap": lambda a, b: jax.vmap(lambda x: (x * a, x * b))(ROW),
    "gradient of a custom_jvp": lambda a, b: tuple(jax.grad(clipped)(x) * x for x in (a, b)),
    "gradient of a checkpoint": lambda a, b: tuple(
        jax.grad(jax.checkpoint(lambda x: jnp.sin(x) ** 2))(x) for x in (a, b)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_looked_into(name: str) -> None:
    assert of_two(CALLS[name]) == [SAME, MINE]


def test_gradients_of_a_part_differ_until_they_are_added_up() -> None:
    def slopes(w: Any, x: Any) -> Any:
        slope = jax.grad(lambda w: ((w * x) ** 2).mean())(w)
        return slope, lax.psum(slope, AXIS), w - 0.1 * lax.pmean(slope, AXIS)

    assert varying(slopes, ONE, ROW, differs=[SAME, MINE]) == [MINE, SAME, SAME]


# Against real replicas.


@pytest.mark.parametrize("name", [*REDUCTIONS, *DIFFERENT])
def test_it_is_what_replicas_compute(name: str) -> None:
    fn = {**REDUCTIONS, **DIFFERENT}[name]
    rows = jnp.arange(1.0, 9.0)
    scales = jnp.ones(4) if name in DIFFERENT else jnp.arange(1.0, 5.0)
    run = jax.pmap(lambda scale: fn(scale * rows), AXIS, devices=jax.devices()[:4])
    found = np.asarray(run(scales))
    assert any(not np.array_equal(x, found[0]) for x in found) == (name in DIFFERENT)
