from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import mean, sparse_softmax_cross_entropy

# float32 has 24 bits: a loss of size 1 is exact to 1e-7, the sum over K classes to a few of those.
RELATIVE = 1e-6


def reference(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient in float64, by scipy and the textbook formula softmax - one_hot."""
    z = logits.astype(np.float64)
    chosen = np.take_along_axis(z, labels[..., None].astype(np.int64), -1)[..., 0]
    loss = scipy.special.logsumexp(z, axis=-1) - chosen
    return loss, scipy.special.softmax(z, axis=-1) - np.eye(z.shape[-1])[labels]


def gradient(logits: Array, labels: Array) -> Array:
    return jax.grad(lambda z: sparse_softmax_cross_entropy(z, labels).sum())(logits)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 11), (4, 1), (0, 3)])
def test_equals_float64(shape: tuple[int, ...], scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = (scale * rng.standard_normal(shape)).astype(np.float32)
    labels = rng.integers(0, shape[-1], shape[:-1], dtype=np.int32)
    want, want_gradient = reference(logits, labels)
    for run in (sparse_softmax_cross_entropy, jax.jit(sparse_softmax_cross_entropy)):
        loss = run(jnp.asarray(logits), jnp.asarray(labels))
        assert loss.dtype == jnp.float32
        # Absolute, too: log(1 + tiny) rounds at 1 before the logarithm.
        np.testing.assert_allclose(loss, want, rtol=RELATIVE, atol=2e-7)
    found = gradient(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, want_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype: type) -> None:
    logits = jnp.linspace(-3, 3, 2000).reshape(2, 1000).astype(dtype)
    labels = jnp.array([3, 999])
    want, want_gradient = reference(np.asarray(logits, np.float64), np.asarray(labels))
    loss = sparse_softmax_cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, want, rtol=RELATIVE)
    found = gradient(logits, labels)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), want_gradient, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "loss", "slope"),
    [
        ([0.0, -np.inf], 0.0, [0.0, 0.0]),  # the other class is impossible
        ([-np.inf, 0.0], np.inf, [-1.0, 1.0]),  # the label is impossible
        ([-1e4, 1e4], 2e4, [-1.0, 1.0]),
        ([1e4, -1e4], 0.0, [0.0, 0.0]),
        ([3e38, -3e38], 0.0, [0.0, 0.0]),
    ],
)
def test_extreme_logits(logits: list[float], loss: float, slope: list[float]) -> None:
    z, label = jnp.array(logits), jnp.array(0)
    assert float(sparse_softmax_cross_entropy(z, label)) == loss
    np.testing.assert_array_equal(gradient(z, label), slope)


def test_no_distribution_is_nan() -> None:
    assert jnp.isnan(sparse_softmax_cross_entropy(jnp.full((3,), -jnp.inf), jnp.array(0)))
    assert jnp.isnan(sparse_softmax_cross_entropy(jnp.array([jnp.nan, 0.0]), jnp.array(1)))


@pytest.mark.parametrize("label", [-1, 3, -100, 2**31 - 1])
def test_bad_label_raises_when_known_and_poisons_when_compiled(label: int) -> None:
    logits, labels = jnp.zeros((3, 3)), jnp.array([0, label, 2])
    message = rf"in \[0, 3\).*row 1 has label {label} \(1 of 3 labels are outside\)"
    with pytest.raises(ValueError, match=message):
        sparse_softmax_cross_entropy(logits, labels)
    with pytest.raises(ValueError, match=message), jax.disable_jit():
        jax.grad(lambda z: sparse_softmax_cross_entropy(z, labels).sum())(logits)

    loss, slope = jax.jit(sparse_softmax_cross_entropy), jax.jit(gradient)
    np.testing.assert_array_equal(jnp.isnan(loss(logits, labels)), [False, True, False])
    np.testing.assert_array_equal(
        jnp.isnan(slope(logits, labels)), np.array([[False], [True], [False]]).repeat(3, 1)
    )


def test_bad_label_names_its_whole_index() -> None:
    with pytest.raises(InputError, match=r"row \(1, 0\) has label 9 \(1 of 4"):
        sparse_softmax_cross_entropy(jnp.zeros((2, 2, 4)), jnp.array([[0, 1], [9, 2]]))


def test_wide_numpy_labels_are_not_narrowed_to_a_class() -> None:
    with pytest.raises(InputError, match=f"label {2**32 + 1}"):
        sparse_softmax_cross_entropy(np.zeros((1, 3), np.float32), np.array([2**32 + 1]))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32])
def test_narrow_labels_do_not_wrap(dtype: type) -> None:
    logits = jnp.arange(300.0)[None]
    want, _ = reference(np.arange(300.0)[None], np.array([44]))
    loss = sparse_softmax_cross_entropy(logits, jnp.array([44], dtype))
    np.testing.assert_allclose(loss, want, rtol=RELATIVE)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (jnp.zeros((2, 3), jnp.int32), jnp.zeros(2, jnp.int32), r"float, got int32.*\(2, 3\)"),
        (jnp.zeros(()), jnp.zeros((), jnp.int32), r"class axis \[\.\.\., K\], got shape \(\)"),
        (jnp.zeros((2, 0)), jnp.zeros(2, jnp.int32), r"class axis.*shape \(2, 0\)"),
        (jnp.zeros((2, 3)), jnp.zeros(2), r"integer class ids, got float32.*\(2,\).*\(2, 3\)"),
        (jnp.zeros((2, 3)), jnp.zeros(2, bool), "integer class ids, got bool"),
        (jnp.zeros((2, 3)), jnp.zeros((2, 1), jnp.int32), r"\(2,\), got labels \(2, 1\).*\(2, 3\)"),
        (jnp.zeros((2, 3)), jnp.zeros((), jnp.int32), r"\(2,\), got labels \(\)"),
        (jnp.zeros((2, 3)), jnp.zeros(1, jnp.int32), r"\(2,\), got labels \(1,\)"),
    ],
)
def test_wrong_shapes_and_types_raise_at_trace_time(
    logits: Array, labels: Array, message: str
) -> None:
    for run in (sparse_softmax_cross_entropy, jax.jit(sparse_softmax_cross_entropy)):
        with pytest.raises(InputError, match=message):
            run(logits, labels)


@pytest.mark.slow
def test_forward_mode_and_second_order() -> None:
    z, label = jnp.array([0.3, -1.0, 2.0]), jnp.array(1)
    p = scipy.special.softmax(np.asarray(z, np.float64))
    found = jax.hessian(lambda z: sparse_softmax_cross_entropy(z, label))(z)  # forward over reverse
    np.testing.assert_allclose(found, np.diag(p) - np.outer(p, p), atol=1e-6)
    _, slope = jax.jvp(lambda z: sparse_softmax_cross_entropy(z, label), (z,), (jnp.ones(3),))
    assert abs(float(slope)) < 1e-6


@pytest.mark.slow
def test_vmap_equals_batch() -> None:
    z = jax.random.normal(jax.random.key(0), (4, 5))
    labels = jnp.array([0, 4, 2, 2])
    one_by_one = jax.vmap(sparse_softmax_cross_entropy)(z, labels)
    np.testing.assert_array_equal(one_by_one, sparse_softmax_cross_entropy(z, labels))


@settings(deadline=None, max_examples=25)
@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32)),
    st.integers(-1000, 1000),
)
def test_a_shift_of_the_logits_changes_nothing(logits: np.ndarray, shift: int) -> None:
    labels = jnp.array([0, 1, 3])
    shifted = sparse_softmax_cross_entropy(jnp.asarray(logits) + shift, labels)
    # Adding 1000 rounds a logit to 6e-5.
    plain = sparse_softmax_cross_entropy(jnp.asarray(logits), labels)
    np.testing.assert_allclose(shifted, plain, atol=3e-4)


def test_maximum_likelihood_recovers_frequencies() -> None:
    labels = jnp.array([0, 0, 0, 1])

    def objective(z: Array) -> Array:
        return mean(sparse_softmax_cross_entropy(jnp.tile(z, (4, 1)), labels)).value()

    z = jnp.log(jnp.array([0.75, 0.25]))
    np.testing.assert_allclose(jax.grad(objective)(z), [0, 0], atol=1e-7)
    # The entropy of (3/4, 1/4), in nats.
    np.testing.assert_allclose(objective(z), 0.5623351446188083, rtol=RELATIVE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [2 * (jax.sharding.AxisType.Auto,), 2 * (jax.sharding.AxisType.Explicit,)], ids=str
)
@pytest.mark.parametrize("spec", [P(("a", "b"), None), P("a", "b"), P(None, ("a", "b"))], ids=str)
def test_split_rows_and_classes_equal_one_device(spec: P, kinds: Any) -> None:
    z = jax.random.normal(jax.random.key(0), (8, 16))
    labels = jnp.arange(8, dtype=jnp.int32) * 2
    step = jax.value_and_grad(lambda z, y: sparse_softmax_cross_entropy(z, y).mean())
    want, want_slope = step(z, labels)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=kinds)
    with jax.set_mesh(mesh):
        split = jax.device_put(z, NamedSharding(mesh, spec))
        found, slope = jax.jit(step)(split, jax.device_put(labels, NamedSharding(mesh, P(spec[0]))))
        compiled = jax.jit(step).lower(split, labels).compile().as_text()
    np.testing.assert_allclose(found, want, rtol=RELATIVE)
    np.testing.assert_allclose(slope, want_slope, rtol=RELATIVE, atol=1e-9)
    # The label's logit is found where it lies: logits split over classes are not brought together.
    assert compiled is not None
    assert "all-gather" not in compiled


def test_a_bad_row_has_a_bad_tangent_in_every_direction() -> None:
    z, labels = jnp.zeros((3, 2)), jnp.array([0, 2, 1])
    # Along (1, -1) the slopes of a row cancel; what is undefined stays so.
    direction = jnp.array([[1.0, -1.0], [1.0, -1.0], [0.0, 0.0]])

    def run(z: Array, labels: Array, dz: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda z: sparse_softmax_cross_entropy(z, labels), (z,), (dz,))

    value, tangent = jax.jit(run)(z, labels, direction)
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    np.testing.assert_allclose(tangent, [-1.0, np.nan, 0.0], rtol=RELATIVE)


def test_z_loss_of_an_infinite_normalizer_is_infinite_and_has_no_gradient() -> None:
    z, label = jnp.array([[np.inf, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
    loss = jax.jit(lambda z: sparse_softmax_cross_entropy(z, label, z_loss=0.1))
    np.testing.assert_array_equal(np.isposinf(loss(z)), [True, False])
    slope = jax.jit(jax.grad(lambda z: loss(z).sum()))(z)
    np.testing.assert_array_equal(np.isnan(slope), [[True, True], [False, False]])
