"""Module folders made to do harm: every hash in them is right, as a publisher's would be."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.hub.hostile_archives import BROKEN, CHANGED, UNSAFE, Attack, Make

WEIGHTS_ERROR, UNTRUSTED = "ModuleWeightsError", "UntrustedProgramError"
_GRAPH = "programs/default.graph"

Edit = Callable[[dict[str, Any]], object]


def sealed(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the hash it should have."""
    values = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(values, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "module.json").write_text(json.dumps(manifest))


def changed(edit: Edit | None = None, **files: bytes | Callable[[bytes], bytes]) -> Make:
    """Return what makes a copy with other files, by name without ending, and another manifest."""

    def make(module: Path, folder: Path, sandbox: Path) -> str:
        target = folder / "net"
        shutil.copytree(module, target)
        manifest = json.loads((target / "module.json").read_text())
        names = {"weights": "weights.safetensors", "graph": _GRAPH}
        for key, data in files.items():
            name = names.get(key, key)
            path = target / name
            path.write_bytes(data(path.read_bytes()) if callable(data) else data)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest["files"][name] = {"sha256": digest, "bytes": path.stat().st_size}
        if edit is not None:
            edit(manifest)
        sealed(target, manifest)
        return str(target)

    return make


def text(change: Callable[[str], str | bytes]) -> Make:
    """Return what changes the text of module.json."""

    def make(module: Path, folder: Path, sandbox: Path) -> str:
        target = Path(changed()(module, folder, sandbox))
        found = change((target / "module.json").read_text())
        data = found.encode() if isinstance(found, str) else found
        (target / "module.json").write_bytes(data)
        return str(target)

    return make


def instead(name: str, put: Callable[[Path, Path], object]) -> Make:
    """Return what puts something else into the place of a file."""

    def make(module: Path, folder: Path, sandbox: Path) -> str:
        target = Path(changed()(module, folder, sandbox))
        (target / name).unlink()
        put(target / name, sandbox)
        return str(target)

    return make


def listed(name: str, **entry: Any) -> Make:
    """Return what lists one more file."""
    described = {"sha256": "0" * 64, "bytes": 0, **entry}
    return changed(lambda m: m["files"].update({name: described}))


# Weights.


def tensors(
    header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    """Return a safetensors file with any header."""
    found = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(found) if length is None else length) + found + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """Return a header's entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def weights_with(**arrays: np.ndarray) -> Callable[[bytes], bytes]:
    """Return what replaces and adds weights."""
    return lambda data: safetensors.numpy.save({**safetensors.numpy.load(data), **arrays})


def nan_weights(value: float) -> Make:
    """Return what makes one weight no number."""
    return changed(weights=weights_with(bias=np.array([value], np.float32)))


class _Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch escaped",)


# Programs.


def graph(edit: Edit) -> Make:
    """Return what changes the JSON of a program."""

    def change(data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            document = json.loads(archive.read("graph.json"))
        edit(document)
        return graph_file(json.dumps(document).encode())

    return changed(graph=change)


def graph_file(document: bytes) -> bytes:
    """Return a graph file that holds any bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("graph.json", document)
    return file.getvalue()


def first_step(document: dict[str, Any]) -> list[Any]:
    """Return the first operation of a program."""
    return document["functions"][-1][2][0]


def first_program(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of a program."""
    return manifest["signatures"]["default"]["program"]


def compiled(module: Path, folder: Path, sandbox: Path) -> str:
    """A module with a program that nobody can check."""
    files: dict[str, Any] = {"programs/default.stablehlo": b"ML\xefR"}
    return changed(**files)(module, folder, sandbox)


def extra(module: Path, folder: Path, sandbox: Path) -> str:
    """A module with a file that its manifest doesn't list."""
    target = Path(changed()(module, folder, sandbox))
    (target / "programs" / "more.py").write_text("x")
    return str(target)


def linked_folder(module: Path, folder: Path, sandbox: Path) -> str:
    """A module whose programs lie somewhere else."""
    target = Path(changed()(module, folder, sandbox))
    shutil.move(target / "programs", folder / "elsewhere")
    (target / "programs").symlink_to(folder / "elsewhere")
    return str(target)


def code_in_weights(module: Path, folder: Path, sandbox: Path) -> str:
    """A weight file that runs a command where it is unpickled."""
    path = folder / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("w/data.pkl", pickle.dumps({"a": _Code()}, protocol=2))
    return str(path)


def _many(count: int) -> Mapping[str, Any]:
    return {f"t{i}": tensor([0], 0, 0) for i in range(count)}


MODULES: dict[str, Attack] = {
    "json_key_twice": Attack(text(lambda t: t.replace("{", '{"labels": ["x"],', 1)), BROKEN),
    "json_nan": Attack(text(lambda t: t.replace("{", '{"a": NaN,', 1)), BROKEN),
    "json_deep": Attack(text(lambda t: "[" * 100_000 + "]" * 100_000), BROKEN),
    "json_many_lists": Attack(text(lambda t: f"[{'[],' * 1_000_000}[]]"), BROKEN),
    "json_long": Attack(text(lambda t: t + " " * (64 << 20)), BROKEN),
    "json_long_number": Attack(text(lambda t: t.replace("{", f'{{"a": {"9" * 10**6},', 1)), BROKEN),
    "json_no_text": Attack(text(lambda t: b"\xff\xfe" + t.encode()), BROKEN),
    "json_other": Attack(text(lambda t: "3"), BROKEN),
    "manifest_changed": Attack(text(lambda t: t.replace("float32", "float64", 1)), CHANGED),
    "manifest_is_a_link": Attack(
        instead("module.json", lambda p, s: p.symlink_to(s / "victim")), CHANGED
    ),
    "manifest_is_a_pipe": Attack(instead("module.json", lambda p, s: os.mkfifo(p)), BROKEN),
    "lists_a_place_above": Attack(listed("../victim"), BROKEN),
    "lists_an_absolute_place": Attack(listed("/etc/passwd"), BROKEN),
    "lists_two_cases": Attack(listed("readme.md"), BROKEN),
    "lists_a_long_name": Attack(listed("a" * 5000), BROKEN),
    "lists_a_negative_size": Attack(listed("a", bytes=-1), BROKEN),
    "lists_a_device_name": Attack(listed("NUL"), BROKEN),
    "lists_too_many": Attack(
        changed(
            lambda m: m["files"].update({f"f{i}": {"sha256": "0", "bytes": 0} for i in range(3000)})
        ),
        BROKEN,
    ),
    "file_is_missing": Attack(listed("notes.txt"), CHANGED),
    "file_is_changed": Attack(instead("README.md", lambda p, s: p.write_text("other")), CHANGED),
    "file_is_extra": Attack(extra, CHANGED),
    "file_is_a_link": Attack(
        instead("README.md", lambda p, s: p.symlink_to(s / "victim")), CHANGED
    ),
    "folder_is_a_link": Attack(linked_folder, CHANGED),
    "weights_are_endless": Attack(
        instead("weights.safetensors", lambda p, s: p.symlink_to("/dev/zero")), CHANGED
    ),
    "weights_are_a_pipe": Attack(
        instead("weights.safetensors", lambda p, s: os.mkfifo(p)), CHANGED
    ),
    "weights_are_huge": Attack(
        instead("weights.safetensors", lambda p, s: _hole(p, 1 << 40)), CHANGED
    ),
    "weights_cut": Attack(changed(weights=lambda d: d[:-2]), WEIGHTS_ERROR),
    "weights_pickled": Attack(changed(weights=pickle.dumps(_Code())), WEIGHTS_ERROR),
    "weights_endless_header": Attack(changed(weights=tensors({}, length=1 << 62)), WEIGHTS_ERROR),
    "weights_long_header": Attack(
        changed(weights=lambda d: tensors(_many(300_000))), WEIGHTS_ERROR
    ),
    "weights_huge_shape": Attack(
        changed(weights=tensors({"bias": tensor([1 << 40], 0, 4)}, bytes(4))), WEIGHTS_ERROR
    ),
    "weights_overflowing_shape": Attack(
        changed(weights=tensors({"bias": tensor([1 << 62, 1 << 62], 0, 4)}, bytes(4))),
        WEIGHTS_ERROR,
    ),
    "weights_huge_empty_shape": Attack(
        changed(weights=tensors({"bias": tensor([0, 1 << 62, 1 << 62], 0, 0)})), WEIGHTS_ERROR
    ),
    "weights_over_each_other": Attack(
        changed(weights=tensors({k: tensor([1], 0, 4) for k in ("bias", "kernel")}, bytes(4))),
        WEIGHTS_ERROR,
    ),
    "weights_of_no_type": Attack(
        changed(weights=tensors({"bias": tensor([1], 0, 4, "Q9")}, bytes(4))), WEIGHTS_ERROR
    ),
    "weights_nan": Attack(nan_weights(np.nan), WEIGHTS_ERROR),
    "weights_infinite": Attack(nan_weights(np.inf), WEIGHTS_ERROR),
    "weights_wrong_dtype": Attack(
        changed(weights=weights_with(bias=np.zeros(1, np.float64))), WEIGHTS_ERROR
    ),
    "weights_wrong_shape": Attack(
        changed(weights=weights_with(bias=np.zeros(2, np.float32))), WEIGHTS_ERROR
    ),
    "weights_extra": Attack(
        changed(weights=weights_with(more=np.zeros(1, np.float32))), WEIGHTS_ERROR
    ),
    "weights_unknown_to_programs": Attack(
        changed(
            lambda m: m["weights"].update(more=[[1], "float32"]),
            weights=weights_with(more=np.zeros(1, np.float32)),
        ),
        WEIGHTS_ERROR,
    ),
    "weights_key_is_a_method": Attack(
        changed(
            lambda m: (
                m["weights"].update(train=m["weights"].pop("bias")),
                m["variables"].update(train=m["variables"].pop("bias")),
                first_program(m).update(weights=["train", "kernel"]),
            ),
            weights=lambda d: safetensors.numpy.save(
                {{"bias": "train"}.get(k, k): v for k, v in safetensors.numpy.load(d).items()}
            ),
        ),
        BROKEN,
    ),
    "random_streams_are_huge": Attack(
        changed(
            lambda m: (
                m["variables"].update(
                    r={"kind": "RngKey", "shape": [1 << 19, 1 << 19], "impl": "fry"}
                ),
                first_program(m)["weights"].append("r"),
            )
        ),
        BROKEN,
    ),
    "pictures_are_huge": Attack(
        changed(
            lambda m: m.update(
                preprocess={
                    "image_size": 10**6,
                    "resize_size": 10**6,
                    "interpolation": "bilinear",
                    "mean": [0.0, 0.0, 0.0],
                    "std": [1.0, 1.0, 1.0],
                }
            )
        ),
        BROKEN,
    ),
    "program_unknown_op": Attack(
        graph(lambda d: first_step(d).__setitem__(0, "run_shell")), BROKEN
    ),
    "program_wrong_opset": Attack(graph(lambda d: d.update(opset=99)), BROKEN),
    "program_reads_ahead": Attack(graph(lambda d: first_step(d).__setitem__(1, [10**6])), BROKEN),
    "program_is_pickled": Attack(changed(graph=pickle.dumps(_Code())), BROKEN),
    "program_is_a_bomb": Attack(changed(graph=lambda d: graph_file(bytes(100 << 20))), BROKEN),
    "program_is_not_listed": Attack(
        changed(lambda m: first_program(m).update(file="../../x")), BROKEN
    ),
    "program_is_the_weights": Attack(
        changed(lambda m: first_program(m).update(file="weights.safetensors")), BROKEN
    ),
    "program_uses_others": Attack(
        changed(lambda m: first_program(m).update(weights=["kernel"])), BROKEN
    ),
    "program_is_compiled": Attack(compiled, UNTRUSTED),
    "code_in_a_weight_file": Attack(code_in_weights, UNSAFE),
}


def _hole(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
