"""The schema package's layers: each module imports its own layer and those below, and there is no circle."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "schemas"

LAYERS = (
    # What a declaration is made of.
    (
        "base",
        "digest",
        "checked_json",
        "drift",
        "exact_arithmetic",
        "local_days",
        "lock",
        "errors",
        "console",
        "expression",
        "ids",
        "kind",
        "stored",
        "type_rules",
        "messages",
        "findings",
        "source",
        "source_meaning",
    ),
    ("transforms", "vocabularies", "table", "operations"),
    ("features",),
    # The declaration.
    ("group", "label", "declaration", "files", "conversion", "source_files", "absent_columns"),
    # What follows from it, and its mistakes.
    ("derive",),
    ("validate",),
    ("schema", "pydantic_errors"),
    # What it is held against, how it is shown and read.
    ("review",),
    ("present",),
    ("load", "manifest"),
    ("publishing",),
    ("configuration",),
    ("__init__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, as `derive.tables`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("genrank.schemas"):
            module = node.module.removeprefix("genrank.schemas").removeprefix(".")
            for name in (alias.name for alias in node.names):
                inner = f"{module}.{name}".removeprefix(".").replace(".", "/")
                found.add(inner if (PACKAGE / f"{inner}.py").exists() else module.replace(".", "/") or "__init__")
    return found


def modules() -> dict[str, Path]:
    return {str(path.relative_to(PACKAGE).with_suffix("")): path for path in PACKAGE.rglob("*.py")}


def test_every_module_imports_downwards() -> None:
    for name, path in modules().items():
        own = LEVEL[name.split("/")[0]]
        for other in imports(path):
            assert LEVEL[other.split("/")[0]] <= own, f"{name} imports {other}, of a layer above"


def test_there_is_no_circle() -> None:
    known = {name.removesuffix("/__init__"): path for name, path in modules().items()}
    graph = {name: imports(path) & set(known) - {name} for name, path in known.items()}
    while leaves := [name for name, needs in graph.items() if not needs]:
        graph = {name: needs - set(leaves) for name, needs in graph.items() if name not in leaves}
    assert not graph, f"these import one another: {sorted(graph)}"


def test_no_module_is_longer_than_500_lines() -> None:
    assert not [name for name, path in modules().items() if len(path.read_text().splitlines()) > 500]
