"""Several processes that run one program: what they must decide together."""

from __future__ import annotations

import jax
import numpy as np


def agreed(value: int) -> int:
    """Return the first process's value, in every process; all must call this.

    Example:
        >>> agreed(3)
        3
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils  # few programs run as several processes

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def wait_for_all(name: str) -> None:
    """Wait until every process is here.

    Args:
        name: of the place, the same in all.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
