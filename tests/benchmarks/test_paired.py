from __future__ import annotations

import pytest

from benchmarks import __main__ as command
from benchmarks._paired import Ratio, paired


def test_ratios_are_of_neighbours_and_take_turns() -> None:
    now, order = [0.0], []

    def taking(name: str, *seconds: float) -> object:
        left = list(seconds)

        def call() -> None:
            order.append(name)
            now[0] += left.pop(0)

        return call

    # The first call of each, which compiles, is not counted.
    first, second = taking("a", 100, 2, 6, 30), taking("b", 100, 1, 2, 5)
    found = paired(first, second, 3, clock=lambda: now[0])  # pyright: ignore[reportArgumentType]
    assert found.ratios == (2.0, 3.0, 6.0)
    assert found.seconds == (6.0, 2.0)
    assert "".join(order) == "ababbaab"


def test_median_and_quartiles() -> None:
    ratio = Ratio((1.0, 2.0, 3.0, 4.0, 100.0), (0.002, 0.001))
    assert ratio.median == 3.0
    assert ratio.spread == (2.0, 4.0)
    assert str(ratio) == "3.00 (half of 5 pairs in 2.00-4.00; 2.0 ms to 1.0 ms)"
    assert Ratio((1.5,), (3.0, 2.0)).spread == (1.5, 1.5)


def test_the_command_knows_its_subjects(capsys: pytest.CaptureFixture[str]) -> None:
    assert "losses" in command.names()
    assert not any(name.startswith("_") for name in command.names())
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "losses" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["losses", "--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["losses", "--threads", "0"])
    assert "at least 1" in capsys.readouterr().err
