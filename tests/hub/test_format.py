"""The module folder: what is written comes back, and anything else is refused by name."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest

from jgraph import hub

MANIFEST = {"signatures": {}, "labels": ["a", "b"], "preprocess": {"image_size": 8}}
WEIGHTS = {
    "kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.float32(3.5).reshape(()),
    "count": np.array([7], np.int32),
}


@pytest.fixture
def module(tmp_path):
    return hub.write_module(
        tmp_path / "m",
        MANIFEST,
        WEIGHTS,
        write_files=lambda folder: (folder / "notes.txt").write_text("hello"),
    )


def edit(module, change):
    """Change the manifest as a publisher would who means it: its own hash is made anew."""
    path = module / "module.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    values = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(values, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def test_weights_come_back_as_they_were_also_transposed_and_scalar_ones(module):
    manifest, weights = hub.read_module(module)
    assert manifest["labels"] == ["a", "b"]
    assert set(weights) == set(WEIGHTS)
    for name, array in WEIGHTS.items():
        assert weights[name].shape == array.shape
        np.testing.assert_array_equal(weights[name], array)


def test_two_writes_are_equal_byte_for_byte(module, tmp_path):
    again = hub.write_module(tmp_path / "n", MANIFEST, dict(reversed(WEIGHTS.items())))
    assert (again / "weights.safetensors").read_bytes() == (
        module / "weights.safetensors"
    ).read_bytes()


def test_an_existing_destination_is_kept(module):
    before = (module / "module.json").read_bytes()
    with pytest.raises(hub.ModuleFormatError, match="exists already; choose another name"):
        hub.write_module(module, MANIFEST, WEIGHTS)
    assert (module / "module.json").read_bytes() == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_nothing_behind(tmp_path, error):
    def fail(folder):
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(type(error)):
        hub.write_module(tmp_path / "m", MANIFEST, WEIGHTS, write_files=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "weights.safetensors"])
def test_missing_and_changed_files_are_named(module, name):
    data = bytearray((module / name).read_bytes())
    data[-1] ^= 1
    (module / name).write_bytes(data)
    with pytest.raises(hub.ModuleIntegrityError, match=f"{name} has changed"):
        hub.read_module(module)
    (module / name).unlink()
    with pytest.raises(hub.ModuleIntegrityError, match=f"{name} is missing"):
        hub.read_module(module)


def test_links_are_refused(module):
    (module / "notes.txt").unlink()
    os.symlink("/etc/hostname", module / "notes.txt")
    with pytest.raises(hub.ModuleIntegrityError, match="must be a plain file, not a link"):
        hub.read_module(module)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../b", ".hidden", "module.json", "a\\b"]
)
def test_file_names_that_leave_the_folder_are_refused(module, name):
    edit(module, lambda m: m["files"].update({name: {"sha256": "0", "bytes": 0}}))
    with pytest.raises(hub.ModuleFormatError, match="a file name that isn't allowed"):
        hub.read_module(module)


def test_manifests_that_break_the_format_say_what_must_hold(module, tmp_path):
    with pytest.raises(hub.ModuleFormatError, match="but it does not exist"):
        hub.read_module(tmp_path / "nowhere")
    with pytest.raises(hub.ModuleFormatError, match=r"but it has no module\.json"):
        hub.read_module(tmp_path)
    edit(module, lambda m: m.pop("labels"))
    with pytest.raises(hub.ModuleFormatError, match="must hold 'labels' as a JSON list"):
        hub.read_module(module)
    edit(module, lambda m: m.update(labels=[], version=99))
    with pytest.raises(hub.ModuleFormatError, match="has version 99, this jgraph reads 1"):
        hub.read_module(module)
    edit(module, lambda m: m.update(format="other"))
    with pytest.raises(hub.ModuleFormatError, match='must say "format": "jgraph-module"'):
        hub.read_module(module)
    (module / "module.json").write_text("{")
    with pytest.raises(hub.ModuleFormatError, match="is not JSON"):
        hub.read_module(module)
    (module / "module.json").write_text(" " * ((4 << 20) + 1))
    with pytest.raises(hub.ModuleFormatError, match="is longer than"):
        hub.read_module(module)


def test_a_manifest_without_its_weights_is_refused(module):
    edit(module, lambda m: m["files"].pop("weights.safetensors"))
    with pytest.raises(hub.ModuleFormatError, match=r"must list weights\.safetensors"):
        hub.read_module(module)


def test_weights_that_differ_from_the_manifest_are_named(module):
    edit(module, lambda m: m["weights"].update(kernel=[[2, 3], "float32"], other=[[1], "int8"]))
    with pytest.raises(hub.ModuleWeightsError, match=r"differs .* in 2 weights: kernel, other"):
        hub.read_module(module)


def test_a_broken_weight_file_is_named(tmp_path):
    def garble(folder):
        (folder / "weights.safetensors").write_bytes(b"not safetensors")

    with pytest.raises(hub.ModuleWeightsError, match="is not a safetensors file"):
        hub.write_module(tmp_path / "m", MANIFEST, WEIGHTS, write_files=garble)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(hub.ModuleWeightsError, match="must be finite, these are not: bad"):
        hub.write_module(tmp_path / "m", MANIFEST, {"bad": np.array([np.nan], np.float32)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["labels", "weights", "sha256", "made_with"])
def test_a_changed_manifest_is_refused(module, key):
    path = module / "module.json"
    manifest = json.loads(path.read_text())
    manifest[key] = list(reversed(manifest[key])) if key == "labels" else "other"
    path.write_text(json.dumps(manifest))
    with pytest.raises(hub.ModuleIntegrityError, match=r"module\.json has changed since"):
        hub.read_module(module)


def test_the_manifest_may_be_laid_out_anew(module):
    path = module / "module.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    assert hub.read_module(module)[0]["labels"] == ["a", "b"]


def test_a_file_is_no_module(module):
    with pytest.raises(hub.ModuleFormatError, match="but it is a file"):
        hub.read_module(module / "notes.txt")


def test_who_comes_second_is_told_so(tmp_path):
    def somebody_else(_):
        hub.write_module(tmp_path / "m", MANIFEST, {"theirs": np.ones(1, np.float32)})

    with pytest.raises(hub.ModuleFormatError, match="exists already; choose another name"):
        hub.write_module(tmp_path / "m", MANIFEST, WEIGHTS, write_files=somebody_else)
    assert list(hub.read_module(tmp_path / "m")[1]) == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(hub.ModuleFormatError, match="must hold 'labels' as a JSON list"):
        hub.write_module(tmp_path / "m", {**MANIFEST, "labels": "a"}, WEIGHTS)
    assert list(tmp_path.iterdir()) == []
