"""What the README says is run: its Python as it stands, its commands as they are typed."""

import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

import jgraph
from jgraph._cli import main

ROOT = pathlib.Path(jgraph.__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
# What takes a whole network through its training is run where there is time.
LONG = ("jg.finetune(", "jg.hub.load(")
COMMANDS = [
    line.partition("#")[0].strip()
    for language, body in BLOCKS
    if language == "bash"
    for line in body.splitlines()
    if line.strip()
]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The folders and files that the README speaks of, here bright and dark ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JGRAPH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for folder in ("pictures", "more-pictures"):
        for name, low in (("cat", 0), ("dog", 180)):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(low, low + 75, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{i:03}.jpg")
    Image.new("RGB", (64, 48), "white").save(tmp_path / "photo.jpg")


def test_there_is_something_to_run():
    assert len(PYTHON) >= 3
    assert any(command.startswith("jgraph finetune") for command in COMMANDS)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=str(i), marks=pytest.mark.slow)
        if any(word in code for word in LONG)
        else pytest.param(code, id=str(i))
        for i, code in enumerate(PYTHON)
    ],
)
def test_python(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_commands_in_their_order():
    ran = [command for command in COMMANDS if command.startswith("jgraph ")]
    for command in ran:
        small = ["--image-size", "32"] if "finetune" in command else []
        assert main([*shlex.split(command)[1:], *small]) == 0, command
    assert pathlib.Path("runs/latest/report.html").is_file()


def test_scripts_exist_and_can_be_run():
    for command in COMMANDS:
        if command.startswith("scripts/"):
            assert (ROOT / command.split()[0]).stat().st_mode & 0o111, command


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text("utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target
