"""The pictures of networks in docs/ are what scripts/draw_networks draws."""

import importlib.machinery
import importlib.util
import pathlib
import re

import jax
import pytest

import jgraph

ROOT = pathlib.Path(jgraph.__file__).parents[1]
NAMES = ("deep", "efficientnet_lite0", "train_step", "transformer")
# Lines of code move, and versions of JAX differ in what their functions are made of by a FLOP.
MOVES = re.compile(r"\.py:\d+|draw_networks:\d+|\d+(\.\d+)?")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("docs")
    loader = importlib.machinery.SourceFileLoader(
        "draw_networks", str(ROOT / "scripts" / "draw_networks")
    )
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["draw_networks", str(folder)])
        # As a person runs it; optax isn't written to strict promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            script.main()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_in_the_docs_are_what_the_script_draws(name: str, drawn: pathlib.Path) -> None:
    found, kept = ((folder / f"{name}.svg").read_text("utf-8") for folder in (drawn, ROOT / "docs"))
    assert MOVES.sub("#", found) == MOVES.sub("#", kept)


@pytest.mark.slow
def test_repeats_are_one_box(drawn: pathlib.Path) -> None:
    words = re.findall(r">([^<>]+)<", (drawn / "train_step.svg").read_text("utf-8"))
    assert "blocks[0…99]" in words
    assert "×100" in {word.strip() for word in words}
    assert {"loss", "optimizer", "embed", "head"} <= set(words)
