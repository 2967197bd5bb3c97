"""Several processes that run one program: what they must decide together."""

from __future__ import annotations

import pickle
from typing import Any, TypeVar

import jax
import numpy as np

_T = TypeVar("_T")

_HEAD = 4096  # bytes of a message that come along with its length
_LENGTH = 8  # bytes that hold a length


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


def gathered(value: _T) -> list[_T]:
    """Return every process's value, in the order of the processes; all must call this.

    Values are pickled: they come from the other processes of the same program, and from nobody
    else. One of less than 4 KiB takes one message, another takes two.

    Example:
        >>> gathered({"rows": 3})
        [{'rows': 3}]
    """
    if jax.process_count() == 1:
        return [value]
    message = pickle.dumps(value)
    head = len(message).to_bytes(_LENGTH, "little") + message[: _HEAD - _LENGTH]
    found = _exchanged(head, _HEAD)
    longest = max(int.from_bytes(head[:_LENGTH], "little") for head in found)
    if longest <= _HEAD - _LENGTH:
        return [pickle.loads(head[_LENGTH:]) for head in found]
    # A power of two, since each size compiles a program.
    return [pickle.loads(m) for m in _exchanged(message, 1 << (longest - 1).bit_length())]


def is_local(tree: Any) -> bool:
    """Return whether no array of a pytree is spread over other processes' devices, too.

    Example:
        >>> is_local({"x": np.ones(3)})
        True
    """
    return all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree))


def on_each_host(tree: Any) -> Any:
    """Return a pytree with arrays spread over processes as whole NumPy arrays; all must call this.

    Example:
        >>> on_each_host({"x": np.ones(3)})
        {'x': array([1., 1., 1.])}
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils  # few programs run as several processes

    return multihost_utils.process_allgather(tree, tiled=True)


def _exchanged(message: bytes, size: int) -> list[bytes]:
    """Return every process's bytes, filled up with zeros to a size that is the same in all."""
    from jax.experimental import multihost_utils  # few programs run as several processes

    filled = np.frombuffer(message.ljust(size, b"\0"), np.uint8)
    return [row.tobytes() for row in multihost_utils.process_allgather(filled)]


def wait_for_all(name: str) -> None:
    """Wait until every process is here.

    Args:
        name: of the place, the same in all.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
