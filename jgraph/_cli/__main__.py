"""`python -m jgraph._cli`: the `jgraph` command without its script."""

from jgraph._cli._main import main

raise SystemExit(main())
