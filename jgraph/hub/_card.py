"""The card of a module, README.md: what it is, what it takes and how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_CARD = """\
# {name}

A jgraph module: {count} weights, {size:.1f} MB. It runs and trains without its source.

| Signature | Takes | Gives | Differs in training |
| --- | --- | --- | --- |
{signatures}

{labels}## Use

```python
import jgraph as jg

module = jg.hub.load({name!r})
outputs = module({example})
layer = module.as_nnx({first!r}, trainable=True)  # inside any Flax NNX model
```

## Licence

{licence}
"""


def card(name: str, manifest: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    """Return the Markdown text of a module's card."""
    signatures = manifest["signatures"]
    first = next(iter(signatures))
    rows = [
        f"| {key} | {_arrays(entry['inputs'])} | {_arrays(entry['outputs'])} | "
        f"{'yes' if 'train' in entry else 'no'} |"
        for key, entry in signatures.items()
    ]
    labels = manifest["labels"]
    names = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    licence = [f"- {part}: {text}" for part, text in manifest["licence"].items()]
    return _CARD.format(
        name=name,
        count=f"{sum(w.size for w in weights.values()):,}",
        size=sum(w.nbytes for w in weights.values()) / 1e6,
        signatures="\n".join(rows),
        labels=f"Classes: {' '.join(names.split())}.\n\n" if labels else "",
        example='["picture.jpg"]'
        if manifest["preprocess"]
        else ", ".join(signatures[first]["inputs"]),
        first=first,
        licence="\n".join(licence) or "Not stated: ask its publisher.",
    )


def _arrays(specs: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: {spec['dtype']}[{', '.join(map(str, spec['shape']))}]"
        for name, spec in specs.items()
    )
