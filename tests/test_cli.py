"""The command: what it prints, and one sentence and exit code 2 for what can't be used."""

from __future__ import annotations

import csv
import errno
import inspect
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import jgraph as jg
from jgraph import hub
from jgraph._cli import main

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; return its one sentence."""

    def run(*argv: str) -> str:
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        # Behind the progress bar, if there is one.
        _, sign, message = err.rpartition("jgraph: ")
        assert sign, err
        return (sign + message).removesuffix("\n")

    return run


@pytest.fixture
def few(paint):
    return paint(Path("few"), {"dots": 8, "plain": 6})


# Help


@pytest.mark.parametrize("command", [[], ["finetune"], ["predict"], ["evaluate"]])
def test_help_opens_with_examples(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    name = " ".join(["jgraph", *command])
    assert out.startswith(f"Examples:\n  {name}")
    assert "None" not in out.replace("none", "")
    assert f"usage: {name}" in out


@pytest.mark.parametrize("command", ["finetune", "predict", "evaluate"])
def test_the_examples_name_options_that_exist(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    examples, _, rest = capsys.readouterr().out.partition("usage:")
    for option in re.findall(r"--[a-z-]+", examples):
        assert option in rest


def test_every_setting_has_an_option(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    out = capsys.readouterr().out
    for setting in inspect.signature(jg.finetune).parameters.keys() - {"data", "verbose"}:
        option = f"--{setting.replace('_', '-')}"
        assert f"{option} " in out or f"{option}\n" in out, option
    assert "(default: efficientnet_lite0)" in out
    assert "(default: 0.001)" in out


def test_nothing_prints_the_help(capsys):
    with pytest.raises(SystemExit) as done:
        main([])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("Examples:\n  jgraph finetune")


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"jgraph {jg.__version__}\n"


def test_arguments_default_to_the_processs_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jgraph", "fintune"])
    assert main() == 2
    assert "got 'fintune'" in capsys.readouterr().err


# Misspelt


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["fintune"],
            "the command must be one of finetune, predict, evaluate, draw, inspect, hub, launch, "
            "doctor, got 'fintune'; did you mean finetune?",
        ),
        (
            ["finetune", "--epoch", "3"],
            "jgraph finetune doesn't take '--epoch'; did you mean --epochs? "
            "(see jgraph finetune --help)",
        ),
        (
            ["finetune", "--learning_rate=0.1"],
            "jgraph finetune doesn't take '--learning_rate=0.1'; did you mean --learning-rate? "
            "(see jgraph finetune --help)",
        ),
        (
            ["evaluate", "run", "data", "--jsn"],
            "jgraph evaluate doesn't take '--jsn'; did you mean --json? "
            "(see jgraph evaluate --help)",
        ),
        (
            ["predict", "runs/latest"],
            "the following arguments are required: PICTURE|FOLDER (see jgraph predict --help)",
        ),
        (["--version=2"], None),
        (
            ["--debug", "predict", "RUN", "x.jpg"],
            "--debug comes after the command: jgraph predict --debug …",
        ),
        (
            ["--verbos"],
            "jgraph doesn't take '--verbos'; did you mean --version? (see jgraph --help)",
        ),
        (
            ["finetune", "--epochs", "many"],
            "argument --epochs: must be a whole number, got 'many' (see jgraph finetune --help)",
        ),
        (
            ["finetune", "--learning-rate", "fast"],
            "argument --learning-rate: must be a number, got 'fast' (see jgraph finetune --help)",
        ),
        (
            ["finetune", "--on-bad-picture", "skp"],
            None,
        ),
        (
            ["finetune", "--backbone", "efficientnet-lite0"],
            "the backbone must be one with published weights (efficientnet_lite0) or the handle of "
            "a module, got 'efficientnet-lite0'; did you mean efficientnet_lite0?",
        ),
        (["finetune", "picturs"], "there is no folder picturs; did you mean pictures?"),
        (
            ["predict", "run/latest", "a.jpg"],
            "there is no run folder run/latest; did you mean runs?",
        ),
        (
            ["evaluate", "runs/lates", "pictures"],
            "there is no run folder runs/lates; did you mean runs/latest?",
        ),
    ],
)
def test_misspelt(argv, message, refused):
    Path("pictures").mkdir()
    Path("runs/latest").mkdir(parents=True)
    found = refused(*argv)
    if message is not None:
        assert found == f"jgraph: {message}"


# Settings


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--learning-rate", "nan", "the learning rate must be a positive number, got nan; try"),
        ("--learning-rate", "-0.1", "the learning rate must be a positive number, got -0.1; try"),
        ("--epochs", "0", "epochs must be at least 1, got 0"),
        ("--batch-size", "0", "batch size must be at least 1, got 0"),
        ("--image-size", "8", "the image size must be at least 32 pixels, got 8"),
        ("--unfreeze", "lst:2", "unfreeze must be none, all or last:N with N at least 1, got"),
        ("--unfreeze", "last:99", "stages, so unfreeze must be at most last:"),
        ("--seed", "-1", "the seed must be from 0 to 4294967295, got -1"),
        ("--backbone", "efficientnet_lite1", "the backbone must be one with published weights"),
    ],
)
def test_settings_out_of_range(option, value, message, few, refused):
    assert message in refused("finetune", "few", option, value)
    assert not Path("runs").exists()


def test_out_exists(few, refused):
    Path("run").mkdir()
    message = "jgraph: run exists already; choose another name for the run, or remove it"
    assert refused("finetune", "few", "--out", "run") == message


# Data


def test_no_such_folder(refused):
    assert refused("finetune", "zzz") == "jgraph: there is no folder zzz"


def test_no_pictures(refused):
    Path("empty/cat").mkdir(parents=True)
    assert "there are no pictures (.jpg, .jpeg, .png" in refused("finetune", "empty")


def test_one_class_only(paint, refused):
    paint(Path("one"), {"dots": 4})
    assert "training needs at least two classes, got one ('dots')" in refused("finetune", "one")


def test_a_class_with_one_picture(paint, refused):
    paint(Path("one"), {"dots": 4, "plain": 1})
    message = refused("finetune", "one")
    assert "every class needs at least two pictures" in message
    assert "'plain' has 1; add pictures or remove the folder" in message


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("zero.png", lambda good: b""),
        ("cut.png", lambda good: good[: len(good) // 2]),
        ("broken.png", lambda good: good[:33] + bytes(40) + good[73:]),
        ("text.jpg", lambda good: b"this is a letter"),
    ],
)
def test_files_that_are_no_pictures(name, data, few, refused, capsys):
    good = (few / "dots" / "000.png").read_bytes()
    (few / "dots" / name).write_bytes(data(good))
    message = refused("finetune", "few", "--on-bad-picture", "stop")
    assert f"few/dots/{name}" in message
    assert message.endswith("--on-bad-picture skip)")
    assert not Path("runs").exists()
    assert main(["finetune", "few"]) == 0
    assert re.search(rf"Note: left out: .*few/dots/{re.escape(name)}", capsys.readouterr().out)
    assert list(jg.load_run("runs/latest").config["skipped"]) == [f"few/dots/{name}"]


# Predict and evaluate


def test_predict_prints_a_line_per_picture(finished, capsys):
    run, folder = str(finished / "runs/latest"), finished / "pictures/rows"
    assert main(["predict", run, str(folder), "--top", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 8
    for i, line in enumerate(lines):
        assert re.fullmatch(rf"{folder}/{i:03}\.png: rows [01]\.\d{{3}}, \w+ 0\.\d{{3}}", line)
    assert err == ""


def test_predict_names_bad_files_and_goes_on(finished, capsys):
    run, good = str(finished / "runs/latest"), str(finished / "pictures/rows/000.png")
    Path("bad.jpg").write_bytes(b"no picture")
    assert main(["predict", run, "bad.jpg", good, "--json"]) == 0
    out, err = capsys.readouterr()
    assert re.match(r"jgraph: left out: .*bad\.jpg", err)
    value = json.loads(out)
    assert list(value["skipped"]) == ["bad.jpg"]
    (row,) = value["predictions"]
    assert (row["picture"], row["label"]) == (good, "rows")
    assert row["top"][0]["label"] == "rows"
    assert row["top"][0]["probability"] == row["probability"]
    assert sum(entry["probability"] for entry in row["top"]) == pytest.approx(1)


def test_predict_without_a_readable_file(finished, refused):
    Path("bad.jpg").write_bytes(b"")
    message = refused("predict", str(finished / "runs/latest"), "bad.jpg")
    assert message.endswith("jgraph: none of the 1 files could be read as a picture")


def test_predict_writes_csv(finished, capsys):
    run, folder = str(finished / "runs/latest"), str(finished / "pictures")
    Path("out.csv").write_text("an earlier table")
    assert main(["predict", run, folder, "--csv", "out.csv", "--top", "2"]) == 0
    assert capsys.readouterr().out == "out.csv: predictions of 24 pictures\n"
    with open("out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert list(rows[0]) == ["picture", "rank", "label", "probability"]
    assert [row["rank"] for row in rows] == ["1", "2"] * 24
    assert all(Path(row["picture"]).parent.name == row["label"] for row in rows[::2])
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)
    assert os.listdir() == ["out.csv"]


def test_predict_writes_csv_into_a_pipe(finished, tmp_path):
    run, picture = str(finished / "runs/latest"), str(finished / "pictures/rows/000.png")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main(["predict", run, picture, "--csv", "pipe", "--top", "1"]) == 0
    assert os.read(reader, 1000).startswith(b"picture,rank,label,probability\r\n")
    os.close(reader)


def test_a_full_disk_keeps_the_earlier_table(finished, monkeypatch, refused):
    run, picture = str(finished / "runs/latest"), str(finished / "pictures/rows/000.png")
    Path("out.csv").write_text("an earlier table")

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = refused("predict", run, picture, "--csv", "out.csv")
    assert message.startswith("jgraph: No space left on device; nothing half-written is left")
    assert Path("out.csv").read_text() == "an earlier table"
    assert os.listdir() == ["out.csv"]


def test_a_table_that_cannot_be_written_is_refused_before_the_work(refused):
    Path("tables").mkdir()
    assert refused("predict", "run", "a.jpg", "--csv", "tables") == (
        "jgraph: --csv must name a file, but tables is a folder"
    )
    assert refused("predict", "run", "a.jpg", "--csv", "table/out.csv") == (
        "jgraph: --csv must name a file in a folder that exists, and table doesn't; did you mean "
        "tables?"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predict", "run", "a.jpg", "--top", "0"], "top must be at least 1, got 0"),
        (["predict", "run", "a.jpg", "--batch-size", "0"], "batch size must be at least 1, got 0"),
        (["evaluate", "run", "data", "--batch-size", "0"], "batch size must be at least 1, got 0"),
    ],
)
def test_numbers_of_predict_and_evaluate(argv, message, refused):
    assert refused(*argv) == f"jgraph: {message}"


def test_evaluate_prints_accuracy_baseline_and_recall(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    assert main(["evaluate", "runs/latest", "pictures"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "Accuracy (given): 1.000, 24 of 24, 0.86-1.00\n"
        "  always the most frequent class: 0.333\n"
        "  recall of dots: 1.000\n"
        "  recall of plain: 1.000\n"
        "  recall of rows: 1.000\n"
    )
    # The run was trained on the very pictures.
    assert err == (
        "jgraph: 24 of these 24 pictures trained the run, so the accuracy is too good; measure on "
        "others\n"
    )


def test_evaluate_prints_json(finished, paint, capsys):
    folder = paint(Path("some"), {"dots": 3, "rows": 1})
    # A picture in the folder of another class is a mistake to be counted.
    shutil.copy(folder / "dots/000.png", folder / "rows/999.png")
    (folder / "dots" / "bad.png").write_bytes(b"")
    assert main(["evaluate", str(finished / "runs/latest"), "some", "--json"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert (value["accuracy"], value["count"], value["correct"]) == (0.8, 5, 4)
    assert value["recall"] == {"dots": 1.0, "plain": None, "rows": 0.5}
    assert value["confusion"] == [[3, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert list(value["skipped"]) == ["some/dots/bad.png"]
    assert "jgraph: left out: " in err


def test_evaluate_can_stop_at_a_bad_picture(finished, paint, refused):
    folder = paint(Path("some"), {"dots": 3})
    (folder / "dots" / "bad.png").write_bytes(b"")
    run = str(finished / "runs/latest")
    assert "bad.png" in refused("evaluate", run, "some", "--on-bad-picture", "stop")


# Broken runs


def test_missing_and_changed_files_are_each_named(copied, refused):
    Path("runs/latest/split.json").unlink()
    weights = Path("runs/latest/weights.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    message = refused("predict", "runs/latest", "pictures/rows/000.png")
    assert "split.json is missing" in message
    assert "weights.safetensors has changed" in message


def test_weights_missing_and_of_another_shape_are_each_named(copied, refused):
    manifest, weights = hub.read_module("runs/latest")
    wrong = ["backbone/stem/conv/kernel", "head/bias", "head/kernel"]
    del weights[wrong[1]]
    for name in (wrong[0], wrong[2]):
        weights[name] = weights[name][:-1]
    for key in ("files", "weights"):
        del manifest[key]

    def copy_figures(folder: Path) -> None:
        for name in ("config.json", "metrics.json", "split.json"):
            shutil.copy(Path("runs/latest") / name, folder)

    hub.write_module("other", manifest, weights, write_files=copy_figures)
    message = refused("evaluate", "other", "pictures")
    for name in wrong:
        assert name in message


def test_a_folder_that_is_no_run(paint, refused):
    paint(Path("pictures"), {"dots": 1})
    message = "pictures must be a run or module folder, but it has no module.json"
    assert message in refused("predict", "pictures", "pictures/dots/000.png")


# The terminal


def test_letters_the_terminal_does_not_know(finished, monkeypatch):
    run = str(finished / "runs/latest")
    shutil.copy(finished / "pictures/rows/000.png", "Zähne.png")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["predict", run, "Zähne.png"]) == 0
    assert raw.getvalue().startswith(b"Z\\xe4hne.png: rows ")


def test_a_reader_that_has_gone_is_no_error(finished, monkeypatch):
    class Closed(io.StringIO):
        def flush(self):
            raise BrokenPipeError

        def fileno(self):
            return fd

    fd = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Closed())
    run, picture = str(finished / "runs/latest"), str(finished / "pictures/rows/000.png")
    assert main(["predict", run, picture]) == 0
    os.close(fd)


def test_pictures_of_every_kind_are_predicted(finished, capsys):
    picture = Image.open(finished / "pictures/rows/000.png").convert("RGB")
    for mode, name in (("L", "l.png"), ("P", "p.png"), ("RGBA", "a.png"), ("CMYK", "c.tif")):
        picture.convert(mode).save(name)
    names = ["l.png", "p.png", "a.png", "c.tif"]
    assert main(["predict", str(finished / "runs/latest"), *names, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["picture"] for row in rows] == names
    assert [row["label"] for row in rows][1:] == ["rows"] * 3
