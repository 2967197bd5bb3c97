"""Losses for one of K classes: they take logits, and return one value per example.

Shape suffixes: K classes; `...` any leading axes, the examples.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jgraph.losses._checks import (
    check_distribution,
    class_axis,
    class_ids,
    like,
    nan_unless,
    number,
    one_hot,
    poison,
    predictions,
    rowwise,
    steer,
)


def sparse_softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: float | int = 0.0,
    temperature: float | int = 1.0,
    z_loss: float | int = 0.0,
) -> Float[Array, "*batch"]:
    """Return the negative log-likelihood, in nats, of integer labels under softmax(logits).

    It is the loss for "exactly one of K classes": the likelihood is categorical with
    probabilities softmax(logits), and minimising the mean is maximum likelihood. Reduce it with
    `jgraph.losses.mean(values, weights)`; rows without a label go through `jgraph.losses.ignore`
    first, unequal classes through `jgraph.losses.class_weights`.

    Where an example may have several classes, or none, take `sigmoid_cross_entropy`: softmax
    makes them compete. Where the target is a distribution, take `softmax_cross_entropy`. Where
    classes are ordered, `ordinal` knows that a miss by one is better than a miss by four.

    Args:
        logits: unnormalised log-probabilities, float `[..., K]`. Half precision is computed in
            float32. -inf means "impossible"; a single +inf means "certain".
        labels: class ids in `[0, K)`, integer `[...]`.
        label_smoothing: s in [0, 1]: the target becomes the mixture of the label, with 1 - s, and
            the uniform distribution, with s.
        temperature: T > 0: the likelihood is that of softmax(logits / T).
        z_loss: the factor of `logsumexp(logits / T)²`, which keeps the normaliser near 1. Where
            that is infinite, so is the loss, and the gradient is NaN.

    Returns:
        `logsumexp(logits) - logits[label]`, float32 (float64 for float64 logits) `[...]`.
        Compiled code can't raise, so there a label outside `[0, K)` makes that example's loss
        and gradient NaN, as do logits that are no distribution: NaN, all -inf, or two of +inf.

    Raises:
        InputError: (a ValueError) logits that aren't float or have no class, labels that aren't
            integers or whose shape isn't that of the logits without the class axis, an option
            outside its range, and, where the labels' values are known (no jit), a label outside
            `[0, K)`.

    Source:
        `tf.nn.sparse_softmax_cross_entropy_with_logits`; Bishop, Pattern Recognition and Machine
        Learning, 2006, eq. 4.108. Smoothing: Szegedy et al., arXiv:1512.00567; z-loss: Chowdhery
        et al., arXiv:2204.02311, section 5.

    Example:
        >>> logits = jnp.array([[0.0, 0.0], [0.0, 50.0]])
        >>> sparse_softmax_cross_entropy(logits, jnp.array([0, 1])).round(4)
        Array([0.6931, 0.    ], dtype=float32)
    """
    z = predictions("logits", logits)
    class_axis("logits", z)
    options = _options(label_smoothing, temperature, z_loss)
    return _sparse(_cool(z, temperature), class_ids(labels, z.shape), *options)


def softmax_cross_entropy(
    logits: ArrayLike,
    probs: ArrayLike,
    *,
    label_smoothing: float | int = 0.0,
    temperature: float | int = 1.0,
    z_loss: float | int = 0.0,
) -> Float[Array, "*batch"]:
    """Return the cross entropy H(probs, softmax(logits)), in nats: soft labels.

    It is the expected negative log-likelihood of a categorical variable whose class is known as a
    distribution: annotators who disagree, mixup, a teacher's output. With one-hot `probs` it is
    `sparse_softmax_cross_entropy`. It is `KL(probs, softmax(logits)) + H(probs)`, so its minimum
    is the entropy of the labels, not 0.

    For class ids take `sparse_softmax_cross_entropy`, which can't be given a wrong sum. For
    several independent labels per example, whose probabilities don't sum to 1, take
    `sigmoid_cross_entropy`: here they are refused, where other libraries scale the loss.

    Args:
        logits: unnormalised log-probabilities, float `[..., K]`. Half precision is computed in
            float32. -inf means "impossible"; a single +inf means "certain".
        probs: probabilities of the classes, float, integer or bool `[..., K]`, in [0, 1], of sum
            1. They have a gradient, too; `jax.lax.stop_gradient` keeps a teacher fixed.
        label_smoothing: s in [0, 1]: `probs` becomes `(1 - s) probs + s / K`.
        temperature: T > 0: the logits are divided by it; that of `probs` is the caller's.
        z_loss: the factor of `logsumexp(logits / T)²`; where that is infinite, so is the loss,
            and the gradient is NaN.

    Returns:
        `-Σ probs log softmax(logits)`, with 0 log 0 = 0, float32 (float64 for float64 logits)
        `[...]`. In compiled code bad `probs` make that example's loss and gradients NaN.

    Raises:
        InputError: (a ValueError) logits that aren't float or have no class, probs of another
            shape, an option outside its range, and, where their values are known (no jit), probs
            outside [0, 1] or whose sum isn't 1.

    Source:
        `tf.nn.softmax_cross_entropy_with_logits`; Cover and Thomas, Elements of Information
        Theory, 2006, section 2.3.

    Example:
        >>> softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.25, 0.75]])).round(4)
        Array([0.6931], dtype=float32)
    """
    z = predictions("logits", logits)
    num_classes = class_axis("logits", z)
    smoothing, z_factor = _options(label_smoothing, temperature, z_loss)
    q = like("probs", probs, "logits", z)
    ok = check_distribution("probs", probs, q)
    mixture = q if smoothing == 0 else (1 - smoothing) * q + smoothing / num_classes
    return _soft(_cool(z, temperature), mixture, ok, z_factor)


def euclidean(outputs: ArrayLike, targets: ArrayLike) -> Float[Array, "*batch"]:
    """Return the squared Euclidean distance of two vectors, for comparison.

    The likelihood is Normal with variance 1/2 in each component, which suits positions and
    colours. It doesn't understand probability: on softmax outputs (the Brier score) a network
    that is sure and wrong gets almost no gradient, `p (1 - p)` times what cross entropy gives,
    and never pays more than 2. Take `softmax_cross_entropy` there.

    Args:
        outputs: float `[..., D]`, for the comparison `jax.nn.softmax(logits)`.
        targets: of the same shape, float, integer or bool.

    Returns:
        `Σ (output - target)²` over the last axis, float32 (float64 for float64 outputs)
        `[...]`.

    Raises:
        InputError: (a ValueError) outputs that aren't float or have no last axis, or targets
            of another shape.

    Source:
        `tf.nn.l2_loss` (half of it, summed); Brier, Monthly Weather Review 78, 1950.

    Example:
        >>> euclidean(jnp.array([[0.9, 0.1]]), jnp.array([[1.0, 0.0]])).round(4)
        Array([0.02], dtype=float32)
    """
    p = predictions("outputs", outputs)
    class_axis("outputs", p)
    return _squares(p, like("targets", targets, "outputs", p))


def _options(
    smoothing: float | int, temperature: float | int, z_loss: float | int
) -> tuple[float, float]:
    number("temperature", temperature, 0, float("inf"), open_low=True)
    return (
        number("label_smoothing", smoothing, 0, 1),
        number("z_loss", z_loss, 0, float("inf")),
    )


def _cool(logits: Array, temperature: float | int) -> Array:
    return logits if temperature == 1 else logits / temperature


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _sparse(
    z: Float[Array, "*batch k"], ids: Integer[Array, "*batch"], smoothing: float, z_loss: float
) -> Float[Array, "*batch"]:
    return _sparse_parts(z, ids, smoothing, z_loss)[0]


@_sparse.defjvp
def _sparse_rule(smoothing: float, z_loss: float, primals: Any, tangents: Any) -> Any:
    # By hand for two reasons: 1 - p of a sure network doesn't cancel, and every slope is finite, so
    # that weight 0 gives gradient 0.
    (z, ids), (dz, _) = primals, tangents
    loss, slope, ok = _sparse_parts(z, ids, smoothing, z_loss)
    return loss, (slope * dz + poison(dz, ok[..., None])).sum(-1)


def _sparse_parts(
    z: Array, ids: Array, smoothing: float, z_loss: float
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch k"], Bool[Array, "*batch"]]:
    """Return the loss, its finite slope for the logits, and which rows are sound."""
    num_classes = z.shape[-1]
    # Counting classes in int8 would wrap at 127.
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    chosen = one_hot(ids, num_classes)
    largest = jax.lax.stop_gradient(z.max(-1))
    shifted = _shift(z, largest)
    label = _shift(_pick(z, ids)[..., None], largest)[..., 0]
    # One array for the sum and the slope: on CPU each array costs a pass over memory.
    exps = jnp.exp(shifted) * _elsewhere(z, ids)
    others = exps.sum(-1)
    total = others + jnp.exp(label)
    # log1p: of a sure network's loss, 1e-9, a logarithm of 1 + 1e-9 leaves nothing.
    log_total = jnp.log1p(others + jnp.expm1(label))
    expected = label if smoothing == 0 else smoothing * shifted.mean(-1)
    if 0 < smoothing < 1:
        expected = expected + (1 - smoothing) * label
    loss = log_total - expected
    slope = jnp.where(chosen, -(others / total)[..., None], exps / total[..., None])
    if smoothing:
        slope = slope + (jnp.where(chosen, smoothing, 0.0) - smoothing / num_classes)
    ok = (ids >= 0) & (ids < num_classes) & _is_distribution(largest, total)
    loss = jnp.where(ok, loss, jnp.nan)
    p = jnp.where(chosen, jnp.exp(label)[..., None], exps) / total[..., None]
    return _add_z_loss(loss, slope, ok, p, log_total + largest, z_loss)


@jax.custom_jvp
def _pick(z: Float[Array, "*batch k"], ids: Integer[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return each row's chosen logit; some logit of the row where the id is no class.

    The one gather among the losses: XLA's CPU backend needs two passes over memory for a one-hot
    sum, which makes the loss and its gradient half as slow again. Derivatives are one-hot.
    """
    if jax.typeof(z).sharding.spec[-1] is not None:
        # A gather along an axis that is split over an explicit mesh is refused.
        return jnp.where(one_hot(ids, z.shape[-1]), z, 0.0).sum(-1)
    return jnp.take_along_axis(z, ids[..., None], -1, mode="clip")[..., 0]


@_pick.defjvp
def _pick_rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (z, ids), (dz, _) = primals, tangents
    return _pick(z, ids), jnp.where(one_hot(ids, z.shape[-1]), dz, 0.0).sum(-1)


def _elsewhere(z: Float[Array, "*batch k"], ids: Integer[Array, "*batch"]) -> Array:
    """Return 0 at the chosen class and 1 elsewhere, as a factor.

    Made by arithmetic, since on CPU exp beside a comparison with the class takes twice the time.
    """
    classes = jax.lax.broadcasted_iota(ids.dtype, z.shape, ids.ndim)
    return jnp.minimum(jnp.abs((classes - ids[..., None]).astype(z.dtype)), 1.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _soft(
    z: Float[Array, "*batch k"],
    q: Float[Array, "*batch k"],
    ok: Bool[Array, "*batch"],
    z_loss: float,
) -> Float[Array, "*batch"]:
    return _soft_parts(z, q, ok, z_loss)[0]


def _soft_rule(z_loss: float, primals: Any, tangents: Any) -> Any:
    (z, q, ok), (dz, dq, _) = primals, tangents
    loss, slope, sound, surprise = _soft_parts(z, q, ok, z_loss)
    total = jnp.zeros_like(loss)
    if not isinstance(dz, SymbolicZero):
        total = total + (slope * dz + poison(dz, sound[..., None])).sum(-1)
    if not isinstance(dq, SymbolicZero):
        # An impossible class has an infinite surprise, and so the target's slope is. The factor
        # also keeps the compiler from taking the slope of fixed logits for a constant to fold.
        good = nan_unless(sound, loss.dtype)[..., None]
        total = total + steer(dq, surprise * good).sum(-1)
    return loss, total


_soft.defjvp(_soft_rule, symbolic_zeros=True)


def _soft_parts(z: Array, q: Array, ok: Array, z_loss: float) -> tuple[Array, ...]:
    """Return the loss, its finite slope for the logits, the sound rows, and -log softmax."""
    largest = jax.lax.stop_gradient(z.max(-1))
    shifted = _shift(z, largest)
    exps = jnp.exp(shifted)
    # The largest class's 1 is left out: log(1 + rest) and 1 - p = rest / total don't cancel. Of
    # several largest ones rest is more than 1, and nothing cancels.
    full, alone = exps.sum(-1), (exps - jnp.floor(exps)).sum(-1)
    rest = jnp.where(full - alone < 1.5, alone, full - 1)
    total = 1 + rest
    log_total = jnp.log1p(rest)
    # Summed, then masked: on CPU the sum of a masked array costs two passes over memory more.
    mass = jnp.where(ok, q.sum(-1), 0.0)
    q = jnp.where(ok[..., None], q, 0.0)
    loss = log_total * mass - jnp.where(q == 0, 0.0, q * shifted).sum(-1)
    share, others = (mass / total)[..., None], rest[..., None] - (exps - 1)
    slope = jnp.where(exps == 1, (mass[..., None] - q) - share * others, share * exps - q)
    sound = ok & _is_distribution(largest, total)
    loss = jnp.where(sound, loss, jnp.nan)
    p = exps / total[..., None]
    loss, slope, sound = _add_z_loss(loss, slope, sound, p, log_total + largest, z_loss)
    return loss, slope, sound, log_total[..., None] - shifted


def _add_z_loss(
    loss: Array, slope: Array, ok: Array, p: Array, log_normalizer: Array, z_loss: float
) -> tuple[Array, Array, Array]:
    if z_loss == 0:
        return loss, slope, ok
    # At an infinite normaliser the penalty is infinite and has no slope.
    finite = jnp.isfinite(log_normalizer)
    safe = jnp.where(finite, log_normalizer, 0.0)
    loss = loss + z_loss * log_normalizer * log_normalizer
    return loss, slope + 2 * z_loss * safe[..., None] * p, ok & finite


@jax.custom_jvp
def _shift(logits: Float[Array, "*batch k"], largest: Array) -> Float[Array, "*batch k"]:
    """Subtract the largest logit, so that exp can't overflow; softmax doesn't see a shift.

    A row whose largest logit is +inf has all of its probability there, and a row that is no
    distribution becomes zeros, whose slopes are finite.
    """
    top = largest[..., None]
    limit = jnp.where((top == jnp.inf) & (logits < jnp.inf), -jnp.inf, 0.0).astype(logits.dtype)
    return jnp.where(jnp.isfinite(top), logits - top, limit)


@_shift.defjvp
def _shift_rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
    logits, largest = primals
    return _shift(logits, largest), tangents[0]


def _is_distribution(largest: Array, total: Array) -> Bool[Array, "*batch"]:
    """Return whether softmax has a limit: no NaN, not all -inf, no two of +inf."""
    return jnp.isfinite(largest) | ((largest == jnp.inf) & (total == 1))


@rowwise
def _squares(p: Float[Array, "*batch d"], t: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    return jnp.square(p - t).sum(-1)
