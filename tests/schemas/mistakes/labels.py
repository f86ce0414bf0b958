"""Mistakes in labels: a schema that makes each, and the start of its one line."""

from __future__ import annotations

from collections.abc import Callable

from schemas_shop import SHOP, label

from genrank.schemas import Label, Schema

TWICE = (
    'for a condition on the exposure\'s own row declare its files a second time, outcomes = exposures.replace(name="outcomes"), and '
    'write source="outcomes", where="...", window="1ms"'
)

MISTAKES: dict[str, tuple[Callable[[], Schema], str]] = {
    "two labels of one name": (
        lambda: label(name="click", column="play_ms"),
        "click: two labels have this name; rename one",
    ),
    "a label with a leaf's name": (
        lambda: label(name="click_weight", column="play_ms"),
        "label click_weight: samples keep 'click_weight' beside label 'click'; rename it",
    ),
    "a label of column and source": (
        lambda: label(column="clicked", source="clicks", window="1d"),
        "label x: both column and source are given; a column of the exposure, or events of another log",
    ),
    "a label of nothing": (
        lambda: label(),
        "label x: neither column nor source; name a column of the exposures, or the event log that answers them",
    ),
    "a label of an unknown column": (
        lambda: label(column="playms"),
        "label x: column 'playms' is not in exposures; did you mean 'play_ms'?",
    ),
    "a label that is no number": (
        lambda: label(column="tab"),
        "label x: column 'tab' is of type string; a label is a number or a bool",
    ),
    "a column label with where": (
        lambda: label(column="play_ms", where="play_ms > 3"),
        "label x: where reads events of a source, not a column; drop it, or " + TWICE,
    ),
    "a condition for a label's column": (
        lambda: label(column="play_ms > 3"),
        "label x: column 'play_ms > 3' is not a column but a condition; " + TWICE,
    ),
    "a label of an unknown source": (
        lambda: label(source="purchase", window="1d"),
        "label x: source 'purchase' is unknown; did you mean 'purchases'?",
    ),
    "a label of the exposures": (
        lambda: label(source="exposures", window="1d"),
        "label x: source is the exposures themselves; use column= for a 0/1 column of theirs, or " + TWICE,
    ),
    "a label without time": (
        lambda: label(source="purchases"),
        'label x: window is 0, so no event of purchases can follow in time; write for example window="1d"',
    ),
    "a label on nothing": (
        lambda: label(source="purchases", window="1d", on=()),
        "label x: on is empty, so every event would match every exposure",
    ),
    "a label on an unknown column": (
        lambda: label(source="purchases", window="1d", on=("user_id", "itemid")),
        "label x: on column 'itemid' is not in exposures and purchases; did you mean 'item_id'?",
    ),
    "a label on two types": (
        lambda: label(source="purchases", window="1d", on=("request_id",)),
        "label x: on column 'request_id' is int64 in exposures but string in purchases: they would never meet",
    ),
    "a label where nothing": (
        lambda: label(source="purchases", window="1d", where="prize > 3"),
        "label x: where: column 'prize' is unknown; did you mean 'price'?",
    ),
    "a value label without value": (
        lambda: label(kind="value", source="purchases", window="1d"),
        "label x: kind='value' needs value=, the column of purchases that is summed",
    ),
    "a binary label with value": (
        lambda: label(source="purchases", window="1d", value="price"),
        "label x: a binary label takes no value; drop it, or set kind='value'",
    ),
    "a sum of text": (
        lambda: label(kind="value", source="purchases", window="1d", value="coupon"),
        "label x: value 'coupon' is of type string; only numbers are summed",
    ),
    "given an unknown label": (
        lambda: label(column="play_ms", given="clik"),
        "label x: given 'clik' is not a label; did you mean 'click'?",
    ),
    "given in a circle": (
        lambda: SHOP.replace(
            labels=(
                Label(name="a", column="clicked", given="b"),
                Label(name="b", column="play_ms", given="a"),
            )
        ),
        "label a: given goes in a circle: a -> b -> a",
    ),
    "given a number": (
        lambda: SHOP.replace(
            labels=(Label(name="a", kind="value", column="play_ms"), Label(name="x", column="clicked", given="a"))
        ),
        "label x: given 'a' is a value; a label is given a binary one",
    ),
    "a transform of a binary label": (
        lambda: label(column="play_ms", value_transform="log1p"),
        "label x: value_transform is of a value label; drop it, or set kind='value'",
    ),
    "an unknown oracle": (
        lambda: label(column="play_ms", oracle="p_clik"),
        "label x: oracle 'p_clik' is not in exposures; did you mean 'p_click'?",
    ),
    "an oracle that is no probability": (
        lambda: label(column="play_ms", oracle="tab"),
        "label x: oracle 'tab' is of type string; a probability is a float",
    ),
}
