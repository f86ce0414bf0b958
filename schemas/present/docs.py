"""The feature catalogue: one self-contained HTML page, with lineage from source column to feature, leaf, table and token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from genrank.schemas.derive import columns
from genrank.schemas.derive.sample_schema import stored_as
from genrank.schemas.derive.sizes import sizes
from genrank.schemas.derive.tables import TYPE, event_names, table_name, transform_of
from genrank.schemas.features import CrossFeature, Feature, HashedCross, MultiValued, Sql, TimeGap, TimePart
from genrank.schemas.group import CANDIDATES, USER, EventSequence
from genrank.schemas.label import Label
from genrank.schemas.review.lint import lint
from genrank.schemas.schema import Schema
from genrank.schemas.transforms import AutoDis, Dense, FixedBuckets, Log1p, QuantileBuckets, Transform
from genrank.schemas.vocabularies import Dynamic, Enumerated, Vocabulary

STORED_TEXT = {"id": "int64", "ids": "list<int64>", "number": "float32", "time": "int64 ms"}

# ---------------------------------------------------------------------- in words


def in_words(feature: Feature) -> str:
    """What a feature's value is: `rate of clicks over exposures by user_id and items.category in 30d`."""
    if isinstance(feature, CrossFeature):
        of = f" of {feature.value}" if feature.value else ""
        over = f" over {feature.per}" if feature.per else ""
        where = f" where {feature.where}" if feature.where else ""
        by = f" by {' and '.join(feature.keys)}" if feature.keys else " over all users"
        prior = (
            f", towards {feature.prior:g} with strength {feature.strength:g}"
            if feature.op == "rate" and feature.strength
            else ""
        )
        when = ", as of the day's start" if feature.as_of == "window_start" else ""
        return f"{feature.op}{of} {'in' if of else 'of'} {feature.source}{over}{where}{by} in {feature.window}{prior}{when}"
    if isinstance(feature, HashedCross):
        return " × ".join(feature.of)
    if isinstance(feature, Sql):
        return feature.expression
    if isinstance(feature, TimePart):
        return f"{feature.part.replace('_', ' ')} of the row's time"
    if isinstance(feature, TimeGap):
        return f"seconds since {feature.column}" if feature.column else "seconds since the event before"
    return columns.column_of(feature) or feature.name


def encoding_in_words(feature: Feature) -> str:
    """How the value becomes a vector: `16 quantile buckets × 8`, `log(1 + x)`, `dynamic, 16,384 rows × 32, mean of 4`."""
    transform = transform_of(feature)
    if transform is not None:
        return _transform(transform)
    if isinstance(feature, TimePart):
        return f"× {feature.dim}"
    vocabulary, dim = _embedding(feature)
    pooled = f", {feature.pooling} of at most {feature.max_values}" if isinstance(feature, MultiValued) else ""
    return f"{vocabulary_in_words(vocabulary)} × {dim}{pooled}" if vocabulary else ""


def vocabulary_in_words(vocabulary: Vocabulary) -> str:
    """`dynamic, at most 16,384 ids, admitted at sighting 3`."""
    if isinstance(vocabulary, Dynamic):
        admitted = f", admitted at sighting {vocabulary.admit_after}" if vocabulary.admit_after > 1 else ""
        return f"dynamic, at most {vocabulary.capacity:,} ids{admitted}, evicted by {vocabulary.evict}"
    if isinstance(vocabulary, Enumerated):
        return f"{vocabulary.size} enumerated"
    return f"{vocabulary.kind}, {vocabulary.size:,}"


def label_in_words(label: Label) -> str:
    """`a purchases event within 1d, given click`."""
    if label.column:
        what = label.column if label.kind == "value" else f"{label.column} is not 0"
    else:
        where = f" where {label.where}" if label.where else ""
        event = f"sum of {label.value} of {label.source}" if label.kind == "value" else f"an event of {label.source}"
        what = f"{event}{where} within {label.window} on {', '.join(label.on)}"
    return what + (f", given {label.given}" if label.given else "")


def _transform(transform: Transform) -> str:
    match transform:
        case Dense():
            shift = f"x - {transform.shift:g}" if transform.shift else "x"
            return f"({shift}) · {transform.scale:g}" if transform.scale != 1 else shift
        case Log1p():
            return "log(1 + x)"
        case FixedBuckets():
            return f"{len(transform.boundaries) + 1} buckets × {transform.dim}"
        case QuantileBuckets():
            return f"{transform.buckets} quantile buckets × {transform.dim}"
        case AutoDis():
            return f"AutoDis, {transform.buckets} × {transform.dim}"


def _embedding(feature: Feature) -> tuple[Vocabulary | None, int | None]:
    table = getattr(feature, "table", None)
    if table:
        return table.vocabulary, table.dim
    return getattr(feature, "vocabulary", None), getattr(feature, "dim", None)


# ---------------------------------------------------------------------- the picture

ROW, TOP = 22, 40
COLUMNS = {"source": (0, 190), "feature": (290, 210), "leaf": (580, 110), "table": (770, 205), "token": (1040, 130)}
"""Left edge and width of each column of the picture."""


@dataclass
class Node:
    """A box of the picture."""

    id: str
    column: str
    text: str
    y: int = 0
    kind: str = ""
    title: str = ""

    @property
    def x(self) -> int:
        return COLUMNS[self.column][0]

    @property
    def width(self) -> int:
        return COLUMNS[self.column][1]


@dataclass
class Picture:
    """Nodes and edges of the lineage, placed."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str], None] = field(default_factory=dict)
    headings: list[tuple[int, int, str]] = field(default_factory=list)
    """(x, y, text)."""

    @property
    def height(self) -> int:
        return max((node.y for node in self.nodes.values()), default=0) + ROW + TOP

    def paths(self) -> Iterable[tuple[str, str, str]]:
        """(from, to, SVG path) of every edge."""
        for one, other in self.edges:
            a, b = self.nodes[one], self.nodes[other]
            x1, y1, x2, y2 = a.x + a.width, a.y + ROW // 2 - 2, b.x, b.y + ROW // 2 - 2
            middle = (x1 + x2) // 2
            yield one, other, f"M{x1},{y1}C{middle},{y1} {middle},{y2} {x2},{y2}"


def lineage_picture(schema: Schema) -> Picture:
    """Source column -> feature or label -> stored leaf -> table or dense input -> token or head."""
    picture = Picture()
    add = picture.nodes.setdefault
    read = columns.lineage(schema)
    y = TOP
    for group, features in schema.groups():
        if not features:
            continue
        picture.headings.append((COLUMNS["feature"][0], y + 14, group))
        y += ROW
        for feature in features:
            y = _place(schema, picture, group, feature, y)
        if sequence := next((s for s in schema.sequences if s.name == group), None):
            y = _place_type(picture, sequence, y)
        y += ROW // 2
    picture.headings.append((COLUMNS["feature"][0], y + 14, "labels"))
    y += ROW
    for label in schema.labels:
        name = f"label {label.name}"
        add(name, Node(name, "feature", label.name, y, label.kind, label_in_words(label)))
        add(
            f"leaf {name}",
            Node(
                f"leaf {name}", "leaf", "int32" if label.kind == "binary" else "float32", y, "", f"labels.{label.name}"
            ),
        )
        add(f"head {label.name}", Node(f"head {label.name}", "token", f"head {label.name}", y, "head"))
        picture.edges |= {(name, f"leaf {name}"): None, (f"leaf {name}", f"head {label.name}"): None}
        y += ROW
    _tables_and_tokens(picture)
    _sources(schema, picture, read)
    return picture


def _place(schema: Schema, picture: Picture, group: str, feature: Feature, y: int) -> int:
    name = f"{group}.{feature.name}"
    title = in_words(feature) + (f"\n{feature.description}" if feature.description else "")
    picture.nodes[name] = Node(name, "feature", feature.name, y, feature.kind, title)
    stored = stored_as(feature)
    leaf = f"leaf {name}"
    picture.nodes[leaf] = Node(
        leaf, "leaf", STORED_TEXT[stored] if stored else "derived", y, "" if stored else "derived", name
    )
    table = table_name(group, feature)
    # The box is named by the table, or by the group's own dense inputs.
    target = f"table {table}" if table else f"numbers {group}"
    text = (table or "").removeprefix(f"{group}.") if table else f"numbers of {group}"
    picture.nodes.setdefault(
        target, Node(target, "table", text, 0, "table" if table else "numbers", encoding_in_words(feature))
    )
    token = _token(schema, group, feature)
    picture.nodes.setdefault(token, Node(token, "token", token.removeprefix("token "), 0, "token"))
    picture.edges |= {(name, leaf): None, (leaf, target): None, (target, token): None}
    return y + ROW


def _place_type(picture: Picture, sequence: EventSequence, y: int) -> int:
    """The implicit feature of a sequence: which of its events a token is."""
    name = f"{sequence.name}.{TYPE}"
    table, token = f"table {name}", f"token {sequence.name} event"
    picture.nodes[name] = Node(name, "feature", TYPE, y, "type", ", ".join(event_names(sequence)))
    picture.nodes[f"leaf {name}"] = Node(f"leaf {name}", "leaf", "int32", y, "", name)
    picture.nodes[table] = Node(
        table, "table", TYPE, 0, "table", f"{len(sequence.events)} enumerated × {sequence.type_dim}"
    )
    picture.nodes.setdefault(token, Node(token, "token", token.removeprefix("token "), 0, "token"))
    picture.edges |= {(name, f"leaf {name}"): None, (f"leaf {name}", table): None, (table, token): None}
    return y + ROW


def _token(schema: Schema, group: str, feature: Feature) -> str:
    if group == USER:
        return f"token user.{feature.name}" if schema.user.tokens == "feature" else "token user"
    if group == CANDIDATES:
        return "token candidate"
    sequence = next(s for s in schema.sequences if s.name == group)
    return f"token {group} {feature.name}" if feature.name in sequence.interleave else f"token {group} event"


def _tables_and_tokens(picture: Picture) -> None:
    """Each table beside the middle of its leaves, each token beside the middle of its tables, none over another."""
    for column in ("table", "token"):
        nodes = [node for node in picture.nodes.values() if node.column == column and node.kind != "head"]
        middles = {}
        for node in nodes:
            ys = [picture.nodes[a].y for a, b in picture.edges if b == node.id]
            middles[node.id] = sum(ys) / len(ys)
        y = TOP + ROW
        for node in sorted(nodes, key=lambda node: middles[node.id]):
            node.y = max(y, int(middles[node.id]))
            y = node.y + ROW
        heads = [node for node in picture.nodes.values() if node.kind == "head"] if column == "token" else []
        for head in heads:
            head.y = max(head.y, y)
            y = head.y + ROW


def _sources(schema: Schema, picture: Picture, read: dict[tuple[str, str], list[str]]) -> None:
    """Source columns under their source, sources by where their readers stand."""
    by_source: dict[str, list[tuple[float, str]]] = {}
    for (source, column), readers in read.items():
        ys = [picture.nodes[reader].y for reader in readers if reader in picture.nodes]
        if ys:
            by_source.setdefault(source, []).append((sum(ys) / len(ys), column))
    y = TOP
    for source, found in sorted(by_source.items(), key=lambda item: sum(at for at, _ in item[1]) / len(item[1])):
        picture.headings.append((0, y + 14, source))
        y += ROW
        for _, column in sorted(found):
            name = f"column {source}.{column}"
            declared = schema.source(source)
            title = f"{declared.columns[column]}, {declared.physical(column)} in the files"
            picture.nodes[name] = Node(name, "source", column, y, declared.kind, title)
            for reader in read[source, column]:
                if reader in picture.nodes:
                    picture.edges[name, reader] = None
            y += ROW
        y += ROW // 2


# ---------------------------------------------------------------------- the page


def feature_page(schema: Schema) -> str:
    """The catalogue as HTML; nothing in it is fetched from elsewhere."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((Path(__file__).parent / "docs.html").read_text())
    size = sizes(schema)
    read = columns.lineage(schema)
    return template.render(
        schema=schema,
        picture=lineage_picture(schema),
        row=ROW,
        width=sum(COLUMNS["token"]) + 4,
        columns={"source column": 0, "feature": 290, "stored": 580, "table": 770, "token": 1040},
        groups=[
            (_group(schema, group), [*(_feature(schema, group, f) for f in features), *_type(schema, group)])
            for group, features in schema.groups()
            if features
        ],
        labels=[(label, label_in_words(label)) for label in schema.labels],
        tables=[(table, vocabulary_in_words(table.vocabulary)) for table in size.tables],
        sources=[
            (source, [(c, t, read.get((source.name, c), [])) for c, t in source.columns.items()])
            for source in schema.sources
        ],
        sizes=size,
        advice=lint(schema),
        amount=amount,
    )


def _group(schema: Schema, group: str) -> dict[str, str]:
    sequence = next((s for s in schema.sequences if s.name == group), None)
    if sequence:
        told = f"the newest {sequence.max_length} events of {sequence.lookback}: {', '.join(event_names(sequence))}"
        scope = "before the day" if sequence.scope == "history" else "within the day, as it became available"
        return {"name": group, "told": f"{told}; {scope}"}
    if group == USER:
        return {"name": group, "told": "the profile as of the day's start"}
    return {
        "name": group,
        "told": f"rows of {schema.candidates.source}, at most {schema.candidates.max_candidates:,} a sample",
    }


def _feature(schema: Schema, group: str, feature: Feature) -> dict[str, str]:
    table = table_name(group, feature)
    stored = stored_as(feature)
    return {
        "name": feature.name,
        "id": f"{group}.{feature.name}",
        "kind": feature.kind.replace("_", " "),
        "value": in_words(feature),
        "encoding": encoding_in_words(feature),
        "stored": STORED_TEXT[stored] if stored else "derived",
        "table": table or "",
        "table_text": "own" if table == f"{group}.{feature.name}" else table or "",
        "token": _token(schema, group, feature).removeprefix("token "),
        "description": feature.description,
        "owner": feature.owner,
    }


def _type(schema: Schema, group: str) -> list[dict[str, str]]:
    """The row of a sequence's implicit feature."""
    return [
        {
            "name": TYPE,
            "id": f"{group}.{TYPE}",
            "kind": "event type",
            "value": ", ".join(event_names(sequence)),
            "encoding": f"{len(sequence.events)} enumerated × {sequence.type_dim}",
            "stored": "int32",
            "table": f"{group}.{TYPE}",
            "table_text": "own",
            "token": f"{group} event",
            "description": "",
            "owner": "",
        }
        for sequence in schema.sequences
        if sequence.name == group
    ]


def amount(count: float, unit: str = "B") -> str:
    """`6.2 MB`."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.0f} {prefix}{unit}" if prefix == "" else f"{count:.1f} {prefix}{unit}"
        count /= 1000
    return f"{count:,.1f} P{unit}"
