"""The picture as one page: every module opens, nothing is loaded from anywhere."""

from __future__ import annotations

import importlib.resources
import json
import math
import re
from typing import Any

from jgraph.graph._picture._svg import escape, inside
from jgraph.graph._picture._text import table
from jgraph.graph._picture._theme import heat_labels
from jgraph.graph._picture._view import View, heat_scale, summary
from jgraph.graph._picture._words import percent, si

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def page(root: View, title: str) -> str:
    """Return the page of a tree.

    Args:
        root: the tree's view.
        title: written above it.

    Returns:
        An HTML document without outside references.
    """
    hottest = heat_scale(root)
    low, _, high = heat_labels(hottest)
    template = (
        importlib.resources.files("jgraph.graph._picture").joinpath("page.html").read_text("utf-8")
    )
    words = {
        "title": escape(title),
        "summary": escape(summary(root)),
        "low": low,
        "high": high,
        "text": escape(table(root)),
        "tree": _json(_entry(root, hottest)),
    }
    return _SLOT.sub(lambda match: words[match[1]], template)


def _json(value: Any) -> str:
    """Return JSON that no text in it can end, or turn into a tag or comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _entry(view: View, hottest: float) -> dict[str, Any]:
    node, source = view.node, view.source
    return {
        "kind": node.kind,
        "title": node.title,
        "path": ".".join(node.scope) if node.kind == "module" else node.title,
        "copies": node.copies,
        "phrase": node.phrase,
        "inside": node.phrase or inside(view),
        "facts": view.facts,
        "badge": view.badge,
        "share": percent(view.share) if node.kind not in ("input", "output") else "",
        "heat": round(math.sqrt(min(1.0, view.share / hottest)), 4),
        "shape": view.shape,
        "cost": si(view.flops, "FLOP") if view.flops else "",
        "forward": _each(node.forward, node.copies),
        "backward": _each(node.backward, node.copies),
        "params": view.params,
        "source": source[0] if source else "",
        "full": source[1] if source else "",
        "ops": view.details(),
        "rows": view.rows,
        "lines": [[e.source, e.target, e.shapes, e.lane, e.turn] for e in view.lines],
        "lanes": view.lanes,
        "open": view.is_open,
        "children": [_entry(child, hottest) for child in view.children],
    }


def _each(flops: int, copies: int) -> str:
    if not flops:
        return ""
    return si(flops, "FLOP") + (" each" if copies > 1 else "")
