"""A traced program as a document: each equation becomes an operation, or is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jgraph._errors import GraphFormatError
from jgraph.graph._file import _custom
from jgraph.graph._file._dims import write_dim
from jgraph.graph._file._document import MAX_DEPTH, Body, Custom, Document, Input, Place, Ref, Step
from jgraph.graph._file._kinds import dtype_name, write_all
from jgraph.graph._file._table import BY_PRIMITIVE
from jgraph.graph._file._values import write_number
from jgraph.graph._jaxpr import call_name, frame_of, open_jaxpr, stack_of


class ProgramWriter:
    """Writes one program; functions that several equations call are written once.

    Attributes:
        functions: what has been written.
        customs: functions with derivatives of their own.
        places: where operations came from.
        tensors: constants that are no scalars, by name.
    """

    def __init__(self) -> None:
        self.functions: list[Body] = []
        self.customs: list[Custom] = []
        self.places: list[Place] = []
        self.tensors: dict[str, np.ndarray] = {}
        self._numbers: dict[tuple[int, str], int] = {}
        self._kept: list[Any] = []  # whose ids are keys
        self._place_numbers: dict[Place, int] = {}
        self._around: list[JaxprEqn] = []  # the equations that are being written
        self.custom_numbers: dict[Any, int] = {}

    def function(self, jaxpr: Jaxpr | ClosedJaxpr, name: str = "") -> int:
        """Write a body, once, and return its number."""
        if len(self._around) >= MAX_DEPTH:
            raise self._refusal(self._around[-1], f"which is nested more than {MAX_DEPTH} deep")
        key = id(jaxpr), name
        if key not in self._numbers:
            self._kept.append(jaxpr)
            consts = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
            body = self._body(open_jaxpr(jaxpr), consts, name)
            self.functions.append(body)
            self._numbers[key] = len(self.functions) - 1
        return self._numbers[key]

    def _body(self, jaxpr: Jaxpr, consts: Sequence[Any], name: str) -> Body:
        values: dict[Any, Ref] = {var: i for i, var in enumerate(jaxpr.invars)}
        steps: list[Step] = []
        count = len(jaxpr.invars)

        def ref(x: Any) -> Ref:
            if isinstance(x, Literal):
                return {"c": write_number(np.asarray(x.val)[()]), "t": dtype_name(x.aval.dtype)}  # pyright: ignore[reportAttributeAccessIssue]
            return values[x]

        for var, value in zip(jaxpr.constvars, consts, strict=True):
            steps.append(Step("constant", [], 1, {"tensor": self._tensor(value)}, -1))
            values[var] = count
            count += 1
        for eqn in jaxpr.eqns:
            if eqn.outvars and all(map(_is_float0, eqn.outvars)):
                continue  # tangents of integers, which nothing reads
            self._around.append(eqn)
            step = self._step(eqn, [ref(x) for x in eqn.invars])
            self._around.pop()
            steps.append(step)
            for var in eqn.outvars:
                values[var] = count
                count += 1
        return Body(name, len(jaxpr.invars), steps, [ref(x) for x in jaxpr.outvars])

    def _step(self, eqn: JaxprEqn, inputs: list[Ref]) -> Step:
        name = eqn.primitive.name
        place = self._place(eqn)
        if name in _custom.PRIMITIVES:
            return Step("custom", inputs, len(eqn.outvars), self._custom(eqn), place)
        entry = BY_PRIMITIVE.get(name)
        if entry is None:
            raise self._refusal(eqn, "which graph files don't hold")
        unknown = entry.unknown_params(eqn)
        if unknown:
            raise self._refusal(eqn, f"whose parameter {unknown[0]} graph files don't hold")
        try:
            params = write_all(entry.kinds, entry.params(eqn), _Named(self, eqn))
        except (NotImplementedError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, GraphFormatError):
                raise
            raise self._refusal(
                eqn, f"with parameters that graph files don't hold: {error}"
            ) from error
        return Step(entry.name, inputs, len(eqn.outvars), params, place)

    def _custom(self, eqn: JaxprEqn) -> dict[str, Any]:
        return {"custom": _custom.write(self, eqn)}

    def _tensor(self, value: Any) -> str:
        name = f"constant/{len(self.tensors)}"
        if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise GraphFormatError(
                "a graph that holds a random key as a constant can't be saved: pass the key, or "
                "the Rngs that holds it, as an argument"
            )
        self.tensors[name] = np.asarray(value)
        return name

    def _place(self, eqn: JaxprEqn) -> int:
        scopes, transforms = stack_of(eqn)
        file, line = frame_of(eqn) or ("", 0)
        place = Place(scopes, transforms, os.path.basename(file), line)
        if place not in self._place_numbers:
            self._place_numbers[place] = len(self.places)
            self.places.append(place)
        return self._place_numbers[place]

    def _refusal(self, eqn: JaxprEqn, why: str) -> GraphFormatError:
        scopes = [name for around in self._around for name in stack_of(around).scopes]
        frames = [frame_of(around) for around in self._around]
        frame = next((found for found in reversed(frames) if found), None)
        module = f" in {'.'.join(scopes)}" if scopes else ""
        line = f" at {frame[0]}:{frame[1]}" if frame else ""
        return GraphFormatError(
            f"the graph can't be saved: it has the operation {eqn.primitive.name}{module}{line}, "
            f"{why}. jgraph's CONTRIBUTING.md says how to add one"
        )


def _is_float0(x: Any) -> bool:
    return getattr(x.aval, "dtype", None) == jax.dtypes.float0


class _Named:
    """Gives the functions of one equation the name it calls them by."""

    def __init__(self, writer: ProgramWriter, eqn: JaxprEqn) -> None:
        self._writer, self._name = writer, call_name(eqn) or ""

    def function(self, jaxpr: Any, name: str) -> int:
        return self._writer.function(jaxpr, self._name)


def write_program(
    jaxpr: ClosedJaxpr, name: str, interface: dict[str, Any]
) -> tuple[Document, dict[str, np.ndarray]]:
    """Return a traced program as a document, and its constants.

    Args:
        jaxpr: the program.
        name: of the graph.
        interface: what its inputs and outputs are; it is kept as it is.

    Raises:
        GraphFormatError: an operation that no file can hold; it names module and line.
    """
    writer = ProgramWriter()
    writer.function(jaxpr, name)
    inputs = [Input(tuple(map(write_dim, x.shape)), dtype_name(x.dtype)) for x in jaxpr.in_avals]
    document = Document(
        name,
        inputs,
        _constraints(jaxpr),
        interface,
        writer.functions,
        writer.customs,
        writer.places,
    )
    return document, writer.tensors


def _constraints(jaxpr: ClosedJaxpr) -> list[str]:
    """Return the constraints on the symbols of symbolic sizes, as their scope prints them."""
    for aval in jaxpr.in_avals:
        for size in getattr(aval, "shape", ()):
            if jax.export.is_symbolic_dim(size):
                _, _, listed = str(size.scope).partition("with constraints:")
                return [line.strip() for line in listed.splitlines() if line.strip()]
    return []
