"""What module.json must say of a module's signatures, weights and classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgraph._errors import InputError, ModuleFormatError, ModuleWeightsError
from jgraph._preprocessing import Preprocessing
from jgraph.hub._weights import KINDS

Check = Callable[[Any], bool]

_MAX_SIDE = 8192  # pixels: 200 MB a picture
_MAX_STREAMS = 1 << 20


def check_manifest(
    folder: Path, manifest: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> None:
    """Check the parts that `read_module` leaves to those who use them.

    Raises:
        ModuleFormatError: it says which part.
        ModuleWeightsError: the weights aren't those that the signatures may use.
    """
    fields: Mapping[str, Check] = {
        "signatures": _all(_is_text, _is_signature),
        "variables": _all(_is_text, _is_variable),
        "labels": _list(_is_text),
        "stages": _list(_list(_is_text)),
        "licence": _all(_is_text, _is_text),
        "provenance": _all(_is_text, lambda x: True),
    }
    for name, is_right in fields.items():
        value = manifest.get(name, [] if name == "stages" else {})
        wrong = None if is_right(value) else name
        if wrong and isinstance(value, dict):  # say which one
            wrong = next((f"{name}[{k!r:.60}]" for k, v in value.items() if not is_right({k: v})))
        if wrong:
            raise ModuleFormatError(
                f"{folder / 'module.json'} isn't as jgraph writes it at {wrong}; fetch the module "
                "again, or ask its publisher"
            )
    variables = manifest.get("variables")
    if variables is not None:
        stored = {k for k, v in variables.items() if v["kind"] not in ("RngKey", "RngCount")}
        wrong = sorted(stored ^ weights.keys())
        if wrong:
            problem = "lacks" if wrong[0] in stored else "has the unknown"
            raise ModuleWeightsError(
                f"{folder} {problem} weight {wrong[0]!r:.60}, by its module.json"
            )
    if manifest["preprocess"]:
        try:
            preprocessing = Preprocessing.from_json(manifest["preprocess"])
        except InputError as error:
            raise ModuleFormatError(f"{folder / 'module.json'}: {error}") from error
        if preprocessing.resize_size > _MAX_SIDE:
            raise ModuleFormatError(
                f"{folder / 'module.json'} must take pictures of at most {_MAX_SIDE} pixels a "
                f"side, got {preprocessing.resize_size}"
            )


def _is_signature(x: Any) -> bool:
    return (
        isinstance(x, dict)
        and x.keys() - {"program", "train"} == {"inputs", "outputs"}
        and all(_all(_is_text, _is_spec)(x[part]) for part in ("inputs", "outputs"))
        and all(_is_program(x[part]) for part in ("program", "train") if part in x)
        and ("program" in x or "train" not in x)
    )


def _is_spec(x: Any) -> bool:
    return (
        isinstance(x, dict)
        and x.keys() == {"shape", "dtype"}
        and _list(lambda size: type(size) is int or _is_text(size))(x["shape"])
        and _is_text(x["dtype"])
    )


def _is_program(x: Any) -> bool:
    return (
        isinstance(x, dict)
        and x.keys() == {"file", "weights"}
        and _is_text(x["file"])
        and _list(_is_text)(x["weights"])
        and len(set(x["weights"])) == len(x["weights"])
    )


def _is_variable(x: Any) -> bool:
    if not isinstance(x, dict) or x.get("kind") not in KINDS:
        return False
    extra = {"RngKey": {"shape", "impl"}, "RngCount": {"shape"}}.get(x["kind"], set())
    sizes = x.get("shape", [])
    return (
        x.keys() == {"kind", *extra}
        and _list(lambda size: type(size) is int and size >= 0)(sizes)
        and math.prod(sizes) <= _MAX_STREAMS
        and _is_text(x.get("impl", ""))
    )


def _all(key: Check, value: Check) -> Check:
    return lambda x: isinstance(x, dict) and all(key(k) and value(v) for k, v in x.items())


def _list(item: Check) -> Check:
    return lambda x: isinstance(x, list) and all(map(item, x))


def _is_text(x: Any) -> bool:
    return isinstance(x, str)
