"""Distributions: what a network's outputs mean. A loss is a negative log-likelihood under one.

No distribution library: a loss needs the logarithm of the density, the entropy and the mean, right
at the extremes and in the gradient, and the shape rules of the losses (nothing is broadcast).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jgraph._errors import InputError
from jgraph.losses import _densities
from jgraph.losses._checks import check_values, class_axis, nan_unless
from jgraph.losses._classification import sparse_softmax_cross_entropy
from jgraph.losses._pairs import Side, entropy_of
from jgraph.losses._precision import widen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Categorical:
    """Exactly one of K classes, with probabilities softmax(logits).

    For independent yes/no answers take `Bernoulli`: there the probabilities don't sum to 1.

    Args:
        logits: unnormalised log-probabilities, float `[..., K]`. -inf means "impossible", a single
            +inf "certain".

    Source:
        `tfp.distributions.Categorical`; Bishop, Pattern Recognition and Machine Learning, 2006,
        section 4.3.4.

    Example:
        >>> dist = Categorical(jnp.array([0.0, 0.0]))
        >>> dist.log_prob(jnp.array(1)).round(4), dist.entropy().round(4)
        (Array(-0.6931, dtype=float32), Array(0.6931, dtype=float32))
    """

    logits: Any

    def log_prob(self, y: ArrayLike) -> Float[Array, "*batch"]:
        """Return log softmax(logits)[y] of class ids, integer `[...]`, as `[...]`."""
        return -sparse_softmax_cross_entropy(self.logits, y)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return -Σ p log p in nats, `[...]`."""
        return entropy_of(self.side("logits"))

    def mean(self) -> Float[Array, "*batch k"]:
        """Return the mean of the one-hot class, its probabilities `[..., K]`."""
        return jnp.exp(self.side("logits").log_probs)

    def side(self, name: str) -> Side:
        """Return what divergences are computed from."""
        (logits,) = align(None, {name: self.logits})
        class_axis(name, logits)
        return Side.of_logits(logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """A yes or no, with probability sigmoid(logits) of yes.

    Args:
        logits: the log-odds, float `[...]`.

    Source:
        `tfp.distributions.Bernoulli`.

    Example:
        >>> Bernoulli(jnp.array([0.0])).log_prob(jnp.array([1])).round(4)
        Array([-0.6931], dtype=float32)
    """

    logits: Any

    def log_prob(self, y: ArrayLike) -> Float[Array, "*batch"]:
        """Return the log-probability of y, 0 or 1 of any real type, of the shape of the logits."""
        logits, answers = align(jnp.shape(y), {"logits": self.logits}, y=y)
        whole = check_values("y", answers, (answers == 0) | (answers == 1), "be 0 or 1")
        return -_densities.bernoulli(nan_unless(whole, logits.dtype), logits, answers)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy in nats, of the shape of the logits."""
        (logits,) = align(None, {"logits": self.logits})
        return _densities.bernoulli_entropy(jnp.ones_like(logits), logits)

    def mean(self) -> Float[Array, "*batch"]:
        """Return the probability of yes."""
        return jax.nn.sigmoid(align(None, {"logits": self.logits})[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normal:
    """A real number with noise of a known size.

    Outliers count by the square of their distance; where there are some, take `StudentT` or
    `Laplace`.

    Args:
        loc: the mean, float `[...]`, or a scalar that all share.
        scale: the standard deviation, positive, of the same shape, or a scalar.

    Source:
        `tfp.distributions.Normal`.

    Example:
        >>> [round(float(x), 4) for x in Normal(0.0, 1.0).log_prob(jnp.array([0.0, 1.0]))]
        [-0.9189, -1.4189]
    """

    loc: Any
    scale: Any

    def log_prob(self, y: ArrayLike) -> Float[Array, "*batch"]:
        """Return the log density at y, of any real type, of y's shape."""
        good, scale = positive("scale", self.scale)
        loc, scale, values = align(jnp.shape(y), {"loc": self.loc, "scale": scale}, y=y)
        return -_densities.normal(spread(good, loc), loc, scale, values)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy, log(scale) + log(2πe) / 2."""
        good, scale = positive("scale", self.scale)
        loc, scale = align(None, {"loc": self.loc, "scale": scale})
        return jnp.log(scale * spread(good, loc)) + 0.5 * math.log(2 * math.pi * math.e)

    def mean(self) -> Float[Array, "*batch"]:
        """Return loc."""
        return align(None, {"loc": self.loc, "scale": self.scale})[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Laplace:
    """A real number whose errors count by their size: loc is the median.

    Args:
        loc: the median, float `[...]`, or a scalar that all share.
        scale: the mean distance from it, positive, of the same shape, or a scalar.

    Source:
        `tfp.distributions.Laplace`.

    Example:
        >>> Laplace(0.0, 1.0).log_prob(jnp.array([0.0, 1.0])).round(4)
        Array([-0.6931, -1.6931], dtype=float32)
    """

    loc: Any
    scale: Any

    def log_prob(self, y: ArrayLike) -> Float[Array, "*batch"]:
        """Return the log density at y, of any real type, of y's shape."""
        good, scale = positive("scale", self.scale)
        loc, scale, values = align(jnp.shape(y), {"loc": self.loc, "scale": scale}, y=y)
        return -_densities.laplace(spread(good, loc), loc, scale, values)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy, 1 + log(2 scale)."""
        good, scale = positive("scale", self.scale)
        loc, scale = align(None, {"loc": self.loc, "scale": scale})
        return jnp.log(scale * spread(good, loc)) + (1 + math.log(2))

    def mean(self) -> Float[Array, "*batch"]:
        """Return loc."""
        return align(None, {"loc": self.loc, "scale": self.scale})[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StudentT:
    """A real number among outliers: their pull fades with distance.

    Args:
        df: degrees of freedom, positive, `[...]` or a scalar; 1 is Cauchy, many are Normal.
        loc: the centre, float `[...]`, or a scalar.
        scale: the width, positive, `[...]` or a scalar.

    Source:
        `tfp.distributions.StudentT`; Lange et al., Robust statistical modeling using the t
        distribution, 1989.

    Example:
        >>> round(float(StudentT(1.0, 0.0, 1.0).log_prob(jnp.array(0.0))), 4)
        -1.1447
    """

    df: Any
    loc: Any
    scale: Any

    def log_prob(self, y: ArrayLike) -> Float[Array, "*batch"]:
        """Return the log density at y, of any real type, of y's shape."""
        good_df, df = positive("df", self.df)
        good, scale = positive("scale", self.scale)
        named = {"df": df, "loc": self.loc, "scale": scale}
        df, loc, scale, values = align(jnp.shape(y), named, y=y)
        good = spread(good, loc) * spread(good_df, loc)
        return -_densities.student_t(good, df, loc, scale, values)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy."""
        good_df, df = positive("df", self.df)
        good, scale = positive("scale", self.scale)
        df, loc, scale = align(None, {"df": df, "loc": self.loc, "scale": scale})
        half = (df + 1) / 2
        digammas = jax.scipy.special.digamma(half) - jax.scipy.special.digamma(df / 2)
        entropy = half * digammas + _densities.student_t_log_norm(df) + jnp.log(scale)
        return entropy * spread(good, loc) * spread(good_df, loc)

    def mean(self) -> Float[Array, "*batch"]:
        """Return loc, and NaN where df ≤ 1: there is no mean."""
        df, loc, _ = align(None, {"df": self.df, "loc": self.loc, "scale": self.scale})
        return jnp.where(df > 1, loc, jnp.nan)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Poisson:
    """A count of independent events, with rate exp(log_rate).

    Args:
        log_rate: the logarithm of the mean count, float `[...]`; -inf means "never".

    Source:
        `tfp.distributions.Poisson(log_rate=…)`.

    Example:
        >>> Poisson(jnp.array([0.0])).log_prob(jnp.array([0]))
        Array([-1.], dtype=float32)
    """

    log_rate: Any

    def log_prob(self, y: ArrayLike) -> Float[Array, "*batch"]:
        """Return the log-probability of the counts y, whole numbers ≥ 0, of log_rate's shape."""
        log_rate, counts = align(jnp.shape(y), {"log_rate": self.log_rate}, y=y)
        whole = (counts >= 0) & (counts == jnp.floor(counts)) & jnp.isfinite(counts)
        whole = check_values("y", counts, whole, "be whole counts ≥ 0")
        return -_densities.poisson(nan_unless(whole, log_rate.dtype), log_rate, counts)

    def entropy(self) -> Float[Array, "*batch"]:
        """Raise: there is no closed form."""
        raise InputError("the entropy of Poisson has no closed form; average -log_prob of draws")

    def mean(self) -> Float[Array, "*batch"]:
        """Return the rate, exp(log_rate)."""
        return jnp.exp(align(None, {"log_rate": self.log_rate})[0])


Distribution: TypeAlias = Categorical | Bernoulli | Normal | Laplace | StudentT | Poisson
"""Anything with `log_prob`, `entropy` and `mean`."""


def align(
    shape: tuple[int, ...] | None, parameters: dict[str, Any], *, y: ArrayLike | None = None
) -> list[Array]:
    """Return parameters, and y last if given, in one shape and one precision.

    A parameter is a scalar, or has the shape; without one given, that of those that aren't
    scalars.

    Raises:
        InputError: a parameter isn't float, y isn't real, or a shape is another.
    """
    arrays = {name: _real(name, x) for name, x in parameters.items()}
    whose = "y"
    if shape is None:
        whose = next((name for name, x in arrays.items() if x.ndim), "")
        shape = arrays[whose].shape if whose else ()
    for name, x in arrays.items():
        if x.shape not in ((), shape):
            raise InputError(
                f"{name} must be a scalar or have the shape of {whose}, got {name} {x.shape} and "
                f"{whose} {shape}; broadcast by hand where that is meant"
            )
    values = list(arrays.values())
    if y is not None:
        given = jnp.asarray(y)
        if jnp.issubdtype(given.dtype, jnp.complexfloating):
            raise InputError(f"y must be real, got {given.dtype} of shape {given.shape}")
        values.append(widen(given))
    wide = any(x.dtype == jnp.float64 and not x.weak_type for x in values)
    dtype = jnp.float64 if wide else jnp.float32
    return [jnp.broadcast_to(x.astype(dtype), shape) for x in values]


def positive(name: str, x: ArrayLike) -> tuple[Bool[Array, "*shape"], Float[Array, "*shape"]]:
    """Return where a scale is positive and finite, and the scale.

    Raises:
        InputError: it is known not to be, or it isn't float.
    """
    if isinstance(x, (int, float, np.ndarray, np.generic)):
        # Inside jit even constants are traced, but a bad option should be named there, too.
        with jax.ensure_compile_time_eval():
            array = _real(name, x)
            return _check_positive(name, array), array
    array = _real(name, x)
    return _check_positive(name, array), array


def _check_positive(name: str, x: Array) -> Bool[Array, "*shape"]:
    return check_values(name, x, (x > 0) & (x < jnp.inf), "be positive and finite")


def spread(ok: Bool[Array, "*shape"], like: Array) -> Float[Array, "*batch"]:
    """Return the factor 1 or NaN, of the shape of `like`."""
    return jnp.broadcast_to(nan_unless(ok, like.dtype), like.shape)


def _real(name: str, x: ArrayLike) -> Float[Array, "*shape"]:
    """Return a parameter; a plain Python number, int or float, is one, too."""
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        return jnp.asarray(float(x))  # weak: it takes the precision of what it meets
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name} must be float, got {array.dtype} of shape {array.shape}")
    return widen(array)
