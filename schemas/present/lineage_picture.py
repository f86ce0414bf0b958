"""The lineage of a schema, from source column to feature, stored leaf, table and token, as boxes and lines with their places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from genrank.schemas.base import CANDIDATES, USER
from genrank.schemas.derive.lineage import lineage
from genrank.schemas.derive.tables import TYPE, event_names, table_name
from genrank.schemas.features import Feature
from genrank.schemas.group import EventSequence
from genrank.schemas.schema import Schema
from genrank.schemas.stored import STORED_TEXT

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
        """Left edge, px."""
        return COLUMNS[self.column][0]

    @property
    def width(self) -> int:
        """Width, px."""
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
        """Height of the whole, px."""
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
    read = lineage(schema)
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
        add(name, Node(name, "feature", label.name, y, label.kind, label.in_words()))
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
    title = feature.value_in_words() + (f"\n{feature.description}" if feature.description else "")
    picture.nodes[name] = Node(name, "feature", feature.name, y, feature.kind, title)
    stored = feature.stored
    leaf = f"leaf {name}"
    picture.nodes[leaf] = Node(
        leaf, "leaf", STORED_TEXT[stored] if stored else "derived", y, "" if stored else "derived", name
    )
    table = table_name(group, feature)
    # The box is named by the table, or by the group's own dense inputs.
    target = f"table {table}" if table else f"numbers {group}"
    text = (table or "").removeprefix(f"{group}.") if table else f"numbers of {group}"
    picture.nodes.setdefault(
        target, Node(target, "table", text, 0, "table" if table else "numbers", feature.encoding_in_words())
    )
    token = token_of(schema, group, feature)
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


def token_of(schema: Schema, group: str, feature: Feature) -> str:
    """The token that a feature is part of: `token history event`."""
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
