"""Losses on integer labels whose classes are ordered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jgraph._errors import InputError
from jgraph.losses._checks import (
    check_values,
    class_axis,
    class_ids,
    nan_unless,
    one_hot,
    predictions,
    rowwise,
)
from jgraph.losses._slopes import with_slopes


def ordinal(logits: ArrayLike, labels: ArrayLike) -> Float[Array, "*batch"]:
    """Return the ordinal loss (CORAL) of ordered classes: grades, stars, ages.

    K ordered classes are K - 1 yes-or-no questions "is it above class k?", each of Bernoulli
    likelihood (extended binary classification), so that a miss by four costs more than a miss by
    one. Give all questions one shared score and a bias each (CORAL) and their answers are
    consistent; the predicted class is the number of positive logits.

    `sparse_softmax_cross_entropy` on ordered classes works, but takes every mistake for equally
    bad and needs more data; a regression on the class number takes the steps for equally wide.
    `proportional_odds` is the likelihood of one score cut by thresholds.

    Args:
        logits: log-odds of "above class k", float `[..., K - 1]`. Half precision is computed in
            float32.
        labels: class ids in `[0, K)`, integer `[...]`. K is one more than there are logits.

    Returns:
        `-Σ_k log σ(±z_k)`, + where label > k, float32 (float64 for float64 logits) `[...]`. In
        compiled code a label outside `[0, K)` makes its loss and gradient NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float or have no last axis, labels that
            aren't integers or are of another shape, and, where their values are known (no jit), a
            label outside `[0, K)`.

    Source:
        Cao, Mirjalili and Raschka, Rank consistent ordinal regression, arXiv:1901.07884, eq. 4;
        Li and Lin, Ordinal regression by extended binary classification, 2007. TF has none.

    Example:
        >>> ordinal(jnp.array([[3.0, 1.0, -2.0]]), jnp.array([2])).round(4)
        Array([0.4888], dtype=float32)
    """
    z = predictions("logits", logits)
    steps = class_axis("logits", z)
    return _ordinal(z, class_ids(labels, (*z.shape[:-1], steps + 1)))


def proportional_odds(
    scores: ArrayLike, labels: ArrayLike, thresholds: ArrayLike
) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood of ordered classes cut out of one score.

    The cumulative logit model: a hidden quantity is the score plus logistic noise, and thresholds
    cut it into K classes, `P(label ≤ k) = σ(threshold_k - score)`. So it is one categorical
    likelihood (its probabilities sum to 1), with K numbers that a person can read: the score
    moves all odds alike, hence the name.

    `ordinal` asks K - 1 questions as if they were independent: each may see the features in its own
    way, but the sum is no likelihood of the class. `sparse_softmax_cross_entropy` needs K logits
    and doesn't know the order.

    Args:
        scores: one per example, float `[...]`. Half precision is computed in float32.
        labels: class ids in `[0, K)`, integer `[...]`. K is one more than there are thresholds.
        thresholds: finite and never decreasing, float `[K - 1]`; between equal ones the class is
            impossible. To learn them, learn the first and the steps, as in
            `jnp.cumsum(jnp.concatenate([first, jax.nn.softplus(steps)]))`.

    Returns:
        `-log(σ(t_y - s) - σ(t_{y-1} - s))` with t_{-1} = -∞ and t_{K-1} = ∞, float32 (float64
        where an input is) `[...]`. In compiled code a label outside `[0, K)` makes its loss and
        gradients NaN, bad thresholds those of every row.

    Raises:
        InputError: (a ValueError) scores or thresholds that aren't float, no thresholds, labels
            that aren't integers or are of another shape than the scores, and, where their values
            are known (no jit), a label outside `[0, K)`, or thresholds that decrease.

    Source:
        McCullagh, Regression models for ordinal data, 1980, section 2; R's `MASS::polr`. TF has
        none.

    Example:
        >>> thresholds = jnp.array([-1.0, 1.0])
        >>> proportional_odds(jnp.array([0.0, 2.0]), jnp.array([0, 1]), thresholds).round(4)
        Array([1.3133, 1.5073], dtype=float32)
    """
    s, t = predictions("scores", scores), predictions("thresholds", thresholds)
    if t.ndim != 1 or t.size == 0:
        raise InputError(f"thresholds must be one less than classes, [K - 1], got shape {t.shape}")
    ids = class_ids(labels, (*s.shape, t.size + 1))
    steps = jnp.diff(t, prepend=t[:1])
    good = jnp.isfinite(t) & (steps >= 0)
    good = check_values("thresholds", t, good, "be finite and never decrease").all()
    known_ids = one_hot(ids, t.size + 1)
    dtype = np.promote_types(s.dtype, t.dtype)
    rows = jnp.broadcast_to(t.astype(dtype).reshape((1,) * s.ndim + t.shape), (*s.shape, t.size))
    ok = known_ids.any(-1) & jnp.broadcast_to(good, s.shape)
    return _cut(nan_unless(ok, dtype), s.astype(dtype), rows, known_ids)


@rowwise
def _ordinal(z: Float[Array, "*batch k"], ids: Integer[Array, "*batch"]) -> Float[Array, "*batch"]:
    steps = z.shape[-1]
    classes = one_hot(ids, steps + 1)
    # Above step k is every class after it.
    above = jnp.flip(jnp.cumsum(jnp.flip(classes, -1), -1), -1)[..., 1:] > 0
    loss = jax.nn.softplus(jnp.where(above, -z, z)).sum(-1)
    return loss * nan_unless(classes.any(-1), z.dtype)


@with_slopes
def _cut(score: Array, thresholds: Array, classes: Array) -> tuple[Array, list[Array | None]]:
    # σ(b) - σ(a) = σ(b) σ(-a) (1 - e^(a - b)): three terms of one sign, where nothing cancels, and
    # b - a doesn't need the score.
    upper, lower = classes[..., :-1], classes[..., 1:]
    has_upper, has_lower = upper.any(-1), lower.any(-1)
    b = jnp.where(upper, thresholds, 0.0).sum(-1)
    a = jnp.where(lower, thresholds, 0.0).sum(-1)
    middle = has_upper & has_lower
    gap = jnp.where(middle, b - a, 1.0)
    not_above = jnp.where(has_upper, score - b, -jnp.inf)
    not_below = jnp.where(has_lower, a - score, -jnp.inf)
    value = jax.nn.softplus(not_above) + jax.nn.softplus(not_below)
    value = value - jnp.where(middle, _log_rest(gap), 0.0)
    beyond, below = jax.nn.sigmoid(not_above), jax.nn.sigmoid(not_below)
    push = jnp.where(middle, 1 / jnp.expm1(gap), 0.0)
    slope_b = jnp.where(upper, (-beyond - push)[..., None], 0.0)
    slope_a = jnp.where(lower, (below + push)[..., None], 0.0)
    return value, [beyond - below, slope_a + slope_b, None]


def _log_rest(x: Array) -> Array:
    """Return log(1 - e^-x) for x ≥ 0."""
    small = x < 0.7
    near = jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0)))
    return jnp.where(small, near, jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x))))
