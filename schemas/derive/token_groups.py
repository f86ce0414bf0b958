"""Which features of the user, or of a candidate, make one token together, for models that read several tokens of each."""

from __future__ import annotations

from genrank.schemas.base import CANDIDATES, USER
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.features import Feature
from genrank.schemas.source import Snapshot

STATISTICS, CONTEXT = "statistics", "context"


def token_groups(schema: SchemaDeclaration, group: str) -> dict[str, tuple[str, ...]]:
    """Token -> names of its features, in the order of the tokens.

    As declared (`token_groups`); otherwise by table and role. A feature belongs to the snapshot that its columns are joined from (an id
    that is the snapshot's key included), a count of past events to `statistics`, and everything else, such as the exposure's own columns
    and times, to `context`. Tokens then stand in alphabetical order, features by name.

    Args:
        schema: a valid one.
        group: `user` or `candidates`.
    """
    declared = {USER: schema.user.token_groups, CANDIDATES: schema.candidates.token_groups}[group]
    if declared:
        return {each.name: each.features for each in declared}
    found: dict[str, list[str]] = {}
    for feature in dict(schema.groups())[group]:
        found.setdefault(_role(schema, feature), []).append(feature.name)
    return {role: tuple(found[role]) for role in sorted(found)}


def _role(schema: SchemaDeclaration, feature: Feature) -> str:
    if feature.past_logs:
        return STATISTICS
    keys = {source.key: source.name for source in schema.sources if isinstance(source, Snapshot)}
    roles = {ref.partition(".")[0] if "." in ref else keys.get(ref, CONTEXT) for ref in feature.references()}
    return roles.pop() if len(roles) == 1 else CONTEXT
