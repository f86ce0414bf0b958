"""SQL expressions: what is accepted means the same in polars, and what is refused says why."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.schemas.exact_arithmetic import ONE
from genrank.schemas.expression import FUNCTIONS, KINDS, columns, parse

TYPES = {
    "i": "int64",
    "f": "float32",
    "s": "string",
    "b": "bool",
    "li": "list<int64>",
    "ls": "list<string>",
    "order": "int32",
    "items.price": "float32",
}

ACCEPTED = {
    "i > 1 AND s IN ('a', 'home')": "bool",
    "f / items.price": "float",
    "i / 2": "float",
    "i % 2": "int",
    "i * 2 + f": "float",
    "-f": "float",
    "order > 1": "bool",
    "b": "bool",
    "NOT b OR i = 2": "bool",
    "i BETWEEN 1 AND 2": "bool",
    "i NOT IN (1, 2)": "bool",
    "s IS NOT NULL": "bool",
    "b IS TRUE": "bool",
    "i IS DISTINCT FROM 1": "bool",
    "s LIKE 'h%'": "bool",
    "s NOT ILIKE 'H%'": "bool",
    "s || 'x'": "string",
    "s > 'a'": "bool",
    "CASE WHEN i > 1 THEN 'many' ELSE s END": "string",
    "CASE i WHEN 1 THEN 2 END": "int",
    "CASE WHEN b THEN 1 ELSE 0.5 END": "float",
    "CAST(b AS INT)": "int",
    "CAST(i AS DOUBLE)": "float",
    "CAST(i AS VARCHAR)": "string",
    "TRY_CAST(s AS BIGINT)": "int",
    "f::int": "int",
    "ls[1]": "string",
    "li[1]": "int",
    "ABS(f)": "float",
    "ARRAY_CONTAINS(ls, 'a')": "bool",
    "ARRAY_CONTAINS(li, i)": "bool",
    "ARRAY_LENGTH(ls)": "int",
    "ARRAY_TO_STRING(ls, ',')": "string",
    "ARRAY_UNIQUE(li)": "list<int>",
    "CEIL(f)": "float",
    "COALESCE(i, 0.5)": "float",
    "CONCAT(s, 'x', s)": "string",
    "ENDS_WITH(s, 'e')": "bool",
    "EXP(i)": "float",
    "FLOOR(f)": "float",
    "GREATEST(i, f)": "float",
    "IF(b, i, 0)": "int",
    "IFNULL(s, 'none')": "string",
    "LEAST(i, 2)": "int",
    "LEFT(s, 2)": "string",
    "LENGTH(s)": "int",
    "LN(f)": "float",
    "LOG10(f)": "float",
    "LOG1P(f)": "float",
    "LOG2(f)": "float",
    "LOWER(s)": "string",
    "LTRIM(s)": "string",
    "MOD(i, 2)": "int",
    "NULLIF(i, 1)": "int",
    "POWER(f, 2)": "float",
    "REGEXP_LIKE(s, '^h')": "bool",
    "REPLACE(s, 'h', 'j')": "string",
    "RIGHT(s, 2)": "string",
    "ROUND(f, 1)": "float",
    "RTRIM(s)": "string",
    "SIGN(f)": "float",
    "SPLIT_PART(s, 'o', 1)": "string",
    "SQRT(i)": "float",
    "STARTS_WITH(s, 'h')": "bool",
    "STRING_TO_ARRAY(s, 'o')": "list<string>",
    "STRPOS(s, 'o')": "int",
    "SUBSTR(s, 1, 2)": "string",
    "TRIM(s)": "string",
    "UPPER(s)": "string",
}


def test_every_function_is_accepted_somewhere_above() -> None:
    written = " ".join(ACCEPTED)
    assert [name for name in FUNCTIONS if f"{name}(" not in written] == []


@pytest.mark.parametrize("text", ACCEPTED)
def test_polars_gives_a_value_per_row_of_the_kind_we_say(text: str) -> None:
    frame = pl.DataFrame(
        {
            "i": pl.Series([1, 2, None], dtype=pl.Int64),
            "f": pl.Series([1.5, 2.0, None], dtype=pl.Float32),
            "s": ["home", "search", None],
            "b": [True, False, None],
            "li": [[1, 2], [3], []],
            "ls": [["a", "b"], ["c"], []],
            "order": pl.Series([1, 2, 3], dtype=pl.Int32),
            "items.price": pl.Series([2.0, 4.0, 1.0], dtype=pl.Float32),
        }
    )
    parsed = parse(text)
    assert parsed.kind(TYPES) == ACCEPTED[text]
    value = evaluated(text, frame)
    assert len(value) == 3
    dtype = value.dtype

    def kind(dtype: object) -> str:
        if isinstance(dtype, pl.List):
            return f"list<{kind(dtype.inner)}>"
        if dtype == pl.Boolean:
            return "bool"
        if dtype == pl.String:
            return "string"
        assert dtype.is_numeric()
        return "int" if dtype.is_integer() else "float"

    expected = ACCEPTED[text]
    # POWER of two ints stays an int in polars; both are stored as numbers.
    assert kind(dtype) == expected or {kind(dtype), expected} == {"int", "float"}


def evaluated(text: str, frame: pl.DataFrame) -> pl.Series:
    return frame.with_columns(pl.Series(ONE, [1.0] * len(frame))).select(
        pl.sql_expr(parse(text).polars).alias("value")
    )["value"]


DIVISORS = st.sampled_from([1, 3, 7, 10, 24, 1000, 3_600_000, 86_400_000]) | st.integers(1, 10**9)
DIVIDENDS = st.lists(st.integers(-(10**13), 10**13), min_size=1, max_size=20)


@given(DIVIDENDS, DIVISORS, st.integers(1, 999))
def test_a_quotient_is_the_nearest_double(dividends: list[int], divisor: int, thousandths: int) -> None:
    """polars by itself multiplies by the reciprocal of a constant, and cuts decimals to six digits."""
    frame = pl.DataFrame({"a": dividends, "f": [float(x) for x in dividends]})
    point = f"{thousandths / 1000:.3f}"
    for text, quotient in {
        f"a / {divisor}": lambda x: x / divisor,
        f"f / -{divisor}": lambda x: x / -divisor,
        f"a / {point}": lambda x: x / float(point),
        f"a / ({divisor} * 2)": lambda x: x / (divisor * 2.0),
        f"a * 2 / {divisor} / 3": lambda x: x * 2 / divisor / 3,
        f"{point} / f": lambda x: float(point) / x if x else math.inf,
        f"FLOOR(a / {divisor}) + 0 * f": lambda x: math.floor(x / divisor),
    }.items():
        assert evaluated(text, frame).to_list() == [quotient(x) for x in dividends], text


def test_an_hour_begins_on_the_hour() -> None:
    hours = range(470_000, 472_000)
    frame = pl.DataFrame({"ts": [hour * 3_600_000 for hour in hours]})
    assert evaluated("FLOOR(ts / 3600000)", frame).to_list() == list(hours)
    assert not parse("ts - 3600000 > 0.5").needs_one and parse("ROUND(ts / 2, 1)").needs_one


def test_counts_go_below_zero() -> None:
    frame = pl.DataFrame({"s": ["abcd", "b", ""], "l": [[1, 2], [], [3]]})
    assert evaluated("LENGTH(s) - 3", frame).to_list() == [1, -2, -3]
    assert evaluated("ARRAY_LENGTH( l ) - LENGTH(REPLACE(s, '(', ''))", frame).to_list() == [-2, -1, 1]
    assert evaluated("-strpos(s, 'b')", frame).to_list() == [-2, -1, 0]
    assert parse("s = 'LENGTH(' AND LENGTH(s) > 1").counts == ((18, 27),)


def test_columns_are_named_once_in_order() -> None:
    assert columns("items.price / f > f AND s = 'items.x.f'") == ("items.price", "f", "s")
    assert columns("1 = 1") == ()


def test_polars_text_quotes_columns_only() -> None:
    text = """items.price > f AND s = 'f items.price' AND "order" > 1"""
    assert parse(text).polars == """"items.price" > "f" AND "s" = 'f items.price' AND "order" > 1"""


REFUSED = {
    "": "an empty text is not a SQL expression",
    "i >": "doesn't parse as SQL near '>'",
    "i > 1 i": "is not supported",
    "i; f": "is not one SQL expression",
    "foo(i)": "there is no function FOO",
    "LOG(f)": "there is no function LOG; did you mean 'LOG2'?",
    "SUM(i) > 1": "SUM reads many rows; an expression reads one: declare a cross feature instead",
    "COUNT(*)": "COUNT reads many rows",
    "i IN (SELECT 1)": "holds a subquery",
    "LENGTH(s) OVER (ORDER BY i)": "holds a window",
    "NOW()": "there is no function NOW",
    "i ISNULL": "write IS NULL or IS NOT NULL, not ISNULL",
    "i IN f": "IN takes a list of values in parentheses",
    "i AS x": "is not supported",
    "i & 1": "is not supported",
    "a.b.c": "write `column` or `snapshot.column`",
    "prise > 1": "column 'prise' is unknown",
    "items.prise > 1": "column 'items.prise' is unknown; did you mean 'items.price'?",
    "price > 1": "column 'price' is unknown; did you mean 'items.price'?",
    "NOT i": "NOT needs conditions; 'i' is an int (write i <> 0)",
    "b + 1": "needs numbers; 'b' is a condition (write CAST(... AS INT))",
    "s > 1": "compares a string with an int",
    "s IN ('a', 1)": "compares a string with an int",
    "i BETWEEN 'a' AND 'b'": "compares an int with a string",
    "i = NULL": "is always null; write IS NULL or IS NOT NULL",
    "i LIKE 'x'": "LIKE compares strings; 'i' is an int",
    "CAST(s AS BIGINT)": "fails on the first text that is no number; write TRY_CAST",
    "CAST(i AS DATE)": "cast to BOOLEAN, INT, BIGINT, DOUBLE or VARCHAR",
    "CAST(ls AS VARCHAR)": "a list can't be cast",
    "LENGTH(i)": "LENGTH needs a string; 'i' is an int",
    "SUBSTR(s)": "SUBSTR takes 2 to 3 arguments, not 1",
    "ARRAY_LENGTH(s)": "ARRAY_LENGTH needs a list; 's' is a string",
    "ARRAY_CONTAINS(ls, 1)": "compares a string with an int",
    "s[1]": "'s' is a string, not a list",
    "IF(b, s, i)": "gives a string in one case and an int in another",
    "CASE WHEN i THEN 1 END": "WHEN needs a condition; 'i' is an int",
    "CASE WHEN b THEN 1 ELSE 'x' END": "gives an int in one case and a string in another",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_say_why(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse(text).kind(TYPES)
    message = str(raised.value)
    assert REFUSED[text] in message
    assert "\n" not in message and "\x1b" not in message


def test_every_column_type_has_a_kind() -> None:
    from typing import get_args

    from genrank.schemas.base import ColumnType

    assert set(KINDS) == set(get_args(ColumnType))
