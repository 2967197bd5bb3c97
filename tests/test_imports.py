"""Imports point downwards, the public list is true, and importing costs nothing."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

import jgraph

ROOT = pathlib.Path(jgraph.__file__).parent

# A part may import the parts of lower layers, and nothing of its own layer but itself.
LAYERS = (
    {
        "_arrays",
        "_cache",
        "_collection",
        "_digests",
        "_eager",
        "_errors",
        "_json",
        "_replicas",
        "_suggest",
        "_unfinished",
        "_version",
    },
    {"_preprocessing", "debug", "_handles"},
    {"losses", "models", "data", "graph"},
    {"hub", "distribute"},
    {"train"},
    {"_finetune"},
    {"_cli"},
)
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            assert head not in ("models", "losses"), f"{path}:{node.lineno} bypasses jgraph.{head}"
            if head == "jgraph" and rest:
                yield node.lineno, rest.split(".")[0]


def sources():
    for part in (
        *ROOT.glob("*.py"),
        *(p for d in ROOT.iterdir() if d.is_dir() for p in d.rglob("*.py")),
    ):
        if part.name != "__init__.py" or part.parent != ROOT:
            yield part


def test_every_part_has_a_layer():
    assert {part_of(path) for path in sources()} == set(LAYER_OF)


@pytest.mark.parametrize("path", sorted(sources()), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    part = part_of(path)
    for line, other in imported_parts(path):
        assert other == part or LAYER_OF[other] < LAYER_OF[part], f"{path}:{line} imports {other}"


def test_the_public_list_is_complete_and_documented():
    for name in jgraph.__all__:
        value = getattr(jgraph, name)
        assert name in dir(jgraph)
        assert isinstance(value, str) or value.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = jgraph.nothing


@pytest.mark.parametrize("part", ["data", "debug", "graph", "hub", "losses", "models", "train"])
def test_every_public_name_is_documented(part):
    module = importlib.import_module(f"jgraph.{part}")
    public = [n for n in vars(module) if not n.startswith("_") and n not in ("annotations", "os")]
    assert public
    for name in public:
        value = getattr(module, name)
        if callable(value) and getattr(value, "__module__", "").startswith("jgraph"):
            assert value.__doc__, f"jgraph.{part}.{name} has no docstring"


def test_import_jgraph_loads_nothing_heavy():
    heavy = ("jax", "flax", "numpy", "PIL")
    code = f"import sys, jgraph; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_importing_jgraph_takes_no_longer_than_importing_jax():
    def seconds(name):
        code = f"import time, {name}; print(time.process_time())"
        command = [sys.executable, "-c", code]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(shown.stdout)

    # It takes a tenth of it; the rest is room for a loaded machine.
    assert min(seconds("jgraph") for _ in range(3)) <= min(seconds("jax") for _ in range(2)) + 0.15


def test_graphs_load_their_files_only_when_asked():
    code = "import sys, jgraph.graph; print('safetensors' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["models", "losses"])
def test_the_folders_at_the_top_are_reached_through_jgraph_only(name):
    code = f"import {name}"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False
    )
    assert shown.returncode != 0
    assert f"ImportError: import jgraph.{name}, not {name}" in shown.stderr


def test_a_checkout_without_links_says_so(tmp_path):
    package = tmp_path / "jgraph"
    package.mkdir()
    for name in ("__init__.py", "_version.py"):
        (package / name).write_text((ROOT / name).read_text())
    (package / "models").write_text("../models")
    shown = subprocess.run(
        [sys.executable, "-c", "import jgraph"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "jgraph/models must be a link to ../models" in shown.stderr
