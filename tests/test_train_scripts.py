"""The training scripts: run as a person runs them, on one device and on eight."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jgraph as jg
from jgraph._preprocessing import Preprocessing

ROOT = Path(jg.__file__).parents[1]
SENTENCE = "The quick brown fox jumps over the lazy dog; how vexingly quick daft zebras jump.\n"
LM = "--steps 2 --batch-size 8 --context 16 --width 16 --depth 1 --heads 2 --sample 5"
# The head alone: a whole EfficientNet takes a minute to compile.
IMAGES = (
    "--weights none --steps 2 --batch-size 8 --image-size 32 --learning-rate 0.01 "
    "--freeze stem --freeze blocks --freeze head"
)
COLOURS = {"plain": (70, 80, 220), "dots": (220, 60, 60)}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train_lm() -> ModuleType:
    return load("train_lm")


@pytest.fixture(scope="module")
def train_images() -> ModuleType:
    return load("train_images")


def paint(folder: Path, counts: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(COLOURS[name], 25, (40, 40, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def run(name: str, *arguments: Any, devices: int) -> str:
    """Run a script in a process of its own and return what it printed."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    shown = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{name}.py", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(math.isfinite(float(row[name])) for row in rows for name in row if name != "set")
    return rows


def losses_of(folder: Path) -> dict[tuple[str, str], float]:
    return {(row["set"], row["step"]): float(row["loss"]) for row in rows_of(folder)}


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all scripts here."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JGRAPH_CACHE", str(folder))
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        yield folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SENTENCE * 12)
    return path


@pytest.fixture(scope="module")
def one_device_lm(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("lm") / "out"
    return out, run("train_lm", text, *LM.split(), "--strategy", "one", "--out", out, devices=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    paint(folder / "train", {"dots": 6, "plain": 6})
    paint(folder / "val", {"dots": 3, "plain": 3})
    return folder


@pytest.fixture(scope="module")
def one_device_images(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images") / "out"
    shown = run(
        "train_images", pictures, *IMAGES.split(), "--strategy", "one", "--out", out, devices=1
    )
    assert "12 pictures to train on, 2 classes, OneDevice" in shown
    assert "val: accuracy" in shown
    return out


def test_a_language_model_is_logged_and_sampled(one_device_lm: tuple[Path, str]) -> None:
    out, shown = one_device_lm
    assert list(losses_of(out)) == [("train", "2"), ("val", "2")]
    bits = losses_of(out)["val", "2"] / math.log(2)
    assert f"held out: {bits:.3f} bits per byte after 2 steps" in shown
    held_out = (SENTENCE * 12)[len(SENTENCE * 12) * 9 // 10 :]
    assert held_out[:32] in shown


@pytest.mark.usefixtures("one_device_lm")
def test_a_script_keeps_what_it_compiled(kept: Path) -> None:
    assert (kept / "compiled").is_dir()


def test_a_saved_language_model_is_the_one_that_was_measured(
    one_device_lm: tuple[Path, str], text: Path, train_lm: ModuleType
) -> None:
    out, _ = one_device_lm
    config = json.loads((out / "config.json").read_text())
    model = jg.models.GPT(jg.models.GPTConfig(**config), rngs=nnx.Rngs(1))
    weights = jg.models.read_weights(out / "weights.safetensors")
    jg.models.set_weights(model, weights, source=str(out))
    data = jg.data.read_text([text])
    held_out = jg.data.Windows(data[len(data) * 9 // 10 :], 16, 8)
    found = jg.evaluate(model, train_lm.loss_fn, held_out)
    assert found["loss"] == pytest.approx(losses_of(out)["val", "2"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "pmap"])
def test_a_language_model_is_the_same_on_eight_devices(
    one_device_lm: tuple[Path, str], text: Path, tmp_path: Path, strategy: str
) -> None:
    out = tmp_path / "out"
    calls = ("--accumulate", 1 if strategy == "pmap" else 2, "--steps-per-call", 2)
    shown = run(
        "train_lm", text, *LM.split(), *calls, "--strategy", strategy, "--out", out, devices=8
    )
    assert "data=8" in shown
    assert losses_of(out) == pytest.approx(losses_of(one_device_lm[0]), rel=1e-4)


@pytest.mark.slow
def test_bfloat16_trains_a_language_model(text: Path, tmp_path: Path) -> None:
    run("train_lm", text, *LM.split(), "--bfloat16", "--out", tmp_path, devices=2)
    assert losses_of(tmp_path)["val", "2"] < math.log(256) + 0.5
    weights = jg.models.read_weights(tmp_path / "weights.safetensors")
    assert {x.dtype for x in weights.values()} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_a_picture_network_is_logged_and_its_best_state_saved(
    one_device_images: Path, pictures: Path, train_images: ModuleType
) -> None:
    out = one_device_images
    rows = rows_of(out)
    assert [(row["set"], row["step"]) for row in rows] == [("train", "2"), ("val", "2")]
    config = json.loads((out / "config.json").read_text())
    assert config["class_names"] == ["dots", "plain"]
    model = jg.models.create(config["network"], num_classes=2, rngs=nnx.Rngs(9))
    weights = jg.models.read_weights(out / "weights.safetensors")
    jg.models.set_weights(model, weights, source=str(out))
    preprocessing = Preprocessing.from_json(config["preprocessing"])
    assert preprocessing.image_size == 32
    val = jg.data.find_splits(pictures).val
    assert val is not None
    data = jg.data.Pictures(val.paths, val.labels, preprocessing, 6)
    found = jg.evaluate(model, train_images.make_loss_fn(preprocessing), data)
    assert found["loss"] == pytest.approx(float(rows[1]["loss"]), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float(rows[1]["accuracy"]))


@pytest.mark.slow
def test_a_picture_network_is_the_same_on_eight_devices(
    one_device_images: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "with_test"
    folder.mkdir()
    for name in ("train", "val"):
        (folder / name).symlink_to(pictures / name)
    paint(folder / "test", {"dots": 2, "plain": 2})
    out = tmp_path / "out"
    arguments = (folder, *IMAGES.split(), "--strategy", "data_parallel", "--out", out)
    shown = run("train_images", *arguments, devices=8)
    assert "data=8" in shown
    assert losses_of(out) == pytest.approx(losses_of(one_device_images), rel=1e-3)
    assert "of 4 pictures" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such.txt"], "text must be files or folders, there is nothing at no/such.txt"),
        (["--strategy", "fsdpp"], "the strategy must be one of auto, .*; did you mean fsdp?"),
        (["--heads", "3"], "heads must divide width, got 3 heads and width 128"),
        (["--steps", "0"], "max_steps must be at least 1, got 0"),
        (["--steps-per-call", "0"], "steps_per_call must be at least 1, got 0"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (
            ["--context", "999999"],
            "a window's length must be .*; got 999999",
        ),
    ],
)
def test_language_model_input_that_cannot_be_used_gives_one_line(
    arguments: list[str],
    message: str,
    text: Path,
    train_lm: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = [] if "no/such.txt" in arguments else [str(text), "--depth", "1", "--context", "16"]
    assert train_lm.main([*where, *arguments]) == 2
    assert_one_line(capsys, "train_lm", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/folder"], "there is no folder no/such/folder"),
        (["--model", "resnet"], "the network must be one of efficientnet_lite0, .*, got 'resnet'"),
        (["--strategy", "dataparallel"], "the strategy .*; did you mean data_parallel?"),
        (["--weights", "no.pth"], "weights must be .*, there is no file 'no.pth'"),
        (["--seed", "-1"], "--seed must be 0 or above, got -1"),
    ],
)
def test_picture_input_that_cannot_be_used_gives_one_line(
    arguments: list[str],
    message: str,
    pictures: Path,
    train_images: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = [] if "no/such/folder" in arguments else [str(pictures)]
    assert train_images.main([*where, *arguments]) == 2
    assert_one_line(capsys, "train_images", message)


def assert_one_line(capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(rf"{name}: {message.replace('?', '[?]')}", error)


@pytest.mark.parametrize("name", ["train_lm", "train_images"])
def test_an_option_that_is_no_number_is_named(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        request.getfixturevalue(name).main(["--steps", "many"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"{name}: error: argument --steps: invalid int value: 'many'"


def test_one_class_is_nothing_to_learn_from(
    tmp_path: Path,
    train_images: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paint(tmp_path / "one", {"dots": 3})
    assert train_images.main([str(tmp_path / "one")]) == 2
    assert_one_line(capsys, "train_images", "training needs at least two classes, got one")
    paint(tmp_path / "pairs", {"dots": 2, "plain": 2})
    assert train_images.main([str(tmp_path / "pairs")]) == 2
    assert_one_line(capsys, "train_images", ".*/pairs must have val/, or a class of three")


def test_no_val_folder_means_a_fifth_is_held_out(tmp_path: Path, train_images: ModuleType) -> None:
    paint(tmp_path / "all", {"dots": 10, "plain": 10})
    splits = train_images.read_pictures(train_images.parse([str(tmp_path / "all")]))
    assert splits.train.counts.tolist() == [8, 8]
    assert splits.val.counts.tolist() == [2, 2]
    assert not set(splits.train.paths) & set(splits.val.paths)
