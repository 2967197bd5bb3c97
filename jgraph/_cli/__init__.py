"""The `jgraph` command."""

from jgraph._cli._main import main as main
