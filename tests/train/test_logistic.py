"""The head against an independent optimizer, and what folds, masks and weights must not change."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jgraph import InputError
from jgraph.train import balanced_weights, fit_logistic


def problem(n=60, d=8, k=3, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    centers = rng.normal(size=(k, d))
    x = centers[labels] + noise * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def objective(kernel, bias, x, labels, weights, penalty):
    log_probs = scipy.special.log_softmax(x @ kernel + bias, axis=1)
    return (
        -(weights * log_probs[np.arange(len(labels)), labels]).sum()
        + penalty / 2 * (kernel**2).sum()
    )


def scipy_optimum(x, labels, k, weights, penalty):
    """The same problem in float64 by another implementation of another method."""
    x = x.astype(np.float64)
    d = x.shape[1]

    def value_and_gradient(flat):
        kernel, bias = flat[: d * k].reshape(d, k), flat[d * k :]
        p = scipy.special.softmax(x @ kernel + bias, axis=1)
        p[np.arange(len(labels)), labels] -= 1
        error = weights[:, None] * p
        gradient = np.concatenate([(x.T @ error + penalty * kernel).ravel(), error.sum(0)])
        return objective(kernel, bias, x, labels, weights, penalty), gradient

    found = scipy.optimize.minimize(
        value_and_gradient, np.zeros(d * k + k), jac=True, method="BFGS", options={"gtol": 1e-8}
    )
    return found.fun, found.x[: d * k].reshape(d, k)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(60, 8), (12, 40)])
def test_the_optimum_is_that_of_scipy_in_float64(penalty, shape):
    x, labels = problem(*shape)
    weights = np.linspace(0.5, 1.5, len(labels))
    fit = fit_logistic(x, labels, 3, weights_N=weights, penalties=(penalty,))
    best, kernel = scipy_optimum(x, labels, 3, weights, penalty)
    reached = objective(
        fit.kernel.astype(np.float64), fit.bias, x.astype(np.float64), labels, weights, penalty
    )
    # float32 resolves the objective to about 1e-6 of it; the kernel is flatter in weak directions.
    assert reached <= best * (1 + 1e-5) + 1e-5
    np.testing.assert_allclose(fit.kernel, kernel, atol=0.02 * np.abs(kernel).max())


@pytest.mark.slow
def test_a_shift_of_the_features_changes_no_prediction():
    x, labels = problem()
    shifted = x + np.float32(3.0)
    one = fit_logistic(x, labels, 3, penalties=(1.0,))
    other = fit_logistic(shifted, labels, 3, penalties=(1.0,))
    np.testing.assert_allclose(
        x @ one.kernel + one.bias, shifted @ other.kernel + other.bias, atol=1e-3
    )


@pytest.mark.slow
def test_held_out_rows_never_train():
    x, labels = problem()
    held = np.arange(len(labels)) >= 45
    wrong = np.where(held, (labels + 1) % 3, labels)
    masked = fit_logistic(x, wrong, 3, held_out_N=held, penalties=(1.0,))
    cut = fit_logistic(x[~held], labels[~held], 3, penalties=(1.0,))
    np.testing.assert_allclose(masked.kernel, cut.kernel, rtol=0.01, atol=2e-3)
    # Their labels are all wrong, so the curve must show it.
    assert masked.curve.held_out_accuracy[-1] < masked.curve.train_accuracy[-1]


def test_the_curve_starts_near_chance_and_its_loss_falls():
    x, labels = problem()
    curve = fit_logistic(x, labels, 3, penalties=(1e-2,)).curve
    assert curve.train_loss[0] < np.log(3)
    assert curve.train_loss[-1] < 0.5 * curve.train_loss[0]
    assert len(set(map(len, curve))) == 1


@pytest.mark.slow
def test_wrong_labels_are_answered_by_a_strong_penalty():
    x, labels = problem(n=300, d=120, noise=0.5)
    rng = np.random.default_rng(1)
    spoilt = np.where(rng.random(300) < 0.2, rng.integers(0, 3, 300), labels)
    folds = np.arange(300) // 3 % 5
    chosen = fit_logistic(x, spoilt, 3, folds_N=folds)
    weak = fit_logistic(x, spoilt, 3, penalties=(1e-4,))
    fresh, truth = problem(n=300, d=120, seed=0, noise=0.5)

    def accuracy(fit):
        return ((fresh @ fit.kernel + fit.bias).argmax(1) == truth).mean()

    assert chosen.penalty >= 0.1
    assert accuracy(chosen) > accuracy(weak) + 0.02


@pytest.mark.slow
def test_cross_validation_predicts_each_row_by_a_model_that_has_not_seen_it():
    x, labels = problem(n=30)
    folds = np.arange(30) // 3 % 5
    fit = fit_logistic(x, labels, 3, folds_N=folds)
    report = fit.cross_validation
    assert report is not None
    assert fit.penalty == report.penalties[int(np.argmin(report.losses))]
    held = folds == 2
    alone = fit_logistic(x[~held], labels[~held], 3, penalties=(fit.penalty,))
    expected = scipy.special.log_softmax(x[held] @ alone.kernel + alone.bias, axis=1)
    np.testing.assert_allclose(report.log_probabilities[held], expected, atol=2e-2)


@pytest.mark.slow
def test_rows_outside_the_folds_have_no_prediction():
    x, labels = problem(n=31)
    folds = np.arange(31) // 3 % 5
    folds[-1] = -1
    report = fit_logistic(x, labels, 3, folds_N=folds).cross_validation
    assert report is not None
    assert np.isnan(report.log_probabilities[-1]).all()
    assert np.isfinite(report.log_probabilities[:-1]).all()


@pytest.mark.slow
def test_the_same_call_gives_the_same_bits():
    x, labels = problem()
    folds = np.arange(60) // 3 % 5
    one, other = (fit_logistic(x, labels, 3, folds_N=folds) for _ in range(2))
    assert one.kernel.tobytes() == other.kernel.tobytes()
    assert one.bias.tobytes() == other.bias.tobytes()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balanced_weights_have_mean_one_and_give_classes_equal_weight(drawn):
    labels = np.array(drawn)
    weights = balanced_weights(labels, 5)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    if counts.max() > 3 * counts.min():
        totals = np.bincount(labels, weights=weights)
        np.testing.assert_allclose(totals[totals > 0], len(labels) / len(counts), rtol=1e-5)
    else:
        assert (weights == 1).all()


def test_bad_input_says_what_must_hold():
    x, labels = problem(n=6)
    with pytest.raises(InputError, match="to choose among 9 penalties, at least two folds"):
        fit_logistic(x, labels, 3)
    with pytest.raises(InputError, match="at least two folds must hold rows out"):
        fit_logistic(x, labels, 3, folds_N=np.zeros(6, int))
    x[4, 2] = np.nan
    with pytest.raises(InputError, match="features must be finite, row 4 and 0 others"):
        fit_logistic(x, labels, 3, penalties=(1.0,))
