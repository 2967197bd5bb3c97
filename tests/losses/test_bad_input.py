"""Each named loss, compiled, with a bad row: NaN in value and in every derivative of that row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import jgraph.losses
from jgraph import losses
from jgraph.losses import mean

NAN, INF = np.nan, np.inf
Z = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -2.0]], np.float32)
P = np.array([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]], np.float32)
X, ONES = Z[:, 0], np.ones(2, np.float32)
W = np.array([[0.5, -1.0], [1.0, 0.25], [0.0, 2.0]], np.float32)


class Case(NamedTuple):
    """A loss, good arguments of which the first has a gradient, and a bad second row of one."""

    loss: Callable[..., Array]
    arguments: tuple[Any, ...]
    spoilt: int
    bad: list[Any]


def ids(*, classes: int = 3) -> list[Any]:
    return [-1, classes, -100]


LABELS = np.array([2, 0])
NOT_PROBABILITIES = [[0.5, 0.5, 0.5], [-0.5, 1.0, 0.5], [NAN, 0.5, 0.5], [0.0, 0.0, 0.0]]
SHARES, SCALES = [-1.0, 1.7, 2.0, NAN], [0.0, -1.0, NAN, INF]
OPTIONS: Any = {"label_smoothing": 0.25, "temperature": 2.0}
CASES: dict[str, list[Case]] = {
    "sparse_softmax_cross_entropy": [
        Case(losses.sparse_softmax_cross_entropy, (Z, LABELS), 1, ids()),
        Case(losses.sparse_softmax_cross_entropy, (Z, LABELS), 0, [[-INF] * 3, [INF, INF, 0]]),
        Case(
            lambda z, y: losses.sparse_softmax_cross_entropy(z, y, **OPTIONS), (Z, LABELS), 1, ids()
        ),
    ],
    "softmax_cross_entropy": [Case(losses.softmax_cross_entropy, (Z, P), 1, NOT_PROBABILITIES)],
    "linear_softmax_cross_entropy": [
        Case(losses.linear_softmax_cross_entropy, (Z, W, LABELS % 2), 2, ids(classes=2))
    ],
    "sigmoid_cross_entropy": [Case(losses.sigmoid_cross_entropy, (X, ONES), 1, SHARES)],
    "weighted_cross_entropy": [
        Case(losses.weighted_cross_entropy, (X, ONES, ONES), 1, SHARES),
        Case(losses.weighted_cross_entropy, (X, ONES, ONES), 2, [-1.0, NAN, INF]),
    ],
    "focal": [Case(losses.focal, (X, ONES), 1, SHARES)],
    "hinge": [Case(losses.hinge, (X, ONES), 1, [*SHARES, 0.5])],
    "multiclass_focal": [Case(losses.multiclass_focal, (Z, LABELS), 1, ids())],
    "multiclass_hinge": [Case(losses.multiclass_hinge, (Z, LABELS), 1, ids())],
    "euclidean": [Case(losses.euclidean, (Z, P), 1, [[NAN, 0.0, 1.0]])],
    "ordinal": [Case(losses.ordinal, (Z, LABELS), 1, ids(classes=4))],
    "proportional_odds": [
        Case(lambda s, y: losses.proportional_odds(s, y, ONES), (X, LABELS), 1, ids())
    ],
    "normal_nll": [Case(losses.normal_nll, (X, X + 1, ONES), 2, SCALES)],
    "laplace_nll": [Case(losses.laplace_nll, (X, X + 1, ONES), 2, SCALES)],
    "huber": [Case(losses.huber, (X, X + 1, ONES), 2, SCALES)],
    "student_t_nll": [
        Case(losses.student_t_nll, (X, X + 1, ONES, ONES), i, SCALES) for i in (2, 3)
    ],
    "poisson_nll": [Case(losses.poisson_nll, (X, ONES), 1, [-1.0, 1.7, NAN, INF])],
    "nll": [
        Case(lambda z, y: losses.nll(losses.Categorical(z), y), (Z, LABELS), 1, ids()),
        Case(lambda z, y: losses.nll(losses.Bernoulli(z), y), (X, ONES), 1, [*SHARES, 0.5]),
        Case(lambda z, y: losses.nll(losses.Poisson(z), y), (X, ONES), 1, [-1.0, 0.5, NAN]),
    ],
    "cross_entropy": [
        Case(losses.cross_entropy, (P, P[::-1]), i, NOT_PROBABILITIES) for i in (0, 1)
    ],
    "kl": [
        Case(
            lambda x, s: losses.kl(losses.Normal(x, s), losses.Normal(x + 1, s)),
            (X, ONES),
            1,
            SCALES,
        )
    ],
    "entropy": [Case(losses.entropy, (P,), 0, NOT_PROBABILITIES)],
    "kl_divergence": [
        Case(losses.kl_divergence, (P, P[::-1]), i, NOT_PROBABILITIES) for i in (0, 1)
    ],
    "js_divergence": [
        Case(losses.js_divergence, (P, P[::-1]), i, NOT_PROBABILITIES) for i in (0, 1)
    ],
    "renyi_divergence": [
        Case(lambda p, q, a=a: losses.renyi_divergence(p, q, a), (P, P[::-1]), 1, NOT_PROBABILITIES)
        for a in (0.5, 2.0, INF)
    ],
    "wasserstein1": [Case(losses.wasserstein1, (P, P[::-1]), i, NOT_PROBABILITIES) for i in (0, 1)],
    "contrastive": [Case(losses.contrastive, (Z, P, ONES), 2, SHARES)],
    "triplet": [Case(lambda a, p: losses.triplet(a, p, -a), (Z, P), 1, [[NAN, 0.0, 1.0]])],
}
# Metrics have no gradient (test_metrics.py); the coupled losses poison every row
# (test_embedding.py); the others aren't losses of a row.
ELSEWHERE = {
    *("AUC", "auc", "CalibrationError", "calibration_error", "ConfusionMatrix", "confusion_matrix"),
    *("binary_confusion_matrix", "Perplexity", "perplexity", "accuracy", "top_k_accuracy"),
    *("info_nce", "nt_xent", "Mean", "mean", "ignore", "class_weights"),
    *("Bernoulli", "Categorical", "Laplace", "Normal", "Poisson", "StudentT"),
    *("LastLayer", "last_layer_laplace", "laplace_log_prior", "normal_log_prior", "map_objective"),
}
EACH = [pytest.param(c, id=f"{name}-{i}") for name, cs in CASES.items() for i, c in enumerate(cs)]


def test_no_public_loss_is_left_out() -> None:
    public = {n for n, v in vars(jgraph.losses).items() if not n.startswith("_") and callable(v)}
    assert public == ELSEWHERE | set(CASES)


def spoilt(case: Case) -> list[list[Any]]:
    """The arguments with each bad second row."""
    out = []
    for bad in case.bad:
        arguments = [np.array(a) for a in case.arguments]
        arguments[case.spoilt][1] = bad
        out.append([jnp.asarray(a) for a in arguments])
    return out


@pytest.mark.parametrize("case", EACH)
def test_a_bad_row_is_nan_in_value_and_gradient(case: Case) -> None:
    def derivatives(weights: Array, *a: Any) -> Any:
        def total(x: Array) -> Array:
            return (weights * case.loss(x, *a[1:])).sum()

        return case.loss(*a), jax.grad(total)(a[0])

    run = jax.jit(derivatives)
    for arguments in spoilt(case):
        value, slope = run(jnp.ones(2), *arguments)
        np.testing.assert_array_equal(jnp.isnan(value), [False, True])
        assert jnp.isnan(slope[1]).all(), (arguments, slope)
        assert jnp.isfinite(slope[0]).all()
        _, masked = run(jnp.array([1.0, 0.0]), *arguments)
        np.testing.assert_array_equal(masked, jnp.stack([slope[0], jnp.zeros_like(slope[1])]))


@pytest.mark.parametrize("case", EACH)
def test_a_bad_row_is_nan_in_any_direction(case: Case) -> None:
    if case.loss is losses.linear_softmax_cross_entropy:
        return  # has no forward mode, and says so: test_fused.py
    direction = jnp.zeros_like(jnp.asarray(case.arguments[0]))
    # A shift of the logits' or probabilities' weight: its sum over the row is 0.
    if direction.ndim == 2:
        direction = direction.at[:, 0].set(1.0).at[:, 2].set(-1.0)
    else:
        direction = direction + 1

    @jax.jit
    def forward(*a: Any) -> Any:
        return jax.jvp(lambda x: case.loss(x, *a[1:]), (a[0],), (direction,))

    for arguments in spoilt(case):
        value, slope = forward(*arguments)
        np.testing.assert_array_equal(jnp.isnan(value), [False, True])
        np.testing.assert_array_equal(jnp.isnan(slope), [False, True])


@pytest.mark.slow
def test_a_masked_bad_row_is_no_part_of_the_mean() -> None:
    weights = jnp.array([1.0, 0.0])
    for cases in CASES.values():
        case = cases[0]
        run = jax.jit(lambda *a, f=case.loss: (mean(f(*a), weights).value(), f(*a)[0]))
        found, _ = run(*spoilt(case)[0])
        _, good = run(*(jnp.asarray(a) for a in case.arguments))
        np.testing.assert_allclose(found, good, rtol=1e-6)


def test_fixed_logits_leak_nothing_either() -> None:
    # Their slopes are constants, which the compiler may multiply before anything else.
    z = jnp.array([[0.0, 1.0], [0.0, -INF]])
    q = jnp.array([[0.5, 0.5], [1.0, 0.0]])
    run = jax.jit(jax.grad(lambda q, w: mean(losses.softmax_cross_entropy(z, q), w).value()))
    found = run(q, jnp.array([1.0, 0.0]))
    assert jnp.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[1], [0, 0])
    other = jax.jit(jax.grad(lambda p, w: mean(losses.cross_entropy(p, q), w).value()))
    np.testing.assert_array_equal(other(q, jnp.array([1.0, 0.0]))[1], [0, 0])
