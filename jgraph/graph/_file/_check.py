"""JSON as a document: whatever a file holds, it is either a graph or refused with the place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jgraph._errors import GraphFormatError
from jgraph._suggest import did_you_mean
from jgraph.graph._file._dims import check_dim, evaluate, solve, symbols_of
from jgraph.graph._file._document import (
    FORMAT,
    MAX_DEPTH,
    Body,
    Custom,
    Document,
    Input,
    Place,
    Ref,
    Step,
)
from jgraph.graph._file._kinds import DTYPE, functions_in
from jgraph.graph._file._table import OPSET, TABLE
from jgraph.graph._file._values import check_scalar

_MAX_ITEMS = 200_000
_MAX_TEXT = 4096
_MAX_STEPS = 2_000_000
_FREE_STEPS = 100_000  # that functions which call each other may come to, however short the file
_LOOP = 120  # what it takes to trace, lower and compile a loop, in operations
_MAX_SYMBOLS = 32
_CONSTRAINT = re.compile(r"(.+?) (==|>=|<=) (.+)")


def read_document(data: Any) -> Document:
    """Check JSON and return it as a document.

    Raises:
        GraphFormatError: it says where what is wrong.
    """
    root = _mapping(data, "the graph")
    if root.get("format") != FORMAT:
        raise GraphFormatError(f"the file must be a {FORMAT}, got {root.get('format')!r:.40}")
    opset = _whole(root.get("opset"), "opset")
    if not 1 <= opset <= OPSET:
        raise GraphFormatError(
            f"the file has opset {opset}, and this jgraph reads 1 to {OPSET}; install a newer "
            "jgraph (pip install -U jgraph)"
        )
    functions = _list(root.get("functions"), "functions")
    customs = [
        _custom(x, f"customs[{i}]") for i, x in enumerate(_list(root.get("customs"), "customs"))
    ]
    places = [_place(x, f"places[{i}]") for i, x in enumerate(_list(root.get("places"), "places"))]
    bodies = [_body(x, i, len(places), len(customs)) for i, x in enumerate(functions)]
    if not bodies:
        raise GraphFormatError("functions must have at least one, the main function")
    inputs = [_input(x, f"inputs[{i}]") for i, x in enumerate(_list(root.get("inputs"), "inputs"))]
    if bodies[-1].inputs != len(inputs):
        raise GraphFormatError(
            f"inputs must be those of the last function, {bodies[-1].inputs}, got {len(inputs)}"
        )
    document = Document(
        _text(root.get("name"), "name"),
        inputs,
        [
            _constraint(x, f"constraints[{i}]")
            for i, x in enumerate(_list(root.get("constraints"), "constraints"))
        ],
        dict(_mapping(root.get("interface"), "interface")),
        bodies,
        customs,
        places,
    )
    _check_customs(document)
    _check_size(document)
    _check_symbols(document)
    return document


def _body(data: Any, number: int, places: int, customs: int) -> Body:
    where = f"functions[{number}]"
    name, inputs, steps, outputs = _items(data, 4, where)
    count = _whole(inputs, f"{where}.inputs", most=_MAX_ITEMS)
    checked: list[Step] = []
    for i, x in enumerate(_list(steps, f"{where}.steps")):
        step = _step(x, f"{where}.steps[{i}]", count, number, places, customs)
        checked.append(step)
        count += step.outputs
    refs = [
        _ref(x, f"{where}.outputs[{i}]", count)
        for i, x in enumerate(_list(outputs, f"{where}.outputs"))
    ]
    return Body(_text(name, f"{where}.name"), _whole(inputs, where), checked, refs)


def _step(data: Any, where: str, values: int, function: int, places: int, customs: int) -> Step:
    op, inputs, outputs, params, place = _items(data, 5, where)
    op = _text(op, f"{where}.op")
    refs = [
        _ref(x, f"{where}.inputs[{i}]", values)
        for i, x in enumerate(_list(inputs, f"{where}.inputs"))
    ]
    outputs = _whole(outputs, f"{where}.outputs", most=4096)
    params = _mapping(params, f"{where}.params")
    place = _whole(place, f"{where}.place", least=-1, most=places - 1)
    if op == "constant":
        _exactly(params, {"tensor"}, where)
        _text(params["tensor"], f"{where}.tensor")
        _count(where, op, refs, 0, outputs, 1)
    elif op == "custom":
        _exactly(params, {"custom"}, where)
        _whole(params["custom"], f"{where}.custom", most=customs - 1)
    else:
        entry = TABLE.get(op)
        if entry is None:
            raise GraphFormatError(
                f"{where} has the operation {op!r:.40}, which opset {OPSET} doesn't have"
                f"{did_you_mean(op, TABLE)}"
            )
        _exactly(params, set(entry.kinds), where)
        for key, kind in entry.kinds.items():
            kind.check(params[key], f"{where}.{key}")
        for called in functions_in(entry.kinds, params):
            _whole(called, f"{where} calls function", most=function - 1)
        _count(where, op, refs, entry.arity, outputs, entry.outputs)
    return Step(op, refs, outputs, dict(params), place)


def _count(
    where: str, op: str, refs: Sequence[Ref], arity: int | None, outputs: int, made: int | None
) -> None:
    if arity is not None and len(refs) != arity:
        raise GraphFormatError(f"{where}: {op} takes {arity} inputs, got {len(refs)}")
    if made is not None and outputs != made:
        raise GraphFormatError(f"{where}: {op} makes {made} outputs, got {outputs}")


def _ref(data: Any, where: str, values: int) -> Ref:
    if isinstance(data, Mapping):
        _exactly(data, {"c", "t"}, where)
        DTYPE.check(data["t"], f"{where}.t")
        check_scalar(data["c"], data["t"], f"{where}.c")
        return dict(data)
    if isinstance(data, bool) or not isinstance(data, int) or not 0 <= data < values:
        raise GraphFormatError(
            f"{where} must be a value made before it, one of the first {values}, got {data!r:.40}"
        )
    return data


def _custom(data: Any, where: str) -> Custom:
    kind, function, rules, residuals = _items(data, 4, where)
    if kind not in ("jvp", "vjp"):
        raise GraphFormatError(f"{where}.kind must be 'jvp' or 'vjp', got {kind!r:.40}")
    numbers = [_whole(x, f"{where}.rules") for x in _list(rules, f"{where}.rules")]
    if len(numbers) != (1 if kind == "jvp" else 2):
        raise GraphFormatError(f"{where}.rules must be one for jvp and two for vjp")
    return Custom(kind, _whole(function, where), numbers, _whole(residuals, where, most=_MAX_ITEMS))


def _check_customs(document: Document) -> None:
    for i, custom in enumerate(document.customs):
        for number in (custom.function, *custom.rules):
            _whole(number, f"customs[{i}]", most=len(document.functions) - 2)
    # A rule may use the function whose derivative it is, but no function may use itself.
    for number, body in enumerate(document.functions):
        for i, step in enumerate(body.steps):
            if step.op == "custom":
                custom = document.customs[step.params["custom"]]
                where = f"functions[{number}].steps[{i}] calls function"
                _whole(custom.function, where, most=number - 1)


def _check_size(document: Document) -> None:
    """Refuse a file whose functions call each other so often that running it would never end."""
    cost: list[int] = []
    depth: list[int] = []
    written = sum(len(body.steps) for body in document.functions)
    most = min(_FREE_STEPS + 20 * written, _MAX_STEPS)
    for number, body in enumerate(document.functions):
        total, deepest = 0, 0
        for step in body.steps:
            called = [f for f in _called(document, step) if f < number]
            own = _LOOP if step.op in ("scan", "while") else 1
            total += own + _copies(step) * sum(cost[f] for f in called)
            deepest = max(deepest, *(depth[f] for f in called), 0)
        cost.append(total)
        depth.append(1 + deepest)
        if total > most or depth[-1] > MAX_DEPTH:
            raise GraphFormatError(
                f"functions[{number}] must come to at most {most} operations, {MAX_DEPTH} "
                f"deep, got {total} and {depth[-1]}"
            )


def _copies(step: Step) -> int:
    """Return how often an operation's functions are repeated when it is compiled."""
    if step.op != "scan":
        return 1
    return max(min(step.params["unroll"], step.params["length"]), 1)


def _called(document: Document, step: Step) -> list[int]:
    if step.op == "custom":
        custom = document.customs[step.params["custom"]]
        return [custom.function, *custom.rules]
    entry = TABLE.get(step.op)
    return [] if entry is None else functions_in(entry.kinds, step.params)


def _check_symbols(document: Document) -> None:
    known: set[str] = set()
    for i, x in enumerate(document.inputs):
        for size in x.shape:
            if isinstance(size, str):
                known |= symbols_of(size, f"inputs[{i}]")
    for what, count in (("symbols", len(known)), ("constraints", len(document.constraints))):
        if count > _MAX_SYMBOLS:
            raise GraphFormatError(f"inputs must have at most {_MAX_SYMBOLS} {what}, got {count}")
    _check_solvable(document, known)
    for text in document.constraints:
        match = _CONSTRAINT.fullmatch(text)
        assert match is not None, "checked when it was read"
        unknown = (symbols_of(match[1], text) | symbols_of(match[3], text)) - known
        if unknown:
            raise GraphFormatError(
                f"the constraint {text!r} has the symbol {min(unknown)!r}, which no input has"
            )


def _check_solvable(document: Document, symbols: set[str]) -> None:
    """Refuse symbols that the inputs' sizes don't tell, by which no call could be run."""
    some = {name: 1009 + 2 * i for i, name in enumerate(sorted(symbols))}
    sizes = (size for x in document.inputs for size in x.shape if isinstance(size, str))
    untold = symbols - solve({size: evaluate(size, some, "inputs") for size in sizes}).keys()
    if untold:
        raise GraphFormatError(
            f"the sizes of the inputs must tell the value of the symbol {min(untold)!r}, as an "
            "axis of that size does"
        )


def split_constraint(text: str) -> tuple[str, str, str]:
    """Return the two sides of a constraint, and how they compare between."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise GraphFormatError(f"a constraint must compare two sizes, got {text!r:.60}")
    return match[1], match[2], match[3]


def _constraint(data: Any, where: str) -> str:
    text = _text(data, where)
    first, _, second = split_constraint(text)
    symbols_of(first, where)
    symbols_of(second, where)
    return text


def _input(data: Any, where: str) -> Input:
    shape, dtype = _items(data, 2, where)
    sizes = _list(shape, f"{where}.shape")
    if len(sizes) > 32:
        raise GraphFormatError(f"{where}.shape must have at most 32 axes, got {len(sizes)}")
    for size in sizes:
        check_dim(size, f"{where}.shape")
        if isinstance(size, int) and size < 0:
            raise GraphFormatError(f"{where}.shape must have sizes from 0 up, got {size}")
    DTYPE.check(dtype, f"{where}.dtype")
    return Input(tuple(sizes), dtype)


def _place(data: Any, where: str) -> Place:
    scopes, transforms, file, line = _items(data, 4, where)
    texts = [tuple(_text(x, where) for x in _list(part, where)) for part in (scopes, transforms)]
    return Place(texts[0], texts[1], _text(file, where), _whole(line, where))


# JSON's own types.


def _mapping(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise GraphFormatError(f"{where} must be an object, got {type(data).__name__}")
    return data


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list) or len(data) > _MAX_ITEMS:
        raise GraphFormatError(f"{where} must be a list, got {type(data).__name__}")
    return data


def _items(data: Any, count: int, where: str) -> list[Any]:
    items = _list(data, where)
    if len(items) != count:
        raise GraphFormatError(f"{where} must have {count} parts, got {len(items)}")
    return items


def _whole(data: Any, where: str, least: int = 0, most: int = 1 << 31) -> int:
    if isinstance(data, bool) or not isinstance(data, int) or not least <= data <= most:
        raise GraphFormatError(
            f"{where} must be a whole number from {least} to {most}, got {data!r:.40}"
        )
    return data


def _text(data: Any, where: str) -> str:
    if not isinstance(data, str) or len(data) > _MAX_TEXT:
        raise GraphFormatError(f"{where} must be a text of at most {_MAX_TEXT} characters")
    if any("\ud800" <= c <= "\udfff" for c in data):
        raise GraphFormatError(f"{where} must be a text, and has half of a character: {data!a:.40}")
    return data


def _exactly(data: Mapping[str, Any], keys: set[str], where: str) -> None:
    if set(data) != keys:
        wrong = sorted(set(data) ^ keys)[0]
        problem = "lacks" if wrong in keys else "has the unknown"
        raise GraphFormatError(f"{where} {problem} parameter {wrong!r:.40}")
