"""Strict restoring: every array that is missing, extra or of another kind is named."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jgraph._errors import CheckpointMismatchError, InputError
from jgraph._suggest import did_you_mean

_OPTIMIZER = "optimizer"
_SHOWN = 5  # differences of an optimizer's arrays: it is another one, and they follow from that
_OPTIMIZER_REMEDY = (
    "take the optimizer that wrote it, or only the other parts along, as "
    'jg.Checkpoint(…, restore="model") does'
)
_REMEDY = (
    "make the program the one that wrote it, or take only some parts along, as "
    'jg.Checkpoint(…, restore="model") does where the optimizer has changed'
)


def part_of(name: str) -> str:
    """Return the part of a state that an array belongs to, the first word of its path.

    Example:
        >>> part_of("optimizer[0].mu['kernel']"), part_of("model.layers[0].bias")
        ('optimizer', 'model')
    """
    return re.split(r"[.\[]", name, maxsplit=1)[0]


def check_arrays(
    saved: Mapping[str, Sequence[Any]], wanted: Mapping[str, Any], *, source: str
) -> None:
    """Refuse a checkpoint whose arrays aren't those of the program.

    Args:
        saved: `[dtype, shape]` of each saved array, by path.
        wanted: the program's arrays, by path.
        source: the checkpoint, for the message.

    Raises:
        CheckpointMismatchError: every array that is missing, extra or of another kind is named;
            the first five where all are the optimizer's.
    """
    extra = [name for name in saved if name not in wanted]
    faults = {}
    for name, array in wanted.items():
        want = _shown(*array_type(array))
        if name not in saved:
            faults[name] = f"missing: {name} {want}{did_you_mean(name, extra)}"
        elif _shown(*saved[name]) != want:
            faults[name] = f"of another kind: {name} is {_shown(*saved[name])}, not {want}"
    faults |= {name: f"extra: {name} {_shown(*saved[name])}" for name in extra}
    if not faults:
        return
    lines = list(faults.values())
    if {part_of(name) for name in faults} == {_OPTIMIZER}:
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"and {len(lines) - _SHOWN} more"]
        what = f"the optimizer has changed, {source} holds the arrays of another"
        remedy = _OPTIMIZER_REMEDY
    else:
        what = f"the checkpoint must hold the arrays of this program, but {source} does not fit"
        remedy = _REMEDY
    raise CheckpointMismatchError("\n  ".join((f"{what}; {remedy}:", *lines)))


def check_parts(parts: Collection[str], known: Collection[str], source: str) -> None:
    """Refuse the name of a part that there isn't.

    Raises:
        InputError: it is named.
    """
    for part in parts:
        if part not in known:
            raise InputError(
                f"restore must name parts of the state, {', '.join(sorted(known))} in {source}; "
                f"got {part!r}{did_you_mean(part, known)}"
            )


def array_type(array: Any) -> tuple[str, list[int]]:
    """Return the dtype's name and the shape of an array, as a manifest has them."""
    return str(array.dtype), list(array.shape)


def _shown(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"
