"""Multinomial logistic regression on fixed features: the head that needs no tuning.

Full-batch L-BFGS from zero minimises the sum of the examples' cross entropies plus an L2 penalty,
the negative log posterior under a Normal prior. Folds are masks of example weights, so that every
fold and every penalty runs the same compiled program.

Shape suffixes: N examples, D features, K classes, F folds, T iterations.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jgraph._errors import InputError
from jgraph.losses import mean, sparse_softmax_cross_entropy

PENALTIES = tuple(float(10.0**e) for e in range(-4, 5))

MAX_ITERATIONS = 200

# Below these the objective, a mean over examples, moves by less than float32 can resolve.
_GRADIENT_TOLERANCE = 1e-6
_PROGRESS_TOLERANCE = 1e-7


class Curve(NamedTuple):
    """Loss and accuracy after each L-BFGS iteration, `[T]`; weight 0 on a side reads 0."""

    train_loss: np.ndarray
    train_accuracy: np.ndarray
    held_out_loss: np.ndarray
    held_out_accuracy: np.ndarray


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """What cross-validation measured, pooled over the folds, per candidate penalty.

    Args:
        penalties: the candidates, ascending.
        losses: mean held-out cross entropy of each candidate, in nats.
        accuracies: held-out accuracy of each candidate, 0 to 1.
        log_probabilities: out-of-fold, at the chosen penalty, float32 `[N, K]`; a row that no
            fold holds out is NaN.
    """

    penalties: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    log_probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class LogisticFit:
    """A fitted head: `logits = features @ kernel + bias`.

    Args:
        kernel: float32 `[D, K]`.
        bias: float32 `[K]`.
        penalty: the L2 penalty it was fitted with.
        curve: loss and accuracy after each iteration.
        cross_validation: how the penalty was chosen; None when it was given.
    """

    kernel: np.ndarray
    bias: np.ndarray
    penalty: float
    curve: Curve
    cross_validation: CrossValidation | None


def balanced_weights(labels_N: np.ndarray, num_classes: int, *, beyond: float = 3.0) -> np.ndarray:
    """Return example weights that balance the classes where they are lopsided.

    Args:
        labels_N: class ids, integer `[N]`.
        num_classes: K.
        beyond: classes are left alone while the largest has at most `beyond` times the
            pictures of the smallest.

    Returns:
        float32 `[N]`, mean 1: `N / (K n_class)` beyond the ratio, otherwise all ones.

    Example:
        >>> balanced_weights(np.array([0] * 8 + [1] * 2), 2)[[0, -1]].tolist()
        [0.625, 2.5]
    """
    counts = np.bincount(labels_N, minlength=num_classes)
    present = counts[counts > 0]
    if present.size < 2 or present.max() <= beyond * present.min():
        return np.ones(labels_N.shape, np.float32)
    return (labels_N.size / (present.size * counts[labels_N])).astype(np.float32)


def fit_logistic(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    num_classes: int,
    *,
    weights_N: np.ndarray | None = None,
    held_out_N: np.ndarray | None = None,
    folds_N: np.ndarray | None = None,
    penalties: tuple[float, ...] = PENALTIES,
) -> LogisticFit:
    """Fit a multinomial logistic head, its L2 penalty chosen by cross-validation.

    Minimises `sum_i w_i CE_i + penalty / 2 * |kernel|^2`; the bias is free, so centring the
    features changes the path of the optimizer and not the optimum.

    Args:
        features_ND: float32 `[N, D]`, of unit length or of like scale.
        labels_N: class ids in `[0, K)`, integer `[N]`.
        num_classes: K.
        weights_N: float `[N]`; None means ones.
        held_out_N: bool `[N]`, rows that only measure the curve and never train.
        folds_N: integer `[N]`, the fold that holds each row out, -1 for never; needed where
            `penalties` has more than one entry.
        penalties: candidates; a single one is used as it is.

    Returns:
        The fit at the penalty with the lowest held-out cross entropy.

    Raises:
        InputError: features that aren't finite, or several penalties without folds.

    Source:
        Byrd, Lu, Nocedal and Zhu 1995 (L-BFGS); `optax.lbfgs`.

    Example:
        >>> x = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], np.float32)
        >>> fit = fit_logistic(x, np.array([0, 0, 1, 1]), 2, penalties=(0.01,))
        >>> (x @ fit.kernel + fit.bias).argmax(-1).tolist()
        [0, 0, 1, 1]
    """
    if not np.isfinite(features_ND).all():
        rows = np.flatnonzero(~np.isfinite(features_ND).all(-1))
        raise InputError(
            f"features must be finite, row {rows[0]} and {rows.size - 1} others aren't"
        )
    count = len(labels_N)
    held_out = np.zeros(count, bool) if held_out_N is None else held_out_N
    folds = np.full(count, -1) if folds_N is None else np.where(held_out, -1, folds_N)
    if len(penalties) > 1 and np.unique(folds[folds >= 0]).size < 2:
        raise InputError(
            f"to choose among {len(penalties)} penalties, at least two folds must hold rows out; "
            "pass folds_N with two or more, or a single penalty"
        )
    weights = np.ones(count, np.float32) if weights_N is None else weights_N.astype(np.float32)
    train = np.where(held_out, np.float32(0), weights)
    center, basis, z = _reduce(features_ND.astype(np.float32), train)
    problem = (jnp.asarray(z), jnp.asarray(labels_N, jnp.int32))
    # Row 0 trains on everything, the others leave a fold out: one program for all of them.
    held = [held_out, *(folds == fold for fold in np.unique(folds[folds >= 0]))]
    held_FN = np.stack(held).astype(np.float32)
    train_FN = np.stack([train * ~rows for rows in held]).astype(np.float32)
    fits = [_fit(*problem, train_FN, held_FN, p, num_classes=num_classes) for p in penalties]
    report = None
    if len(penalties) > 1:
        report = _cross_validation(fits, labels_N, train, folds, penalties)
    best = 0 if report is None else int(np.argmin(report.losses))
    params, _, curve, steps = fits[best]
    kernel = np.asarray(params["kernel"][0])
    kernel = kernel if basis is None else basis @ kernel
    bias = np.asarray(params["bias"][0]) - center @ kernel
    rows = np.asarray(curve[0, : int(steps[0])])
    return LogisticFit(kernel, bias, penalties[best], Curve(*rows.T), report)


def _reduce(x_ND: np.ndarray, w_N: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Centre, and rotate into the examples' span where it is smaller than D.

    An L2 penalty doesn't see a rotation and the optimum lies in the span, so this is exact.
    """
    center = (w_N @ x_ND) / w_N.sum()
    centered = x_ND - center
    if x_ND.shape[0] >= x_ND.shape[1]:
        return center, None, centered
    basis, upper = np.linalg.qr(centered.T)
    return center, basis, np.ascontiguousarray(upper.T)


def _cross_validation(
    fits: list[Any],
    labels_N: np.ndarray,
    train_N: np.ndarray,
    folds_N: np.ndarray,
    penalties: tuple[float, ...],
) -> CrossValidation:
    seen = folds_N >= 0
    weight = train_N[seen] / train_N[seen].sum()
    losses, accuracies, pooled = [], [], []
    for _, log_probs_FNK, _, _ in fits:
        out_of_fold = np.full(log_probs_FNK.shape[1:], np.nan, np.float32)
        for row, fold in enumerate(np.unique(folds_N[seen]), 1):
            out_of_fold[folds_N == fold] = np.asarray(log_probs_FNK[row])[folds_N == fold]
        losses.append(float(weight @ -out_of_fold[seen, labels_N[seen]]))
        accuracies.append(float(np.mean(out_of_fold[seen].argmax(-1) == labels_N[seen])))
        pooled.append(out_of_fold)
    best = int(np.argmin(losses))
    return CrossValidation(penalties, tuple(losses), tuple(accuracies), pooled[best])


@functools.partial(jax.jit, static_argnames="num_classes")
def _fit(
    z_ND: Float[Array, "n d"],
    labels_N: Int[Array, " n"],
    train_FN: Float[Array, "f n"],
    held_FN: Float[Array, "f n"],
    penalty: Float[Array, ""] | float,
    *,
    num_classes: int,
) -> tuple[dict[str, Array], Float[Array, "f n k"], Float[Array, "f t 4"], Int[Array, " f"]]:
    """Return params, log probabilities, curve and iteration count of every fold."""
    one = functools.partial(_fit_one, z_ND, labels_N, jnp.float32(penalty), num_classes)
    return jax.vmap(one)(train_FN, held_FN)


def _fit_one(
    z_ND: Float[Array, "n d"],
    labels_N: Int[Array, " n"],
    penalty: Float[Array, ""],
    num_classes: int,
    train_N: Float[Array, " n"],
    held_N: Float[Array, " n"],
) -> tuple[dict[str, Array], Float[Array, "n k"], Float[Array, "t 4"], Int[Array, ""]]:
    scale = penalty / (2 * train_N.sum())

    def logits(params: dict[str, Array]) -> Array:
        return z_ND @ params["kernel"] + params["bias"][None]

    def objective(params: dict[str, Array]) -> Array:
        data = mean(sparse_softmax_cross_entropy(logits(params), labels_N), train_N)
        return data.value() + scale * jnp.sum(params["kernel"] ** 2)

    def measure(params: Any) -> Array:
        z = logits(params)
        values = sparse_softmax_cross_entropy(z, labels_N), z.argmax(-1) == labels_N
        return jnp.stack([mean(v, w).value() for w in (train_N, held_N) for v in values])

    optimizer = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, _, _, step, going = carry
        return going & (step < MAX_ITERATIONS)

    def iterate(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        params, state, curve, step, _ = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        params = optax.apply_updates(params, updates)
        going = (optax.tree.norm(gradient) > _GRADIENT_TOLERANCE) & (
            value - optax.tree.get(state, "value") > _PROGRESS_TOLERANCE
        )
        return params, state, curve.at[step].set(measure(params)), step + 1, going

    zero = {
        "kernel": jnp.zeros((z_ND.shape[1], num_classes)),
        "bias": jnp.zeros(num_classes),
    }
    start = (zero, optimizer.init(zero), jnp.zeros((MAX_ITERATIONS, 4)), jnp.int32(0), True)
    params, _, curve, steps, _ = jax.lax.while_loop(unfinished, iterate, start)
    return params, jax.nn.log_softmax(logits(params)), curve, steps
