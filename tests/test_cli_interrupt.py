"""Ctrl-C in a process of its own: an earlier run stays, and no half run looks whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import jgraph
from jgraph._cli._interrupt import interrupts_that_arrive

ROOT = Path(jgraph.__file__).parents[1]

# Waits for the signal where half of the run is written.
WHILE_SAVING = """
import sys, threading
from jgraph._cli import main
from jgraph._finetune import _save

def write_report(path, **arguments):
    print("saving now", file=sys.stderr, flush=True)
    never = threading.Event()
    # Not one long wait: a signal that arrives right before it would be lost.
    while not never.wait(0.05):
        pass

_save.write_report = write_report
sys.exit(main(sys.argv[1:]))
"""
AS_IT_IS = "import sys; from jgraph._cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("program", "sign", "size"),
    [(AS_IT_IS, "Embedding", "224"), (WHILE_SAVING, "saving now", "32")],
    ids=["embedding", "saving"],
)
def test_ctrl_c(program, sign, size, copied, compiled):
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
    }
    command = [sys.executable, "-c", program, "finetune", "pictures", "--image-size", size]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # Reading ends when the process does, whatever happens.
        seen = ""
        while sign not in seen:
            letter = process.stderr.read(1)
            assert letter, seen
            seen += letter
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, seen + rest
    assert "Traceback" not in rest
    assert rest.splitlines()[-1] == (
        "jgraph: stopped; nothing half-written is left, earlier files are as they were"
    )
    assert {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()} == before
    assert sorted(os.listdir("runs")) == ["latest", "pictures-001"]
    assert os.readlink("runs/latest") == "pictures-001"


def test_an_interrupt_in_a_callback_that_drops_exceptions_arrives_later():
    # JAX's name for its callback at garbage collections, where Python drops what is raised.
    def _xla_gc_callback():
        signal.raise_signal(signal.SIGINT)
        return "went on"

    def run():
        with interrupts_that_arrive():
            assert _xla_gc_callback() == "went on"
            threading.Event().wait(60)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_ones_own_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("mine"))
    try:
        with interrupts_that_arrive():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["mine"]
