"""The four words all losses are made of: likelihood, cross entropy, divergence, entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph.losses import _densities
from jgraph.losses._distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Laplace,
    Normal,
    Poisson,
    StudentT,
    align,
    positive,
    spread,
)
from jgraph.losses._pairs import Side, cross_entropy_of, entropy_of, kl_of, same_sides

_KINDS = (Categorical, Bernoulli, Normal, Laplace, StudentT, Poisson)
Law: TypeAlias = Distribution | ArrayLike
"""A distribution, or an array of probabilities `[..., K]`."""


def nll(dist: Distribution, y: ArrayLike) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood of y, in nats; its mean is what training minimises.

    Every named loss is this for one distribution: choosing a loss is saying what the outputs
    mean. A wrong choice still trains, towards another number: Normal finds the mean, Laplace the
    median.

    Args:
        dist: what the network's outputs say about y.
        y: what happened: class ids, answers, counts or numbers, of the shape of the
            distribution's parameters (for Categorical without the class axis).

    Returns:
        `-dist.log_prob(y)`, float32 (float64 where an input is) `[...]`.

    Raises:
        InputError: (a ValueError) shapes differ, parameters aren't float, or a value that is
            known is outside the distribution's range. In compiled code such a row is NaN in value
            and gradient.

    Source:
        Fisher, On the mathematical foundations of theoretical statistics, 1922.

    Example:
        >>> [round(float(x), 4) for x in nll(Normal(0.0, 1.0), jnp.array([0.0, 2.0]))]
        [0.9189, 2.9189]
    """
    if not isinstance(dist, _KINDS):
        raise InputError(f"dist must be one of {_names()}, got {type(dist).__name__}")
    return -dist.log_prob(y)


def cross_entropy(p: Law, q: Law) -> Float[Array, "*batch"]:
    """Return H(p, q), the mean negative log-likelihood under q of what p draws, in nats.

    With p the data and q the network it is the expected loss; H(p, q) = H(p) + KL(p || q), so its
    minimum is p's entropy. Where 0 must mean "equal", take `kl`: the gradient with respect to q
    is the same.

    Args:
        p: probabilities `[..., K]`, a Categorical, Bernoulli, Normal or Laplace.
        q: of the same kind (probabilities and Categorical mix) and of the same shape.

    Returns:
        `[...]`, without the class axis.

    Raises:
        InputError: (a ValueError) the kinds or shapes don't fit, or known probabilities are
            outside [0, 1] or don't sum to 1. In compiled code such a row is NaN.

    Source:
        Cover and Thomas, Elements of Information Theory, 2006, chapter 2.

    Example:
        >>> round(float(cross_entropy(jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75]))), 4)
        0.837
    """
    located = {
        Normal: _densities.normal_cross_entropy,
        Laplace: _densities.laplace_cross_entropy,
    }
    return _between("cross_entropy", p, q, cross_entropy_of, located)


def kl(p: Law, q: Law) -> Float[Array, "*batch"]:
    """Return D(p || q) = H(p, q) - H(p) in nats: what is lost by taking q for p; 0 where equal.

    It is infinite where q excludes what p allows, and not symmetric: minimising `kl(p, q)` over q
    covers all of p, `kl(q, p)` settles on one of its modes. `js_divergence` is symmetric and
    bounded; `wasserstein1` knows which classes are near each other.

    Args:
        p: probabilities `[..., K]`, a Categorical, Bernoulli, Normal, Laplace or Poisson.
        q: of the same kind (probabilities and Categorical mix) and of the same shape.

    Returns:
        `[...]`, without the class axis.

    Raises:
        InputError: (a ValueError) the kinds or shapes don't fit, or known probabilities are
            outside [0, 1] or don't sum to 1. In compiled code such a row is NaN.

    Source:
        `tfp.distributions.kl_divergence`; Kullback and Leibler, On information and sufficiency,
        1951.

    Example:
        >>> round(float(kl(jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75]))), 4)
        0.1438
    """
    if isinstance(p, Poisson) and isinstance(q, Poisson):
        x, y = align(None, {"p.log_rate": p.log_rate, "q.log_rate": q.log_rate})
        return _densities.poisson_kl(jnp.ones_like(x), x, y)
    located = {Normal: _densities.normal_kl, Laplace: _densities.laplace_kl}
    return _between("kl", p, q, kl_of, located)


def entropy(p: Law) -> Float[Array, "*batch"]:
    """Return H(p), the least mean loss any predictor of p can reach, in nats.

    Of a density it is differential entropy, which may be negative and depends on the unit.

    Args:
        p: probabilities `[..., K]`, or a distribution; Poisson has no closed form.

    Returns:
        `[...]`, without the class axis.

    Raises:
        InputError: (a ValueError) known probabilities are outside [0, 1] or don't sum to 1, or
            there is no closed form. In compiled code a bad row is NaN.

    Source:
        Shannon, A mathematical theory of communication, 1948.

    Example:
        >>> entropy(jnp.array([[0.5, 0.5], [1.0, 0.0]])).round(4)
        Array([0.6931, 0.    ], dtype=float32)
    """
    return p.entropy() if isinstance(p, _KINDS) else entropy_of(Side.of_probabilities("p", p))


def _between(
    function: str,
    p: Law,
    q: Law,
    of_sides: Callable[[Side, Side], Array],
    located: Mapping[type, Callable[..., Array]],
) -> Float[Array, "*batch"]:
    """Apply the formula for two distributions over classes, or that for their kind of density."""
    sides = _sides(p, q)
    if sides is not None:
        return of_sides(*sides)
    for kind, formula in located.items():
        if isinstance(p, kind) and isinstance(q, kind):
            return formula(*_locations(p, q))  # pyright: ignore[reportArgumentType]
    raise _no_pair(function, p, q)


def _sides(p: Law, q: Law) -> tuple[Side, Side] | None:
    """Return both as distributions over K classes, None if one is something else."""
    if isinstance(p, Bernoulli) and isinstance(q, Bernoulli):
        return _bernoulli_sides(p, q)
    if any(isinstance(x, _KINDS) and not isinstance(x, Categorical) for x in (p, q)):
        return None
    return same_sides(_side("p", p), _side("q", q))


def _side(name: str, x: Law) -> Side:
    if isinstance(x, Categorical):
        return x.side(f"{name}.logits")
    return Side.of_probabilities(name, x)  # pyright: ignore[reportArgumentType]


def _bernoulli_sides(p: Bernoulli, q: Bernoulli) -> tuple[Side, Side]:
    """Return them as softmax([0, logit])."""
    x, y = align(None, {"p.logits": p.logits, "q.logits": q.logits})
    x, y = (_two_classes(z) for z in (x, y))
    return Side.of_logits(x), Side.of_logits(y)


def _two_classes(logits: Array) -> Array:
    return jnp.stack([jnp.zeros_like(logits), logits], -1)


def _locations(p: Normal | Laplace, q: Normal | Laplace) -> tuple[Array, ...]:
    """Return a density formula's arguments in one shape: 1 or NaN, q's loc and scale, and p's."""
    good_p, scale_p = positive("p.scale", p.scale)
    good_q, scale_q = positive("q.scale", q.scale)
    named = {"p.scale": scale_p, "q.loc": q.loc, "q.scale": scale_q, "p.loc": p.loc}
    s, loc, scale, y = align(None, named)
    return spread(good_p, s) * spread(good_q, s), loc, scale, y, s


def _no_pair(function: str, p: Law, q: Law) -> InputError:
    return InputError(
        f"{function} has no closed form for {type(p).__name__} and {type(q).__name__}: give two "
        "of the same kind (see its docstring), or average nll(q, y) over draws y of p"
    )


def _names() -> str:
    return ", ".join(kind.__name__ for kind in _KINDS)
