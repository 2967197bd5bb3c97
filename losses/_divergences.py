"""Divergences of two distributions over K classes, both given as probabilities.

Classification losses take logits; these take probabilities, since what they compare need not come
out of a softmax. For logits use `jgraph.losses.kl(Categorical(...), Categorical(...))`.

Shape suffixes: K classes; `...` any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph.losses._checks import known, nan_unless, number
from jgraph.losses._core import kl
from jgraph.losses._pairs import Side, log0, log_quotient, same_sides, times0
from jgraph.losses._slopes import with_slopes


def kl_divergence(p: ArrayLike, q: ArrayLike) -> Float[Array, "*batch"]:
    """Return D(p || q) = Σ p log(p / q), in nats, of probabilities.

    With p the data it is cross entropy less p's entropy: the excess of the expected loss. It is
    infinite where q is 0 and p isn't; where both may have zeros take `js_divergence`.

    Args:
        p: probabilities, float `[..., K]`, in [0, 1], of sum 1.
        q: the same; its shape is p's.

    Returns:
        float32 (float64 where an input is) `[...]`, ≥ 0. 0 log 0 = 0. In compiled code a row that
        isn't a distribution is NaN in value and gradient.

    Raises:
        InputError: (a ValueError) not float, shapes differ, or, where known (no jit), a row
            outside [0, 1] or of another sum.

    Source:
        `tf.keras.losses.KLDivergence` (which clips at 1e-7); Kullback and Leibler, 1951.

    Example:
        >>> round(float(kl_divergence(jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75]))), 4)
        0.1438
    """
    return kl(p, q)


def js_divergence(p: ArrayLike, q: ArrayLike) -> Float[Array, "*batch"]:
    """Return the Jensen-Shannon divergence: (D(p || m) + D(q || m)) / 2 with m = (p + q) / 2.

    Symmetric, finite, at most log 2, and the square of a metric: for comparing two models, neither
    of which is the truth. Where supports don't touch its value is log 2 however far they are;
    where classes have an order or a distance, take `wasserstein1`.

    Args:
        p: probabilities, float `[..., K]`, in [0, 1], of sum 1.
        q: the same; its shape is p's.

    Returns:
        Nats, float32 (float64 where an input is) `[...]`, in [0, log 2].

    Raises:
        InputError: as `kl_divergence`.

    Source:
        Lin, Divergence measures based on the Shannon entropy, 1991.

    Example:
        >>> js_divergence(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])).round(4)
        Array([0.6931], dtype=float32)
    """
    good, x, y = _two(p, q)
    return _js(good, x, y)


def renyi_divergence(p: ArrayLike, q: ArrayLike, alpha: float) -> Float[Array, "*batch"]:
    """Return Rényi's divergence of order alpha: log(Σ p^α q^(1-α)) / (α - 1).

    It grows with alpha: below 1 it forgives what q leaves out, above 1 rare misses dominate; 1 is
    `kl_divergence`, 1/2 is symmetric (-2 log of the Bhattacharyya coefficient), infinity is the
    worst case log max p / q, which privacy accounting uses.

    Args:
        p: probabilities, float `[..., K]`, in [0, 1], of sum 1.
        q: the same; its shape is p's.
        alpha: a Python number > 0, infinity included.

    Returns:
        Nats, float32 (float64 where an input is) `[...]`, ≥ 0.

    Raises:
        InputError: as `kl_divergence`, or alpha isn't a positive Python number.

    Source:
        van Erven and Harremoës, Rényi divergence and Kullback-Leibler divergence, 2014.

    Example:
        >>> renyi_divergence(jnp.array([[0.5, 0.5]]), jnp.array([[0.25, 0.75]]), 2.0).round(4)
        Array([0.2877], dtype=float32)
    """
    if isinstance(alpha, float) and alpha == math.inf:
        good, x, y = _two(p, q)
        return _renyi_max(good, x, y)
    order = number("alpha", alpha, 0, math.inf, open_low=True)
    if order == 1:
        return kl(p, q)
    good, x, y = _two(p, q)
    return _renyi(order)(good, x, y)


def wasserstein1(
    p: ArrayLike, q: ArrayLike, positions: ArrayLike | None = None
) -> Float[Array, "*batch"]:
    """Return the earth mover's distance of two histograms on a line.

    `Σ |CDF_p - CDF_q| · spacing`: how far probability has to be carried. It knows that class 3 is
    nearer to 4 than to 9, which no other divergence here does, so it needs classes with an order
    (ages, ratings, bins); for cat, dog and other take `kl_divergence`.

    Args:
        p: probabilities, float `[..., K]`, in [0, 1], of sum 1.
        q: the same; its shape is p's.
        positions: where the classes are, float `[K]`, increasing; None means 0, 1, …, K - 1.

    Returns:
        In the unit of the positions, float32 (float64 where an input is) `[...]`. The slope where
        both CDFs agree is 0.

    Raises:
        InputError: as `kl_divergence`, or positions of another shape, or not increasing.

    Source:
        `scipy.stats.wasserstein_distance`; Hou et al., Squared earth mover's distance-based loss,
        arXiv:1611.05916.

    Example:
        >>> wasserstein1(jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 1.0]]))
        Array([2.], dtype=float32)
    """
    good, x, y = _two(p, q)
    steps = _spacing(positions, x)
    return _carry(good, x, y, jnp.broadcast_to(steps, (*x.shape[:-1], x.shape[-1] - 1)))


@with_slopes
def _carry(p: Array, q: Array, steps: Array) -> tuple[Array, list[Array | None]]:
    over = jnp.cumsum(p - q, -1)[..., :-1]
    # What lies at k is carried over every step from k on.
    slopes = jnp.flip(jnp.cumsum(jnp.flip(jnp.sign(over) * steps, -1), -1), -1)
    slope = jnp.concatenate([slopes, jnp.zeros_like(p[..., :1])], -1)
    return (jnp.abs(over) * steps).sum(-1), [slope, -slope, jnp.abs(over)]


@with_slopes
def _js(p: Array, q: Array) -> tuple[Array, list[Array | None]]:
    m = 0.5 * (p + q)
    # At p = q = 0 the slope with the other held at 0 is that of p log(2) / 2.
    log_p, log_q = (_log_to_middle(x, m) for x in (p, q))
    value = 0.5 * (times0(p, log_p) + times0(q, log_q)).sum(-1)
    return value, [0.5 * log_p, 0.5 * log_q]


def _log_to_middle(x: Array, m: Array) -> Array:
    usual = log_quotient(x, m, log0(x), log0(m))
    return jnp.where(m == 0, math.log(2), usual)


def _renyi(order: float) -> Callable[..., Array]:
    def formula(p: Array, q: Array) -> tuple[Array, list[Array | None]]:
        log_p, log_q = log0(p), log0(q)
        ratio = log_quotient(p, q, log_p, log_q)
        # log of p^α q^(1-α), α log p + (1-α) log q: -inf at p = 0, whatever q is.
        term = jnp.where(p == 0, -jnp.inf, log_p + (order - 1) * jnp.where(p == 0, 0.0, ratio))
        largest = term.max(-1, keepdims=True)
        base = jnp.where(jnp.isfinite(largest), largest, 0.0)
        log_sum = jnp.log(jnp.exp(term - base).sum(-1)) + base[..., 0]
        # Near 1 the sum is 1 + a little, of which its logarithm would keep few digits. (Where the
        # exponent is cut, the little isn't.)
        exponent = jnp.minimum((order - 1) * ratio, 80.0)
        little = times0(p, jnp.expm1(exponent)).sum(-1)
        near = jnp.abs(little) < 0.5
        log_sum = jnp.where(near, jnp.log1p(jnp.where(near, little, 0.0)), log_sum)
        value = log_sum / (order - 1)
        return value, _renyi_slopes(order, p, q, ratio, term, log_sum[..., None])

    return with_slopes(formula)


def _renyi_slopes(
    order: float, p: Array, q: Array, ratio: Array, term: Array, log_sum: Array
) -> list[Array | None]:
    factor = order / (order - 1)
    slope_p = factor * jnp.exp((order - 1) * ratio - log_sum)
    slope_q = -jnp.exp(order * jnp.where(p == 0, 0.0, ratio) - log_sum)
    # A term that stays 0 wherever p, or q, moves to.
    slope_p = jnp.where((q == 0) & (order < 1), 0.0, slope_p)
    slope_q = jnp.where(p == 0, 0.0, slope_q)
    # An infinite term is all of the sum; of two it isn't known which.
    endless = jnp.isposinf(term)
    alone = endless.sum(-1, keepdims=True) == 1
    slope_p = jnp.where(alone, jnp.where(endless, factor / jnp.where(alone, p, 1.0), 0.0), slope_p)
    return [slope_p, jnp.where(alone, jnp.where(endless, -jnp.inf, 0.0), slope_q)]


@with_slopes
def _renyi_max(p: Array, q: Array) -> tuple[Array, list[Array | None]]:
    ratio = jnp.where(p == 0, -jnp.inf, log_quotient(p, q, log0(p), log0(q)))
    value = ratio.max(-1)
    top = ratio == value[..., None]
    tops = top.astype(p.dtype)
    share = tops / tops.sum(-1, keepdims=True)  # ties share the slope
    safe_p = jnp.where(top, p, 1.0)
    slope_p = jnp.where(top, share / safe_p, 0.0)
    # With q = 0 held, the ratio is infinite as soon as p is there.
    slope_p = jnp.where((p == 0) & (q == 0), jnp.inf, slope_p)
    return value, [slope_p, jnp.where(top, -share / q, 0.0)]


def _two(p: ArrayLike, q: ArrayLike) -> tuple[Array, Array, Array]:
    """Return the factor 1 or NaN and both sides, of one shape and precision."""
    a, b = same_sides(Side.of_probabilities("p", p), Side.of_probabilities("q", q))
    return nan_unless(a.ok & b.ok, a.x.dtype), a.x, b.x


def _spacing(positions: ArrayLike | None, p: Array) -> Array:
    """Return the K - 1 distances between neighbouring classes."""
    num_classes = p.shape[-1]
    if positions is None:
        return jnp.ones(num_classes - 1, p.dtype)
    places = jnp.asarray(positions)
    if places.shape != (num_classes,) or not jnp.issubdtype(places.dtype, jnp.floating):
        raise InputError(
            f"positions must be float of shape ({num_classes},), one per class of p {p.shape}, got "
            f"{places.dtype} {places.shape}"
        )
    steps = jnp.diff(places.astype(p.dtype))
    values = known(steps)
    if values is not None and not (values > 0).all():
        raise InputError(f"positions must increase, got steps {values.tolist()} between classes")
    return jnp.where(steps > 0, steps, jnp.nan)
