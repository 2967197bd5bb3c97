"""Ctrl-C that is not lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Python prints and drops what these raise: JAX's callback at each garbage collection, finalisers.
_DROP_EXCEPTIONS = frozenset({"_xla_gc_callback", "__del__"})
_AGAIN_SECONDS = 0.01


@contextlib.contextmanager
def interrupts_that_arrive() -> Iterator[None]:
    """Raise KeyboardInterrupt where it can't be dropped: a moment later, if need be."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _handle(number: int, frame: FrameType | None) -> None:
    if _is_dropped_in(frame):
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise KeyboardInterrupt


def _is_dropped_in(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _DROP_EXCEPTIONS:
            return True
        frame = frame.f_back
    return False
