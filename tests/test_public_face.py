"""What `genrank` offers: `from genrank import Schema, train`, known to type checkers, and nothing is paid for before it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import genrank
import genrank.schemas


def static_names() -> dict[str, str]:
    """Name -> module of what type checkers see imported."""
    tree = ast.parse(inspect.getsource(genrank))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_type_checkers_see_what_is_offered() -> None:
    assert sorted([*static_names(), "__version__"]) == sorted(genrank.__all__)


def test_every_declaration_of_a_schema_is_offered() -> None:
    assert set(genrank.schemas.__all__) - genrank.schemas._RENAMED.keys() <= set(genrank.__all__)


@pytest.mark.parametrize("name", sorted(set(genrank.__all__) - {"__version__"}))
def test_a_name_is_what_its_module_holds(name: str) -> None:
    module = static_names()[name]
    assert getattr(genrank, name) is getattr(sys.modules[module], name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        genrank.trian  # noqa: B018


def test_names_are_listed_before_they_are_used() -> None:
    assert set(genrank.__all__) <= set(dir(genrank))


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import genrank\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before} - {'genrank', *sys.stdlib_module_names}\n"
        "print(sorted(loaded), genrank.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == f"[] {genrank.__version__}", done.stderr
