"""Gives the operations of a loaded program the scopes and source lines they had when saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jgraph.graph._file._document import Place
from jgraph.graph._file._replay import MARK


class Scope(NamedTuple):
    """Stands for JAX's own class, by whose name `_jaxpr.stack_of` tells them apart."""

    name: str


class Transform(NamedTuple):
    """The same for a transformation."""

    name: str


class _Stack(NamedTuple):
    stack: tuple[Any, ...]


class _Frame(NamedTuple):
    file_name: str
    line_num: int


class _Traceback(NamedTuple):
    frames: tuple[_Frame, ...]


def restore_places(program: ClosedJaxpr, places: Sequence[Place]) -> ClosedJaxpr:
    """Return a program traced from marked steps, whose operations say where they came from.

    It is there to be looked at: JAX can't lower what stands in for its tracebacks.
    """
    return _Restored(places).program(program)


class _Restored:
    """What has been restored, by the bodies before: one that is called often is restored once."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._done: dict[int, Jaxpr] = {}

    def program(self, program: ClosedJaxpr) -> ClosedJaxpr:
        return ClosedJaxpr(self._jaxpr(program.jaxpr), program.consts)

    def _jaxpr(self, jaxpr: Jaxpr) -> Jaxpr:
        found = self._done.get(id(jaxpr))
        if found is None:
            found = jaxpr.replace(eqns=[self._equation(eqn) for eqn in jaxpr.eqns])
            self._done[id(jaxpr)] = found
        return found

    def _equation(self, eqn: JaxprEqn) -> JaxprEqn:
        place = _place_of(eqn, self._places)
        stack = (
            *(Transform(name) for name in place.transforms),
            *(Scope(name) for name in place.scopes),
        )
        frames = (_Frame(place.file, place.line),) if place.file else ()
        seen: Any = eqn.source_info
        info = seen.replace(name_stack=_Stack(stack), traceback=_Traceback(frames))
        params = {key: self._param(value) for key, value in eqn.params.items()}
        return eqn.replace(source_info=info, params=params)

    def _param(self, value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return self.program(value)
        if isinstance(value, Jaxpr):
            return self._jaxpr(value)
        if isinstance(value, tuple) and any(isinstance(x, (ClosedJaxpr, Jaxpr)) for x in value):
            return tuple(map(self._param, value))
        return value


def _place_of(eqn: JaxprEqn, places: Sequence[Place]) -> Place:
    found = Place((), (), "", 0)
    for entry in eqn.source_info.name_stack.stack:
        for name in entry.name.split("/"):
            number = name.removeprefix(MARK)
            if number != name and number.isdecimal() and int(number) < len(places):
                found = places[int(number)]
    return found
