from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kills


@pytest.mark.slow
def test_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    found = kills.kill_and_restart(tmp_path, 5, seed=1)
    assert found.count == 5
    assert found.during_save >= 2
    assert found.different == []
