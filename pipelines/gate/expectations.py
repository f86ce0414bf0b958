"""Great Expectations judges what was counted, and writes its verdict as a page: a row of the frame per staged file and per day.

The frame holds numbers alone, so a day of any size is judged in moments and nothing of a log's values reaches a page.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from types import ModuleType

Count = float | None


@dataclass(frozen=True)
class Verdict:
    """What Great Expectations says."""

    failed: list[str]
    """Columns whose expectation isn't met."""
    suite: str
    """The expectations, JSON."""
    validation: str
    """Their validation, JSON."""
    page: str
    """Both for people: Data Docs' page of the validation, HTML."""


def load() -> Future[ModuleType]:
    """Begin to import Great Expectations (seconds), beside whatever else is done."""
    loading: Future[ModuleType] = Future()

    def run() -> None:
        try:
            loading.set_result(_imported())
        except BaseException as error:
            loading.set_exception(error)

    # A build that fails or is stopped before it needs the gate doesn't wait for the import.
    Thread(target=run, name="great-expectations", daemon=True).start()
    return loading


def _imported() -> ModuleType:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for name in ("great_expectations", "posthog"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return importlib.import_module("great_expectations")


def validate(
    loading: Future[ModuleType],
    name: str,
    rows: Sequence[Mapping[str, Count]],
    notes: Mapping[str, str],
) -> Verdict:
    """Whether every column is 0.

    Args:
        name: of the suite.
        rows: column -> number, or None where it is not of this row.
        notes: column -> what it counts breaches of, in words; these are the columns.
    """
    gx = loading.result()
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    suite = gx.ExpectationSuite(name=name)
    for column, note in notes.items():
        suite.add_expectation(ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=0, notes=note))
    frame = pd.DataFrame([[row.get(column) for column in notes] for row in rows], columns=list(notes), dtype=float)
    asset = context.data_sources.add_pandas("gate").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    result = batch.validate(suite)
    failed = [r.expectation_config.kwargs["column"] for r in result.results if r.expectation_config and not r.success]
    page: str = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))  # type: ignore[no-untyped-call]
    return Verdict(failed, _json(suite.to_json_dict()), _json(result.to_json_dict()), page)


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, default=str)
