"""The gate's suite, and whether what was counted meets it: a row of the frame per staged file and per day.

The suite is Great Expectations' own JSON, and each of its expectations is evaluated here as Great Expectations evaluates it (a test holds
the two side by side), in moments instead of the seconds that its import takes; `data_docs` has it judge the same suite and frame again,
and write a page. The frame holds numbers alone, so nothing of a log's values reaches a page.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Count = float | None
Result = dict[str, object]
"""What an expectation found, as Great Expectations' BASIC result has it."""
SHOWN = 20
"""Unexpected values that a result lists at most."""


@dataclass(frozen=True)
class Between:
    """Every value of a column that isn't missing (None or NaN) lies in [low, high]: `expect_column_values_to_be_between`."""

    column: str
    low: float
    high: float
    notes: str = ""
    """What it means, in words."""

    def document(self) -> dict[str, object]:
        """As a suite's JSON has it."""
        return {
            "kwargs": {"column": self.column, "max_value": self.high, "min_value": self.low},
            "meta": {},
            "notes": self.notes,
            "severity": "critical",
            "type": "expect_column_values_to_be_between",
        }

    def result(self, values: NDArray[np.float64]) -> tuple[bool, Result]:
        """(whether it is met, the counts) of a column, NaN where a value is missing."""
        there = values[~np.isnan(values)]
        at = np.flatnonzero(~np.isnan(values) & ~((values >= self.low) & (values <= self.high)))
        listed = values[at[:SHOWN]].tolist()
        counts = sorted(Counter(listed).items(), key=lambda value: (-value[1], value[0]))
        missing = len(values) - len(there)
        of_those = len(at) / len(there) * 100 if len(there) else None
        return not len(at), {
            "element_count": len(values),
            "missing_count": missing,
            "missing_percent": missing / len(values) * 100 if len(values) else None,
            "partial_unexpected_counts": [{"count": count, "value": value} for value, count in counts],
            "partial_unexpected_index_list": at[:SHOWN].tolist(),
            "partial_unexpected_list": listed,
            "unexpected_count": len(at),
            "unexpected_percent": of_those,
            "unexpected_percent_nonmissing": of_those,
            "unexpected_percent_total": len(at) / len(values) * 100 if len(values) else None,
        }


@dataclass(frozen=True)
class Suite:
    """What a job's days must meet."""

    name: str
    expectations: tuple[Between, ...]

    def text(self) -> str:
        """JSON of Great Expectations' `ExpectationSuite`."""
        expectations = [expectation.document() for expectation in self.expectations]
        return _json({"expectations": expectations, "id": None, "meta": {}, "name": self.name, "notes": None})

    def judge(self, rows: Sequence[Mapping[str, Count]]) -> Verdict:
        """Whether each expectation is met.

        Args:
            rows: column -> number; None, or absent, where it is not of this row.
        """
        names = [expectation.column for expectation in self.expectations]
        frame = {
            name: np.array([np.nan if (value := row.get(name)) is None else value for row in rows], np.float64)
            for name in names
        }
        found = [(one, *one.result(frame[one.column])) for one in self.expectations]
        met = sum(success for _, success, _ in found)
        validation = {
            "id": None,
            "meta": {},
            "results": [
                {
                    "exception_info": {
                        "exception_message": None,
                        "exception_traceback": None,
                        "raised_exception": False,
                    },
                    "expectation_config": one.document(),
                    "meta": {},
                    "result": result,
                    "success": success,
                }
                for one, success, result in found
            ],
            "statistics": {
                "evaluated_expectations": len(found),
                "success_percent": met / len(found) * 100 if found else None,
                "successful_expectations": met,
                "unsuccessful_expectations": len(found) - met,
            },
            "success": met == len(found),
            "suite_name": self.name,
            "suite_parameters": {},
        }
        counts = {name: [None if np.isnan(value) else value for value in frame[name].tolist()] for name in names}
        failed = [one.column for one, success, _ in found if not success]
        return Verdict(failed, self.text(), _json(validation), json.dumps(counts, sort_keys=True))


@dataclass(frozen=True)
class Verdict:
    """What a suite says of a frame."""

    failed: list[str]
    """Columns whose expectation isn't met."""
    suite: str
    """The expectations, JSON."""
    validation: str
    """Their validation, JSON of Great Expectations' `ExpectationSuiteValidationResult`."""
    counts: str
    """The frame, JSON: column -> numbers, a row per staged file and per day; null where one is not of the row."""


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
