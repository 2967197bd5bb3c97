from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import (
    focal,
    mean,
    multiclass_focal,
    multiclass_hinge,
    ordinal,
    proportional_odds,
    sparse_softmax_cross_entropy,
)

INF = np.inf


def exact_focal(logits: np.ndarray, ids: np.ndarray, gamma: float) -> tuple[Any, Any]:
    """Loss and gradient of -(1 - p)^γ log p in 60 digits, by the quotient rule."""
    losses, slopes = [], []
    with mpmath.workdps(60):
        for row, i in zip(logits, ids, strict=True):
            e = [mpmath.exp(mpmath.mpf(float(x))) for x in row]
            total = mpmath.fsum(e)
            rest = mpmath.fsum(x for k, x in enumerate(e) if k != i) / total
            p, g = 1 - rest, mpmath.mpf(gamma)
            losses.append(float(-(rest**g) * mpmath.log(p)))
            per_p = g * rest ** (g - 1) * mpmath.log(p) - rest**g / p
            slopes.append([float(per_p * p * ((k == i) - x / total)) for k, x in enumerate(e)])
    return np.array(losses), np.array(slopes)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_and_its_gradient_to_a_millionth(gamma: float) -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([s * rng.standard_normal((4, 5)) for s in (0.01, 1, 10)]).astype(np.float32)
    ids = rng.integers(0, 5, 12).astype(np.int32)
    ids[[1, 5, 9]] = z[[1, 5, 9]].argmax(-1)  # sure and right, where 1 - p cancels
    want, want_slope = exact_focal(z, ids, gamma)

    def run(z: Array) -> Array:
        return multiclass_focal(z, jnp.asarray(ids), gamma)

    # (1 - p)^5 has five times the relative error of 1 - p.
    close: Any = {"rtol": 1e-6 * max(1, gamma), "atol": 1e-38}
    for found in (run(jnp.asarray(z)), jax.jit(run)(z)):
        np.testing.assert_allclose(found, want, **close)
    slope = jax.jit(jax.grad(lambda z: run(z).sum()))(z)
    np.testing.assert_allclose(slope, want_slope, **close)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_at_infinity_takes_the_limit(gamma: float) -> None:
    z = jnp.array([[INF, 0.0], [0.0, INF], [-INF, 0.0], [0.0, -INF], [INF, INF], [-INF, -INF]])
    y = jnp.zeros(6, int)
    loss, no = [0, INF, INF, 0, np.nan, np.nan], [np.nan, np.nan]
    np.testing.assert_array_equal(multiclass_focal(z, y, gamma), loss)
    slope = jax.jit(jax.grad(lambda z: multiclass_focal(z, y, gamma).sum()))(z)
    np.testing.assert_array_equal(slope, [[0, 0], [-1, 1], [-1, 1], [0, 0], no, no])


def test_focal_identities() -> None:
    z = 3 * jax.random.normal(jax.random.key(0), (6, 4))
    y = jnp.arange(6) % 4
    np.testing.assert_array_equal(multiclass_focal(z, y, 0), sparse_softmax_cross_entropy(z, y))
    # Of two classes it is the binary focal loss of the difference.
    two, answers = z[:, :2], y % 2
    binary = focal(two[:, 1] - two[:, 0], answers)
    np.testing.assert_allclose(multiclass_focal(two, answers), binary, rtol=2e-6)
    shifted = multiclass_focal(z + 3, y)
    np.testing.assert_allclose(shifted, multiclass_focal(z, y), rtol=1e-5)


@pytest.mark.slow
def test_focal_forward_mode_second_order_vmap_and_half_precision() -> None:
    z, y = jnp.array([[0.3, -2.0, 1.0], [0.0, 0.5, 0.0]]), jnp.array([1, 0])

    def total(z: Array) -> Array:
        return multiclass_focal(z, y).sum()

    np.testing.assert_allclose(
        jax.jit(jax.jacfwd(total))(z), jax.jit(jax.grad(total))(z), rtol=1e-6
    )
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(z, np.float64))
        step = 1e-5
        up, down = (jax.jit(jax.grad(total))(wide.at[0, 1].add(s)) for s in (step, -step))
        second = jax.jit(jax.hessian(total))(wide)[0, 1]
        np.testing.assert_allclose(second, (up - down) / (2 * step), atol=1e-9)
    np.testing.assert_allclose(jax.vmap(multiclass_focal)(z, y), multiclass_focal(z, y), rtol=1e-6)
    half = multiclass_focal(z.astype(jnp.bfloat16), y)
    assert half.dtype == jnp.float32
    rounded = z.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(half, multiclass_focal(rounded, y))
    assert multiclass_focal(jnp.zeros((0, 3)), jnp.zeros(0, int)).shape == (0,)
    with pytest.raises(InputError, match=r"gamma must lie in \[0, inf\), got -1"):
        multiclass_focal(z, y, -1.0)


@pytest.mark.slow
def test_hinge() -> None:
    z = jnp.array([[2.0, 1.5, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0], [-INF, 0.0, 1.0]])
    y = jnp.array([0, 2, 0, 0])
    np.testing.assert_array_equal(multiclass_hinge(z, y), [0.5, 3, 0, INF])
    slope = jax.grad(lambda z: multiclass_hinge(z, y).sum())(z)
    np.testing.assert_array_equal(slope, [[-1, 1, 0], [0, 1, -1], [0, 0, 0], [-1, 0, 1]])
    assert float(multiclass_hinge(jnp.zeros((1, 1)), jnp.array([0]))[0]) == 0


def cut(z: Array, y: Array) -> Array:
    """Proportional odds, with the last column of logits as scores: the row's own gradient."""
    return proportional_odds(z.sum(-1), y, jnp.array([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("loss", "extra"), [(ordinal, 1), (cut, 1), (multiclass_hinge, 0), (multiclass_focal, 0)]
)
def test_bad_labels_and_masked_rows(loss: Callable[..., Array], extra: int) -> None:
    run = jax.jit(lambda z, y: loss(z, y))
    grad = jax.jit(jax.grad(lambda z, y: loss(z, y).sum()))
    for label in (-1, 3 + extra, -100):
        y = jnp.array([0, label])
        with pytest.raises(InputError, match=rf"in \[0, {3 + extra}\).*row 1 has label {label} "):
            loss(jnp.zeros((2, 3)), y)
        np.testing.assert_array_equal(np.isnan(run(jnp.zeros((2, 3)), y)), [False, True])
        slope = grad(jnp.zeros((2, 3)), y)
        np.testing.assert_array_equal(np.isnan(slope), [[False] * 3, [True] * 3])
    z = jnp.array([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [jnp.nan, 0.0, INF]])
    weights = jnp.array([1.0, 0.0, 0.0])
    masked = jax.jit(jax.grad(lambda z, y: mean(loss(z, y), weights).value()))
    slope = masked(z, jnp.array([0, 99, 0]))
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[1:], np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"labels \(1,\) for logits"):
        loss(jnp.zeros((2, 3)), jnp.array([0]))
    with pytest.raises(InputError, match="integer class ids, got float32"):
        loss(jnp.zeros((2, 3)), jnp.zeros(2))


@pytest.mark.parametrize("loss", [ordinal, multiclass_hinge, multiclass_focal])
def test_wrong_logits(loss: Callable[..., Array]) -> None:
    with pytest.raises(InputError, match="must end in a class axis"):
        loss(jnp.zeros(()), jnp.zeros((), int))
    with pytest.raises(InputError, match="logits must be float"):
        loss(jnp.zeros((2, 3), int), jnp.zeros(2, int))
