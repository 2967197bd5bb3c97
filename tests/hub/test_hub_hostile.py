"""Every hostile module ends in its named error, with bounded memory, and leaves nothing behind."""

import json
import os
import subprocess
import sys

import pytest

from tests.hub import hostile

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux, which measures memory"
)


@pytest.fixture(scope="module")
def rows(line):
    """What all attacks ended in: they run in processes of their own, forked before JAX starts."""
    command = [sys.executable, hostile.__file__, "--json", "--module", str(line)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {row["attack"]: row for row in json.loads(done.stdout)}


def test_there_are_enough():
    assert len(hostile.ATTACKS) >= 60


@pytest.mark.parametrize("name", hostile.ATTACKS)
def test_an_attack_ends_in_its_error(rows, name):
    row = rows[name]
    assert row["error"] == row["expected"], row["message"]
    assert row["clean"], "something was written, or left in the cache"
    assert row["mb"] < hostile.MOST_MB
    assert len(row["message"]) > 20 or name in hostile.HARMLESS


@pytest.mark.slow
def test_one_attack_can_be_run_alone(line):
    command = [sys.executable, hostile.__file__, "json_nan", "--module", str(line)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 of 1 as they should be" in done.stdout
