from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import (
    Mean,
    Normal,
    laplace_log_prior,
    last_layer_laplace,
    map_objective,
    mean,
    normal_log_prior,
    normal_nll,
    sparse_softmax_cross_entropy,
)

RNG = np.random.default_rng(1)
X = RNG.standard_normal((20, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]]) + 0.3 * RNG.standard_normal((20, 1))).astype(np.float32)
PRIOR, NOISE = 0.8, 0.3


@pytest.mark.slow
def test_priors_are_penalties() -> None:
    params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.5])}
    w = np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(
        normal_log_prior(params, 0.7), scipy.stats.norm.logpdf(w, 0, 0.7).sum(), rtol=1e-6
    )
    np.testing.assert_allclose(
        laplace_log_prior(params, 0.7), scipy.stats.laplace.logpdf(w, 0, 0.7).sum(), rtol=1e-6
    )
    l2 = jax.grad(lambda p: -normal_log_prior(p, 0.7))(params)
    np.testing.assert_allclose(l2["w"], params["w"] / 0.49, rtol=1e-6)
    l1 = jax.grad(lambda p: -laplace_log_prior(p, 0.7))(params)
    np.testing.assert_allclose(l1["w"], jnp.sign(params["w"]) / 0.7, rtol=1e-6)
    with pytest.raises(InputError, match="scale must be positive"):
        normal_log_prior(params, -1.0)
    with pytest.raises(InputError, match="params must be float, got int32"):
        normal_log_prior({"w": jnp.arange(3)})


def objective(w: Array, x: Array, y: Array) -> Array:
    data = mean(normal_nll(x @ w, y, NOISE).sum(-1))
    terms = map_objective(data, normal_log_prior(w, PRIOR), n_total=len(X))
    return jnp.stack([term.value() for term in terms.values()]).sum()


def closed_form() -> tuple[np.ndarray, np.ndarray]:
    x, y = X.astype(np.float64), Y.astype(np.float64)
    covariance = np.linalg.inv(x.T @ x / NOISE**2 + np.eye(3) / PRIOR**2)
    return covariance @ x.T @ y / NOISE**2, covariance


def test_conjugate_regression_equals_the_closed_form() -> None:
    want, covariance = closed_form()
    # The objective is quadratic: one Newton step from anywhere is its minimum.
    start = jnp.zeros((3, 1))
    slope = jax.jit(jax.grad(objective))(start, X, Y).reshape(-1)
    curvature = jax.jit(jax.hessian(objective))(start, X, Y).reshape(3, 3)
    w = -jnp.linalg.solve(curvature, slope)[:, None]
    np.testing.assert_allclose(w, want, rtol=1e-4)

    posterior = last_layer_laplace(X, w, prior_scale=PRIOR, noise_scale=NOISE)
    new = np.array([[0.5, 1.0, -1.0], [10.0, 0.0, 3.0]], np.float32)
    dist = posterior.predict(new)
    assert isinstance(dist, Normal)
    variance = np.einsum("md,de,me->m", new, covariance, new) + NOISE**2
    np.testing.assert_allclose(dist.loc, new @ want, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(dist.scale)[:, 0], np.sqrt(variance), rtol=1e-4)


def test_microbatches_and_penalty_add_up() -> None:
    w = jnp.ones((3, 1))
    prior = normal_log_prior(w, PRIOR)
    parts = [
        map_objective(mean(normal_nll(x @ w, y, NOISE)), prior, 20)
        for x, y in ((X[:6], Y[:6]), (X[6:], Y[6:]))
    ]
    total = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    found = sum(float(term.value()) for term in total.values())
    np.testing.assert_allclose(found, objective(w, jnp.asarray(X), jnp.asarray(Y)), rtol=1e-6)


@pytest.mark.slow
def test_classification_covariance_is_the_inverse_hessian() -> None:
    labels = jnp.asarray(RNG.integers(0, 4, 20))
    w = jnp.asarray(RNG.standard_normal((3, 4)), jnp.float32)
    weights = jnp.asarray(RNG.integers(0, 3, 20), jnp.float32)

    def energy(w: Array) -> Array:
        loss = (weights * sparse_softmax_cross_entropy(X @ w, labels)).sum()
        return loss - normal_log_prior(w, PRIOR)

    hessian = np.asarray(jax.jit(jax.hessian(energy))(w), np.float64).reshape(12, 12)
    covariance = np.linalg.inv(hessian)
    bad = jnp.where((weights == 0)[:, None], jnp.nan, X)  # what is left out may hold anything
    posterior = last_layer_laplace(bad, w, prior_scale=PRIOR, weights=weights)
    new = np.array([[0.5, 1.0, -1.0]], np.float32)
    jacobian = np.einsum("d,jk->jdk", new[0], np.eye(4)).reshape(4, 12)
    found_mean, found = posterior.logits(new)
    np.testing.assert_allclose(found_mean, new @ w, rtol=1e-6)
    np.testing.assert_allclose(found[0], jacobian @ covariance @ jacobian.T, rtol=1e-4, atol=1e-5)
    sure = posterior.predict(new).mean()
    far = posterior.predict(100 * new).mean()
    plain = jax.nn.softmax(100 * new @ w, -1)
    np.testing.assert_allclose(sure.sum(), 1, rtol=1e-6)
    assert float(far.max()) < float(plain.max())


def test_wrong_arguments_say_so() -> None:
    w = jnp.ones((3, 2))
    data = Mean(jnp.array(1.0), jnp.array(1.0))
    for call, message in (
        (lambda: map_objective(data, jnp.zeros(2), 3), r"scalar, got shape \(2,\)"),
        (lambda: map_objective(data, jnp.array(0.0), 0), "n_total must be"),
        (lambda: last_layer_laplace(X, w[0], prior_scale=1.0), r"outputs\], got shape \(2,\)"),
        (lambda: last_layer_laplace(X[:, :2], w, prior_scale=1.0), r"\[examples, 3\].*\(20, 2\)"),
        (lambda: last_layer_laplace(X, w, prior_scale=0.0), "prior_scale must be positive"),
        (
            lambda: last_layer_laplace(X, w, prior_scale=1.0, weights=jnp.ones(3)),
            r"one per example, \(20,\), got weights \(3,\)",
        ),
        (
            lambda: last_layer_laplace(X, w, prior_scale=1.0, weights=jnp.ones(20).at[2].set(-1)),
            r"weights must be finite and ≥ 0; row 2 has -1 \(1 of 20",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_negative_weight_makes_a_compiled_posterior_nan() -> None:
    @jax.jit
    def spread(weights: Array) -> Array:
        posterior = last_layer_laplace(X, jnp.ones((3, 1)), prior_scale=1.0, weights=weights)
        return posterior.factor

    assert jnp.isfinite(spread(jnp.ones(20))).all()
    assert jnp.isnan(spread(jnp.ones(20).at[2].set(-1))).any()
