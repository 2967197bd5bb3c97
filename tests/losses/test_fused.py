from __future__ import annotations

import functools
import re
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jgraph._errors import InputError
from jgraph.losses import linear_softmax_cross_entropy, mean, sparse_softmax_cross_entropy

BOTH = ("tokens", "vocabulary")
both_ways = pytest.mark.parametrize("over", BOTH)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "uniform": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 1e-2},
    "softcap": {"softcap": 3.0},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "softcap": 5.0},
}


def reference(
    x: Any,
    w: Any,
    labels: np.ndarray,
    g: np.ndarray,
    label_smoothing: float = 0,
    z_loss: float = 0,
    softcap: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss, and the gradients of Σ g·loss, in float64 by the textbook: logits, softmax, chain."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    raw = x @ w
    z = raw if softcap is None else softcap * np.tanh(raw / softcap)
    lse = np.asarray(scipy.special.logsumexp(z, axis=-1))
    v = w.shape[1]
    target = (1 - label_smoothing) * np.eye(v)[labels] + label_smoothing / v
    loss = lse - (target * z).sum(-1) + z_loss * lse**2
    p = scipy.special.softmax(z, axis=-1)
    slope = p * (1 + 2 * z_loss * lse)[:, None] - target
    if softcap is not None:
        slope = slope / np.cosh(raw / softcap) ** 2
    slope = g[:, None] * slope
    return loss, slope @ w.T, x.T @ slope


def data(n: int, d: int, v: int, dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    """Features and weights on a coarse binary grid: their products are exact in float32."""
    rng = np.random.default_rng(n + d + v)
    x = rng.integers(-16, 17, (n, d)) / 8
    w = rng.integers(-16, 17, (d, v)) / 16
    g = rng.integers(1, 9, n) / 8
    return x.astype(dtype), w.astype(dtype), rng.integers(0, v, n), g


def weighted(x: Array, w: Array, labels: Any, g: Any, **options: Any) -> tuple[Array, Array]:
    loss = linear_softmax_cross_entropy(x, w, labels, **options)
    return (jnp.asarray(g, loss.dtype) * loss).sum(), loss


@functools.cache
def compiled(**options: Any) -> Any:
    """Compile once for all data of one shape."""
    weigh = functools.partial(weighted, **options)
    return jax.jit(jax.value_and_grad(weigh, (0, 1), has_aux=True))


def run(x: Any, w: Any, labels: Any, g: Any, **options: Any) -> tuple[np.ndarray, ...]:
    """Return loss and both gradients, compiled."""
    (_, loss), (dx, dw) = compiled(**options)(
        jnp.asarray(x), jnp.asarray(w), jnp.asarray(labels), g
    )
    return tuple(np.asarray(a) for a in (loss, dx, dw))


def close(found: np.ndarray, want: np.ndarray, relative: float) -> None:
    """Compare arrays whose entries are sums: their error is relative to the largest entry."""
    assert found.shape == want.shape
    np.testing.assert_allclose(
        found.astype(np.float64), want, rtol=relative, atol=relative * np.abs(want).max(initial=0)
    )


@both_ways
@pytest.mark.parametrize("option", OPTIONS)
def test_equals_float64(over: Any, option: str) -> None:
    x, w, labels, g = data(13, 5, 11)
    options = OPTIONS[option]
    # 4 divides neither 13 nor 11.
    found = run(x, w, labels, g, over=over, chunk=4, **options)
    for a, b in zip(found, reference(x, w, labels, g, **options), strict=True):
        assert a.dtype == np.float32
        close(a, b, 1e-6)


@both_ways
@pytest.mark.parametrize("option", ["plain", "all"])
def test_float64_stays_float64(over: Any, option: str) -> None:
    options = OPTIONS[option]
    with jax.enable_x64(True):
        x, w, labels, g = data(6, 3, 10, np.float64)
        found = run(x, w, labels, g, over=over, chunk=3, **options)
    for a, b in zip(found, reference(x, w, labels, g, **options), strict=True):
        assert a.dtype == np.float64
        close(a, b, 1e-13)


@both_ways
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(over: Any, dtype: Any) -> None:
    # bfloat16 stops counting at 256 and float16 ends at 65504: these logits reach 1e5.
    x, w = jnp.full((3, 4096), 4.0, dtype), jnp.tile(jnp.array([2.0, 2.001, 6.0], dtype), (4096, 1))
    labels, g = np.array([0, 1, 2]), np.array([1e-4, 1.0, 2.0])
    found = run(x, w, labels, g, over=over, chunk=2)
    want = reference(np.asarray(x, np.float64), np.asarray(w, np.float64), labels, g)
    assert [a.dtype for a in found] == [np.float32, dtype, dtype]
    close(found[0], want[0], 1e-6)
    # A gradient is rounded to half precision twice: as slope and as result.
    for a, b in zip(found[1:], want[1:], strict=True):
        close(a, b, 2 * float(jnp.finfo(dtype).eps))


@both_ways
def test_a_small_factor_is_not_lost_in_float16(over: Any) -> None:
    x, w, labels, _ = data(4, 3, 5, np.float16)
    x = (x * 2.0**-10).astype(np.float16)
    g = np.full(4, 2.0**-13)  # times x it is less than half of the least float16, 6e-8
    dw = run(x, w, labels, g * 2.0**6, over=over)[2]
    want = reference(x, w, labels, g * 2.0**6)[2]
    # The result is subnormal: its grid is 6e-8.
    np.testing.assert_allclose(dw.astype(np.float64), want, atol=2.0**-24)
    assert np.abs(want).max() > 2.0**-18


@both_ways
@pytest.mark.parametrize("chunk", [1, 100])
@pytest.mark.parametrize(("n", "v"), [(0, 3), (5, 1), (6, 4)])
def test_every_block_size_gives_the_same(over: Any, chunk: int, n: int, v: int) -> None:
    x, w, labels, g = data(n, 3, v)
    found = run(x, w, labels, g, over=over, chunk=chunk, label_smoothing=0.1)
    # One class leaves nothing to smooth: loss and gradient are 0, and exactly so.
    for a, b in zip(found, reference(x, w, labels, g, 0.1 if v > 1 else 0), strict=True):
        close(a, b, 1e-6)


INF = np.inf


@both_ways
@pytest.mark.parametrize(
    ("logits", "loss", "slope"),
    [
        ([1e4, -1e4, 0], 0, [0, 0, 0]),
        ([-1e4, 1e4, 0], 2e4, [-1, 1, 0]),
        ([1e4, 1e4 - 1, -1e4], np.log1p(np.exp(-1)), None),
        ([-INF, -INF, 0], INF, [-1, 0, 1]),  # the label is impossible
        ([0, -INF, -INF], 0, [0, 0, 0]),  # the others are
        ([-INF, 0, 0], INF, [-1, 0.5, 0.5]),
        ([INF, 0, -INF], 0, [0, 0, 0]),  # the label is certain
        ([0, INF, 0], INF, [-1, 1, 0]),  # another is
        ([3e38, -3e38, 0], 0, [0, 0, 0]),
        ([INF, INF, 0], np.nan, [np.nan] * 3),  # no limit
        ([0, INF, INF], np.nan, [np.nan] * 3),
        ([-INF, -INF, -INF], np.nan, [np.nan] * 3),  # no distribution
        ([0, np.nan, 0], np.nan, [np.nan] * 3),
    ],
)
def test_extreme_logits(
    over: Any, logits: list[float], loss: float, slope: list[float] | None
) -> None:
    # One feature of value 1: the weight is the logits, and its gradient the slope.
    w = np.array([logits], np.float32)
    found = run(np.ones((1, 1), np.float32), w, np.array([0]), np.ones(1), over=over, chunk=1)
    if slope is None:
        p = scipy.special.softmax(np.array(logits))
        slope = list(p - [1, 0, 0])
    np.testing.assert_allclose(found[0], [loss], rtol=1e-6)
    np.testing.assert_allclose(found[2], [slope], rtol=1e-6, atol=1e-30)


@both_ways
def test_extreme_logits_with_options(over: Any) -> None:
    one, label = np.ones((1, 1), np.float32), np.array([0])

    def at(*logits: float, **options: float) -> list[np.ndarray]:
        w = np.array([logits], np.float32)
        loss, _, dw = run(one, w, label, np.ones(1), over=over, chunk=2, **options)
        return [loss[0], *dw[0]]

    # Two thirds of a tenth of the target are infinitely far below the label's logit.
    assert at(INF, 0, 0, label_smoothing=0.1)[0] == INF
    np.testing.assert_allclose(
        at(INF, 0, 0, label_smoothing=0.1)[1:], [1 / 15, -1 / 30, -1 / 30], atol=1e-7
    )
    assert at(0, 0, -INF, label_smoothing=0.1)[0] == INF
    # As in the plain form: an infinite penalty has no slope.
    loss, *slopes = at(INF, 0, 0, z_loss=0.1)
    assert loss == INF
    assert np.isnan(slopes).all()
    # A cap makes any logit finite: 2 tanh(±inf / 2) = ±2, and flat.
    np.testing.assert_allclose(
        at(-INF, INF, 1e4, softcap=2.0), [np.log(2 + np.exp(-4)) + 4, 0, 0, 0], rtol=1e-6
    )


@both_ways
def test_uniform_logits_have_the_loss_of_a_guess(over: Any) -> None:
    loss = linear_softmax_cross_entropy(
        jnp.zeros((2, 3, 4)), jnp.ones((4, 1000)), jnp.zeros((2, 3), jnp.int32), over=over
    )
    np.testing.assert_allclose(loss, np.full((2, 3), np.log(1000)), rtol=1e-6)


@both_ways
@pytest.mark.parametrize("label", [-1, 3, -100, 2**31 - 1])
def test_a_bad_label_raises_when_known_and_poisons_when_compiled(over: Any, label: int) -> None:
    x, w, labels = jnp.ones((3, 2)), jnp.ones((2, 3)), jnp.array([0, label, 2])
    message = rf"in \[0, 3\).*row 1 has label {label} \(1 of 3 labels are outside\)"
    with pytest.raises(ValueError, match=message):
        linear_softmax_cross_entropy(x, w, labels, over=over)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x, w: linear_softmax_cross_entropy(x, w, labels, over=over))(x, w)
    loss, dx, dw = run(x, w, labels, np.ones(3), over=over, chunk=2)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    np.testing.assert_array_equal(np.isnan(dx).all(-1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(dx).any(-1), [False, True, False])
    assert np.isnan(dw).all()


@both_ways
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint32])
def test_narrow_labels_do_not_wrap(over: Any, dtype: Any) -> None:
    x, w, _, _ = data(1, 2, 300)
    found = run(x, w, jnp.array([44], dtype), np.ones(1), over=over, chunk=128)
    for a, b in zip(found, reference(x, w, np.array([44]), np.ones(1)), strict=True):
        close(a, b, 1e-6)


def test_wide_numpy_labels_are_not_narrowed_to_a_class() -> None:
    with pytest.raises(InputError, match=f"label {2**32 + 1}"):
        linear_softmax_cross_entropy(jnp.ones((1, 2)), jnp.ones((2, 3)), np.array([2**32 + 1]))


@both_ways
@pytest.mark.parametrize("how", ["mask", "weight"])
def test_a_row_that_does_not_count_leaks_nothing(over: Any, how: str) -> None:
    x, w, labels, g = data(5, 3, 7)
    keep = np.array([True, False, True, False, True])
    want = reference(x[keep], w, labels[keep], g[keep])
    x, labels = x.copy(), labels.copy()
    x[1], labels[1], labels[3] = np.nan, -100, 7

    def loss(x: Array, w: Array, labels: Array) -> Array:
        options: dict[str, Any] = {"mask": keep} if how == "mask" else {}
        values = linear_softmax_cross_entropy(x, w, labels, over=over, chunk=2, **options)
        if how == "mask":
            # As is, without mean: the values are 0 by themselves.
            return (g * values).sum() / (g * keep).sum()
        return mean(values, g * keep).value()

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, (dx, dw) = step(jnp.asarray(x), jnp.asarray(w), jnp.asarray(labels))
    total = g[keep].sum()
    np.testing.assert_allclose(value, want[0] @ g[keep] / total, rtol=1e-6)
    close(np.asarray(dx)[keep], want[1] / total, 1e-6)
    close(np.asarray(dw), want[2] / total, 1e-6)
    np.testing.assert_array_equal(np.asarray(dx)[~keep], 0)
    if how == "mask":  # values are known here, and not looked at
        assert np.isfinite(loss(jnp.asarray(x), jnp.asarray(w), jnp.asarray(labels)))


@both_ways
def test_all_masked_is_zero(over: Any) -> None:
    x, w, labels, _ = data(4, 3, 5)
    keep = np.zeros(4, bool)

    def value(x: Array, w: Array) -> Array:
        losses = linear_softmax_cross_entropy(x, w, labels, over=over, mask=keep)
        return mean(losses, keep).value()

    found = jax.value_and_grad(value, (0, 1))(jnp.asarray(x) * jnp.nan, jnp.asarray(w))
    assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(found))


def test_known_labels_of_counting_rows_are_still_checked() -> None:
    x, w = jnp.ones((2, 2)), jnp.ones((2, 3))
    with pytest.raises(InputError, match=r"row 1 has label 3"):
        linear_softmax_cross_entropy(x, w, jnp.array([-1, 3]), mask=jnp.array([False, True]))


FULL = {"x": jnp.ones((2, 3)), "w": jnp.ones((3, 4)), "labels": jnp.zeros(2, jnp.int32)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": jnp.ones((2, 3), jnp.int32)}, r"x must be float.*int32 of shape \(2, 3\)"),
        ({"x": jnp.ones(())}, r"x must be float \[\.\.\., d\].*shape \(\)"),
        ({"w": jnp.ones((4, 3))}, r"got w \(4, 3\) for x \(2, 3\); a weight stored \[v, d\]"),
        ({"w": jnp.ones(3)}, r"w must be \[d, v\].*got w \(3,\)"),
        ({"w": jnp.ones((3, 0))}, r"v > 0 classes, got w \(3, 0\)"),
        ({"w": jnp.ones((3, 4), jnp.bfloat16)}, "w must have the type of x, got w bfloat16.*cast"),
        ({"labels": jnp.zeros(2)}, r"integer class ids, got float32.*\(2, 4\)"),
        ({"labels": jnp.zeros((2, 1), jnp.int32)}, r"\(2,\), got labels \(2, 1\).*\(2, 4\)"),
        ({"labels": jnp.zeros(1, jnp.int32)}, r"\(2,\), got labels \(1,\)"),
        ({"mask": jnp.ones(2)}, r"mask must be bool.*\(2,\), got float32 of shape \(2,\)"),
        ({"mask": jnp.ones((2, 1), bool)}, r"mask must be bool.*got bool of shape \(2, 1\)"),
        ({"chunk": 0}, "chunk must be a whole number of tokens, at least 1, got 0"),
        ({"chunk": 2.0}, r"chunk must be a whole number of tokens.*2\.0"),
        ({"over": "rows"}, "over must be one of tokens, vocabulary, got 'rows'"),
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\], got 1\.5"),
        ({"z_loss": -1.0}, r"z_loss must lie in \[0, inf\), got -1"),
        ({"softcap": 0.0}, r"softcap must lie in \(0, inf\), got 0"),
        ({"softcap": -2.0}, r"softcap must lie in \(0, inf\), got -2"),
    ],
)
def test_wrong_arguments_raise_at_trace_time(changes: dict[str, Any], message: str) -> None:
    arguments = FULL | changes
    arrays = {k: v for k, v in arguments.items() if isinstance(v, jax.Array)}
    options: Any = {k: v for k, v in arguments.items() if k not in arrays}
    call = inspect_free(linear_softmax_cross_entropy)
    with pytest.raises(InputError, match=message):
        call(**arrays, **options)
    with pytest.raises(InputError, match=message):
        jax.jit(lambda **arrays: call(**arrays, **options))(**arrays)


def inspect_free(f: Any) -> Any:
    """Return f without the check of annotations that pytest adds: users don't have it."""
    return getattr(f, "__wrapped__", f)


PLAIN_FORM = re.escape("jgraph.losses.sparse_softmax_cross_entropy(x @ w, labels)")


@both_ways
@pytest.mark.parametrize("mode", ["jvp", "jit of jvp", "jvp of jit", "jacfwd", "vmap", "linearize"])
def test_forward_mode_names_the_plain_form(over: Any, mode: str) -> None:
    x, w, labels, _ = (jnp.asarray(a) for a in data(3, 2, 4))

    def f(x: Array) -> Array:
        return linear_softmax_cross_entropy(x, w, labels, over=over)

    def jvp(f: Any, x: Array) -> Array:
        return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    ways: dict[str, Any] = {
        "jvp": lambda: jvp(f, x),
        "jit of jvp": lambda: jax.jit(lambda x: jvp(f, x))(x),
        "jvp of jit": lambda: jvp(jax.jit(f), x),
        "jacfwd": lambda: jax.jacfwd(f)(x),
        "vmap": lambda: jax.vmap(lambda x: jvp(f, x))(x[None]),
        "linearize": lambda: jax.linearize(f, x)[1](x),
    }
    with pytest.raises(InputError, match=rf"no forward mode.*{PLAIN_FORM}"):
        ways[mode]()


@both_ways
def test_second_order_equals_the_plain_form(over: Any) -> None:
    x, w, labels, _ = (jnp.asarray(a) for a in data(3, 2, 5))
    # Ties for the largest logit: the shift must not appear in the derivative.
    w = w.at[:, 1].set(w[:, 0])
    reverse_again = over == "vocabulary"

    def fused(x: Array, w: Array) -> Array:
        return linear_softmax_cross_entropy(x, w, labels, over=over, chunk=2).sum()

    def plain(x: Array, w: Array) -> Array:
        return sparse_softmax_cross_entropy(x @ w, labels).sum()

    def second(f: Any) -> Any:
        # One mode around each walk: both compile for seconds.
        outer = jax.jacrev if reverse_again else jax.jacfwd
        return jax.jit(outer(jax.grad(f), 1))

    np.testing.assert_allclose(second(fused)(x, w), second(plain)(x, w), rtol=1e-5, atol=1e-6)


@both_ways
def test_vmap_and_checkpoint_equal_the_batch(over: Any) -> None:
    x, w, labels, g = data(6, 3, 5)
    want = reference(x, w, labels, g)

    def total(x: Array, w: Array) -> Array:
        f = jax.checkpoint(functools.partial(linear_softmax_cross_entropy, over=over, chunk=2))
        batched = jax.vmap(f, (0, None, 0))
        losses = batched(x.reshape(3, 2, 3), w, jnp.asarray(labels).reshape(3, 2))
        return (jnp.asarray(g, jnp.float32) * losses.reshape(-1)).sum()

    dx, dw = jax.jit(jax.grad(total, (0, 1)))(jnp.asarray(x), jnp.asarray(w))
    close(np.asarray(dx), want[1], 1e-6)
    close(np.asarray(dw), want[2], 1e-6)


@both_ways
@pytest.mark.parametrize("check", [True, False])
def test_replicas_with_uneven_masks_equal_one_device(over: Any, check: bool) -> None:
    x, w, labels, _ = data(32, 3, 7)
    keep = np.arange(32) % 8 < np.arange(32) // 4  # replica 0: none
    assert not keep[:4].any()
    want = reference(x[keep], w, labels[keep], np.full(keep.sum(), 1 / keep.sum()))
    mesh = Mesh(np.array(jax.devices()[:8]), ("replica",))
    rows, same = PartitionSpec("replica"), PartitionSpec()

    def local(x: Array, w: Array, labels: Array, keep: Array) -> Array:
        losses = linear_softmax_cross_entropy(x, w, labels, over=over, chunk=3, mask=keep)
        return mean(losses, keep).psum("replica").value()

    f = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, same, rows, rows), out_specs=same, check_vma=check
    )
    arrays = [jnp.asarray(a) for a in (x, w, labels, keep)]
    value, (dx, dw) = jax.jit(jax.value_and_grad(f, (0, 1)))(*arrays)
    np.testing.assert_allclose(value, want[0].mean(), rtol=1e-6)
    close(np.asarray(dx)[keep], want[1], 1e-6)
    close(np.asarray(dw), want[2], 1e-6)


@settings(deadline=None, max_examples=15)
@given(
    hnp.arrays(np.float32, (5, 3), elements=st.floats(-8, 8, width=16)),
    hnp.arrays(np.float32, (3, 6), elements=st.floats(-8, 8, width=16)),
    st.lists(st.integers(0, 5), min_size=5, max_size=5),
    st.sampled_from(BOTH),
    st.sampled_from([1, 4]),
)
def test_equals_the_plain_form(
    x: np.ndarray, w: np.ndarray, labels: list[int], over: Any, chunk: int
) -> None:
    ids = jnp.array(labels)
    fused = run(x, w, ids, np.ones(5), over=over, chunk=chunk)[0]
    plain = sparse_softmax_cross_entropy(jnp.asarray(x) @ jnp.asarray(w), ids)
    # The matmuls may sum in another order: logits up to 200 round at 2e-5.
    np.testing.assert_allclose(fused, plain, rtol=1e-6, atol=5e-5)


@both_ways
@pytest.mark.parametrize("vocabulary", [32_768, 131_072])
def test_memory(over: Any, vocabulary: int) -> None:
    def objective(x: Array, w: Array, labels: Array) -> Array:
        return mean(linear_softmax_cross_entropy(x, w, labels, over=over)).value()

    shapes = (
        jax.ShapeDtypeStruct((4096, 512), jnp.float32),
        jax.ShapeDtypeStruct((512, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((4096,), jnp.int32),
    )
    program = jax.jit(jax.value_and_grad(objective, (0, 1))).lower(*shapes).compile()
    weight = 4 * 512 * vocabulary
    limit = 2 * weight if over == "tokens" else 32 * 2**20
    # Logits alone are 8 times the weight.
    found = program.memory_analysis()
    assert found is not None
    assert found.temp_size_in_bytes <= limit
