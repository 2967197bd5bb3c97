"""Tracebacks that hold no arrays, so that an error someone keeps doesn't block a donation."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from types import FrameType

import jax

_INTERNAL = tuple(
    str(pathlib.Path(file).parent) for file in (jax.__file__, __file__) if file is not None
)


def release_arrays(error: BaseException) -> None:
    """Empty the finished frames of JAX and of jgraph that an error leads to.

    A notebook keeps the last error, its traceback keeps the frames, and theirs are the arguments
    of the call. The frames of the user's own code, which a debugger shows, stay as they are:
    while a function is traced they hold no arrays.
    """
    here = sys._getframe(1)
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__]
        step = one.__traceback__
        while step is not None:
            _clear(step.tb_frame, here, seen)
            step = step.tb_next


def _clear(frame: FrameType | None, here: FrameType, seen: set[int]) -> None:
    """Empty a frame and those that called it, up to this call."""
    while frame is not None and frame is not here and id(frame) not in seen:
        seen.add(id(frame))
        caller = frame.f_back
        if frame.f_code.co_filename.startswith(_INTERNAL):
            with contextlib.suppress(RuntimeError):  # it is still running
                frame.clear()
        frame = caller
