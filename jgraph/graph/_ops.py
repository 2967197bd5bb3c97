"""The operations of a traced program as plain values: what runs where, at what cost, from where.

Calls (jit, custom derivatives, remat) are inlined. Loops, branches and shard_map stay as an
operation that costs nothing itself; the operations of its bodies follow it and name it `parent`.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from typing import Any, Literal

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from jgraph.graph._flops import own_flops, total_flops
from jgraph.graph._jaxpr import (
    Body,
    aval_text,
    call_body,
    call_name,
    control_bodies,
    frame_of,
    literal_text,
    open_jaxpr,
    shape_of,
    stack_of,
    symbolic_sizes,
)

Phase = Literal["forward", "backward", "update"]

_PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})
_MOST_CALLED = 40  # a longer function is no longer one word to its reader


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of a traced program.

    Args:
        id: its place in the program, from 0.
        name: the primitive's name, "dot_general".
        scope: the modules it stands in, outermost first, ("model", "blocks[3]"); the marks of
            transformations such as jvp(...) are taken off.
        phase: "backward" for what a transposition made, and for cheap operations that only prepare
            it (masks, derivatives); "update" for what is computed from gradients without being
            differentiated itself; "forward" for the rest.
        inputs: types of what it reads, "f32[8,224,224,3]".
        outputs: types of what it makes.
        producers: for each input the ids of the operations that make it: none for a constant,
            several for the result of a branch; -1 - k is the program's input k. The result of a
            loop comes from the operations inside it.
        flops: floating-point operations of one run, without those of its bodies.
        repeat: how many times it runs: the product of the scan lengths and shard_map devices
            around it, and 0 in the branches of a cond that are cheaper than the dearest.
        source: "model.py:41", the innermost line outside of libraries; None if there is none.
        source_path: the same with the file's full path.
        function: the short library function it is a part of ("relu", "softmax"); else None.
        call: the number of that function's call; equal for operations of one call.
        detail: what its name leaves out: a convolution's "3x3 stride 2", a power's "3", a
            constant divisor's "64.0".
        parent: id of the loop, branch or shard_map around it.
    """

    id: int
    name: str
    scope: tuple[str, ...]
    phase: Phase
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    producers: tuple[tuple[int, ...], ...]
    flops: int
    repeat: int = 1
    source: str | None = None
    source_path: str | None = None
    function: str | None = None
    call: int | None = None
    detail: str = ""
    parent: int | None = None

    @property
    def total_flops(self) -> int:
        """Floating-point operations of all its runs."""
        return self.flops * self.repeat

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product or a convolution."""
        return self.name in _PRODUCTS

    @property
    def reads(self) -> tuple[int, ...]:
        """Ids of all its producers, each once."""
        return tuple(dict.fromkeys(i for ids in self.producers for i in ids))


@dataclasses.dataclass(frozen=True)
class Program:
    """The operations of a traced program and which of them its results come from.

    Args:
        ops: the operations.
        inputs: types of the program's inputs.
        outputs: types of its outputs.
        results: for each output the ids of the operations that make it, as `Op.producers` has them.
        symbols: sizes of its inputs that have no number, and count as 1.
    """

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    results: tuple[tuple[int, ...], ...]
    symbols: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the walk stands: everything an equation takes over from those around it."""

    scope: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    repeat: int = 1
    parent: int | None = None
    function: str | None = None
    call: int | None = None
    frame: tuple[str, int] | None = None  # holds for everything inside a called function
    caller: tuple[str, int] | None = None  # holds where an operation knows no line of its own

    def at(self, eqn: JaxprEqn) -> _Place:
        stack = stack_of(eqn)
        return dataclasses.replace(
            self,
            caller=frame_of(eqn) or self.caller,
            scope=self.scope + stack.scopes,
            transforms=self.transforms + stack.transforms,
        )


_Values = dict[Var, tuple[int, ...]]


class _Walk:
    """Collects operations in the order of the program."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.transforms: list[tuple[str, ...]] = []
        self.kept: set[int] = set()  # results that the next round of a loop reads
        self._calls = 0

    def run(self, jaxpr: Jaxpr, values: _Values, place: _Place) -> list[tuple[int, ...]]:
        for eqn in jaxpr.eqns:
            here = place.at(eqn)
            ins = [_known(values, v) for v in eqn.invars]
            call = call_body(eqn)
            if call is not None:
                outs = self.run(call.jaxpr, _bound(call, ins), self._called(eqn, call, here))
            elif bodies := control_bodies(eqn):
                outs = self._control(eqn, bodies, ins, here)
            else:
                made = (self._add(eqn, ins, here, own_flops(eqn)),)
                outs = [made] * len(eqn.outvars)
            values.update(zip(eqn.outvars, outs, strict=True))
        return [_known(values, v) for v in jaxpr.outvars]

    def _called(self, eqn: JaxprEqn, call: Body, here: _Place) -> _Place:
        name = call_name(eqn)
        if here.function is not None or name is None or not _is_one_word(call.jaxpr):
            return here
        self._calls += 1
        # JAX traces such a function once: the lines inside it are those of its first caller.
        return dataclasses.replace(here, function=name, call=self._calls, frame=here.caller)

    def _control(
        self, eqn: JaxprEqn, bodies: tuple[Body, ...], ins: list[tuple[int, ...]], here: _Place
    ) -> list[tuple[int, ...]]:
        parent = self._add(eqn, ins, here, 0)
        costs = [total_flops(body.jaxpr) for body in bodies]
        is_cond = eqn.primitive.name == "cond"
        outs: list[tuple[int, ...]] = [()] * len(eqn.outvars)
        for number, body in enumerate(bodies):
            repeat = body.repeat * here.repeat
            if is_cond and number != costs.index(max(costs)):
                repeat = 0
            inside = dataclasses.replace(here, repeat=repeat, parent=parent)
            results = self.run(body.jaxpr, _bound(body, ins), inside)
            self.kept.update(i for ids in results[: body.carried] for i in ids)
            if body.has_outputs:
                outs = [tuple(dict.fromkeys(a + b)) for a, b in zip(outs, results, strict=True)]
        return outs

    def _add(self, eqn: JaxprEqn, ins: list[tuple[int, ...]], here: _Place, cost: int) -> int:
        frame = here.frame or here.caller
        op = Op(
            id=len(self.ops),
            name=eqn.primitive.name,
            scope=here.scope,
            phase="backward" if "transpose" in here.transforms else "forward",
            inputs=tuple(map(aval_text, eqn.invars)),
            outputs=tuple(map(aval_text, eqn.outvars)),
            producers=tuple(ins),
            flops=cost,
            repeat=here.repeat,
            source=f"{os.path.basename(frame[0])}:{frame[1]}" if frame else None,
            source_path=f"{frame[0]}:{frame[1]}" if frame else None,
            function=here.function,
            call=here.call,
            detail=_detail(eqn),
            parent=here.parent,
        )
        self.ops.append(op)
        self.transforms.append(here.transforms)
        return op.id


def _known(values: _Values, value: Any) -> tuple[int, ...]:
    return values.get(value, ()) if isinstance(value, Var) else ()


def _bound(body: Body, ins: list[tuple[int, ...]]) -> _Values:
    return {v: ins[i] for v, i in zip(body.jaxpr.invars, body.inputs, strict=True)}


def _is_one_word(jaxpr: Jaxpr) -> bool:
    """Return whether a called function is short, cheap and enters no module."""
    if len(jaxpr.eqns) > _MOST_CALLED:
        return False
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _PRODUCTS or control_bodies(eqn) or stack_of(eqn).scopes:
            return False
        call = call_body(eqn)
        if call is not None and not _is_one_word(call.jaxpr):
            return False
    return True


def _detail(eqn: JaxprEqn) -> str:
    """Return a power's exponent, a constant divisor, or a convolution's window in a few words."""
    if eqn.primitive.name == "integer_pow":
        return str(eqn.params["y"])
    if eqn.primitive.name == "div":
        return literal_text(eqn.invars[1])
    if eqn.primitive.name != "conv_general_dilated":
        return ""
    params, kernel = eqn.params, shape_of(eqn.invars[1])
    numbers = params["dimension_numbers"]
    words = ["x".join(str(kernel[axis]) for axis in numbers.rhs_spec[2:])]
    for name, key in (("stride", "window_strides"), ("dilation", "rhs_dilation")):
        sizes = params[key]
        if any(size != 1 for size in sizes):
            same = len(set(sizes)) == 1
            words.append(f"{name} {sizes[0] if same else 'x'.join(map(str, sizes))}")
    groups = params["feature_group_count"]
    if groups > 1:
        is_depthwise = kernel[numbers.rhs_spec[1]] == 1
        words.append("depthwise" if is_depthwise else f"{groups} groups")
    return " ".join(words)


def _consumers(ops: list[Op]) -> defaultdict[int, list[int]]:
    consumers: defaultdict[int, list[int]] = defaultdict(list)
    for op in ops:
        for i in op.reads:
            consumers[i].append(op.id)
    return consumers


def _backward(walk: _Walk, consumers: dict[int, list[int]], used: set[int]) -> set[int]:
    """Return the ids of what a transposition made and of cheap operations only it reads.

    Linearising a function leaves its masks and derivatives among the forward operations; to a
    reader they are a part of the backward pass.
    """
    backward = {op.id for op in walk.ops if op.phase == "backward"}
    bodies = {op.parent for op in walk.ops}
    has_value = any(i >= 0 and i not in backward for i in used)
    for op in reversed(walk.ops):
        is_cheap = not op.is_product and op.id not in bodies and "jvp" in walk.transforms[op.id]
        read_by = consumers[op.id]
        if is_cheap and op.id not in used and backward.issuperset(read_by):
            if not read_by and not has_value:
                continue  # grad without value: the loss is the one value nobody reads
            backward.add(op.id)
    return backward


def _update(
    walk: _Walk, backward: set[int], consumers: dict[int, list[int]], used: set[int]
) -> set[int]:
    """Return the ids of what gradients flow into, and of what only serves that."""
    plain = [
        op
        for op, t in zip(walk.ops, walk.transforms, strict=True)
        if op.id not in backward and "jvp" not in t
    ]
    update: set[int] = set()
    for op in plain:
        if op.parent in update or any(i in backward or i in update for i in op.reads):
            update.add(op.id)
    ids = {op.id for op in plain}
    elsewhere = {op.scope[:1] for op in walk.ops if op.id not in ids}
    own = {op.scope[:1] for op in plain if op.id in update and op.scope} - elsewhere
    for op in reversed(plain):
        only_there = consumers[op.id] and op.id not in used and update.issuperset(consumers[op.id])
        if op.scope[:1] in own or only_there:
            update.add(op.id)
    return update


def _phases(walk: _Walk, results: list[tuple[int, ...]]) -> list[Phase]:
    if all(op.phase == "forward" for op in walk.ops):
        return ["forward"] * len(walk.ops)
    consumers, used = _consumers(walk.ops), walk.kept.union(*results)
    backward = _backward(walk, consumers, used)
    update = _update(walk, backward, consumers, used)
    return [
        "backward" if op.id in backward else "update" if op.id in update else "forward"
        for op in walk.ops
    ]


def program_of(jaxpr: ClosedJaxpr) -> Program:
    """Return a traced program's operations, with the types of its ends.

    Args:
        jaxpr: the program, as `jax.make_jaxpr` returns it.

    Returns:
        The program.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = program_of(jax.make_jaxpr(jnp.sin)(jnp.ones(3)))
        >>> program.inputs, program.results
        (('f32[3]',), ((0,),))
    """
    walk, inner = _Walk(), open_jaxpr(jaxpr)
    values: _Values = {v: (-1 - k,) for k, v in enumerate(inner.invars)}
    results = walk.run(inner, values, _Place())
    phases = _phases(walk, results)
    return Program(
        ops=tuple(dataclasses.replace(op, phase=p) for op, p in zip(walk.ops, phases, strict=True)),
        inputs=tuple(map(aval_text, inner.invars)),
        outputs=tuple(map(aval_text, inner.outvars)),
        results=tuple(results),
        symbols=symbolic_sizes(jaxpr),
    )


def ops_of(jaxpr: ClosedJaxpr) -> tuple[Op, ...]:
    """Return the operations of a traced program, in its order.

    Args:
        jaxpr: the program, as `jax.make_jaxpr` returns it.

    Returns:
        The operations; `sum(op.total_flops for op in ops)` is `total_flops(jaxpr)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def model(x):
        ...     with jax.named_scope("model/head"):
        ...         return jnp.tanh(x @ x)
        >>> for op in ops_of(jax.make_jaxpr(model)(jnp.ones((2, 2)))):
        ...     print(op.name, op.scope, op.outputs, op.flops)
        dot_general ('model', 'head') ('f32[2,2]',) 16
        tanh ('model', 'head') ('f32[2,2]',) 4
    """
    return program_of(jaxpr).ops
