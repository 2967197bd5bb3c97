"""Fine-tuning that is stopped and goes on, on a network of two stages."""

from __future__ import annotations

import filecmp
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import jgraph as jg
from jgraph._cli import main
from jgraph._errors import InputError
from jgraph._finetune import _save, _unfreeze

pytestmark = pytest.mark.usefixtures("workplace", "tiny")


@pytest.fixture
def big(paint: Any) -> Path:
    return paint(Path("big"), {"dots": 20, "plain": 15, "rows": 15}, noise=120)


@pytest.fixture
def small(paint: Any) -> Path:
    return paint(Path("small"), {"dots": 8, "plain": 6}, noise=120)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGINT) -> None:
    """Send the signal when so many steps have been taken, once."""
    left = [steps]
    counted = _unfreeze._Epochs.on_step

    def on_step(self: Any, step: int) -> None:
        counted(self, step)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(_unfreeze._Epochs, "on_step", on_step)


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("weights.safetensors", "metrics.csv", "split.json", "metrics.json"):
        assert filecmp.cmp(first / name, second / name, shallow=False), name


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    big: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", str(big), "--unfreeze", "all", "--epochs", "2"]
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert main(command) == 130
    said = capsys.readouterr().err
    assert "what was trained is saved; go on with: jgraph finetune --resume runs/big-001" in said
    assert sorted(os.listdir("runs")) == ["big-001.unfinished"]
    assert main([*command, "--out", "whole"]) == 0  # while another one is unfinished
    assert main(["finetune", "--resume", "runs/big-001"]) == 0
    assert_same_run(Path("runs/big-001"), Path("whole"))
    assert sorted(os.listdir("runs")) == ["big-001", "latest"]
    assert os.readlink("runs/latest") == "big-001"
    assert sorted(os.listdir()) == ["big", "cache", "runs", "whole"]
    Path("runs/big-001.unfinished").mkdir()  # as if it had been killed before it removed that
    Path("runs/big-001.unfinished/settings.json").write_text("{}")
    with pytest.raises(InputError, match="is finished: there is nothing to go on with"):
        jg.finetune(resume="runs/big-001")
    assert sorted(os.listdir("runs")) == ["big-001", "latest"]


@pytest.mark.slow
def test_folds_that_were_trained_are_not_trained_again(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jg.finetune(small, unfreeze="all", epochs=2, out="whole")
    taken: list[int] = []
    counted = _unfreeze._Epochs.on_step

    def on_step(self: Any, step: int) -> None:
        counted(self, step)
        taken.append(step)

    with monkeypatch.context() as patched:
        stop_after(patched, 5)  # two steps a fold: in the third
        with pytest.raises(KeyboardInterrupt, match="--resume part"):
            jg.finetune(small, unfreeze="all", epochs=2, out="part")
    monkeypatch.setattr(_unfreeze._Epochs, "on_step", on_step)
    run = jg.finetune(resume="part")
    assert run.folder == Path("part")
    assert len(taken) <= 2 * 6 - 5
    assert_same_run(Path("part"), Path("whole"))


def test_sigterm_says_how_to_go_on(
    big: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        jg.finetune(big, unfreeze="last:1", epochs=2, out="a run")
    assert end.value.code == 143
    assert "go on with: jgraph finetune --resume 'a run'" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"holds an unfinished run; go on with it by .*--resume"):
        jg.finetune(big, unfreeze="last:1", epochs=2, out="a run")
    with pytest.raises(InputError, match=r"resume takes all .*; leave out epochs, out"):
        jg.finetune(resume="a run", epochs=3, out="another")
    picture = next(big.glob("dots/*.png"))
    before = picture.read_bytes()
    picture.write_bytes(next(big.glob("rows/*.png")).read_bytes())
    with pytest.raises(InputError, match="they have changed; start anew"):
        jg.finetune(resume="a run")
    picture.write_bytes(before)  # what is refused keeps what was trained
    assert jg.finetune(resume="a run").folder == Path("a run")


def test_an_error_leaves_nothing(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("broken")

    monkeypatch.setattr(_unfreeze, "_head_loss", fail)
    with pytest.raises(OSError, match="broken"):
        jg.finetune(big, unfreeze="all", epochs=1)
    assert os.listdir("runs") == []


@pytest.mark.slow
def test_a_run_that_cannot_be_written_can_be_written_later(
    big: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_save.hub, "write_module", fail)
        assert main(["finetune", str(big), "--unfreeze", "all", "--epochs", "1"]) == 2
    assert "jgraph: go on with: jgraph finetune --resume runs/big-001" in capsys.readouterr().err
    assert os.listdir("runs") == ["big-001.unfinished"]
    assert jg.finetune(resume="runs/big-001").folder == Path("runs/big-001")


def test_what_cannot_be_resumed_is_named(workplace: Path) -> None:
    with pytest.raises(InputError, match=r"there is no unfinished run runs/nothing"):
        jg.finetune(resume="runs/nothing")
    with pytest.raises(InputError, match="leave out data"):
        jg.finetune("pictures", resume="runs/nothing")
    folder = workplace / "runs" / "a.unfinished"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    with pytest.raises(InputError, match=r"settings.json must be as this jgraph writes it"):
        jg.finetune(resume=folder)
