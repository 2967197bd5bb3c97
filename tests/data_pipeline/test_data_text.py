"""Texts: which files are read, and the windows of them that a model sees."""

from pathlib import Path

import numpy as np
import pytest

import jgraph as jg
from jgraph.data import Windows, read_text


def test_windows_side_by_side_predict_every_token_once():
    batches = list(Windows(np.arange(100, dtype=np.uint8), 7, 4))
    assert {batch["tokens"].shape for batch in batches} == {(4, 8)}
    predicted = [row for b in batches for row in b["tokens"][b["weight"] > 0, 1:]]
    # The last window would reach beyond the text.
    assert np.concatenate(predicted).tolist() == list(range(1, 99))
    assert sum(b["weight"].sum() for b in batches) == 14


def test_windows_to_train_on_are_drawn_anew_for_each_epoch():
    windows = Windows(np.arange(200, dtype=np.uint8), 7, 4, shuffle=True)
    first, again, second = (
        [batch["tokens"].tolist() for batch in windows.epoch(n)] for n in (0, 0, 1)
    )
    assert first == again != second
    assert (np.diff(np.array(first), axis=-1) == 1).all()
    assert len(first) * 4 >= 193 // 7


def test_folders_give_their_text_files_and_nothing_else(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    files = {"b.txt": b"two", "sub/c.md": b"three", ".hidden/x.txt": b"no", "a": b"one"}
    files |= {"zero.bin": b"\0\0", "latin": b"\xff\xfe"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert read_text([tmp_path]).tobytes() == b"one\ntwo\nthree"
    assert read_text([tmp_path / "latin", tmp_path]).tobytes()[:2] == b"\xff\xfe"
    assert read_text([str(tmp_path / "a"), tmp_path]).tobytes() == b"one\ntwo\nthree"


@pytest.mark.parametrize(
    ("length", "batch_size", "message"),
    [
        (10, 2, "must be from 1 to less than the text's, 10 tokens; got 10"),
        (0, 2, "must be from 1"),
        (4, 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_windows_that_cannot_be(length: int, batch_size: int, message: str):
    with pytest.raises(jg.InputError, match=message):
        Windows(np.arange(10), length, batch_size)


def test_text_that_is_not_there(tmp_path: Path):
    with pytest.raises(jg.InputError, match=r"there is nothing at .*none\.txt"):
        read_text([tmp_path / "none.txt"])
