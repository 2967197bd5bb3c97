"""The graphs of one function, and why each of them was made."""

from __future__ import annotations

import logging
import threading

from jgraph._errors import RetraceError
from jgraph.graph._graph import Graph
from jgraph.graph._jaxpr import symbolic_sizes
from jgraph.graph._reasons import reason
from jgraph.graph._signature import Signature

_LOG = logging.getLogger("jgraph")


class TooManyGraphsError(Exception):
    """Ends a trace that `max_graphs` forbids; the call turns it into a RetraceError."""


class History:
    """What one function was traced and compiled for.

    Args:
        name: the function's.
        max_graphs: how many graphs it may have, None for any number.
    """

    def __init__(self, name: str, max_graphs: int | None) -> None:
        self._name, self._max = name, max_graphs
        self._lock = threading.Lock()
        self._signatures: list[Signature] = []
        self.graphs: list[Graph] = []
        # Traced, and not yet recorded with what the call looked like; a call looks here each time.
        self.fresh: list[tuple[int, Graph]] = []

    def add(self, graph: Graph) -> None:
        """Keep a graph that is being traced in this thread until its call is described.

        Raises:
            TooManyGraphsError: there are as many graphs as there may be.
        """
        if self._max is not None and len(self.graphs) >= self._max:
            raise TooManyGraphsError
        with self._lock:
            self.fresh.append((threading.get_ident(), graph))

    def take(self) -> Graph | None:
        """Return the graph this thread has traced last, if any."""
        me = threading.get_ident()
        with self._lock:
            mine = [graph for thread, graph in self.fresh if thread == me]
            self.fresh = [item for item in self.fresh if item[0] != me]
        return mine[-1] if mine else None

    def record(self, graph: Graph, signature: Signature, *, traced: bool) -> None:
        """Say why a graph was made; from the third on, whose users may not expect them, aloud."""
        with self._lock:
            graph.reason = reason(signature, self._signatures, traced=traced)
            self.graphs.append(graph)
            self._signatures.append(signature)
            number = len(self.graphs) - 1
        if number:
            level = logging.WARNING if number > 1 else logging.INFO
            verb = "traced" if traced else "compiled"
            _LOG.log(
                level, "%s was %s again (graph %d): %s", self._name, verb, number, graph.reason
            )

    def check(self) -> None:
        """Raise where there are more graphs than may be; only a compilation gets this far.

        Raises:
            RetraceError: always names the cause.
        """
        if self._max is not None and len(self.graphs) > self._max:
            *before, last = self._signatures
            raise self._error(reason(last, before, traced=False, refused=True))

    def error(self, signature: Signature) -> RetraceError:
        """Return what to raise for a call that may not be traced."""
        return self._error(reason(signature, self._signatures, traced=True, refused=True))

    def table(self) -> str:
        """Return the history, a line for each graph."""
        if not self.graphs:
            return f"{self._name}: no graphs yet; the first call makes one"
        heads = ("graph", "operations", "FLOPs", "compiled in", "why")
        rows = [
            (
                str(i),
                f"{len(graph.jaxpr.eqns):,}",
                "" if symbolic_sizes(graph.jaxpr) else f"{graph.flops:.3g}",
                "" if graph.compile_seconds is None else f"{graph.compile_seconds:.2f} s",
                graph.reason,
            )
            for i, graph in enumerate(self.graphs)
        ]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i == len(heads) - 1 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (heads, *rows)
        ]
        return "\n".join((self._name, *lines))

    def _error(self, why: str) -> RetraceError:
        return RetraceError(
            f"{self._name} may have {self._max} graph{'s' if self._max != 1 else ''} "
            f"(max_graphs={self._max}), and this call needs another one: {why}"
        )
