from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import huber, laplace_nll, mean, normal_nll, poisson_nll, student_t_nll

mpmath.mp.dps = 50
RELATIVE = 1e-6
# The smallest float32 that isn't subnormal.
SMALLEST = 1.2e-38

Number = Any  # one of mpmath, which has no types
M = mpmath.mpf


def normal(x: Number, y: Number, s: Number) -> Number:
    return ((y - x) / s) ** 2 / 2 + mpmath.log(s) + mpmath.log(2 * mpmath.pi) / 2


def laplace(x: Number, y: Number, s: Number) -> Number:
    return abs(y - x) / s + mpmath.log(2 * s)


def student(x: Number, y: Number, df: Number, s: Number) -> Number:
    density = mpmath.gamma((df + 1) / 2) / mpmath.gamma(df / 2) / mpmath.sqrt(df * mpmath.pi) / s
    return -mpmath.log(density) + (df + 1) / 2 * mpmath.log1p(((y - x) / s) ** 2 / df)


def poisson(x: Number, y: Number) -> Number:
    return mpmath.exp(x) - y * x + mpmath.loggamma(y + 1)


def huber_(x: Number, y: Number, d: Number) -> Number:
    e = abs(x - y)
    return e * e / 2 if e <= d else d * (e - d / 2)


REAL: list[tuple[float, ...]] = [
    (0.3, -1.2, 0.7),
    (1.5, 1.25, 3.0),
    (1e4, -1e4, 1.0),
    (-1e4, 1e4, 100.0),
    (2.0, 2.0, 1e-3),
    (1e-3, 0.5, 1e4),
]
CASES: list[tuple[Callable[..., Array], Callable[..., Any], list[tuple[float, ...]], int]] = [
    (normal_nll, normal, REAL, 3),
    (laplace_nll, laplace, [c for c in REAL if c[0] != c[1]], 3),
    (student_t_nll, student, [(x, y, df, s) for x, y, s in REAL for df in (0.1, 1, 4, 3e4)], 4),
    (huber, huber_, REAL, 3),
    (
        poisson_nll,
        poisson,
        [(x, n) for x in (-3.0, 0.5, 4.0) for n in (0, 1, 2, 15, 16, 40)]
        + [(-1e4, 3), (-1e4, 0), (80.0, 7)],
        1,
    ),
]


@pytest.mark.parametrize(("loss", "exact", "cases", "moving"), CASES)
def test_value_and_slopes_equal_mpmath(
    loss: Callable[..., Array],
    exact: Callable[..., Any],
    cases: list[tuple[float, ...]],
    moving: int,
) -> None:
    columns = [np.array(c, np.float32) for c in zip(*cases, strict=True)]
    rows = [[M(float(x)) for x in row] for row in zip(*columns, strict=True)]
    want = [float(exact(*row)) for row in rows]
    arrays = [jnp.asarray(c) for c in columns]
    for run in (loss, jax.jit(loss)):
        np.testing.assert_allclose(run(*arrays), want, rtol=RELATIVE, atol=SMALLEST)
    slopes = jax.jit(jax.grad(lambda *a: loss(*a).sum(), tuple(range(moving))))(*arrays)
    for i, found in enumerate(slopes):
        orders = tuple(int(i == j) for j in range(len(rows[0])))
        wanted = [float(mpmath.diff(exact, tuple(row), orders, h=M(10) ** -20)) for row in rows]
        floor = np.full(len(wanted), SMALLEST)
        if loss is student_t_nll and i == 2:
            # Towards df = ∞, the Normal, the slope is a difference of terms 1 / df; at df = 1 of
            # terms of size 1 as well.
            floor = 4e-7 * np.minimum(1, 1 / columns[2])
        error = np.abs(np.asarray(found, np.float64) - wanted)
        assert (error <= RELATIVE * np.abs(wanted) + floor).all(), (i, found, wanted)


@pytest.mark.parametrize(
    ("loss", "options", "slope"),
    [
        (normal_nll, (), np.inf),
        (laplace_nll, (), 1.0),
        (student_t_nll, (3.0,), 0.0),
        (huber, (2.0,), 2.0),
    ],
)
def test_infinite_predictions_have_the_limit(
    loss: Callable[..., Array], options: tuple[float, ...], slope: float
) -> None:
    x = jnp.array([jnp.inf, -jnp.inf])
    y = jnp.zeros(2)
    np.testing.assert_array_equal(loss(x, y, *options), [np.inf, np.inf])
    found = jax.grad(lambda x: loss(x, y, *options).sum())(x)
    np.testing.assert_array_equal(found, [slope, -slope])
    assert jnp.isnan(loss(x, x, *options)).all()  # infinity less infinity is anything


def test_poisson_at_infinity() -> None:
    x, n = jnp.array([-jnp.inf, -jnp.inf, jnp.inf, jnp.inf]), jnp.array([0, 2, 0, 2])
    np.testing.assert_array_equal(poisson_nll(x, n), [0, np.inf, np.inf, np.inf])
    found = jax.grad(lambda x: poisson_nll(x, n).sum())(x)
    np.testing.assert_array_equal(found, [0, -2, np.inf, np.inf])


@pytest.mark.parametrize("count", [10**3, 10**6, 10**7])
def test_poisson_keeps_its_digits_at_large_counts(count: int) -> None:
    x = np.float32(np.log(count + 3 * count**0.5))
    want = float(poisson(M(float(x)), M(count)))
    # The result's conditioning: x itself is rounded, as is log(count).
    wiggle = 4 * count**0.5 * np.spacing(x)
    assert abs(float(poisson_nll(np.array([x]), np.array([count]))[0]) - want) < wiggle + 1e-5


@pytest.mark.parametrize("count", [-1, -100, 1.7, np.nan, np.inf])
def test_bad_counts(count: float) -> None:
    counts = jnp.array([1.0, count])
    with pytest.raises(ValueError, match=r"whole counts ≥ 0; row 1 has"):
        poisson_nll(jnp.zeros(2), counts)
    run = jax.jit(jax.value_and_grad(lambda x, n: poisson_nll(x, n).sum()))
    value, slope = run(jnp.zeros(2), counts)
    assert jnp.isnan(value)
    np.testing.assert_array_equal(jnp.isnan(slope), [False, True])


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (normal_nll, "scale"),
        (laplace_nll, "scale"),
        (huber, "delta"),
        (lambda x, y, s: student_t_nll(x, y, s), "df"),
        (lambda x, y, s: student_t_nll(x, y, 2.0, s), "scale"),
    ],
)
def test_bad_scales(loss: Callable[..., Array], name: str, scale: float) -> None:
    x = jnp.ones(2)
    with pytest.raises(InputError, match=f"{name} must be positive and finite; it has"):
        loss(x, x, scale)
    with pytest.raises(InputError, match=f"{name} must be positive.*it has"):
        jax.jit(lambda x: loss(x, x, scale))(x)
    scales = jnp.array([1.0, scale])
    with pytest.raises(InputError, match=f"{name} must be positive and finite; row 1 has"):
        loss(x, x, scales)
    run = jax.jit(jax.value_and_grad(lambda x, s: loss(x, 0 * x, s).sum(), (0, 1)))
    value, slopes = run(x, scales)
    assert jnp.isnan(value)
    for slope in slopes:
        np.testing.assert_array_equal(jnp.isnan(slope), [False, True])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -1.0, 0.0])
@pytest.mark.parametrize(
    "loss",
    [normal_nll, laplace_nll, huber, lambda x, y, s: student_t_nll(x, y, s, s)],
)
def test_a_masked_row_leaks_nothing(loss: Callable[..., Array], poison: float) -> None:
    weights = jnp.array([1.0, 0.0])

    def value(x: Array, y: Array, s: Array) -> Array:
        return mean(loss(x, y, s), weights).value()

    bad = jnp.array([1.0, poison])
    for arguments in ((bad, jnp.zeros(2), bad), (bad, bad, jnp.ones(2))):
        found = jax.jit(jax.value_and_grad(value, (0, 1, 2)))(*arguments)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        assert all(slope[1] == 0 for slope in found[1])


def test_a_masked_bad_count_leaks_nothing() -> None:
    def value(x: Array, n: Array) -> Array:
        return mean(poisson_nll(x, n), jnp.array([1.0, 0.0])).value()

    found = jax.jit(jax.grad(value))(jnp.array([0.0, np.nan]), jnp.array([1, -1]))
    np.testing.assert_array_equal(found, [0.0, 0.0])


@pytest.mark.parametrize("loss", [normal_nll, laplace_nll, huber, poisson_nll])
@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (1, 2), (3,)])
def test_nothing_is_broadcast(loss: Callable[..., Array], shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(2,\)") as caught:
        loss(jnp.zeros(2), jnp.zeros(shape))
    assert str(shape) in str(caught.value)


def test_scale_shapes_and_types() -> None:
    x = jnp.zeros((2, 3))
    for loss in (normal_nll, laplace_nll, huber):
        with pytest.raises(InputError, match=r"scalar or have the shape.*\(3,\).*\(2, 3\)"):
            loss(x, x, jnp.ones(3))
    with pytest.raises(InputError, match="loc must be float, got int32"):
        normal_nll(jnp.zeros(2, jnp.int32), jnp.zeros(2))
    with pytest.raises(InputError, match="must be real, got complex64"):
        normal_nll(jnp.zeros(2), jnp.zeros(2, jnp.complex64))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_and_empty(dtype: type) -> None:
    x = jnp.linspace(-2, 2, 9).astype(dtype)
    y = jnp.arange(9)
    for loss in (normal_nll, laplace_nll, huber, poisson_nll):
        run = jax.jit(
            jax.value_and_grad(lambda x, y, f=loss: (f(x, y).sum(), f(x, y)), has_aux=True)
        )
        (_, found), slope = run(x, y)
        assert found.dtype == jnp.float32
        assert slope.dtype == dtype
        (_, wide), wide_slope = run(x.astype(jnp.float32), y)
        np.testing.assert_array_equal(found, wide)
        np.testing.assert_array_equal(slope, wide_slope.astype(dtype))
        assert loss(jnp.zeros(0), jnp.zeros(0)).shape == (0,)


def test_float64_is_kept() -> None:
    with jax.enable_x64(True):
        x, y = jnp.array([0.1]), jnp.array([0.4])
        assert x.dtype == jnp.float64
        want = float(normal(M(float(x[0])), M(float(y[0])), M(0.3)))
        np.testing.assert_allclose(jax.jit(normal_nll)(x, y, 0.3), [want], rtol=1e-14)
        want = float(student(M(float(x[0])), M(float(y[0])), M(2.5), M(0.3)))
        found = jax.jit(student_t_nll)(x, y, 2.5, 0.3)
        np.testing.assert_allclose(found, [want], rtol=1e-13)
        want = float(poisson(M(float(x[0])), M(20)))
        found = jax.jit(poisson_nll)(x, jnp.array([20]))
        np.testing.assert_allclose(found, [want], rtol=1e-14)


def test_forward_mode_second_order_and_vmap() -> None:
    x, y = jnp.array([0.5, -2.0, 1.0]), jnp.array([0.0, 1.0, 1.0])
    np.testing.assert_allclose(
        jax.jit(jax.hessian(lambda x: normal_nll(x, y, 2.0).sum()))(x), np.eye(3) / 4, rtol=1e-6
    )
    found = jax.jit(jax.hessian(lambda x: student_t_nll(x, y, 3.0).sum()))(x)
    z2 = (np.asarray(x) - np.asarray(y)) ** 2
    np.testing.assert_allclose(found, np.diag(4 * (3 - z2) / (3 + z2) ** 2), rtol=2e-6, atol=1e-7)
    found = jax.jit(jax.grad(jax.grad(lambda x: poisson_nll(x, jnp.array(3)))))(jnp.array(0.5))
    np.testing.assert_allclose(found, np.exp(0.5), rtol=1e-6)
    _, slope = jax.jvp(lambda x: huber(x, y).sum(), (x,), (jnp.ones(3),))
    np.testing.assert_allclose(slope, 0.5 - 1.0, rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(normal_nll)(x, y), normal_nll(x, y))


# Squares of subnormal numbers are 0 in float32.
FLOATS = st.floats(-50, 50, width=32)


@jax.jit
def four(x: Array, y: Array, delta: Array) -> list[Array]:
    return [normal_nll(x, y), huber(x, y, 1e3), huber(x, y, delta), student_t_nll(x, y, 1e8)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=8, max_size=8), st.floats(0.125, 8, width=32))
def test_identities(pairs: list[tuple[float, float]], delta: float) -> None:
    x, y = (jnp.array(c, jnp.float32) for c in zip(*pairs, strict=True))
    error = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    gauss, wide, bounded, student_t = (np.asarray(v) for v in four(x, y, jnp.float32(delta)))
    # Normal NLL = MSE / 2 + const.
    half = 0.5 * error**2 + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(gauss, half, rtol=RELATIVE)
    # Huber is squared error with a wide delta, delta times absolute error less a constant beyond.
    np.testing.assert_allclose(wide, 0.5 * error**2, rtol=RELATIVE, atol=1e-37)
    assert (bounded <= 0.5 * error**2 * (1 + 1e-6) + 1e-37).all()
    # Student's t with many degrees of freedom is Normal; its own tails differ by z⁴ / 4 df.
    np.testing.assert_allclose(student_t, half, rtol=2e-4)
