"""The strategy for people who don't want to choose one."""

from __future__ import annotations

import jax

from jgraph.distribute._data_parallel import DataParallel
from jgraph.distribute._one_device import OneDevice
from jgraph.distribute._strategy import Strategy


def auto() -> Strategy:
    """Return `DataParallel` over all devices, `OneDevice` where there is one.

    Example:
        >>> import jax
        >>> auto().num_devices == jax.device_count()
        True
    """
    return DataParallel() if jax.device_count() > 1 else OneDevice()
