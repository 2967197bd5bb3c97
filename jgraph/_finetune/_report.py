"""A run told on one self-contained page: figures, curves, confusions and pictures."""

from __future__ import annotations

import base64
import importlib.resources
import io
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jgraph._errors import PictureError
from jgraph._finetune._score import Score
from jgraph._finetune._svg import Series, confusion_matrix, escape, line_chart
from jgraph._preprocessing import Preprocessing
from jgraph.data import decode_picture

_SIDE = 128
# The page shows pictures to people: only the geometry is used, never the normalisation.
_THUMBNAIL = Preprocessing(_SIDE, _SIDE, "bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

_MOST_PICTURES = 60
_MOST_MISTAKES = 36  # leaves room for pictures that were named rightly
_MOST_MATRIX_CLASSES = 50
_MOST_CONFUSIONS = 8

_SET_PHRASES = {
    "test": "on the test set",
    "val": "on the validation set",
    "held-out": "on held-out pictures",
    "cross-validated": "cross-validated over the training pictures",
}

_STAGES = (("head", "Head", "L-BFGS iteration"), ("fine-tune", "Fine-tuning", "epoch"))


class CurveRow(NamedTuple):
    """What was measured at one epoch of fine-tuning, or one L-BFGS iteration of the head.

    Args:
        stage: "head" or "fine-tune".
        epoch: which epoch or iteration, from 0 or 1.
        train_loss: mean cross entropy of the training pictures, in nats.
        train_accuracy: 0 to 1.
        held_out_loss: the same of pictures not trained on, in nats; None where not measured.
        held_out_accuracy: 0 to 1; None where not measured.
    """

    stage: str
    epoch: int
    train_loss: float
    train_accuracy: float
    held_out_loss: float | None
    held_out_accuracy: float | None


def write_report(
    path: Path,
    *,
    title: str,
    summary: Sequence[tuple[str, str]],
    scores: Sequence[Score],
    curves: Sequence[CurveRow],
    pictures: Sequence[Path],
    network: str,
    next_commands: Sequence[str],
    notices: Sequence[str],
) -> None:
    """Write a run's report: one HTML file without scripts that needs nothing beside it.

    The same arguments and the same pictures give the same bytes.

    Args:
        path: the file to write; replaced if it exists.
        title: the run's name.
        summary: rows of what was done, such as ("Backbone", "efficientnet_lite0").
        scores: at least one; the first is the headline, and its confusions are shown.
        curves: in the order of training; may be empty.
        pictures: N files, the one behind each row of `scores[0]`; one that cannot be decoded is
            shown as a placeholder.
        network: an SVG file's text, the picture of the network; "" for none.
        next_commands: shell commands a person may want next.
        notices: what a person should know before trusting the figures.

    Raises:
        ValueError: there is no score, or not one picture for each of its rows.
        OSError: the file cannot be written.
    """
    if not scores:
        raise ValueError("a report needs at least one score, got none")
    if len(pictures) != scores[0].count:
        raise ValueError(
            f"a report needs one picture file for each row of its first score, "
            f"got {len(pictures)} files for {scores[0].count} rows"
        )
    sections = [
        _headline(scores[0]),
        _notices(notices),
        _setup(summary, scores),
        _curves(curves),
        _confusions(scores[0]),
        _classes(scores[0]),
        _pictures(scores[0], pictures),
        _network(network),
        _next(next_commands),
    ]
    template = importlib.resources.files("jgraph._finetune").joinpath("report.html")
    page = string.Template(template.read_text("utf-8")).substitute(
        title=escape(title), body="\n".join(section for section in sections if section)
    )
    path.write_bytes(page.encode("utf-8", "backslashreplace"))


def _section(heading: str, body: str, lead: str = "") -> str:
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{heading}</h2>{lead}{body}</section>"


def _network(svg: str) -> str:
    if not svg:
        return ""
    # As a picture of its own: the style rules of one SVG would reach the others on the page.
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    image = f'<img alt="The network, part by part" src="data:image/svg+xml;base64,{data}">'
    return _section(
        "Network",
        f'<div class="network" tabindex="0" role="region" aria-label="Network">{image}</div>',
        "From a picture to the logits: what each part makes, holds and costs. Scroll to see all; "
        "<code>jgraph draw</code> makes a page whose parts open.",
    )


def _set_phrase(name: str) -> str:
    return _SET_PHRASES.get(name, f"on {name}")


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(score: Score) -> str:
    low, high = score.interval
    return f"{low:.2f}-{high:.2f}"


def _track(score: Score) -> str:
    """Return accuracy, interval and baseline drawn from 0 to 1; the text beside it says all."""
    low, high = score.interval
    ticks = "".join(
        f'<i class="tick" style="left:{25 * i}%"><b>{0.25 * i:g}</b></i>' for i in range(5)
    )
    return (
        '<div class="track" aria-hidden="true"><i class="rail"></i>'
        f'<i class="interval" style="left:{low:.2%};width:{high - low:.2%}"></i>'
        f'<i class="baseline" style="left:{score.baseline:.2%}"></i>'
        f'<i class="point" style="left:{score.accuracy:.2%}"></i>{ticks}</div>'
    )


def _headline(score: Score) -> str:
    return (
        '<section class="headline">'
        f'<p class="figure"><strong>{score.accuracy:.3f}</strong>'
        f"<span>accuracy {escape(_set_phrase(score.name))}</span></p>"
        f"<div>{_track(score)}"
        f'<dl class="key"><div><dt class="is-point">right</dt>'
        f"<dd>{score.correct} of {score.count} pictures</dd></div>"
        f'<div><dt class="is-interval">95 % interval</dt><dd>{_interval(score)}</dd></div>'
        f'<div><dt class="is-baseline">always the most frequent class</dt>'
        f"<dd>{score.baseline:.3f}</dd></div></dl></div></section>"
    )


def _notices(notices: Sequence[str]) -> str:
    if not notices:
        return ""
    items = "".join(f"<li>{escape(notice)}</li>" for notice in notices)
    return f'<section class="notices" aria-label="Notices"><ul>{items}</ul></section>'


def _setup(summary: Sequence[tuple[str, str]], scores: Sequence[Score]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in summary
    )
    table = f'<table class="summary"><tbody>{rows}</tbody></table>' if rows else ""
    if len(scores) > 1:
        table += _all_scores(scores)
    return _section("Run", table) if table else ""


def _all_scores(scores: Sequence[Score]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(score.name)}</th><td>{score.accuracy:.3f}</td>'
        f"<td>{score.correct} of {score.count}</td><td>{_interval(score)}</td>"
        f"<td>{score.baseline:.3f}</td><td>{score.loss:.3g}</td></tr>"
        for score in scores
    )
    heads = ("Set", "Accuracy", "Right", "95 % interval", "Most frequent class", "Loss")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return _scrolling(
        "Scores of every set",
        f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>',
    )


def _scrolling(label: str, body: str) -> str:
    # Focusable, so that it scrolls by keyboard on a narrow page.
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{body}</div>'


def _curves(curves: Sequence[CurveRow]) -> str:
    panels = []
    for stage, name, x_name in _STAGES:
        rows = [row for row in curves if row.stage == stage]
        if not rows:
            continue
        loss = _training_and_held_out(rows, 0)
        accuracy = _training_and_held_out(rows, 1)
        panels.append(_panel(f"{name}: loss", line_chart("Loss in nats", x_name, loss)))
        chart = line_chart("Accuracy", x_name, accuracy, proportion=True)
        panels.append(_panel(f"{name}: accuracy", chart))
    if not panels:
        return ""
    legend = '<span class="swatch training">training pictures</span>'
    if any(row.held_out_loss is not None for row in curves):
        legend += ' <span class="swatch held-out">held-out pictures</span>'
    return _section("Curves", f'<div class="panels">{"".join(panels)}</div>', legend)


def _training_and_held_out(rows: Sequence[CurveRow], which: int) -> list[Series]:
    """Return the two lines of the loss (`which` 0) or of the accuracy (1)."""
    training, held_out = [], []
    for row in rows:
        training.append((row.epoch, float((row.train_loss, row.train_accuracy)[which])))
        measured = (row.held_out_loss, row.held_out_accuracy)[which]
        if measured is not None:
            held_out.append((row.epoch, float(measured)))
    return [
        Series("training", "training", tuple(training)),
        Series("held out", "held-out", tuple(held_out)),
    ]


def _panel(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _confusions(score: Score) -> str:
    counts, totals = score.confusion, score.confusion.sum(1)
    shown = np.arange(len(score.class_names))
    lead = (
        "Rows are true classes, columns predicted ones; the numbers count pictures, and a stronger "
        "shade is a larger part of the row."
    )
    if shown.size > _MOST_MATRIX_CLASSES:
        wrong = counts.sum(0) + totals - 2 * counts.diagonal()
        shown = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_MATRIX_CLASSES])
        lead += (
            f" Of {len(score.class_names)} classes, the {_MOST_MATRIX_CLASSES} with the most "
            "mistakes are shown."
        )
    names = [score.class_names[i] for i in shown]
    matrix = confusion_matrix(names, counts[np.ix_(shown, shown)], totals[shown])
    body = (
        f'<div class="confusions">{_scrolling("Confusion matrix", matrix)}{_confused(score)}</div>'
    )
    return _section("Confusion matrix", body, lead)


def _confused(score: Score) -> str:
    mistakes = score.confusion.copy()
    totals = mistakes.sum(1)
    np.fill_diagonal(mistakes, 0)
    pairs = sorted(np.argwhere(mistakes).tolist(), key=lambda pair: -mistakes[tuple(pair)])
    if not pairs:
        return '<p class="empty">No picture was given a wrong class.</p>'
    rows = "".join(
        f"<tr><td>{escape(score.class_names[i])}</td><td>{escape(score.class_names[j])}</td>"
        f"<td>{mistakes[i, j]} of {totals[i]}</td></tr>"
        for i, j in pairs[:_MOST_CONFUSIONS]
    )
    return (
        '<table class="confused"><caption>Most frequent confusions</caption><thead><tr>'
        '<th scope="col">True</th><th scope="col">Called</th><th scope="col">Pictures</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _classes(score: Score) -> str:
    confusion, recall, precision = score.confusion, score.recall, score.precision
    totals, called = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    rows = []
    for i, name in enumerate(score.class_names):
        both = totals[i] + called[i]
        f1 = 2 * int(confusion[i, i]) / both if both else None
        cells = "".join(
            f'<td style="--part:{value or 0:.3f}">{_rate(value)}</td>'
            for value in (recall[name], precision[name], f1)
        )
        row = f'<tr><th scope="row">{escape(name)}</th><td>{totals[i]}</td>{cells}</tr>'
        rows.append((2.0 if f1 is None else f1, i, row))
    heads = ("Class", "Pictures", "Recall", "Precision", "F1")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    table = (
        f'<table class="figures classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(row for _, _, row in sorted(rows))}</tbody></table>"
    )
    return _section("Classes", _scrolling("Figures of each class", table), "Lowest F1 first.")


def _choose(score: Score) -> tuple[list[int], list[int], list[int]]:
    """Return the rows to show: confident mistakes, uncertain right ones, confident right ones."""
    confidence = score.probabilities.max(-1)
    right = score.predictions == score.labels
    mistakes = np.flatnonzero(~right)
    mistakes = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:_MOST_MISTAKES]
    rest = np.flatnonzero(right)
    rest = rest[np.argsort(confidence[rest], kind="stable")]
    uncertain = rest[: (_MOST_PICTURES - mistakes.size) // 2]
    left = _MOST_PICTURES - mistakes.size - uncertain.size
    # The surer half in the order of the rows, which is that of the classes: evenly over all.
    sure = np.sort(rest[max(uncertain.size, rest.size // 2) :])
    if sure.size > left:
        sure = sure[np.linspace(0, sure.size - 1, left).round().astype(int)]
    return mistakes.tolist(), uncertain.tolist(), sure.tolist()


def _pictures(score: Score, files: Sequence[Path]) -> str:
    mistakes, uncertain, sure = _choose(score)
    wrong = score.count - score.correct
    groups = (
        ("Mistakes, the most confident first", mistakes, wrong),
        ("Right, the least certain first", uncertain, score.correct),
        ("Right and certain, a sample", sure, score.correct),
    )
    parts = []
    for heading, rows, total in groups:
        if rows:
            items = "".join(_picture(score, row, files[row]) for row in rows)
            parts.append(
                f'<h3>{heading} <span class="count">{len(rows)} of {total}</span></h3>'
                f'<ul class="pictures">{items}</ul>'
            )
    lead = "Under each picture: the predicted class with its probability, and the file."
    return _section("Pictures", "".join(parts), lead)


def _picture(score: Score, row: int, file: Path) -> str:
    true = score.class_names[int(score.labels[row])]
    called = score.class_names[int(score.predictions[row])]
    probability = float(score.probabilities[row].max())
    figure = f"{probability:.3f}" if probability < 0.9995 else ">0.999"
    name = "/".join(file.parts[-2:])
    kind = "right" if true == called else "wrong"
    verdict = "is that" if kind == "right" else f"is {true}"
    alt = f"{name}: called {called} with probability {figure}, {verdict}"
    second = "" if kind == "right" else f'<span class="true">is {escape(true)}</span>'
    return (
        f'<li class="{kind}">{_thumbnail(file, alt)}'
        f'<span class="called"><span>{escape(called)}</span> <b>{escape(figure)}</b></span>'
        f'<span class="bar" style="--part:{probability:.3f}"></span>{second}'
        f'<span class="file">{escape(name)}</span></li>'
    )


def _thumbnail(file: Path, alt: str) -> str:
    try:
        pixels = decode_picture(file, _THUMBNAIL)
    except PictureError:
        return f'<div class="missing" role="img" aria-label="{escape(alt)}">cannot be read</div>'
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=82, optimize=True)
    data = base64.b64encode(jpeg.getvalue()).decode("ascii")
    return (
        f'<img width="{_SIDE}" height="{_SIDE}" alt="{escape(alt)}" '
        f'src="data:image/jpeg;base64,{data}">'
    )


def _next(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    items = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in commands)
    return _section("Next", items, "A click selects a whole command.")
