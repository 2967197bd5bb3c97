"""Short words and numbers for people: operations, counts, shares, sources."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from jgraph.graph._ops import Op

# Nothing a reader of an architecture asks for: constants, casts, and JAX's own marks.
_SILENT_WORDS = """
broadcast_in_dim convert_element_type stop_gradient copy copy_p squeeze expand_dims iota
    sharding_constraint optimization_barrier mesh_cast pvary random_wrap random_unwrap
    reduce_precision name"""
SILENT = frozenset(_SILENT_WORDS.split())
# Worth a word only where an operation group does nothing else.
_MOVES_WORDS = """
reshape transpose slice pad rev select_n dynamic_slice dynamic_update_slice split gather
    eq ne lt le gt ge and or not xor is_finite"""
MOVES = frozenset(_MOVES_WORDS.split())
_WORDS = {
    "dot_general": "matmul",
    "ragged_dot": "ragged matmul",
    "ragged_dot_general": "ragged matmul",
    "conv_general_dilated": "conv",
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "product",
    "add_any": "add",
    "integer_pow": "power",
    "logistic": "sigmoid",
    "concatenate": "concat",
    "reduce_window_max": "max pool",
    "reduce_window_sum": "sum pool",
    "select_n": "select",
    "log_softmax": "log softmax",
    "dynamic_update_slice": "update slice",
    "dynamic_slice": "slice",
}
_MOST_WORDS = 5


def op_word(op: Op) -> str:
    """Return an operation in a word or two: "depthwise conv 3×3, stride 2"."""
    if op.function is not None:
        return op.function.replace("_", " ")
    word = _WORDS.get(op.name, op.name.replace("_", " "))
    if op.name == "integer_pow":
        return f"{word} {op.detail}"
    if op.name != "conv_general_dilated":
        return word
    kernel, _, rest = op.detail.partition(" ")
    kind = f"depthwise {word}" if "depthwise" in rest else word
    rest = rest.replace("depthwise", "").strip()
    return f"{kind} {kernel.replace('x', '×')}" + (f", {rest}" if rest else "")


def phrase(ops: Iterable[Op]) -> str:
    """Return a group of operations in one line: "matmul · add · relu"."""
    ops = [op for op in ops if any(op.producers)] or list(ops)  # without arithmetic on constants
    telling = [op for op in ops if op.function or op.name not in SILENT | MOVES]
    telling = telling or [op for op in ops if op.name not in SILENT] or ops
    if _is_norm(telling):
        return "normalise · scale"
    words: list[str] = []
    last_call: int | None = None
    for before, op in zip((None, *telling), telling, strict=False):
        is_same_call = op.call is not None and op.call == last_call
        if before is not None and _is_mean(before, op):
            words[-1] = "mean"
        elif not is_same_call:
            words.append(op_word(op))
        last_call = op.call
    return " · ".join(_short(_recognised(words)))


def _short(words: list[str]) -> list[str]:
    words = [word for i, word in enumerate(words) if i == 0 or word != words[i - 1]]
    if len(words) <= _MOST_WORDS:
        return words
    return [*words[: _MOST_WORDS - 1], f"{len(words) - _MOST_WORDS + 1} more"]


class _Known(NamedTuple):
    """A function JAX writes out as elementary operations, and every reader knows by one name.

    Args:
        name: the name.
        first: the word it starts with.
        needed: words that must follow.
        last: the word that ends them.
        around: words that may stand in between, and behind.
        then: a word that must come next, and belongs to it.
    """

    name: str
    first: str
    needed: frozenset[str]
    last: str
    around: frozenset[str]
    then: str | None = None

    def end(self, words: list[str], start: int) -> int | None:
        """Return where it ends if it stands at `start`."""
        end = start + 1
        while end < len(words) and words[end] in self.needed | self.around:
            end += 1
        if words[end : end + 1] != [self.last] or not self.needed <= {*words[start:end]}:
            return None
        end += 1
        if self.then is not None:
            return end + 1 if words[end : end + 1] == [self.then] else None
        while self.name == "gelu" and end < len(words) and words[end] in self.around:
            end += 1
        return end


_EXP = frozenset({"exp", "sum"})
_KNOWN = (
    _Known("gelu", "power 3", frozenset(), "tanh", frozenset({"mul", "add"})),
    _Known("log softmax", "max", _EXP, "log", frozenset({"sub", "max", "abs", "sign"}), "sub"),
    _Known("logsumexp", "max", _EXP, "log", frozenset({"sub", "max", "abs", "sign"}), "add"),
    _Known("softmax", "max", _EXP, "div", frozenset({"sub", "max"})),
)


def _recognised(words: list[str]) -> list[str]:
    for known in _KNOWN:
        for start in (i for i, word in enumerate(words) if word == known.first):
            end = known.end(words, start)
            if end is not None:
                return _recognised([*words[:start], known.name, *words[end:]])
    return words


def _sizes(shape: str) -> int:
    return math.prod(map(int, re.findall(r"\d+", shape.partition("[")[2])))


def _is_mean(total: Op, quotient: Op) -> bool:
    """Return whether a sum is divided by the number of its terms, and no more happens between."""
    if (total.name, quotient.name) != ("reduce_sum", "div") or not quotient.detail:
        return False
    terms = _sizes(total.inputs[0]) / max(1, _sizes(total.outputs[0]))
    return total.id in quotient.reads and float(quotient.detail) == terms


def _is_norm(ops: list[Op]) -> bool:
    """Recognise a normalisation: centred or averaged, scaled by a root, nothing heavier."""
    names = {op.name for op in ops}
    is_light = not any(op.is_product or op.function for op in ops) and len(ops) <= 24
    return is_light and {"rsqrt", "mul"} <= names and not names.isdisjoint({"sub", "reduce_sum"})


def si(number: float | int, unit: str = "") -> str:
    """Return a number with three digits: "5.29 M".

    Example:
        >>> si(5_288_548), si(999_950), si(12, "FLOP"), si(0)
        ('5.29 M', '1.00 M', '12 FLOP', '0')
    """
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    step = 0
    value = float(number)
    while step < len(prefixes) - 1 and float(f"{value:.3g}") >= 1000:
        value /= 1000
        step += 1
    shown = f"{value:.0f}" if step == 0 else _three_digits(value)
    return f"{shown} {prefixes[step]}{unit}".strip()


def _three_digits(value: float) -> str:
    rounded = float(f"{value:.3g}")
    return f"{rounded:.{2 if rounded < 10 else 1 if rounded < 100 else 0}f}"


def percent(share: float) -> str:
    """Return a share of 1 in percent: "12 %", "0.4 %".

    Example:
        >>> percent(0.1234), percent(0.0042), percent(0.00001), percent(0.0)
        ('12 %', '0.4 %', '< 0.1 %', '0 %')
    """
    value = 100 * share
    if value == 0:
        return "0 %"
    if value < 0.1:
        return "< 0.1 %"
    return f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def arrays(count: int, elements: int) -> str:
    """Return a module's parameters: "2 arrays, 1.20 M"; nothing where it has none."""
    if not count:
        return ""
    return f"{count} array{'s' if count > 1 else ''}, {si(elements)}"
