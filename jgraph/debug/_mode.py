"""`debug_mode`: enters and leaves, counts who is in, and falls back on a JAX it doesn't know."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.core
from jax.extend.core import find_top_trace

from jgraph._eager import ASKED, ASKED_LEVEL, THREAD, jit_is_off
from jgraph._errors import InputError
from jgraph.debug._friendly import FRIENDLY, friendly
from jgraph.debug._notes import explain, explain_batch
from jgraph.debug._tracebacks import trim

# As the outermost code of any thread sees it.
_TOP_LEVEL = find_top_trace(())

_F = TypeVar("_F", bound=Callable[..., Any])


class Mode(NamedTuple):
    """What debug mode was asked for in a thread.

    Attributes:
        check: "nan" and "inf", where an operation that makes one raises.
        vmap: "batch" or "loop".
        given: a sentence on the first operation that was given a NaN, once there is one.
        compile_after: from which use on an operation's backward is compiled; None for never.
    """

    check: tuple[str, ...]
    vmap: str
    given: list[str]
    compile_after: int | None = 2


@contextlib.contextmanager
def debug_mode(
    level: str = "all", *, check: Sequence[str] = ("nan",), vmap: str = "batch"
) -> Iterator[None]:
    """Run everything at once, so that every value is a plain `jax.Array`.

    Breakpoints in a model, a loss, a metric or an optimizer are hit at each step, and values print,
    compare and convert as numbers do; inside `jax.grad`, `jax.jvp`, control flow, `jax.checkpoint`
    and rules of custom derivatives too. Results equal those of compiled code up to rounding. It
    holds in this thread, may be entered again within itself, and restores everything when left.
    In the environment `JGRAPH_DEBUG=1` does the same for what jgraph runs.

    What leaves JAX (`float(x)`, `np.sin(x)`) is a constant to a gradient; compiled, it raises.
    Within `jax.vmap` and `jax.shard_map` an array stands for many: it shows all of their values.

    Args:
        level: "all" runs every function op by op. "functions" does so for jgraph's own only, and
            leaves `jax.jit`, and with it jax.numpy's functions and control flow, compiled: faster.
        check: an operation that makes a NaN ("nan"), or an infinity ("inf"), of inputs without one
            raises a FloatingPointError that says where; () for none. Under "nan" any error says
            which operation before it was the first that was given a NaN.
        vmap: "loop" runs bodies of `jax.vmap` example by example on plain arrays.

    Raises:
        InputError: an option isn't one of these.
        FloatingPointError: (from the body) an operation made a NaN; it names the operation, the
            line, the module, forward or backward.

    Warns:
        RuntimeWarning: once, if JAX is of a version whose inside jgraph doesn't know. Then
            `jax.disable_jit` holds, and inside of `jax.grad` arrays are tracers that show values.

    Source:
        TensorFlow's eager execution; `tf.debugging.enable_check_numerics`.

    Example:
        >>> import jax.numpy as jnp
        >>> def loss(x):
        ...     print(f"{float(x.sum()):.1f}", type(x).__name__)
        ...     return (x**2).sum()
        >>> with debug_mode():
        ...     gradient = jax.grad(loss)(jnp.ones(3))
        3.0 ArrayImpl
    """
    _check_options(level, check, vmap)
    before = THREAD.mode
    given = [] if before is None else before.given
    THREAD.mode = Mode(tuple(check), vmap, given)
    try:
        with jax.disable_jit(level == "all"), _PATCHES, _kept(), _watch():
            yield
    except Exception as error:
        explain(error, given)
        if vmap == "batch":
            explain_batch(error)
        trim(error)
        raise
    finally:
        THREAD.mode = before


@contextlib.contextmanager
def compiled_mode() -> Iterator[None]:
    """Run what shall be compiled although debug mode holds around it."""
    before, THREAD.mode = THREAD.mode, None
    try:
        with jax.disable_jit(False), _unwatched(before):
            yield
    finally:
        THREAD.mode = before


def asked_mode() -> contextlib.AbstractContextManager[None]:
    """Return debug mode if `JGRAPH_DEBUG` asks for it and it doesn't hold yet."""
    return debug_mode(ASKED_LEVEL) if ASKED and not jit_is_off() else contextlib.nullcontext()


def debuggable(fn: _F) -> _F:
    """Let a function run in debug mode if `JGRAPH_DEBUG` asks for it."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with asked_mode():
            return fn(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


def executing_eagerly() -> bool:
    """Return whether values are concrete here: outside of all transformations, or in debug mode.

    In bodies of `jax.vmap` they aren't, unless debug mode runs them as a loop.

    Source:
        `tf.executing_eagerly`.

    Example:
        >>> executing_eagerly(), jax.jit(executing_eagerly)()
        (True, Array(False, dtype=bool))
    """
    engine = _engine()
    if engine is None:
        return find_top_trace(()) is _TOP_LEVEL
    return engine.is_plain(engine.private.current_trace())


def remat(fun: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Wrap a function so that its backward pass computes it again instead of keeping its values.

    It is `jax.checkpoint`, and in debug mode, on any version of JAX, the plain function.

    Args:
        fun: the function.
        **options: those of `jax.checkpoint`: `policy`, `prevent_cse`, `static_argnums`.

    Returns:
        The wrapped function; a decorator if no function is given.

    Example:
        >>> import jax.numpy as jnp
        >>> print(jax.grad(remat(jnp.sin))(0.0))
        1.0
    """
    if fun is None:
        return functools.partial(remat, **options)
    compiled = jax.checkpoint(fun, **options)

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (compiled if THREAD.mode is None else fun)(*args, **kwargs)

    return call


def _check_options(level: Any, check: Any, vmap: Any) -> None:
    if level not in ("all", "functions"):
        raise InputError(f"level must be 'all' or 'functions', got {level!r}")
    if isinstance(check, str) or not set(check) <= {"nan", "inf"}:
        raise InputError(f"check must hold 'nan', 'inf', both or nothing, got {check!r}")
    if vmap not in ("batch", "loop"):
        raise InputError(f"vmap must be 'batch' or 'loop', got {vmap!r}")


# The engine: what needs JAX's private names.


_LOCK = threading.RLock()


def _engine() -> types.ModuleType | None:
    """Return the engine if it works on this version of JAX."""
    with _LOCK:
        return _tested_engine()


@functools.cache
def _tested_engine() -> types.ModuleType | None:
    try:
        from jgraph.debug import _engine as engine

        engine.self_test()
    except Exception as error:  # noqa: BLE001 (an unknown JAX may fail in any way)
        warnings.warn(
            f"jgraph doesn't know the inside of jax {jax.__version__} ({type(error).__name__}: "
            f"{error}). Debug mode goes on under jax.disable_jit: breakpoints are hit, and inside "
            "of jax.grad arrays are tracers, which show their values; NaNs aren't located. Install "
            "a jax that jgraph names, or a newer jgraph",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return engine


def _watch() -> contextlib.AbstractContextManager[Any]:
    engine = _engine()
    return contextlib.nullcontext() if engine is None else engine.watch()


def _kept() -> contextlib.AbstractContextManager[Any]:
    engine = _engine()
    return contextlib.nullcontext() if engine is None else engine.private.keep_compiled()


def _unwatched(mode: Mode | None) -> contextlib.AbstractContextManager[Any]:
    engine = None if mode is None else _engine()
    return contextlib.nullcontext() if engine is None else engine.unwatched()


class _Patches:
    """Replaces names of JAX while any thread is in debug mode; what it puts there asks which."""

    def __init__(self) -> None:
        self._users = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> None:
        engine = _engine()
        with _LOCK:
            if not self._users:
                replacements = [] if engine is None else engine.replacements()
                for owner, name, new in [*_tracer_methods(), *replacements]:
                    self._undo.callback(_restorer(owner, name))
                    setattr(owner, name, new)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            self._users -= 1
            if not self._users:
                self._undo.close()


_PATCHES = _Patches()


def _tracer_methods() -> list[tuple[Any, str, Any]]:
    kind = jax.core.Tracer
    return [
        (kind, name, friendly(getattr(kind, name), shown))
        for name, shown in FRIENDLY.items()
        if hasattr(kind, name)
    ]


def _restorer(owner: Any, name: str) -> Callable[[], None]:
    if name in vars(owner):
        return functools.partial(setattr, owner, name, vars(owner)[name])
    return functools.partial(delattr, owner, name)
