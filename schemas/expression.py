"""SQL expressions over one row: parsed, typed and checked when they are declared, not when a day is built.

The builder evaluates them with polars' SQL on both engines, so what is accepted here is the row-wise part of what polars
supports: comparisons, arithmetic, CASE, CAST, IN, LIKE, BETWEEN, IS NULL and the functions of `FUNCTIONS`. Aggregates, windows,
subqueries and anything that depends on the clock or on chance are refused: a sample must be rebuildable.

A reference is `column` or `snapshot.column`. A timestamp column reads as int64 epoch ms. Comparisons with null are null, and a
null condition counts as false.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser as BaseParser
from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]

from genrank.schemas import exact_arithmetic
from genrank.schemas.base import ColumnType

Kind = Literal["bool", "int", "float", "string", "list<int>", "list<float>", "list<string>", "null"]
"""The type of a value while it is computed; `null` is the literal NULL, which fits every type."""

KINDS: dict[ColumnType, Kind] = {
    "bool": "bool",
    "int32": "int",
    "int64": "int",
    "float32": "float",
    "float64": "float",
    "string": "string",
    "timestamp": "int",
    "list<int64>": "list<int>",
    "list<float32>": "list<float>",
    "list<string>": "list<string>",
}

FUNCTIONS: dict[str, tuple[str, str]] = {
    # name: (parameters, result). `number` is int or float; `same` the type of the first argument, or what all of them
    # unify to; `?` may be left out; `...` repeats.
    "ABS": ("number", "same"),
    "ARRAY_CONTAINS": ("list element", "bool"),
    "ARRAY_LENGTH": ("list", "int"),
    "ARRAY_TO_STRING": ("list<string> string", "string"),
    "ARRAY_UNIQUE": ("list", "same"),
    "CEIL": ("number", "same"),
    "COALESCE": ("any any...", "same"),
    "CONCAT": ("string string...", "string"),
    "ENDS_WITH": ("string string", "bool"),
    "EXP": ("number", "float"),
    "FLOOR": ("number", "same"),
    "GREATEST": ("number number...", "same"),
    "IF": ("bool any any", "branches"),
    "IFNULL": ("any any", "same"),
    "LEAST": ("number number...", "same"),
    "LEFT": ("string int", "string"),
    "LENGTH": ("string", "int"),
    "LN": ("number", "float"),
    "LOG10": ("number", "float"),
    "LOG1P": ("number", "float"),
    "LOG2": ("number", "float"),
    "LOWER": ("string", "string"),
    "LTRIM": ("string", "string"),
    "MOD": ("number number", "same"),
    "NULLIF": ("any any", "same"),
    "POWER": ("number number", "float"),
    "REGEXP_LIKE": ("string string", "bool"),
    "REPLACE": ("string string string", "string"),
    "RIGHT": ("string int", "string"),
    "ROUND": ("number int?", "same"),
    "RTRIM": ("string", "string"),
    "SIGN": ("number", "same"),
    "SPLIT_PART": ("string string int", "string"),
    "SQRT": ("number", "float"),
    "STARTS_WITH": ("string string", "bool"),
    "STRING_TO_ARRAY": ("string string", "list<string>"),
    "STRPOS": ("string string", "int"),
    "SUBSTR": ("string int int?", "string"),
    "TRIM": ("string", "string"),
    "UPPER": ("string", "string"),
}

_CASTS: dict[object, Kind] = {
    exp.DataType.Type.BOOLEAN: "bool",
    exp.DataType.Type.SMALLINT: "int",
    exp.DataType.Type.INT: "int",
    exp.DataType.Type.BIGINT: "int",
    exp.DataType.Type.FLOAT: "float",
    exp.DataType.Type.DOUBLE: "float",
    exp.DataType.Type.TEXT: "string",
    exp.DataType.Type.VARCHAR: "string",
}
_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)
_NUMBERS = ("int", "float")


class _RowSql(Dialect):
    """Standard SQL in which every call stays a call by the name it was written with: polars, not sqlglot, gives it meaning."""

    class Parser(BaseParser):
        FUNCTIONS = {}  # noqa: RUF012
        FUNCTION_PARSERS = {  # noqa: RUF012
            name: parser for name, parser in BaseParser.FUNCTION_PARSERS.items() if name in ("CAST", "TRY_CAST")
        }
        NO_PAREN_FUNCTIONS = {}  # noqa: RUF012
        NO_PAREN_FUNCTION_PARSERS = {"CASE": BaseParser.NO_PAREN_FUNCTION_PARSERS["CASE"]}  # noqa: RUF012


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    text: str
    columns: tuple[str, ...]
    """What it reads, each once, in order of appearance: `column` or `snapshot.column`."""
    tree: exp.Expr
    counts: tuple[tuple[int, int], ...] = ()
    """(start, end) in the text of the calls that count."""

    def kind(self, types: Mapping[str, ColumnType]) -> Kind:
        """The type of its value, where `types` gives each column's.

        Raises:
            ValueError: a column that `types` lacks, or an operand of the wrong type; one line.
        """
        return _kind(self.tree, types)

    @property
    def polars(self) -> str:
        """The same text for `polars.sql_expr`: every column quoted, a joined one as `"snapshot.column"`, dot included.

        Arithmetic is written as `exact_arithmetic` says; the caller adds its column `ONE` where `needs_one`.
        """
        replaced = [
            ((c.args["table"] if c.table else c.this).meta["start"], c.this.meta["end"] + 1, f'"{_reference(c)}"')
            for c in _columns(self.tree)
        ]
        pieces, at = [], 0
        for start, end, text in sorted([*replaced, *exact_arithmetic.replacements(self.tree, self.counts)]):
            pieces += [self.text[at:start], text]
            at = end
        return "".join([*pieces, self.text[at:]])

    @property
    def needs_one(self) -> bool:
        """Whether `polars` reads the column `exact_arithmetic.ONE`: 1.0 in every row."""
        return any(True for _ in exact_arithmetic.constant_divisors(self.tree))

    @property
    def computes(self) -> bool:
        """Whether whole numbers are to be given as 128 bits, and the value narrowed with a check."""
        return exact_arithmetic.computes(self.tree)


MOST_LEVELS = 100
"""Of an expression: parentheses within parentheses, and terms of a chain such as `a + b + c`."""
_TOO_DEEP = (
    f"an expression that begins with {{!r}} has more than {MOST_LEVELS} levels; compute it in a column of its own"
)


def parse(text: str) -> Expression:
    """Parse one expression.

    Raises:
        ValueError: it doesn't parse, or holds what can't be evaluated row by row; one line.
    """
    try:
        tokens = _RowSql().tokenize(text)
        _refuse_before_parsing(text, tokens)
        trees = _RowSql().parser().parse(tokens, text)
    except SqlglotError as error:
        detail = getattr(error, "errors", None)
        near = detail[0] if detail else {}
        where = f" near {near['highlight']!r}" if near.get("highlight") else ""
        reason = near.get("description") or str(error).splitlines()[0]
        raise ValueError(f"{text!r} doesn't parse as SQL{where}: {reason.rstrip('.')}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP.format(text[:40])) from None
    if len(trees) != 1 or trees[0] is None:
        raise ValueError(f"{text!r} is not one SQL expression")
    tree = trees[0]
    _refuse_too_deep(tree, text)
    _check_nodes(tree, text)
    read = tuple(dict.fromkeys(_reference(column) for column in _columns(tree)))
    return Expression(text, read, tree, tuple(exact_arithmetic.counts(tokens)))


def columns(text: str) -> tuple[str, ...]:
    """What an expression reads: `column` or `snapshot.column`, each once. ValueError as `parse`."""
    return parse(text).columns


def nearest(name: str, names: Mapping[str, object] | list[str] | tuple[str, ...] | set[str]) -> str:
    """`"; did you mean 'price'?"` where one of `names` is close; else the names, as far as they fit in a line."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # `item.category` for `items.category`, `category` for `items.category`
        tails = {k.rpartition(".")[2]: k for k in known}
        close = [tails[t] for t in difflib.get_close_matches(name.rpartition(".")[2], list(tails), n=1, cutoff=0.8)]
    if close:
        return f"; did you mean {close[0]!r}?"
    if not known:
        return "; there is none"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; there is {shown}"


# ---------------------------------------------------------------------- what may stand in an expression


def _refuse_too_deep(tree: exp.Expr, text: str) -> None:
    """Whoever walks the tree later, polars among them, does so by recursion."""
    level: list[exp.Expr] = [tree]
    for _ in range(MOST_LEVELS):
        level = [child for node in level for child in node.iter_expressions()]
        if not level:
            return
    raise ValueError(_TOO_DEEP.format(text[:40]))


def _refuse_before_parsing(text: str, tokens: list[Token]) -> None:
    if not tokens:
        raise ValueError("an empty text is not a SQL expression")
    for at, token in enumerate(tokens):
        if token.token_type is TokenType.SELECT:
            raise ValueError(f"{text!r} holds a subquery; an expression reads one row: declare a cross feature instead")
        if token.token_type is TokenType.OVER:
            raise ValueError(f"{text!r} holds a window; an expression reads one row: declare a cross feature instead")
        if token.token_type in (TokenType.ISNULL, TokenType.NOTNULL):  # polars takes these words for an alias
            raise ValueError(f"{text!r}: write IS NULL or IS NOT NULL, not {token.text.upper()}")
        called = at + 1 < len(tokens) and tokens[at + 1].token_type is TokenType.L_PAREN
        if called and token.token_type is TokenType.VAR:
            _known_function(token.text.upper(), text)


def _known_function(name: str, text: str) -> None:
    if name in FUNCTIONS or name in ("CAST", "TRY_CAST", "IN"):
        return
    if name in ("SUM", "AVG", "COUNT", "MIN", "MAX", "MEAN", "MEDIAN", "STDDEV", "FIRST", "LAST"):
        raise ValueError(f"{text!r}: {name} reads many rows; an expression reads one: declare a cross feature instead")
    raise ValueError(f"{text!r}: there is no function {name}{nearest(name, FUNCTIONS)}")


_ALLOWED = (
    exp.Column,
    exp.Identifier,
    exp.Literal,
    exp.Boolean,
    exp.Null,
    exp.Paren,
    exp.And,
    exp.Or,
    exp.Not,
    exp.Neg,
    *_COMPARISONS,
    *_ARITHMETIC,
    exp.DPipe,
    exp.Between,
    exp.In,
    exp.Like,
    exp.ILike,
    exp.Is,
    exp.Case,
    exp.If,
    exp.Cast,
    exp.TryCast,
    exp.DataType,
    exp.Bracket,
    exp.Anonymous,
)


def _check_nodes(tree: exp.Expr, text: str) -> None:
    for node in tree.walk():
        if not isinstance(node, _ALLOWED):
            raise ValueError(f"{text!r}: {_written(node)} is not supported; see schemas/expression.py for what is")
        if isinstance(node, exp.Anonymous):
            _known_function(str(node.this).upper(), text)
        if isinstance(node, exp.In) and not node.expressions:
            raise ValueError(f"{text!r}: IN takes a list of values in parentheses")
        if isinstance(node, exp.Column) and (node.args.get("db") or isinstance(node.this, exp.Star)):
            raise ValueError(f"{text!r}: {node.sql()!r} is not a column; write `column` or `snapshot.column`")


def _written(node: exp.Expr) -> str:
    written = node.sql()
    return f"{written!r}" if len(written) < 60 else type(node).__name__


def _columns(tree: exp.Expr) -> list[exp.Column]:
    """Columns by where they stand in the text."""
    return sorted(tree.find_all(exp.Column), key=lambda column: int(column.this.meta["start"]))


def _reference(column: exp.Column) -> str:
    return f"{column.table}.{column.name}" if column.table else column.name


# ---------------------------------------------------------------------- types


def _kind(node: exp.Expr, types: Mapping[str, ColumnType]) -> Kind:
    def kind(child: object) -> Kind:
        return _kind(cast(exp.Expr, child), types)

    if isinstance(node, exp.Column):
        reference = _reference(node)
        if reference not in types:
            raise ValueError(f"column {reference!r} is unknown{nearest(reference, types)}")
        return KINDS[types[reference]]
    if isinstance(node, exp.Literal):
        return "string" if node.is_string else "float" if any(c in str(node.this) for c in ".eE") else "int"
    if isinstance(node, exp.Boolean):
        return "bool"
    if isinstance(node, exp.Null):
        return "null"
    if isinstance(node, exp.Paren):
        return kind(node.this)
    if isinstance(node, exp.And | exp.Or | exp.Not):
        for child in node.iter_expressions():
            _need(child, kind(child), ("bool",), f"{node.key.upper()} needs conditions")
        return "bool"
    if isinstance(node, exp.Neg):
        return _need(node.this, kind(node.this), _NUMBERS, "minus needs a number")
    if isinstance(node, _COMPARISONS):
        if isinstance(node.expression, exp.Null) and not isinstance(node, exp.NullSafeEQ | exp.NullSafeNEQ):
            raise ValueError(f"{node.sql()!r} is always null; write IS NULL or IS NOT NULL")
        _comparable(node, kind(node.this), kind(node.expression))
        return "bool"
    if isinstance(node, _ARITHMETIC):
        sides = [
            _need(child, kind(child), _NUMBERS, f"{node.sql()!r} needs numbers")
            for child in (node.this, node.expression)
        ]
        return "float" if isinstance(node, exp.Div) or "float" in sides else "int"
    if isinstance(node, exp.DPipe):
        for child in (node.this, node.expression):
            _need(child, kind(child), ("string",), "|| joins strings")
        return "string"
    if isinstance(node, exp.Between):
        for bound in (node.args["low"], node.args["high"]):
            _comparable(node, kind(node.this), kind(bound))
        return "bool"
    if isinstance(node, exp.In):
        for choice in node.expressions:
            _comparable(node, kind(node.this), kind(choice))
        return "bool"
    if isinstance(node, exp.Like | exp.ILike):
        for child in (node.this, node.expression):
            _need(child, kind(child), ("string",), "LIKE compares strings")
        return "bool"
    if isinstance(node, exp.Is):
        kind(node.this)
        if isinstance(node.expression, exp.Boolean):
            _need(node.this, kind(node.this), ("bool",), "IS TRUE needs a condition")
        return "bool"
    if isinstance(node, exp.Case):
        return _case(node, types)
    if isinstance(node, exp.Cast):
        return _cast(node, kind(node.this))
    if isinstance(node, exp.Bracket):
        inner = kind(node.this)
        if not inner.startswith("list"):
            raise ValueError(f"{node.this.sql()!r} is {_a(inner)}, not a list; [...] takes an element of a list")
        return cast(Kind, inner.removeprefix("list<").removesuffix(">"))
    if isinstance(node, exp.Anonymous):
        return _call(node, [kind(argument) for argument in node.expressions])
    raise ValueError(f"{_written(node)} is not supported")


def _case(node: exp.Case, types: Mapping[str, ColumnType]) -> Kind:
    results: list[Kind] = []
    for branch in node.args["ifs"]:
        condition = _kind(branch.this, types)
        if node.this is not None:
            _comparable(node, _kind(node.this, types), condition)
        else:
            _need(branch.this, condition, ("bool",), "WHEN needs a condition")
        results.append(_kind(branch.args["true"], types))
    if node.args.get("default") is not None:
        results.append(_kind(node.args["default"], types))
    return _unify(node, results)


def _cast(node: exp.Cast, given: Kind) -> Kind:
    target = _CASTS.get(node.to.this)
    if target is None:
        raise ValueError(f"{node.sql()!r}: cast to BOOLEAN, INT, BIGINT, DOUBLE or VARCHAR")
    if given.startswith("list"):
        raise ValueError(f"{node.sql()!r}: a list can't be cast")
    if given == "string" and target != "string" and not isinstance(node, exp.TryCast):
        raise ValueError(f"{node.sql()!r} fails on the first text that is no number; write TRY_CAST, which gives null")
    return target


def _call(node: exp.Anonymous, given: list[Kind]) -> Kind:
    name = str(node.this).upper()
    parameters, result = FUNCTIONS[name]
    wanted = parameters.split()
    least = sum(not p.endswith(("?", "...")) for p in wanted)
    most = None if wanted[-1].endswith("...") else len(wanted)
    if len(given) < least or (most is not None and len(given) > most):
        count = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{node.sql()!r}: {name} takes {count} argument{'s' * (count != '1')}, not {len(given)}")
    if wanted[-1].endswith("..."):
        wanted = wanted[:-1] + [wanted[-1].removesuffix("...")] * (len(given) - len(wanted) + 1)
    for parameter, argument, kind in zip(wanted, node.expressions, given, strict=False):
        parameter = parameter.removesuffix("?")
        if parameter == "any":
            continue
        if parameter == "list":
            if not kind.startswith("list"):
                raise ValueError(f"{node.sql()!r}: {name} needs a list; {argument.sql()!r} is {_a(kind)}")
        elif parameter == "element":
            _comparable(node, cast(Kind, given[0].removeprefix("list<").removesuffix(">")), kind)
        else:
            allowed = _NUMBERS if parameter == "number" else (cast(Kind, parameter),)
            _need(argument, kind, cast(tuple[Kind, ...], allowed), f"{name} needs {_a(parameter)}")
    if result == "branches":
        return _unify(node, given[1:])
    if result == "same":
        return given[0] if wanted[0] == "list" else _unify(node, given[:1] if name == "ROUND" else given)
    return cast(Kind, result)


def _need(node: exp.Expr, kind: Kind, allowed: tuple[str, ...], message: str) -> Kind:
    if kind != "null" and kind not in allowed:
        hint = " (write CAST(... AS INT))" if kind == "bool" and "int" in allowed else ""
        hint = f" (write {node.sql()} <> 0)" if kind in _NUMBERS and allowed == ("bool",) else hint
        raise ValueError(f"{message}; {node.sql()!r} is {_a(kind)}{hint}")
    return kind


def _comparable(node: exp.Expr, left: Kind, right: Kind) -> None:
    numbers = ("bool", "int", "float")
    if left == right or "null" in (left, right) or (left in numbers and right in numbers):
        return
    raise ValueError(f"{node.sql()!r} compares {_a(left)} with {_a(right)}")


def _unify(node: exp.Expr, kinds: list[Kind]) -> Kind:
    found: Kind = "null"
    for kind in kinds:
        if found == "null" or found == kind:
            found = kind
        elif found in _NUMBERS and kind in _NUMBERS:
            found = "float"
        elif kind != "null":
            raise ValueError(f"{node.sql()!r} gives {_a(found)} in one case and {_a(kind)} in another")
    return found


def _a(kind: str) -> str:
    """`"a string"`, `"an int"`."""
    name = {
        "bool": "condition",
        "list<int>": "list of ints",
        "list<float>": "list of floats",
        "list<string>": "list of strings",
    }
    text = name.get(kind, kind)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def fits(kind: Kind, declared: ColumnType) -> bool:
    """Whether a value of this kind may be stored as the declared type."""
    if kind == "null":
        return True
    if declared in ("float32", "float64", "int32", "int64"):
        return kind in (("bool", "int", "float") if declared.startswith("float") else ("bool", "int"))
    return KINDS[declared] == kind


def is_condition(kind: Kind) -> bool:
    """Whether the value may stand in `where` or `valid`."""
    return kind == "bool"


__all__ = ["FUNCTIONS", "Expression", "Kind", "columns", "fits", "is_condition", "nearest", "parse"]
