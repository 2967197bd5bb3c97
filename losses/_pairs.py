"""Cross entropy, divergence and entropy of distributions over K classes.

Either side is given by probabilities or by logits; what differs is how a slope reaches them.

Shape suffixes: K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jgraph._errors import InputError
from jgraph.losses._checks import check_distribution, class_axis, nan_unless, predictions
from jgraph.losses._slopes import with_slopes


class Side(NamedTuple):
    """One of two distributions: its parameters, and whether they are logits."""

    x: Float[Array, "*batch k"]
    is_logits: bool
    ok: Bool[Array, "*batch"]

    @classmethod
    def of_logits(cls, logits: Float[Array, "*batch k"]) -> Side:
        """Take logits; those that are no distribution give NaN by themselves."""
        return cls(logits, True, jnp.ones(logits.shape[:-1], bool))

    @classmethod
    def of_probabilities(cls, name: str, x: ArrayLike) -> Side:
        """Take probabilities, checked as far as their values are known.

        Raises:
            InputError: not float, no class axis, outside [0, 1], or of another sum than 1.
        """
        p = predictions(name, x)
        class_axis(name, p)
        return cls(p, False, check_distribution(name, x, p))

    @property
    def log_probs(self) -> Float[Array, "*batch k"]:
        """Return log p, -inf for an impossible class."""
        return _log_probs(self.x, self.is_logits)


def entropy_of(p: Side) -> Float[Array, "*batch"]:
    """Return H(p) = -Σ p log p."""
    return _ENTROPY[p.is_logits](nan_unless(p.ok, p.x.dtype), p.x)


def cross_entropy_of(p: Side, q: Side) -> Float[Array, "*batch"]:
    """Return H(p, q) = -Σ p log q."""
    return _CROSS_ENTROPY[p.is_logits, q.is_logits](_good(p, q), p.x, q.x)


def kl_of(p: Side, q: Side) -> Float[Array, "*batch"]:
    """Return D(p || q) = Σ p log(p / q)."""
    return _KL[p.is_logits, q.is_logits](_good(p, q), p.x, q.x)


def same_sides(p: Side, q: Side) -> tuple[Side, Side]:
    """Return both in the wider precision.

    Raises:
        InputError: the shapes differ.
    """
    if p.x.shape != q.x.shape:
        raise InputError(
            f"p and q must have the same shape [..., K], got p {p.x.shape} and q {q.x.shape}; "
            "broadcast by hand where that is meant"
        )
    dtype = np.promote_types(p.x.dtype, q.x.dtype)
    return p._replace(x=p.x.astype(dtype)), q._replace(x=q.x.astype(dtype))


def _good(p: Side, q: Side) -> Float[Array, "*batch"]:
    return nan_unless(p.ok & q.ok, p.x.dtype)


def _log_probs(x: Array, is_logits: bool) -> Array:
    if not is_logits:
        return log0(x)
    largest = jax.lax.stop_gradient(x.max(-1, keepdims=True))
    certain = jnp.isposinf(largest)
    finite = jnp.isfinite(largest)
    # Two classes of +inf, or only impossible ones, are no distribution.
    defined = jnp.where(certain, jnp.isposinf(x).sum(-1, keepdims=True) == 1, finite)
    shifted = jnp.where(finite, x, 0.0) - jnp.where(finite, largest, 0.0)
    usual = shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))
    limit = jnp.where(jnp.isposinf(x), 0.0, -jnp.inf).astype(x.dtype)
    return jnp.where(defined, jnp.where(certain, limit, usual), jnp.nan)


def log0(x: Array) -> Array:
    """Return log x, -inf at 0, with a slope that stays finite there."""
    zero = x == 0
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, x)))


def times0(p: Array, x: Array) -> Array:
    """Return p x, 0 where p is 0, whatever x is."""
    zero = p == 0
    return jnp.where(zero, 0.0, p * jnp.where(zero, 0.0, x))


def _to_parameters(p: Array, slope: Array, is_logits: bool) -> Array:
    """Carry the slope with respect to p over to p's logits."""
    if not is_logits:
        return slope
    mean = times0(p, slope).sum(-1, keepdims=True)
    return times0(p, slope - mean)


def _q_slope(p: Array, q: Array, is_logits: bool) -> Array:
    """Return the slope of -Σ p log q with respect to q's parameters."""
    if is_logits:
        return q * p.sum(-1, keepdims=True) - p
    # At p = q = 0 the function of q is 0 for every q: so is its slope.
    return jnp.where(p == 0, 0.0, -p / jnp.where(p == 0, 1.0, q))


def _probs(x: Array, logs: Array, is_logits: bool) -> Array:
    return jnp.exp(logs) if is_logits else x


def _make_entropy(p_logits: bool) -> Callable[..., Array]:
    def formula(x: Array) -> tuple[Array, list[Array | None]]:
        log_p = _log_probs(x, p_logits)
        p = _probs(x, log_p, p_logits)
        value = times0(p, -log_p).sum(-1)
        return value, [_to_parameters(p, -log_p - 1, p_logits)]

    return with_slopes(formula)


def _make_cross_entropy(p_logits: bool, q_logits: bool) -> Callable[..., Array]:
    def formula(x: Array, y: Array) -> tuple[Array, list[Array | None]]:
        log_p, log_q = _log_probs(x, p_logits), _log_probs(y, q_logits)
        p, q = _probs(x, log_p, p_logits), _probs(y, log_q, q_logits)
        value = times0(p, -log_q).sum(-1)
        return value, [_to_parameters(p, -log_q, p_logits), _q_slope(p, q, q_logits)]

    return with_slopes(formula)


def _make_kl(p_logits: bool, q_logits: bool) -> Callable[..., Array]:
    def formula(x: Array, y: Array) -> tuple[Array, list[Array | None]]:
        log_p, log_q = _log_probs(x, p_logits), _log_probs(y, q_logits)
        p, q = _probs(x, log_p, p_logits), _probs(y, log_q, q_logits)
        log_ratio = log_quotient(p, q, log_p, log_q)
        value = times0(p, log_ratio).sum(-1)
        return value, [_to_parameters(p, log_ratio + 1, p_logits), _q_slope(p, q, q_logits)]

    return with_slopes(formula)


def log_quotient(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    """Return log(p / q) to full precision where p is near q; +inf at q = 0, p = 0 included."""
    near = (jnp.abs(p - q) < 0.5 * q) & (q > jnp.finfo(q.dtype).tiny)
    close = jnp.log1p(jnp.where(near, p - q, 0.0) / jnp.where(near, q, 1.0))
    never = jnp.isneginf(log_q)  # not q == 0: that of logits may have underflowed
    far = jnp.where(near | never, 0.0, log_p) - jnp.where(near | never, 0.0, log_q)
    # With q = 0 held, p log(p / q) is 0 at p = 0 and infinite beside it.
    return jnp.where(near, close, jnp.where(never, jnp.inf, far))


_BOTH = (False, True)
_ENTROPY = {p: _make_entropy(p) for p in _BOTH}
_CROSS_ENTROPY = {(p, q): _make_cross_entropy(p, q) for p in _BOTH for q in _BOTH}
_KL = {(p, q): _make_kl(p, q) for p in _BOTH for q in _BOTH}
