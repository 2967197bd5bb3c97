"""Regression losses: each is the negative log-likelihood of one kind of noise."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph.losses import _densities
from jgraph.losses._checks import like, predictions
from jgraph.losses._distributions import Laplace, Normal, Poisson, StudentT, positive, spread


def normal_nll(
    loc: ArrayLike, targets: ArrayLike, scale: ArrayLike = 1.0
) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood of targets with Normal noise: squared error, completed.

    `((target - loc) / scale)² / 2 + log(scale) + log(2π) / 2`. With `scale` 1 it is half the
    squared error plus a constant; with `scale` predicted as well the network says how sure it is.
    It finds the mean. One outlier counts like many points: where there are some, take `huber`,
    `laplace_nll` or `student_t_nll`. For counts take `poisson_nll`, for classes a cross entropy.

    Args:
        loc: predictions, float `[...]`.
        targets: of the same shape, any real type.
        scale: the standard deviation, positive, a scalar or `[...]`; from a network give
            `jax.nn.softplus(output) + 1e-3`, since a scale near 0 has no lower bound of the loss.

    Returns:
        Nats, float32 (float64 where an input is) `[...]`.

    Raises:
        InputError: (a ValueError) predictions that aren't float, shapes that differ, and, where
            its value is known (no jit), a scale that isn't positive and finite; in compiled code
            that row's value and gradient are NaN.

    Source:
        `tf.keras.losses.MeanSquaredError` (2 of them less a constant), `torch.nn.GaussianNLLLoss`;
        Bishop, Pattern Recognition and Machine Learning, 2006, eq. 1.46.

    Example:
        >>> [round(float(x), 4) for x in normal_nll(jnp.zeros(2), jnp.array([0.0, 2.0]))]
        [0.9189, 2.9189]
    """
    loc, targets = _pair("loc", loc, targets)
    return -Normal(loc, scale).log_prob(targets)


def laplace_nll(
    loc: ArrayLike, targets: ArrayLike, scale: ArrayLike = 1.0
) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood of targets with Laplace noise: absolute error, completed.

    `|target - loc| / scale + log(2 scale)`. It finds the median, so outliers count by their
    number, not their distance. Near the optimum its slope doesn't shrink: where that makes
    training restless, take `huber`; where the mean is wanted, `normal_nll`.

    Args:
        loc: predictions, float `[...]`.
        targets: of the same shape, any real type.
        scale: the mean distance, positive, a scalar or `[...]`.

    Returns:
        Nats, float32 (float64 where an input is) `[...]`. The slope at `target == loc` is 0.

    Raises:
        InputError: as `normal_nll`.

    Source:
        `tf.keras.losses.MeanAbsoluteError` (less a constant); Laplace, 1774.

    Example:
        >>> laplace_nll(jnp.array([0.0, 0.0]), jnp.array([0.0, 2.0])).round(4)
        Array([0.6931, 2.6931], dtype=float32)
    """
    loc, targets = _pair("loc", loc, targets)
    return -Laplace(loc, scale).log_prob(targets)


def student_t_nll(
    loc: ArrayLike, targets: ArrayLike, df: ArrayLike, scale: ArrayLike = 1.0
) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood of targets with Student's t noise: outliers are let go.

    `(df + 1) / 2 · log(1 + z² / df) + log(scale) + log B(df / 2, 1 / 2) + log(df) / 2` with
    `z = (target - loc) / scale`. The slope falls like 1/z, where `huber`'s stays and
    `normal_nll`'s grows. It isn't convex: a bad start may take good points for outliers; begin
    with `huber` there.

    Args:
        loc: predictions, float `[...]`.
        targets: of the same shape, any real type.
        df: degrees of freedom, positive, a scalar or `[...]`; 3 to 5 is usual, 1 is Cauchy.
        scale: the width, positive, a scalar or `[...]`.

    Returns:
        Nats, float32 (float64 where an input is) `[...]`.

    Raises:
        InputError: as `normal_nll`; df must be positive and finite, too.

    Source:
        `tfp.distributions.StudentT.log_prob`; Lange, Little and Taylor, Robust statistical modeling
        using the t distribution, 1989.

    Example:
        >>> round(float(student_t_nll(jnp.array(0.0), jnp.array(1000.0), 3.0)), 2)
        26.43
    """
    loc, targets = _pair("loc", loc, targets)
    return -StudentT(df, loc, scale).log_prob(targets)


def poisson_nll(log_rates: ArrayLike, counts: ArrayLike) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood of counts under Poisson(exp(log_rates)).

    `exp(log_rate) - count · log_rate + log(count!)`, for independent events in a fixed time or
    area. Squared error on counts gives the large ones all the say and predicts negative ones;
    give the network's output as it is, not its exponential.

    Args:
        log_rates: logarithms of the mean counts, float `[...]`; -inf means "never".
        counts: whole numbers ≥ 0 of the same shape, of any real type. They have no gradient.

    Returns:
        Nats with the constant, float32 (float64 where an input is) `[...]`.

    Raises:
        InputError: (a ValueError) log-rates that aren't float, shapes that differ, and, where its
            value is known (no jit), a count that is negative or not whole; in compiled code that
            row's value and gradient are NaN.

    Source:
        `tf.nn.log_poisson_loss(compute_full_loss=True)`, which approximates log(count!); Loader,
        Fast and accurate computation of binomial probabilities, 2000, for the digits.

    Example:
        >>> poisson_nll(jnp.array([0.0, 0.0]), jnp.array([0, 1]))
        Array([1., 1.], dtype=float32)
    """
    _pair("log_rates", log_rates, counts, "counts")
    return -Poisson(log_rates).log_prob(counts)


def huber(loc: ArrayLike, targets: ArrayLike, delta: ArrayLike = 1.0) -> Float[Array, "*batch"]:
    """Return Huber's loss: squared error near 0, absolute error beyond delta.

    `e² / 2` for `|e| ≤ delta`, else `delta (|e| - delta / 2)`. Up to a constant it is the negative
    log-likelihood of noise that is Normal in the middle with Laplace tails, the least favourable
    of all noises with some outliers. It is convex and its slope is at most delta, but delta has
    the unit of the targets: with one of another unit it is `normal_nll` or `laplace_nll` in
    disguise. It isn't normalised, so delta can't be learned by it.

    Args:
        loc: predictions, float `[...]`.
        targets: of the same shape, any real type.
        delta: where squared error ends, positive, a scalar or `[...]`.

    Returns:
        float32 (float64 where an input is) `[...]`.

    Raises:
        InputError: as `normal_nll`, for delta.

    Source:
        `tf.keras.losses.Huber`; Huber, Robust estimation of a location parameter, 1964.

    Example:
        >>> huber(jnp.array([0.0, 0.0]), jnp.array([0.5, 3.0]))
        Array([0.125, 2.5  ], dtype=float32)
    """
    x, y = _pair("loc", loc, targets)
    good, width = positive("delta", delta)
    if width.shape not in ((), x.shape):
        raise InputError(
            f"delta must be a scalar or have the shape of loc, got delta {width.shape} and loc "
            f"{x.shape}; broadcast by hand where that is meant"
        )
    dtype = np.promote_types(x.dtype, width.dtype)
    x, y, width = (jnp.broadcast_to(a.astype(dtype), x.shape) for a in (x, y, width))
    return _densities.huber(spread(good, x), width, x, y)


def _pair(name: str, x: ArrayLike, y: ArrayLike, y_name: str = "targets") -> tuple[Array, Array]:
    """Return predictions and targets of one shape; nothing is broadcast."""
    array = predictions(name, x)
    if jnp.asarray(y).dtype == jnp.float64:
        array = array.astype(jnp.float64)
    return array, like(y_name, y, name, array)
