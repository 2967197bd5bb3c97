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
    if len(penalties) > 1 and folds_N is None:
        raise InputError(f"to choose among {len(penalties)} penalties, pass folds_N")
    count = len(labels_N)
    held_out = np.zeros(count, bool) if held_out_N is None else held_out_N
    weights = np.ones(count, np.float32) if weights_N is None else weights_N.astype(np.float32)
    train = np.where(held_out, np.float32(0), weights)
    center, basis, z = _reduce(features_ND.astype(np.float32), train)
    problem = (jnp.asarray(z), jnp.asarray(labels_N, jnp.int32))
    fit = functools.partial(_fit, *problem, num_classes=num_classes)
    report: CrossValidation | None = None
    if len(penalties) > 1 and folds_N is not None:
        report = _cross_validate(fit, problem, train, np.where(held_out, -1, folds_N), penalties)
    chosen = min(penalties) if report is None else penalties[int(np.argmin(report.losses))]
    # The same batched program as in cross-validation, so that nothing compiles twice.
    params, _, curve, steps = fit(train[None], held_out.astype(np.float32)[None], chosen)
    kernel = np.asarray(params["kernel"][0])
    kernel = kernel if basis is None else basis @ kernel
    bias = np.asarray(params["bias"][0]) - center @ kernel
    rows = np.asarray(curve[0, : int(steps[0])])
    return LogisticFit(kernel, bias, chosen, Curve(*rows.T), report)


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


def _cross_validate(
    fit: Any,
    problem: tuple[Array, Array],
    train_N: np.ndarray,
    folds_N: np.ndarray,
    penalties: tuple[float, ...],
) -> CrossValidation:
    folds = np.unique(folds_N[folds_N >= 0])
    held_FN = (folds_N[None] == folds[:, None]).astype(np.float32)
    train_FN = train_N[None] * (1 - held_FN)
    losses, accuracies, log_probabilities = [], [], []
    labels = np.asarray(problem[1])
    for penalty in penalties:
        _, log_probs_FNK, _, _ = fit(train_FN, held_FN, penalty)
        pooled = np.full(log_probs_FNK.shape[1:], np.nan, np.float32)
        for fold, row in zip(folds, np.asarray(log_probs_FNK), strict=True):
            pooled[folds_N == fold] = row[folds_N == fold]
        seen = folds_N >= 0
        weight = train_N[seen] / train_N[seen].sum()
        losses.append(float(weight @ -pooled[seen, labels[seen]]))
        accuracies.append(float(np.mean(pooled[seen].argmax(-1) == labels[seen])))
        log_probabilities.append(pooled)
    best = int(np.argmin(losses))
    return CrossValidation(penalties, tuple(losses), tuple(accuracies), log_probabilities[best])


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
