"""Losses on embeddings: pairs, triplets, and the two that use the batch itself as negatives.

Shape suffixes: N rows of this replica; M rows of all replicas; D features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jgraph._errors import InputError
from jgraph._replicas import replica_axis
from jgraph.losses import _checks

AxisName = str | tuple[str, ...] | None


def info_nce(
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    weights: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Float[Array, " n"]:
    """Return InfoNCE: softmax cross entropy over "which key of the batch is this query's?".

    The likelihood is categorical over the batch's keys, with logits cosine / temperature; row i
    of the keys is query i's own, the others are its negatives. `-loss + log M` is a lower bound
    on the mutual information. Use it for two encoders (CLIP averages it with its mirror image,
    `info_nce(keys, queries)`); where both rows come from one encoder, `nt_xent` uses the negatives
    twice; where negatives are chosen by hand, `triplet`.

    It couples the rows, and so the replicas: with half the batch it is another loss. Inside
    `pmap` and `shard_map` it therefore gathers the keys over `axis_name`, or refuses. Under jit
    with sharded arrays the batch is whole already. An axis named by `jax.vmap` can't be seen from
    here: name it.

    Args:
        queries: embeddings of any length but 0, float `[N, D]`. Half precision is computed in
            float32.
        keys: row i belongs to query i, float `[N, D]`.
        temperature: positive scalar; it may be learned. 0.07 to 0.5 is common.
        weights: `[N]`; a row of weight 0 (padding) is neither query nor negative: its loss and
            gradient are 0. Other values don't matter here: they act in `mean(values, weights)`.
        axis_name: the mapped axis or axes whose replicas share their keys; `()` keeps each replica
            to itself.

    Returns:
        `logsumexp_j(s_ij) - s_ii`, s = cosine / temperature, float32 (float64 for float64) `[N]`.

    Raises:
        InputError: not float, shapes that aren't both `[N, D]`, weights not `[N]`, a mapped axis
            and no `axis_name`; where values are known: a row of zeros that counts, a temperature
            that isn't positive. Compiled code gives NaN.

    Source:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018,
        eq. 4; Radford et al., CLIP, 2021. TensorFlow has none of its own.

    Example:
        >>> eye = jnp.eye(3)
        >>> info_nce(eye, eye, temperature=1.0).round(4)  # log(e + 2) - 1
        Array([0.5514, 0.5514, 0.5514], dtype=float32)
    """
    q, k, counted = _pairs("queries", queries, "keys", keys, weights)
    scale = _temperature(temperature, q)
    axes = _axes("info_nce", axis_name)
    q, k = _directions("queries", q, counted), _directions("keys", k, counted)
    k_all, counted_all, own = _gathered(k, counted, axes)
    s_NM = _similarity(q, k_all) / scale
    return _choice(s_NM, jnp.broadcast_to(counted_all, s_NM.shape), own, counted)


def nt_xent(
    first: ArrayLike,
    second: ArrayLike,
    *,
    temperature: ArrayLike = 0.5,
    weights: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Float[Array, " n"]:
    """Return SimCLR's loss: every view must find its other view among all views of the batch.

    The likelihood is that of `info_nce`, with 2M - 1 candidates instead of M: the other views of
    the same side count as negatives too, and a view is no candidate for itself. Use it where both
    views come from one encoder; with two encoders (picture and text) same-side negatives compare
    what was never meant to be compared, so use `info_nce`.

    Args:
        first: embeddings of one view, of any length but 0, float `[N, D]`. Half precision is
            computed in float32.
        second: of the other view, row by row, float `[N, D]`.
        temperature: positive scalar; it may be learned.
        weights: `[N]`; a pair of weight 0 (padding) is left out, also as a negative.
        axis_name: as for `info_nce`: it gathers, or refuses.

    Returns:
        The mean of a pair's two losses, float32 (float64 for float64) `[N]`.

    Raises:
        InputError: as for `info_nce`.

    Source:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
        eq. 1; `tfa.losses.NpairsLoss` is its neighbour without cosine and temperature.

    Example:
        >>> eye = jnp.eye(2)
        >>> nt_xent(eye, eye, temperature=1.0).round(4)  # log(e + 2) - 1
        Array([0.5514, 0.5514], dtype=float32)
    """
    a, b, counted = _pairs("first", first, "second", second, weights)
    scale = _temperature(temperature, a)
    axes = _axes("nt_xent", axis_name)
    a, b = _directions("first", a, counted), _directions("second", b, counted)
    a_all, counted_all, own = _gathered(a, counted, axes)
    b_all, _, _ = _gathered(b, counted, axes)

    def direction(view: Array, same_side: Array, other_side: Array) -> Array:
        s = jnp.concatenate([_similarity(view, other_side), _similarity(view, same_side)], 1)
        allowed = jnp.concatenate(
            [jnp.broadcast_to(counted_all, own.shape), ~own & counted_all[None]], 1
        )
        positive = jnp.concatenate([own, jnp.zeros_like(own)], 1)
        return _choice(s / scale, allowed, positive, counted)

    return 0.5 * (direction(a, a_all, b_all) + direction(b, b_all, a_all))


def triplet(
    anchors: ArrayLike, positives: ArrayLike, negatives: ArrayLike, *, margin: float = 1.0
) -> Float[Array, "*batch"]:
    """Return the triplet loss: nearer to the positive than to the negative, by a margin.

    It is a hinge, no likelihood: satisfied triplets have no gradient, and distances get no
    probability. Use it where you choose the negatives; `info_nce` takes all of the batch and needs
    no mining. Squared distances, as in FaceNet: the root's gradient at 0 is undefined. On
    embeddings of length 1 FaceNet's margin is 0.2.

    Args:
        anchors: embeddings, float `[..., D]`. Half precision is computed in float32.
        positives: of the same class as the anchor, float `[..., D]`.
        negatives: of another class, float `[..., D]`.
        margin: a Python number, at least 0.

    Returns:
        `max(0, |a - p|² - |a - n|² + margin)`, float32 (float64 for float64) `[...]`.

    Raises:
        InputError: not float, three shapes that differ, no feature axis, a negative margin.

    Source:
        Schroff et al., FaceNet, 2015, eq. 3; `tfa.losses.TripletSemiHardLoss` mines its negatives
        and takes the same distance with `distance_metric="squared-L2"`.

    Example:
        >>> a, p, n = jnp.array([[0.0]]), jnp.array([[1.0]]), jnp.array([[1.25]])
        >>> triplet(a, p, n)  # 1 - 1.5625 + 1
        Array([0.4375], dtype=float32)
    """
    a = _embeddings("anchors", anchors)
    p = _same("positives", positives, "anchors", a)
    n = _same("negatives", negatives, "anchors", a)
    margin = _checks.number("margin", margin, 0.0, 1e30)
    return _triplet(a, p, n, margin=margin)


def contrastive(
    first: ArrayLike, second: ArrayLike, same: ArrayLike, *, margin: float = 1.0
) -> Float[Array, "*batch"]:
    """Return the pairwise contrastive loss: like pairs together, unlike pairs a margin apart.

    It is a penalty on the distance d, no likelihood, and the row's own pair is all it sees: use it
    where the data are labelled pairs. `triplet` asks only for an order of distances; `info_nce`
    makes its negatives from the batch and is a likelihood.

    Args:
        first: embeddings, float `[..., D]`. Half precision is computed in float32.
        second: of the same shape.
        same: 1 for pairs of one class, 0 for others, integer, bool or float `[...]`; values
            between are weights of the two terms.
        margin: a Python number, at least 0.

    Returns:
        `same d² + (1 - same) max(0, margin - d)²`, float32 (float64 for float64) `[...]`. At
        d = 0 an unlike pair has no direction to part in: its gradient there is 0.

    Raises:
        InputError: not float, shapes that differ, no feature axis, a negative margin; where values
            are known: `same` outside [0, 1]. Compiled code gives NaN.

    Source:
        Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, 2006, eq. 4, less
        its factor ½; `tfa.losses.contrastive_loss`.

    Example:
        >>> contrastive(jnp.array([[0.0], [0.0]]), jnp.array([[0.5], [0.5]]), jnp.array([1, 0]))
        Array([0.25, 0.25], dtype=float32)
    """
    a = _embeddings("first", first)
    b = _same("second", second, "first", a)
    y = _checks.like("same", same, "first without its last axis", a[..., 0])
    _checks.check_values("same", y, (y >= 0) & (y <= 1), "lie in [0, 1]")
    margin = _checks.number("margin", margin, 0.0, 1e15)
    return _contrastive(a, b, y, margin=margin)


@_checks.rowwise
def _triplet(a: Array, p: Array, n: Array, *, margin: float) -> Array:
    # (n - p)(2a - p - n) = |a - p|² - |a - n|², without the difference of two large squares.
    gap = ((n - p) * ((a - p) + (a - n))).sum(-1) + margin
    # A negative infinitely far is satisfied; what it would multiply is infinite, so it is replaced.
    satisfied = (gap <= 0)[..., None]
    a, p, n = (jnp.where(satisfied, jnp.zeros_like(x), x) for x in (a, p, n))
    gap = ((n - p) * ((a - p) + (a - n))).sum(-1) + margin
    return jnp.where(satisfied[..., 0], jnp.zeros_like(gap), gap)


@_checks.rowwise
def _contrastive(a: Array, b: Array, same: Array, *, margin: float) -> Array:
    difference = a - b
    square = (difference**2).sum(-1)
    # The pushing term: zero with zero slope beyond the margin, and at d = 0, where the root has
    # no derivative, a constant.
    pushed = ((square > 0) & (square < margin**2)) | jnp.isnan(square)
    inside = jnp.where(pushed[..., None], difference, jnp.ones_like(difference))
    short = margin - jnp.sqrt((inside**2).sum(-1))
    push = jnp.where(pushed, short**2, jnp.where(square == 0, margin**2, 0.0).astype(a.dtype))
    # A term of weight 0 is left out: 0 * infinity is NaN.
    zero = jnp.zeros_like(square)
    pull_square = (jnp.where((same == 0)[..., None], jnp.zeros_like(a), difference) ** 2).sum(-1)
    pull = jnp.where(same == 0, zero, same * pull_square)
    loss = pull + jnp.where(same == 1, zero, (1 - same) * push)
    return loss * _checks.nan_unless((same >= 0) & (same <= 1), a.dtype)


def _embeddings(name: str, x: ArrayLike) -> Float[Array, "*batch d"]:
    array = _checks.predictions(name, x)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise InputError(f"{name} must end in a feature axis [..., D], got shape {array.shape}")
    return array


def _same(name: str, x: ArrayLike, other_name: str, other: Array) -> Float[Array, "*batch d"]:
    _checks.predictions(name, x)
    return _checks.like(name, x, other_name, other)


def _pairs(
    first_name: str,
    first: ArrayLike,
    second_name: str,
    second: ArrayLike,
    weights: ArrayLike | None,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"], Bool[Array, " n"]]:
    """Check a batch of pairs; return both sides and which rows count."""
    a = _embeddings(first_name, first)
    if a.ndim != 2:
        raise InputError(f"{first_name} must be one batch [N, D], got shape {a.shape}")
    b = _same(second_name, second, first_name, a)
    if weights is None:
        return a, b, jnp.ones(a.shape[:1], bool)
    w = _checks.like("weights", weights, f"rows of {first_name}", a[:, 0])
    return a, b, w != 0


def _temperature(temperature: ArrayLike, like: Array) -> Float[Array, ""]:
    t = jnp.asarray(temperature)
    if t.shape != ():
        raise InputError(f"temperature must be a scalar, got shape {t.shape}")
    t = t.astype(like.dtype)
    ok = _checks.check_values("temperature", t, t > 0, "be positive")
    return t * _checks.nan_unless(ok, t.dtype)


def _axes(name: str, axis_name: AxisName) -> tuple[str, ...]:
    """Return the axes to gather over; refuse to be one replica's own loss unasked."""
    if axis_name is not None:
        return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    strategy_axis = replica_axis()
    if strategy_axis is not None:
        return (strategy_axis,)
    mapped = jax.sharding.get_abstract_mesh().manual_axes
    if mapped:
        raise InputError(
            f"{name} compares the rows of the whole batch, and under the mapped axes "
            f"{tuple(mapped)} each replica holds a part: pass axis_name={mapped[0]!r} to gather "
            "over it, or axis_name=() where each replica is meant to be a batch of its own"
        )
    return ()


def _directions(name: str, x: Float[Array, "n d"], counted: Array) -> Float[Array, "n d"]:
    """Scale rows to length 1; a row that doesn't count becomes a constant."""
    x = jnp.where(counted[:, None], x, jnp.ones_like(x))
    # Dividing by the largest entry first: squares of 1e-30 or 1e30 are no float32.
    largest = jax.lax.stop_gradient(jnp.abs(x).max(-1))
    must = "have a direction: the cosine of a row of zeros is undefined"
    ok = _checks.check_values(name, largest, ~(largest == 0), must)
    x = x / jnp.where(ok, largest, jnp.full_like(largest, jnp.nan))[:, None]
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


def _gathered(
    x_ND: Array, counted: Array, axes: tuple[str, ...]
) -> tuple[Float[Array, "m d"], Bool[Array, " m"], Bool[Array, "n m"]]:
    """Return the rows of all replicas, which of them count, and where this replica's lie."""
    n, start = x_ND.shape[0], 0
    if axes:
        x_ND, counted = (jax.lax.all_gather(a, axes, tiled=True) for a in (x_ND, counted))
        start = n * jax.lax.axis_index(axes)
    row = jax.lax.broadcasted_iota(jnp.int32, (n, x_ND.shape[0]), 0)
    return x_ND, counted, row + start == jax.lax.broadcasted_iota(jnp.int32, row.shape, 1)


def _similarity(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    # On accelerators the default is bfloat16, which a temperature of 0.01 turns into ±0.4.
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _choice(s: Array, allowed: Array, positive: Array, counted: Array) -> Float[Array, " n"]:
    """Return softmax cross entropy of choosing the positive among the allowed, 0 for others."""
    s = jnp.where(counted[:, None], s, jnp.zeros_like(s))
    allowed = allowed | (positive & ~counted[:, None])
    low = jnp.full_like(s, -jnp.inf)
    # initial: an empty batch has no largest entry.
    largest = jax.lax.stop_gradient(jnp.where(allowed, s, low).max(-1, initial=-jnp.inf))
    shifted = jnp.where(allowed, s - largest[:, None], low)
    own = jnp.where(positive, shifted, jnp.zeros_like(s)).sum(-1)
    loss = jnp.log(jnp.exp(shifted).sum(-1)) - own
    return jnp.where(counted, loss, jnp.zeros_like(loss))
