"""What `jgraph.function` asks of a strategy, which decides where a program runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jgraph._errors import InputError

Body: TypeAlias = Callable[..., list[Any]]
"""A traced function: the state's arrays, then the arguments' arrays, to a list of outputs."""


class Output(NamedTuple):
    """One array that a traced function hands back.

    Args:
        path: its name, such as `result['loss']` or `model.kernel`.
        is_state: whether it is the new value of an NNX object's array.
    """

    path: str
    is_state: bool


@runtime_checkable
class Strategy(Protocol):
    """Where a program runs; `jgraph.distribute.Strategy` is the class to derive from."""

    def splits(self, arrays: Sequence[Any]) -> tuple[int | None, ...]:
        """Return, per array, the axis along which replicas see parts of it; () where none does."""
        ...

    def run(
        self,
        body: Body,
        state: list[Any],
        arrays: list[Any],
        splits: tuple[int | None, ...],
        outputs: Callable[[], Sequence[Output]],
    ) -> list[Any]:
        """Run a traced function on flat lists of arrays.

        Args:
            body: called as `body(*state, *arrays)`.
            state: arrays of NNX objects.
            arrays: arrays of arguments.
            splits: what `splits` said of `arrays`.
            outputs: what the outputs are, once `body` has run.
        """
        ...

    def placed(self, path: str, value: Any) -> Any:
        """Return a new value of a state's array, held where the strategy keeps it."""
        ...


def on_one_device(strategy: Strategy | None) -> bool:
    """Return whether a program under a strategy isn't split over devices."""
    return strategy is None or getattr(strategy, "num_devices", None) == 1


def checked(strategy: Any) -> Strategy | None:
    """Return a strategy or None; raise for anything else.

    Raises:
        InputError: it isn't one.
    """
    if strategy is not None and (isinstance(strategy, type) or not isinstance(strategy, Strategy)):
        raise InputError(
            f"strategy must be one of jgraph.distribute, such as DataParallel(), got {strategy!r}"
        )
    return strategy
