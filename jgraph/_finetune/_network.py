"""The network of a run as a graph: to draw, to cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jgraph.graph import Graph, function
from jgraph.models import Classifier


def network_graph(model: Classifier) -> Graph:
    """Return the graph of a classifier, from one picture uint8 `[1, S, S, 3]` to its logits."""
    size = model.preprocessing.image_size

    def classify(model: Classifier, picture: Array) -> Array:
        return model(picture)

    return function(classify).graph(model, jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8))
