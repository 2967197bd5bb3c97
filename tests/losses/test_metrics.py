from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import (
    Mean,
    accuracy,
    auc,
    binary_confusion_matrix,
    calibration_error,
    confusion_matrix,
    mean,
    perplexity,
    top_k_accuracy,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((60, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 60).astype(np.int32)
WEIGHTS = RNG.choice([0.0, 0.5, 1.0, 2.0], 60).astype(np.float32)
BINARY = (RNG.random(60) < 0.4).astype(np.int32)


def counts_64() -> np.ndarray:
    counts = np.zeros((5, 5))
    for z, y, w in zip(LOGITS, LABELS, WEIGHTS, strict=True):
        counts[y, np.argmax(z)] += w
    return counts


def auc_64(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Every pair of a positive and a negative, one by one."""
    won = total = 0.0
    for s, w in zip(scores[labels == 1], weights[labels == 1], strict=True):
        for t, v in zip(scores[labels == 0], weights[labels == 0], strict=True):
            won += w * v * ((s > t) + 0.5 * (s == t))
            total += w * v
    return won / total


def test_accuracy_and_top_k() -> None:
    order = np.argsort(-LOGITS, axis=1)
    for k in range(1, 6):
        want = (order[:, :k] == LABELS[:, None]).any(1)
        np.testing.assert_array_equal(top_k_accuracy(LOGITS, LABELS, k=k), want)
    np.testing.assert_array_equal(accuracy(LOGITS, LABELS), order[:, 0] == LABELS)
    np.testing.assert_array_equal(jax.jit(accuracy)(LOGITS, LABELS), order[:, 0] == LABELS)
    found = mean(accuracy(LOGITS, LABELS), WEIGHTS).value()
    np.testing.assert_allclose(found, np.average(order[:, 0] == LABELS, weights=WEIGHTS), rtol=1e-6)
    assert accuracy(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)).shape == (0,)


def test_of_equal_logits_the_first_is_ahead() -> None:
    z = jnp.zeros((4, 4))
    np.testing.assert_array_equal(accuracy(z, jnp.arange(4)), [1, 0, 0, 0])
    np.testing.assert_array_equal(top_k_accuracy(z, jnp.arange(4), k=2), [1, 1, 0, 0])
    # Collapsed to all ones, a network isn't right every time.
    assert float(mean(accuracy(z, jnp.arange(4))).value()) == 0.25


@pytest.mark.parametrize(
    ("logits", "label", "right"),
    [
        ([np.inf, 0.0], 0, 1.0),
        ([-np.inf, 0.0], 0, 0.0),
        ([1e4, -1e4], 0, 1.0),
        ([-np.inf, -np.inf], 0, np.nan),
        ([np.nan, 1.0], 1, np.nan),
    ],
)
def test_accuracy_at_extreme_logits(logits: list[float], label: int, right: float) -> None:
    np.testing.assert_equal(float(accuracy(jnp.array(logits), jnp.array(label))), right)


@pytest.mark.parametrize(
    "metric",
    [accuracy, confusion_matrix, calibration_error, lambda z, y: top_k_accuracy(z, y, k=2)],
)
@pytest.mark.parametrize("label", [-1, 3, -100])
def test_bad_labels_raise_when_known_and_are_nan_when_compiled(
    metric: Callable[..., Any], label: int
) -> None:
    z, y = jnp.zeros((3, 3)), jnp.array([0, label, 2])
    with pytest.raises(InputError, match=rf"in \[0, 3\).*row 1 has label {label}"):
        metric(z, y)
    found = jax.jit(metric)(z, y)
    value = found if isinstance(found, jax.Array) else found.value()
    assert jnp.isnan(value).any()


def test_wrong_shapes_and_options_raise() -> None:
    z, y = jnp.zeros((3, 3)), jnp.zeros(3, jnp.int32)
    for metric in (accuracy, confusion_matrix, calibration_error):
        with pytest.raises(InputError, match=r"\(3,\), got labels \(3, 1\)"):
            metric(z, y[:, None])
        with pytest.raises(InputError, match="must be float, got int32"):
            metric(z.astype(jnp.int32), y)
    for k in (0, 4, True):
        with pytest.raises(InputError, match=f"k must be an integer of 1 to 3.*got {k}"):
            top_k_accuracy(z, y, k=k)
    with pytest.raises(InputError, match="bins must be a positive integer, got 0"):
        calibration_error(z, y, bins=0)
    with pytest.raises(InputError, match=r"weights \(1,\).*\(3,\)"):
        confusion_matrix(z, y, jnp.ones(1))
    for metric in (auc, binary_confusion_matrix):
        with pytest.raises(InputError, match=r"labels \(3, 1\) and logits \(3,\)"):
            metric(z[0], y[:, None])
        with pytest.raises(InputError, match=r"labels must be 0 or 1; row 1 has 2 \(1 of 3"):
            metric(z[0], jnp.array([0, 2, 1]))
        assert jnp.isnan(jax.jit(metric)(z[0], jnp.array([0, 2, 1])).value()).all()
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = confusion_matrix(z, y) + perplexity(z)  # pyright: ignore[reportOperatorIssue]


def test_confusion_matrix_and_its_ratios() -> None:
    want = counts_64()
    found = confusion_matrix(LOGITS, LABELS, WEIGHTS)
    np.testing.assert_allclose(found.value(), want, rtol=1e-6)
    true = np.diag(want)
    precision, recall = true / want.sum(0), true / want.sum(1)
    np.testing.assert_allclose(found.precision().value(), precision, rtol=1e-6)
    np.testing.assert_allclose(found.recall().value(), recall, rtol=1e-6)
    f1 = 2 * true / (want.sum(0) + want.sum(1))
    np.testing.assert_allclose(found.f1().value(), f1, rtol=1e-6)
    np.testing.assert_allclose(found.accuracy().value(), true.sum() / want.sum(), rtol=1e-6)


def test_a_class_nobody_predicted_has_weight_zero() -> None:
    found = confusion_matrix(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1]))
    np.testing.assert_array_equal(found.precision().value(), [0.5, 0])
    np.testing.assert_array_equal(found.precision().weight, [2, 0])
    np.testing.assert_allclose(found.f1().value(), [2 / 3, 0], rtol=1e-6)


def test_binary_confusion_matrix() -> None:
    z = LOGITS[:, 0]
    want = np.zeros((2, 2))
    np.add.at(want, (BINARY, (z > 0.3).astype(int)), WEIGHTS.astype(np.float64))
    found = binary_confusion_matrix(z, BINARY, WEIGHTS, threshold=0.3)
    np.testing.assert_allclose(found.value(), want, rtol=1e-6)
    several = jax.vmap(binary_confusion_matrix, -1)(LOGITS, np.stack([BINARY] * 5, -1))
    one = binary_confusion_matrix(z, BINARY)
    np.testing.assert_array_equal(several.value()[0], one.value())
    np.testing.assert_array_equal(several.f1().value()[0], one.f1().value())
    np.testing.assert_array_equal(several.accuracy().value()[0], one.accuracy().value())


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_float64(bins: int) -> None:
    p = scipy.special.softmax(LOGITS.astype(np.float64), axis=1)
    confidence, right = p.max(1), p.argmax(1) == LABELS
    want = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        want += abs((WEIGHTS * (confidence - right))[inside].sum())
    found = calibration_error(LOGITS, LABELS, WEIGHTS, bins=bins)
    np.testing.assert_allclose(found.value(), want / WEIGHTS.sum(), rtol=1e-5)
    shown, accurate = found.curve()
    assert shown.shape == accurate.shape == (bins,)
    if bins == 1:
        np.testing.assert_allclose(shown, np.average(confidence, weights=WEIGHTS), rtol=1e-6)
        np.testing.assert_allclose(accurate, np.average(right, weights=WEIGHTS), rtol=1e-6)


@pytest.mark.slow
def test_calibration_at_extreme_logits() -> None:
    z = jnp.array([[np.inf, 0.0], [np.inf, np.inf], [1e4, -1e4]])
    shown = calibration_error(z, jnp.array([0, 0, 0]), bins=2)
    np.testing.assert_allclose(shown.confidence, [0.5, 2.0])
    many = jnp.zeros((1, 300)).at[0, 299].set(9.0)  # 299 - 256 = 43 in int8
    assert float(calibration_error(many, jnp.array([43], jnp.int8)).value()) > 0.9


def test_perplexity_is_exp_of_the_mean_over_everything() -> None:
    nll = np.abs(LOGITS).astype(np.float64)
    whole = perplexity(jnp.abs(LOGITS))
    np.testing.assert_allclose(whole.value(), np.exp(nll.mean()), rtol=1e-6)
    parts = perplexity(jnp.abs(LOGITS[:7])) + perplexity(jnp.abs(LOGITS[7:]))
    np.testing.assert_allclose(parts.value(), np.exp(nll.mean()), rtol=1e-6)
    assert float(perplexity(jnp.zeros(0)).value()) == 1.0
    assert isinstance(whole.nll, Mean)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_auc_lies_within_its_bounds(scale: float) -> None:
    scores = LOGITS[:, 0] * np.float32(scale)
    want = auc_64(scores, BINARY, WEIGHTS)
    found = auc(scores, BINARY, WEIGHTS)
    low, high = found.bounds()
    assert float(low) - 1e-6 <= want <= float(high) + 1e-6
    assert float(high - low) < 0.02
    np.testing.assert_allclose(found.value(), want, atol=float(high - low) / 2 + 1e-6)


def test_auc_of_bfloat16_scores_is_exact() -> None:
    scores = np.asarray(jnp.asarray(LOGITS[:, 1], jnp.bfloat16), np.float32)
    found = auc(jnp.asarray(LOGITS[:, 1], jnp.bfloat16), BINARY)
    ranked = scipy.stats.mannwhitneyu(scores[BINARY == 1], scores[BINARY == 0]).statistic
    want = ranked / (BINARY.sum() * (1 - BINARY).sum())
    np.testing.assert_allclose(found.value(), want, rtol=1e-6)


def test_auc_extremes() -> None:
    def value(scores: list[float], labels: list[int]) -> float:
        return float(auc(jnp.array(scores), jnp.array(labels)).value())

    assert value([-np.inf, -3e38, -1e-30, 0.0, 1e-30, 3e38, np.inf], [0, 0, 0, 1, 1, 1, 1]) == 1
    assert value([-0.0, 0.0], [0, 1]) == 0.5
    assert value([-2.0, -1.0], [1, 0]) == 0
    assert np.isnan(value([1.0, 2.0], [1, 1]))  # no negative: nothing to rank
    assert np.isnan(value([np.nan, 2.0, 1.0], [1, 1, 0]))


@settings(deadline=None, max_examples=10)
@given(hnp.arrays(np.int32, 60, elements=st.integers(-20, 20)))
def test_auc_sees_only_the_order(scores: np.ndarray) -> None:
    plain = auc(jnp.asarray(scores, jnp.float32), BINARY).value()
    shifted = auc(jnp.exp2(scores.astype(np.float32)), BINARY).value()
    np.testing.assert_allclose(shifted, plain, rtol=1e-6)  # sums in float32


METRICS: list[Callable[..., Any]] = [
    confusion_matrix,
    calibration_error,
    lambda z, y, w: auc(z[:, 0], y % 2, w),
    lambda z, y, w: binary_confusion_matrix(z[:, 0], y % 2, w),
    lambda z, y, w: perplexity(jnp.abs(z[:, 0]), w),
]


@pytest.mark.parametrize("metric", METRICS)
def test_a_masked_row_counts_nowhere(metric: Callable[..., Any]) -> None:
    z, w = jnp.asarray(LOGITS).at[0].set(jnp.nan), jnp.asarray(WEIGHTS).at[0].set(0)
    want = metric(LOGITS[1:], LABELS[1:], WEIGHTS[1:]).value()
    np.testing.assert_allclose(metric(z, LABELS, w).value(), want, rtol=1e-6)
    masked_label = jax.jit(metric)(z, jnp.asarray(LABELS).at[0].set(-100), w).value()
    np.testing.assert_allclose(masked_label, want, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_parts_and_replicas_add_up(metric: Callable[..., Any]) -> None:
    z, y = LOGITS[:56], LABELS[:56]
    w = WEIGHTS[:56].copy()
    w[:7] = 0  # the first replica has nothing
    want = metric(z, y, w).value()
    parts = metric(z[:9], y[:9], w[:9]) + metric(z[9:], y[9:], w[9:])
    np.testing.assert_allclose(parts.value(), want, rtol=1e-6, atol=1e-6)

    def local(z: Array, y: Array, w: Array) -> Array:
        return metric(z, y, w).psum("replica").value()

    stacked = (x.reshape(8, 7, *x.shape[1:]) for x in (z, y, w))
    mapped = jax.pmap(local, axis_name="replica")(*stacked)
    np.testing.assert_allclose(mapped, np.stack([want] * 8), rtol=1e-6, atol=1e-6)
    mesh, spec = Mesh(np.array(jax.devices()[:8]), ("replica",)), PartitionSpec("replica")
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(spec, spec, spec), out_specs=PartitionSpec()
    )
    np.testing.assert_allclose(jax.jit(sharded)(z, y, w), want, rtol=1e-6, atol=1e-6)


def test_nothing_counted() -> None:
    w = jnp.zeros(60)
    assert float(calibration_error(LOGITS, LABELS, w).value()) == 0
    np.testing.assert_array_equal(confusion_matrix(LOGITS, LABELS, w).f1().value(), np.zeros(5))
    empty = jnp.zeros(0, jnp.int32)
    np.testing.assert_array_equal(
        confusion_matrix(jnp.zeros((0, 2)), empty).value(), np.zeros((2, 2))
    )
