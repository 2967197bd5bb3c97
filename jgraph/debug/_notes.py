"""Adds to an error which module it comes from, how that was made, and what it was given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jgraph.debug._frames import place_of_error

_MARK = "jgraph: "
_LONGEST = 300
_LOOP = (
    f'{_MARK}in the body of jax.vmap, jg.debug_mode(vmap="loop") gives plain arrays, example by '
    "example"
)
_TRACER_ERRORS = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Explain what is raised in the context; see `explain`."""
    try:
        yield
    except Exception as error:
        explain(error)
        raise


def explain(error: BaseException, given: Sequence[str] = ()) -> None:
    """Add a note to an error that was raised inside a module's call, once.

    It has the line of the user's file, the module's path, its configuration, and the shapes of
    the call's arguments.

    Args:
        error: the error.
        given: sentences on operations that were given a NaN before, which become notes too.
    """
    _explain_module(error)
    told = "\n".join([str(error), *getattr(error, "__notes__", ())])
    for sentence in given:
        if sentence not in told:
            error.add_note(f"{_MARK}before it, {sentence}")


def explain_batch(error: BaseException) -> None:
    """Add a note, once, to JAX's error on a value that a tracer hasn't got.

    In debug mode few are left: in the body of `jax.vmap` an array stands for every example.
    """
    if isinstance(error, _TRACER_ERRORS) and _LOOP not in getattr(error, "__notes__", ()):
        error.add_note(_LOOP)


def _explain_module(error: BaseException) -> None:
    if any(note.startswith(_MARK) for note in getattr(error, "__notes__", ())):
        return
    place, calls = place_of_error(error)
    if not calls or place.text() in str(error):  # a located NaN says all of it
        return
    code, values = calls[0].frame.f_code, calls[0].frame.f_locals
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    given = ", ".join(f"{name}: {_kind(values[name])}" for name in names if name in values)
    module = calls[0].module
    error.add_note(
        f"{_MARK}{place.text()} ({type(module).__name__}), called with ({given})\n"
        f"  {_described(module)}"
    )


def _kind(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return repr(x) if x is None or isinstance(x, (bool, int, float, str)) else type(x).__name__


def _described(module: Any) -> str:
    """Return how a module was made: `Linear(in_features=4, kernel: float32[4, 8], …)`."""
    parts: list[str] = []
    for name, x in vars(module).items():
        value = x.get_raw_value() if hasattr(x, "get_raw_value") else x
        if isinstance(value, (bool, int, float, str, tuple, np.dtype)):
            parts.append(f"{name}={value!r}")
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            parts.append(f"{name}: {_kind(value)}")
    text = f"{type(module).__name__}({', '.join(parts)})"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
