from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import (
    Bernoulli,
    Categorical,
    Laplace,
    Normal,
    Poisson,
    StudentT,
    cross_entropy,
    entropy,
    js_divergence,
    kl,
    kl_divergence,
    mean,
    nll,
    renyi_divergence,
    sparse_softmax_cross_entropy,
    wasserstein1,
)

INF = np.inf
RNG = np.random.default_rng(0)
P64, Q64 = RNG.dirichlet(np.ones(5), 4), RNG.dirichlet(np.ones(5), 4)
P, Q = jnp.asarray(P64, jnp.float32), jnp.asarray(Q64, jnp.float32)
# What float32 made of them is what the losses are given.
P64, Q64 = np.asarray(P, np.float64), np.asarray(Q, np.float64)
ORDERS = [0.25, 0.5, 0.97, 1.02, 2.0, 7.0]


def js64(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    m = (p + q) / 2
    return (scipy.special.rel_entr(p, m) + scipy.special.rel_entr(q, m)).sum(-1) / 2


def renyi64(p: np.ndarray, q: np.ndarray, a: float) -> np.ndarray:
    return np.log((p**a * q ** (1 - a)).sum(-1)) / (a - 1)


def numeric_slope(f: Any, x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for i in range(x.shape[-1]):
        step = 1e-6 * np.eye(x.shape[-1])[i]
        out[..., i] = (f(x + step) - f(x - step)) / 2e-6
    return out


DIVERGENCES = [
    (kl_divergence, lambda p, q: scipy.special.xlogy(p, p / q).sum(-1)),
    (cross_entropy, lambda p, q: -(p * np.log(q)).sum(-1)),
    (js_divergence, js64),
    (wasserstein1, lambda p, q: np.abs((p - q).cumsum(-1)[..., :-1]).sum(-1)),
    *(
        (lambda p, q, a=a: renyi_divergence(p, q, a), lambda p, q, a=a: renyi64(p, q, a))
        for a in ORDERS
    ),
]


@pytest.mark.parametrize("index", range(len(DIVERGENCES)))
def test_divergences_and_slopes_equal_float64(index: int) -> None:
    f, exact = DIVERGENCES[index]
    # Rényi's sum is 1 + a little. That float32's probabilities sum to 1 only to 6e-8 is part of
    # the reference, divided by the distance of the order from 1.
    close = 1e-7 if index < 4 else max(1e-7, 1e-7 / abs(ORDERS[index - 4] - 1))
    np.testing.assert_allclose(f(P, Q), exact(P64, Q64), rtol=1e-6, atol=close)
    found = jax.jit(jax.grad(lambda p, q: f(p, q).sum(), (0, 1)))(P, Q)
    for i, slope in enumerate(found):
        want = numeric_slope(
            lambda x, i=i: exact(*((x, Q64) if i == 0 else (P64, x))), (P64, Q64)[i]
        )
        np.testing.assert_allclose(slope, want, rtol=1e-5, atol=1e-5)


# p, q, value, slope of p, slope of q
HALF = 0.5 * np.log(2)
EXTREME = [
    (kl_divergence, [1.0, 0.0], [0.5, 0.5], np.log(2), [np.log(2) + 1, -INF], [-2, 0]),
    (kl_divergence, [1.0, 0.0], [1.0, 0.0], 0.0, [1, INF], [-1, 0]),
    (kl_divergence, [0.5, 0.5], [1.0, 0.0], INF, [1 - np.log(2), INF], [-0.5, -INF]),
    (cross_entropy, [0.5, 0.5], [1.0, 0.0], INF, [0, INF], [-0.5, -INF]),
    (cross_entropy, [1.0, 0.0], [1.0, 0.0], 0.0, [0, INF], [-1, 0]),
    (js_divergence, [1.0, 0.0], [0.0, 1.0], np.log(2), [HALF, -INF], [-INF, HALF]),
    (js_divergence, [1.0, 0.0], [1.0, 0.0], 0.0, [0, HALF], [0, HALF]),
    (wasserstein1, [1.0, 0.0], [0.0, 1.0], 1.0, [1, 0], [-1, 0]),
]


@pytest.mark.parametrize(("f", "p", "q", "value", "slope_p", "slope_q"), EXTREME)
def test_divergences_at_zero_have_the_limit(
    f: Any, p: list[float], q: list[float], value: float, slope_p: Any, slope_q: Any
) -> None:
    x, y = jnp.array(p), jnp.array(q)
    np.testing.assert_allclose(f(x, y), value, rtol=1e-6)
    found = jax.jit(jax.grad(f, (0, 1)))(x, y)
    np.testing.assert_allclose(found[0], slope_p, rtol=1e-6)
    np.testing.assert_allclose(found[1], slope_q, rtol=1e-6)

    def masked(x: Array, y: Array) -> Array:
        return mean(f(x[None], y[None]), jnp.zeros(1)).value()

    for slope in jax.jit(jax.grad(masked, (0, 1)))(x, y):
        np.testing.assert_array_equal(slope, [0, 0])


def test_renyi_at_zero() -> None:
    one, half, other = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5]), jnp.array([0.0, 1.0])
    for order in (0.5, 2.0, INF):
        np.testing.assert_allclose(renyi_divergence(one, half, order), np.log(2), rtol=1e-6)
        assert float(renyi_divergence(one, one, order)) == 0
        assert float(renyi_divergence(one, other, order)) == INF
    np.testing.assert_allclose(renyi_divergence(half, one, 0.5), np.log(2), rtol=1e-6)
    assert float(renyi_divergence(half, one, 2.0)) == INF
    np.testing.assert_allclose(renyi_divergence(P, Q, INF), np.log((P64 / Q64).max(-1)), rtol=1e-6)


@pytest.mark.parametrize("f", [d[0] for d in DIVERGENCES[:5]])
def test_what_is_no_distribution(f: Any) -> None:
    good = jnp.array([[0.5, 0.5], [0.5, 0.5]])
    for row, message in (
        ([0.7, 0.7], "sum to 1 over the last axis; row 1 has 1.4"),
        ([-0.5, 1.5], r"in \[0, 1\]; row \(1, 0\) has -0.5"),
        ([np.nan, 0.5], r"in \[0, 1\]; row \(1, 0\) has nan"),
    ):
        bad = jnp.array([[0.5, 0.5], row])
        with pytest.raises(InputError, match=f"p must .*{message}"):
            f(bad, good)
        with pytest.raises(InputError, match=f"q must .*{message}"):
            f(good, bad)
        value = jax.jit(f)(bad, good)
        np.testing.assert_array_equal(jnp.isnan(value), [False, True])
        for slope in jax.jit(jax.grad(lambda p, q: f(p, q).sum(), (0, 1)))(good, bad):
            np.testing.assert_array_equal(jnp.isnan(slope), [[False] * 2, [True] * 2])
    with pytest.raises(InputError, match=r"same shape.*p \(2, 2\) and q \(2,\)"):
        f(good, good[0])
    with pytest.raises(InputError, match="p must be float, got int32"):
        f(jnp.array([1, 0]), good[0])
    with pytest.raises(InputError, match="class axis"):
        f(jnp.array(1.0), good[0])
    assert f(good[:0], good[:0]).shape == (0,)


def test_orders_and_positions() -> None:
    for order in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match=r"alpha must lie in \(0, inf\)"):
            renyi_divergence(P, Q, order)
    np.testing.assert_array_equal(renyi_divergence(P, Q, 1.0), kl_divergence(P, Q))
    places = np.array([0.0, 1.0, 3.0, 4.5, 10.0])
    want = [
        scipy.stats.wasserstein_distance(places, places, *w) for w in zip(P64, Q64, strict=True)
    ]
    np.testing.assert_allclose(
        wasserstein1(P, Q, jnp.asarray(places, jnp.float32)), want, rtol=2e-6
    )
    with pytest.raises(InputError, match=r"positions must be float of shape \(5,\)"):
        wasserstein1(P, Q, jnp.arange(4.0))
    with pytest.raises(InputError, match="positions must increase"):
        wasserstein1(P, Q, jnp.zeros(5))


LOGITS = [[0.3, -1.0, 2.0], [0.0, -INF, 1e4], [-INF, INF, 0.0], [-1e4, 0.0, 0.0]]


def test_logits_at_the_extremes() -> None:
    z = jnp.array(LOGITS)
    p = np.asarray(scipy.special.softmax(np.where(np.isinf(LOGITS), 0, LOGITS), -1))
    p[1:] = [[0, 0, 1], [0, 1, 0], [0, 0.5, 0.5]]
    h = scipy.special.entr(p).sum(-1)
    np.testing.assert_allclose(Categorical(z).entropy(), h, rtol=1e-6)
    np.testing.assert_allclose(kl(Categorical(z), Categorical(z)), np.zeros(4), atol=1e-7)
    slope = jax.grad(lambda z: Categorical(z).entropy().sum())(z)
    want = np.where(p > 0, -p * (np.log(np.where(p > 0, p, 1)) + h[:, None]), 0)
    np.testing.assert_allclose(slope, want, atol=1e-6)
    for slope in jax.grad(lambda a, b: kl(Categorical(a), Categorical(b)).sum(), (0, 1))(z, z):
        np.testing.assert_allclose(slope, np.zeros((4, 3)), atol=1e-6)
    # exp(-200) is no float32; its logarithm is known all the same.
    far = kl(jnp.array([0.5, 0.5]), Categorical(jnp.array([0.0, -200.0])))
    np.testing.assert_allclose(far, 100 - np.log(2), rtol=1e-6)
    assert jnp.isnan(Categorical(jnp.full(3, -INF)).entropy())


def test_closed_forms_equal_integrals() -> None:
    kinds = [(Normal, scipy.stats.norm), (Laplace, scipy.stats.laplace)]
    for ours, theirs in kinds:
        for a, s, b, t in [(0.3, 0.7, -1.0, 2.0), (0.0, 1.0, 0.0, 1.0), (2.0, 3.0, 2.5, 0.5)]:
            p, q = theirs(a, s), theirs(b, t)
            lo, hi = a - 30 * s, a + 30 * s
            h = scipy.integrate.quad(
                lambda y, p=p, q=q: -p.pdf(y) * q.logpdf(y), lo, hi, points=[a, b], limit=200
            )[0]
            np.testing.assert_allclose(cross_entropy(ours(a, s), ours(b, t)), h, rtol=1e-6)
            np.testing.assert_allclose(ours(a, s).entropy(), p.entropy(), rtol=1e-6)
            d = kl(ours(a, s), ours(b, t))
            np.testing.assert_allclose(d, h - p.entropy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        StudentT(3.5, 1.0, 2.0).entropy(), scipy.stats.t(3.5, 1, 2).entropy(), rtol=1e-6
    )


@pytest.mark.parametrize("kind", [Normal, Laplace])
def test_slopes_of_closed_forms(kind: Any) -> None:
    at = (jnp.array(0.3), jnp.array(0.7), jnp.array(-1.0), jnp.array(2.0))
    for f in (kl, cross_entropy):

        def value(a: Any, s: Any, b: Any, t: Any, f: Any = f) -> Array:
            return f(kind(a, s), kind(b, t))

        with jax.enable_x64(True):
            wide = [np.float64(x) for x in at]
            for i, found in enumerate(jax.grad(value, (0, 1, 2, 3))(*map(jnp.asarray, wide))):
                up, down = list(wide), list(wide)
                up[i], down[i] = up[i] + 1e-6, down[i] - 1e-6
                want = (value(*up) - value(*down)) / 2e-6
                np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-9)


def test_bernoulli_and_poisson() -> None:
    z, y = jnp.array([0.3, -2.0, 40.0, INF, -INF]), jnp.array([1, 0, 0, 1, 1])
    np.testing.assert_allclose(
        nll(Bernoulli(z), y), [np.log1p(np.exp(-0.3)), np.log1p(np.exp(-2)), 40, 0, INF], rtol=1e-6
    )
    slope = jax.grad(lambda z: nll(Bernoulli(z), y).sum())(z)
    s = scipy.special.expit(np.asarray(z, np.float64))
    np.testing.assert_allclose(slope, s - np.asarray(y), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(
        Bernoulli(z).entropy()[:2], scipy.stats.bernoulli(s[:2]).entropy(), rtol=1e-6
    )
    np.testing.assert_array_equal(Bernoulli(z).entropy()[3:], [0, 0])
    with pytest.raises(InputError, match=r"y must be 0 or 1; it has 0\.5"):
        nll(Bernoulli(jnp.array(0.0)), jnp.array(0.5))
    a, b = jnp.array([0.5, -1.0]), jnp.array([1.5, 2.0])
    q = scipy.special.expit(np.asarray(b, np.float64))
    p = scipy.special.expit(np.asarray(a, np.float64))
    want = scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)
    np.testing.assert_allclose(kl(Bernoulli(a), Bernoulli(b)), want, rtol=2e-6)
    rate, other = np.exp(np.asarray(a, np.float64)), np.exp(np.asarray(b, np.float64))
    want = rate * np.log(rate / other) - rate + other
    np.testing.assert_allclose(kl(Poisson(a), Poisson(b)), want, rtol=2e-6)


def test_what_has_no_closed_form_or_no_sense() -> None:
    with pytest.raises(InputError, match="entropy of Poisson has no closed form"):
        entropy(Poisson(jnp.zeros(2)))
    with pytest.raises(InputError, match="kl has no closed form for Normal and Laplace"):
        kl(Normal(0.0, 1.0), Laplace(0.0, 1.0))
    with pytest.raises(InputError, match="cross_entropy has no closed form for Poisson"):
        cross_entropy(Poisson(jnp.zeros(2)), Poisson(jnp.zeros(2)))
    with pytest.raises(InputError, match=r"loc must be a scalar.*\(3,\) and y \(2,\)"):
        nll(Normal(jnp.zeros(3), 1.0), jnp.zeros(2))


PROBS = st.lists(st.floats(0.0625, 1, width=32), min_size=4, max_size=4)


@settings(deadline=None, max_examples=25)
@given(PROBS, PROBS, st.integers(0, 3), st.floats(-30, 30, width=32))
def test_identities(a: list[float], b: list[float], label: int, shift: float) -> None:
    p, q = (jnp.array(np.array(x) / sum(x), jnp.float32) for x in (a, b))
    z = jnp.log(q)
    # KL = H(p, q) - H(p), by probabilities and by logits.
    np.testing.assert_allclose(kl(p, q), cross_entropy(p, q) - entropy(p), atol=1e-6)
    np.testing.assert_allclose(kl(p, Categorical(z)), kl(p, q), atol=1e-6)
    np.testing.assert_allclose(kl(Categorical(jnp.log(p)), q), kl(p, q), atol=1e-6)
    # Maximum likelihood is cross entropy with one-hot.
    one_hot = jax.nn.one_hot(label, 4)
    likelihood = nll(Categorical(z), jnp.array(label))
    np.testing.assert_allclose(cross_entropy(one_hot, q), likelihood, atol=1e-6)
    np.testing.assert_allclose(
        sparse_softmax_cross_entropy(z + shift, jnp.array(label)), likelihood, atol=1e-5
    )
    assert float(kl(p, q)) >= -1e-6
    np.testing.assert_allclose(js_divergence(p, q), js_divergence(q, p), atol=1e-7)
    np.testing.assert_allclose(renyi_divergence(p, q, 0.5), renyi_divergence(q, p, 0.5), atol=1e-6)
    orders = [float(renyi_divergence(p, q, o)) for o in (0.5, 1.0, 2.0, INF)]
    assert all(x <= y + 1e-6 for x, y in itertools.pairwise(orders))
    # A softmax's gradients sum to 0.
    slope = jax.grad(lambda z: kl(p, Categorical(z)))(z)
    np.testing.assert_allclose(slope.sum(), 0, atol=1e-6)


def test_second_order_and_vmap() -> None:
    z = jnp.log(Q[0])
    q = Q64[0]
    found = jax.hessian(lambda z: kl(P[0], Categorical(z)))(z)
    np.testing.assert_allclose(found, np.diag(q) - np.outer(q, q), atol=1e-6)
    found = jax.hessian(lambda p: -entropy(p))(P[0])
    np.testing.assert_allclose(found, np.diag(1 / P64[0]), rtol=1e-5)
    np.testing.assert_array_equal(jax.vmap(js_divergence)(P, Q), js_divergence(P, Q))
