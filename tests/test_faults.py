"""docs/faults.md is true: each of its rows that has a recipe here is made, and the line that comes out is the one that the page quotes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from genrank.pipelines.gate import data_docs
from genrank.schemas import (
    UserError,
)
from tests.fault_recipes import logs, runs
from tests.fault_recipes.place import RECIPES, Place, put
from tests.pipelines.plain_page import plain_page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "faults.md"
assert logs and runs, "recipes register themselves"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Logs, samples and a run; each recipe harms a copy."""
    root = tmp_path_factory.mktemp("faults")
    put(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_docs, "write_page", plain_page)
        place = Place(root, patch)
        place.build()
        place.train()
        yield root


# ---------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Row:
    """A row of the page: a fault, what is printed (`...` for what varies), and the exit status."""

    fault: str
    message: str
    status: str

    def quotes(self, line: str) -> bool:
        parts = [re.escape(part) for part in self.message.split("...")]
        return re.fullmatch(".*".join(parts), line, re.DOTALL) is not None


def unquoted(cell: str) -> str:
    """What stands in one or two backquotes."""
    return cell[3:-3] if cell.startswith("`` ") else cell[1:-1]


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] not in ("fault", "---") and not set(cells[0]) <= {"-", ":"}:
            found.append(Row(cells[0], unquoted(cells[1]), cells[2]))
    return found


def line_of(recipe: Callable[[Place], object], place: Place) -> str:
    try:
        return str(recipe(place))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", RECIPES)
def test_a_fault_prints_what_the_page_says(name: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "w", symlinks=True)
    (row,) = [row for row in rows() if row.fault == name]
    with pytest.MonkeyPatch.context() as patch:
        line = line_of(RECIPES[name], Place(tmp_path / "w", patch))
    assert row.quotes(line), f"{name}: {line}"


def test_the_page_has_some_sixty_faults_most_of_them_made_here() -> None:
    names = [row.fault for row in rows()]
    assert len(names) == len(set(names)) >= 60
    assert len(set(names) & RECIPES.keys()) >= 40
    assert {row.status for row in rows()} <= {"0", "1", "75", "130", "143"}
