from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import class_weights, ignore, mean, sparse_softmax_cross_entropy


def test_ignored_rows_are_no_part_of_the_mean() -> None:
    z = jnp.array([[0.0, 1.0], [5.0, 5.0], [2.0, 0.0]])
    raw = np.array([1, -100, 0])

    def value(z: Array) -> Array:
        labels, weights = ignore(raw)
        return mean(sparse_softmax_cross_entropy(z, labels), weights).value()

    want = np.mean([np.log1p(np.exp(-1.0)), np.log1p(np.exp(-2.0))])
    np.testing.assert_allclose(value(z), want, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(value)(z)[1], [0, 0])
    labels, weights = jax.jit(ignore)(jnp.array([3, -100], jnp.int8))
    np.testing.assert_array_equal(labels, [3, 0])
    np.testing.assert_array_equal(weights, [1, 0])


def test_ignore_forgives_one_id_only() -> None:
    labels, weights = ignore(np.array([0, -1, 2**32 - 100]))
    np.testing.assert_array_equal(weights, [1, 1, 1])
    with pytest.raises(InputError, match="row 1 has label -1 "):
        sparse_softmax_cross_entropy(jnp.zeros((3, 2)), labels)
    # 156 is what -100 wraps to.
    np.testing.assert_array_equal(ignore(jnp.array([156], jnp.uint8))[1], [1])
    with pytest.raises(InputError, match="labels must be integer class ids, got float32"):
        ignore(jnp.array([1.0]))


def test_class_weights_are_a_weighted_likelihood() -> None:
    z = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.5]], np.float32)
    labels, per_class = np.array([1, 0, 1]), np.array([3.0, 0.5], np.float32)
    losses = scipy.special.logsumexp(z.astype(np.float64), -1) - z[np.arange(3), labels]
    want = np.average(losses, weights=per_class[labels])
    weights = class_weights(jnp.asarray(labels), jnp.asarray(per_class))
    found = mean(sparse_softmax_cross_entropy(z, jnp.asarray(labels)), weights).value()
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (jnp.array([0, 2]), jnp.ones(2), "row 1 has label 2 "),
        (jnp.array([0, 1]), jnp.array([1.0, -2.0]), "non-negative and finite; row 1 has -2 "),
        (jnp.array([0, 1]), jnp.array([1.0, np.inf]), "non-negative and finite; row 1 has inf "),
        (jnp.array([0, 1]), jnp.ones((1, 2)), r"one per class, \[K\], got shape \(1, 2\)"),
        (jnp.array([0, 1]), jnp.ones(2, int), "weights must be float, got int32"),
        (jnp.array([0.0, 1.0]), jnp.ones(2), "integer class ids, got float32"),
    ],
)
def test_bad_class_weights(labels: Array, weights: Array, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_weights(labels, weights)


def test_bad_class_weights_are_nan_when_compiled() -> None:
    run = jax.jit(class_weights)
    np.testing.assert_array_equal(run(jnp.array([0, 2]), jnp.ones(2)), [1, np.nan])
    np.testing.assert_array_equal(run(jnp.array([0, 1]), jnp.array([1.0, -2.0])), [1, np.nan])
