"""The feature catalogue: one self-contained HTML page, with lineage from source column to feature, leaf, table and token."""

from __future__ import annotations

from pathlib import Path

from genrank.schemas.base import USER
from genrank.schemas.derive.lineage import lineage
from genrank.schemas.derive.sizes import sizes
from genrank.schemas.derive.tables import TYPE, event_names, table_name
from genrank.schemas.features import Feature
from genrank.schemas.present.lineage_picture import COLUMNS, ROW, lineage_picture, token_of
from genrank.schemas.review.lint import lint
from genrank.schemas.schema import Schema
from genrank.schemas.stored import STORED_TEXT


def feature_page(schema: Schema) -> str:
    """The catalogue as HTML; nothing in it is fetched from elsewhere."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((Path(__file__).parent / "docs.html").read_text())
    size = sizes(schema)
    read = lineage(schema)
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
        labels=[(label, label.in_words()) for label in schema.labels],
        tables=[(table, table.vocabulary.in_words()) for table in size.tables],
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
        window = f"the newest {sequence.max_length} events of {sequence.lookback}: {', '.join(event_names(sequence))}"
        scope = "before the day" if sequence.scope == "history" else "within the day, as it became available"
        return {"name": group, "holds": f"{window}; {scope}"}
    if group == USER:
        return {"name": group, "holds": "the profile as of the day's start"}
    return {
        "name": group,
        "holds": f"rows of {schema.candidates.source}, at most {schema.candidates.max_candidates:,} a sample",
    }


def _feature(schema: Schema, group: str, feature: Feature) -> dict[str, str]:
    table = table_name(group, feature)
    stored = feature.stored
    return {
        "name": feature.name,
        "id": f"{group}.{feature.name}",
        "kind": feature.kind.replace("_", " "),
        "value": feature.value_in_words(),
        "encoding": feature.encoding_in_words(),
        "stored": STORED_TEXT[stored] if stored else "derived",
        "table": table or "",
        "table_text": "own" if table == f"{group}.{feature.name}" else table or "",
        "token": token_of(schema, group, feature).removeprefix("token "),
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
