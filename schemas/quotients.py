"""Divisions whose quotient is the double nearest to the true one (IEEE 754), as SQL promises and polars by itself doesn't.

polars multiplies by the reciprocal of a constant divisor, so that `FLOOR(ts / 3600000)` is an hour late at the hour, and gives
a decimal of six or seven digits where one side is a number written with a point (`clicks / 0.3`). Both are avoided in the text
it reads: such numbers become doubles, and a constant divisor is multiplied by a column of ones, so that it is no constant.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

ONE = "=1"
"""A column that no log has, 1.0 (float64) in every row."""

_PLAIN = (exp.Literal, exp.Neg, exp.Paren, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)


def rewritten(tree: exp.Expr) -> Iterator[tuple[exp.Literal, str]]:
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
