from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import _checks

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: _checks.predictions("x", jnp.arange(2)),
            r"x must be float, got int32 of shape \(2,\)",
        ),
        (
            lambda: _checks.predictions("x", jnp.array(True)),
            r"x must be float, got bool of shape \(\)",
        ),
        (
            lambda: _checks.like("y", jnp.zeros((1, 2)), "x", jnp.zeros((3, 2))),
            r"y must have the shape of the x, got y \(1, 2\) and x \(3, 2\); broadcast by hand",
        ),
        (
            lambda: _checks.like("y", jnp.zeros(2, jnp.complex64), "x", jnp.zeros(2)),
            r"y must be real, got complex64 of shape \(2,\)",
        ),
        (
            lambda: _checks.class_axis("x", jnp.zeros(())),
            r"class axis \[\.\.\., K\], got shape \(\)",
        ),
        (lambda: _checks.class_axis("x", jnp.zeros((2, 0))), r"class axis.*got shape \(2, 0\)"),
        (lambda: _checks.number("a", True, 0, 1), "a must be a Python number, got bool"),
        (lambda: _checks.number("a", 2, 0, 1), r"a must lie in \[0, 1\], got 2"),
        (lambda: _checks.number("a", 0, 0, 1, open_low=True), r"a must lie in \(0, 1\], got 0"),
        (lambda: _checks.number("a", NAN, 0, INF), r"a must lie in \[0, inf\), got nan"),
        (lambda: _checks.number("a", INF, 0, INF), r"a must lie in \[0, inf\), got inf"),
        (
            lambda: _checks.check_values("x", np.array(-1.0), jnp.array(False), "be ≥ 0"),
            r"x must be ≥ 0; it has -1 \(1 of 1 do not\)",
        ),
        (
            lambda: _checks.check_values(
                "x", np.array([[1.0, -2.5]]), jnp.array([[True, False]]), "be ≥ 0"
            ),
            r"x must be ≥ 0; row \(0, 1\) has -2\.5 \(1 of 2 do not\)",
        ),
        (
            lambda: _checks.check_ids("ids", np.array([0, 3, -1]), 3),
            r"ids must lie in \[0, 3\), the 3 classes.*row 1 has label 3 \(2 of 3 labels are",
        ),
        (
            lambda: _checks.class_ids(jnp.zeros(2), (2, 3)),
            r"integer class ids, got float32.*\(2, 3\)",
        ),
        (
            lambda: _checks.class_ids(jnp.array([0]), (2, 3)),
            r"\(2,\), got labels \(1,\) for.*\(2, 3\)",
        ),
    ],
)
def test_messages(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_numbers_of_numpy_pass() -> None:
    assert _checks.number("a", np.float32(0.5), 0, 1) == 0.5
    assert _checks.number("a", np.int64(1), 0, 1) == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.6], r"p must sum to 1 over the last axis; row 1 has 1\.1 \(1 of 2 do not\)"),
        ([-0.5, 1.5], r"p must lie in \[0, 1\]; row \(1, 0\) has -0\.5 \(2 of 4 do not\)"),
        ([NAN, 1.0], r"p must lie in \[0, 1\]; row \(1, 0\) has nan"),
    ],
)
def test_a_distribution(row: list[float], message: str) -> None:
    p = jnp.array([[0.25, 0.75], row])
    with pytest.raises(InputError, match=message):
        _checks.check_distribution("p", p, p)
    ok = jax.jit(lambda p: _checks.check_distribution("p", p, p))(p)
    np.testing.assert_array_equal(ok, [True, False])


def test_half_precision_may_sum_to_almost_one() -> None:
    p = jnp.full((1, 3), 1 / 3, jnp.bfloat16)
    assert _checks.check_distribution("p", p, p.astype(jnp.float32)).all()
    wide = p.astype(jnp.float32)
    with pytest.raises(InputError, match=r"sum to 1.*row 0 has 1\.00195"):
        _checks.check_distribution("p", wide, wide)


def test_known_is_none_while_tracing() -> None:
    seen: list[Any] = []

    @jax.jit
    def run(x: Array) -> Array:
        seen.append(_checks.known(x))
        return x

    run(jnp.ones(2))
    assert seen == [None]
    np.testing.assert_array_equal(_checks.known(jnp.array([1, 2])), [1, 2])


def test_one_hot_wraps_nothing() -> None:
    np.testing.assert_array_equal(
        _checks.one_hot(jnp.array([1, -1, 3, 2]), 3),
        [[False, True, False], [False] * 3, [False] * 3, [False, False, True]],
    )
    assert int(_checks.one_hot(jnp.array([44], jnp.int8), 300).sum()) == 1


SLOPES = jnp.array([2.0, -3.0, INF, -INF, NAN, 0.0])


def test_steer_is_a_product_in_which_zero_stays_zero() -> None:
    np.testing.assert_array_equal(_checks.steer(jnp.zeros(6), SLOPES), np.zeros(6))
    want = np.array([2.0, -3.0, INF, -INF, NAN, 0.0])
    for size in (1.0, 1e-30, -1.0, 1e30):
        tangent = jnp.full(6, size, jnp.float32)
        expected = (want * np.float32(size)).astype(np.float32)
        np.testing.assert_allclose(_checks.steer(tangent, SLOPES), expected, rtol=1e-6)
    # Linear, so that reverse mode has it, too.
    turned = jax.jit(jax.grad(lambda t, slope: _checks.steer(t, slope).sum()))
    np.testing.assert_array_equal(turned(jnp.ones(6), SLOPES), want)
    masked = jax.jit(jax.grad(lambda t, slope, w: (w * _checks.steer(t, slope)).sum()))
    np.testing.assert_array_equal(masked(jnp.ones(6), SLOPES, jnp.zeros(6)), np.zeros(6))


def test_poison_reaches_bad_rows_that_count() -> None:
    ok = jnp.array([True, False, False])
    tangent = jnp.array([1.0, 1.0, 0.0])
    for run in (_checks.poison, jax.jit(_checks.poison)):
        np.testing.assert_array_equal(run(tangent, ok), [0.0, NAN, 0.0])


@_checks.rowwise
def root(x: Array, ok: Array) -> Array:
    return jnp.sqrt(x.max(-1)) * _checks.nan_unless(ok, x.dtype)


def test_rows_stand_alone() -> None:
    x = jnp.array([[4.0, 1.0], [0.0, -1.0], [9.0, 1.0], [0.0, -1.0], [9.0, 1.0]])
    ok = jnp.array([True, True, False, True, False])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    slope = jax.jit(jax.grad(lambda x: (weights * root(x, ok)).sum()))(x)
    # d sqrt is infinite at 0; a bad row is NaN throughout; weight 0 is 0, whatever the row.
    np.testing.assert_array_equal(slope, [[0.25, 0], [INF, 0], [NAN, NAN], [0, 0], [0, 0]])
    _, forward = jax.jvp(lambda x: root(x, ok), (x,), (jnp.zeros_like(x).at[:3, 0].set(1.0),))
    np.testing.assert_array_equal(forward, [0.25, INF, NAN, 0.0, 0.0])
    second = jax.jit(jax.hessian(lambda x: root(x[None], jnp.array([True]))[0]))(x[0])
    np.testing.assert_allclose(second, [[-1 / 32, 0], [0, 0]])
