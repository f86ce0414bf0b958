"""The names and colours of the four token groups, by their numbers."""

from __future__ import annotations

from genrank.tokenization.visibility import CANDIDATE, HISTORY, REALTIME, USER

COLORS = {USER: "#b07aa1", HISTORY: "#4e79a7", REALTIME: "#59a14f", CANDIDATE: "#f28e2b"}
NAMES = {USER: "user", HISTORY: "history", REALTIME: "realtime", CANDIDATE: "candidates"}


def ends(n: int, most: int) -> list[int | None]:
    """The first and last of n rows, `most` of them, None standing for those between."""
    if n <= most:
        return list(range(n))
    return [*range(most // 2), None, *range(n - (most - most // 2), n)]
