"""Great Expectations' page of what the gate said of a day: its suite and counts, judged again, as Data Docs shows a validation.

Its import takes seconds, so a build writes the page of a day that it refuses alone; `genrank gate` writes the others.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from genrank.schemas import UserError
from genrank.schemas.files import write_atomically

FOLDER = "gate"
"""Below the output: what the gate said of each day."""
PUBLISHED, REFUSED = "published", "refused"
PAGE, SUITE, VALIDATION, COUNTS = "index.html", "suite.json", "validation.json", "counts.json"


def write_pages(out: Path, days: Sequence[str] | None = None) -> list[Path]:
    """Write the pages of days (YYYY-MM-DD; default all) that have none yet; returns those of all of the days.

    Args:
        out: what was built.

    Raises:
        UserError: the gate has judged no such day, or a record can't be read.
    """
    folders = list(_judged(out, days))
    if not folders:
        asked = "any day" if days is None else ", ".join(days)
        raise UserError(f"--out {out}: the quality gate has judged none of {asked} there; build first")
    for folder in folders:
        if not (folder / PAGE).is_file():
            write_page(folder)
    return [folder / PAGE for folder in folders]


def _judged(out: Path, days: Sequence[str] | None) -> Iterator[Path]:
    for day in sorted((out / FOLDER).glob("dt=*")):
        if days is None or day.name.removeprefix("dt=") in days:
            yield from (day / state for state in (PUBLISHED, REFUSED) if (day / state / SUITE).is_file())


def write_page(folder: Path) -> None:
    """Write the page of a day's suite and counts.

    Raises:
        UserError: one can't be read, or Great Expectations judges otherwise than the gate did.
    """
    try:
        suite, counts, validation = (json.loads((folder / name).read_text()) for name in (SUITE, COUNTS, VALIDATION))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: {SUITE}, {COUNTS} or {VALIDATION} can't be read ({error}); build the day again with --force"
        ) from error
    judged = judge(suite, counts)
    if [one["success"] for one in judged.results] != [one["success"] for one in validation["results"]]:
        raise UserError(
            f"{folder}: Great Expectations judges the counts otherwise than the gate did; report it as a bug, with the folder"
        )
    write_atomically(folder / PAGE, judged.page)


class Judged(NamedTuple):
    """What Great Expectations says."""

    results: list[dict[str, object]]
    """Of each expectation, as a validation's JSON has it."""
    page: str
    """HTML."""


def judge(suite: Mapping[str, object], counts: Mapping[str, list[float | None]]) -> Judged:
    """Great Expectations' validation of a frame (column -> numbers) by a suite (its JSON)."""
    gx = _imported()
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    expectations = gx.ExpectationSuite(name=suite["name"], expectations=suite["expectations"])
    frame = pd.DataFrame(counts, dtype=float)
    asset = context.data_sources.add_pandas(FOLDER).add_dataframe_asset(suite["name"])
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    result = batch.validate(expectations)
    page: str = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))  # type: ignore[no-untyped-call]
    return Judged(result.to_json_dict()["results"], page)


def _imported() -> ModuleType:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for name in ("great_expectations", "posthog"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return importlib.import_module("great_expectations")
