"""What a person sees while it runs: sentences on standard output, bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Console:
    """Speaks to the person, or keeps quiet.

    Args:
        verbose: False for silence; `notices` are collected all the same.

    Attributes:
        notices: everything unusual that was said, for the report.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.notices: list[str] = []

    def say(self, text: str = "") -> None:
        """Print a line."""
        if self.verbose:
            # A bar on the same terminal is taken away for the line and drawn again below it.
            with tqdm.external_write_mode(file=sys.stdout):
                self._print(text)

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self.verbose = False  # the reader has seen enough; the work goes on

    def notice(self, text: str) -> None:
        """Print something unusual and keep it for the report."""
        self.notices.append(text)
        self.say(f"Note: {text}")

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """Show progress with the time left; yields the function that counts on."""
        # Where nobody watches, a bar every ten seconds is enough.
        slow = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(
            total=total, desc=what, unit=unit, disable=not self.verbose, mininterval=slow
        ) as bar:
            yield bar.update
