"""What can be asked of a run, and what a broken one answers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from flax import nnx
from PIL import Image

import jgraph as jg
from jgraph import hub
from jgraph._digests import value_digest
from jgraph._errors import ModuleFormatError, ModuleIntegrityError, ModuleWeightsError
from jgraph.data import decode_picture


@pytest.fixture(scope="module")
def run(finished):
    return jg.load_run(finished / "runs" / "latest")


def test_predictions_are_the_models_softmax(run, finished):
    paths = sorted((finished / "pictures").rglob("*.png"))
    predictions = run.predict(finished / "pictures")
    assert [p.source for p in predictions] == [str(path) for path in paths]
    pixels = np.stack([decode_picture(path, run.model.preprocessing) for path in paths])
    logits = nnx.jit(lambda model, pixels: model(pixels))(run.model, pixels)
    expected = scipy.special.softmax(np.asarray(logits, np.float64), axis=1)
    for p, row in zip(predictions, expected, strict=True):
        # Another batch size and a compiled program round differently.
        np.testing.assert_allclose(p.probabilities, row, atol=1e-4)
        assert p.label == run.class_names[row.argmax()]
        assert p.probability == pytest.approx(row.max(), abs=1e-4)
        assert [name for name, _ in p.top(3)] == [run.class_names[i] for i in np.argsort(-row)]
        assert len(p.top(2)) == 2


def test_pictures_come_as_files_folders_arrays_and_pillow(run, finished):
    path = finished / "pictures" / "rows" / "003.png"
    with Image.open(path) as picture:
        array = np.asarray(picture)
        predictions = run.predict([path, array, picture, str(path)])
    assert [p.source for p in predictions] == [str(path), "picture 1", "picture 2", str(path)]
    assert {p.label for p in predictions} == {"rows"}
    for p in predictions[1:]:
        np.testing.assert_array_equal(p.probabilities, predictions[0].probabilities)
    assert run.predict(array)[0].source == "picture 0"
    assert run.predict([]) == []


def test_hidden_files_are_passed_over_and_links_followed(run, finished, tmp_path):
    pixels = (finished / "pictures" / "rows" / "000.png").read_bytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.PNG").write_bytes(pixels)
    (tmp_path / "a" / "._b.png").write_bytes(b"of macOS")
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "linked").symlink_to(finished / "pictures" / "dots")
    found = [p.source for p in run.predict(tmp_path)]
    assert found[0] == str(tmp_path / "a" / "b.PNG")
    assert len(found) == 9


def test_bad_pictures_stop_or_are_named(run, finished, tmp_path):
    good = finished / "pictures" / "rows" / "000.png"
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(jg.PictureError, match=r"bad\.png"):
        run.predict([good, tmp_path / "bad.png"])
    found = run.predict([good, tmp_path / "bad.png", b"no picture"], on_bad_picture="skip")
    assert [p.source for p in found] == [str(good)]
    assert list(run.skipped) == [str(tmp_path / "bad.png"), "picture 2"]
    run.predict([good])
    assert run.skipped == {}


def test_paths_that_are_not_there(run, finished, tmp_path):
    pictures = finished / "pictures"
    message = re.escape(f"there is no picture or folder {pictures}/dost; did you mean {pictures}/")
    with pytest.raises(jg.InputError, match=message + "dots"):
        run.predict(pictures / "dost")
    with pytest.raises(jg.InputError, match=re.escape(f"there are no pictures in {tmp_path}; ")):
        run.predict(tmp_path)
    with pytest.raises(jg.InputError, match="batch_size must be at least 1, got 0"):
        run.predict(pictures, batch_size=0)


def test_evaluate_counts_what_predict_says(run, finished, monkeypatch):
    monkeypatch.chdir(finished)
    score = run.evaluate("pictures")
    predictions = run.predict("pictures")
    labels = [Path(p.source).parent.name for p in predictions]
    named = [p.label for p in predictions]
    assert (score.name, score.count, score.trained_on) == ("given", 24, 24)
    assert score.correct == sum(a == b for a, b in zip(labels, named, strict=True))


@pytest.mark.slow
def test_evaluate_prefers_test_then_val_then_what_is_there(run, paint, tmp_path):
    paint(tmp_path / "train", {"dots": 3})
    assert run.evaluate(tmp_path).count == 3
    assert run.evaluate(tmp_path).trained_on == 0
    paint(tmp_path / "validation", {"dots": 2})
    score = run.evaluate(tmp_path)
    assert (score.name, score.count) == ("val", 2)
    paint(tmp_path / "test", {"rows": 1})
    score = run.evaluate(tmp_path)
    assert (score.name, score.count) == ("test", 1)
    assert score.recall["dots"] is None


def test_evaluate_refuses_classes_it_does_not_know(run, paint, tmp_path):
    paint(tmp_path, {"dots": 1})
    (tmp_path / "dots").rename(tmp_path / "cats")
    with pytest.raises(jg.InputError, match=r"'cats'; its classes are 'dots', 'plain', 'rows'"):
        run.evaluate(tmp_path)


def test_evaluate_without_a_readable_picture(run, tmp_path):
    (tmp_path / "dots").mkdir()
    (tmp_path / "dots" / "a.png").write_bytes(b"")
    message = re.escape(f"none of the 1 pictures in {tmp_path} can be read")
    with pytest.raises(jg.PictureError, match=message):
        run.evaluate(tmp_path)
    with pytest.raises(jg.PictureError, match=r"a\.png"):
        run.evaluate(tmp_path, on_bad_picture="stop")


def test_no_such_run_folder(finished):
    message = re.escape(f"there is no run folder {finished}/runs/lates; did you mean {finished}")
    with pytest.raises(ModuleFormatError, match=message):
        jg.load_run(finished / "runs" / "lates")
    with pytest.raises(ModuleFormatError, match=r"pictures must be a run .* has no module\.json"):
        jg.load_run(finished / "pictures")


def test_a_latest_whose_run_is_gone(workplace):
    Path("runs").mkdir()
    Path("runs/latest").symlink_to("pets-001")
    with pytest.raises(ModuleFormatError, match=r"^there is no run folder runs/latest$"):
        jg.load_run("runs/latest")


NAMES = (
    "README.md",
    "config.json",
    "metrics.csv",
    "metrics.json",
    "network.svg",
    "report.html",
    "split.json",
)


@pytest.mark.parametrize("name", [*NAMES, "weights.safetensors"])
def test_missing_and_changed_files_are_named(name, copied):
    path = Path("runs/pictures-001") / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModuleIntegrityError, match=re.escape(f"{name} has changed")):
        jg.load_run("runs/latest")
    path.unlink()
    with pytest.raises(ModuleIntegrityError, match=re.escape(f"{name} is missing")):
        jg.load_run("runs/latest")


def test_a_changed_manifest_is_refused(copied):
    path = Path("runs/pictures-001/module.json")
    path.write_text(path.read_text("utf-8").replace('"dots"', '"dogs"'), encoding="utf-8")
    with pytest.raises(ModuleIntegrityError, match=r"module\.json has changed"):
        jg.load_run("runs/pictures-001")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("network"), "module.json lacks its network's name"),
        (lambda m: m["network"].update(name=["x"]), "module.json lacks its network's name"),
        (lambda m: m["files"].pop("metrics.json"), "module.json lacks its metrics.json"),
        (lambda m: m["files"].pop("config.json"), "module.json lacks its config.json"),
        (lambda m: m.update(labels=[1, 2, 3]), "module.json lacks its classes' names"),
        (lambda m: m.update(labels=[]), "module.json lacks its classes' names"),
        (lambda m: m["preprocess"].pop("mean"), "module.json: preprocessing needs"),
        (
            lambda m: m["network"].update(name="efficientnet_lite9"),
            "module.json: the network must be one of efficientnet_lite0, ",
        ),
        (lambda m: m.update(labels=["a", "a", "b"]), "module.json: class_names must be"),
    ],
)
def test_a_module_that_is_no_run_says_what_it_lacks(change, message, copied):
    path = Path("runs/pictures-001/module.json")
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    # Signed, as a module that another program made: a changed one is refused for its digest.
    manifest["sha256"] = value_digest(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ModuleFormatError, match=re.escape(message)):
        jg.load_run("runs/pictures-001")


def copy_figures(folder: Path) -> None:
    for name in ("config.json", "metrics.json", "split.json"):
        shutil.copy(Path("runs/pictures-001") / name, folder)


def test_weights_that_are_not_the_networks_are_each_named(copied):
    manifest, weights = hub.read_module("runs/pictures-001")
    del weights["head/bias"], weights["backbone/stem/conv/kernel"]
    weights["head/kernel"] = np.zeros((1280, 5), np.float32)
    weights["extra"] = np.zeros(3, np.float32)
    for key in ("files", "weights"):
        del manifest[key]
    hub.write_module("other", manifest, weights, write_files=copy_figures)
    with pytest.raises(ModuleWeightsError) as caught:
        jg.load_run("other")
    lines = str(caught.value).splitlines()
    assert "other does not fit" in lines[0]
    for part in ("missing: head/bias", "missing: backbone/stem/conv/kernel", "left over: extra"):
        assert any(part in line for line in lines[1:]), part
    shapes = next(line for line in lines if "head/kernel" in line)
    assert "(1280, 5)" in shapes or "[1280, 5]" in shapes


def test_a_module_is_no_run(tmp_path: Path) -> None:
    model, row = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), np.zeros((1, 2), np.float32)
    path = hub.publish(tmp_path / "a module", model, inputs={"x": row}, train=False)
    with pytest.raises(ModuleFormatError, match=r"it is a module: .* jgraph hub info '.*a module'"):
        jg.load_run(path)
    archive = hub.push(path, tmp_path / "module.zip")
    with pytest.raises(ModuleFormatError, match=r"it is an archive: jg.hub.load takes it, and jgr"):
        jg.load_run(archive)
