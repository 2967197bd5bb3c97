"""A traced program as XLA runs it: jitted, lowered and compiled, each when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.core

from jgraph.graph._passes import EVERY, NONE, Passes, run_passes
from jgraph.graph._program import Traced
from jgraph.graph._settings import is_inside_trace

if TYPE_CHECKING:
    from jgraph.graph._file import Stored


class Memory(NamedTuple):
    """What a compiled graph needs on one device, in bytes."""

    arguments: int
    outputs: int
    temporaries: int
    """The most it needs beside its arguments and outputs while it runs."""
    reused: int
    """The part of the outputs that overwrites donated arguments."""
    code: int


class Execution:
    """Runs a graph's program; a call takes its inputs, flat, and returns its outputs.

    Args:
        name: the graph's.
        traced: the program.
        donated: the inputs whose memory the function that it was traced for may overwrite. A call
            of the graph keeps them.
        passes: which of them run.
    """

    def __init__(
        self,
        name: str,
        traced: Traced | Stored,
        donated: Sequence[int] = (),
        passes: Passes = EVERY,
    ) -> None:
        self._name, self._traced = name, traced
        self._donated, self._passes = tuple(donated), passes

    def __call__(self, *flat: Any) -> list[Any]:
        # An outer trace gets its own passes, and is drawn and saved as it was written.
        return (self._inside if is_inside_trace() else self._outside)(*flat)

    @functools.cached_property
    def lowered(self) -> Any:
        """The program as handed to XLA."""
        program = self._program(self._passes)
        return jax.jit(program, donate_argnums=self._donated).lower(*self._traced.avals)

    @functools.cached_property
    def compiled(self) -> Any:
        """The program as compiled for this machine's default device."""
        return self.lowered.compile()

    @property
    def memory(self) -> Memory:
        """What it needs there; compiles it."""
        found = self.compiled.memory_analysis()
        return Memory(
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.temp_size_in_bytes,
            found.alias_size_in_bytes,
            found.generated_code_size_in_bytes,
        )

    @functools.cached_property
    def _outside(self) -> Callable[..., list[Any]]:
        return jax.jit(self._program(self._passes))

    @functools.cached_property
    def _inside(self) -> Callable[..., list[Any]]:
        return jax.jit(self._program(NONE))

    def _program(self, passes: Passes) -> Callable[..., list[Any]]:
        traced = self._traced

        def run(*flat: Any) -> list[Any]:
            program = jax.make_jaxpr(lambda *xs: traced.run(xs))(*flat)
            program = run_passes(program, passes, name=self._name)
            return jax.core.eval_jaxpr(program.jaxpr, program.consts, *flat)

        run.__name__ = run.__qualname__ = self._name
        return run
