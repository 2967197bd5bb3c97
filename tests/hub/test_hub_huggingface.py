"""Modules on the Hugging Face Hub: revisions, tokens, offline, as the library's users know them."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

import jgraph as jg
from jgraph._handles import Cache
from tests.hub.conftest import files_of
from tests.hub.server import TOKEN

X = np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)


def entries(cache):
    """What is in a cache, but for its locks."""
    return sorted(path.name for path in cache.glob("*") if path.name != "locks")


def test_a_module_of_the_hub(hub, line, cache):
    module = jg.hub.load("hf:me/line")
    assert (module(X) == jg.hub.load(line)(X)).all()
    assert not any(path.is_symlink() for path in module.folder.rglob("*"))
    assert Cache().entries()[0].handle == f"hf:me/line@{hub.branches['me/line@main']}"


def test_a_revision_of_the_hub(hub, line, tmp_path):
    first = hub.branches["me/line@main"]
    other = jg.hub.load(line).with_weights({"bias": np.ones(1)})
    jg.hub.push(other, tmp_path / "other")
    second = hub.commit("me/line", files_of(tmp_path / "other"))
    hub.branches["me/line@v1"] = first
    bias = {
        revision: float(jg.hub.load(f"hf:me/line@{revision}").weights["bias"][0])
        for revision in ("main", "v1", first, second)
    }
    assert bias == {"main": 1.0, "v1": 0.0, first: 0.0, second: 1.0}
    with pytest.raises(jg.hub.ModuleFetchError, match="hf:me/line has no revision 'mian'; did you"):
        jg.hub.load("hf:me/line@mian")


def test_the_hub_is_asked_for_what_the_manifest_lists_alone(hub):
    commit = hub.branches["me/line@main"]
    hub.repositories["me/line"][commit]["pytorch_model.bin"] = b"not wanted"
    jg.hub.load("hf:me/line")
    assert not any("pytorch_model" in line for line in hub.log)


def test_an_archive_and_a_weight_file_of_the_hub(hub, line, tmp_path):
    files = {
        "nets/line.zip": Path(jg.hub.push(line, tmp_path / "line.zip")).read_bytes(),
        "model.safetensors": (line / "weights.safetensors").read_bytes(),
        "other.safetensors": b"other",
    }
    hub.commit("me/files", files)
    assert jg.hub.load("hf:me/files/nets/line.zip").labels == ("up",)
    for handle in ("hf:me/files", "hf:me/files@main/model.safetensors"):
        path = jg.hub.resolve(handle)
        assert path.suffix == ".safetensors"
        assert path.read_bytes() == files["model.safetensors"]
    hub.commit("me/many", {"a.safetensors": b"", "b.safetensors": b""})
    with pytest.raises(jg.InputError, match=r"one weight file, got a\.safetensors, b\.safetensors"):
        jg.hub.resolve("hf:me/many")


def test_the_hub_goes_on_after_a_cut(hub):
    data = bytes(12 << 20)
    commit = hub.commit("me/weights", {"model.safetensors": data})
    hub.cuts = [11 << 20]
    assert jg.hub.resolve("hf:me/weights").read_bytes() == data
    # The library writes in chunks of 10 MiB.
    assert hub.log[-1] == (f"GET /me/weights/resolve/{commit}/model.safetensors bytes={10 << 20}-")


def test_the_hub_without_and_with_a_token(hub, monkeypatch):
    hub.private.add("me/line")
    with pytest.raises(jg.hub.ModuleFetchError, match="no repository hf:me/line, or it is private"):
        jg.hub.load("hf:me/line")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert jg.hub.load("hf:me/line").labels == ("up",)


@pytest.mark.parametrize(
    ("handle", "statuses", "message"),
    [
        ("hf:me/none", {}, "there is no repository hf:me/none"),
        ("hf:me/line/no.zip", {}, "there is no no.zip of hf:me/line@main"),
        ("hf:me/line", {"/me/line/resolve/main/module.json": [403]}, "can't be fetched: .*403"),
        ("hf:me/line", {"/me/line/resolve/main/module.json": [500]}, "can't be fetched: .*500"),
    ],
)
def test_what_the_hub_refuses(hub, cache, handle, statuses, message):
    hub.statuses.update(statuses)
    with pytest.raises(jg.hub.ModuleFetchError, match=message):
        jg.hub.load(handle)
    assert entries(cache) == []


@pytest.mark.parametrize("change", ["longer", "other"])
def test_files_of_the_hub_that_are_not_the_manifests(hub, cache, change):
    files = hub.repositories["me/line"][hub.branches["me/line@main"]]
    data = files["weights.safetensors"]
    files["weights.safetensors"] = data + b"x" if change == "longer" else data[:-1] + b"x"
    message = (
        "weights.safetensors of hf:me/line.*must have" if change == "longer" else "has changed"
    )
    with pytest.raises(jg.hub.ModuleIntegrityError, match=message):
        jg.hub.load("hf:me/line")
    assert entries(cache) == []


def test_the_hub_offline(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(jg.hub.ModuleNotCachedError, match=r"module\.json of hf:me/line@main isn't"):
        jg.hub.load("hf:me/line")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    jg.hub.load("hf:me/line")
    hub.log.clear()
    for name in ("HF_HUB_OFFLINE", "JGRAPH_HUB_OFFLINE"):
        with monkeypatch.context() as patch:
            if name == "HF_HUB_OFFLINE":
                patch.setattr(huggingface_hub.constants, name, True)
            else:
                patch.setenv(name, "1")
            assert jg.hub.load("hf:me/line").labels == ("up",)
            # Our cache is enough, where the library's was removed.
            patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
            assert jg.hub.load("hf:me/line").labels == ("up",)
    assert hub.log == []


def test_the_environment_of_the_hub_is_its_users(hub, cache, tmp_path):
    hub.private.add("me/line")
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    code = "import jgraph as jg; print(jg.hub.load('hf:me/line').labels)"

    def load(**more):
        return subprocess.run(
            [sys.executable, "-c", code], env={**env, **more}, capture_output=True, text=True
        )

    assert load(HF_TOKEN=TOKEN).stdout == "('up',)\n"
    assert (tmp_path / "home/hub/models--me--line").is_dir()
    elsewhere = str(tmp_path / "elsewhere")
    offline = load(HF_HUB_OFFLINE="1", HF_HOME=elsewhere, JGRAPH_HUB_CACHE=elsewhere)
    assert (
        "ModuleNotCachedError: module.json of hf:me/line@main isn't in the cache" in offline.stderr
    )


def test_a_hub_library_that_is_missing(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(jg.InputError, match=r"run: pip install 'jgraph\[hf\]'"):
        jg.hub.load("hf:me/line")
