from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import _peer, _peer_programs, _photographs
from benchmarks._fresh import seconds
from benchmarks._paired import paired


def test_a_peer_takes_turns_in_a_python_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JGRAPH_PEERS_PYTHON", sys.executable)
    assert _peer.python("no_such_package") is None
    with _peer.running("tf_data", "no_such_package") as peer:
        assert peer is None
    stand_in = tmp_path / "tensorflow.py"
    stand_in.write_text(
        "print('what a library prints is no answer')\n"
        "class Dataset(list):\n"
        "    map = batch = prefetch = lambda self, *_, **__: self\n"
        "    from_tensor_slices = classmethod(lambda cls, _: cls([0] * 1_000_000))\n"
        "class data:\n"
        "    Dataset, AUTOTUNE = Dataset, -1\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with _peer.running("tf_data", "tensorflow", files=[]) as peer:
        assert peer is not None
        assert [0 < peer.turn() < 5 for _ in range(2)] == [True, True]
    stand_in.write_text("raise SystemExit('broken')")
    with _peer.running("tf_data", "tensorflow", files=[]) as peer:
        assert peer is not None
        with pytest.raises(RuntimeError, match="the peer ended"):
            peer.turn()


def test_without_an_environment_there_are_no_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JGRAPH_PEERS_PYTHON", str(tmp_path / "missing"))
    assert _peer.python("json") is None


def test_programs_are_known_by_name() -> None:
    assert set(_peer_programs.PROGRAMS) == {"tf_data", "keras"}


def test_seconds_of_a_peer_are_its_own() -> None:
    now = [0.0]

    def ours() -> None:
        now[0] += 2

    def theirs() -> float:
        now[0] += 100  # it waits for its turn's end, which isn't its CPU time
        return 4.0

    found = paired(ours, theirs, 3, clock=lambda: now[0], timed=True)
    assert found.ratios == (0.5, 0.5, 0.5)


def test_numbers_of_a_new_process() -> None:
    assert seconds("print(1.5, 2)") == (1.5, 2.0)


def test_photographs_are_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    files, labels = _photographs.write(tmp_path / "a", 4)
    again, _ = _photographs.write(tmp_path / "b", 4)
    assert labels == [0, 1, 2, 0]
    assert [Path(f).read_bytes() for f in files] == [Path(f).read_bytes() for f in again]
    assert len({Path(f).read_bytes() for f in files}) == 4


def test_a_script_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"must run to its end, it said:[\s\S]*ValueError: no"):
        seconds("raise ValueError('no')")
