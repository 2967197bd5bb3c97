"""Strategies by name, and the one for people who don't want to choose."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jgraph._errors import InputError
from jgraph._suggest import did_you_mean
from jgraph.distribute._data_parallel import DataParallel
from jgraph.distribute._fsdp import FSDP
from jgraph.distribute._one_device import OneDevice
from jgraph.distribute._pmap import Pmap
from jgraph.distribute._strategy import Strategy


def auto() -> Strategy:
    """Return `DataParallel` over all devices, `OneDevice` where there is one.

    Example:
        >>> import jax
        >>> auto().num_devices == jax.device_count()
        True
    """
    return DataParallel() if jax.device_count() > 1 else OneDevice()


_BY_NAME: dict[str, Callable[[], Strategy]] = {
    "auto": auto,
    "one": OneDevice,
    "data_parallel": DataParallel,
    "fsdp": FSDP,
    "pmap": Pmap,
}


def names() -> tuple[str, ...]:
    """Return the names that `create` knows.

    Example:
        >>> names()
        ('auto', 'one', 'data_parallel', 'fsdp', 'pmap')
    """
    return tuple(_BY_NAME)


def create(name: str) -> Strategy:
    """Return a strategy over all devices by its name, for command lines.

    Args:
        name: one of `names()`.

    Raises:
        InputError: there is no such strategy.

    Example:
        >>> create("fsdp").num_devices == jax.device_count()
        True
    """
    if name not in _BY_NAME:
        raise InputError(
            f"the strategy must be one of {', '.join(_BY_NAME)}, got {name!r}"
            f"{did_you_mean(name, _BY_NAME)}"
        )
    return _BY_NAME[name]()
