"""`jg.function`: a plain Python function, compiled, over arrays, pytrees and NNX objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

from jgraph._errors import InputError
from jgraph.graph._compiled import Function
from jgraph.graph._strategy import Strategy


@overload
def function(
    fn: Callable[..., Any],
    /,
    *,
    static: str | int | Iterable[str | int] = (),
    donate: str | Iterable[str] = (),
    max_graphs: int | None = None,
    strategy: Strategy | None = None,
    debug: bool | None = None,
    fast_convolutions: bool = True,
    fold_batch_norms: bool = True,
) -> Function: ...
@overload
def function(
    *,
    static: str | int | Iterable[str | int] = (),
    donate: str | Iterable[str] = (),
    max_graphs: int | None = None,
    strategy: Strategy | None = None,
    debug: bool | None = None,
    fast_convolutions: bool = True,
    fold_batch_norms: bool = True,
) -> Callable[[Callable[..., Any]], Function]: ...
def function(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    static: str | int | Iterable[str | int] = (),
    donate: str | Iterable[str] = (),
    max_graphs: int | None = None,
    strategy: Strategy | None = None,
    debug: bool | None = None,
    fast_convolutions: bool = True,
    fold_batch_norms: bool = True,
) -> Function | Callable[[Callable[..., Any]], Function]:
    """Compile a plain Python function over arrays, pytrees and NNX objects.

    The function is traced at its first call, and again where a call differs in what a program
    depends on: shapes, dtypes, the structure of a model, static values. Each trace is a `Graph`
    in `.graphs`, and its `.reason` says why it was made.

    NNX objects (modules, optimizers, metrics, Rngs, Variables) may stand in any argument, also
    inside containers, and may be returned. What the function changes in them is written back when
    it returns, Variables that two objects share stay shared, and after an exception everything is
    as it was (but for memory that was donated to a run that failed on the device). An object that
    the function closes over, or a compiled function that it calls, can be read; a write to it
    raises. An `nnx.State` is a pytree of values. As under jax.jit, containers are copies inside,
    and an array that is closed over is a constant.

    Inside another trace (jit, grad, vmap, scan) it is compiled as a part of that; in
    `jg.debug_mode()` and under `jax.disable_jit()` it is the plain function.

    Args:
        fn: the function, method or `functools.partial`.
        static: names (or positions) of arguments that are plain hashable Python values. Each value
            has a graph of its own.
        donate: "state" lets a call overwrite the memory of the arrays it replaces in NNX objects,
            which saves a copy of the state; names do it for single arguments, of which pytrees of
            arrays can't be used afterwards. An array of an NNX object that is also held elsewhere
            is refused before anything is lost, and so is an array that is given twice. Who else
            holds an argument can't be known: its caller does.
        max_graphs: the number of graphs from which on another one is an error.
        strategy: where it runs, from `jgraph.distribute`. Arrays that `strategy.batches` places
            are split over its devices, all others are the same on each; state stays where the
            strategy keeps it.
        debug: True runs every call in `jg.debug_mode`, as `JGRAPH_DEBUG=1` in the environment does
            for all functions (it is read when jgraph is imported); False compiles it even there.
        fast_convolutions: False compiles convolutions for CPUs as XLA does, where True writes
            depthwise ones, 1x1 ones and gradients by kernels as what is faster there (sums in
            another order: results differ by rounding). `JGRAPH_FAST_CONV=0` in the environment
            does so for all functions that are compiled from then on. GPUs, TPUs, several devices,
            outer traces, and what is drawn or saved never see another convolution. The logger
            `jgraph` warns where it would more than double the time to compile.
        fold_batch_norms: False leaves BatchNorm in evaluation mode as it is, where True folds it,
            and any other scales and shifts of channels, into the convolution before: for CPUs,
            float32 and float64, where the result is large beside the kernel. Results differ by
            rounding. `JGRAPH_FOLD_BATCH_NORMS=0` in the environment does so for all functions.
            Where it isn't done, and who never sees it, is as for `fast_convolutions`.

    Returns:
        The compiled function, with `graphs`, `explain()` and `graph(...)`.

    Raises:
        InputError: an option names no parameter; when called: an argument can't be traced, a
            closed-over object is written, or a donated array is held elsewhere.
        RetraceError: (when called) more than `max_graphs` graphs would be needed; it says why.

    Source:
        `tf.function`; `flax.nnx.jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from flax import nnx
        >>> @function(donate="state")
        ... def step(model, optimizer, x, y):
        ...     loss, grads = nnx.value_and_grad(lambda m: ((m(x) - y) ** 2).mean())(model)
        ...     optimizer.update(model, grads)
        ...     return loss
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        >>> x = jnp.array([[0.0], [1.0]])
        >>> for _ in range(200):
        ...     loss = step(model, optimizer, x, 2 * x + 1)
        >>> print(model(jnp.array([[2.0]])).round(2), len(step.graphs))
        [[5.]] 1
    """

    def compiled(fn: Callable[..., Any]) -> Function:
        return Function(
            fn,
            static=static,
            donate=donate,
            max_graphs=max_graphs,
            strategy=strategy,
            debug=debug,
            fast_convolutions=fast_convolutions,
            fold_batch_norms=fold_batch_norms,
        )

    if fn is None:
        return compiled
    if not callable(fn):
        raise InputError(f"jg.function must be given a function, got {type(fn).__name__}")
    return compiled(fn)
