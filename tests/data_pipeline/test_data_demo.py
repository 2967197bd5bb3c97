"""The demo pictures: an ordinary folder, honest parts, whole or not at all."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jgraph._errors import InputError
from jgraph._preprocessing import Preprocessing
from jgraph.data import DEMO_NAME, check_trainable, decode_picture, find_splits, write_demo
from jgraph.data import _demo as demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "here" / DEMO_NAME)


def test_it_is_an_ordinary_picture_folder(folder):
    splits = find_splits(folder)
    check_trainable(splits.train)
    assert splits.train.counts.tolist() == [demo.TRAIN_TILES] * 9
    assert splits.test is not None
    assert splits.test.counts.tolist() == [demo.TEST_TILES] * 9
    assert splits.val is None
    assert splits.train.class_names == (
        "brick", "cat", "coffee", "coins", "galaxies", "grass", "gravel", "retina", "tissue",
    )  # fmt: skip
    for path in splits.train.paths:
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            assert picture.width == picture.height
            assert demo.SMALLEST <= picture.width <= demo.LARGEST


def test_sources_and_licences_stand_beside_the_pictures(folder):
    text = (folder / "README.md").read_text("utf-8")
    for photograph in demo.PHOTOGRAPHS:
        row = f"| {photograph.class_name} | {photograph.file} |"
        (line,) = (line for line in text.splitlines() if line.startswith(row))
        assert line.endswith(f"| {photograph.source} | {photograph.licence} |")
        assert photograph.licence in ("CC0 1.0", "public domain", "no known copyright restrictions")


@pytest.mark.parametrize("photograph", demo.PHOTOGRAPHS, ids=lambda p: p.class_name)
def test_no_pixel_is_in_both_parts_and_a_gap_lies_between(photograph):
    with Image.open(
        dict(zip(demo.PHOTOGRAPHS, demo.photograph_files(), strict=True))[photograph]
    ) as p:
        height, width = p.height, p.width
    y, x = np.mgrid[0:height, 0:width]
    train, test = demo.parts(photograph, np.stack([y, x], axis=-1))
    train_at, test_at = (np.unique(part[..., photograph.axis]) for part in (train, test))
    between = test_at.min() - train_at.max(), train_at.min() - test_at.max()
    assert max(between) == demo.GAP + 1
    assert min(*train.shape[:2], *test.shape[:2]) > demo.SMALLEST


def test_tiles_are_cut_from_the_photograph_at_its_own_resolution():
    brick = demo.PHOTOGRAPHS[0]
    with Image.open(demo.photograph_files()[0]) as picture:
        pixels = np.asarray(picture)
    part = demo.parts(brick, pixels)[0]
    tile = demo.random_tile(part, np.random.default_rng(0))
    windows = np.lib.stride_tricks.sliding_window_view(part, (8, 8))
    assert (windows == tile[:8, :8]).all(axis=(2, 3)).any()


def test_the_pictures_are_the_same_each_time(folder, tmp_path):
    again = write_demo(tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((folder / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_pixels_alone_do_not_tell_the_classes(folder):
    # The task must need features: the nearest training tile in pixels is often another class.
    splits = find_splits(folder)
    assert splits.test is not None
    plain = Preprocessing(16, 16, "bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    train, test = (
        np.stack([decode_picture(p, plain) for p in s.paths]).reshape(len(s), -1).astype(float)
        for s in (splits.train, splits.test)
    )
    distance = ((test[:, None] - train[None]) ** 2).sum(-1)
    found = splits.train.labels[distance.argmin(axis=1)]
    assert 0.3 < (found == splits.test.labels).mean() < 0.85


def test_it_is_written_once(folder):
    picture = folder / "train" / "cat" / "00.jpg"
    written = picture.stat().st_mtime_ns
    assert write_demo(folder) == folder
    assert picture.stat().st_mtime_ns == written


def test_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(
        InputError, match=f"does not hold the pictures of {DEMO_NAME}; name another"
    ):
        write_demo(tmp_path)
    with pytest.raises(InputError, match="does not hold the pictures"):
        write_demo(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_an_empty_folder_is_filled(tmp_path):
    assert len(find_splits(write_demo(tmp_path)).train) == 9 * demo.TRAIN_TILES


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "readme", full)
    with pytest.raises(OSError, match="No space left"):
        write_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_two_that_write_at_once_both_get_it(folder, tmp_path, monkeypatch):
    place = tmp_path / "demo"
    publish = demo.publish

    def second(draft: Path, target: Path) -> None:
        monkeypatch.setattr(demo, "publish", publish)
        write_demo(target)  # the other process, a moment earlier
        publish(draft, target)

    monkeypatch.setattr(demo, "publish", second)
    assert write_demo(place) == place
    assert demo.is_demo(place)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_failure_to_move_is_not_hidden(tmp_path):
    (tmp_path / "draft").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("in the way")
    with pytest.raises(OSError, match="not empty"):
        demo.publish(tmp_path / "draft", tmp_path / "other")


def test_without_scikit_image_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"brick\.png is not there; run pip install 'jgraph\[demo\]'"
    ):
        write_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
