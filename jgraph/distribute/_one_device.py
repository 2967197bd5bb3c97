"""Everything on one device."""

from __future__ import annotations

from typing import Any

import jax

from jgraph._errors import InputError
from jgraph.distribute._strategy import Strategy


class OneDevice(Strategy):
    """Everything on one device.

    Args:
        device: None takes JAX's first one.

    Raises:
        InputError: it is no device of JAX.

    Source:
        `tf.distribute.OneDeviceStrategy`.
    """

    def __init__(self, device: Any = None) -> None:
        if device is not None and not isinstance(device, jax.Device):
            raise InputError(
                f"device must be one of jax.devices(), got {device!r}; for another backend take "
                "one of jax.devices('cpu')"
            )
        super().__init__([jax.devices()[0] if device is None else device])
