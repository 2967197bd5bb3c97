"""docs/cross_entropy.svg is what scripts/draw_cross_entropy draws, and that is the mathematics."""

import importlib.machinery
import importlib.util
import pathlib
import re
import types

import numpy as np
import pytest

import jgraph

ROOT = pathlib.Path(jgraph.__file__).parents[1]
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def script() -> types.ModuleType:
    path = ROOT / "scripts" / "draw_cross_entropy"
    loader = importlib.machinery.SourceFileLoader("draw_cross_entropy", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_picture_in_the_docs_is_what_the_script_draws(
    script: types.ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "picture.svg"
    monkeypatch.setattr("sys.argv", ["draw_cross_entropy", str(target)])
    script.main()
    drawn = target.read_text("utf-8")
    kept = (ROOT / "docs" / "cross_entropy.svg").read_text("utf-8")
    assert NUMBER.sub("#", drawn) == NUMBER.sub("#", kept)
    # Pixels are written with one digit, which another processor's exp may round the other way.
    found, want = (np.array(NUMBER.findall(text), float) for text in (drawn, kept))
    np.testing.assert_allclose(found, want, atol=0.11)


@pytest.mark.slow
def test_the_curves_are_the_textbook(script: types.ModuleType) -> None:
    z, found = script.curves()
    x = np.asarray(z, np.float64)
    wrong = 1 / (1 + np.exp(x))
    loss, slope = found["cross entropy"]
    np.testing.assert_allclose(loss, np.log1p(np.exp(-x)), rtol=1e-6)
    np.testing.assert_allclose(slope, -wrong, rtol=1e-6)
    loss, slope = found["squared error"]
    # Both components miss by the wrong class's probability; jax.nn.softmax rounds 1 - p at 1.
    np.testing.assert_allclose(loss, 2 * wrong**2, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(slope, -4 * wrong**2 * (1 - wrong), rtol=1e-5, atol=1e-7)
