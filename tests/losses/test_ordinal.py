from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import mean, ordinal, proportional_odds, sigmoid_cross_entropy

INF = np.inf


@pytest.mark.slow
def test_ordinal_is_a_sum_of_questions() -> None:
    rng = np.random.default_rng(0)
    z = (3 * rng.standard_normal((5, 4))).astype(np.float32)
    y = np.arange(5)
    above = y[:, None] > np.arange(4)
    wrong = np.where(above, -z, z).astype(np.float64)
    want = -scipy.special.log_expit(-wrong).sum(-1)
    np.testing.assert_allclose(ordinal(z, jnp.asarray(y)), want, rtol=1e-6)
    slope = jax.grad(lambda z: ordinal(z, jnp.asarray(y)).sum())(jnp.asarray(z))
    exact = np.where(above, -1, 1) * scipy.special.expit(wrong)
    np.testing.assert_allclose(slope, exact, rtol=1e-6)
    assert ordinal(jnp.zeros((0, 4)), jnp.zeros(0, int)).shape == (0,)


def test_ordinal_costs_more_the_further_off() -> None:
    z = jnp.tile(jnp.array([4.0, 4.0, -4.0, -4.0]), (5, 1))
    thresholds = jnp.array([-3.0, -1.0, 1.0, 3.0])
    for loss in (
        ordinal(z, jnp.arange(5)),
        proportional_odds(z[:, 0] * 0, jnp.arange(5), thresholds),
    ):
        found = np.asarray(loss)
        assert found.argmin() == 2
        assert (np.diff(found[:3]) < 0).all()
        assert (np.diff(found[2:]) > 0).all()


THRESHOLDS = np.array([-30.0, -1.5, -1.25, 0.5, 40.0], np.float32)
SCORES = np.array([-1e4, -100, -20, -1.4, 0, 0.3, 15, 100, 1e4], np.float32)


def exact_odds(
    score: float, label: int, thresholds: np.ndarray
) -> tuple[float, float, np.ndarray, float]:
    """Value and slopes of -log(σ(b) - σ(a)) in 60 digits; and the size of the score's terms."""
    ends = [-mpmath.inf, *(mpmath.mpf(float(t)) for t in thresholds), mpmath.inf]
    a, b = (ends[label + i] - mpmath.mpf(float(score)) for i in (0, 1))

    def sigma(x: Any) -> Any:
        return 1 / (1 + mpmath.exp(-x))

    def density(x: Any) -> Any:
        return sigma(x) * sigma(-x)

    # σ(b) - σ(a) as σ(-a) - σ(-b) where both are near 1: 60 digits don't hold 1 - e^-1e4.
    p = sigma(-a) - sigma(-b) if a > 0 else sigma(b) - sigma(a)
    toward = np.zeros(len(ends))
    if label < len(thresholds):
        toward[label + 1] = float(-density(b) / p)
    if label > 0:
        toward[label] = float(density(a) / p)
    slope = float((density(b) - density(a)) / p)
    return float(-mpmath.log(p)), slope, toward[1:-1], float(sigma(-b) + sigma(a))


def test_proportional_odds_to_a_millionth() -> None:
    scores, labels = (np.ravel(x) for x in np.meshgrid(SCORES, np.arange(6)))
    with mpmath.workdps(60):
        rows = [
            exact_odds(float(s), int(y), THRESHOLDS) for s, y in zip(scores, labels, strict=True)
        ]
    want, slope, pulls, terms = (np.array(column) for column in zip(*rows, strict=True))

    def run(s: Array, t: Array) -> Array:
        return proportional_odds(s, jnp.asarray(labels), t)

    at = jnp.asarray(scores), jnp.asarray(THRESHOLDS)
    for found in (run(*at), jax.jit(run)(*at)):
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1.2e-38)
    per_score = jax.jit(jax.grad(lambda s, t: run(s, t).sum()))(*at)
    # The slope is a difference, 0 in the middle of a class: as exact as its two terms.
    error = np.abs(per_score - slope)
    assert (error <= 1e-6 * np.abs(slope) + 1e-7 * terms).all()
    per_row = jax.jit(jax.jacobian(run, 1))(*at)
    np.testing.assert_allclose(per_row, pulls, rtol=1e-6, atol=1.2e-38)


def test_proportional_odds_is_a_distribution_and_a_question_where_there_are_two() -> None:
    t = jnp.array([-1.0, 0.25, 2.0])
    for s in (-3.0, 0.0, 1.7):
        p = jnp.exp(-proportional_odds(jnp.full(4, s), jnp.arange(4), t))
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    s = jnp.array([-2.0, 0.5])
    binary = sigmoid_cross_entropy(s - 0.25, jnp.array([1, 0]))
    np.testing.assert_allclose(
        proportional_odds(s, jnp.array([1, 0]), jnp.array([0.25])), binary, rtol=1e-6
    )


def test_proportional_odds_at_the_extremes() -> None:
    s = jnp.array([INF, -INF, INF, -INF, INF])
    y, t = jnp.array([2, 0, 0, 2, 1]), jnp.array([-1.0, 1.0])
    np.testing.assert_array_equal(proportional_odds(s, y, t), [0, 0, INF, INF, INF])
    slope = jax.jit(jax.grad(lambda s: proportional_odds(s, y, t).sum()))(s)
    np.testing.assert_array_equal(slope, [0, 0, 1, -1, 1])
    # Between equal thresholds nothing fits; the other classes don't mind.
    found = proportional_odds(jnp.zeros(3), jnp.arange(3), jnp.zeros(2))
    np.testing.assert_allclose(found, [np.log(2), INF, np.log(2)], rtol=1e-6)
    assert proportional_odds(jnp.zeros((0, 2)), jnp.zeros((0, 2), int), t).shape == (0, 2)


def test_bad_thresholds() -> None:
    s, y = jnp.zeros(2), jnp.array([0, 1])
    run = jax.jit(jax.value_and_grad(lambda s, t: proportional_odds(s, y, t).sum(), (0, 1)))
    for bad, row in (([0.0, -1.0], 1), ([np.nan, 0.0], 0), ([0.0, INF], 1)):
        t = jnp.array(bad)
        with pytest.raises(InputError, match=rf"finite and never decrease; row {row} has"):
            proportional_odds(s, y, t)
        value, slopes = run(s, t)
        assert jnp.isnan(value)
        assert all(jnp.isnan(slope).all() for slope in slopes)
    for shape in ((), (0,), (2, 1)):
        with pytest.raises(InputError, match=r"one less than classes, \[K - 1\], got shape"):
            proportional_odds(s, y, jnp.zeros(shape))
    with pytest.raises(InputError, match="thresholds must be float, got int32"):
        proportional_odds(s, y, jnp.arange(2))
    with pytest.raises(InputError, match="scores must be float, got int32"):
        proportional_odds(jnp.zeros(2, int), y, jnp.zeros(2))


def test_a_masked_row_keeps_the_thresholds_clean() -> None:
    s, y = jnp.array([0.5, jnp.nan, 0.0]), jnp.array([1, 0, 99])

    # Under jit with y an argument, since a known bad label is an error whatever its weight.
    def step(s: Array, t: Array, y: Array) -> Array:
        return mean(proportional_odds(s, y, t), jnp.array([1.0, 0.0, 0.0])).value()

    t = jnp.array([-1.0, 1.0])
    slopes = jax.jit(jax.grad(step, (0, 1)))(s, t, y)
    want = jax.grad(lambda s, t: proportional_odds(s, y[:1], t).sum(), (0, 1))(s[:1], t)
    np.testing.assert_allclose(slopes[0], [float(want[0][0]), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(slopes[1], want[1], rtol=1e-6)


@pytest.mark.slow
def test_proportional_odds_forward_mode_second_order_vmap_and_half_precision() -> None:
    s, y, t = jnp.array([0.3, -1.0, 0.0]), jnp.array([0, 1, 2]), jnp.array([-1.0, 1.0])

    def total(t: Array) -> Array:
        return proportional_odds(s, y, t).sum()

    np.testing.assert_allclose(
        jax.jit(jax.jacfwd(total))(t), jax.jit(jax.grad(total))(t), rtol=1e-6
    )
    found = jax.vmap(lambda s, y: proportional_odds(s, y, t))(s, y)
    np.testing.assert_allclose(found, proportional_odds(s, y, t), rtol=1e-6)
    half = proportional_odds(s.astype(jnp.bfloat16), y, t.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    rounded = s.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(half, proportional_odds(rounded, y, t))
    with jax.enable_x64(True):
        wide, step = jnp.asarray(np.asarray(t, np.float64)), 1e-5
        up, down = (jax.jit(jax.grad(total))(wide.at[0].add(x)) for x in (step, -step))
        second = jax.jit(jax.hessian(total))(wide)[0]
        np.testing.assert_allclose(second, (up - down) / (2 * step), atol=1e-9)
