"""What is said in more than one place: conditions that can't be read, unknown names, lists of names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from genrank.schemas import expression
from genrank.schemas.derive import columns
from genrank.schemas.derive.columns import Types, event_logs, hidden_from_candidates, rows, snapshots
from genrank.schemas.expression import nearest
from genrank.schemas.group import CANDIDATES, USER

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema


def condition_mistakes(at: str, text: str, types: Types) -> Iterator[str]:
    """`where` and `valid` read their own row only and must be conditions."""
    try:
        kind = expression.parse(text).kind(types)
    except ValueError as error:
        yield f"{at}: {error}"
        return
    if not expression.is_condition(kind):
        yield f"{at}: {text!r} gives {kind}, not a condition; compare it with something"


def unknown_log(schema: Schema, name: str) -> str:
    """What to say of a source that is no event log."""
    if name in snapshots(schema):
        return f"{name!r} is a snapshot; name an event log{nearest(name, event_logs(schema))}"
    return f"{name!r} is unknown{nearest(name, event_logs(schema))}"


def unknown_column(schema: Schema, group: str, reference: str, types: Types) -> str:
    """What to say of a column that a group's features can't read; `types` are those they can."""
    snapshot, column = columns.split(reference)
    known = snapshots(schema)
    if group == CANDIDATES and reference in (hidden := hidden_from_candidates(schema)):
        return (
            f"column {reference!r} {hidden[reference]}: no feature of a candidate may read it; count past ones with a cross "
            "feature, or read it in a sequence"
        )
    if snapshot in known and column in known[snapshot].columns:
        key = known[snapshot].key
        has = (
            " or ".join(dict.fromkeys(source for source, _ in rows(schema, group)))
            if group != USER
            else "the user group"
        )
        return f"column {reference!r} can't be joined: {has} has no column {key!r}, the key of {snapshot}"
    if snapshot and snapshot not in known:
        return f"column {reference!r}: there is no snapshot {snapshot!r}{nearest(snapshot, known)}"
    if snapshot:
        return f"column {column!r} is not in {snapshot}{nearest(column, known[snapshot].columns)}"
    where = dict.fromkeys(source for source, _ in rows(schema, group))
    return f"column {reference!r} is not in {and_(where) if group != USER else 'the user group'}{nearest(reference, set(types))}"


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
