"""Losses as likelihoods: per-example values, and the one reduction that stays right.

A loss returns one value per example; `mean(values, weights)` sums them into a `Mean`, which keeps
total and weight apart so that masks, accumulation and replicas add up before anything is divided.
"""

import os

if __name__ != "jgraph.losses":
    raise ImportError(
        f"import jgraph.losses, not {__name__}: the folder losses/ is reached through the link "
        "jgraph/losses, and a second copy under another name would have its own types"
    )
__path__ = [os.path.realpath(p) for p in __path__]

from jgraph.losses._classification import (
    sparse_softmax_cross_entropy as sparse_softmax_cross_entropy,
)
from jgraph.losses._reductions import Mean as Mean
from jgraph.losses._reductions import mean as mean
