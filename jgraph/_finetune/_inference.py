"""A method of a network over all pictures, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jgraph.data import Pictures
from jgraph.models import Classifier

Method = Callable[[Classifier, Array], Array]


class Forward:
    """One method of a classifier as a compiled function of a batch of pictures.

    Args:
        model: its present weights are used; it isn't changed.
        method: called as `method(model, pictures)`, pictures uint8 `[B, S, S, 3]`.
    """

    def __init__(self, model: Classifier, method: Method) -> None:
        graphdef, self._state = nnx.split(model)

        def forward(state: nnx.State, pictures: Array) -> Array:
            return method(nnx.merge(graphdef, state), pictures)

        self._forward = jax.jit(forward)

    def __call__(
        self, pictures: Pictures, on_batch: Callable[[int], object] = lambda count: None
    ) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
        """Return the method's rows for all N pictures, and which of them could be read.

        Args:
            pictures: the batches.
            on_batch: called after every batch with its number of pictures.

        Returns:
            float32 `[N, D]`, zero where a picture could not be read, and bool `[N]`.
        """
        rows: np.ndarray | None = None
        good = np.zeros(len(pictures.paths), bool)
        for batch in pictures:
            out = np.asarray(self._forward(self._state, batch["picture"]))
            if rows is None:
                rows = np.zeros((good.size, *out.shape[1:]), out.dtype)
            real = batch["weight"] > 0
            rows[batch["index"][real]] = out[real]
            good[batch["index"][real]] = True
            on_batch(int(real.sum()))
        assert rows is not None, "Pictures holds at least one batch"
        return rows, good
