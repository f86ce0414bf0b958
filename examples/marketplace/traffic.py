"""A day of one chunk of users: who comes when, what they are shown, what they click and buy, and what stays in their minds.

Users are independent of each other, so a chunk is simulated alone; within it the n-th requests of all users form one vectorised
step, because a request's clicks change the probabilities of the user's next request.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from genrank.examples.marketplace.preferences import (
    DEVICES,
    HOUR_WEIGHTS,
    Array,
    Catalogue,
    Population,
    Preferences,
    Traffic,
    rng,
)

DAY_MS = 86_400_000
NEVER = np.float32(-1e9)  # seconds: longer ago than any memory
NO_DAY = np.int16(-1000)
RECENT = 64


@dataclass
class Day:
    """Clean events of a chunk and a day, times in epoch ms UTC, users as rows of the chunk and items as indices."""

    exposures: dict[str, Array]
    clicks: dict[str, Array]
    carts: dict[str, Array]
    purchases: dict[str, Array]
    follows: dict[str, Array]


class Chunk:
    """The memory of a chunk of users: everything the next request's probabilities depend on."""

    def __init__(
        self,
        seed: int,
        prefs: Preferences,
        traffic: Traffic,
        catalogue: Catalogue,
        population: Population,
        chunk: int,
        start_ms: int,
    ) -> None:
        self.seed, self.prefs, self.traffic = seed, prefs, traffic
        self.catalogue, self.people, self.chunk, self.start_ms = catalogue, population, chunk, start_ms
        n, items = population.n, len(catalogue)
        # Times in this block are seconds since the world's start.
        self.category_click = np.full((n, catalogue.categories), NEVER, np.float32)
        self.brand_click = np.full((n, prefs.brands), NEVER, np.float32)
        self.category_bought = np.full((n, catalogue.categories), NEVER, np.float32)
        self.shown = np.zeros((n, items), np.uint8)  # showings without a click, halved every night
        self.clicked = np.full((n, items), NO_DAY, np.int16)  # day of the last click
        self.recent = np.full((n, RECENT), -1, np.int32)  # items of earlier days, for retargeting
        self.followed = np.zeros((n, prefs.brands), bool)

    def day(self, day: int) -> Day:
        """Simulate one day. Days must be asked for in order."""
        r = rng(self.seed, "traffic", self.chunk, day)
        request_user, request_s, request_rank = self._requests(r, day)
        rows = self._slates(r, day, request_user, request_s)
        self._decide(r, day, rows, request_rank)
        result = self._events(r, day, rows, request_user, request_rank)
        self.recent[rows["user"], r.integers(RECENT, size=len(rows["user"]))] = rows["item"]
        self.shown >>= 1
        return result

    # ------------------------------------------------------------------ who comes when

    def _requests(self, r: np.random.Generator, day: int) -> tuple[Array, Array, Array]:
        """(user, second of the day, rank among the user's requests of the day), ordered by rank, then user."""
        people, traffic = self.people, self.traffic
        active = np.flatnonzero((r.random(people.n) < people.activity) & (people.registered <= day))
        sessions = np.maximum(1, r.poisson(people.sessions[active]))
        session_user = np.repeat(active, sessions)
        hours = np.concatenate([[0.0], np.cumsum(HOUR_WEIGHTS / HOUR_WEIGHTS.sum())])
        begin = np.interp(r.random(len(session_user)), hours, np.arange(25)) * 3600
        count = np.minimum(r.geometric(1 / traffic.requests, len(session_user)), 12)
        user = np.repeat(session_user, count)
        gap = np.clip(r.lognormal(np.log(traffic.request_gap_seconds), 0.6, len(user)), 25, 480)
        first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
        gap[first] = begin
        total = np.cumsum(gap)
        second = total - np.repeat(total[first] - begin, count)
        # Sessions of one user may overlap: put the requests in order and at least 25 s apart, so that clicks come between them.
        order = np.lexsort((second, user))
        user, second = user[order], second[order]
        rank = _rank(user)
        spaced = user * 1e7 + second - rank * 25.0
        second = np.maximum.accumulate(spaced) - user * 1e7 + rank * 25.0
        keep = second < 86_399
        user, second, rank = user[keep], second[keep], rank[keep]
        order = np.argsort(rank, kind="stable")
        return user[order], second[order], rank[order]

    # ------------------------------------------------------------------ what they are shown

    def _slates(self, r: np.random.Generator, day: int, request_user: Array, request_s: Array) -> dict[str, Array]:
        """The exposures of every request, in request order and by position, with the part of the logit that no event changes."""
        prefs, people, catalogue = self.prefs, self.people, self.catalogue
        low, high = self.traffic.slots
        slots = low + r.binomial(high - low, 1 / 3, len(request_user))
        request = np.repeat(np.arange(len(request_user), dtype=np.int32), slots)
        user = request_user[request]
        item = self._retrieve(r, day, user)
        # A request shows an item once.
        _, first = np.unique(request.astype(np.int64) * len(catalogue) + item, return_index=True)
        request, user, item = request[first], user[first], item[first]

        category, brand = catalogue.category[item], catalogue.brand[item]
        price = catalogue.price(day).astype(np.float32)
        relative = np.log(price) - catalogue.log_price_of_category[catalogue.category[: len(price)]].astype(np.float32)
        misfit = (relative[item] - people.price_level[user]) ** 2
        taste = people.category[user, category] + people.brand[user, brand] + people.style[user, catalogue.style[item]]
        liking = taste + catalogue.appeal[item] - np.float32(prefs.price) * misfit

        # The logging recommender ranks by what little it knows.
        score = np.float32(prefs.policy_rank) * liking + r.standard_normal(len(item), np.float32)
        order = np.argsort(request - 0.499 * np.tanh(score / 4).astype(np.float64), kind="stable")
        request, user, item, category, brand = (a[order] for a in (request, user, item, category, brand))
        taste, liking, misfit = taste[order], liking[order], misfit[order]
        position = _rank(request).astype(np.int32)

        scene_of = r.choice(len(prefs.scene), len(request_user), p=[0.6, 0.2, 0.15, 0.05]).astype(np.int8)
        device_of = np.where(
            r.random(len(request_user)) < 0.15,
            r.integers(len(DEVICES), size=len(request_user)),
            people.device[request_user],
        ).astype(np.int8)
        of_request = np.asarray(prefs.scene)[scene_of] + prefs.hour * np.cos((request_s / 3600 - 21) * (2 * np.pi / 24))
        logit = liking + np.float32(prefs.base) + of_request.astype(np.float32)[request]
        logit -= np.float32(prefs.position) * np.log2(1 + position).astype(np.float32)
        buy = np.float32(prefs.purchase_base) + np.float32(prefs.purchase_taste) * taste - prefs.purchase_price * misfit
        buy += np.float32(prefs.purchase_membership) * people.membership[user]
        return {
            "request": request,
            "second": request_s[request],
            "user": user,
            "item": item,
            "category": category,
            "brand": brand,
            "position": position,
            "scene": scene_of[request],
            "device": device_of[request],
            "logit": logit,
            "buy_logit": buy.astype(np.float32),
            "taste": taste,
            "price": price[item],
        }

    def _retrieve(self, r: np.random.Generator, day: int, user: Array) -> Array:
        """Candidates: by popularity within categories the user leans to; some of earlier days again; some new ones."""
        prefs, catalogue, people = self.prefs, self.catalogue, self.people
        n, categories = len(user), catalogue.categories
        weight = catalogue.weights(day)
        by_category = np.argsort(catalogue.category[: len(weight)], kind="stable")
        reach = np.concatenate([[0.0], np.cumsum(weight[by_category])])
        edge = np.searchsorted(catalogue.category[by_category], np.arange(categories + 1))
        lean = np.exp(prefs.policy_category * people.category) * np.diff(reach[edge])[None, :]
        share = np.cumsum(lean / lean.sum(1, keepdims=True), axis=1)
        share[:, -1] = 1.0
        share += np.arange(people.n)[:, None]
        category = np.searchsorted(share.ravel(), user + r.random(n), side="right") - user.astype(np.int64) * categories
        category = np.minimum(category, categories - 1)
        low, high = reach[edge[category]], reach[edge[category + 1]]
        spot = np.searchsorted(reach, low + r.random(n) * (high - low), side="right") - 1
        item = by_category[np.clip(spot, edge[category], edge[category + 1] - 1)].astype(np.int32)

        kind = r.random(n)
        again = self.recent[user, r.integers(RECENT, size=n)]
        item = np.where((kind < prefs.retarget) & (again >= 0), again, item)
        newest, oldest = len(weight), catalogue.listed(max(0, day - 3))
        if day:
            new = oldest + (r.random(n) * (newest - oldest)).astype(np.int32)
            item = np.where(kind > 1 - prefs.explore, new, item)
        return item.astype(np.int32)

    # ------------------------------------------------------------------ what they click and buy

    def _decide(self, r: np.random.Generator, day: int, rows: dict[str, Array], request_rank: Array) -> None:
        """Add `click_probability`, `purchase_probability`, `click`, `purchase` and `purchase_delay` (seconds), step by step."""
        prefs, n, items = self.prefs, len(rows["user"]), len(self.catalogue)
        user, logit, buy_logit = rows["user"], rows["logit"], rows["buy_logit"]
        second = (day * 86_400 + rows["second"]).astype(np.float32)
        cell = user.astype(np.int64) * items + rows["item"]
        category = user.astype(np.int64) * self.catalogue.categories + rows["category"]
        brand = user.astype(np.int64) * prefs.brands + rows["brand"]
        forced = self.people.forced[user]
        is_bot = ~np.isnan(forced)
        draw, buy_draw = r.random(n, np.float32), r.random(n, np.float32)
        # After the click and the cart, within a day of the exposure.
        delay = np.clip(r.lognormal(np.log(prefs.purchase_hours * 3600), 1.1, n), 120, 23 * 3600).astype(np.float32)
        p, q = np.empty(n, np.float32), np.empty(n, np.float32)
        click, purchase = np.zeros(n, bool), np.zeros(n, bool)

        category_click, brand_click = self.category_click.ravel(), self.brand_click.ravel()
        bought, shown, clicked = self.category_bought.ravel(), self.shown.ravel(), self.clicked.ravel()
        fade, bought_s = np.float32(-1 / (60 * prefs.intent_minutes)), np.float32(prefs.bought_days * 86_400)
        tired = (prefs.fatigue * np.log2(1 + np.arange(256))).astype(np.float32)
        repeat, purchase_repeat = np.float32(prefs.repeat), np.float32(prefs.purchase_repeat)
        intent_category, intent_brand = np.float32(prefs.intent_category), np.float32(prefs.intent_brand)

        rank = request_rank[rows["request"]]
        edges = np.searchsorted(rank, np.arange(rank[-1] + 2 if n else 1))
        for begin, end in itertools.pairwise(edges):
            now = slice(begin, end)
            t, at, at_category, at_brand = second[now], cell[now], category[now], brand[now]
            back = day - clicked[at] <= prefs.repeat_days
            since_bought = t - bought[at_category]
            z = logit[now] + intent_category * np.exp(fade * (t - category_click[at_category]))
            z += intent_brand * np.exp(fade * (t - brand_click[at_brand]))
            z -= np.float32(prefs.bought) * ((since_bought >= 0) & (since_bought < bought_s))
            z += repeat * back - tired[shown[at]]
            chance = 1 / (1 + np.exp(-z))
            chance = np.where(is_bot[now], forced[now], chance)
            buying = 1 / (1 + np.exp(-(buy_logit[now] + purchase_repeat * back)))
            buying = np.where(is_bot[now], np.float32(0), buying)
            hit = draw[now] < chance
            sold = hit & (buy_draw[now] < buying)
            p[now], q[now], click[now], purchase[now] = chance, chance * buying, hit, sold
            category_click[at_category[hit]] = t[hit]
            brand_click[at_brand[hit]] = t[hit]
            clicked[at[hit]] = day
            count = shown[at]
            shown[at] = np.where(hit, 0, count + (count < 255))
            if sold.any():
                # A purchase still on its way is not replaced by a later one.
                where, when = at_category[sold], (t + delay[now])[sold]
                waiting = bought[where] > t[sold]
                bought[where] = np.where(waiting, bought[where], when)
        rows |= {
            "click_probability": p,
            "purchase_probability": q,
            "click": click,
            "purchase": purchase,
            "purchase_delay": delay,
        }

    # ------------------------------------------------------------------ what the log says

    def _events(
        self, r: np.random.Generator, day: int, rows: dict[str, Array], request_user: Array, request_rank: Array
    ) -> Day:
        begin = self.start_ms + day * DAY_MS
        ts = begin + (rows["second"] * 1000).astype(np.int64)
        user_request = day * 10_000 + request_rank.astype(np.int64)[rows["request"]]
        names = ("user", "item", "position", "scene", "device", "click_probability", "purchase_probability", "price")
        exposures = {name: rows[name] for name in names} | {"ts": ts, "user_request": user_request}

        hit = np.flatnonzero(rows["click"])
        bot = ~np.isnan(self.people.forced[rows["user"][hit]])
        patience = np.clip(r.lognormal(np.log(6.0), 0.5, len(hit)), 1.5, 20) * 1000
        dwell = np.clip(r.lognormal(np.log(15.0), 0.8, len(hit)) * np.exp(0.4 * rows["taste"][hit]), 0.5, 1800) * 1000
        clicks = {
            "user": rows["user"][hit],
            "item": rows["item"][hit],
            "user_request": user_request[hit],
            "ts": ts[hit] + np.where(bot, r.integers(1, 30, len(hit)), patience).astype(np.int64),
            "dwell_ms": np.where(bot, r.integers(0, 20, len(hit)), dwell).astype(np.int32),
        }

        sold = rows["purchase"][hit]
        basket = np.flatnonzero(np.where(bot, False, r.random(len(hit)) < np.where(sold, 0.8, 0.08)))
        quantity = r.choice(np.array([1, 2, 3, 4], np.int32), len(hit), p=[0.8, 0.13, 0.05, 0.02])
        carts = {name: clicks[name][basket] for name in ("user", "item", "user_request")}
        carts |= {"ts": clicks["ts"][basket] + r.integers(3_000, 90_000, len(basket)), "quantity": quantity[basket]}

        bought = np.flatnonzero(sold)
        purchases = {name: clicks[name][bought] for name in ("user", "item", "user_request")}
        purchases |= {
            "ts": ts[hit[bought]] + (rows["purchase_delay"][hit[bought]].astype(np.float64) * 1000).astype(np.int64),
            "quantity": quantity[bought],
            "amount": np.round(quantity[bought] * rows["price"][hit[bought]], 2).astype(np.float32),
        }
        return Day(exposures, clicks, carts, purchases, self._follows(r, begin, rows, hit, clicks["ts"]))

    def _follows(
        self, r: np.random.Generator, begin: int, rows: dict[str, Array], hit: Array, click_ts: Array
    ) -> dict[str, Array]:
        """Users follow brands they like after a click, and drop one now and then."""
        user, brand = rows["user"][hit], rows["brand"][hit]
        keen = np.isnan(self.people.forced[user]) & (
            r.random(len(hit)) < 0.12 / (1 + np.exp(-4 * self.people.brand[user, brand]))
        )
        dropped = np.argwhere(self.followed & (r.random(self.followed.shape, np.float32) < 0.01))
        keen &= ~self.followed[user, brand]
        chosen = np.flatnonzero(keen)
        _, first = np.unique(user[chosen].astype(np.int64) * self.followed.shape[1] + brand[chosen], return_index=True)
        chosen = chosen[np.sort(first)]
        self.followed[dropped[:, 0], dropped[:, 1]] = False
        self.followed[user[chosen], brand[chosen]] = True
        return {
            "user": np.concatenate([user[chosen], dropped[:, 0]]),
            "brand": np.concatenate([brand[chosen], dropped[:, 1]]),
            "ts": np.concatenate(
                [
                    click_ts[chosen] + r.integers(1000, 60_000, len(chosen)),
                    begin + r.integers(DAY_MS, size=len(dropped)),
                ]
            ),
            "action": np.concatenate([np.ones(len(chosen), bool), np.zeros(len(dropped), bool)]),
        }


def _rank(sorted_keys: Array) -> Array:
    """0, 1, 2, ... within each run of equal keys."""
    n = len(sorted_keys)
    starts = (
        np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]])) if n else np.zeros(0, np.int64)
    )
    return np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
