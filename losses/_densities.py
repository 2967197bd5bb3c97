"""Negative log densities, element by element, with their slopes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jgraph.losses._slopes import with_slopes

_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
# log n! less Stirling's formula, for n = 0 … 15; from 16 on the series has every digit.
_STIRLING = tuple(
    math.lgamma(n + 1) - (n * math.log(n) - n + 0.5 * math.log(2 * math.pi * n)) if n else 0.0
    for n in range(16)
)


@with_slopes
def normal(loc: Array, scale: Array, y: Array) -> tuple[Array, list[Array | None]]:
    z = (y - loc) / scale
    value = 0.5 * z * z + jnp.log(scale) + _HALF_LOG_TAU
    return value, [-z / scale, (1 - z * z) / scale, z / scale]


@with_slopes
def laplace(loc: Array, scale: Array, y: Array) -> tuple[Array, list[Array | None]]:
    distance = jnp.abs(y - loc) / scale
    slope = jnp.sign(y - loc) / scale
    value = distance + jnp.log(scale) + math.log(2)
    return value, [-slope, (1 - distance) / scale, slope]


@with_slopes
def student_t(df: Array, loc: Array, scale: Array, y: Array) -> tuple[Array, list[Array | None]]:
    w = (y - loc) / scale / jnp.sqrt(df)
    far = jnp.abs(w) > 1
    inside, outside = jnp.where(far, 0.0, w), jnp.where(far, w, 1.0)
    # w² overflows long before its logarithm does.
    log_term = jnp.where(
        far,
        2 * jnp.log(jnp.abs(outside)) + jnp.log1p((1 / outside) ** 2),
        jnp.log1p(inside**2),
    )
    pull = jnp.where(far, 1 / (outside + 1 / outside), inside / (1 + inside**2))  # w / (1 + w²)
    share = jnp.where(far, 1 / (1 + (1 / outside) ** 2), inside * pull)  # w² / (1 + w²)
    log_norm, log_norm_slope = jax.jvp(student_t_log_norm, (df,), (jnp.ones_like(df),))
    value = 0.5 * (df + 1) * log_term + jnp.log(scale) + log_norm
    slope_y = (df + 1) / jnp.sqrt(df) * pull / scale
    slope_df = 0.5 * log_term - 0.5 * (df + 1) / df * share + log_norm_slope
    return value, [slope_df, -slope_y, (1 - (df + 1) * share) / scale, slope_y]


def student_t_log_norm(df: Array) -> Array:
    """Return log B(df / 2, 1 / 2) + log(df) / 2, where lgamma's difference loses all digits."""
    a = df / 2
    # Γ(a + 1/2) / Γ(a) = Γ(a + 8 + 1/2) / Γ(a + 8) · Π (a + i) / (a + i + 1/2), and for the
    # ratio at a + 8 the series in 1/a has every digit.
    log_product = jnp.log(a)
    for i in range(1, 8):
        log_product = log_product + jnp.log1p(-0.5 / (a + i + 0.5))
    log_product = log_product - jnp.log(a + 0.5)
    b = a + 8
    c = 1 / (b * b)
    series = 1 / 640 - c * (17 / 14336 - c * (31 / 18432 - c * 691 / 180224))
    log_ratio = 0.5 * jnp.log(b) - (1 / 8 - c * (1 / 192 - c * series)) / b
    return 0.5 * jnp.log(df) + 0.5 * math.log(math.pi) - log_product - log_ratio


@with_slopes
def poisson(log_rate: Array, count: Array) -> tuple[Array, list[Array | None]]:
    """Write the terms as Loader does: rate - count log rate + log count! cancels its digits."""
    empty = count == 0
    n = jnp.where(empty, 1.0, count)
    rate = jnp.exp(log_rate)
    # The deviance is count (e^u - 1 - u), of which count e^u is the rate itself.
    u = log_rate - jnp.log(n)
    near = jnp.abs(u) < 0.5
    # Far above, the line is below the last digit, and at infinity would be subtracted from it.
    line = jnp.where(u > 40, 0.0, n * (1 + u))
    deviance = jnp.where(near, n * _exp_less_line(jnp.where(near, u, 0.0)), rate - line)
    constant = 0.5 * jnp.log(n) + _HALF_LOG_TAU + _stirling(n)
    value = jnp.where(empty, rate, deviance + constant)
    slope = jnp.where(near, n * jnp.expm1(jnp.where(near, u, 0.0)), rate - count)
    return value, [jnp.where(empty, rate, slope), None]


@with_slopes
def huber(delta: Array, prediction: Array, target: Array) -> tuple[Array, list[Array | None]]:
    error = prediction - target
    size = jnp.abs(error)
    near = size <= delta
    inside = jnp.where(near, error, 0.0)
    value = jnp.where(near, 0.5 * inside**2, delta * (size - 0.5 * delta))
    slope = jnp.where(near, error, delta * jnp.sign(error))
    return value, [jnp.where(near, 0.0, size - delta), slope, -slope]


@with_slopes
def bernoulli_entropy(logits: Array) -> tuple[Array, list[Array | None]]:
    size = jnp.abs(jnp.where(jnp.isinf(logits), 0.0, logits))
    rare = jnp.exp(-size) / (1 + jnp.exp(-size))
    value = jnp.where(jnp.isinf(logits), 0.0, jnp.log1p(jnp.exp(-size)) + size * rare)
    slope = jnp.where(jnp.isinf(logits), 0.0, -logits * rare * (1 - rare))
    return value, [slope]


def _exp_less_line(u: Array) -> Array:
    """Return e^u - 1 - u to full precision, infinity at both ends."""
    small = jnp.abs(u) < 0.5
    v = jnp.where(small, u, 0.0)
    series = jnp.ones_like(u)
    for k in range(16, 2, -1):
        series = 1 + v / k * series
    # Above 40 the line is below the last digit, and at infinity it would be subtracted from it.
    line = jnp.where(u > 40, 0.0, u)
    return jnp.where(small, 0.5 * v * v * series, jnp.exp(u) - 1 - line)


def _stirling(n: Array) -> Array:
    """Return log n! less Stirling's formula, for whole n ≥ 1."""
    c = 1 / (n * n)
    series = 1 / 12 - c * (1 / 360 - c * (1 / 1260 - c * (1 / 1680 - c / 1188)))
    value = series / n
    for k, exact in enumerate(_STIRLING):
        value = jnp.where(n == k, exact, value)
    return value


@with_slopes
def bernoulli(logits: Array, y: Array) -> tuple[Array, list[Array | None]]:
    """Take y = 0 or 1: the logit, its sign turned for yes, is what softplus sees."""
    yes = y == 1
    wrong = jnp.where(yes, -logits, logits)
    slope = jnp.where(yes, -1.0, 1.0) * jax.nn.sigmoid(wrong)
    return jax.nn.softplus(wrong), [slope, None]


@with_slopes
def normal_cross_entropy(
    loc: Array, scale: Array, p_loc: Array, p_scale: Array
) -> tuple[Array, list[Array | None]]:
    z, r = (p_loc - loc) / scale, p_scale / scale
    value = 0.5 * (z * z + r * r) + jnp.log(scale) + _HALF_LOG_TAU
    return value, [-z / scale, (1 - z * z - r * r) / scale, z / scale, r / scale]


@with_slopes
def normal_kl(
    loc: Array, scale: Array, p_loc: Array, p_scale: Array
) -> tuple[Array, list[Array | None]]:
    z, r = (p_loc - loc) / scale, p_scale / scale
    # log(1 / r) + (r² - 1) / 2 cancels near r = 1.
    log_r = jnp.log(r)
    value = 0.5 * (z * z + _exp_less_line(2 * log_r))
    growth = (r - 1) * (r + 1)
    return value, [-z / scale, -(z * z + growth) / scale, z / scale, growth / p_scale]


@with_slopes
def laplace_cross_entropy(
    loc: Array, scale: Array, p_loc: Array, p_scale: Array
) -> tuple[Array, list[Array | None]]:
    distance, pull, tail = _laplace_distance(loc, p_loc, p_scale)
    value = distance / scale + jnp.log(scale) + math.log(2)
    return value, [
        -pull / scale,
        (1 - distance / scale) / scale,
        pull / scale,
        tail / scale,
    ]


@with_slopes
def laplace_kl(
    loc: Array, scale: Array, p_loc: Array, p_scale: Array
) -> tuple[Array, list[Array | None]]:
    distance, pull, tail = _laplace_distance(loc, p_loc, p_scale)
    ratio = p_scale / scale
    # distance / scale - 1 - log(ratio), without what cancels near equality.
    beyond = ratio * _exp_less_line(-jnp.abs(p_loc - loc) / p_scale)
    value = beyond + _exp_less_line(jnp.log(ratio))
    return value, [
        -pull / scale,
        (1 - distance / scale) / scale,
        pull / scale,
        tail / scale - 1 / p_scale,
    ]


def _laplace_distance(loc: Array, p_loc: Array, p_scale: Array) -> tuple[Array, Array, Array]:
    """Return E|y - loc| for y ~ Laplace(p_loc, p_scale), its slopes for p_loc and p_scale."""
    d = p_loc - loc
    far = jnp.abs(d) / p_scale
    # d e^-far with d infinite is 0.
    tail = jnp.exp(-far) * (1 + jnp.where(jnp.isinf(far), 0.0, far))
    return jnp.abs(d) + p_scale * jnp.exp(-far), -jnp.sign(d) * jnp.expm1(-far), tail


@with_slopes
def poisson_kl(log_p: Array, log_q: Array) -> tuple[Array, list[Array | None]]:
    """Return p (log p - log q) - p + q = p (e^u - 1 - u) with u = log q - log p."""
    never = jnp.isneginf(log_p)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    u = jnp.where(never, 0.0, log_q) - jnp.where(never, 0.0, log_p)
    value = jnp.where(never, q, p * _exp_less_line(u))
    slope_q = jnp.where(never, q, p * jnp.expm1(u))
    return value, [jnp.where(never, 0.0, -p * u), slope_q]
