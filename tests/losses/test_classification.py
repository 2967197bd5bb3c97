from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array

import jgraph.losses
from jgraph._errors import InputError
from jgraph.losses import (
    euclidean,
    mean,
    softmax_cross_entropy,
    sparse_softmax_cross_entropy,
)

# float32 has 24 bits: a loss of size 1 is exact to 1e-7, the sum over K classes to a few of those.
RELATIVE = 1e-6


def exact(
    logits: np.ndarray,
    probs: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    z_loss: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient by the textbook, in 60 digits: what rounds in float64 doesn't here."""
    k = logits.shape[-1]
    losses, slopes = [], []
    with mpmath.workdps(60):
        for row, target in zip(logits.reshape(-1, k), probs.reshape(-1, k), strict=True):
            z = [mpmath.mpf(float(x)) / mpmath.mpf(temperature) for x in row]
            s = mpmath.mpf(label_smoothing)
            q = [(1 - s) * mpmath.mpf(float(t)) + s / k for t in target]
            total = mpmath.fsum(mpmath.exp(x) for x in z)
            normalizer = mpmath.log(total)
            entropy = -mpmath.fsum(t * (x - normalizer) for t, x in zip(q, z, strict=True))
            losses.append(float(entropy + z_loss * normalizer**2))
            for t, x in zip(q, z, strict=True):
                p = mpmath.exp(x) / total
                slope = p * mpmath.fsum(q) - t + 2 * z_loss * normalizer * p
                slopes.append(float(slope / mpmath.mpf(temperature)))
    return np.reshape(losses, logits.shape[:-1]), np.reshape(slopes, logits.shape)


def gradient(logits: Array, labels: Array) -> Array:
    return jax.grad(lambda z: sparse_softmax_cross_entropy(z, labels).sum())(logits)


OPTIONS = [
    {},
    {"label_smoothing": 0.25},
    {"temperature": 2.5},
    {"z_loss": 0.125},
    {"label_smoothing": 0.5, "temperature": 0.5, "z_loss": 0.25},
    {"label_smoothing": 1.0},
]


@pytest.mark.parametrize(
    ("scale", "options"),
    [*((1.0, options) for options in OPTIONS), (30.0, {}), (1e4, {}), (1e4, OPTIONS[4])],
)
def test_loss_and_gradient_to_a_millionth(scale: float, options: dict[str, float]) -> None:
    rng = np.random.default_rng(1)
    z = (scale * rng.standard_normal((6, 5))).astype(np.float32)
    ids = rng.integers(0, 5, 6).astype(np.int32)
    ids[:2] = z[:2].argmax(-1)  # sure and right, where 1 - p cancels
    hard = np.eye(5, dtype=np.float32)[ids]
    soft = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    for loss, target, probs in (
        (sparse_softmax_cross_entropy, ids, hard),
        (softmax_cross_entropy, hard, hard),
        (softmax_cross_entropy, soft, soft),
    ):
        want, want_slope = exact(z, probs, **options)

        def run(z: Array, loss: Any = loss, target: Any = target) -> Array:
            return loss(z, jnp.asarray(target), **options)

        found = jax.jit(run)(z)
        slope = jax.jit(jax.grad(lambda z, run=run: run(z).sum()))(z)
        # A logit of 1e4 is itself known to 1e-3 after a division: relative to the logits.
        size = 1.0 if scale < 1e4 and "temperature" not in options else float(np.abs(z).max())
        rtol = 1e-6 if size == 1.0 else 3e-6
        np.testing.assert_allclose(found, want, rtol=rtol, atol=1e-38)
        # Entries of softmax - q cancel where the network agrees with soft labels.
        floor = (
            1e-38 if target is ids and options == {} else 3e-6 * max(1.0, np.abs(want_slope).max())
        )
        rtol = 1e-6 if size == 1.0 and scale == 1.0 else 2e-5
        np.testing.assert_allclose(slope, want_slope, rtol=rtol, atol=floor)


@pytest.mark.slow
def test_a_sure_network_keeps_its_small_loss_and_gradient() -> None:
    z = np.array([[0.0, 30.0, -1.0]], np.float32)
    want, want_slope = exact(z, np.array([[0, 1, 0]]))
    assert 0 < want[0] < 1e-12
    label = jnp.array([1])
    np.testing.assert_allclose(sparse_softmax_cross_entropy(z, label), want, rtol=RELATIVE)
    np.testing.assert_allclose(gradient(jnp.asarray(z), label), want_slope, rtol=RELATIVE)
    q = jnp.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(softmax_cross_entropy(z, q), want, rtol=RELATIVE)
    slope = jax.grad(lambda z: softmax_cross_entropy(z, q).sum())(jnp.asarray(z))
    np.testing.assert_allclose(slope, want_slope, rtol=RELATIVE)


INF = np.inf


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("logits", "label", "loss", "slope"),
    [
        ([INF, 0.0, 1.0], 0, 0.0, [0.0, 0.0, 0.0]),  # certain and right
        ([INF, 0.0, 1.0], 1, INF, [1.0, -1.0, 0.0]),  # certain and wrong
        ([INF, -INF, 0.0], 0, 0.0, [0.0, 0.0, 0.0]),
        ([INF, INF, 0.0], 0, np.nan, [np.nan] * 3),  # no limit
        ([-INF, -INF, -INF], 0, np.nan, [np.nan] * 3),
        ([np.nan, 0.0, 0.0], 1, np.nan, [np.nan] * 3),
        ([-INF, -INF, 2.0], 2, 0.0, [0.0, 0.0, 0.0]),
        ([-INF, -INF, 2.0], 0, INF, [-1.0, 0.0, 1.0]),
    ],
)
def test_infinite_logits_take_the_limit(
    logits: list[float], label: int, loss: float, slope: list[float], compiled: bool
) -> None:
    wrap = jax.jit if compiled else lambda f: f
    z, q = jnp.array([logits]), jnp.eye(3)[jnp.array([label])]
    for run in (
        lambda z: sparse_softmax_cross_entropy(z, jnp.array([label])),
        lambda z: softmax_cross_entropy(z, q),
    ):
        np.testing.assert_array_equal(wrap(run)(z), [loss])
        np.testing.assert_array_equal(wrap(jax.grad(lambda z, run=run: run(z).sum()))(z), [slope])


def poisoned() -> tuple[Array, Array]:
    """Logits and labels of which only row 0 is good."""
    rows = [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [np.nan, 0.0], [-INF, -INF], [INF, INF]]
    return jnp.array(rows), jnp.array([1, 2, -100, 0, 0, 0])


@pytest.mark.parametrize("options", [{}, OPTIONS[4]], ids=str)
def test_a_masked_row_leaks_nothing(options: dict[str, float]) -> None:
    z, labels = poisoned()
    q = jnp.array([[0.0, 1.0], [0.5, 0.9], [-1.0, 2.0], [np.nan, 1.0], [0.0, 1.0], [1.0, 0.0]])
    weights = jnp.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])

    @jax.jit
    def step(z: Array, labels: Array, q: Array) -> Any:
        sparse = jax.value_and_grad(
            lambda z: mean(sparse_softmax_cross_entropy(z, labels, **options), weights).value()
        )
        soft = jax.value_and_grad(
            lambda z, q: mean(softmax_cross_entropy(z, q, **options), weights).value(), (0, 1)
        )
        return sparse(z), soft(z, q)

    (loss, slope), (soft_loss, (soft_slope, q_slope)) = step(z, labels, q)
    want, want_slope = exact(np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]), **options)
    for value in (loss, soft_loss):
        np.testing.assert_allclose(value, want[0], rtol=RELATIVE)
    for found in (slope, soft_slope):
        np.testing.assert_allclose(found[0], want_slope[0], rtol=RELATIVE, atol=1e-7)
        np.testing.assert_array_equal(found[1:], np.zeros((5, 2)))
    np.testing.assert_array_equal(q_slope[1:], np.zeros((5, 2)))
    assert np.isfinite(q_slope[0]).all()


def test_a_bad_row_that_counts_is_nan_in_loss_and_gradients() -> None:
    z, labels = poisoned()
    found = jax.jit(jax.grad(lambda z: sparse_softmax_cross_entropy(z, labels).sum()))
    # Values known outside of jit are looked at even while a gradient is traced.
    with pytest.raises(InputError, match="row 1 has label 2 "):
        found(z)
    slope = jax.jit(gradient)(z, labels)
    np.testing.assert_array_equal(np.isnan(slope).all(-1), [False] + 5 * [True])
    np.testing.assert_array_equal(np.isnan(slope).any(-1), [False] + 5 * [True])


@pytest.mark.parametrize("probs", [[1.5, -0.5], [0.5, 0.6], [2.0, 0.0], [0.0, 0.0], [np.nan, 1.0]])
def test_soft_labels_must_be_a_distribution(probs: list[float]) -> None:
    z, q = jnp.zeros((2, 2)), jnp.array([[0.5, 0.5], probs])
    with pytest.raises(
        InputError, match=r"probs must .*; row (1|\(1, 0\)) has .* \(\d of \d do not"
    ):
        softmax_cross_entropy(z, q)
    found = jax.jit(softmax_cross_entropy)(z, q)
    np.testing.assert_array_equal(np.isnan(found), [False, True])
    slopes = jax.jit(jax.grad(lambda z, q: softmax_cross_entropy(z, q).sum(), (0, 1)))(z, q)
    for slope in slopes:
        np.testing.assert_array_equal(np.isnan(slope), [[False, False], [True, True]])


def test_soft_labels_of_half_precision_may_sum_to_almost_one() -> None:
    q = jnp.full(3, 1 / 3, jnp.bfloat16)
    assert float(q.astype(jnp.float32).sum()) == 1.001953125
    np.testing.assert_allclose(softmax_cross_entropy(jnp.zeros(3), q), np.log(3), rtol=3e-3)


@pytest.mark.parametrize(
    ("logits", "probs", "message"),
    [
        (
            jnp.zeros((2, 3), int),
            jnp.ones((2, 3)) / 3,
            r"logits must be float, got int32.*\(2, 3\)",
        ),
        (jnp.zeros(()), jnp.ones(()), r"class axis \[\.\.\., K\], got shape \(\)"),
        (jnp.zeros((2, 0)), jnp.ones((2, 0)), r"class axis.*\(2, 0\)"),
        (jnp.zeros((2, 3)), jnp.ones((1, 3)) / 3, r"got probs \(1, 3\) and logits \(2, 3\)"),
        (jnp.zeros((2, 3)), jnp.zeros(2, int), r"got probs \(2,\) and logits \(2, 3\)"),
        (jnp.zeros((2, 1)), jnp.ones((2, 3)) / 3, r"got probs \(2, 3\) and logits \(2, 1\)"),
        (jnp.zeros((1, 1)), jnp.ones((1, 1), jnp.complex64), "probs must be real, got complex64"),
    ],
)
def test_wrong_soft_labels_raise_at_trace_time(logits: Array, probs: Array, message: str) -> None:
    for run in (softmax_cross_entropy, jax.jit(softmax_cross_entropy)):
        with pytest.raises(InputError, match=message):
            run(logits, probs)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("label_smoothing", 1.5, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        ("label_smoothing", -0.1, r"label_smoothing must lie in \[0, 1\], got -0.1"),
        ("temperature", 0.0, r"temperature must lie in \(0, inf\), got 0"),
        ("temperature", float("nan"), r"temperature must lie in \(0, inf\), got nan"),
        ("z_loss", float("inf"), r"z_loss must lie in \[0, inf\), got inf"),
        ("z_loss", True, "z_loss must be a Python number, got bool"),
    ],
)
def test_options_out_of_range(option: str, value: float, message: str) -> None:
    # beartype takes bool for int, as Python does.
    z, q = jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])
    with pytest.raises(InputError, match=message):
        sparse_softmax_cross_entropy(z, jnp.array([0]), **{option: value})
    with pytest.raises(InputError, match=message):
        softmax_cross_entropy(z, q, **{option: value})


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32)), st.floats(0, 1))
def test_smoothing_is_the_mixture(logits: np.ndarray, smoothing: float) -> None:
    labels = jnp.array([0, 1, 3])
    hard = sparse_softmax_cross_entropy(logits, labels)
    uniform = softmax_cross_entropy(logits, jnp.full((3, 4), 0.25))
    mixed = sparse_softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(
        mixed, (1 - smoothing) * hard + smoothing * uniform, rtol=3e-6, atol=1e-6
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    hnp.arrays(np.float32, (2, 4), elements=st.floats(-20, 20, width=32)),
    hnp.arrays(np.float32, (2, 4), elements=st.floats(-20, 20, width=32)),
    st.floats(0, 1),
)
def test_convex_and_gradients_sum_to_zero(a: np.ndarray, b: np.ndarray, share: float) -> None:
    q = jnp.array([[0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0]])
    between = softmax_cross_entropy(np.float32(share) * a + np.float32(1 - share) * b, q)
    chord = share * softmax_cross_entropy(a, q) + (1 - share) * softmax_cross_entropy(b, q)
    assert (np.asarray(between) <= np.asarray(chord) + 1e-5).all()
    slope = jax.grad(lambda z: softmax_cross_entropy(z, q).sum())(jnp.asarray(a))
    np.testing.assert_allclose(slope.sum(-1), [0, 0], atol=1e-6)


def test_one_hot_soft_labels_are_the_labels() -> None:
    z = jax.random.normal(jax.random.key(0), (4, 5))
    labels = jnp.array([0, 4, 2, 2])
    for one_hot in (jax.nn.one_hot(labels, 5), jax.nn.one_hot(labels, 5, dtype=bool)):
        soft = softmax_cross_entropy(z, one_hot)
        np.testing.assert_allclose(soft, sparse_softmax_cross_entropy(z, labels), rtol=RELATIVE)


@pytest.mark.slow
def test_soft_labels_have_a_gradient_and_a_hessian() -> None:
    z, q = jnp.array([0.3, -1.0, 2.0, 2.0]), jnp.array([0.5, 0.0, 0.25, 0.25])
    log_p = scipy.special.log_softmax(np.asarray(z, np.float64))
    found = jax.grad(softmax_cross_entropy, 1)(z, q)
    np.testing.assert_allclose(found, -log_p, rtol=RELATIVE)
    p = np.exp(log_p)
    for hessian in (
        jax.hessian,
        lambda f: jax.jacrev(jax.jacrev(f)),
        lambda f: jax.jacfwd(jax.jacfwd(f)),
    ):
        second = hessian(lambda z: softmax_cross_entropy(z, q))(z)
        np.testing.assert_allclose(second, np.diag(p) - np.outer(p, p), atol=1e-6)
        second = hessian(lambda z: sparse_softmax_cross_entropy(z, jnp.array(2)))(z)
        np.testing.assert_allclose(second, np.diag(p) - np.outer(p, p), atol=1e-6)
    impossible = jax.grad(softmax_cross_entropy, 1)(jnp.array([0.0, -INF]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(impossible, [0, INF])


def test_an_empty_batch_has_no_values() -> None:
    z = jnp.zeros((0, 3))
    assert softmax_cross_entropy(z, z).shape == (0,)
    assert euclidean(z, z).shape == (0,)


def test_euclidean_is_silent_where_the_network_is_sure_and_wrong() -> None:
    z, target = jnp.array([8.0, -8.0]), jnp.array([0.0, 1.0])
    p = scipy.special.softmax(np.asarray(z, np.float64))
    brier = euclidean(jax.nn.softmax(z), target)
    np.testing.assert_allclose(brier, ((p - [0, 1]) ** 2).sum(), rtol=RELATIVE)
    squared = jax.grad(lambda z: euclidean(jax.nn.softmax(z), target))(z)
    entropy = jax.grad(lambda z: softmax_cross_entropy(z, target))(z)
    # d/dz of 2 (1 - p)^2 for p = sigmoid(-16), against p - 1.
    np.testing.assert_allclose(squared[1], -4 * p[0] ** 2 * p[1], rtol=1e-5)
    np.testing.assert_allclose(entropy[1], -p[0], rtol=RELATIVE)
    np.testing.assert_allclose(
        jax.grad(lambda x: euclidean(x, target).sum())(jnp.array([0.5, 3.0])), [1.0, 4.0]
    )


def test_euclidean_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match=r"got targets \(1, 2\) and outputs \(3, 2\)"):
        euclidean(jnp.zeros((3, 2)), jnp.zeros((1, 2)))
    with pytest.raises(InputError, match="outputs must be float, got int32"):
        euclidean(jnp.zeros((3, 2), int), jnp.zeros((3, 2)))
    with pytest.raises(InputError, match="outputs must end in a class axis"):
        euclidean(jnp.zeros(()), jnp.zeros(()))


def test_the_folder_behind_the_link_refuses_to_be_imported() -> None:
    assert jgraph.losses.__file__ is not None
    spec = importlib.util.spec_from_file_location("losses", Path(jgraph.losses.__file__))
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"import jgraph\.losses, not losses"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
