from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.special
import scipy.stats

from jgraph._finetune._score import Score, wilson_interval

NAMES = ("cat", "dog", "emu", "fox")


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_newcombes(correct, count, low, high):
    # The table has four decimals.
    np.testing.assert_allclose(wilson_interval(correct, count), (low, high), atol=5e-5)


@pytest.mark.parametrize(("correct", "count"), [(118, 120), (1, 1), (0, 1), (5, 5), (499, 1000)])
def test_the_ends_are_the_roots_of_wilsons_equation(correct, count):
    # (p - x)^2 = z^2 x (1 - x) / n
    z2, p = scipy.stats.norm.ppf(0.975) ** 2, correct / count
    roots = np.roots([1 + z2 / count, -2 * p - z2 / count, p * p])
    # A root at 0 or 1 is found to 1e-8 only.
    np.testing.assert_allclose(wilson_interval(correct, count), np.sort(roots), atol=1e-7)


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 4)).astype(np.float32) * 3


@pytest.fixture
def labels():
    # No fox: a class that isn't in the set.
    return np.random.default_rng(1).integers(0, 3, 40).astype(np.int32)


def test_figures_are_those_of_a_plain_count(logits, labels):
    score = Score.of_logits("test", NAMES, labels, logits)
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    named = log_probabilities.argmax(1)
    np.testing.assert_allclose(score.probabilities, np.exp(log_probabilities), rtol=1e-5)
    np.testing.assert_allclose(score.loss, -log_probabilities[range(40), labels].mean(), rtol=1e-5)
    confusion = np.zeros((4, 4), int)
    for is_class, called in zip(labels, named, strict=True):
        confusion[is_class, called] += 1
    np.testing.assert_array_equal(score.confusion, confusion)
    assert (score.correct, score.count) == ((named == labels).sum(), 40)
    assert score.accuracy == pytest.approx((named == labels).mean())
    assert score.baseline == pytest.approx(max((labels == k).mean() for k in range(4)))
    for k, name in enumerate(NAMES[:3]):
        assert score.recall[name] == pytest.approx((named[labels == k] == k).mean())
        assert score.precision[name] == pytest.approx((labels[named == k] == k).mean())
    assert score.recall["fox"] is None
    assert score.precision["fox"] == 0.0


def test_a_class_that_is_never_named_has_no_precision():
    logits = np.array([[5, 0, 0, 0], [5, 0, 0, 0]], np.float32)
    score = Score.of_logits("test", NAMES, np.array([0, 1], np.int32), logits)
    assert score.precision == {"cat": 0.5, "dog": None, "emu": None, "fox": None}


def test_it_reads_as_accuracy_count_and_interval():
    labels = np.zeros(120, np.int32)
    logits = np.where(np.arange(120)[:, None] < 2, [[0.0, 1.0]], [[1.0, 0.0]]).astype(np.float32)
    score = Score.of_logits("test", ("cat", "dog"), labels, logits)
    assert str(score) == "0.983, 118 of 120, 0.94-1.00"


def test_json_holds_the_figures(logits, labels):
    score = Score.of_logits("val", NAMES, labels, logits)
    value = json.loads(json.dumps(score.to_json()))
    assert value["set"] == "val"
    assert value["accuracy"] == score.accuracy
    assert value["count"] == 40
    assert value["correct"] == score.correct
    assert value["interval_95"] == list(wilson_interval(score.correct, 40))
    assert value["baseline_accuracy"] == score.baseline
    assert value["recall"]["fox"] is None
    assert value["confusion"] == score.confusion.tolist()
    assert value["class_names"] == list(NAMES)
    assert value["loss"] == score.loss
