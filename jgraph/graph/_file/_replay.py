"""Runs a document through public functions of JAX, so that every transformation applies to it."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jgraph._errors import GraphFormatError, InputError
from jgraph.graph._file import _custom
from jgraph.graph._file._check import split_constraint
from jgraph.graph._file._dims import evaluate, solve, symbols_of
from jgraph.graph._file._document import Body, Document, Ref, Step
from jgraph.graph._file._kinds import as_dtype
from jgraph.graph._file._table import TABLE
from jgraph.graph._file._values import read_number

MARK = "jgraph-place-"
"""Begins the scope that stands for a place while a loaded program is traced to be looked at."""

# While it is traced: from jax 0.12 on, True leaves it to the compiler.
_INLINE: Any = getattr(getattr(jax, "Inline", None), "JAX_EARLY", True)

# Errors that aren't the file's fault: of running it, and those that say where they come from.
_OTHERS = (
    *(GraphFormatError, jax.errors.JaxRuntimeError, jax.errors.UnexpectedTracerError),
    *(FloatingPointError, MemoryError),
)
_MOST = 1 << 36  # elements of one array
_MAX_AXES = 64  # as many as numpy can have
_MAX_TYPES = 4  # a function that was saved has one; more would be traced again and again
_COMPARE = {"==": operator.eq, ">=": operator.ge, "<=": operator.le}


class Replay:
    """One run of a document, in a trace or step by step.

    Args:
        document: the program.
        tensors: its constants.
        symbols: values of the symbols in its sizes.
        cast: what float32 becomes; None leaves it.
        marked: whether scopes are marks, by which `_places` finds the operation's place.
    """

    def __init__(
        self,
        document: Document,
        tensors: Mapping[str, Any],
        symbols: Mapping[str, Any],
        *,
        cast: str | None = None,
        marked: bool = False,
    ) -> None:
        self.symbols = symbols
        self._document, self._tensors = document, tensors
        self._cast, self._marked = cast, marked
        self._functions: dict[int, Callable[..., list[Any]]] = {}
        self._customs: dict[int, Callable[..., list[Any]]] = {}

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the main function.

        Raises:
            GraphFormatError: an operation can't be applied to what it is given.
        """
        main = len(self._document.functions) - 1
        return self._run(self._document.functions[main], f"functions[{main}]", inputs)

    def callable(self, number: int) -> Callable[..., list[Any]]:
        """Return a function of the document; always the same one, which JAX then traces once.

        In line, so that no call is seen where it is used; without jit, a loop would trace its body
        anew at each of its uses, and loops in loops exponentially often.
        """
        if number not in self._functions:
            body = self._document.functions[number]
            where = f"functions[{number}]"
            types: set[tuple[Any, ...]] = set()

            def function(*args: Any) -> list[Any]:
                types.add(tuple((x.shape, x.dtype) for x in args))
                if len(types) > _MAX_TYPES:
                    raise GraphFormatError(
                        f"{where} must have inputs of one type, and is called with {len(types)}"
                    )
                return self._run(body, where, args)

            function.__name__ = function.__qualname__ = body.name or "function"
            self._functions[number] = jax.jit(function, inline=_INLINE)
        return self._functions[number]

    def dtype(self, name: str) -> Any:
        """Return a dtype, after casting."""
        return as_dtype(self._cast if self._cast and name == "float32" else name)

    def _custom(self, number: int) -> Callable[..., list[Any]]:
        if number not in self._customs:
            self._customs[number] = _custom.replay(self._document.customs[number], self.callable)
        return self._customs[number]

    def _run(self, body: Body, where: str, inputs: Sequence[Any]) -> list[Any]:
        if len(inputs) != body.inputs:
            raise GraphFormatError(f"{where} takes {body.inputs} inputs, got {len(inputs)}")
        values = list(inputs)
        for i, step in enumerate(body.steps):
            with self._scope(step.place):
                try:
                    found = self._apply(step, [self._value(x, values) for x in step.inputs])
                except _OTHERS:
                    raise
                except Exception as error:  # whatever JAX has to say of a damaged program
                    raise GraphFormatError(
                        f"{where}.steps[{i}], {step.op}, can't be applied: {error}"
                    ) from error
            if len(found) != step.outputs:
                raise GraphFormatError(
                    f"{where}.steps[{i}], {step.op}, makes {len(found)} outputs, and the file says "
                    f"{step.outputs}"
                )
            values += found
        return [self._value(x, values) for x in body.outputs]

    def _apply(self, step: Step, args: list[Any]) -> list[Any]:
        if step.op == "constant":
            name = step.params["tensor"]
            if name not in self._tensors:
                raise GraphFormatError(f"the file has no tensor {name!r:.60}")
            return [self._casted(jnp.asarray(self._tensors[name]))]
        if step.op == "custom":
            return list(self._custom(step.params["custom"])(*args))
        entry = TABLE[step.op]
        try:
            params = {key: kind.read(step.params[key], self) for key, kind in entry.kinds.items()}
        except GraphFormatError as error:  # of a size, which doesn't know where it stands
            raise ValueError(str(error)) from None
        found = entry.replay(*args, **params)
        outputs = [
            self._casted(x) for x in (found if isinstance(found, (list, tuple)) else [found])
        ]
        for x in outputs:
            if x.ndim > _MAX_AXES:
                raise ValueError(f"its output has {x.ndim} axes")
            if all(isinstance(size, int) for size in x.shape) and math.prod(x.shape) > _MOST:
                raise ValueError(f"its output has the shape {x.shape}")
        return outputs

    def _value(self, ref: Ref, values: Sequence[Any]) -> Any:
        if isinstance(ref, int):
            return values[ref]
        return jnp.asarray(read_number(ref["c"]), self.dtype(ref["t"]))

    def _casted(self, x: Any) -> Any:
        return x.astype(self._cast) if self._cast and x.dtype == jnp.float32 else x

    def _scope(self, place: int) -> contextlib.AbstractContextManager[Any]:
        if self._marked:
            return jax.named_scope(f"{MARK}{place}")
        scopes = self._document.places[place].scopes if place >= 0 else ()
        return jax.named_scope("/".join(scopes)) if scopes else contextlib.nullcontext()


def solve_symbols(
    document: Document, shapes: Sequence[Sequence[Any]], names: Sequence[str]
) -> dict[str, Any]:
    """Return the symbols' values for inputs of these shapes.

    Raises:
        InputError: a shape isn't the file's, or breaks a constraint; it names the input.
    """
    wanted = [x.shape for x in document.inputs]
    values: dict[str, Any] = {}
    for name, sizes, shape in zip(names, wanted, shapes, strict=True):
        if len(sizes) != len(shape):
            raise _mismatch(name, sizes, shape)
        values.update((x, got) for x, got in zip(sizes, shape, strict=True) if isinstance(x, str))
    known = solve(values)
    untold = {x for size in values for x in symbols_of(size, "a size")} - known.keys()
    if untold:  # by "a*b" where a is 0
        raise InputError(f"the sizes of the inputs must tell {min(untold)}, got {values}")
    for name, sizes, shape in zip(names, wanted, shapes, strict=True):
        for size, got in zip(sizes, shape, strict=True):
            if evaluate(size, known, name) != got:
                raise _mismatch(name, sizes, shape)
    found = ", ".join(f"{k} = {v}" for k, v in known.items())
    if any(isinstance(x, int) and x < 0 for x in known.values()):
        raise InputError(f"the sizes must be from 0 up, got {found}")
    for text in document.constraints:
        first, compare, second = split_constraint(text)
        sides = evaluate(first, known, text), evaluate(second, known, text)
        if not _COMPARE[compare](*sides):
            raise InputError(f"the sizes must satisfy {text}, got {found}")
    return known


def _mismatch(name: str, sizes: Sequence[Any], shape: Sequence[Any]) -> InputError:
    wanted = ", ".join(map(str, sizes))
    return InputError(f"{name} must have the shape ({wanted}), got {tuple(shape)}")
