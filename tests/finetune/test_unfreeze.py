"""Fine-tuning proper, on a network of two stages: what it changes, and what it takes back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.special

import jgraph as jg
from jgraph import models
from jgraph._finetune import _recipe, _unfreeze

pytestmark = pytest.mark.usefixtures("workplace", "tiny")

FIRST, NORM, SECOND = "backbone/first/", "backbone/norm/", "backbone/second/"


@pytest.fixture
def big(paint):
    return paint(Path("big"), {"dots": 20, "plain": 15, "rows": 15}, noise=120)


@pytest.fixture
def small(paint):
    return paint(Path("small"), {"dots": 8, "plain": 6}, noise=120)


def decide(monkeypatch, loss):
    """Pretend that the head's loss was `loss`, so that fine-tuning is better or worse."""
    monkeypatch.setattr(_unfreeze, "_head_loss", lambda *_: loss)


def changed(run):
    """The weights that differ from the network's own, head apart."""
    start = {f"backbone/{k}": v for k, v in models.weights_of(models.create("")).items()}
    now = models.weights_of(run.model)
    return {name for name in start if not np.array_equal(start[name], now[name])}


@pytest.mark.parametrize(
    ("unfreeze", "parts"), [("last:1", (SECOND,)), ("all", (FIRST, NORM, SECOND))]
)
def test_kept_weights_are_those_of_the_unfrozen_stages(unfreeze, parts, big, monkeypatch, capsys):
    decide(monkeypatch, math.inf)
    run = jg.finetune(big, unfreeze=unfreeze, epochs=2)
    expected = {
        f"backbone/{name}"
        for name in models.weights_of(models.create(""))
        if f"backbone/{name}".startswith(parts)
    }
    # BatchNorm's statistics rest.
    assert changed(run) == expected - {f"{NORM}mean", f"{NORM}var"}
    assert run.config["fine_tuned"] is True
    out = capsys.readouterr().out
    assert "Fine-tuning helped or did no harm: held-out loss inf before, " in out
    assert "epoch 2 of 2: train loss " in out
    rows = [line.split(",") for line in (run.folder / "metrics.csv").read_text().splitlines()]
    tuned = [row for row in rows if row[0] == "fine-tune"]
    assert [row[1] for row in tuned] == ["1", "2"]
    assert float(tuned[-1][4]) == pytest.approx(run.metrics["loss"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["data_parallel", "fsdp", "pmap"])
def test_every_strategy_trains_what_one_device_does(strategy, big, monkeypatch):
    decide(monkeypatch, math.inf)
    options = {"unfreeze": "last:1", "epochs": 1, "batch_size": 12, "verbose": False}
    one, many = (jg.finetune(big, strategy=name, **options) for name in ("one", strategy))
    assert many.config["strategy"] == strategy
    for name, value in models.weights_of(one.model).items():
        np.testing.assert_allclose(
            models.weights_of(many.model)[name], value, atol=2e-4, err_msg=name
        )
    assert many.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3, abs=1e-4)


def test_worse_weights_are_taken_back(big, monkeypatch, capsys):
    frozen = jg.finetune(big, verbose=False)
    decide(monkeypatch, -1.0)
    run = jg.finetune(big, unfreeze="all", epochs=1)
    assert changed(run) == set()
    for name, value in models.weights_of(frozen.model).items():
        np.testing.assert_array_equal(models.weights_of(run.model)[name], value, err_msg=name)
    assert run.metrics["accuracy"] == frozen.metrics["accuracy"]
    assert run.config["fine_tuned"] is False
    notice = "fine-tuning made it worse, so the head alone is kept: held-out loss -1.0000 before"
    assert f"Note: {notice}" in capsys.readouterr().out
    assert notice in (run.folder / "report.html").read_text("utf-8")
    assert "discarded: the head alone was better" in (run.folder / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_the_measured_losses_decide(big):
    """Nothing forced: whatever is kept is the better one, by an independent computation."""
    frozen = jg.finetune(big, verbose=False)
    run = jg.finetune(big, unfreeze="all", epochs=3, learning_rate=1e-2, verbose=False)
    assert run.config["fine_tuned"] == bool(changed(run))
    assert run.metrics["loss"] <= frozen.metrics["loss"] * (1 + 1e-5)


@pytest.mark.slow
def test_the_test_set_does_not_decide(paint, monkeypatch):
    paint(Path("pets/train"), {"dots": 20, "plain": 20, "rows": 15})
    paint(Path("pets/test"), {"dots": 2, "plain": 2, "rows": 2})
    decide(monkeypatch, math.inf)
    run = jg.finetune("pets", unfreeze="last:1", epochs=1, verbose=False)
    assert run.metrics["set"] == "test"
    assert [other["set"] for other in run.metrics["others"]] == ["held-out"]
    split = json.loads((run.folder / "split.json").read_text("utf-8"))
    assert {role: len(paths) for role, paths in split.items()} == {
        "train": 44,
        "held-out": 11,
        "test": 6,
    }


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_with_few_pictures_every_fold_is_fine_tuned(better, small, monkeypatch, capsys):
    decide(monkeypatch, math.inf if better else -1.0)
    run = jg.finetune(small, unfreeze="last:1", epochs=1)
    out = capsys.readouterr().out
    folds = [line for line in out.splitlines() if line.startswith("Fold ")]
    assert folds[0] == "Fold 1 of 5: fine-tuning without its 3 pictures"
    assert len(folds) == 5
    assert (run.metrics["set"], run.metrics["count"]) == ("cross-validated", 14)
    assert bool(changed(run)) == better
    assert ("Fine-tuning on all pictures" in out) == better


@pytest.mark.slow
def test_the_folds_loss_is_that_of_the_logits_shown(small, monkeypatch):
    decide(monkeypatch, math.inf)
    seen = {}

    def remember(model, corpus, fit, tuned, settings):
        seen.update(corpus=corpus, tuned=tuned)
        return measure(model, corpus, fit, tuned, settings)

    measure = _recipe._measure
    monkeypatch.setattr(_recipe, "_measure", remember)
    run = jg.finetune(small, unfreeze="last:1", epochs=1, verbose=False)
    corpus, tuned = seen["corpus"], seen["tuned"]
    log_probabilities = scipy.special.log_softmax(tuned.held_out_logits, axis=1)
    loss = -log_probabilities[range(14), corpus.labels].mean()
    # A float32 log-softmax resolves no finer than 1e-7 of a nat.
    assert tuned.loss_after == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert run.metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_lopsided_classes_are_compared_by_the_same_loss(paint, monkeypatch):
    """Before and after are both means over pictures, however the classes are weighed."""
    folder = paint(Path("pets"), {"dots": 11, "plain": 3}, noise=120)
    before = {}

    def remember(corpus, fit, settings):
        before.update(corpus=corpus, fit=fit, loss=head_loss(corpus, fit, settings))
        return before["loss"]

    head_loss = _unfreeze._head_loss
    monkeypatch.setattr(_unfreeze, "_head_loss", remember)
    jg.finetune(folder, unfreeze="last:1", epochs=1, verbose=False)
    log_probabilities = before["fit"].cross_validation.log_probabilities
    loss = -log_probabilities[range(14), before["corpus"].labels].mean()
    assert before["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_divergence_keeps_the_head(big, monkeypatch, capsys):
    frozen = jg.finetune(big, verbose=False)

    def broken(model, pictures):
        return call(model, pictures) * jax.numpy.float32(np.nan)

    call = models.Classifier.__call__
    monkeypatch.setattr(models.Classifier, "__call__", broken)
    # The run is loaded and measured by the head alone, never by the broken call.
    run = jg.finetune(big, unfreeze="all", epochs=1, learning_rate=0.5)
    out = capsys.readouterr().out
    assert "Note: fine-tuning diverged at step 1; lower the learning rate, which is 0.5" in out
    assert "so the head alone is kept" in out
    assert changed(run) == set()
    assert run.metrics["accuracy"] == frozen.metrics["accuracy"]


def test_more_stages_than_there_are_is_refused_before_the_work(big):
    message = "efficientnet_lite0 has 2 stages, so unfreeze must be at most last:2, got last:3"
    with pytest.raises(jg.InputError, match=message):
        jg.finetune(big, unfreeze="last:3", verbose=False)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_batch_beyond_the_training_pictures_is_clamped(big, capsys):
    run = jg.finetune(big, unfreeze="last:1", epochs=1, batch_size=45)
    notice = "the batch size 45 is more than the 40 pictures to train on; 40 is used"
    assert f"Note: {notice}" in capsys.readouterr().out
    assert "batches of 40" in (run.folder / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_same_seed_same_bits(big):
    runs = [
        jg.finetune(big, unfreeze="all", epochs=2, seed=seed, out=f"run{i}", verbose=False)
        for i, seed in enumerate((3, 3, 4))
    ]
    for name in ("weights.safetensors", "metrics.csv", "split.json"):
        first, again, other = ((run.folder / name).read_bytes() for run in runs)
        assert first == again, name
        assert first != other, name
