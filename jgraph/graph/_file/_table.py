"""The table of operations that graph files hold: one entry says how each is written and replayed.

The opset is the version of this table. Its rule of compatibility: a new opset may add operations,
and may add a parameter that has a default which means what leaving it out meant before; it never
changes or removes what an older file can hold. So every file whose opset is not above `OPSET` can
be read, and a file is written with the lowest opset that has all of its operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax.extend.core import JaxprEqn

from jgraph.graph._file._kinds import Kind

OPSET = 1

# Parameters of JAX that say where and how exactly something is computed, not what.
_PLACES = frozenset({"sharding", "out_sharding", "ctx_mesh", "weak_type", "accuracy"})
# Parameters that must be left at what they are by default.
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {"out_dtype": (None,)}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of graph files.

    Args:
        name: in the file.
        arity: how many inputs it has; None for any number.
        replay: computes it from arrays and parameters, with public functions of JAX.
        kinds: its parameters.
        primitives: names of the jaxpr's primitives that are written as this.
        params: the parameters of an equation, by the names in `kinds`.
        known: parameters of the equation that `params` has looked at.
        outputs: how many arrays it makes; None where its parameters or functions say so.
        opset: the first that has it.
    """

    name: str
    arity: int | None
    replay: Callable[..., Any]
    kinds: Mapping[str, Kind]
    primitives: tuple[str, ...]
    params: Callable[[JaxprEqn], Mapping[str, Any]]
    known: frozenset[str]
    outputs: int | None = 1
    opset: int = 1

    def unknown_params(self, eqn: JaxprEqn) -> list[str]:
        """Return the parameters of an equation that a file couldn't hold."""
        return sorted(
            name
            for name, value in eqn.params.items()
            if name not in self.known
            and name not in _PLACES
            and not any(value is default for default in _DEFAULTS.get(name, ()))
        )


TABLE: dict[str, Operation] = {}
BY_PRIMITIVE: dict[str, Operation] = {}


def operation(
    name: str,
    arity: int | None,
    replay: Callable[..., Any],
    kinds: Mapping[str, Kind] | None = None,
    *,
    primitives: tuple[str, ...] | None = None,
    params: Callable[[JaxprEqn], Mapping[str, Any]] | None = None,
    known: tuple[str, ...] = (),
    outputs: int | None = 1,
) -> None:
    """Add an operation to the table; see `Operation`.

    By default it is the primitive of the same name with parameters of the same names.
    """
    kinds = dict(kinds or {})
    primitives = (name,) if primitives is None else primitives
    entry = Operation(
        name,
        arity,
        replay,
        kinds,
        primitives,
        params or (lambda eqn: {key: eqn.params[key] for key in kinds}),
        frozenset((*kinds, *known)),
        outputs,
    )
    TABLE[name] = entry
    BY_PRIMITIVE.update(dict.fromkeys(primitives, entry))
