"""Strict restoring: every array that is missing, extra or of another kind is named."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jgraph._errors import CheckpointMismatchError, InputError
from jgraph._suggest import did_you_mean

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
    saved: Mapping[str, Sequence[Any]],
    wanted: Mapping[str, Any],
    *,
    source: str,
    remedy: str = _REMEDY,
) -> None:
    """Refuse a checkpoint whose arrays aren't those of the program.

    Args:
        saved: `[dtype, shape]` of each saved array, by path.
        wanted: the program's arrays, by path.
        source: the checkpoint, for the message.
        remedy: what to do, for the message.

    Raises:
        CheckpointMismatchError: every array that is missing, extra or of another kind is named.
    """
    extra = [name for name in saved if name not in wanted]
    faults = []
    for name, array in wanted.items():
        want = _shown(*array_type(array))
        if name not in saved:
            faults.append(f"missing: {name} {want}{did_you_mean(name, extra)}")
        elif _shown(*saved[name]) != want:
            faults.append(f"of another kind: {name} is {_shown(*saved[name])}, not {want}")
    faults += [f"extra: {name} {_shown(*saved[name])}" for name in extra]
    if faults:
        lines = "\n  ".join(faults)
        raise CheckpointMismatchError(
            f"the checkpoint must hold the arrays of this program, but {source} does not fit; "
            f"{remedy}:\n  {lines}"
        )


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
