"""BatchNorm over all replicas of a strategy, without a word of it in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from flax import nnx

from jgraph._replicas import replica_axis
from jgraph.graph._nnx import walk


@contextlib.contextmanager
def synchronised(objects: Any) -> Iterator[None]:
    """Let each BatchNorm that has no axis of its own normalise over all replicas.

    `jgraph.function` does so for the objects it is given; this is for code that makes its models
    inside the traced function, with `nnx.merge`. For the whole batch it does nothing.

    Args:
        objects: NNX objects of this trace.
    """
    axis = replica_axis()
    changed = []
    if axis is not None:
        changed = [x for _, x in walk(objects) if _is_local_norm(x)]
    for norm in changed:
        norm.axis_name = axis
    try:
        yield
    finally:
        for norm in changed:
            norm.axis_name = None


def _is_local_norm(x: Any) -> bool:
    return isinstance(x, nnx.BatchNorm) and x.axis_name is None
