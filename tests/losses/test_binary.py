from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import (
    focal,
    hinge,
    mean,
    sigmoid_cross_entropy,
    weighted_cross_entropy,
)

INF = np.inf
# The smallest float32 that isn't subnormal: below, digits are lost one by one.
SMALLEST = 1.2e-38
EXACT = Callable[[Any, Any], Any]


def exact_sigmoid(z: Any, y: Any, w: float = 1.0) -> Any:
    return w * y * mpmath.log1p(mpmath.exp(-z)) + (1 - y) * mpmath.log1p(mpmath.exp(z))


def exact_focal(gamma: float, yes: float, no: float) -> EXACT:
    def loss(z: Any, y: Any) -> Any:
        p = 1 / (1 + mpmath.exp(-z))
        fade_yes, fade_no = (1 / (1 + mpmath.exp(s * z)) for s in (1, -1))
        return -yes * y * fade_yes**gamma * mpmath.log(p) - no * (
            1 - y
        ) * fade_no**gamma * mpmath.log(fade_yes)

    return loss


LOSSES: dict[str, tuple[Callable[[Any, Any], Array], EXACT]] = {
    "sigmoid": (sigmoid_cross_entropy, exact_sigmoid),
    "weighted": (
        lambda z, y: weighted_cross_entropy(z, y, 3.0),
        lambda z, y: exact_sigmoid(z, y, 3.0),
    ),
    "focal": (focal, exact_focal(2.0, 1.0, 1.0)),
    "focal 0.5": (
        lambda z, y: focal(z, y, gamma=0.5, alpha=0.25),
        exact_focal(0.5, 0.25, 0.75),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_to_a_millionth(name: str) -> None:
    loss, exact = LOSSES[name]
    z = np.repeat(np.array([-1e4, -80, -20, -3, -0.5, 0, 1e-3, 2, 15, 60, 1e4], np.float32), 3)
    y = np.tile(np.array([0, 0.25, 1], np.float32), 11)
    pairs = [(mpmath.mpf(float(a)), mpmath.mpf(float(b))) for a, b in zip(z, y, strict=True)]
    # log1p(exp(-1e4)) needs as many digits as exp has zeros.
    with mpmath.workdps(50):
        want = np.array([float(exact(a, b)) for a, b in pairs])
        slope = np.array([float(mpmath.diff(lambda t, b=b: exact(t, b), a)) for a, b in pairs])
    for found in (loss(z, y), jax.jit(loss)(z, y)):
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=SMALLEST)
    found = jax.jit(jax.grad(lambda z: loss(z, y).sum()))(z)
    hard = (y == 0) | (y == 1)
    np.testing.assert_allclose(found[hard], slope[hard], rtol=1e-6, atol=SMALLEST)
    # A soft label's slope is a difference of terms of size 1, which are equal where the network
    # agrees: there no digits are left.
    np.testing.assert_allclose(found[~hard], slope[~hard], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", [*LOSSES, "hinge"])
def test_half_precision_is_computed_in_float32(name: str, dtype: type) -> None:
    loss = hinge if name == "hinge" else LOSSES[name][0]
    z = jnp.linspace(-6, 6, 9).astype(dtype)
    y = jnp.arange(9, dtype=jnp.int32) % 2
    wide = loss(z.astype(jnp.float32), y)
    found = loss(z, y)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, wide)
    np.testing.assert_array_equal(loss(z, y.astype(dtype)), wide)
    slope = jax.grad(lambda z: loss(z, y).sum())
    assert slope(z).dtype == dtype
    want = slope(z.astype(jnp.float32))
    np.testing.assert_array_equal(slope(z), want.astype(dtype))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("z", "y", "value", "slope"),
    [(INF, 1, 0.0, 0.0), (-INF, 0, 0.0, 0.0), (INF, 0, INF, 1.0), (-INF, 1, INF, -1.0)],
)
def test_infinite_logits_take_the_limit(
    name: str, z: float, y: int, value: float, slope: float
) -> None:
    loss, _ = LOSSES[name]
    scale = {"weighted": 3.0 if y else 1.0, "focal 0.5": 0.25 if y else 0.75}.get(name, 1.0)
    x, label = jnp.array([z]), jnp.array([y])
    np.testing.assert_array_equal(loss(x, label), [value])
    np.testing.assert_array_equal(jax.grad(lambda x: loss(x, label).sum())(x), [scale * slope])


ALL = {name: pair[0] for name, pair in LOSSES.items()} | {"hinge": hinge}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("label", [-1.0, 1.7, 2.0, np.nan])
def test_a_label_that_is_no_probability(name: str, label: float) -> None:
    loss = ALL[name]
    z, y = jnp.zeros(3), jnp.array([0.0, label, 1.0])
    with pytest.raises(InputError, match=rf"labels must .*; row 1 has {label:g} \(1 of 3 do not"):
        loss(z, y)
    np.testing.assert_array_equal(np.isnan(jax.jit(loss)(z, y)), [False, True, False])
    slope = jax.jit(jax.grad(lambda z, y: loss(z, y).sum()))(z, y)
    np.testing.assert_array_equal(np.isnan(slope), [False, True, False])


@pytest.mark.parametrize("name", ALL)
def test_a_masked_row_leaks_nothing(name: str) -> None:
    loss = ALL[name]
    z = jnp.array([0.0, 0.0, jnp.nan, INF, -INF])
    y = jnp.array([1.0, 7.0, 1.0, 0.0, 1.0])
    weights = jnp.array([1.0, 0, 0, 0, 0])

    def value(z: Array, y: Array) -> Array:
        return mean(loss(z, y), weights).value()

    assert jnp.isfinite(jax.jit(value)(z, y))
    slope = jax.jit(jax.grad(value))(z, y)
    assert jnp.isfinite(slope[0])
    assert slope[0] < 0
    np.testing.assert_array_equal(slope[1:], np.zeros(4))


@pytest.mark.parametrize("name", ALL)
def test_wrong_shapes_and_types(name: str) -> None:
    loss = ALL[name]
    for run in (loss, jax.jit(loss)):
        for shape in ((), (1,), (3, 1)):
            with pytest.raises(InputError, match=r"got labels .* and logits \(3,\)"):
                run(jnp.zeros(3), jnp.zeros(shape))
        with pytest.raises(InputError, match=r"logits must be float, got int32 of shape \(3,\)"):
            run(jnp.zeros(3, int), jnp.zeros(3))
        assert run(jnp.zeros((0, 4)), jnp.zeros((0, 4))).shape == (0, 4)
        assert run(jnp.zeros(2, jnp.bfloat16), jnp.array([True, False])).dtype == jnp.float32


def test_identities() -> None:
    z = jax.random.normal(jax.random.key(0), (4, 3)) * 5
    y = jax.random.uniform(jax.random.key(1), (4, 3))
    plain = sigmoid_cross_entropy(z, y)
    np.testing.assert_allclose(weighted_cross_entropy(z, y, 1.0), plain, rtol=1e-6)
    np.testing.assert_allclose(focal(z, y, gamma=0), plain, rtol=1e-6)
    np.testing.assert_allclose(sigmoid_cross_entropy(-z, 1 - y), plain, rtol=2e-6)
    # One question of two answers is a softmax over (0, z).
    two = scipy.special.logsumexp(np.stack([np.zeros(12), np.ravel(z)]), axis=0)
    np.testing.assert_allclose(np.ravel(plain), two - np.ravel(y) * np.ravel(z), rtol=2e-5)
    per_class = weighted_cross_entropy(z, y, jnp.array([1.0, 2.0, 4.0]))
    for k, w in enumerate((1.0, 2.0, 4.0)):
        np.testing.assert_array_equal(per_class[:, k], weighted_cross_entropy(z[:, k], y[:, k], w))


@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_second_order_and_vmap(name: str) -> None:
    loss, _ = LOSSES[name]
    z, y = jnp.array([0.3, -2.0]), jnp.array([1.0, 0.0])
    _, forward = jax.jvp(lambda z: loss(z, y), (z,), (jnp.ones(2),))
    np.testing.assert_allclose(forward, jax.grad(lambda z: loss(z, y).sum())(z), rtol=1e-6)
    with jax.enable_x64(True):
        # Central differences of float64 slopes.
        slope = jax.jit(jax.grad(lambda z: loss(z, y).sum()))
        wide, step = np.asarray(z, np.float64), 1e-5
        second = jax.jit(jax.hessian(lambda z: loss(z, y).sum()))(wide)
        want = (slope(wide + step) - slope(wide - step)) / (2 * step)
        np.testing.assert_allclose(np.diag(second), want, rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(loss)(z, y), loss(z, y))


def test_the_weight_of_a_yes() -> None:
    z, y = jnp.zeros((2, 3)), jnp.ones((2, 3))
    with pytest.raises(InputError, match=r"one weight per class, \(3,\), got pos_weight \(2,\)"):
        weighted_cross_entropy(z, y, jnp.ones(2))
    for bad in (-1.0, INF, np.nan):
        with pytest.raises(InputError, match=rf"pos_weight must be non-negative.*it has {bad:g}"):
            weighted_cross_entropy(z, y, bad)
        assert jnp.isnan(jax.jit(weighted_cross_entropy)(z, y, bad)).all()
    slope = jax.grad(lambda w: weighted_cross_entropy(z, y, w).sum())(2.0)
    np.testing.assert_allclose(slope, 6 * np.log(2), rtol=1e-6)


def test_focal_options() -> None:
    z, y = jnp.zeros(1), jnp.ones(1)
    with pytest.raises(InputError, match=r"gamma must lie in \[0, inf\), got -1"):
        focal(z, y, gamma=-1.0)
    with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\], got 2"):
        focal(z, y, alpha=2.0)


def test_hinge() -> None:
    z = jnp.array([0.5, 2.0, -3.0, -0.25, INF, -INF])
    y = jnp.array([1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(hinge(z, y), [0.5, 0, 4, 0.75, INF, 0])
    slope = jax.grad(lambda z: hinge(z, y).sum())(z)
    np.testing.assert_array_equal(slope, [-1, 0, -1, 1, 1, 0])
