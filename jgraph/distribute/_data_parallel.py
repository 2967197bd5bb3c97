"""The state on every device, the batch split over them."""

from __future__ import annotations

from jgraph.distribute._strategy import Strategy, first_devices


class DataParallel(Strategy):
    """The state is on every device, each batch is split over them.

    The program sees the whole batch: XLA splits its work and adds the communication. So BatchNorm
    sees every example, dropout draws another mask for each, and a loss may couple any examples of
    a batch, exactly as on one device.

    Args:
        n: how many devices; None takes all.

    Raises:
        InputError: there are fewer devices.

    Source:
        `tf.distribute.MirroredStrategy`.

    Example:
        >>> DataParallel(2).num_devices
        2
    """

    def __init__(self, n: int | None = None) -> None:
        super().__init__(first_devices(n))
