"""The model card: README.md of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from jgraph._finetune._score import Score

_SETS = {
    "test": "the test pictures, which took no part in training",
    "val": "the validation pictures, which were not trained on",
    "held-out": "pictures held out of the data, which were not trained on",
    "cross-validated": "the training pictures, each judged by a model that had not seen it",
}

_CARD = """\
# {title}

A picture classifier for {classes}, made with jgraph.

| | |
| --- | --- |
{summary}

## Accuracy

{scores}

Intervals are 95 % (Wilson). The baseline names the most frequent class every time. The figures
hold for pictures like these; on other pictures they may be far worse. `split.json` lists which
picture was used for what.

## Use

On the command line:

```bash
{command}
```

In Python:

```python
import jgraph as jg

run = jg.load_run({folder!r})
for prediction in run.predict({picture!r}):
    print(prediction.source, prediction.label, f"{{prediction.probability:.3f}}")
```

## Licence

The backbone's weights: {licence}.
What you may do with this model depends on them and on the licence of the pictures it was trained
on.
"""


def card(
    folder: Path,
    summary: Sequence[tuple[str, str]],
    scores: Sequence[Score],
    picture: Path,
    licence: str,
) -> str:
    """Return the Markdown text of a run's card.

    Args:
        folder: where the run will lie.
        summary: what was done, as rows of name and value.
        scores: the headline first.
        picture: an example for the snippets.
        licence: of the backbone's weights.
    """
    names = scores[0].class_names
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    lines = []
    for score in scores:
        lines.append(
            f"- **{score}** on {_SETS[score.name]} ({score.name}); baseline {score.baseline:.3f}"
        )
    lines.append("")
    lines += ["| class | pictures | recall | precision |", "| --- | --- | --- | --- |"]
    totals = scores[0].confusion.sum(1)
    recall, precision = scores[0].recall, scores[0].precision
    for name, total in zip(names, totals.tolist(), strict=True):
        rates = f"{_rate(recall[name])} | {_rate(precision[name])}"
        lines.append(f"| {_cell(name)} | {total} | {rates} |")
    return _CARD.format(
        title=_cell(folder.name),
        classes=_cell(shown),
        summary="\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in summary),
        scores="\n".join(lines),
        command=shlex.join(["jgraph", "predict", str(folder), str(picture)]),
        folder=str(folder),
        picture=str(picture),
        licence=licence,
    )


def _cell(text: str) -> str:
    return re.sub(r"([|<`*\[\]])", r"\\\1", " ".join(text.split()))


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
