"""Maximum a posteriori and a little Bayes: priors as penalties, and doubt about the last layer.

Shape suffixes: N examples; M new examples; D features; K classes or outputs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jgraph._errors import InputError
from jgraph.losses._checks import check_values, predictions
from jgraph.losses._core import nll
from jgraph.losses._distributions import Categorical, Laplace, Normal, positive
from jgraph.losses._precision import widen
from jgraph.losses._reductions import Mean


def normal_log_prior(params: Any, scale: float = 1.0) -> Float[Array, ""]:
    """Return the log density of params under Normal(0, scale): the L2 penalty, negated.

    Its negative is `Σw² / (2 scale²)` plus a constant: weight decay of `1 / (scale² n)` on a mean
    over n examples. Take `laplace_log_prior` for a penalty that makes weights exactly 0.

    Args:
        params: a pytree of float arrays: an NNX state, a dict.
        scale: the prior's standard deviation, positive.

    Returns:
        A scalar, the sum over all entries, normalised.

    Raises:
        InputError: (a ValueError) a leaf isn't float, or scale isn't positive.

    Source:
        Bishop, Pattern Recognition and Machine Learning, 2006, eq. 1.67.

    Example:
        >>> round(float(normal_log_prior({"w": jnp.array([1.0, 2.0])})), 4)
        -4.3379
    """
    return _log_prior(Normal(0.0, scale), params)


def laplace_log_prior(params: Any, scale: float = 1.0) -> Float[Array, ""]:
    """Return the log density of params under Laplace(0, scale): the L1 penalty, negated.

    Its negative is `Σ|w| / scale` plus a constant. Plain gradient steps approach 0 without
    reaching it; exact zeros need a proximal step.

    Args:
        params: a pytree of float arrays.
        scale: the prior's mean size of a weight, positive.

    Returns:
        A scalar, the sum over all entries, normalised.

    Raises:
        InputError: as `normal_log_prior`.

    Source:
        Tibshirani, Regression shrinkage and selection via the lasso, 1996, section 5.

    Example:
        >>> laplace_log_prior({"w": jnp.array([1.0, 2.0])}).round(4)
        Array(-4.3863, dtype=float32)
    """
    return _log_prior(Laplace(0.0, scale), params)


def map_objective(data: Mean, log_prior: ArrayLike, n_total: int) -> dict[str, Mean]:
    """Return the maximum a posteriori objective per example, as a loss function returns it.

    `Σwl/Σw - log_prior / n_total`: the negative log posterior, divided by the number of examples.
    Dividing by the batch's size instead would make the penalty depend on it. The terms are two
    `Mean`s, since a batch's loss adds up over replicas and microbatches and the prior doesn't.

    Args:
        data: the negative log-likelihoods of a batch, `mean(values, weights)`.
        log_prior: the log prior of the params, a float scalar.
        n_total: the number of examples in the whole training set.

    Returns:
        `{"data": data, "prior": Mean(-log_prior / n_total, 1)}`; a `jgraph.train_and_evaluate` loss
        function returns it as it is, your own loop minimises
        `sum(term.value() for term in objective.values())`.

    Raises:
        InputError: (a ValueError) log_prior isn't a float scalar, or n_total isn't positive.

    Source:
        Bishop, Pattern Recognition and Machine Learning, 2006, section 1.2.5.

    Example:
        >>> terms = map_objective(Mean(6.0, 2.0), jnp.array(-5.0), n_total=10)
        >>> float(sum(term.value() for term in terms.values()))
        3.5
    """
    prior = predictions("log_prior", log_prior)
    if prior.ndim:
        raise InputError(f"log_prior must be a scalar, got shape {prior.shape}; sum it")
    if n_total < 1:
        raise InputError(f"n_total must be the number of training examples, got {n_total!r}")
    return {"data": data, "prior": Mean(-prior / n_total, jnp.ones_like(prior))}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LastLayer:
    """A Gaussian posterior over a last layer's weights; see `last_layer_laplace`.

    Args:
        w: the posterior mean, float `[D, K]`.
        factor: the lower Cholesky factor of the posterior precision: `[D·K, D·K]` for classes (a
            weight's index is d·K + k), `[D, D]`, the same for each output, for regression.
        noise_scale: the noise of the targets, a scalar; None for classes.
    """

    w: Any
    factor: Any
    noise_scale: Any = None

    def logits(self, features: ArrayLike) -> tuple[Float[Array, "M K"], Float[Array, "M K K"]]:
        """Return the mean and the covariance of the outputs, without noise.

        Args:
            features: float `[M, D]`.

        Returns:
            `[M, K]` and `[M, K, K]`.

        Raises:
            InputError: features aren't float `[M, D]`.
        """
        x_MD = _features(features, self.w.shape[0]).astype(self.w.dtype)
        mean_MK = x_MD @ self.w
        k = self.w.shape[1]
        eye = jnp.eye(k, dtype=self.w.dtype)
        if self.noise_scale is not None:
            solved_DM = jax.scipy.linalg.solve_triangular(self.factor, x_MD.T, lower=True)
            variance_M = (solved_DM**2).sum(0)
            return mean_MK, variance_M[:, None, None] * eye[None]
        columns = jnp.einsum("md,jk->djmk", x_MD, eye).reshape(self.factor.shape[0], -1)
        solved = jax.scipy.linalg.solve_triangular(self.factor, columns, lower=True)
        solved = solved.reshape(-1, x_MD.shape[0], k)
        return mean_MK, jnp.einsum("pmj,pmk->mjk", solved, solved)

    def predict(self, features: ArrayLike) -> Categorical | Normal:
        """Return the predictive distribution, doubt about the weights included.

        For regression it is exact: `Normal` with the variances of noise and weights added. For
        classes it is MacKay's approximation: each logit divided by `sqrt(1 + π/8 · variance)`, so
        that far from the data probabilities go back towards even.

        Args:
            features: float `[M, D]`.

        Returns:
            Categorical with logits `[M, K]`, or Normal of shape `[M, K]`.

        Raises:
            InputError: features aren't float `[M, D]`.
        """
        mean_MK, covariance_MKK = self.logits(features)
        variance_MK = jnp.diagonal(covariance_MKK, axis1=1, axis2=2)
        if self.noise_scale is not None:
            return Normal(mean_MK, jnp.sqrt(variance_MK + self.noise_scale**2))
        return Categorical(mean_MK / jnp.sqrt(1 + math.pi / 8 * variance_MK))


def last_layer_laplace(
    features: ArrayLike,
    w: ArrayLike,
    *,
    prior_scale: float,
    noise_scale: float | None = None,
    weights: ArrayLike | None = None,
) -> LastLayer:
    """Return the Laplace approximation of the last layer's posterior, around its trained weights.

    The posterior is taken as Normal with mean w and, as precision, the curvature of the negative
    log posterior there, `Σ x xᵀ ⊗ (diag p - p pᵀ) + I / prior_scale²` for classes. With
    `noise_scale` the outputs are regressed, the curvature is `Σ x xᵀ / noise_scale²`, and the
    result is not an approximation but Bayesian linear regression. A trained network alone is as
    sure far from its data as among them.

    Args:
        features: what the last layer sees, of all training examples, float `[N, D]`. Append a
            column of ones for a bias.
        w: the weights that maximise the posterior, float `[D, K]`: trained with
            `normal_log_prior(w, prior_scale)`.
        prior_scale: the standard deviation of the weights' Normal prior, positive.
        noise_scale: that of the targets' noise, for regression; None for classes.
        weights: one per example, ≥ 0, float `[N]`; 0 leaves an example out. None means 1 each.

    Returns:
        A posterior with `predict(features)`. For classes it takes `(D·K)²` numbers of memory and
        `(D·K)³ / 3` multiplications.

    Raises:
        InputError: (a ValueError) shapes don't fit, an array isn't float, a scale isn't positive,
            or a weight is negative or infinite; in compiled code what isn't known to be makes the
            posterior NaN.

    Source:
        MacKay, The evidence framework applied to classification networks, 1992; Kristiadi et al.,
        Being Bayesian, even just a bit, arXiv:2002.10118; Bishop, Pattern Recognition and Machine
        Learning, 2006, eq. 3.53 for regression.

    Example:
        >>> posterior = last_layer_laplace(
        ...     jnp.array([[1.0], [-1.0]]), jnp.array([[0.0, 2.0]]), prior_scale=1.0
        ... )
        >>> probabilities = posterior.predict(jnp.array([[1.0], [100.0]])).mean()
        >>> [round(float(p), 2) for p in probabilities[:, 1]]  # softmax alone: 0.88 and 1.0
        [0.85, 0.97]
    """
    w_DK = predictions("w", w)
    if w_DK.ndim != 2:
        raise InputError(f"w must be [features, outputs], got shape {w_DK.shape}")
    x_ND = _features(features, w_DK.shape[0])
    dtype = np.promote_types(x_ND.dtype, w_DK.dtype)
    x_ND, w_DK = x_ND.astype(dtype), w_DK.astype(dtype)
    count_N = _weights(weights, x_ND)
    # A row left out may hold anything: 0 · NaN is NaN.
    x_ND = jnp.where(count_N[:, None] == 0, 0.0, x_ND)
    ok, scale = positive("prior_scale", prior_scale)
    precision = jnp.where(ok, scale.astype(dtype), jnp.nan) ** -2
    if noise_scale is None:
        curvature = _class_curvature(x_ND, w_DK, count_N)
        noise = None
    else:
        good, noise = positive("noise_scale", noise_scale)
        noise = jnp.where(good, noise.astype(dtype), jnp.nan)
        curvature = jnp.einsum("nd,n,ne->de", x_ND, count_N, x_ND) / noise**2
    total = curvature + precision * jnp.eye(curvature.shape[0], dtype=dtype)
    return LastLayer(w_DK, jnp.linalg.cholesky(total), noise)


def _class_curvature(x_ND: Array, w_DK: Array, count_N: Array) -> Array:
    """Return Σ x xᵀ ⊗ (diag p - p pᵀ), by class pairs: the largest array is the result."""
    d, k = w_DK.shape
    p_NK = jax.nn.softmax(x_ND @ w_DK, -1)
    root_NDK = jnp.sqrt(count_N)[:, None, None] * x_ND[:, :, None] * p_NK[:, None, :]
    flat = root_NDK.reshape(-1, d * k)
    outer = (flat.T @ flat).reshape(d, k, d, k)
    diagonal_KDD = jnp.einsum("nd,nk,ne->kde", x_ND, p_NK * count_N[:, None], x_ND)
    same_class = jnp.einsum("kde,kj->dkej", diagonal_KDD, jnp.eye(k, dtype=w_DK.dtype))
    return (same_class - outer).reshape(d * k, d * k)


def _weights(weights: ArrayLike | None, x_ND: Array) -> Array:
    if weights is None:
        return jnp.ones(x_ND.shape[0], x_ND.dtype)
    given = widen(weights)
    if given.shape != x_ND.shape[:1]:
        raise InputError(
            f"weights must be one per example, {x_ND.shape[:1]}, got weights {given.shape} for "
            f"features {x_ND.shape}"
        )
    good = check_values("weights", given, (given >= 0) & (given < jnp.inf), "be finite and ≥ 0")
    return jnp.where(good, given, jnp.nan).astype(x_ND.dtype)


def _features(features: ArrayLike, size: int) -> Array:
    x = predictions("features", features)
    if x.ndim != 2 or x.shape[1] != size:
        raise InputError(
            f"features must be [examples, {size}], as many as w has rows, got shape {x.shape}"
        )
    return x


def _log_prior(prior: Normal | Laplace, params: Any) -> Array:
    leaves = jax.tree.leaves(params)
    terms = [-nll(prior, predictions("params", leaf)).sum() for leaf in leaves]
    return sum(terms, jnp.zeros((), jnp.float32)) if terms else jnp.zeros(())
