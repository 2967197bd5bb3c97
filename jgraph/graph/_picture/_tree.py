"""From operations to nested boxes: grouped by module, joined by the arrays that flow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from jgraph.graph._ops import Op, Program
from jgraph.graph._picture._ends import add_ends
from jgraph.graph._picture._facts import OWN, Facts, Port, Scope
from jgraph.graph._picture._group import Group, grouped
from jgraph.graph._picture._merge import merge_repeats
from jgraph.graph._picture._node import TOP, Edge, Kind, Node
from jgraph.graph._picture._words import phrase


def tree_of(
    program: Program, inputs: Sequence[Port], outputs: Sequence[Port], title: str = ""
) -> Node:
    """Return the picture's root: the program's modules, loss, update, inputs and outputs.

    Args:
        program: what was traced.
        inputs: one port for each input of the program.
        outputs: one port for each output.
        title: name of the root.

    Returns:
        The root node; repeats are merged at every level.
    """
    facts = Facts(program, inputs, outputs)
    root = _Builder(facts).build(title, "module", facts.forward, ())
    root.backward = facts.backward_of[()]
    root.forward += sum(op.total_flops for op in facts.update)
    root.params = root.params[0] + facts.update_params[0], root.params[1] + facts.update_params[1]
    root.symbols = program.symbols
    return root


class _Builder:
    """Builds nodes from the inside out."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.shown: set[Scope] = set()

    def build(self, name: str, kind: Kind, ops: list[Op], path: Scope) -> Node:
        depth = len(path)
        scope = tuple(part for part in path if not part.startswith("\0"))
        is_first = path not in self.shown  # the backward pass of a module called twice counts once
        self.shown.add(path)
        node = Node(name, kind, scope=scope)
        is_training = not path and self.facts.has_backward
        groups, node.ops = grouped(
            ops, depth, self.facts.paths, self.facts.reads, one_end=is_training
        )
        node.children = [self._child(group, path) for group in groups]
        node.edges = _edges(self.facts, groups, ops)
        node.forward = sum(op.total_flops for op in ops)
        if is_first:
            node.params = self.facts.params_of.get(scope, (0, 0))
            node.backward = self.facts.backward_of[scope]
            self._share_backward(node)
        if not path:
            self._name_loss(node)
            add_ends(self.facts, node, groups)
        if len(node.children) == 1:
            _absorb(node)
        else:
            merge_repeats(node)
        node.phrase = node.phrase or phrase(list(node.all_ops()) if not node.children else [])
        return node

    def _child(self, group: Group, path: Scope) -> Node:
        if group.part is None:
            chip = Node("", "ops", ops=group.ops, scope=path)
            chip.forward = sum(op.total_flops for op in group.ops)
            chip.phrase = phrase(group.ops)
            return chip
        inner = (*path, group.part)
        if not group.part.startswith("\0"):
            return self.build(group.part, "module", group.ops, inner)
        loop = self.facts.program.ops[int(group.part[1:])]
        node = self.build(_loop_name(loop, group.ops), "loop", group.ops, inner)
        node.backward = sum(child.backward * child.copies for child in node.children)
        node.params = (
            sum(child.params[0] * child.copies for child in node.children),
            sum(child.params[1] * child.copies for child in node.children),
        )
        return node

    def _share_backward(self, node: Node) -> None:
        """Give the operations between the submodules their part of the backward pass.

        A backward operation only knows its module; which operation of the module it belongs to
        is taken from their forward costs.
        """
        chips = [child for child in node.children if child.kind == "ops"]
        cost, total = self.facts.backward_of[*node.scope, OWN], sum(c.forward for c in chips)
        for chip in chips:
            chip.backward = cost * chip.forward // total if total else 0

    def _name_loss(self, root: Node) -> None:
        """Call what follows the last module of a training step its loss."""
        modules = [i for i, child in enumerate(root.children) if child.kind == "module"]
        if not self.facts.has_backward or not modules:
            return
        for child in root.children[modules[-1] + 1 :]:
            if child.kind == "ops":
                child.kind, child.name = "loss", "loss"
                return


def _loop_name(loop: Op, ops: list[Op]) -> str:
    if loop.name != "scan":
        return loop.name.replace("_", " ")
    rounds = max(op.repeat for op in ops) // max(1, loop.repeat)
    return f"scan ×{rounds}"


def _absorb(node: Node) -> None:
    """Give a node with one child what the child has: a box in a box says nothing more."""
    (child,) = node.children
    node.phrase = child.phrase
    if child.kind == "ops":
        node.ops = [*node.ops, *child.ops]
        node.children, node.edges = [], []
    elif child.kind == "module" and node.kind == "module" and node.scope:
        node.ops = [*node.ops, *child.ops]
        node.name = f"{node.name}/{child.name}"
        node.children, node.edges, node.scope = child.children, child.edges, child.scope


def _edges(facts: Facts, groups: list[Group], ops: list[Op]) -> list[Edge]:
    home = {op.id: i for i, group in enumerate(groups) for op in group.ops}
    inside = {op.id for op in ops}
    shapes: defaultdict[tuple[int, int], dict[str, None]] = defaultdict(dict)
    for target, group in enumerate(groups):
        for op in group.ops:
            for i in facts.reads[op.id]:
                source = home.get(i, TOP)
                if source != target and (i not in inside or i in home):
                    shapes[source, target][facts.type_of(i)] = None
    for i in facts.leaving(ops):
        if i in home:
            shapes[home[i], len(groups)][facts.type_of(i)] = None
    return [Edge(s, t, tuple(types)) for (s, t), types in sorted(shapes.items())]
