"""Mistakes in candidates, sequences and training: a schema that makes each, and the start of its one line."""

from __future__ import annotations

from collections.abc import Callable

from schemas_shop import SHOP

from genrank.schemas import ChangePoints, Events, Label, Schema, Training

MISTAKES: dict[str, tuple[Callable[[], Schema], str]] = {
    # ---------------------------------------------------------------------- candidates
    "candidates of an unknown source": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(source="exposure")),
        "candidates: source 'exposure' is unknown; did you mean 'exposures'?",
    ),
    "candidates of a snapshot": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(source="items")),
        "candidates: source 'items' is a snapshot; name an event log",
    ),
    "unknown item column": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(item="itemid")),
        "candidates: item column 'itemid' is not in exposures; did you mean 'item_id'?",
    ),
    "a request that is no id": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(request="price")),
        "candidates: request column 'price' is of type float32; an id is of type int64, int32 or string",
    ),
    "a request known only later": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(request="play_ms")),
        "candidates: request column 'play_ms' is known only after the exposure; candidates need one known when it was shown",
    ),
    "down-sampling without negatives": (
        lambda: SHOP.replace(
            candidates=SHOP.candidates.replace(negative_keep_rate=0.5),
            labels=(Label(name="play", kind="value", column="play_ms"),),
        ),
        "candidates: negative_keep_rate 0.5 without a binary label: nothing says what a negative is; set it to 1 or add a binary label",
    ),
    # ---------------------------------------------------------------------- sequences
    "two realtime sequences": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(scope="realtime"), SHOP.sequences[1])),
        "sequences history and realtime are both of scope realtime; merge them: one sequence takes events of several sources",
    ),
    "two sequences of one name": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0], SHOP.sequences[0])),
        "history: two sequences have this name; rename one",
    ),
    "events of an unknown source": (
        lambda: SHOP.replace(
            sequences=(SHOP.sequences[0].replace(events=(Events(source="click"),)), SHOP.sequences[1])
        ),
        "sequence history: source 'click' is unknown; did you mean 'clicks'?",
    ),
    "events of a snapshot": (
        lambda: SHOP.replace(
            sequences=(SHOP.sequences[0].replace(events=(Events(source="users"),)), SHOP.sequences[1])
        ),
        "sequence history: source 'users' is a snapshot; name an event log",
    ),
    "events of one type": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(
                        Events(source="clicks"),
                        Events(source="clicks", where="dwell > 1"),
                        ChangePoints(source="users", column="city"),
                    )
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: two events are called 'clicks'; distinguish them with name=",
    ),
    "events where nothing": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks", where="dwelt > 1"), ChangePoints(source="users", column="city"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: where of clicks: column 'dwelt' is unknown; did you mean 'dwell'?",
    ),
    "changes of an event log": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks"), ChangePoints(source="purchases", column="coupon", name="city"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: ChangePoints of 'purchases', an event log; use Events(source='purchases'), or name a snapshot keyed by the user",
    ),
    "changes of something else than the user": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks"), ChangePoints(source="items", column="category"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: ChangePoints of 'items', which is keyed by 'item_id', not by the user ('user_id')",
    ),
    "changes of an unknown column": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks"), ChangePoints(source="users", column="town", name="city"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: ChangePoints column 'town' is not in users; there is age, city, user_id",
    ),
    "interleaving an unknown feature": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(interleave=("dwel",)), SHOP.sequences[1])),
        "sequence history: interleave 'dwel' is not a feature of it; did you mean 'dwell'?",
    ),
    "a lookback of nothing": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(lookback="0d"), SHOP.sequences[1])),
        'sequence history: lookback is 0, so nothing is kept; write for example lookback="90d"',
    ),
    # ---------------------------------------------------------------------- training
    "a session gap of nothing": (
        lambda: SHOP.replace(training=Training(view="session", session_gap="0m")),
        "training: session_gap 0 makes every exposure a session",
    ),
    "an offset of nowhere": (
        lambda: SHOP.replace(utc_offset="+25:00"),
        "utc_offset '+25:00' is no offset of any place; write for example \"+08:00\"",
    ),
}
