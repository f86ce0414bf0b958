"""An event as two tokens (HSTU, arXiv:2402.17152, section 2.2: Phi_0, a_0, Phi_1, a_1, ...): what is known before the user acts, and the
action.

Known before are the features that candidates have as well (of the same name, reading the same column) and the time; the event's type and
everything else (what was paid, how long was watched) are its action, and whatever the schema interleaves. The first token then says what a
candidate's would, and predicting the type from it is ranking's own question, asked of the past.
"""

from __future__ import annotations

from genrank.schemas.derive.tables import event_names
from genrank.schemas.features import Feature, TimeGap, TimePart
from genrank.schemas.schema import Schema

TOKENS = 2
"""Of an event."""


def known_before(schema: Schema, sequence: str) -> set[str]:
    """Names of the features of a sequence that are known before the event's action."""
    declared = next(s for s in schema.sequences if s.name == sequence)
    ranked = {(type(f), f.name, f.column_reference) for f in schema.candidates.features}

    def known(feature: Feature) -> bool:
        is_time = isinstance(feature, TimeGap | TimePart) and feature.column_reference is None
        return is_time or (type(feature), feature.name, feature.column_reference) in ranked

    return {feature.name for feature in declared.features if known(feature) and feature.name not in declared.interleave}


def type_ranges(schema: Schema) -> dict[str, range]:
    """Sequence -> its types, as `Tokens.event_types` numbers them."""
    ranges, at = {}, 0
    for sequence in schema.sequences:
        types = len(event_names(sequence))
        ranges[sequence.name] = range(at, at + types)
        at += types
    return ranges
