"""Operations of one module sorted into its submodules and small groups between them.

The groups never depend on each other in a circle: a module that is called again after another one
read its result becomes a second group, and so does an operation that would close a circle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jgraph.graph._ops import Op
from jgraph.graph._picture._words import SILENT

_MOST_CHIPS = 60  # joining groups looks at pairs


@dataclasses.dataclass(eq=False)
class Group:
    """Operations that become one box.

    Args:
        part: the submodule's or loop's part of the path; None for operations between them.
        ops: the operations, in order.
        before: groups it reads from.
    """

    part: str | None
    ops: list[Op] = dataclasses.field(default_factory=list)
    before: dict[Group, None] = dataclasses.field(default_factory=dict)

    @property
    def products(self) -> int:
        """How many matrix products and convolutions it holds."""
        return sum(op.is_product for op in self.ops)

    def reaches(self, other: Group, *, direct: bool = True) -> bool:
        """Return whether `other` depends on this group; without `direct`, also by a detour."""
        todo = [g for g in other.before if direct or g is not self]
        seen = set(todo)
        while todo:
            group = todo.pop()
            if group is self:
                return True
            new = [g for g in group.before if g not in seen]
            seen.update(new)
            todo += new
        return False


class _Sorter:
    def __init__(self, reads: Mapping[int, tuple[int, ...]]) -> None:
        self.reads = reads
        self.groups: list[Group] = []
        self.home: dict[int, Group] = {}
        self.waiting: dict[int, Op] = {}
        self._modules: dict[str, Group] = {}

    def put(self, op: Op, part: str | None) -> None:
        reads = self.reads[op.id]
        if part is None and (op.name in SILENT or not reads):
            self.waiting[op.id] = op  # a constant, or something made of parameters only
            return
        before = dict.fromkeys(self.home[i] for i in reads if i in self.home)
        group = self._module(part, before) if part is not None else self._chip(op, before)
        group.before.update(dict.fromkeys(g for g in before if g is not group))
        self._take(op, group)

    def _take(self, op: Op, group: Group) -> None:
        for i in op.reads:
            if i in self.waiting:
                self._take(self.waiting.pop(i), group)
        group.ops.append(op)
        self.home[op.id] = group

    def _module(self, part: str, before: Mapping[Group, None]) -> Group:
        group = self._modules.get(part)
        if group is None or _closes_circle(group, before):
            group = self._modules[part] = self._new(part)
        return group

    def _chip(self, op: Op, before: Mapping[Group, None]) -> Group:
        for group in reversed(self.groups):
            is_near = group in before or (op.call is not None and op.call == group.ops[-1].call)
            fits = group.part is None and not (op.is_product and group.products)
            if is_near and fits and not _closes_circle(group, before):
                return group
        return self._new(None)

    def _new(self, part: str | None) -> Group:
        self.groups.append(Group(part))
        return self.groups[-1]


def _closes_circle(group: Group, before: Mapping[Group, None]) -> bool:
    return any(other is not group and group.reaches(other) for other in before)


def _join(groups: list[Group]) -> list[Group]:
    """Join neighbouring groups of operations where no more than one product comes together."""
    chips = [group for group in groups if group.part is None]
    if len(chips) > _MOST_CHIPS:
        return groups
    for b in chips:
        for a in chips:
            if a is b or a not in groups or b not in groups or a.products + b.products > 1:
                continue
            is_near = a in b.before or (a.before.keys() == b.before.keys())
            if is_near and not a.reaches(b, direct=False) and not b.reaches(a):
                _melt(a, b, groups)
    return groups


def _join_end(groups: list[Group]) -> None:
    """Join the groups of operations that no submodule depends on."""
    parts = [group for group in groups if group.part is not None]
    chips = [group for group in groups if group.part is None]
    ends = [chip for chip in chips if not any(map(chip.reaches, parts))]
    for other in ends[1:]:
        _melt(ends[0], other, groups)


def _melt(a: Group, b: Group, groups: list[Group]) -> None:
    """Make `b` a part of `a`."""
    a.ops = sorted([*a.ops, *b.ops], key=lambda op: op.id)
    a.before = {g: None for g in (*a.before, *b.before) if g is not a and g is not b}
    groups.remove(b)
    for group in groups:
        if b in group.before:
            group.before = {(a if g is b else g): None for g in group.before}
            group.before.pop(group, None)


def _in_order(groups: list[Group]) -> list[Group]:
    """Return the groups so that each follows those it reads from, else as they came."""
    done: dict[Group, None] = {}
    while len(done) < len(groups):
        for group in groups:
            if group not in done and all(g in done for g in group.before):
                done[group] = None
    return list(done)


def grouped(
    ops: Sequence[Op],
    depth: int,
    paths: Mapping[int, tuple[str, ...]],
    reads: Mapping[int, tuple[int, ...]],
    *,
    one_end: bool = False,
) -> tuple[list[Group], list[Op]]:
    """Sort a module's operations into groups.

    Args:
        ops: the operations that stand in the module, in the order of the program.
        depth: length of the module's own path.
        paths: the path of each operation.
        reads: the ids each operation depends on, constants and parameters left out.
        one_end: whether what no submodule depends on becomes one group, such as a loss.

    Returns:
        The groups in the order of their dependence, and the operations that belong to none.
    """
    sorter = _Sorter(reads)
    for op in ops:
        path = paths[op.id]
        if len(path) == depth and path[-1:] == (f"\0{op.id}",):
            sorter.waiting[op.id] = op  # the loop this module is, not an operation in it
            continue
        sorter.put(op, path[depth] if len(path) > depth else None)
    groups = _join(sorter.groups)
    if one_end:
        _join_end(groups)
    return _in_order(groups), list(sorter.waiting.values())
