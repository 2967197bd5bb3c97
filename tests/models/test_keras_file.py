"""Keras's weight files: those that Keras wrote, broken ones, and hostile ones."""

import builtins
import io
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from jgraph._errors import InputError, ModuleFormatError, UnsafeModuleError
from jgraph.models import read_weights
from jgraph.models._weights import read_keras_file
from tests.parity.network_fill import fill

FILES = Path(__file__).parents[1] / "data" / "keras_files"
# What the recipe's small model holds: layers by their names, in their order, and shapes.
SMALL = {
    "conv2d/kernel": (3, 3, 3, 4),
    "batch_normalization/gamma": (4,),
    "batch_normalization/beta": (4,),
    "batch_normalization/moving_mean": (4,),
    "batch_normalization/moving_variance": (4,),
    "own_name/kernel": (3, 3, 4, 1),
    "batch_normalization_1/beta": (4,),
    "batch_normalization_1/moving_mean": (4,),
    "batch_normalization_1/moving_variance": (4,),
    "conv2d_1/kernel": (1, 1, 4, 2),
    "conv2d_1/bias": (2,),
    "predictions/kernel": (2, 3),
    "predictions/bias": (3,),
}
POSITIONS = {"own_name": "depthwise_conv2d", "predictions": "dense"}


def in_v3(name: str) -> str:
    layer = name.split("/")[0]
    index = [key for key in SMALL if key.startswith(f"{layer}/")].index(name)
    return f"layers/{POSITIONS.get(layer, layer)}/vars/{index}"


def test_the_older_format_is_read_by_names():
    found = read_weights(FILES / "small.h5")
    for name, shape in SMALL.items():
        np.testing.assert_array_equal(found.pop(name), fill(name, "bias", shape), err_msg=name)
    # The counter of dropout's random numbers.
    assert all("seed" in name for name in found)


@pytest.mark.parametrize("name", ["small.weights.h5", "small.keras"])
def test_the_newer_format_is_read_by_positions_without_the_optimizer(name):
    found = read_weights(FILES / name)
    for own, shape in SMALL.items():
        np.testing.assert_array_equal(found.pop(in_v3(own)), fill(own, "bias", shape), err_msg=own)
    assert all("seed_generator" in name for name in found)


def test_names_of_keras_2_are_read(tmp_path):
    kernel = np.arange(9, dtype=">f4").reshape(3, 3, 1, 1)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["conv2d_95/conv2d_95/kernel:0"] = kernel
        file["conv2d_107/conv2d_107/kernel:0"] = kernel + 1
        file["own/own/depthwise_kernel:0"] = kernel
        file.create_group("flatten")
    found = read_keras_file(tmp_path / "old.h5")
    assert list(found) == ["conv2d_1/kernel", "conv2d/kernel", "own/kernel"]
    np.testing.assert_array_equal(found["conv2d_1/kernel"], kernel + 1)
    assert found["conv2d/kernel"].dtype == np.dtype("float32")


def virtual(file, path):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(path / "secret.h5", "layers", (3,))
    file.create_virtual_dataset("layers/conv2d/vars/0", layout)


def external_data(file, path):
    (path / "secret.bin").write_bytes(b"secret numbers..")
    file.create_dataset("layers/conv2d/vars/0", (4,), "f4", external=[(path / "secret.bin", 0, 16)])


def deep(file, path):
    file[f"layers/{'/'.join('a' * 20)}/vars/0"] = np.zeros(1, np.float32)


def circle(file, path):
    group = file.create_group("layers/conv2d")
    for name in "abc":
        group[name] = group


def overlap(file, path):
    file["layers/conv2d/vars/0"] = np.zeros(4096, np.float32)
    for number in range(1, 1000):
        file[f"layers/conv2d/vars/{number}"] = file["layers/conv2d/vars/0"]


def texts(file, path):
    file["layers/conv2d/vars/0"] = ["a" * 1000] * 1000


def link(make):
    def write(file, path):
        file.create_group("layers")["conv2d"] = make(path)

    return write


def claim(file, path):
    file.create_dataset("layers/conv2d/vars/0", (1 << 40,), "f4", chunks=(1 << 10,))


def unwritten(file, path):
    file.create_dataset("layers/conv2d/vars/0", (1 << 33,), "f4")


def compressed(file, path):
    file.create_dataset(
        "layers/conv2d/vars/0", data=np.zeros(1 << 24, np.float32), compression="gzip"
    )


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (virtual, UnsafeModuleError, "vars/0 lies in other files"),
        (external_data, UnsafeModuleError, "vars/0 lies in other files"),
        (
            link(lambda path: h5py.ExternalLink(path / "secret.h5", "/")),
            UnsafeModuleError,
            "its conv2d is a link to elsewhere",
        ),
        (link(lambda path: h5py.SoftLink("/layers")), UnsafeModuleError, "link to elsewhere"),
        (compressed, UnsafeModuleError, "vars/0 is compressed or filtered"),
        (claim, ModuleFormatError, "is longer than what is stored of it"),
        (unwritten, ModuleFormatError, "is longer than what is stored of it"),
        (overlap, ModuleFormatError, "its arrays are longer than the file"),
        (circle, ModuleFormatError, "more than 12 deep"),
        (deep, ModuleFormatError, "more than 12 deep"),
        (texts, ModuleFormatError, "vars/0 is not an array of numbers"),
        (lambda file, path: None, ModuleFormatError, "it holds no weights of layers"),
    ],
)
def test_what_is_not_plain_arrays_is_refused(tmp_path, write, error, message):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["layers"] = np.ones(3, np.float32)
    with h5py.File(tmp_path / "net.weights.h5", "w") as file:
        write(file, tmp_path)
    with pytest.raises(error, match=message):
        read_weights(tmp_path / "net.weights.h5")


def test_too_many_objects_are_refused(tmp_path):
    with h5py.File(tmp_path / "net.h5", "w") as file:
        group = file.create_group("a")
        for number in range(200):
            group.create_group(f"{number}")
        for number in range(150):
            file[f"a{number}"] = group  # 150 x 200 ways
    with pytest.raises(ModuleFormatError, match="more than 20000 groups and arrays"):
        read_keras_file(tmp_path / "net.h5")


def test_two_weights_of_one_name_are_refused(tmp_path):
    with h5py.File(tmp_path / "net.h5", "w") as file:
        for layer in "ab":
            file[f"model/{layer}/kernel:0"] = np.zeros(1, np.float32)
    with pytest.raises(ModuleFormatError, match="two of its weights are called model/kernel"):
        read_keras_file(tmp_path / "net.h5")


def test_a_large_file_is_refused_unread(tmp_path):
    shutil.copy(FILES / "small.h5", tmp_path / "net.h5")
    with pytest.raises(ModuleFormatError, match="larger than the limit of 1000 bytes"):
        read_keras_file(tmp_path / "net.h5", max_bytes=1000)


def test_damaged_files_are_refused_or_read(tmp_path):
    """No change of bytes escapes the named errors."""
    whole = (FILES / "small.weights.h5").read_bytes()
    random = np.random.RandomState(0)
    refused = 0
    for trial in range(150):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[int(random.randint(len(data))) :]
        else:
            for place in random.randint(0, 4096, 4):
                data[place] = random.randint(256)
        (tmp_path / "net.h5").write_bytes(data)
        try:
            read_keras_file(tmp_path / "net.h5")
        except (ModuleFormatError, UnsafeModuleError):
            refused += 1
    assert refused >= 50


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"config.json": b"{}"}, "it holds 0 model.weights.h5 instead of one"),
        ({"model.weights.h5": b"no"}, "cannot be read: .*file signature not found"),
        (None, "its zip archive is broken"),
    ],
)
def test_broken_archives_are_refused(tmp_path, members, message):
    path = tmp_path / "net.keras"
    path.write_bytes(b"PK\x03\x04 and no more")
    if members is not None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    with pytest.raises(ModuleFormatError, match=message):
        read_weights(path)


def test_a_compressed_archive_is_refused(tmp_path):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(1 << 26))
    (tmp_path / "net.keras").write_bytes(bomb.getvalue())
    with pytest.raises(ModuleFormatError, match=r"its member model\.weights\.h5 is compressed"):
        read_weights(tmp_path / "net.keras")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"weights must be a file, there is none at .*x\.keras"):
        read_weights(tmp_path / "x.keras")


def test_without_h5py_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"needs the package h5py; run: pip install 'jgraph\[ke"):
        read_weights(FILES / "small.h5")
