"""What messages say in more than one place: conditions that can't be read, lists of names, rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from genrank.schemas import expression
from genrank.schemas.type_rules import Types


def condition_mistakes(at: str, text: str, types: Types) -> Iterator[str]:
    """`where` and `valid` read their own row only and must be conditions."""
    try:
        kind = expression.parse(text).kind(types)
    except ValueError as error:
        yield f"{at}: {error}"
        return
    if not expression.is_condition(kind):
        yield f"{at}: {text!r} gives {kind}, not a condition; compare it with something"


def twice(names: Iterable[object]) -> list[str]:
    """Those that occur more than once."""
    return [str(name) for name, count in Counter(names).items() if count > 1]


def and_(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last


def with_article(noun: str) -> str:
    """`an AutoDis`, `a Numeric`."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def short(value: object) -> str:
    """`16`, `Dynamic(capacity=100, ...)`."""
    return str(value) if isinstance(value, int) else f"{type(value).__name__}({value})"


def share(rate: float) -> str:
    """`12.5%`; never `0.0%` of something that was found."""
    return "less than 0.1%" if 0 < rate < 0.001 else f"{rate:.1%}"
