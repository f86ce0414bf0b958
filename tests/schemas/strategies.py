"""Random valid schemas, for property tests of any package: `from strategies import schemas`, then `@given(schemas())`.

Every kind of source, feature, vocabulary, transform, table sharing, sequence and label is drawn. One type per column name in
the whole schema keeps joins, keys and merged sequences valid.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List

from hypothesis import strategies as st

from genrank.schemas import (
    AutoDis,
    Candidates,
    Categorical,
    ChangePoints,
    CrossFeature,
    Dense,
    Dynamic,
    Enumerated,
    EventLog,
    Events,
    EventSequence,
    Feature,
    FixedBuckets,
    Hashed,
    HashedCross,
    Identity,
    Label,
    Log1p,
    MultiValued,
    Normal,
    Numeric,
    QuantileBuckets,
    Schema,
    Snapshot,
    SparseOptimizer,
    Sql,
    Table,
    TimeGap,
    TimePart,
    Training,
    Uniform,
    UserGroup,
    Vector,
    Zeros,
)
from genrank.schemas.base import ColumnType, parse_duration
from genrank.schemas.operations import operation_of
from genrank.schemas.type_rules import ID_LISTS

Draw = Callable[[st.SearchStrategy], object]
Types = dict[str, ColumnType]

COLUMN_TYPES: tuple[ColumnType, ...] = (
    "bool",
    "int32",
    "int64",
    "float32",
    "float64",
    "string",
    "timestamp",
    "list<int64>",
    "list<float32>",
    "list<string>",
)
DIMS = st.sampled_from([4, 8, 16])
POSITIVE = st.floats(0.001, 100, allow_nan=False)
DURATIONS = st.sampled_from(["250ms", "30s", "15m", "6h", "1d", "7d", "90d"])
TEXTS = st.one_of(
    st.text(min_size=1, max_size=6),
    st.sampled_from(["on", "yes", "~", "null", "1e3", "010", "0x1F", "12:30", "2026-01-01", "<<"]),
)


def transforms() -> st.SearchStrategy:
    boundaries = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6, unique=True).map(sorted).map(tuple)
    return st.one_of(
        st.just(Log1p()),
        st.builds(Dense, shift=st.floats(-10, 10), scale=POSITIVE),
        st.builds(FixedBuckets, boundaries=boundaries, dim=DIMS),
        st.builds(QuantileBuckets, buckets=st.integers(2, 20), dim=DIMS),
        st.builds(AutoDis, buckets=st.integers(2, 20), dim=DIMS, temperature=POSITIVE),
    )


def vocabularies(space: str) -> st.SearchStrategy:
    """Vocabularies that fit `integers`, `strings` or `crossed ids`."""
    hashed = st.builds(Hashed, size=st.integers(1, 500))
    dynamic = st.builds(
        Dynamic,
        capacity=st.integers(1, 500),
        admit_after=st.integers(1, 5),
        evict=st.sampled_from(["age", "frequency"]),
        max_age=st.none() | DURATIONS,
    )
    if space == "crossed ids":
        return hashed | dynamic
    values = st.integers(-(2**40), 2**40) if space == "integers" else TEXTS
    enumerated = st.lists(values, min_size=1, max_size=6, unique=True).map(lambda v: Enumerated(values=tuple(v)))
    identity = [st.builds(Identity, size=st.integers(1, 500))] if space == "integers" else []
    return st.one_of(hashed, dynamic, enumerated, *identity)


def tables(name: str, space: str) -> st.SearchStrategy:
    initializers = st.one_of(st.just(Zeros()), st.builds(Normal, std=POSITIVE), st.builds(Uniform, bound=POSITIVE))
    optimizers = st.builds(
        SparseOptimizer,
        kind=st.sampled_from(["rowwise_adagrad", "rowwise_adam"]),
        lr_scale=st.sampled_from([0.5, 1.0]),
        weight_decay=st.sampled_from([0.0, 1e-5]),
    )
    return st.builds(
        Table,
        name=st.just(name),
        dim=DIMS,
        vocabulary=vocabularies(space),
        initializer=initializers,
        optimizer=optimizers,
    )


class _Drawing:
    """One schema being drawn: its columns and the tables that features may share."""

    def __init__(self, draw: Draw, max_features: int) -> None:
        self.draw, self.max_features = draw, max_features
        ids = st.sampled_from(["int64", "string"])
        self.types: Types = {
            "user_id": draw(ids),
            "item_id": draw(ids),
            "ts": draw(st.sampled_from(["int64", "timestamp"])),
        }
        self.types["shop_id"] = draw(st.sampled_from(["int32", "int64", "string"]))
        self.types |= {f"c{i}": draw(st.sampled_from(COLUMN_TYPES)) for i in range(draw(st.integers(1, 6)))}
        self.shared = {
            space: [draw(tables(f"{space.split()[0]}_{i}", space)) for i in range(2)]
            for space in ("integers", "strings", "crossed ids")
        }

    def some(self, *always: str) -> Types:
        """A subset of the columns, with those that must be in it."""
        more = self.draw(st.lists(st.sampled_from(sorted(self.types)), unique=True, max_size=8))
        return {column: self.types[column] for column in dict.fromkeys((*always, *more))}

    def embedding(self, space: str) -> dict[str, object]:
        if self.draw(st.booleans()):
            return {"table": self.draw(st.sampled_from(self.shared[space]))}
        return {"vocabulary": self.draw(vocabularies(space)), "dim": self.draw(DIMS)}

    def feature(self, name: str, reference: str, type_: ColumnType) -> Feature:
        """A feature that fits the column."""
        draw = self.draw
        space = "strings" if "string" in type_ else "integers"
        if type_ in ("list<int64>", "list<string>"):
            return MultiValued(
                name=name,
                column=reference,
                pooling=draw(st.sampled_from(["sum", "mean"])),
                max_values=draw(st.integers(1, 30)),
                **self.embedding(space),
            )
        if type_ == "timestamp":
            return TimeGap(name=name, column=reference, transform=draw(transforms()))
        if type_.startswith("list"):
            return Vector(name=name, column=reference, length=draw(st.integers(1, 5)), normalize=draw(st.booleans()))
        choices = (
            ["categorical"]
            if type_ == "string"
            else ["numeric"]
            if type_.startswith("float")
            else ["categorical", "numeric"]
        )
        if draw(st.sampled_from(choices)) == "categorical":
            return Categorical(name=name, column=reference, **self.embedding(space))
        if draw(st.booleans()):
            return Numeric(name=name, column=reference, transform=draw(transforms()))
        number = f'CAST("{reference}" AS INT)' if type_ == "bool" else reference
        return Sql(name=name, expression=f"COALESCE({number}, 0) + 1", type="float32", transform=draw(transforms()))

    def features(self, offered: Types, *, least: int, group: str) -> list[Feature]:
        found: list[Feature] = []
        count = self.draw(st.integers(least, max(least, self.max_features)))
        for reference in (
            self.draw(st.lists(st.sampled_from(sorted(offered)), min_size=count, max_size=count)) if offered else ()
        ):
            found.append(self.feature(f"{group}_f{len(found)}", reference, offered[reference]))
        kinds = ["time_part"] + (["time_gap"] if group != "user" else [])
        for kind in self.draw(st.lists(st.sampled_from(kinds), unique=True)) or (
            kinds[:1] if least and not found else ()
        ):
            part = self.draw(st.sampled_from(["hour", "weekday", "hour_of_week", "day_of_month", "month"]))
            found.append(
                TimePart(name=f"{group}_{kind}", part=part, dim=self.draw(DIMS))
                if kind == "time_part"
                else TimeGap(name=f"{group}_{kind}", transform=self.draw(transforms()))
            )
        ids = [feature.name for feature in found if isinstance(feature, Categorical)]
        if len(ids) >= 2 and self.draw(st.booleans()):
            space = {"table": self.draw(st.sampled_from(self.shared["crossed ids"]))}
            own = {"vocabulary": Hashed(size=self.draw(st.integers(1, 500))), "dim": self.draw(DIMS)}
            found.append(
                HashedCross(name=f"{group}_crossed", of=tuple(ids[:3]), **self.draw(st.sampled_from([space, own])))
            )
        return found

    def cross_feature(self, name: str, exposures: EventLog, logs: List[EventLog]) -> CrossFeature:
        draw = self.draw
        log = draw(st.sampled_from(logs))
        hidden = {*exposures.post_exposure, "clicked"}
        both = [
            c
            for c, t in log.columns.items()
            if c in exposures.columns and c not in hidden and t in ("bool", "int32", "int64", "string")
        ]
        keys = tuple(draw(st.lists(st.sampled_from(sorted(both)), unique=True, max_size=3)))
        lists = sorted(
            c for c, t in log.columns.items() if c in exposures.columns and c not in hidden and t in ID_LISTS
        )
        listed = bool(lists) and draw(st.booleans())
        if listed:
            keys += (draw(st.sampled_from(lists)),)
        numbers = sorted(c for c, t in log.columns.items() if t.startswith(("bool", "int", "float")))
        scalars = sorted(c for c, t in log.columns.items() if t.startswith(("bool", "int", "float", "string")))
        ids = sorted(c for c, t in log.columns.items() if t in ("int32", "int64", "string"))
        common = {
            "name": name,
            "source": log.name,
            "keys": keys,
            "window": draw(DURATIONS),
            "as_of": draw(st.sampled_from(["exposure", "window_start"])),
            "where": draw(
                st.sampled_from([None, f'"{scalars[0]}" IS NOT NULL', "user_id IS NOT NULL AND NOT (ts IS NULL)"])
            ),
        }
        op = draw(
            st.sampled_from(
                [
                    "count",
                    "rate",
                    "recency",
                    "distinct",
                    "decayed_count",
                    *([] if listed else ["last id"]),
                    *(["sum", "mean", "max", "min", "std", "last", "decayed_sum"] if numbers else []),
                ]
            )
        )
        if op == "last id":
            value = draw(st.sampled_from(ids))
            space = "strings" if log.columns[value] == "string" else "integers"
            return CrossFeature(**common, op="last", value=value, table=draw(st.sampled_from(self.shared[space])))
        common |= {"op": op, "transform": draw(st.none() | transforms())}
        if listed:
            adds_up = ["sum"] if operation_of(op).missing == "0" else []
            common["reduce"] = draw(st.sampled_from([None, "mean", "max", "min", *adds_up]))
        if op.startswith("decayed"):
            long_enough = [
                h for h in ("6h", "1d", "7d", "90d") if parse_duration(h) * 64 >= parse_duration(common["window"])
            ]
            common["half_life"] = draw(st.sampled_from(long_enough))
        if op == "rate":
            return CrossFeature(
                **common | {"where": common["where"] or "user_id IS NOT NULL"},
                prior=draw(st.floats(0, 1)),
                strength=draw(st.floats(0, 100)),
            )
        if op in ("sum", "mean", "max", "min", "std", "last", "decayed_sum"):
            return CrossFeature(**common, value=draw(st.sampled_from(numbers)))
        return (
            CrossFeature(**common, value=draw(st.sampled_from(scalars))) if op == "distinct" else CrossFeature(**common)
        )

    def event_log(self, name: str, *always: str) -> EventLog:
        draw = self.draw
        columns = self.some("user_id", "ts", *always)
        where = {"path": f"{name}/dt={{dt}}"} if draw(st.booleans()) else {"catalog": f"db.{name}"}
        return EventLog(
            name=name,
            columns=columns,
            rename={c: f"raw_{c}" for c in columns if draw(st.integers(0, 4)) == 0},
            time_unit=draw(st.sampled_from(["s", "ms", "us"])),
            delay=draw(st.sampled_from(["0ms", "5s"])),
            lateness=draw(st.sampled_from(["0ms", "3d"])),
            dedup=tuple(draw(st.lists(st.sampled_from(sorted(columns)), unique=True, max_size=2))),
            valid=draw(st.sampled_from([(), ("user_id IS NOT NULL",)])),
            description=draw(TEXTS),
            **where,
        )


@st.composite
def schemas(draw: Draw, *, max_features: int = 6) -> Schema:
    """A valid schema with at most about `max_features` plain features in each group."""
    d = _Drawing(draw, max_features)
    exposures = d.event_log("exposures", "item_id")
    exposures = exposures.replace(
        columns=exposures.columns | {"clicked": "int32", "request_id": "int64", "p_click": "float32"},
        post_exposure=("clicked", *(c for c in exposures.columns if c.startswith("c") and draw(st.booleans()))),
    )
    actions = [d.event_log(f"actions_{i}", "item_id") for i in range(draw(st.integers(1, 3)))]
    states = [
        Snapshot(name=name, path=f"{name}/dt={{dt}}", key=key, columns=d.some(key), max_age=draw(DURATIONS))
        for name, key in (("items", "item_id"), ("users", "user_id"), ("shops", "shop_id"))
        if draw(st.booleans())
    ]

    def joined(own: Types) -> Types:
        return own | {f"{s.name}.{c}": t for s in states if s.key in own for c, t in s.columns.items()}

    user_features = d.features(joined({"user_id": d.types["user_id"]}), least=0, group="user")
    sequences = []
    for name in draw(st.lists(st.sampled_from(["history", "long", "realtime"]), unique=True, max_size=3)):
        sources = draw(st.lists(st.sampled_from(actions), min_size=1, max_size=2, unique_by=lambda log: log.name))
        events: list[Events | ChangePoints] = [
            Events(
                source=log.name,
                name=draw(st.sampled_from([None, f"seen_{log.name}"])),
                where=draw(st.sampled_from([None, "ts > 0"])),
            )
            for log in sources
        ]
        merged: Types = {}
        for log in sources:
            merged |= joined(log.columns)
        users = next((s for s in states if s.name == "users"), None)
        if users and draw(st.booleans()):
            events.append(ChangePoints(source="users", column=draw(st.sampled_from(sorted(users.columns)))))
        features = d.features(merged, least=1, group=name)
        sequences.append(
            EventSequence(
                name=name,
                scope="realtime" if name == "realtime" else "history",
                events=tuple(events),
                features=tuple(features),
                max_length=draw(st.integers(1, 300)),
                lookback=draw(st.sampled_from(["1d", "90d"])),
                type_dim=draw(DIMS),
                interleave=tuple(f.name for f in features[: draw(st.integers(0, 1))]),
            )
        )
    hidden = {"clicked", "p_click", *exposures.post_exposure}
    ranked = d.features(joined({c: t for c, t in exposures.columns.items() if c not in hidden}), least=1, group="cand")
    ranked += [d.cross_feature(f"stat_{i}", exposures, [exposures, *actions]) for i in range(draw(st.integers(0, 3)))]
    labels = [
        Label(name="click", column="clicked", oracle=draw(st.sampled_from([None, "p_click"])), weight=draw(POSITIVE))
    ]
    if draw(st.booleans()):
        labels.append(
            Label(
                name="convert",
                source=actions[0].name,
                window=draw(DURATIONS),
                given=draw(st.sampled_from([None, "click"])),
                attribution=draw(st.sampled_from(["every", "last"])),
                positive_weight=draw(POSITIVE),
            )
        )
    return Schema(
        name="drawn",
        sources=tuple(draw(st.permutations([exposures, *actions, *states]))),
        user=UserGroup(features=tuple(user_features), tokens=draw(st.sampled_from(["feature", "group"]))),
        sequences=tuple(sequences),
        candidates=Candidates(
            features=tuple(ranked),
            request=draw(st.sampled_from([None, "request_id"])),
            max_candidates=draw(st.integers(1, 1024)),
            negative_keep_rate=draw(st.sampled_from([1.0, 0.25])),
        ),
        labels=tuple(labels),
        training=Training(view=draw(st.sampled_from(["user_day", "request", "session"]))),
        utc_offset=draw(st.sampled_from(["+00:00", "+08:00", "-05:30"])),
        description=draw(TEXTS),
    )
