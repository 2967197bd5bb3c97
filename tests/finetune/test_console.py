from __future__ import annotations

import io

from jgraph._finetune._console import Console


def test_sentences_go_to_standard_output_and_the_bar_to_standard_error(capsys):
    console = Console(verbose=True)
    console.say("hello")
    with console.bar("Embedding", 3, " pictures") as count:
        count(3)
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert "Embedding" in err
    assert "3/3" in err


def test_notices_are_kept_for_the_report(capsys):
    for verbose in (True, False):
        console = Console(verbose)
        console.notice("one file is broken")
        assert console.notices == ["one file is broken"]
    assert capsys.readouterr().out == "Note: one file is broken\n"


def test_silence(capsys):
    console = Console(verbose=False)
    console.say("hello")
    with console.bar("Embedding", 3, " pictures") as count:
        count(1)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_does_not_tear_the_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    console = Console(verbose=True)
    with console.bar("Fine-tuning", 2, " steps") as count:
        count(1)
        console.say("epoch 1")
    lines = screen.getvalue().replace("\r", "\n").split("\n")
    assert "epoch 1" in lines
