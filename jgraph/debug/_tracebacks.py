"""Tracebacks that end at the user's line."""

from __future__ import annotations

import functools
import os
from types import TracebackType

import jax

from jgraph.debug._frames import is_users


def trim(error: BaseException) -> None:
    """Leave JAX's frames, and those of debug mode, out of an error's traceback.

    Where debug mode itself raised it, the user's line comes last: the message has the rest. Else
    frames of other libraries stay. The first frame stays in any case, and all of them do under
    `JAX_TRACEBACK_FILTERING=off`.
    """
    if jax.config.values["jax_traceback_filtering"] == "off":
        return
    steps: list[TracebackType] = []
    step = error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    if not steps:
        return
    kept = [steps[0], *(step for step in steps[1:] if not _is_internal(_file(step)))]
    if isinstance(error, FloatingPointError) and _file(steps[-1]).startswith(_folders()[0]):
        users = [i for i, step in enumerate(kept) if is_users(_file(step))]
        kept = kept[: users[-1] + 1] if users else kept
    # In place, since a context manager can't give an error another traceback.
    for step, following in zip(kept, [*kept[1:], None], strict=True):
        step.tb_next = following


def _file(step: TracebackType) -> str:
    return step.tb_frame.f_code.co_filename


@functools.cache
def _is_internal(file: str) -> bool:
    return os.path.realpath(file).startswith(_folders())


@functools.cache
def _folders() -> tuple[str, str]:
    debug, jax_ = (os.path.dirname(os.path.realpath(file)) for file in (__file__, jax.__file__))
    return debug + os.sep, jax_ + os.sep
