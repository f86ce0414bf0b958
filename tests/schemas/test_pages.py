"""The pages under docs/ about schemas say what is so."""

from __future__ import annotations

import re
from pathlib import Path

from genrank.command.schema import app
from genrank.schemas import Schema
from genrank.schemas.expression import FUNCTIONS
from genrank.schemas.review.diff import diff
from genrank.schemas.review.lint import lint

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_block(page: str) -> dict[str, object]:
    """The names that the first Python listing of a page defines."""
    listing = re.search(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    assert listing
    names: dict[str, object] = {}
    exec(compile(listing[1], page, "exec"), names)
    return names


def test_the_ten_features_of_the_side_by_side_are_declared() -> None:
    schema = python_block("side-by-side.md")["schema"]
    assert isinstance(schema, Schema)
    assert lint(schema) == []
    text = (DOCS / "side-by-side.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .*?`(\w+)`", text, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    declared = {feature.name for feature in schema.candidates.features} | {s.name for s in schema.sequences}
    assert {name for _, name in rows} <= declared
    listings = re.findall(r"```(?:python|protobuf)\n(.*?)```", text, re.S)
    for listing in listings:
        numbers = {int(n) for comment in re.findall(r"#\s*(\d[\d, ]*)", listing) for n in re.findall(r"\d+", comment)}
        assert numbers == set(range(1, 11)), "each listing marks where each of the ten features is"


def test_composing_a_schema_as_the_page_says() -> None:
    names = python_block("schemas.md")
    schema, bolder = names["schema"], names["bolder"]
    assert isinstance(schema, Schema) and isinstance(bolder, Schema)
    assert {c.where for c in diff(schema, bolder) if c.cost == "rebuild"} == {
        "candidates.user_category_carts_14d",
        "history.seller",
    }


def test_the_page_lists_every_function_and_command() -> None:
    text = (DOCS / "schemas.md").read_text()
    assert all(f"`{name}`" in text for name in FUNCTIONS)
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"genrank schema {name}" in text
