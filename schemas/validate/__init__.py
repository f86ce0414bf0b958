"""Every mistake of a declaration at once, each in one line: where it is, what is wrong, and the remedy.

`Schema` runs this when it is made, so a schema that exists can be built. What is merely unwise is `lint.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from genrank.schemas.base import CANDIDATES, USER, parse_duration
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.local_days import unknown_place
from genrank.schemas.messages import twice
from genrank.schemas.validate.features import feature_mistakes
from genrank.schemas.validate.groups import candidate_mistakes, sequence_mistakes, token_group_mistakes
from genrank.schemas.validate.labels import label_mistakes
from genrank.schemas.validate.sources import source_mistakes
from genrank.schemas.validate.tables import table_mistakes

SAMPLE_COLUMNS = ("sample_id", "user_id", "window_start", "window_end", USER, CANDIDATES, "labels", "mask", "dt")
"""Top-level names of a sample: no sequence may take them."""


def mistakes(schema: SchemaDeclaration) -> list[str]:
    """Every mistake, in the order of declaration; empty for a schema that can be built."""
    found = [
        *_names(schema),
        *source_mistakes(schema),
        *candidate_mistakes(schema),
        *sequence_mistakes(schema),
        *token_group_mistakes(schema),
        *feature_mistakes(schema),
        *table_mistakes(schema),
        *label_mistakes(schema),
        *_training(schema),
    ]
    return list(dict.fromkeys(found))


def _names(schema: SchemaDeclaration) -> Iterator[str]:
    for what, names in (
        ("sources", [source.name for source in schema.sources]),
        ("sequences", [sequence.name for sequence in schema.sequences]),
        ("labels", [label.name for label in schema.labels]),
    ):
        for name in twice(names):
            yield f"{name}: two {what} have this name; rename one"
    for group, features in schema.groups():
        reserved = _reserved(schema, group)
        for name in twice(feature.name for feature in features):
            yield f"{group}.{name}: two features of the group have this name; rename one (its `column` may stay)"
        for feature in features:
            if feature.name in reserved:
                yield (
                    f"{group}.{feature.name}: the sample keeps a column {feature.name!r} of its own in {group}; give the feature "
                    f'another name and column="{feature.name}"'
                )
    for sequence in schema.sequences:
        if sequence.name in SAMPLE_COLUMNS:
            yield f"sequence {sequence.name}: samples have a column of that name; call it history or realtime"
    leaves = {label.name for label in schema.labels}
    for label in schema.labels:
        for leaf in (f"{label.name}_weight", *([f"{label.name}_oracle"] if label.oracle else [])):
            if leaf in leaves:
                yield f"label {leaf}: samples keep {leaf!r} beside label {label.name!r}; rename it"


def _reserved(schema: SchemaDeclaration, group: str) -> tuple[str, ...]:
    if group == CANDIDATES:
        return ("ts", "request", "item")
    return () if group == USER else ("ts", "type", "available")


def _training(schema: SchemaDeclaration) -> Iterator[str]:
    if schema.training.view == "session" and parse_duration(schema.training.session_gap) == 0:
        yield 'training: session_gap 0 makes every exposure a session; write for example session_gap="30m", or view="request"'
    if wrong := unknown_place(schema.utc_offset):
        yield f"utc_offset {schema.utc_offset!r} {wrong}"
