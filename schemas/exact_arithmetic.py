"""Arithmetic of SQL expressions that gives what it says, where polars by itself doesn't.

- polars multiplies by the reciprocal of a constant divisor, so that `FLOOR(ts / 3600000)` is an hour late at the hour, and gives a
  decimal of six or seven digits where one side is a number written with a point (`clicks / 0.3`). In the text that it reads such numbers
  are doubles, and a constant divisor is multiplied by a column of ones, so that it is no constant: quotients are the nearest double.
- It counts in unsigned 32 bits: `ARRAY_LENGTH(tags) - 1` of an empty list is 4294967295. Counts become 64-bit numbers.
- It computes in the columns' own type: `price_cents * quantity` of two int32 columns wraps. Where `computes`, whoever evaluates gives whole
  numbers as 128 bits, and narrows the value with a check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlglot import exp
from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]

ONE = "=1"
"""A column that no log has, 1.0 (float64) in every row."""

COUNTS = ("LENGTH", "ARRAY_LENGTH", "STRPOS")
"""Functions that count."""

_PLAIN = (exp.Literal, exp.Neg, exp.Paren, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)


def replacements(tree: exp.Expr, counts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, str]]:
    """(start, end, what stands there) of the text; what is inserted has start = end.

    Args:
        counts: (start, end) of the calls that count.
    """
    for start, end in counts:
        yield start, start, "CAST("
        yield end, end, " AS BIGINT)"
    for literal, text in _quotients(tree):
        yield literal.meta["start"], literal.meta["end"] + 1, text


def counts(tokens: Iterable[Token]) -> Iterator[tuple[int, int]]:
    """(start, end) in the text of every call of a function that counts, its parentheses included."""
    open_: list[int | None] = []
    before: Token | None = None
    for token in tokens:
        if token.token_type is TokenType.L_PAREN:
            called = before is not None and before.text.upper() in COUNTS and before.token_type is not TokenType.STRING
            open_.append(before.start if before and called else None)
        elif token.token_type is TokenType.R_PAREN:
            start = open_.pop()
            if start is not None:
                yield start, token.end + 1
        before = token


def computes(tree: exp.Expr) -> bool:
    """Whether it computes with numbers, so that a value may lie beyond its operands' type."""
    return any(tree.find_all(exp.Add, exp.Sub, exp.Mul, exp.Neg)) or any(
        call.name.upper() == "POWER" for call in tree.find_all(exp.Anonymous)
    )


def _quotients(tree: exp.Expr) -> Iterator[tuple[exp.Literal, str]]:
    """(number, what stands for it) of every number of a division that is to be written otherwise, each once."""
    divisors = {id(literal): literal for literal in constant_divisors(tree)}
    for literal in divisors.values():
        yield literal, f'(CAST({literal.this} AS DOUBLE) * "{ONE}")'
    pointed = {id(n): n for division in tree.find_all(exp.Div) for n in _numbers(division) if not n.this.isdigit()}
    for key in pointed.keys() - divisors.keys():
        yield pointed[key], f"CAST({pointed[key].this} AS DOUBLE)"


def constant_divisors(tree: exp.Expr) -> Iterator[exp.Literal]:
    """Numbers of divisors that read no column and call no function; of nested ones more than once."""
    for division in tree.find_all(exp.Div):
        if all(isinstance(node, _PLAIN) for node in division.expression.walk()):
            yield from _numbers(division.expression)


def _numbers(tree: exp.Expr) -> Iterator[exp.Literal]:
    return (literal for literal in tree.find_all(exp.Literal) if not literal.is_string)
