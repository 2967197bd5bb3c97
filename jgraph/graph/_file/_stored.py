"""A program that was read from a file, in the place of one that was traced."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from jgraph._errors import GraphFormatError, InputError
from jgraph.graph._file._dims import evaluate, symbols_of
from jgraph.graph._file._document import Document
from jgraph.graph._file._kinds import as_dtype
from jgraph.graph._file._places import restore_places
from jgraph.graph._file._replay import Replay, solve_symbols
from jgraph.graph._program import Plan


class Stored:
    """A program in a document; it stands where `Traced` does.

    Args:
        document: the program.
        tensors: its constants.
        plan: what its outputs are.
        structure: of (leaves, arrays), as in `Traced`.
        cast: what its float32 becomes.
    """

    def __init__(
        self,
        document: Document,
        tensors: Mapping[str, Any],
        plan: Plan,
        structure: Any,
        cast: str | None = None,
    ) -> None:
        self.document, self.tensors = document, tensors
        self.plan, self.structure, self._cast = plan, structure, cast

    @property
    def is_cast(self) -> bool:
        """Whether it runs in other types than its document says."""
        return self._cast is not None

    def cast(self, dtype: Any) -> Stored:
        """Return the program with another float32."""
        return Stored(self.document, self.tensors, self.plan, self.structure, jnp.dtype(dtype).name)

    @functools.cached_property
    def avals(self) -> list[jax.ShapeDtypeStruct]:
        """The types of its inputs, with symbolic sizes."""
        names: set[str] = set()
        for x in self.document.inputs:
            for size in x.shape:
                names |= symbols_of(size, "inputs") if isinstance(size, str) else set()
        try:
            listed = jax.export.symbolic_shape(
                ", ".join(sorted(names)), constraints=self.document.constraints
            )
            symbols = dict(zip(sorted(names), listed, strict=True)) if names else {}
            self._symbols = symbols
            return [
                jax.ShapeDtypeStruct(
                    tuple(evaluate(size, symbols, "inputs") for size in x.shape),
                    self._dtype(x.dtype),
                )
                for x in self.document.inputs
            ]
        except GraphFormatError:
            raise
        except Exception as error:  # JAX has many: for sizes it can't compare, symbols it reserves
            raise GraphFormatError(
                f"the sizes of the inputs and their constraints can't be kept: {error}"
            ) from error

    @functools.cached_property
    def jaxpr(self) -> ClosedJaxpr:
        """The program, traced to be looked at: its operations say where they came from.

        Raises:
            GraphFormatError: an operation can't be applied to what it is given.
        """
        avals = self.avals

        def run(*flat: Any) -> list[Any]:
            return self._replay(self._symbols, marked=True).run(flat)

        try:
            traced = jax.make_jaxpr(run)(*avals)
        except GraphFormatError:
            raise
        except Exception as error:  # whatever JAX has to say of a damaged program
            raise GraphFormatError(f"the program can't be run: {error}") from error
        return restore_places(traced, self.document.places)

    def run(self, flat: Sequence[Any]) -> list[Any]:
        """Run it, for whatever sizes the inputs have."""
        shapes = [jnp.shape(x) for x in flat]
        symbols = solve_symbols(self.document, shapes, [""] * len(flat))
        return self._replay(symbols).run([self._casted(_strong(x)) for x in flat])

    def check(self, owner: object, paths: Sequence[str], flat: Sequence[Any]) -> None:
        """Raise where inputs aren't of the types it takes.

        Raises:
            InputError: it names the input.
        """
        for path, wanted, x in zip(paths, self.document.inputs, flat, strict=True):
            given = jax.typeof(x).dtype
            if given not in (as_dtype(wanted.dtype), self._dtype(wanted.dtype)):
                raise InputError(f"{path} must be {wanted.dtype}, got {given}")
        solve_symbols(self.document, [jnp.shape(x) for x in flat], paths)

    def _replay(self, symbols: Mapping[str, Any], *, marked: bool = False) -> Replay:
        return Replay(self.document, self.tensors, symbols, cast=self._cast, marked=marked)

    def _dtype(self, name: str) -> Any:
        return as_dtype(self._cast if self._cast and name == "float32" else name)

    def _casted(self, x: Any) -> Any:
        return x.astype(self._cast) if self._cast and x.dtype == jnp.float32 else x


def _strong(x: Any) -> Any:
    """Return an array whose type is its own, not a Python number's.

    JAX traces a loop that begins with a Python number twice, and loops in loops ever more often.
    """
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if x.aval.weak_type else x
