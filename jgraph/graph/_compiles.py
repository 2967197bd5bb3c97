"""Counts what XLA compiles, by thread: the one way to see a compilation without a trace."""

from __future__ import annotations

import threading

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class Compiles:
    """How often this process has compiled.

    `total` may be read without a lock: it changes at each compilation, in whatever thread.
    """

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()
        self._last: dict[int, tuple[int, float]] = {}
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def since(self, total: int) -> float | None:
        """Return the seconds of this thread's last compilation, None if `total` was after it."""
        count, seconds = self._last.get(threading.get_ident(), (0, 0.0))
        return seconds if count > total else None

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            with self._lock:
                self.total += 1
                self._last[threading.get_ident()] = self.total, duration_secs


COMPILES = Compiles()
