"""The commands on modules: hub publish, info, pull, push, cache."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jgraph._cli._graphs import shown_size
from jgraph._cli._parser import Parser, add_run_folder, number
from jgraph._errors import InputError
from jgraph._suggest import did_you_mean

HUB = """\
  jgraph hub publish runs/latest pets.zip    a run as a module that needs no jgraph networks
  jgraph hub info efficientnet_lite0         what does a module take and give?
  jgraph hub pull hf:owner/name my-module    a copy in a folder
  jgraph hub push my-module hf:owner/name    a copy for others
  jgraph hub cache                           what was fetched, and when it was last used"""
PUBLISH = """\
  jgraph hub publish runs/latest pets
  jgraph hub publish runs/latest pets.zip
  jgraph hub publish runs/latest hf:owner/pets --licence Apache-2.0"""
INFO = """\
  jgraph hub info efficientnet_lite0
  jgraph hub info pets.zip --json"""
PULL = "  jgraph hub pull hf:owner/name@main my-module"
PUSH = """\
  jgraph hub push pets pets.tar.gz
  jgraph hub push pets hf:owner/pets
  jgraph hub push pets s3://bucket/pets"""
CACHE = """\
  jgraph hub cache
  jgraph hub cache --prune 30
  jgraph hub cache --remove hf:owner/name
  jgraph hub cache --all"""

_HANDLE = (
    "a path, pkg:PACKAGE/FILE, https://…#sha256=…, hf:OWNER/NAME@REVISION, or a network's name"
)
_DEST = "a folder, an archive (.zip, .tar, .tar.gz), hf:OWNER/NAME, or a URL such as s3://…"
_DAY = 86400.0


def add_hub(commands: Any) -> Parser:
    """Add `jgraph hub` and its commands."""
    parser = commands.add_parser(
        "hub",
        examples=HUB,
        help="publish, fetch and look at modules",
        description="Publish, fetch and look at modules: networks that run without their source.",
    )
    parser.set_defaults(
        run=lambda args: parser.error(f"name a command: {', '.join(parts.choices)}")
    )
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    publish = _add(parts, "publish", PUBLISH, "make a module of a run", _publish)
    add_run_folder(publish)
    publish.add_argument("destination", metavar="DEST", help=_DEST)
    publish.add_argument("--licence", metavar="TEXT", help="what others may do with it")

    info = _add(parts, "info", INFO, "say what a module takes and gives", _info)
    info.add_argument("handle", metavar="HANDLE", help=_HANDLE)
    info.add_argument("--json", action="store_true", help="print JSON")

    pull = _add(parts, "pull", PULL, "copy a module into a folder", _pull)
    pull.add_argument("handle", metavar="HANDLE", help=f"{_HANDLE}; or a URL such as s3://…")
    pull.add_argument("folder", metavar="DIR", help="the folder to write")

    push = _add(parts, "push", PUSH, "copy a module to where others find it", _push)
    push.add_argument("handle", metavar="DIR", help="a module's folder, or any handle")
    push.add_argument("destination", metavar="DEST", help=_DEST)

    cache = _add(parts, "cache", CACHE, "list and prune what was fetched", _cache)
    which = cache.add_mutually_exclusive_group()
    which.add_argument(
        "--prune", type=number, metavar="DAYS", help="remove what wasn't used for so long"
    )
    which.add_argument("--remove", metavar="HANDLE", help="remove one")
    which.add_argument("--all", action="store_true", help="remove everything")
    return parser


def _add(parts: Any, name: str, examples: str, text: str, run: Any) -> Parser:
    parser = parts.add_parser(
        name, examples=examples, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def _publish(args: argparse.Namespace) -> int:
    from jgraph import hub
    from jgraph._cache import enable_compilation_cache
    from jgraph._finetune import load_run

    enable_compilation_cache()
    run = load_run(args.run_folder)
    manifest, _ = hub.read_module(run.folder)
    licence = {**manifest.get("licence", {})}
    if args.licence:
        licence["module"] = args.licence
    with tempfile.TemporaryDirectory() as place:
        name = Path(args.destination.rstrip("/")).name.split(".")[0] or "module"
        folder = hub.publish(
            Path(place) / name,
            run.model,
            signatures={"default": "__call__", "features": "features", "logits": "__call__"},
            licence=licence,
            provenance={**manifest.get("provenance", {}), "run": manifest["sha256"]},
        )
        _say_where(hub.push(folder, args.destination))
    return 0


def _info(args: argparse.Namespace) -> int:
    from jgraph import hub

    module = hub.load(args.handle)
    manifest = module.manifest
    if args.json:
        kept = ("signatures", "labels", "preprocess", "licence", "provenance", "made_with")
        facts = {"handle": args.handle, "folder": str(module.folder), "sha256": manifest["sha256"]}
        print(json.dumps({**facts, **{key: manifest.get(key) for key in kept}}, indent=1))
        return 0
    weights = module.weights.values()
    size = shown_size(sum(x.nbytes for x in weights))
    labels = ", ".join(module.labels[:8])
    more = f" and {len(module.labels) - 8} more" if len(module.labels) > 8 else ""
    rows = {
        "module": module.folder,
        "weights": f"{sum(x.size for x in weights):,}, {size}",
        "classes": f"{labels}{more}" or "none",
        "licence": "; ".join(f"{k}: {v}" for k, v in manifest.get("licence", {}).items())
        or "not stated",
        "from": json.dumps(manifest.get("provenance", {})),
        "made with": ", ".join(f"{k} {v}" for k, v in manifest.get("made_with", {}).items()),
        "SHA-256": manifest["sha256"],
    }
    for name, value in rows.items():
        print(f"{name:10}{_plain(str(value))}")
    for name, entry in manifest["signatures"].items():
        trains = ", differs in training" if "train" in entry else ""
        print(f"\n{_plain(name)}{trains}")
        for part in ("inputs", "outputs"):
            for key, spec in entry[part].items():
                shape = ", ".join(map(str, spec["shape"]))
                print(_plain(f"  {part[:-1]:8}{key}: {spec['dtype']}[{shape}]"))
    return 0


def _pull(args: argparse.Namespace) -> int:
    from jgraph import hub

    print(hub.pull(args.handle, args.folder))
    return 0


def _push(args: argparse.Namespace) -> int:
    from jgraph import hub

    _say_where(hub.push(args.handle, args.destination))
    return 0


def _cache(args: argparse.Namespace) -> int:
    from jgraph._handles import Cache

    cache = Cache()
    entries = cache.entries()
    if args.prune is None and not args.remove and not args.all:
        for entry in entries:
            used = time.strftime("%Y-%m-%d", time.localtime(entry.used))
            print(_plain(f"{shown_size(entry.bytes):>8}  {used}  {entry.handle}"))
        total = shown_size(sum(entry.bytes for entry in entries))
        print(f"{len(entries)} modules, {total}, in {cache.folder}")
        return 0
    days = args.prune or 0.0
    if days < 0:
        raise InputError(f"DAYS must be at least 0, got {days:g}")
    gone = [entry for entry in entries if entry.used <= time.time() - _DAY * days]
    if args.remove:
        gone = [entry for entry in entries if _names(args.remove, entry.handle)]
        if not gone:
            handles = [entry.handle for entry in entries]
            raise InputError(
                f"{args.remove!r} isn't in the cache {cache.folder}"
                f"{did_you_mean(args.remove, handles)}"
            )
    for entry in gone:
        cache.remove(entry)
    freed = sum(entry.bytes for entry in gone)
    if not args.remove:
        freed += cache.remove_unfinished(_DAY * days)
    print(f"removed {len(gone)} modules, {shown_size(freed)}")
    return 0


def _names(handle: str, entry: str) -> bool:
    """Return whether a handle names an entry; a revision or a hash may be left out."""
    return entry == handle or entry.startswith((f"{handle}@", f"{handle}#"))


def _say_where(place: str) -> None:
    print(place)
    path = Path(place)
    if path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"where it is served, it is loaded by https://…#sha256={digest}", file=sys.stderr)


def _plain(text: str) -> str:
    """Return a text without what would steer the terminal: it may be anybody's."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
