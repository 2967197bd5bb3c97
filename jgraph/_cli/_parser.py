"""A parser whose help opens with examples, and the options that commands share."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from jgraph._errors import InputError


class Parser(argparse.ArgumentParser):
    """Help that opens with examples, errors in one sentence."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.examples = examples

    def format_help(self) -> str:
        return f"Examples:\n{self.examples}\n\n{super().format_help()}"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    @property
    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def add_run_folder(parser: Parser) -> None:
    """Add the argument RUN."""
    parser.add_argument("run_folder", metavar="RUN", help="a run folder, such as runs/latest")
