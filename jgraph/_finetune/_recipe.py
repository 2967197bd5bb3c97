"""The main job: a folder of pictures and a pretrained network become a classifier."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flax import nnx

from jgraph import data as jdata
from jgraph._cache import cache_folder
from jgraph._errors import CheckpointError, InputError
from jgraph._finetune._backbone import ModuleBackbone, pretrained
from jgraph._finetune._console import Console
from jgraph._finetune._corpus import HELD_OUT_FRACTION, Corpus, gather, holds_out
from jgraph._finetune._report import CurveRow
from jgraph._finetune._run import OnBadPicture, Run, load_run
from jgraph._finetune._save import RUNS, Finished, point_latest, save
from jgraph._finetune._score import Score
from jgraph._finetune._settings import BATCH_SIZE, Settings
from jgraph._finetune._unfinished import Unfinished, reopen, reserve
from jgraph._finetune._unfreeze import Tuned, fine_tune, predict, set_head
from jgraph.debug import asked_mode, debug_mode
from jgraph.models import Classifier
from jgraph.train import LogisticFit

_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


def finetune(
    data: str | os.PathLike[str] | None = None,
    *,
    backbone: str = "efficientnet_lite0",
    epochs: int = 5,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = 1e-3,
    image_size: int | None = None,
    unfreeze: str = "none",
    seed: int = 0,
    strategy: str = "one",
    out: str | os.PathLike[str] | None = None,
    debug: bool = False,
    on_bad_picture: OnBadPicture = "skip",
    cache: bool | str | os.PathLike[str] = True,
    verbose: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> Run:
    """Make a picture classifier from a pretrained network and a folder of pictures.

    The backbone embeds every picture once; a multinomial logistic head is fitted to the
    features, its L2 penalty chosen by 5-fold cross-validation. `unfreeze` then trains the end of
    the backbone along with the head, and keeps the head alone where that is worse.

    Args:
        data: class/name.jpg, or train/ with val/ (valid/, validation/) and test/ in any
            combination; without either, a fifth of every class is held out from 50 pictures on,
            and cross-validation measures below that. None takes the embedded demo pictures.
        backbone: one of `jgraph.models.names()` with published weights, or the handle of a module
            with a signature "features"; see `jgraph.hub.load`.
        epochs: passes over the training pictures while unfrozen.
        batch_size: pictures per step.
        learning_rate: peak rate of the head while unfrozen; the backbone has a tenth of it.
        image_size: side of the square the network sees, in pixels; None for the backbone's own.
        unfreeze: "none", "all" or "last:N" for the last N stages of the backbone.
        seed: of every draw. The same seed gives the same result, bit for bit.
        strategy: where the network runs: "one" device, or all devices by "auto", "data_parallel",
            "fsdp" or "pmap"; see `jgraph.distribute`.
        out: the run folder to write, which must not exist; None for runs/NAME-001 and so on,
            with the link runs/latest.
        debug: run in `jg.debug_mode`, so that breakpoints stop inside the network.
        on_bad_picture: "skip" names a file that can't be read and goes on; "stop" raises.
        cache: whether features are kept in the user's cache folder, so that another run on the same
            pictures needn't embed them; a path keeps them in that folder. See
            `jgraph.data.FeatureCache`. Left alone while debugging.
        verbose: whether to print what happens.
        resume: the folder of a run with `unfreeze` that was stopped, such as "runs/pets-001": it
            goes on where it was last saved, and ends as if it hadn't been stopped. All settings
            are the run's; `debug` and `verbose` are this call's.

    Returns:
        The run: `.model`, `.metrics`, `.predict(pictures)`, `.folder`.

    Raises:
        InputError: (a ValueError) data or a setting can't be used; the message says what to do.
        KeyboardInterrupt: Ctrl-C. Fine-tuning was saved first, and the text says how to go on.
        OSError: the run can't be written; nothing is left of it.

    Source:
        Kornblith, Shlens and Le 2019, "Do Better ImageNet Models Transfer Better?" (logistic
        regression on frozen features).
    """
    settings = Settings(
        None if data is None else os.fspath(data),
        backbone,
        epochs,
        batch_size,
        learning_rate,
        image_size,
        unfreeze,
        seed,
        strategy,
        on_bad_picture,
        cache if isinstance(cache, bool) else os.fspath(cache),
    )
    console = Console(verbose)
    folder = None if out is None else Path(out).expanduser()
    unfinished = None
    if resume is not None:
        _check_nothing_else(settings, out)
        unfinished, settings = reopen(Path(resume).expanduser())
        folder = unfinished.run
    _check_place(folder)
    with debug_mode() if debug else asked_mode():
        return _finetune(settings, folder, console, unfinished)


def _check_nothing_else(settings: Settings, out: str | os.PathLike[str] | None) -> None:
    """Refuse settings beside `resume`, which takes them from the run."""
    ours = {name: p.default for name, p in inspect.signature(finetune).parameters.items()}
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    changed = [name for name, value in given.items() if name in ours and value != ours[name]]
    changed += ["out"] * (out is not None)
    if changed:
        raise InputError(f"resume takes all from the run; leave out {', '.join(changed)}")


def _check_place(out: Path | None) -> None:
    """Refuse a run folder that can't be written before the work, not after it."""
    if out is not None and (out.exists() or out.is_symlink()):
        raise InputError(f"{out} exists already; choose another name for the run, or remove it")
    parent = RUNS if out is None else out.parent
    above = next(p for p in (parent.absolute(), *parent.absolute().parents) if p.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(
            f"the run must lie in a folder that can be written, and {above} isn't one; choose "
            "another place with --out"
        )


def _finetune(
    settings: Settings, out: Path | None, console: Console, unfinished: Unfinished | None
) -> Run:
    _notice_unused(settings, console)
    folder = demo_folder() if settings.data is None else Path(settings.data).expanduser()
    splits = jdata.find_splits(folder)
    jdata.check_trainable(splits.train)
    model = _pretrained(settings, splits.train.class_names)
    _announce(folder, splits, model, settings, console)
    corpus = gather(model, splits, settings, console)
    fit = _fit_head(corpus, settings, console)
    set_head(model, fit)
    tuned, name = None, "demo" if settings.data is None else _name(folder)
    if settings.unfreeze != "none":
        unfinished = unfinished or _begin(name, settings, out)
        with _kept_to_go_on(unfinished):
            unfinished.check_pictures(corpus)
            tuned = fine_tune(model, corpus, fit, settings, console, unfinished)
        _say_what_was_kept(tuned, corpus, console)
    scores, pictures = _measure(model, corpus, fit, tuned, settings)
    finished = Finished(
        name=name,
        model=model,
        settings=settings,
        corpus=corpus,
        scores=scores,
        pictures=pictures,
        curves=_curves(fit, tuned, corpus),
        penalty=fit.penalty,
        tuned=None if tuned is None else tuned.kept,
        notices=tuple(console.notices),
    )
    path = save(finished, out) if unfinished is None else _finish(unfinished, finished)
    _conclude(path, finished, console)
    return load_run(path)


def _finish(unfinished: Unfinished, finished: Finished) -> Path:
    """Write the run, and remove what it could have gone on from."""
    try:
        path = save(finished, unfinished.run)
    except OSError:
        print(f"jgraph: go on with: {unfinished.command}", file=sys.stderr)
        raise
    unfinished.remove()
    if unfinished.points_latest:
        point_latest(path)
    return path


def _begin(name: str, settings: Settings, out: Path | None) -> Unfinished:
    if out is None:
        return reserve(RUNS, name, settings)
    unfinished = Unfinished(out, False)
    unfinished.begin(settings)
    return unfinished


@contextlib.contextmanager
def _kept_to_go_on(unfinished: Unfinished) -> Iterator[None]:
    """Say how to go on where the person or the system stops the run; leave nothing else behind."""
    command = unfinished.command
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if not unfinished.has_checkpoints:
            unfinished.remove()
            raise
        if isinstance(stop, SystemExit):
            print(f"jgraph: go on with: {command}", file=sys.stderr)
            raise
        raise KeyboardInterrupt(f"what was trained is saved; go on with: {command}") from stop
    except BaseException as error:
        if isinstance(error, CheckpointError) or unfinished.has_checkpoints:
            error.add_note(f"go on with: {command}")
        else:
            unfinished.remove()
        raise


def _notice_unused(settings: Settings, console: Console) -> None:
    defaults = {"epochs": 5, "learning_rate": 1e-3}
    changed = [name for name, value in defaults.items() if getattr(settings, name) != value]
    if settings.unfreeze == "none" and changed:
        names = " and ".join(name.replace("_", " ") for name in changed)
        console.notice(
            f"{names} only matter with unfreeze: a frozen network's head is fitted whole"
        )


def demo_folder() -> Path:
    """Return the folder of the embedded demo pictures, written on first use."""
    return jdata.write_demo(cache_folder() / jdata.DEMO_NAME)


def _pretrained(settings: Settings, class_names: tuple[str, ...]) -> Classifier:
    network, preprocessing = pretrained(settings.backbone, settings.image_size)
    settings.unfrozen_stages(len(network.stages))
    model = Classifier(network, class_names, preprocessing, rngs=nnx.Rngs(settings.seed))
    model.eval()
    return model


def _announce(
    folder: Path, splits: jdata.Splits, model: Classifier, settings: Settings, console: Console
) -> None:
    train = splits.train
    classes = ", ".join(f"{n} {c}" for n, c in zip(train.class_names, train.counts, strict=True))
    console.say(f"{folder}: {len(train)} training pictures of {len(train.class_names)} classes")
    console.say(f"  {classes if len(train.class_names) <= 12 else classes[:150] + ' …'}")
    given = {role: part for role, part in (("val", splits.val), ("test", splits.test)) if part}
    for role, part in given.items():
        console.say(f"  {len(part)} {role} pictures")
    if holds_out(given, len(train), settings):
        purpose = "choose" if given else "measure"
        console.say(f"  {HELD_OUT_FRACTION:.0%} of every class is held out to {purpose} with")
    elif not given:
        console.say("  every picture trains; cross-validation measures")
    frozen = "frozen" if settings.unfreeze == "none" else f"unfrozen: {settings.unfreeze}"
    side = model.preprocessing.image_size
    console.say(f"{settings.backbone} with {_weights(model)} at {side} px, {frozen}")
    for part in (splits.train, splits.val, splits.test):
        ignored = () if part is None else part.ignored
        if ignored:
            some = ", ".join(path.name for path in ignored[:3])
            more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
            console.notice(f"not used, since their names are no picture's: {some}{more}")


def _weights(model: Classifier) -> str:
    is_module = isinstance(model.backbone, ModuleBackbone)
    return "the module's weights" if is_module else "ImageNet weights"


def _fit_head(corpus: Corpus, settings: Settings, console: Console) -> LogisticFit:
    train = corpus.rows("train")
    seen = np.zeros_like(train) if corpus.headline is None else corpus.rows(corpus.headline)
    rows = train | seen
    if not np.all(corpus.weights == 1):
        console.notice("the largest class has more than three times the smallest: both count alike")
    fit = corpus.fit_head(rows, held_out_N=~train[rows], folds_N=corpus.folds(settings.seed)[rows])
    console.say(
        f"Head: logistic regression, L2 penalty {fit.penalty:g} by 5-fold cross-validation, "
        f"{len(fit.curve.train_loss)} passes of L-BFGS"
    )
    for row in _shown(_head_rows(fit, corpus)):
        held = ""
        if row.held_out_loss is not None:
            held = f"; {corpus.headline} loss {row.held_out_loss:.4f}"
            held += f", accuracy {row.held_out_accuracy:.3f}"
        console.say(
            f"  pass {row.epoch}: train loss {row.train_loss:.4f}, "
            f"accuracy {row.train_accuracy:.3f}{held}"
        )
    return fit


def _shown(rows: list[CurveRow]) -> list[CurveRow]:
    """Return the rows worth a line: 1, 2, 4, 8, … and the last."""
    return [r for r in rows if r.epoch & (r.epoch - 1) == 0 or r.epoch == len(rows)]


def _head_rows(fit: LogisticFit, corpus: Corpus) -> list[CurveRow]:
    rows = []
    for epoch, row in enumerate(zip(*fit.curve, strict=True), 1):
        loss, accuracy, held_loss, held_accuracy = map(float, row)
        held = (None, None) if corpus.headline is None else (held_loss, held_accuracy)
        rows.append(CurveRow("head", epoch, loss, accuracy, *held))
    return rows


def _curves(fit: LogisticFit, tuned: Tuned | None, corpus: Corpus) -> list[CurveRow]:
    rows = _head_rows(fit, corpus)
    history = [] if tuned is None else tuned.history
    held = {row["step"]: row for row in history if row["set"] != "train"}
    for row in history:
        if row["set"] == "train":
            other = held.get(row["step"], {})
            rows.append(
                CurveRow(
                    "fine-tune",
                    row["step"],
                    row["loss"],
                    row["accuracy"],
                    other.get("cross_entropy"),
                    other.get("accuracy"),
                )
            )
    return rows


def _say_what_was_kept(tuned: Tuned, corpus: Corpus, console: Console) -> None:
    what = corpus.monitor or "cross-validated"
    change = f"{what} loss {tuned.loss_before:.4f} before, {tuned.loss_after:.4f} after"
    if tuned.kept:
        console.say(f"Fine-tuning helped or did no harm: {change}")
    else:
        console.notice(f"fine-tuning made it worse, so the head alone is kept: {change}")


def _measure(
    model: Classifier,
    corpus: Corpus,
    fit: LogisticFit,
    tuned: Tuned | None,
    settings: Settings,
) -> tuple[list[Score], list[Path]]:
    """Return the scores, the headline first, and the pictures behind the headline."""
    names, labels = corpus.class_names, corpus.labels
    fine_tuned = tuned is not None and tuned.kept
    if corpus.headline is None:
        rows = corpus.folds(settings.seed) >= 0
        if tuned is not None and tuned.held_out_logits is not None:
            logits = tuned.held_out_logits[rows]
        else:
            assert fit.cross_validation is not None, "the penalty was chosen by cross-validation"
            logits = fit.cross_validation.log_probabilities[rows]
        score = Score.of_logits("cross-validated", names, labels[rows], logits)
        return [score], list(corpus.pictures_of(rows).paths)
    scores = []
    for role in ("test", "val", "held-out"):
        rows = corpus.rows(role)
        if not rows.any():
            continue
        if fine_tuned:
            logits = predict(model, corpus, rows, settings)
        else:
            logits = corpus.features[rows] @ fit.kernel + fit.bias
        scores.append(Score.of_logits(role, names, labels[rows], logits))
    return scores, list(corpus.pictures_of(corpus.rows(corpus.headline)).paths)


def _name(folder: Path) -> str:
    folder = folder.resolve()
    if folder.name.lower() in _SPLIT_FOLDERS:
        folder = folder.parent
    return re.sub(r"[^\w.-]+", "-", folder.name).strip("-.") or "run"


def _conclude(path: Path, finished: Finished, console: Console) -> None:
    score = finished.scores[0]
    console.say()
    console.say(f"Accuracy ({score.name}): {score}")
    console.say(f"  always the most frequent class: {score.baseline:.3f}")
    for name, recall in score.recall.items():
        console.say(f"  recall of {name}: {'no pictures' if recall is None else f'{recall:.3f}'}")
    for other in finished.scores[1:]:
        console.say(f"Accuracy ({other.name}): {other}")
    console.say()
    console.say(f"Results: {path}   Report: {path / 'report.html'}")
    console.say("Next:")
    for command in finished.next_commands(path):
        console.say(f"  {command}")
