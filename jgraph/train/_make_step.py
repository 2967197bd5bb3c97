"""`jg.train.make_step`: the training step for a loop of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import optax
from flax import nnx
from jax.typing import DTypeLike

from jgraph.distribute import Strategy
from jgraph.train._objective import LossFn
from jgraph.train._step import Step


def make_step(
    model: nnx.Module,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    strategy: Strategy | None = None,
    trainable: nnx.filterlib.Filter = nnx.Param,
    freeze: str | Sequence[str] = (),
    accumulate: int = 1,
    average: float | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Step:
    """Make the training step that `train_and_evaluate` runs, for a loop of your own.

    Args:
        model: an NNX module, used in the mode it is in.
        loss_fn: as for `train_and_evaluate`.
        optimizer: an optax transformation.
        strategy: where it runs, from `jgraph.distribute`; None for where the model is.
        trainable: NNX filter of the Params that get gradients.
        freeze: globs of dotted paths; what they match gets no gradient and runs in evaluation
            mode, so that BatchNorm statistics rest too.
        accumulate: microbatches per step; their gradients add up to the batch's.
        average: decay of a moving average of the trained Params, such as 0.999; None keeps none.
        compute_dtype: what modules without a `dtype` of their own compute in, such as
            `jax.numpy.bfloat16`; the state stays as it is. Flax's BatchNorm mixes both types, so
            that it needs JAX's standard promotion.

    Returns:
        The step: `step(batch)` trains, `step.model` is the model with the state it has by then.

    Raises:
        InputError: nothing is trainable, a glob matches nothing, or an option is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> batch = {"x": jnp.array([[0.0], [1.0]]), "y": jnp.array([[1.0], [3.0]])}
        >>> def squared_error(model, batch):
        ...     return ((model(batch["x"]) - batch["y"]) ** 2)[:, 0]
        >>> step = make_step(model, squared_error, optax.sgd(0.5))
        >>> for _ in range(100):
        ...     numbers = step(batch)
        >>> print(step.model(jnp.array([[2.0]])).round(2), len(step.function.graphs))
        [[5.]] 1
    """
    return Step(
        model,
        loss_fn,
        optimizer,
        strategy=strategy,
        trainable=trainable,
        freeze=freeze,
        accumulate=accumulate,
        average=average,
        compute_dtype=compute_dtype,
    )
