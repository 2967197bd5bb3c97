"""What docs/debugging.md says holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "debugging.md").read_text("utf-8")


def test_its_programs_run() -> None:
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert programs
    for program in programs:
        names: dict[str, object] = {"__name__": "page"}
        exec(compile(program, "debugging.md", "exec"), names)
        assert "gradient" in names


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


def test_it_names_what_f5_offers() -> None:
    launch = (ROOT / ".vscode" / "launch.json").read_text()
    found = json.loads(re.sub(r"^\s*//.*$", "", launch, flags=re.MULTILINE))
    offered = [configuration["name"] for configuration in found["configurations"]]
    assert re.findall(r"^- \*\*(Run .*?)\*\*", TEXT, re.MULTILINE) == offered
