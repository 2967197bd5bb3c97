"""The optimizer that most runs want, as one call; anything else is optax."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jgraph._errors import InputError


def adamw(
    learning_rate: float,
    steps: int,
    *,
    weight_decay: float = 1e-2,
    end: float = 0.0,
    clip: float = 1.0,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Return AdamW for a run of known length: clip, warm up, cool down, decay matrices only.

    The rate rises over the first tenth of the steps and falls as a cosine over the rest. Weight
    decay leaves biases and the scales of normalisations alone: Params of less than two axes.

    Args:
        learning_rate: at its peak.
        steps: of the run.
        weight_decay: per step, times the rate.
        end: the rate at the end, as a part of its peak.
        clip: the largest norm of all gradients together.
        b2: decay of the second moments.

    Raises:
        InputError: no step.

    Source:
        Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019.

    Example:
        >>> from flax import nnx
        >>> from jgraph.train import make_step
        >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        >>> step = make_step(model, lambda model, x: model(x)[:, 0] ** 2, adamw(0.1, steps=10))
        >>> losses = [float(step(jax.numpy.ones((4, 2)))["loss"]) for _ in range(10)]
        >>> losses[-1] < losses[0]
        True
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    warm_up = max(1, steps // 10)
    first = learning_rate / (warm_up + 1)  # not 0: a run of one step would learn nothing
    schedule = optax.warmup_cosine_decay_schedule(
        first, learning_rate, warm_up, steps + 1, learning_rate * end
    )

    def is_matrix(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    optimizer = optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer)
