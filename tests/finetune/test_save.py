"""A run folder is whole or not there, and earlier runs stay as they are."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import pytest

import jgraph as jg
from jgraph._cli import main
from jgraph._finetune import _save

pytestmark = pytest.mark.usefixtures("workplace", "tiny")


@pytest.fixture
def few(paint):
    return paint(Path("few"), {"dots": 8, "plain": 6})


def tree(folder: Path) -> dict[str, bytes | str]:
    return {
        str(p): os.readlink(p) if p.is_symlink() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def test_runs_are_numbered_and_the_latest_is_linked(few):
    for number in ("001", "002"):
        assert jg.finetune(few, verbose=False).folder == Path(f"runs/few-{number}")
        assert os.readlink("runs/latest") == f"few-{number}"
    assert sorted(os.listdir("runs")) == ["few-001", "few-002", "latest"]
    assert jg.load_run("runs/latest").metrics == jg.load_run("runs/few-002").metrics


def test_a_gap_is_not_filled_and_other_names_do_not_count(few):
    for name in ("few-007", "few-x", "fewer-020", "few-12"):
        Path("runs", name).mkdir(parents=True)
    assert jg.finetune(few, verbose=False).folder == Path("runs/few-008")


def test_with_out_nothing_is_numbered(few):
    assert jg.finetune(few, out="deep/er/run", verbose=False).folder == Path("deep/er/run")
    assert not Path("runs").exists()
    assert sorted(os.listdir("deep/er")) == ["run"]


def test_a_run_holds_these_files(few):
    folder = jg.finetune(few, verbose=False).folder
    figures = ["README.md", "config.json", "metrics.csv", "metrics.json"]
    others = ["module.json", "network.svg", "report.html", "split.json", "weights.safetensors"]
    assert sorted(os.listdir(folder)) == figures + others
    manifest = json.loads((folder / "module.json").read_text("utf-8"))
    assert sorted([*manifest["files"], "module.json"]) == sorted(os.listdir(folder))
    assert manifest["labels"] == ["dots", "plain"]
    assert manifest["signatures"]["default"]["inputs"]["pictures"] == {
        "shape": ["batch", 32, 32, 3],
        "dtype": "uint8",
    }
    assert manifest["licence"]["backbone"].startswith("Apache-2.0")


@pytest.mark.parametrize("race", ["folder appears", "folder appears with files"])
def test_a_number_taken_meanwhile_costs_nothing(race, few, monkeypatch):
    """Two runs at once: the other one finishes while this one writes."""
    Path("runs").mkdir()
    taken = []

    def write_report(path, **arguments):
        if not taken:
            other = Path("runs/few-001")
            other.mkdir()
            if race.endswith("files"):
                (other / "module.json").write_text("the other's")
            taken.append(other)
        original(path, **arguments)

    original = _save.write_report
    monkeypatch.setattr(_save, "write_report", write_report)
    run = jg.finetune(few, verbose=False)
    if race.endswith("files"):
        assert run.folder == Path("runs/few-002")
        assert Path("runs/few-001/module.json").read_text() == "the other's"
    assert jg.load_run("runs/latest").metrics == run.metrics
    assert not [name for name in os.listdir("runs") if name.startswith(".")]


def test_a_persons_own_latest_is_left_alone(few):
    Path("runs/latest").mkdir(parents=True)
    jg.finetune(few, verbose=False)
    assert not Path("runs/latest").is_symlink()


def test_where_links_cannot_be_made_the_run_is_there_without(few, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert jg.finetune(few, verbose=False).folder == Path("runs/few-001")
    assert os.listdir("runs") == ["few-001"]


def test_a_link_left_by_a_crash_is_no_obstacle(few):
    Path("runs").mkdir()
    Path(f"runs/.latest-{os.getpid()}").symlink_to("gone")
    jg.finetune(few, verbose=False)
    assert sorted(os.listdir("runs")) == ["few-001", "latest"]


def test_a_full_disk_leaves_earlier_runs_and_no_half_one(few, monkeypatch, capsys):
    jg.finetune(few, verbose=False)
    before = tree(Path("runs"))

    def full(path, **_):
        path.write_text("half a rep")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_save, "write_report", full)
    assert main(["finetune", "few"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "jgraph: No space left on device; nothing half-written is left, earlier files are as they "
        "were; make room, or write to another disk, and try again"
    )
    assert tree(Path("runs")) == before
    assert main(["finetune", "few", "--out", "run"]) == 2
    assert not Path("run").exists()


def test_a_real_limit_of_the_system_leaves_no_half_run(few, capsys):
    """The operating system itself refuses to let the weights grow."""
    jg.finetune(few, verbose=False)
    before = tree(Path("runs"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Below the length of the weights, 2 kB.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        code = main(["finetune", "few"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert "jgraph: File too large; nothing half-written is left" in capsys.readouterr().err
    assert tree(Path("runs")) == before


def test_ctrl_c_while_saving_leaves_no_half_run(few, monkeypatch, capsys):
    jg.finetune(few, verbose=False)
    before = tree(Path("runs"))

    def interrupt(path, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_save, "write_report", interrupt)
    assert main(["finetune", "few"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "jgraph: stopped; nothing half-written is left, earlier files are as they were"
    )
    assert tree(Path("runs")) == before
