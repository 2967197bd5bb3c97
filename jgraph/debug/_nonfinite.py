"""Notices the operation that makes the first NaN or infinity, or is given a NaN, and says where."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jgraph._eager import THREAD
from jgraph.debug._frames import Place, place_here

# These make no NaN of what isn't one; the first ones no infinity either.
_MOVES = frozenset(
    (
        *("abs", "broadcast_in_dim", "ceil", "clamp", "concatenate", "copy", "copy_p", "cummax"),
        *("cummin", "dynamic_slice", "dynamic_update_slice", "expand_dims", "floor", "imag"),
        *("iota", "is_finite", "max", "min", "neg", "pad", "real", "reduce_max", "reduce_min"),
        *("reshape", "rev", "round", "select_n", "sign", "slice", "split", "squeeze"),
        *("stop_gradient", "transpose", "unstack"),
    )
)
_NEVER_NAN = _MOVES | {
    *("convert_element_type", "erf", "exp", "exp2", "expm1", "logistic", "reduce_precision"),
    *("square", "tanh"),
}


class _Playing(threading.local):
    """The recorded operation whose backward is running in this thread."""

    node: Any = None


_PLAYING = _Playing()


@contextlib.contextmanager
def backward_of(node: Any) -> Iterator[None]:
    """Say that what runs now is the backward of a recorded operation."""
    before, _PLAYING.node = _PLAYING.node, node
    try:
        yield
    finally:
        _PLAYING.node = before


def check(primitive: Any, args: Sequence[Any], outputs: Sequence[Any], params: Any) -> None:
    """Raise where an operation has made a value that isn't finite from values that are.

    The first operation that hands on a NaN that it was given is noted in the mode.

    Raises:
        FloatingPointError: it names the operation, the line, the module, and what went in.
    """
    mode = THREAD.mode
    if mode is None or not mode.check:
        return
    if primitive.name in (_MOVES if "inf" in mode.check else _NEVER_NAN):
        return
    for x in outputs:
        if not _is_bad(x, mode.check):
            continue
        kind = _new_kind(x, args, mode.check)
        if kind is None and (mode.given or "nan" not in mode.check or not _has_nan(x)):
            continue
        name = params["name"] if primitive.name in ("jit", "pjit") else primitive.name
        node = _PLAYING.node
        # A node's place was noted when it was recorded; now its frames are gone.
        place = node.place if node is not None and node.place else place_here()
        if kind is None:
            mode.given.append(_given_sentence(name, place, node))
            continue
        sentence = _sentence(name, kind, x, args, place, node)
        raise FloatingPointError("; before it, ".join([sentence, *mode.given]))


def check_pulled(given: Sequence[Any], gradients: Sequence[Any]) -> None:
    """Check the backward of an operation that was run in one."""
    node = _PLAYING.node
    if node is not None:
        check(_Whole(f"the gradient of {node.name}"), given, gradients, {})


class _Whole:
    """Stands for the operations of a compiled backward."""

    def __init__(self, name: str) -> None:
        self.name = name


def _is_bad(x: Any, kinds: Sequence[str]) -> bool:
    if not isinstance(x, jax.Array) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return False
    if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable or not x.size:
        return False
    if next(iter(x.devices())).platform == "cpu":
        return _is_bad_on_host(np.asarray(x), "inf" in kinds)
    with jax.disable_jit(False), jax.ensure_compile_time_eval():
        return bool(_on_device(x, "inf" in kinds))


def _is_bad_on_host(a: np.ndarray, infinite: bool) -> bool:
    if a.dtype in (np.float32, np.float64):
        flat = a.ravel()
        # One pass, and NaN or infinite wherever an element is.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(flat.dot(flat)):
                return False
    return not np.isfinite(a).all() if infinite else bool(np.isnan(a).any())


@functools.partial(jax.jit, static_argnums=1)
def _on_device(x: Any, infinite: bool) -> Any:
    return ~jnp.isfinite(x).all() if infinite else jnp.isnan(x).any()


def _new_kind(x: Any, args: Sequence[Any], kinds: Sequence[str]) -> str | None:
    """Return what is new in an output that no input had; what is handed on isn't."""
    inputs = [np.asarray(a) for a in args if _is_floating(a)]
    for kind, test in (("nan", np.isnan), ("inf", np.isinf)):
        if kind in kinds and test(np.asarray(x)).any():
            return None if any(test(a).any() for a in inputs) else kind
    return None


def _has_nan(x: Any) -> bool:
    return bool(np.isnan(np.asarray(x)).any())


def _is_floating(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _given_sentence(name: str, place: Place, node: Any) -> str:
    of = "" if node is None or name.startswith("the grad") else f" (gradient of {node.name})"
    return f"{name}{of} {place.text()} was given NaN"


def _sentence(name: str, kind: str, x: Any, args: Sequence[Any], place: Place, node: Any) -> str:
    a = np.asarray(x)
    count = int((np.isnan if kind == "nan" else np.isinf)(a).sum())
    what = "NaN" if kind == "nan" else "inf"
    phase = "forward"
    if node is not None:
        phase = "backward" if name.startswith("the grad") else f"backward (gradient of {node.name})"
    inputs = [_range(value) for value in args if _is_floating(value)]
    fine = f"; its inputs: {', '.join(inputs[:4])}" if inputs else ""
    return f"{name} made {what} ({count} of {a.size} values) {place.text()}, {phase}{fine}"


def _range(x: Any) -> str:
    a = np.asarray(x)
    kind = f"{a.dtype}{list(a.shape)}"
    if not a.size or np.iscomplexobj(a):
        return kind
    low, high = float(a.min()), float(a.max())
    return f"{kind} = {low:.4g}" if low == high else f"{kind} from {low:.4g} to {high:.4g}"
