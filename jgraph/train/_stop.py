"""Ctrl-C and SIGTERM as requests: the run saves after its present step, then ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

import jax

from jgraph._eager import jit_is_off

EXIT_TERMINATED = 42
"""The exit code of a rank that saved because it was told to end: start it again to go on."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """Take Ctrl-C and SIGTERM while the context holds, in the main thread.

    A second Ctrl-C raises KeyboardInterrupt at once. With several processes JAX takes SIGTERM, on
    any of them, and has all of them stop after the same step; Ctrl-C is left as it is, and in
    debug mode, where it belongs to the debugger, too.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        alone = jax.process_count() == 1
        if alone and not jit_is_off() and threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None is a handler that isn't Python's, which couldn't be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def came(self, step: int) -> bool:
        """Return whether the run shall end after this step; every process calls it each step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self._asked = signal.SIGTERM
        return self._asked is not None

    def end(self, what: str) -> NoReturn:
        """End the run.

        Args:
            what: has been saved, and where, in a sentence.

        Raises:
            KeyboardInterrupt: after Ctrl-C; its text is the sentence.
            SystemExit: after SIGTERM; the code is 42 with several processes, else 143.
        """
        if self._asked == signal.SIGINT:
            raise KeyboardInterrupt(what)
        print(f"jgraph: stopped by SIGTERM; {what}", file=sys.stderr, flush=True)
        is_rank = jax.process_count() > 1 or "JGRAPH_PROCESS_ID" in os.environ
        raise SystemExit(EXIT_TERMINATED if is_rank else 128 + signal.SIGTERM)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._asked is not None:
                raise KeyboardInterrupt
            # Not print, which may be at work already.
            os.write(2, b"\njgraph: saving after this step; Ctrl-C again stops at once\n")
        self._asked = number
