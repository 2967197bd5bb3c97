"""What the boxes of a picture are made from, worked out once for the whole program."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from jgraph.graph._ops import Op, Program
from jgraph.graph._picture._words import MOVES, SILENT

Scope = tuple[str, ...]
_DIMENSIONS = re.compile(r"\d+")
OWN = "\0own"  # ends a scope: what stands in the module itself


@dataclasses.dataclass(frozen=True)
class Port:
    """What stands at one of a program's ends.

    Args:
        name: what a person calls it.
        is_state: whether it is a parameter or other state, which isn't drawn.
        is_param: whether it is a parameter, whose elements are counted.
    """

    name: str
    is_state: bool = False
    is_param: bool = False


class Facts:
    """What the boxes are made from: forward operations, where each stands, what costs where."""

    def __init__(self, program: Program, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self.program, self.inputs, self.outputs = program, inputs, outputs
        self.state = {-1 - k for k, port in enumerate(inputs) if port.is_state}
        self.params = {-1 - k for k, port in enumerate(inputs) if port.is_param}
        self.forward = [op for op in program.ops if op.phase == "forward"]
        self.update = [op for op in program.ops if op.phase == "update"]
        self.has_backward = any(op.phase == "backward" for op in program.ops)
        self.paths = self._loop_paths()
        self.reads = self._through_silent()
        self.hoisted = self._hoisted()
        self.paths.update(dict.fromkeys(self.hoisted, ()))
        self.backward_of = self._backward_costs()
        self.params_of, self.update_params = self._parameters()
        self.readers = self._forward_readers()
        self.results = {
            j
            for port, ids in zip(outputs, program.results, strict=True)
            for j in self.seen(ids)
            if not port.is_state
        }

    def seen(self, ids: Iterable[int]) -> list[int]:
        """Return the values behind casts and broadcasts."""
        return [j for i in ids for j in self.through.get(i, (i,))]

    def _forward_readers(self) -> defaultdict[int, list[int]]:
        readers: defaultdict[int, list[int]] = defaultdict(list)
        for op in self.forward:
            if op.name not in SILENT:
                for i in self.reads[op.id]:
                    readers[i].append(op.id)
        return readers

    def leaving(self, ops: Iterable[Op]) -> list[int]:
        """Return which of the values `ops` make are read by others, or are results."""
        inside = {op.id for op in ops}
        return [
            i
            for i in sorted(inside)
            if i in self.results or any(j not in inside for j in self.readers[i])
        ]

    def type_of(self, i: int) -> str:
        """Return the type of a value by the id of its maker."""
        return self.program.inputs[-1 - i] if i < 0 else self.program.ops[i].outputs[0]

    def _loop_paths(self) -> dict[int, Scope]:
        """Put a part for each loop around an operation into its scope."""
        marks: dict[int, Scope] = {}
        paths: dict[int, Scope] = {}
        bodies = {op.parent for op in self.program.ops}
        for op in self.program.ops:
            around = marks.get(op.parent, ()) if op.parent is not None else ()
            before = len(self.program.ops[op.parent].scope) if op.parent is not None else 0
            paths[op.id] = (*around, *op.scope[before:])
            if op.id in bodies:
                marks[op.id] = paths[op.id] = (*paths[op.id], f"\0{op.id}")
        return paths

    def _through_silent(self) -> dict[int, tuple[int, ...]]:
        """Return what each operation reads, looking through casts and broadcasts."""
        through: dict[int, tuple[int, ...]] = {}
        reads: dict[int, tuple[int, ...]] = {}
        for op in self.program.ops:
            seen = [j for i in op.reads for j in through.get(i, (i,)) if j not in self.state]
            reads[op.id] = tuple(dict.fromkeys(seen))
            if op.name in SILENT:
                through[op.id] = reads[op.id]
        self.through = through
        return reads

    def _hoisted(self) -> set[int]:
        """Return what JAX moved out of a loop while differentiating it.

        Such operations, reshapes of parameters mostly, keep the scope inside the loop and lose the
        one around it. They go where they are read.
        """
        roots = {op.scope[:1] for op in self.forward if self.reads[op.id] and op.parent is None}
        return {
            op.id
            for op in self.forward
            if op.scope[:1] not in roots and op.name in SILENT | MOVES and not self.reads[op.id]
        }

    def _backward_costs(self) -> Counter[Scope]:
        costs: Counter[Scope] = Counter()
        for op in self.program.ops:
            if op.phase == "backward" and op.total_flops:
                for depth in range(len(op.scope) + 1):
                    costs[op.scope[:depth]] += op.total_flops
                costs[*op.scope, OWN] += op.total_flops
        return costs

    def _parameters(self) -> tuple[dict[Scope, tuple[int, int]], tuple[int, int]]:
        readers: defaultdict[int, dict[str, list[Scope]]] = defaultdict(lambda: defaultdict(list))
        hoisted: dict[int, set[int]] = {}
        loops = {op.parent for op in self.program.ops}  # what is inside them reads for them
        for op in (op for op in self.program.ops if op.id not in loops):
            states = {j for i in op.reads for j in hoisted.get(i, (i,)) if j in self.state}
            if op.id in self.hoisted:
                hoisted[op.id] = states
                continue
            for i in states & self.params:
                readers[i][op.phase].append(op.scope)
        owned: defaultdict[Scope, list[int]] = defaultdict(list)
        update: list[int] = []
        for i, phases in readers.items():
            size = math.prod(map(int, _DIMENSIONS.findall(self.type_of(i).partition("[")[2])))
            scopes = phases.get("forward") or phases.get("backward")
            if not scopes:
                update.append(size)
                continue
            scope = _common(scopes)
            for depth in range(len(scope) + 1):
                owned[scope[:depth]].append(size)
        totals = {scope: (len(sizes), sum(sizes)) for scope, sizes in owned.items()}
        return totals, (len(update), sum(update))


def _common(scopes: Iterable[Scope]) -> Scope:
    first, *others = scopes
    depth = len(first)
    for other in others:
        depth = min(depth, len(other))
        while first[:depth] != other[:depth]:
            depth -= 1
    return first[:depth]
