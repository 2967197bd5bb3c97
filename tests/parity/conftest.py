"""Recipes need the reference libraries, which are in no extra of jgraph: they are not collected."""

collect_ignore_glob = ["make_*.py"]
