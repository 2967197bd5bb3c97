"""What every loss shares: checked arguments, and rows that stand alone.

A bad value raises where it is known (no jit) and is NaN in loss and gradient where it isn't. A
loss function is written plainly, multiplied by `nan_unless(ok)`, and decorated with `rowwise`,
which sees to it that neither this NaN nor any other reaches the gradient of a row that doesn't
count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jgraph._errors import InputError
from jgraph.losses._precision import widen

# Probabilities out of a float32 softmax over many classes sum to 1 within the first, those of half
# precision within the second.
_SUM_TOLERANCE, _HALF_SUM_TOLERANCE = 1e-3, 2e-2


def predictions(name: str, x: ArrayLike) -> Float[Array, "*shape"]:
    """Return a network's output in the precision it is computed in; refuse integers and bools.

    Raises:
        InputError: x isn't float.
    """
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name} must be float, got {array.dtype} of shape {array.shape}")
    return widen(array)


def like(name: str, x: ArrayLike, other_name: str, other: Array) -> Float[Array, "*shape"]:
    """Return x, of any real type, in the type of `other`, whose shape it must have.

    Raises:
        InputError: x isn't real, or is of another shape: nothing is broadcast.
    """
    array = jnp.asarray(x)
    if array.shape != other.shape:
        raise InputError(
            f"{name} must have the shape of the {other_name}, got {name} {array.shape} and "
            f"{other_name} {other.shape}; broadcast by hand where that is meant"
        )
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"{name} must be real, got {array.dtype} of shape {array.shape}")
    return array.astype(other.dtype)


def class_axis(name: str, x: Array) -> int:
    """Return K, the size of the last axis.

    Raises:
        InputError: x has no last axis, or an empty one.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise InputError(f"{name} must end in a class axis [..., K], got shape {x.shape}")
    return x.shape[-1]


def number(
    name: str, x: Any, low: float | int, high: float | int, *, open_low: bool = False
) -> float:
    """Return an option of a loss, a plain Python number in [low, high], or (low, high].

    Raises:
        InputError: it is an array, or outside, or NaN.
    """
    bracket = "(" if open_low else "["
    # bool is an int; jax scalars would be traced, and then couldn't be looked at.
    if isinstance(x, bool) or not isinstance(x, (int, float, np.floating, np.integer)):
        raise InputError(f"{name} must be a Python number, got {type(x).__name__}")
    inside = low < x <= high if open_low else low <= x <= high
    if not inside or math.isinf(x):
        end = ")" if math.isinf(high) else "]"
        raise InputError(f"{name} must lie in {bracket}{low:g}, {high:g}{end}, got {float(x):g}")
    return float(x)


def known(x: ArrayLike) -> np.ndarray | None:
    """Return the values where this host knows them: None while tracing and for remote shards."""
    if isinstance(x, jax.core.Tracer):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)


def check_values(name: str, x: ArrayLike, ok: Array, must: str) -> Bool[Array, "*shape"]:
    """Raise where a value is known to be bad; return `ok` for `nan_unless` where it isn't known.

    Args:
        name: the argument's name, as the message's first word.
        x: the argument, of the shape of `ok`.
        ok: whether each value is good, bool `[...]`. Write it so that NaN isn't: `x >= 0`.
        must: what must hold, as "lie in [0, 1]".

    Raises:
        InputError: naming the first bad row, its value, and how many are bad.
    """
    truth, values = known(ok), known(x)
    if truth is not None and values is not None and not truth.all():
        bad = np.argwhere(~truth)
        first = tuple(int(i) for i in bad[0])
        raise InputError(
            f"{name} must {must}; {_row(first)} has {values[first]:.7g} "
            f"({len(bad)} of {truth.size} do not)"
        )
    return ok


def check_distribution(
    name: str, x: ArrayLike, probs: Float[Array, "*batch k"]
) -> Bool[Array, "*batch"]:
    """Raise where rows are known to be no distribution; return which are for `nan_unless`.

    Args:
        name: the argument's name.
        x: the probabilities as they came: half precision may sum to 1 less exactly.
        probs: the same, in the precision they are computed in, `[..., K]`.

    Raises:
        InputError: naming the first row outside [0, 1], or of another sum than 1.
    """
    check_values(name, x, (probs >= 0) & (probs <= 1), "lie in [0, 1]")
    half = jnp.asarray(x).dtype in (jnp.bfloat16, jnp.float16)
    sums = probs.sum(-1)
    near = jnp.abs(sums - 1) <= (_HALF_SUM_TOLERANCE if half else _SUM_TOLERANCE)
    near = check_values(name, sums, near, "sum to 1 over the last axis")
    # On CPU reductions of the array itself are faster than of what is compared.
    return near & (probs.min(-1) >= 0) & (probs.max(-1) <= 1)


def check_ids(name: str, labels: ArrayLike, num_classes: int) -> None:
    """Raise on a label outside [0, K), where its value is known on this host.

    Args:
        name: the argument's name.
        labels: as they came: numpy's 64 bits are looked at before jax narrows them.
        num_classes: K.

    Raises:
        InputError: naming the first bad row, its id and K.
    """
    ids = known(labels)
    if ids is None:
        return
    bad = np.argwhere((ids < 0) | (ids >= num_classes))
    if bad.size:
        first = tuple(int(i) for i in bad[0])
        raise InputError(
            f"{name} must lie in [0, {num_classes}), the {num_classes} classes of the logits; "
            f"{_row(first)} has label {ids[first]} ({len(bad)} of {ids.size} labels are outside); "
            "for a padding id use jgraph.losses.ignore"
        )


def class_ids(
    labels: ArrayLike, logits_shape: tuple[Any, ...], *, check: bool = True
) -> Integer[Array, "*batch"]:
    """Return integer labels for logits `[..., K]`, checked as far as their values are known.

    Args:
        labels: class ids, integer, of the shape of the logits without the class axis.
        logits_shape: `[..., K]`, of logits that are there or would be.
        check: whether to look at values, too.

    Raises:
        InputError: the labels aren't integer, of another shape, or outside [0, K).
    """
    ids = jnp.asarray(labels)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(
            f"labels must be integer class ids, got {ids.dtype} of shape {ids.shape} for "
            f"logits of shape {logits_shape}"
        )
    if ids.shape != logits_shape[:-1]:
        raise InputError(
            f"labels must have the shape of the logits without the class axis, "
            f"{logits_shape[:-1]}, got labels {ids.shape} for logits {logits_shape}"
        )
    if check:
        check_ids("labels", labels if isinstance(labels, np.ndarray) else ids, logits_shape[-1])
    return ids


def one_hot(labels: Integer[Array, "*batch"], num_classes: int) -> Bool[Array, "*batch k"]:
    """One-hot instead of a gather: it lowers everywhere, and no id wraps or is clamped.

    A label outside [0, K) has no class: `one_hot(...).any(-1)` is False.
    """
    # Counting classes in int8 would wrap at 127.
    ids = labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels
    classes = jax.lax.broadcasted_iota(ids.dtype, (*ids.shape, num_classes), ids.ndim)
    return classes == ids[..., None]


def nan_unless(ok: Bool[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """Return 1 where ok, else NaN. A factor, not a where: it reaches the gradient as well.

    Not for a bool turned into a float: XLA takes that times NaN for a choice between NaN and 0.
    What has no gradient takes a where.
    """
    return jnp.where(ok, 1.0, jnp.nan).astype(dtype)


def rowwise(fn: Callable[..., Array]) -> Callable[..., Array]:
    """Decorate a loss whose rows don't see each other: a row that doesn't count has gradient 0.

    Backwards, a row's slope times the 0 of its weight is NaN where the slope is NaN or infinite,
    and one such row spoils the whole step. Here the gradient of such a row is 0 where what comes
    from above is 0; anywhere else it is what the formula says, infinity included, and NaN for all
    of a row whose value is NaN.

    Any transformation of jax applies (forward mode and second order as well): the rule is made of
    products alone. In reverse mode the slopes are what is kept from the forward pass.

    Args:
        fn: from arrays `[*batch, *own]` to `[*batch]`, row i of the result depending on row i
            of each array alone. It may give NaN slopes, never finite wrong ones: poison bad rows
            with `nan_unless`. Arrays that aren't float have no gradient. Keyword arguments are
            static options. Broadcast scalars that have a gradient to rows before the call.

    Returns:
        The function with the same value and the guarded gradient.
    """

    @functools.wraps(fn)
    def call(*arrays: Array, **options: Any) -> Array:
        return _guard(functools.partial(fn, **options))(*arrays)

    return call


def _guard(fn: Callable[..., Array]) -> Callable[..., Array]:
    guarded = jax.custom_jvp(fn)

    def rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
        moving = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def of_moving(*xs: Array) -> Array:
            arrays = list(primals)
            for i, x in zip(moving, xs, strict=True):
                arrays[i] = x
            return fn(*arrays)

        value, pull = jax.vjp(of_moving, *(primals[i] for i in moving))
        total = jnp.zeros_like(value)
        # A maximum passes NaN on to one of its arguments alone.
        good = nan_unless(~jnp.isnan(value), value.dtype)
        for i, slope in zip(moving, pull(jnp.ones_like(value)), strict=True):
            own_axes = tuple(range(value.ndim, slope.ndim))
            slope = slope * jnp.expand_dims(good, own_axes)
            total = total + steer(tangents[i], slope).sum(own_axes)
        return value, total

    guarded.defjvp(rule, symbolic_zeros=True)
    return guarded


def poison(tangent: Array, ok: Bool[Array, "*shape"]) -> Array:
    """Return a linear function of the tangent: 0 where ok or where the tangent is 0, else NaN.

    For a hand-written custom_jvp whose slopes are finite: added to its tangent, it makes the
    gradient of bad rows NaN, but not of those with weight 0. Of a row's tangent pass all entries,
    and sum the result: of their sum, which may be 0, the derivative would be sound.
    """
    huge = jnp.where(ok, jnp.zeros_like(tangent), _huge(tangent.dtype))
    # Two infinities of opposite sign. The factors are arrays, since the compiler folds constants,
    # and huge * huge is infinite, which times 0 is NaN.
    return tangent * huge * huge * huge + tangent * -huge * -huge * -huge


def steer(tangent: Array, slope: Array) -> Array:
    """Return tangent * slope, linear in the tangent, with 0 * infinity = 0 * NaN = 0.

    A where that looks at the tangent would not be linear, so that it could not be transposed.
    Multiplying thrice by a huge number is: 0 stays 0, and whatever else becomes infinite. A slope
    that may be a constant of the compiled code must be multiplied by `nan_unless(ok)` before, where
    ok depends on the moving argument: of two infinite constants the compiler makes one.
    """
    finite = jnp.isfinite(slope)
    zero, huge = jnp.zeros_like(slope), jnp.full_like(slope, _huge(slope.dtype))
    up = jnp.where(jnp.isinf(slope), jnp.where(slope < 0, -huge, huge), zero)
    return (
        tangent * jnp.where(finite, slope, zero)
        + tangent * up * up * up
        + poison(tangent, ~jnp.isnan(slope))
    )


def _huge(dtype: Any) -> Array:
    return jnp.asarray(jnp.finfo(dtype).max / 4, dtype)


def _row(index: tuple[int, ...]) -> str:
    """Name a row; a scalar has none."""
    if not index:
        return "it"
    return f"row {index[0] if len(index) == 1 else index}"
