"""The JSON Schema (draft 2020-12) of a schema's requests, for clients in any language and for their code generators."""

from __future__ import annotations

import pyarrow as pa

from genrank.schemas.derive.sample_schema import leaves
from genrank.schemas.derive.tables import event_names
from genrank.schemas.features import Feature
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.serving.request_contract import RequestContract
from genrank.serving.request_json import may_be_missing

Json = dict[str, object]
_DOCS = {
    "sample_id": "the sender's name for the request; it comes back with the scores",
    "window_start": "epoch ms: begin of the day in which the candidates are shown",
    "window_end": "epoch ms: begin of the next day",
    "ts": "epoch ms",
    "type": "which event it is",
    "available": "epoch ms from which the event could be seen; ascending",
    "item": "what is ranked",
    "request": "candidates of one request share it",
}


def request_json_schema(contract: RequestContract) -> Json:
    """What `request_json.read_json` reads, as far as JSON Schema can say it: lists of one group are also of equal length."""
    schema = contract.schema
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"requests of {schema.name}",
        "$comment": f"schema fingerprint {schema.fingerprint}",
        **_object({"requests": {"type": "array", "minItems": 1, "items": request_object(contract)}}),
    }


def request_object(contract: RequestContract) -> Json:
    """One request: a line of a file of requests."""
    features = {f"{group}.{f.name}": f for group, own in contract.schema.groups() for f in own}
    stored = {f"{leaf.group}.{leaf.name}" for leaf in leaves(contract.schema)}
    properties: Json = {}
    for field in contract.sent:
        if not pa.types.is_struct(field.type):
            properties[field.name] = _value(contract, field.name, field.type) | _said(field.name)
            continue
        own: Json = {}
        for child in field.type:
            name = f"{field.name}.{child.name}"
            said = _of_feature(features[name]) if name in stored else _said(child.name)
            if field.name == USER:
                own[child.name] = _value(contract, name, child.type) | said
                continue
            item = _value(contract, name, child.type.value_type) | _range(contract.schema, field.name, child.name)
            own[child.name] = {"type": "array", "items": item, **_length(contract, field.name), **said}
        properties[field.name] = _object(own)
    return _object(properties)


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _value(contract: RequestContract, name: str, type_: pa.DataType) -> Json:
    """One value of a column."""
    null = ["null"] if may_be_missing(name) else []
    if pa.types.is_string(type_):
        return {"type": "string"}
    if (length := contract.vectors.get(name)) and pa.types.is_list(type_):
        numbers = {"type": "array", "items": {"type": "number"}}
        whole: Json = {**numbers, "minItems": length, "maxItems": length}
        return {"anyOf": [whole, {**numbers, "maxItems": 0}, {"type": "null"}]}
    if pa.types.is_list(type_):
        return {"type": ["array", *null], "items": _value(contract, name, type_.value_type)}
    if pa.types.is_floating(type_):
        return {"type": ["number", *null]}
    text = ["string"] if name in contract.text_ids else []
    kinds = ["integer", *text, *null]
    if type_ == pa.int32():
        return {"type": kinds, "minimum": 0}
    return {"type": kinds if len(kinds) > 1 else kinds[0], "minimum": MISSING_ID + 1, "maximum": -MISSING_ID - 1}


def _length(contract: RequestContract, group: str) -> Json:
    if group == CANDIDATES:
        return {"minItems": 1, "maxItems": contract.max_candidates}
    return {"maxItems": next(s.max_length for s in contract.schema.sequences if s.name == group)}


def _range(schema: Schema, group: str, leaf: str) -> Json:
    if leaf != "type":
        return {}
    names = event_names(next(s for s in schema.sequences if s.name == group))
    return {"maximum": len(names) - 1, "description": ", ".join(f"{at}: {name}" for at, name in enumerate(names))}


def _said(name: str) -> Json:
    return {"description": _DOCS[name]} if name in _DOCS else {}


def _of_feature(feature: Feature) -> Json:
    words = feature.value_in_words()
    return {"description": f"{words}: {feature.description}" if feature.description else words}
