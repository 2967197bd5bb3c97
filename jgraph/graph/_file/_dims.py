"""Sizes of arrays in a graph file: whole numbers, or expressions of symbols such as `2*b + 1`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.core
import jax.export

from jgraph._errors import GraphFormatError

Dim: TypeAlias = int | str
"""As it is in the file."""

_MAX_LENGTH = 300
_MAX_SIZE = 1 << 40
_MAX_NESTED = 20
_MAX_TERMS = 64
_TOKEN = re.compile(r"\s*(\d{1,13}|[A-Za-z_]\w{0,30}|[()+\-*,^])", re.ASCII)
_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": jax.core.max_dim,
    "min": jax.core.min_dim,
}


def write_dim(size: Any) -> Dim:
    """Return a size as it is in the file.

    Example:
        >>> b, = jax.export.symbolic_shape("b")
        >>> write_dim(2 * b + 1)
        '2*b + 1'
    """
    return str(size) if jax.export.is_symbolic_dim(size) else int(size)


def check_dim(size: Any, where: str) -> None:
    """Raise where a size in a file isn't one.

    Raises:
        GraphFormatError: it says where.
    """
    if isinstance(size, str):
        symbols_of(size, where)
    elif isinstance(size, bool) or not isinstance(size, int) or not -_MAX_SIZE <= size <= _MAX_SIZE:
        raise GraphFormatError(
            f"{where} must be a size or an expression of sizes, got {size!r:.40}"
        )


def symbols_of(expression: str, where: str) -> set[str]:
    """Return the symbols of an expression.

    Raises:
        GraphFormatError: it is none.
    """
    found: set[str] = set()

    class Symbols(dict[str, _Extent]):
        def __missing__(self, name: str) -> _Extent:
            found.add(name)
            return _Extent(1, 1)

    _Parser(expression, Symbols(), where, dry=True).parse()
    return found


def evaluate(size: Dim, symbols: Mapping[str, Any], where: str) -> Any:
    """Return a size for these values of the symbols, numbers or symbolic sizes of JAX.

    Raises:
        GraphFormatError: it is no expression, or has another symbol.

    Example:
        >>> evaluate("floordiv(h, 2) - 1", {"h": 10}, "x")
        4
    """
    return size if isinstance(size, int) else _Parser(size, symbols, where).parse()


def solve(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the symbols of expressions that have these values, as far as one tells the next.

    Values may be symbolic, too: a graph that is traced again with open sizes.

    An expression tells the only symbol in it that isn't known if it grows with it evenly.

    Example:
        >>> solve({"a + b": 5, "2*a": 4, "mod(c, 2)": 1})
        {'a': 2, 'b': 3}
    """
    known: dict[str, Any] = {}
    waiting = {size: symbols_of(size, "a size") for size in values}
    before = -1
    while before < len(known):
        before = len(known)
        for size, symbols in list(waiting.items()):
            unknown = symbols - known.keys()
            if len(unknown) > 1:
                continue
            del waiting[size]
            for name in unknown:
                start, slope = _line(size, name, known)
                if slope:
                    known[name] = (values[size] - start) // slope
    return known


def _line(size: str, name: str, known: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return an expression's value where a symbol is 0, and how it grows; 0 where not evenly."""
    at = {i: evaluate(size, {**known, name: i}, "a size") for i in (0, 1, 2, 7, 1_000_003)}
    start, slope = at[0], at[1] - at[0]
    return start, slope if all(x == start + i * slope for i, x in at.items()) else 0


class _Extent(NamedTuple):
    """Stands for a value in a dry run: at most so many terms, each of so many factors."""

    terms: int
    factors: int

    def plus(self, other: _Extent) -> _Extent:
        return _Extent(self.terms + other.terms, max(self.factors, other.factors))

    def times(self, other: _Extent) -> _Extent:
        return _Extent(self.terms * other.terms, self.factors + other.factors)


class _Parser:
    """Evaluates an expression while reading it; there is no other code in it than this."""

    def __init__(
        self, text: str, symbols: Mapping[str, Any], where: str, *, dry: bool = False
    ) -> None:
        self._text, self._symbols, self._where, self._dry = text, symbols, where, dry
        self._tokens = self._split()
        self._at = self._nested = 0

    def parse(self) -> Any:
        value = self._sum()
        if self._at != len(self._tokens):
            raise self._error()
        return value

    def _split(self) -> list[str]:
        tokens, at = [], 0
        while at < len(self._text) and len(self._text) <= _MAX_LENGTH:
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise self._error()
            tokens.append(match[1])
            at = match.end()
        if not tokens:
            raise self._error()
        return tokens

    def _sum(self) -> Any:
        value = self._product()
        while self._peek() in ("+", "-"):
            sign = self._take()
            other = self._product()
            if self._dry:
                value = self._small(value.plus(other))
            else:
                value = value + other if sign == "+" else value - other
        return value

    def _product(self) -> Any:
        value = self._power()
        while self._peek() == "*":
            self._take()
            other = self._power()
            value = self._small(value.times(other)) if self._dry else value * other
        return value

    def _power(self) -> Any:
        value = self._atom()
        if self._peek() == "^":
            self._take()
            exponent = self._take()
            if not (exponent.isdigit() and int(exponent) <= 8):
                raise self._error()
            if not self._dry:
                return value ** int(exponent)
            value = self._small(
                _Extent(value.terms ** int(exponent), value.factors * int(exponent))
            )
        return value

    def _atom(self) -> Any:
        token = self._take()
        if token.isdigit():
            return _Extent(1, 1) if self._dry else int(token)
        if token in ("-", "("):
            self._nested += 1
            if self._nested > _MAX_NESTED:
                raise self._error()
            value = self._power() if token == "-" else self._sum()
            self._nested -= 1
            if token == "(":
                self._expect(")")
                return value
            return value if self._dry else -value
        if token in _CALLS and self._peek() == "(":
            return self._call(_CALLS[token])
        if token.isidentifier():
            try:
                return self._symbols[token]
            except KeyError:
                raise GraphFormatError(
                    f"{self._where} has the size {self._text!r}, and no input has the symbol "
                    f"{token!r}"
                ) from None
        raise self._error()

    def _call(self, function: Callable[[Any, Any], Any]) -> Any:
        self._expect("(")
        self._nested += 1
        if self._nested > _MAX_NESTED:
            raise self._error()
        first = self._sum()
        self._expect(",")
        second = self._sum()
        self._expect(")")
        self._nested -= 1
        if self._dry:
            return self._small(first.plus(second))
        try:
            return function(first, second)
        except ZeroDivisionError:
            raise self._error() from None

    def _small(self, value: _Extent) -> _Extent:
        if value.terms > _MAX_TERMS or value.factors > _MAX_TERMS:
            raise self._error()
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self) -> str:
        token = self._peek()
        if token is None:
            raise self._error()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise self._error()

    def _error(self) -> GraphFormatError:
        return GraphFormatError(
            f"{self._where} must be a size or an expression of sizes such as '2*b + 1', got "
            f"{self._text!r:.60}"
        )
