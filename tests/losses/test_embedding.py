from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance as distance
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import contrastive, info_nce, mean, nt_xent, triplet

# A cosine of size 1 is exact to 1e-7 in float32; divided by a temperature of 0.1, to 1e-6.
CLOSE: Any = {"rtol": 1e-6, "atol": 2e-6}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 1 - distance.cdist(a.astype(np.float64), b.astype(np.float64), "cosine")


def info_nce_64(q: np.ndarray, k: np.ndarray, temperature: float) -> np.ndarray:
    s = cosines(q, k) / temperature
    return scipy.special.logsumexp(s, axis=1) - np.diag(s)


def nt_xent_64(a: np.ndarray, b: np.ndarray, temperature: float) -> np.ndarray:
    """Eq. 1 of the paper, view by view, over the 2N views in one list."""
    views, n = np.concatenate([a, b]), len(a)
    s = cosines(views, views) / temperature
    losses = [
        scipy.special.logsumexp(np.delete(s[i], i)) - s[i, (i + n) % (2 * n)] for i in range(2 * n)
    ]
    return (np.array(losses[:n]) + np.array(losses[n:])) / 2


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def turn(x: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """The slope for x of cosines whose slopes for x / |x| are given: what is across x, over |x|."""
    across = pull - (pull * unit(x)).sum(-1, keepdims=True) * unit(x)
    return across / np.linalg.norm(x, axis=-1, keepdims=True)


def info_nce_slopes_64(q: np.ndarray, k: np.ndarray, temperature: float) -> list[np.ndarray]:
    w = (scipy.special.softmax(cosines(q, k) / temperature, axis=1) - np.eye(len(q))) / temperature
    return [turn(q, w @ unit(k)), turn(k, w.T @ unit(q))]


def nt_xent_slopes_64(a: np.ndarray, b: np.ndarray, temperature: float) -> list[np.ndarray]:
    views, n = np.concatenate([a, b]), len(a)
    s = cosines(views, views) / temperature
    np.fill_diagonal(s, -np.inf)
    w = (scipy.special.softmax(s, axis=1) - np.roll(np.eye(2 * n), n, axis=1)) / (2 * temperature)
    slope = turn(views, (w + w.T) @ unit(views))
    return [slope[:n], slope[n:]]


SLOPES = {info_nce: info_nce_slopes_64, nt_xent: nt_xent_slopes_64}
COUPLED = [(info_nce, info_nce_64), (nt_xent, nt_xent_64)]


@pytest.mark.parametrize(("loss", "reference"), COUPLED)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_coupled_losses_equal_float64(
    loss: Callable[..., Array], reference: Callable[..., np.ndarray], temperature: float
) -> None:
    a, b = normal(5, 4), normal(5, 4, seed=1)
    for run in (loss, jax.jit(loss, static_argnames=())):
        found = run(jnp.asarray(a), jnp.asarray(b), temperature=temperature)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, reference(a, b, temperature), **CLOSE)
    run = jax.jit(jax.grad(lambda a, b: loss(a, b, temperature=temperature).sum(), (0, 1)))
    exact = SLOPES[loss](a.astype(np.float64), b.astype(np.float64), temperature)
    for slope, want in zip(run(a, b), exact, strict=True):
        # A slope is a sum of rows that partly cancel, each as exact as a cosine: 1e-7 of 1, over
        # the temperature, of which exp makes a relative error.
        terms = np.abs(want).max()
        np.testing.assert_allclose(slope, want, rtol=1e-6, atol=3e-7 * terms)


@pytest.mark.parametrize(("loss", "reference"), COUPLED)
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_the_length_of_an_embedding_changes_nothing(
    loss: Callable[..., Array], reference: Callable[..., np.ndarray], scale: float
) -> None:
    a, b = normal(4, 3), normal(4, 3, seed=1)
    found = loss(jnp.asarray(a * np.float32(scale)), jnp.asarray(b), temperature=0.5)
    np.testing.assert_allclose(found, reference(a, b, 0.5), **CLOSE)
    slope = jax.grad(lambda x: loss(x, jnp.asarray(b), temperature=0.5).sum())(
        jnp.asarray(a * np.float32(scale))
    )
    # Along the embedding itself the loss is constant.
    assert np.abs((np.asarray(slope, np.float64) * a * scale).sum(-1)).max() < 1e-5


@pytest.mark.parametrize(("loss", "reference"), COUPLED)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_coupled_half_precision_is_computed_in_float32(
    loss: Callable[..., Array], reference: Callable[..., np.ndarray], dtype: type
) -> None:
    a, b = jnp.asarray(normal(4, 3), dtype), jnp.asarray(normal(4, 3, seed=1), dtype)
    found = loss(a, b, temperature=0.5)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(np.asarray(a), np.asarray(b), 0.5), **CLOSE)
    assert jax.grad(lambda a: loss(a, b).sum())(a).dtype == dtype


@pytest.mark.parametrize(("loss", "_reference"), COUPLED)
@pytest.mark.parametrize("poison", [np.nan, np.inf, 0.0, 1e4])
def test_a_row_without_weight_is_neither_example_nor_negative(
    loss: Callable[..., Array], _reference: Any, poison: float
) -> None:
    a, b = jnp.asarray(normal(4, 3)), jnp.asarray(normal(4, 3, seed=1))
    w = jnp.array([1.0, 0.5, 0.0, 2.0])
    keep = np.array([0, 1, 3])

    def total(a: Array, b: Array, w: Array) -> Array:
        return mean(loss(a, b, weights=w), w).total

    bad_a, bad_b = a.at[2].set(poison), b.at[2].set(poison)
    found = jax.jit(jax.value_and_grad(total, (0, 1)))(bad_a, bad_b, w)
    without = jax.value_and_grad(total, (0, 1))(a[keep], b[keep], w[keep])
    np.testing.assert_allclose(found[0], without[0], **CLOSE)
    for slope, want in zip(found[1], without[1], strict=True):
        np.testing.assert_allclose(slope[keep], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(slope[2], np.zeros(3))


@pytest.mark.parametrize(("loss", "_reference"), COUPLED)
def test_coupled_edges(loss: Callable[..., Array], _reference: Any) -> None:
    assert loss(jnp.zeros((0, 3)), jnp.zeros((0, 3))).shape == (0,)
    assert float(loss(jnp.ones((1, 3)), -jnp.ones((1, 3)))[0]) == 0.0  # nothing to confuse it with
    nobody = loss(jnp.ones((2, 3)), jnp.zeros((2, 3)), weights=jnp.zeros(2))
    np.testing.assert_array_equal(nobody, [0, 0])
    a, b = jnp.asarray(normal(3, 2)), jnp.asarray(normal(3, 2, seed=1))
    second = jax.jit(jax.hessian(lambda a: loss(a, b).sum()))(a)  # forward over reverse
    np.testing.assert_allclose(second, jnp.transpose(second, (2, 3, 0, 1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("loss", "_reference"), COUPLED)
def test_a_row_of_zeros_raises_when_known_and_is_nan_when_compiled(
    loss: Callable[..., Array], _reference: Any
) -> None:
    a, b = jnp.ones((3, 2)), jnp.ones((3, 2)).at[1].set(0)
    with pytest.raises(InputError, match=r"must have a direction.*row 1 has 0 \(1 of 3"):
        loss(a, b)
    assert jnp.isnan(jax.jit(loss)(a, b)).all()  # every row is compared with it
    assert jnp.isnan(jax.jit(jax.grad(lambda a: loss(a, b).sum()))(a)).all()


@pytest.mark.parametrize(("loss", "_reference"), COUPLED)
@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_temperature_is_positive(
    loss: Callable[..., Array], _reference: Any, temperature: float
) -> None:
    a = jnp.asarray(normal(3, 2))
    with pytest.raises(InputError, match="temperature must be positive; it has"):
        loss(a, a, temperature=temperature)
    run = jax.jit(lambda a, t: loss(a, a, temperature=t).sum())
    assert jnp.isnan(run(a, temperature))
    assert jnp.isnan(jax.jit(jax.grad(run))(a, temperature)).all()
    with pytest.raises(InputError, match=r"temperature must be a scalar, got shape \(1,\)"):
        loss(a, a, temperature=jnp.ones(1))


def test_a_learned_temperature_has_the_right_gradient() -> None:
    a, b = normal(4, 3), normal(4, 3, seed=1)
    found = jax.jit(jax.grad(lambda t: info_nce(a, b, temperature=t).sum()))(0.5)
    s = cosines(a, b)
    p = scipy.special.softmax(s / 0.5, axis=1)
    want = -((p - np.eye(4)) * s).sum() / 0.5**2
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize(("loss", "_reference"), COUPLED)
@pytest.mark.parametrize(
    ("a", "b", "weights", "message"),
    [
        (jnp.ones((2, 3), int), jnp.ones((2, 3)), None, r"must be float, got int32.*\(2, 3\)"),
        (jnp.ones((2, 3)), jnp.ones((2, 3), bool), None, "must be float, got bool"),
        (jnp.ones(3), jnp.ones(3), None, r"one batch \[N, D\], got shape \(3,\)"),
        (jnp.ones(()), jnp.ones(()), None, r"feature axis \[\.\.\., D\], got shape \(\)"),
        (jnp.ones((2, 0)), jnp.ones((2, 0)), None, r"feature axis.*got shape \(2, 0\)"),
        (jnp.ones((2, 3)), jnp.ones((1, 3)), None, r"\(1, 3\) and \w+ \(2, 3\)"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(1), r"weights \(1,\).*\(2,\)"),
    ],
)
def test_coupled_losses_refuse_wrong_shapes_and_types(
    loss: Callable[..., Array], _reference: Any, a: Array, b: Array, weights: Any, message: str
) -> None:
    for run in (loss, jax.jit(loss)):
        with pytest.raises(InputError, match=message):
            run(a, b, weights=weights)


@pytest.mark.parametrize(("loss", "_reference"), COUPLED)
def test_a_mapped_axis_is_named_or_refused(loss: Callable[..., Array], _reference: Any) -> None:
    a, b = jnp.asarray(normal(8, 2, 3)), jnp.asarray(normal(8, 2, 3, seed=1))
    message = r"compares the rows of the whole batch.*mapped axes \('replica',\).*axis_name="
    with pytest.raises(InputError, match=message):
        jax.pmap(loss, axis_name="replica")(a, b)
    alone = jax.pmap(lambda a, b: loss(a, b, axis_name=()), axis_name="replica")(a, b)
    want = jnp.stack([loss(x, y) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(alone, want, **CLOSE)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(5)))
def test_the_order_of_the_batch_changes_nothing(order: list[int]) -> None:
    a, b = jnp.asarray(normal(5, 3)), jnp.asarray(normal(5, 3, seed=1))
    for loss in (info_nce, nt_xent):
        index = np.array(order)
        np.testing.assert_allclose(loss(a[index], b[index]), loss(a, b)[index], **CLOSE)


def test_equal_rows_are_as_good_as_chance() -> None:
    a = jnp.ones((6, 3))
    np.testing.assert_allclose(info_nce(a, a), np.log(6), rtol=1e-6)
    np.testing.assert_allclose(nt_xent(a, a), np.log(11), rtol=1e-6)


def triplet_64(a: Any, p: Any, n: Any, margin: float) -> np.ndarray:
    a, p, n = (np.asarray(x, np.float64) for x in (a, p, n))
    return np.maximum(0, ((a - p) ** 2).sum(-1) - ((a - n) ** 2).sum(-1) + margin)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_triplet_equals_float64(scale: float) -> None:
    a, p, n = (scale * normal(2, 6, 4, seed=i) for i in range(3))
    args = [jnp.asarray(x) for x in (a, p, n)]
    want = triplet_64(a, p, n, 0.5)
    # A difference of two squares: as exact as they are.
    squares = ((a - p) ** 2).sum(-1).max()
    np.testing.assert_allclose(triplet(*args, margin=0.5), want, rtol=1e-6, atol=1e-7 * squares)
    found = jax.jit(jax.grad(lambda *x: triplet(*x, margin=0.5).sum(), (0, 1, 2)))(*args)
    active = (want > 0)[..., None]
    for slope, exact in zip(found, (2 * (n - p), 2 * (p - a), 2 * (a - n)), strict=True):
        np.testing.assert_allclose(slope, active * exact, rtol=1e-6, atol=1e-6 * scale)


def test_triplet_extremes() -> None:
    one = jnp.ones((1, 2))
    grad = jax.grad(lambda *x: triplet(*x).sum(), (0, 1, 2))
    far = jnp.full((1, 2), jnp.inf)
    assert float(triplet(one, one, far)[0]) == 0.0  # infinitely far away is far enough
    for slope in grad(one, one, far):
        np.testing.assert_array_equal(slope, [[0, 0]])
    assert float(triplet(one, far, one)[0]) == np.inf
    assert jnp.isnan(triplet(far, far, one)[0])
    assert jnp.isnan(triplet(one, jnp.full((1, 2), jnp.nan), one)[0])
    assert triplet(*[jnp.zeros((0, 2))] * 3).shape == (0,)
    assert triplet(*[jnp.zeros((2, 2), jnp.bfloat16)] * 3).dtype == jnp.float32
    # At equal distances the loss is the margin, with a gradient that parts them.
    assert float(triplet(one, 0 * one, 2 * one, margin=0.25)[0]) == 0.25


def test_a_masked_triplet_leaks_nothing() -> None:
    a, p, n = (jnp.asarray(normal(3, 2, seed=i)).at[1].set(jnp.nan) for i in range(3))
    w = jnp.array([1.0, 0.0, 1.0])
    value, slopes = jax.jit(
        jax.value_and_grad(lambda *x: mean(triplet(*x, margin=100.0), w).value(), (0, 1, 2))
    )(a, p, n)
    assert jnp.isfinite(value)
    for slope in slopes:
        np.testing.assert_array_equal(slope[1], [0, 0])
        assert jnp.isfinite(slope).all()


def contrastive_64(a: Any, b: Any, same: Any, margin: float) -> np.ndarray:
    d = np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64), axis=-1)
    return same * d**2 + (1 - same) * np.maximum(0, margin - d) ** 2


def test_contrastive_equals_float64() -> None:
    a, b = normal(40, 3), normal(40, 3, seed=1)
    same = np.arange(40) % 2
    want = contrastive_64(a, b, same, 2.0)
    assert (want[same == 0] == 0).any()  # some beyond the margin
    assert (want[same == 0] > 0).any()
    for run in (contrastive, jax.jit(contrastive, static_argnames="margin")):
        found = run(jnp.asarray(a), jnp.asarray(b), jnp.asarray(same), margin=2.0)
        np.testing.assert_allclose(found, want, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda a: contrastive(a, b, same, margin=2.0).sum()))(jnp.asarray(a))
    gap, like = a.astype(np.float64) - b, same[:, None]
    d = np.linalg.norm(gap, axis=-1, keepdims=True)
    want = 2 * like * gap - 2 * (1 - like) * np.maximum(0, 2 - d) * gap / d
    np.testing.assert_allclose(slope, want, rtol=1e-6)
    soft = contrastive(jnp.asarray(a), jnp.asarray(b), jnp.full(40, 0.25))
    np.testing.assert_allclose(soft, contrastive_64(a, b, 0.25, 1.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("gap", "same", "loss", "slope"),
    [
        (0.0, 1, 0.0, 0.0),
        (0.0, 0, 1.0, 0.0),  # no direction to part in
        (1e4, 1, 1e8, 2e4),
        (1e4, 0, 0.0, 0.0),
        (np.inf, 0, 0.0, 0.0),
        (np.inf, 1, np.inf, np.inf),
        (-np.inf, 1, np.inf, -np.inf),
        (np.nan, 0, np.nan, np.nan),
    ],
)
def test_contrastive_extremes(gap: float, same: int, loss: float, slope: float) -> None:
    a, b, y = jnp.array([[gap]], jnp.float32), jnp.zeros((1, 1)), jnp.array([same])
    np.testing.assert_allclose(contrastive(a, b, y), [loss], rtol=1e-6)
    found = jax.grad(lambda a: contrastive(a, b, y).sum())(a)
    np.testing.assert_allclose(found, [[slope]], rtol=1e-6)


def test_contrastive_refuses_what_is_no_share() -> None:
    a, b, y = jnp.ones((3, 2)), jnp.zeros((3, 2)), jnp.array([1.0, 1.5, 0.0])
    with pytest.raises(InputError, match=r"same must lie in \[0, 1\]; row 1 has 1\.5 \(1 of 3"):
        contrastive(a, b, y)
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(contrastive)))(a, b, y)
    np.testing.assert_array_equal(jnp.isnan(found), [False, True, False])
    np.testing.assert_array_equal(jnp.isnan(slope).all(-1), [False, True, False])
    with pytest.raises(InputError, match=r"same \(1,\).*\(3,\)"):
        contrastive(a, b, jnp.ones(1))


def test_uncoupled_losses_refuse_wrong_shapes_types_and_margins() -> None:
    a, y = jnp.ones((2, 3)), jnp.ones(2)
    for run in (
        lambda x, **k: triplet(a, x, a, **k),
        lambda x, **k: triplet(a, a, x, **k),
        lambda x, **k: contrastive(a, x, y, **k),
    ):
        with pytest.raises(InputError, match=r"\(1, 3\) and \w+ \(2, 3\)"):
            run(jnp.ones((1, 3)))
        with pytest.raises(InputError, match="must be float, got int32"):
            run(jnp.ones((2, 3), int))
        with pytest.raises(InputError, match=r"margin must lie in \[0"):
            run(a, margin=-1.0)
    with pytest.raises(InputError, match=r"anchors must end in a feature axis"):
        triplet(jnp.ones(()), jnp.ones(()), jnp.ones(()))


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(-10, 10, width=32)))
def test_moving_all_embeddings_changes_no_distance(x: np.ndarray) -> None:
    a, p, n = jnp.asarray(x)
    moved = triplet(a + 3, p + 3, n + 3)
    np.testing.assert_allclose(moved, triplet(a, p, n), rtol=1e-4, atol=1e-3)


def test_forward_mode_and_vmap() -> None:
    a, p, n = (jnp.asarray(normal(5, 3, seed=i)) for i in range(3))
    np.testing.assert_allclose(jax.vmap(triplet)(a, p, n), triplet(a, p, n), rtol=1e-6)
    reverse = jax.jit(jax.grad(lambda a: triplet(a, p, n).sum()))(a)
    forward = jax.jit(jax.jacfwd(lambda a: triplet(a, p, n).sum()))(a)
    np.testing.assert_allclose(forward, reverse, rtol=1e-6)
