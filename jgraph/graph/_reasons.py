"""Why a call was traced or compiled again, in sentences a person can act on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jgraph.graph._signature import SAME, Leaf, Signature

FIRST = "the first call"

_UNCHANGED = (
    "nothing about the call changed: JAX's caches were cleared (jax.clear_caches()), or this "
    "program had left them; call it with fewer kinds of arguments, or don't clear them"
)
_HIDDEN = (
    "the structure of the objects or the static values differ in a part that looks the same when "
    "printed: give its class __eq__ and __hash__, or make it once and pass the same one"
)
_LONGEST = 200
_MODES = ("deterministic", "use_running_average")


class Difference(NamedTuple):
    """One thing that is another than before, and what to do about it."""

    path: str
    change: str
    remedy: str
    refused: str = ""
    """What to do where `max_graphs` allows no further graph, if that is something else."""


def reason(new: Signature, old: Sequence[Signature], *, traced: bool, refused: bool = False) -> str:
    """Say why a call needed a program of its own.

    Args:
        new: the call.
        old: the calls that have one; the nearest is compared.
        traced: whether the function was traced; it may also only have been compiled.
        refused: whether `max_graphs` allows no further graph.
    """
    if not old:
        return FIRST
    found = min((differences(new, before) for before in old), key=len)
    if not found:
        return _UNCHANGED if any(new.program is before.program for before in old) else _HIDDEN
    if refused:
        found = [d._replace(remedy=d.refused or d.remedy) for d in found]
    return ("" if traced else "without a trace, ") + " ".join(_sentences(found))


def _sentences(found: Sequence[Difference]) -> list[str]:
    """Return the differences, those with the same remedy together, and no more than a few."""
    by_remedy: dict[str, list[Difference]] = {}
    for difference in found:
        by_remedy.setdefault(difference.remedy, []).append(difference)
    sentences = []
    for remedy, same in list(by_remedy.items())[:3]:
        shown = "; ".join(f"{d.path}: {d.change}" for d in same[:3])
        more = f" (and {len(same) - 3} more)" if len(same) > 3 else ""
        sentences.append(f"{shown}{more}. {remedy}.")
    return sentences


def differences(new: Signature, old: Signature) -> list[Difference]:
    """Return what two calls differ in, the most telling first."""
    found = [
        *_values(new.surroundings, old.surroundings, _surroundings),
        *_values(new.settings, old.settings, _setting),
        *_values(new.statics, old.statics, _static),
        *_values(new.objects, old.objects, _object),
        *_values(new.containers, old.containers, _container),
    ]
    # Where containers or objects differ, leaves come and go with them.
    only_common = bool(found)
    for path in {**old.leaves, **new.leaves}:
        a, b = old.leaves.get(path), new.leaves.get(path)
        if a is not None and b is not None:
            found += _leaf(path, a, b)
        elif not only_common:
            found.append(_come_or_gone(path, a, b))
    return sorted(found, key=lambda d: _RANK.get(d.change.partition(" ")[0], 0))


_RANK: Mapping[str, int] = {"placement": 1, "committed": 2}


def _leaf(path: str, old: Leaf, new: Leaf) -> list[Difference]:
    if old.type != new.type:
        return [_type(path, old, new)]
    if old.weak != new.weak:
        words = {True: "weak (a Python number, or made of them)", False: "strong"}
        return [
            Difference(
                path,
                f"weak type was {words[old.weak]}, is {words[new.weak]}, {new.type}",
                f"Make it strong once, jnp.asarray({path}, {new.type.partition('[')[0]!r})",
            )
        ]
    if not (old.placement and new.placement):
        return _unplaced(path, old, new)
    if old.placement != new.placement:
        return [
            Difference(
                path,
                f"placement was {old.placement}, is {new.placement}",
                "Put it there before the first call, jax.device_put(x, sharding)",
            )
        ]
    if old.committed != new.committed:
        words = {True: "committed to a device", False: "uncommitted"}
        return [
            Difference(
                path,
                f"committed was {words[old.committed]}, is {words[new.committed]}",
                "Put it there each time with jax.device_put, or never",
            )
        ]
    return []


def _unplaced(path: str, old: Leaf, new: Leaf) -> list[Difference]:
    # Inside an outer trace there is no telling where an array will be.
    if not (old.committed or new.committed):
        return []
    return [
        Difference(
            path,
            f"placement was {old.placement or 'open'}, is {new.placement or 'open'}",
            "Put it there each time, by jax.device_put or strategy.batches",
        )
    ]


def _type(path: str, before: Leaf, now: Leaf) -> Difference:
    old, new = before.type, now.type
    (old_dtype, _, old_shape), (new_dtype, _, new_shape) = old.partition("["), new.partition("[")
    if old_dtype != new_dtype:
        remedy = f"Cast it, {path}.astype({old_dtype!r}), or keep one dtype"
        numbers = _is_number(before), _is_number(now)
        if any(numbers):  # it has no `astype`
            wider = max(old_dtype, new_dtype, key=_NUMBERS.index) if all(numbers) else ""
            dtype = wider or (new_dtype if numbers[0] else old_dtype)
            remedy = f"Pass it as an array of one dtype, jnp.asarray({path}, {dtype!r})"
        return Difference(path, f"dtype was {old}, is {new}", remedy)
    remedy = "Pad it to one shape, or drop the last, smaller batch"
    if _num_axes(old_shape) != _num_axes(new_shape):
        remedy = "Give it one number of axes"
    return Difference(path, f"shape was {old}, is {new}", remedy)


_NUMBERS = ("bool", "int32", "int64", "float32", "float64", "complex64", "complex128")


def _is_number(leaf: Leaf) -> bool:
    """Return whether it may be a Python number."""
    dtype, _, shape = leaf.type.partition("[")
    is_weak = leaf.weak or dtype == "bool"
    return is_weak and shape == "]" and not leaf.placement and dtype in _NUMBERS


def _num_axes(shape: str) -> int:
    return len(shape.strip("]").split(",")) if shape != "]" else 0


def _come_or_gone(path: str, old: Leaf | None, new: Leaf | None) -> Difference:
    if old is None:
        return Difference(path, f"is new, {new.type if new else ''}", "Pass it in every call")
    return Difference(path, f"is gone, it was {old.type}", "Pass it in every call")


def _values(
    new: Mapping[str, str],
    old: Mapping[str, str],
    describe: Callable[[str, str | None, str | None], Difference],
) -> list[Difference]:
    found = []
    for path in {**old, **new}:
        before, now = old.get(path), new.get(path)
        if before != now and not _comes_with_another(path, old, new):
            found.append(describe(path, *_shorten(before, now)))
    return found


def _comes_with_another(path: str, old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Return whether a whole module came, went or is shared now, with all that is in it."""
    above = (path[: match.start()] for match in re.finditer(r"[.\[]", path))
    return any(_is_told(old, p) != _is_told(new, p) for p in above)


def _is_told(told: Mapping[str, str], path: str) -> bool:
    return path in told and not told[path].startswith(SAME)


def _shorten(old: str | None, new: str | None) -> tuple[str | None, str | None]:
    """Return texts that fit a sentence, with the place where they differ."""
    if old is None or new is None:
        first = 0
    else:
        pairs = enumerate(zip(old, new, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    start = 0 if first < _LONGEST else first - _LONGEST // 2

    def cut(text: str | None) -> str | None:
        if text is None or len(text) <= _LONGEST:
            return text
        end = start + _LONGEST
        return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")

    return cut(old), cut(new)


def _surroundings(path: str, old: str | None, new: str | None) -> Difference:
    return Difference(
        path,
        f"was {old}, is {new}",
        "There is a graph for each: two are enough, switch freely",
        "There is a graph for each: max_graphs must count both",
    )


def _setting(path: str, old: str | None, new: str | None) -> Difference:
    return Difference(
        f"JAX setting {path}",
        f"was {old}, is {new}",
        "Set it once, before the first call",
    )


def _static(path: str, old: str | None, new: str | None) -> Difference:
    return Difference(
        path,
        f"static value was {old or 'not given'}, is {new or 'not given'}",
        "Each static value has a graph of its own; pass it as an array if the code needn't branch "
        "on it in Python",
    )


def _container(path: str, old: str | None, new: str | None) -> Difference:
    return Difference(
        path,
        f"structure was {old or 'one array'}, is {new or 'one array'}",
        "Pass the same keys and lengths in every call",
    )


def _object(path: str, old: str | None, new: str | None) -> Difference:
    name = path.rpartition(".")[2]
    if old is None:
        return Difference(path, f"is new, {new}", "Add it before the first call")
    if new is None:
        return Difference(path, f"is gone, it was {old}", "Remove it before the first call")
    if name in _MODES:
        return Difference(
            path,
            f"was {old}, is {new}",
            "model.train() and model.eval() have a graph each: two are enough, switch freely",
            "model.train() and model.eval() have a graph each: max_graphs must count both",
        )
    if " at 0x" in old and " at 0x" in new:
        return Difference(
            path,
            f"is another object than before, {new}",
            "Make it once, outside the loop, and pass the same one",
        )
    return Difference(
        path, f"was {old}, is {new}", "Make it a Variable if it is to change between calls"
    )
