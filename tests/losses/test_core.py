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
# Parts of 1024, so that float32 holds them and their sum is 1: what a Rényi divergence of order
# near 1 makes of a sum of 1 + 6e-8 is no error of its own.
P64, Q64 = ((1 + RNG.multinomial(1019, RNG.dirichlet(np.ones(5), 4))) / 1024 for _ in range(2))
P, Q = jnp.asarray(P64, jnp.float32), jnp.asarray(Q64, jnp.float32)
ORDERS = [0.25, 0.5, 0.97, 1.02, 2.0, 7.0]


def kl64(p: Any, q: Any) -> Any:
    return scipy.special.rel_entr(p, q).sum(-1), np.log(p / q) + 1, -p / q


def cross_entropy64(p: Any, q: Any) -> Any:
    return -(p * np.log(q)).sum(-1), -np.log(q), -p / q


def js64(p: Any, q: Any) -> Any:
    m = (p + q) / 2
    value = (scipy.special.rel_entr(p, m) + scipy.special.rel_entr(q, m)).sum(-1) / 2
    return value, np.log(p / m) / 2, np.log(q / m) / 2


def wasserstein64(p: Any, q: Any) -> Any:
    over = (p - q).cumsum(-1)[..., :-1]
    # What lies at k crosses the steps k, k + 1, …
    crossed = np.tril(np.ones((5, 4)).T).T
    slope = np.sign(over) @ crossed.T
    return np.abs(over).sum(-1), slope, -slope


def renyi64(p: Any, q: Any, a: float) -> Any:
    total = (p**a * q ** (1 - a)).sum(-1)
    share = p**a * q ** (1 - a) / total[..., None]
    return np.log(total) / (a - 1), a / (a - 1) * share / p, -share / q


DIVERGENCES = [
    (kl_divergence, kl64),
    (cross_entropy, cross_entropy64),
    (js_divergence, js64),
    (wasserstein1, wasserstein64),
    *(
        (lambda p, q, a=a: renyi_divergence(p, q, a), lambda p, q, a=a: renyi64(p, q, a))
        for a in ORDERS
    ),
]


@pytest.mark.parametrize("index", range(len(DIVERGENCES)))
def test_divergences_and_slopes_equal_float64(index: int) -> None:
    f, exact = DIVERGENCES[index]
    value, *slopes = exact(P64, Q64)
    np.testing.assert_allclose(f(P, Q), value, rtol=1e-6)
    found = jax.jit(jax.grad(lambda p, q: f(p, q).sum(), (0, 1)))(P, Q)
    # The seventh power of a ratio has seven times the ratio's relative error.
    rtol = 1e-6 if index < 4 else 1e-6 * max(1, ORDERS[index - 4])
    for slope, want in zip(found, slopes, strict=True):
        np.testing.assert_allclose(slope, want, rtol=rtol, atol=1e-37)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("f", [entropy, *(d[0] for d in DIVERGENCES[:5])])
def test_half_precision_is_computed_in_float32(f: Any, dtype: type) -> None:
    arrays = [(x / x.sum(-1, keepdims=True)).astype(dtype) for x in (P, Q)][
        : 1 + (f is not entropy)
    ]
    wide = [x.astype(jnp.float32) for x in arrays]
    # A row of bfloat16 sums to 1 within 2e-2 only, which float32 would be refused for.
    wide_value = jax.jit(f)(*(x / x.sum(-1, keepdims=True) for x in wide))
    value = f(*arrays)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wide_value, rtol=2e-2, atol=2e-2)
    slope = jax.jit(jax.grad(lambda *a: f(*a).sum()))(*arrays)
    assert slope.dtype == dtype
    assert jnp.isfinite(slope).all()


# p, q, value, slope of p, slope of q
HALF = 0.5 * np.log(2)
RENYI = {a: lambda p, q, a=a: renyi_divergence(p, q, a) for a in (0.5, 2.0, INF)}
EXTREME = [
    (kl_divergence, [1.0, 0.0], [0.5, 0.5], np.log(2), [np.log(2) + 1, -INF], [-2, 0]),
    (kl_divergence, [1.0, 0.0], [1.0, 0.0], 0.0, [1, INF], [-1, 0]),
    (kl_divergence, [0.5, 0.5], [1.0, 0.0], INF, [1 - np.log(2), INF], [-0.5, -INF]),
    (cross_entropy, [0.5, 0.5], [1.0, 0.0], INF, [0, INF], [-0.5, -INF]),
    (cross_entropy, [1.0, 0.0], [1.0, 0.0], 0.0, [0, INF], [-1, 0]),
    (js_divergence, [1.0, 0.0], [0.0, 1.0], np.log(2), [HALF, -INF], [-INF, HALF]),
    (js_divergence, [1.0, 0.0], [1.0, 0.0], 0.0, [0, HALF], [0, HALF]),
    (wasserstein1, [1.0, 0.0], [0.0, 1.0], 1.0, [1, 0], [-1, 0]),
    # Of log(Σ p^α q^(1-α)) / (α - 1), where p or q is 0 and moves.
    (RENYI[0.5], [1.0, 0.0], [0.5, 0.5], np.log(2), [-1, -INF], [-2, 0]),
    (RENYI[2.0], [1.0, 0.0], [0.5, 0.5], np.log(2), [2, 0], [-2, 0]),
    (RENYI[INF], [1.0, 0.0], [0.5, 0.5], np.log(2), [1, 0], [-2, 0]),
    (RENYI[0.5], [1.0, 0.0], [1.0, 0.0], 0.0, [-1, 0], [-1, 0]),
    (RENYI[2.0], [1.0, 0.0], [1.0, 0.0], 0.0, [2, INF], [-1, 0]),
    (RENYI[INF], [1.0, 0.0], [1.0, 0.0], 0.0, [1, INF], [-1, 0]),
    (RENYI[0.5], [0.5, 0.5], [1.0, 0.0], np.log(2), [-2, 0], [-1, -INF]),
    (RENYI[2.0], [0.5, 0.5], [1.0, 0.0], INF, [0, 4], [0, -INF]),
    (RENYI[INF], [0.5, 0.5], [1.0, 0.0], INF, [0, 2], [0, -INF]),
    (RENYI[0.5], [1.0, 0.0], [0.0, 1.0], INF, [0, -INF], [-INF, 0]),
    (RENYI[2.0], [1.0, 0.0], [0.0, 1.0], INF, [2, 0], [-INF, 0]),
    (RENYI[INF], [1.0, 0.0], [0.0, 1.0], INF, [1, 0], [-INF, 0]),
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
    slope = jax.jit(jax.grad(lambda z: Categorical(z).entropy().sum()))(z)
    want = np.where(p > 0, -p * (np.log(np.where(p > 0, p, 1)) + h[:, None]), 0)
    np.testing.assert_allclose(slope, want, atol=1e-6)
    both = jax.grad(lambda a, b: kl(Categorical(a), Categorical(b)).sum(), (0, 1))
    for slope in jax.jit(both)(z, z):
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
            run = jax.jit(value)
            slopes = jax.jit(jax.grad(value, (0, 1, 2, 3)))(*wide)
            for i, found in enumerate(slopes):
                up, down = list(wide), list(wide)
                up[i], down[i] = up[i] + 1e-6, down[i] - 1e-6
                want = (run(*up) - run(*down)) / 2e-6
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
    # As outside of pytest, which checks types before the function does.
    unchecked: Any = getattr(nll, "__wrapped__", nll)
    with pytest.raises(InputError, match=r"dist must be one of Categorical, .*got float"):
        unchecked(0.5, jnp.array(0.0))
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


CONVEX = [
    kl_divergence,
    js_divergence,
    wasserstein1,
    lambda p, q: renyi_divergence(p, q, 0.5),
    lambda p, q: renyi_divergence(p, q, 1.0),
    # Above order 1 in q alone (van Erven and Harremoës, theorem 12).
    lambda p, q: renyi_divergence(P[:1], q, 3.0) + 0 * p.sum(-1),
    lambda p, q: cross_entropy(P[:1], q) + 0 * p.sum(-1),
    lambda p, q: -entropy(p) + 0 * q.sum(-1),
]


@jax.jit
def values_of_all(p: Array, q: Array) -> Array:
    return jnp.concatenate([f(p[None], q[None]) for f in CONVEX])


FIVE = st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5).filter(lambda x: sum(x) > 0.01)


@settings(deadline=None, max_examples=25)
@given(FIVE, FIVE, FIVE, FIVE, st.floats(0, 1))
def test_divergences_are_convex_in_both_together(
    a: list[float], b: list[float], c: list[float], d: list[float], share: float
) -> None:
    (p, q), (r, s) = ([np.array(x) / sum(x) for x in pair] for pair in ((a, b), (c, d)))
    between = [share * x + (1 - share) * y for x, y in ((p, r), (q, s))]
    found, first, second = (
        np.asarray(values_of_all(*(jnp.asarray(x, jnp.float32) for x in pair)), np.float64)
        for pair in (between, (p, q), (r, s))
    )
    # An end of the chord that is infinite is above anything, also with a share of 0.
    bound = np.isinf(first) | np.isinf(second)
    chord = share * np.where(bound, 0, first) + (1 - share) * np.where(bound, 0, second)
    assert (bound | (found <= chord + 1e-5 * (1 + np.abs(chord)))).all()


def test_second_order_and_vmap() -> None:
    z = jnp.log(Q[0])
    q = Q64[0]
    found = jax.jit(jax.hessian(lambda z: kl(P[0], Categorical(z))))(z)
    np.testing.assert_allclose(found, np.diag(q) - np.outer(q, q), atol=1e-6)
    found = jax.jit(jax.hessian(lambda p: -entropy(p)))(P[0])
    np.testing.assert_allclose(found, np.diag(1 / P64[0]), rtol=1e-5)
    np.testing.assert_array_equal(jax.vmap(js_divergence)(P, Q), js_divergence(P, Q))
