"""Wrong days: what is changed in a day's rows, and the line of the gate that names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from genrank.schemas.ids import MISSING_ID
from tests.pipelines.worlds import DAY

Row = dict[str, Any]


def longest(rows: list[Row], group: str) -> Row:
    return max(rows, key=lambda row: len(row[group]["ts"]))


def all_values(rows: list[Row], group: str, leaf: str, change: Callable[[Any], Any]) -> None:
    for row in rows:
        row[group][leaf] = [change(value) for value in row[group][leaf]]


# ---------------------------------------------------------------------- labels


def labels_shifted_by_one_candidate(rows: list[Row]) -> None:
    for row in rows:
        for leaf in row["labels"]:
            row["labels"][leaf] = row["labels"][leaf][1:] + row["labels"][leaf][:1]


def label_outside_its_window(rows: list[Row]) -> None:
    """As from a window without end: whatever was clicked before or after counts."""
    all_values(rows, "labels", "click", lambda _: 1)


def infinite_value_label(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["spent"][0] = math.inf


def nan_label_with_weight(rows: list[Row]) -> None:
    row = longest(rows, "candidates")
    row["labels"]["dwell"][0], row["labels"]["dwell_weight"][0] = math.nan, 1.0


def label_of_two(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click"][0] = 2


def negative_weight(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click_weight"][0] = -1.0


def infinite_weight(rows: list[Row]) -> None:
    longest(rows, "candidates")["labels"]["click_weight"][0] = math.inf


def weight_of_an_immature_label(rows: list[Row]) -> None:
    """The click's and the order's windows reach beyond what has landed."""
    for row in rows:
        for leaf in row["labels"]:
            if leaf.endswith("_weight"):
                row["labels"][leaf] = [1.0] * len(row["labels"][leaf])


def mature_label_without_weight(rows: list[Row]) -> None:
    all_values(rows, "labels", "click_weight", lambda _: 0.0)


def positive_without_its_given(rows: list[Row]) -> None:
    row = next(row for row in rows if 0 in row["labels"]["click"])
    row["labels"]["order"][row["labels"]["click"].index(0)] = 1


# ---------------------------------------------------------------------- rows


def half_of_the_samples(rows: list[Row]) -> None:
    del rows[::2]


def half_of_the_candidates(rows: list[Row]) -> None:
    for row in rows:
        keep = range(0, len(row["candidates"]["ts"]), 2)
        for group, leaves in (("candidates", None), ("labels", None), ("mask", ["candidate_sees"])):
            for leaf in leaves or list(row[group]):
                row[group][leaf] = [row[group][leaf][at] for at in keep]


def ten_times_the_rows_under_new_ids(rows: list[Row]) -> None:
    rows += [{**row, "sample_id": f"{row['sample_id']}{copy}"} for copy in range(9) for row in list(rows)[:6]]


def samples_twice(rows: list[Row]) -> None:
    rows.append(rows[0])


def no_sample_at_all(rows: list[Row]) -> None:
    rows.clear()


def a_sample_without_candidates(rows: list[Row]) -> None:
    row = min(rows, key=lambda row: len(row["candidates"]["ts"]))
    for group in ("candidates", "labels"):
        row[group] = {leaf: [] for leaf in row[group]}
    row["mask"]["candidate_sees"] = []


def users_swapped(rows: list[Row]) -> None:
    """The whole identity of two users: only the raw log knows."""
    first, second = sorted(rows, key=lambda row: -len(row["candidates"]["ts"]))[:2]
    for name in ("user_id", "sample_id"):
        first[name], second[name] = second[name], first[name]


def user_of_another_sample_id(rows: list[Row]) -> None:
    rows[0]["user_id"] += 1


def exposure_outside_the_day(rows: list[Row]) -> None:
    row = longest(rows, "candidates")
    row["candidates"]["ts"][-1] = row["window_end"]


def exposures_backwards(rows: list[Row]) -> None:
    row = max(rows, key=lambda row: row["candidates"]["ts"][-1] - row["candidates"]["ts"][0])
    row["candidates"]["ts"].reverse()


def another_days_window(rows: list[Row]) -> None:
    for row in rows:
        row["window_start"] -= DAY
        row["window_end"] -= DAY


def item_missing(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["item"][0] = MISSING_ID


def item_of_another(rows: list[Row]) -> None:
    all_values(rows, "candidates", "item", lambda item: item + 1)


def columns_swapped(rows: list[Row]) -> None:
    for row in rows:
        candidates = row["candidates"]
        candidates["price"], candidates["discount"] = candidates["discount"], candidates["price"]


def ragged(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["price"].pop()


def list_of_another_length(rows: list[Row]) -> None:
    """A feature of at most two tags, as a vector of fixed size would be."""
    longest(rows, "candidates")["candidates"]["tags"][0] = [1, 2, 3, 4]


# ---------------------------------------------------------------------- cross features


def cross_feature_off_by_one(rows: list[Row]) -> None:
    all_values(rows, "candidates", "user_shown", lambda count: count + 1)


def keyed_feature_off_by_one(rows: list[Row]) -> None:
    all_values(rows, "candidates", "item_users", lambda count: count + 1)


def cross_feature_negative(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["all_today"][0] = -1.0


def cross_feature_not_a_number(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["user_shown"][0] = math.nan


def cross_feature_infinite(rows: list[Row]) -> None:
    longest(rows, "candidates")["candidates"]["item_dwell"][0] = math.inf


def cross_feature_of_the_next_candidate(rows: list[Row]) -> None:
    for row in rows:
        values = row["candidates"]["user_spent"]
        row["candidates"]["user_spent"] = [value + 7 for value in values]


def rate_knows_the_click(rows: list[Row]) -> None:
    for row in rows:
        pairs = zip(row["candidates"]["item_ctr"], row["labels"]["click"], strict=True)
        row["candidates"]["item_ctr"] = [rate + 0.2 * click for rate, click in pairs]


# ---------------------------------------------------------------------- sequences


def history_of_the_future(rows: list[Row]) -> None:
    row = longest(rows, "history")
    row["history"]["ts"][-1] = row["window_start"]


def history_in_another_order(rows: list[Row]) -> None:
    for row in rows:
        for leaf in row["history"]:
            row["history"][leaf] = row["history"][leaf][::-1]


def history_too_long(rows: list[Row]) -> None:
    row = longest(rows, "history")
    row["history"] = {leaf: values * 7 for leaf, values in row["history"].items()}


def history_without_its_newest_event(rows: list[Row]) -> None:
    for row in rows:
        row["history"] = {leaf: values[:-1] for leaf, values in row["history"].items()}


def history_features_of_another_event(rows: list[Row]) -> None:
    row = longest(rows, "history")
    row["history"]["item_id"] = [item + 1 for item in row["history"]["item_id"]]


def realtime_before_it_happened(rows: list[Row]) -> None:
    row = longest(rows, "realtime")
    row["realtime"]["ts"][0] = row["realtime"]["available"][0] + 1


def realtime_backwards(rows: list[Row]) -> None:
    row = max(rows, key=lambda row: len(set(row["realtime"]["available"])))
    row["realtime"]["available"].reverse()


def realtime_event_after_the_day(rows: list[Row]) -> None:
    row = longest(rows, "realtime")
    row["realtime"]["available"][-1] = row["window_end"]


def candidate_sees_the_future(rows: list[Row]) -> None:
    longest(rows, "candidates")["mask"]["candidate_sees"][0] += 1


def event_sees_itself(rows: list[Row]) -> None:
    longest(rows, "realtime")["mask"]["realtime_sees"][-1] += 1


def realtime_without_its_first_event(rows: list[Row]) -> None:
    """Lists and counts agree with each other, and an event is gone."""
    for row in rows:
        if row["realtime"]["ts"]:
            row["realtime"] = {leaf: values[1:] for leaf, values in row["realtime"].items()}
            seen = row["realtime"]["available"]
            row["mask"]["candidate_sees"] = [sum(at < ts for at in seen) for ts in row["candidates"]["ts"]]
            row["mask"]["realtime_sees"] = [sum(at < own for at in seen) for own in seen]


PLANTED: list[tuple[Callable[[list[Row]], None], str]] = [
    (labels_shifted_by_one_candidate, r"labels\.\w+\[\d+\] of sample .* the raw log gives"),
    (label_outside_its_window, r"labels\.click\[\d+\] of sample .* is 1, the raw log gives 0"),
    (infinite_value_label, r"labels\.spent\[0\] of sample .* is inf, not a number"),
    (nan_label_with_weight, r"labels\.dwell\[0\] of sample .* is nan, not a number"),
    (label_of_two, r"labels\.click\[0\] of sample .* is 2, not 0 or 1"),
    (negative_weight, r"labels\.click_weight\[0\] of sample .* is -1\.0, not 0 or more"),
    (infinite_weight, r"labels\.click_weight\[0\] of sample .* is inf, not a number"),
    (weight_of_an_immature_label, r"_weight\[\d+\] of sample .* is 1\.0, not 0: the label is not mature"),
    (mature_label_without_weight, r"labels\.click_weight\[\d+\] of sample .* is 0\.0, not 1: the label is mature"),
    (positive_without_its_given, r"labels\.order\[\d+\] of sample .* is 1, not 0 where click is not positive"),
    (half_of_the_samples, r"\d+ exposures went in and \d+ candidates came out"),
    (half_of_the_candidates, r"\d+ exposures went in and \d+ candidates came out"),
    (ten_times_the_rows_under_new_ids, r"\d+ exposures went in and \d+ candidates came out"),
    (samples_twice, r"sample_id .* is there more than once"),
    (no_sample_at_all, r"\d+ exposures went in and 0 candidates came out"),
    (a_sample_without_candidates, r"every sample has a candidate"),
    (users_swapped, r"of sample .* the raw log gives|candidates; the raw log has"),
    (user_of_another_sample_id, r"sample_id\[0\] of sample .* is of another user or day"),
    (exposure_outside_the_day, r"candidates\.ts\[\d+\] of sample .* not inside the day"),
    (exposures_backwards, r"candidates\.ts\[\d+\] of sample .* not after the one before"),
    (another_days_window, r"window_start\[0\] of sample"),
    (item_missing, r"candidates\.item\[0\] of sample .*, not an id of type string"),
    (item_of_another, r"candidates\.item\[0\] of sample .* the raw log gives"),
    (columns_swapped, r"candidates\.price\[\d+\] of sample .* the raw log gives"),
    (ragged, r"is of another length than its group"),
    (list_of_another_length, r"candidates\.tags\[\d+\] of sample .* is 4, not at most 2 long"),
    (cross_feature_off_by_one, r"candidates\.user_shown\[\d+\] of sample .* the raw log gives"),
    (keyed_feature_off_by_one, r"candidates\.item_users\[\d+\] of sample .* the raw log gives"),
    (cross_feature_negative, r"candidates\.all_today\[0\] of sample .* is -1\.0, not a count"),
    (cross_feature_not_a_number, r"candidates\.user_shown\[0\] of sample .* is nan, not a count"),
    (cross_feature_infinite, r"candidates\.item_dwell\[0\] of sample .* is inf, not a number"),
    (cross_feature_of_the_next_candidate, r"candidates\.user_spent\[\d+\] of sample .* the raw log gives"),
    (rate_knows_the_click, r"candidates\.item_ctr\[\d+\] of sample .* the raw log gives"),
    (history_of_the_future, r"history\.ts\[\d+\] of sample .* not available before the window"),
    (history_in_another_order, r"history\.ts\[\d+\] of sample"),
    (history_too_long, r"history\[0\] of sample .* not at most 6"),
    (history_without_its_newest_event, r"history\S* of sample .* the raw log gives"),
    (history_features_of_another_event, r"history\.item_id\[\d+\] of sample .* the raw log gives"),
    (realtime_before_it_happened, r"realtime\.available\[0\] of sample"),
    (realtime_backwards, r"realtime\.available\[\d+\] of sample"),
    (realtime_event_after_the_day, r"realtime\.available\[\d+\] of sample .* not inside the window"),
    (candidate_sees_the_future, r"mask\.candidate_sees\[0\] of sample"),
    (event_sees_itself, r"mask\.realtime_sees\[\d+\] of sample"),
    (realtime_without_its_first_event, r"realtime\S* of sample .* the raw log gives"),
]
