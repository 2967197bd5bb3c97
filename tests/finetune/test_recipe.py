"""The recipe from end to end on a tiny network: what is said, measured, split and refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from jax.core import Tracer

import jgraph as jg
from jgraph import models
from jgraph._finetune._recipe import _name

pytestmark = pytest.mark.usefixtures("workplace", "tiny")

BIG = {"dots": 20, "plain": 15, "rows": 15}


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def big(paint):
    return paint(Path("big"), BIG, noise=120)


def test_a_person_sees_what_happens(big, capsys):
    run = jg.finetune(big)
    out, err = capsys.readouterr()
    m = run.metrics
    expected = [
        r"big: 50 training pictures of 3 classes",
        r"  dots 20, plain 15, rows 15",
        r"  20% of every class is held out to measure with",
        r"efficientnet_lite0 with ImageNet weights at 32 px, frozen",
        r"Head: logistic regression, L2 penalty \S+ by 5-fold cross-validation, \d+ passes.*",
        r"  pass 1: train loss \d\.\d{4}, accuracy \d\.\d{3}; held-out loss .*, accuracy .*",
        rf"Accuracy \(held-out\): {m['accuracy']:.3f}, {m['correct']} of 10, \d\.\d\d-\d\.\d\d",
        r"  always the most frequent class: 0\.400",
        rf"  recall of dots: {m['recall']['dots']:.3f}",
        r"Results: runs/big-001   Report: runs/big-001/report\.html",
        r"Next:",
        r"  jgraph predict runs/big-001 big/dots/\d+\.png",
        r"  jgraph evaluate runs/big-001 FOLDER",
        r"  jgraph finetune big --unfreeze all",
    ]
    lines = iter(out.splitlines())
    for pattern in expected:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    assert "Embedding" in err


def test_the_result_is_what_was_trained(big, capsys):
    run = jg.finetune(big, out="run", verbose=False)
    assert capsys.readouterr() == ("", "")
    assert run.folder == Path("run")
    assert run.class_names == ("dots", "plain", "rows")
    held = json.loads(Path("run/split.json").read_text("utf-8"))["held-out"]
    predictions = run.predict(held)
    right = sum(Path(p.source).parent.name == p.label for p in predictions)
    assert (right, len(held)) == (run.metrics["correct"], run.metrics["count"])
    # A colour apart each, so that even this network tells them.
    assert run.metrics["accuracy"] >= 0.8


def test_every_picture_has_one_role_and_the_data_is_as_it_was(big):
    before = files_below(big)
    run = jg.finetune(big, verbose=False)
    assert files_below(big) == before
    split = json.loads((run.folder / "split.json").read_text("utf-8"))
    assert sorted(split["train"] + split["held-out"]) == sorted(before)


def test_metrics_csv_has_a_row_per_epoch(big):
    run = jg.finetune(big, verbose=False)
    with (run.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row["stage"] for row in rows} == {"head"}
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < losses[0] < np.log(3)
    last = float(rows[-1]["held_out_loss"])
    assert last == pytest.approx(run.metrics["loss"], rel=1e-4, abs=1e-6)
    assert float(rows[-1]["held_out_accuracy"]) == pytest.approx(run.metrics["accuracy"])


@pytest.mark.slow
def test_with_few_pictures_the_accuracy_is_cross_validated_and_called_so(paint, capsys):
    folder = paint(Path("few"), {"dots": 8, "plain": 6}, noise=120)
    run = jg.finetune(folder)
    out = capsys.readouterr().out
    assert "  every picture trains; cross-validation measures\n" in out
    assert re.search(r"Accuracy \(cross-validated\): .*, \d+ of 14, ", out)
    assert (run.metrics["set"], run.metrics["count"]) == ("cross-validated", 14)
    assert "cross-validated" in (run.folder / "README.md").read_text("utf-8")
    assert "cross-validated" in (run.folder / "report.html").read_text("utf-8")
    split = json.loads((run.folder / "split.json").read_text("utf-8"))
    assert {role: len(paths) for role, paths in split.items()} == {"train": 14}


@pytest.mark.slow
def test_given_sets_are_each_measured_and_the_test_set_leads(paint, capsys):
    paint(Path("pets/train"), {"dots": 5, "plain": 4}, noise=120)
    paint(Path("pets/valid"), {"dots": 2, "plain": 2}, noise=120)
    paint(Path("pets/test"), {"dots": 3, "plain": 2}, noise=120)
    run = jg.finetune("pets")
    out = capsys.readouterr().out
    assert "\n  4 val pictures\n  5 test pictures\n" in out
    assert run.metrics["set"] == "test"
    (val,) = run.metrics["others"]
    assert (run.metrics["count"], val["set"], val["count"]) == (5, "val", 4)
    assert out.index("Accuracy (test)") < out.index("Accuracy (val)")
    # Measured again from the folders, by the run that lies on the disk.
    assert run.evaluate("pets").accuracy == run.metrics["accuracy"]
    assert run.evaluate("pets/valid").accuracy == val["accuracy"]


@pytest.mark.slow
def test_lopsided_classes_count_alike_and_it_is_said(paint, capsys):
    jg.finetune(paint(Path("pets"), {"dots": 11, "plain": 3}))
    notice = "the largest class has more than three times the smallest: both count alike"
    assert f"Note: {notice}\n" in capsys.readouterr().out
    jg.finetune(paint(Path("even"), {"dots": 8, "plain": 6}))
    assert notice not in capsys.readouterr().out


@pytest.mark.slow
def test_files_that_are_no_pictures_are_named(paint, capsys):
    folder = paint(Path("few"), {"dots": 8, "plain": 6})
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (folder / "dots" / name).write_text("a note")
    run = jg.finetune(folder)
    notice = "not used, since their names are no picture's: a.txt, b.txt, c.txt and 1 more"
    assert f"Note: {notice}\n" in capsys.readouterr().out
    assert "and 1 more" in (run.folder / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_every_kind_of_picture_works(paint):
    from PIL import Image

    folder = paint(Path("few"), {"dots": 8, "plain": 6})
    picture = Image.open(folder / "dots" / "000.png").convert("RGB")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture.convert("L").save(folder / "dots" / "000.png")
    picture.convert("P").save(folder / "dots" / "001.png")
    picture.convert("RGBA").save(folder / "dots" / "002.png")
    (folder / "dots" / "003.png").unlink()
    picture.convert("CMYK").save(folder / "dots" / "003.jpg")
    picture.convert("1").save(folder / "dots" / "004.png")
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "dots" / "005.png")
    (folder / "dots" / "006.png").unlink()
    picture.save(folder / "dots" / "006.jpg", exif=rotated)
    run = jg.finetune(folder, verbose=False)
    assert run.config["skipped"] == {}
    assert run.metrics["count"] == 14


def test_a_name_that_is_no_text_works(paint):
    folder = paint(Path("few"), {"dots": 8, "plain": 6})
    strange = folder / "dots" / b"\xff\xe9.png".decode("utf-8", "surrogateescape")
    (folder / "dots" / "000.png").rename(strange)
    run = jg.finetune(folder)
    split = json.loads((run.folder / "split.json").read_text("utf-8"))
    assert str(strange) in split["train"]
    assert [p.source for p in run.predict(strange)] == [str(strange)]


def test_image_size_reaches_the_network(paint):
    folder = paint(Path("few"), {"dots": 8, "plain": 6})
    run = jg.finetune(folder, image_size=40, verbose=False)
    assert (run.model.preprocessing.image_size, run.model.preprocessing.resize_size) == (40, 45)


def test_same_seed_same_bits(big):
    runs = [
        jg.finetune(big, seed=seed, out=f"run{i}", verbose=False)
        for i, seed in enumerate((3, 3, 4))
    ]
    for name in ("weights.safetensors", "metrics.csv", "split.json"):
        first, again, other = ((run.folder / name).read_bytes() for run in runs)
        assert first == again, name
        assert first != other, name


@pytest.mark.slow
def test_debug_runs_without_jit(paint, monkeypatch):
    folder = paint(Path("few"), {"dots": 8, "plain": 6})
    tiny = type(models.create(""))
    seen = []

    def features(self, x):
        seen.append(isinstance(x, Tracer))
        return original(self, x)

    original = tiny.features
    monkeypatch.setattr(tiny, "features", features)
    quick = jg.finetune(folder, verbose=False)
    assert seen == [True, True]  # to embed pictures, and to draw the network
    assert (quick.folder / "network.svg").is_file()
    seen.clear()
    slow = jg.finetune(folder, debug=True, verbose=False)
    assert seen
    assert not any(seen)
    assert not (slow.folder / "network.svg").exists()
    assert slow.metrics["accuracy"] == quick.metrics["accuracy"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("pets", "pets"),
        ("pets/train", "pets"),
        ("my pets (2024)", "my-pets-2024"),
        ("Zähne", "Zähne"),
        ("???", "run"),
    ],
)
def test_runs_are_named_after_the_data(folder, name):
    assert _name(Path(folder)) == name


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_run_folder_that_exists_is_kept(kind, big):
    out = Path("out")
    if kind == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to("nowhere")
    message = "^out exists already; choose another name for the run, or remove it$"
    with pytest.raises(jg.InputError, match=message):
        jg.finetune(big, out=out)
    assert out.is_symlink() or (out / "mine.txt" if out.is_dir() else out).read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(big, capsys, monkeypatch):
    Path("file").write_text("")
    message = r"the run must lie in a folder that can be written, and .*/file isn't one"
    with pytest.raises(jg.InputError, match=message):
        jg.finetune(big, out="file/run")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(jg.InputError, match=r"and .* isn't one; choose another place with --out"):
        jg.finetune(big)
    assert capsys.readouterr().out == ""
