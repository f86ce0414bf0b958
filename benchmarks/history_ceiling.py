"""How much a history can tell on the marketplace: the GAUC of the true equation with taste inferred from the user's clicks.

    python -m benchmarks.history_ceiling --users 6000 --day 8

Simulates the world of `genrank world --users N --seed 0` once more with its state at hand, and scores one day's exposures (bots left
out) by the generator's own logit with parts taken out or replaced. Taste (six latent dimensions, the personal part by category) and
price level are each user's maximum a posteriori given the distinct items clicked on the days before, under the generator's own
loadings, item weights and priors: P(clicked item) is proportional to weight x exp(what retrieval and taste add). benchmarks/history.md
says what the rows mean.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genrank.examples.marketplace.preferences import AGES, GENDERS, Array, Catalogue, Population, Preferences, rng
from genrank.examples.marketplace.traffic import Chunk
from genrank.examples.marketplace.world import World
from genrank.model.metrics import Predictions

DAYS = 11
CLICKS = 100
"""Clicks of a user that are read at most, the newest: what a history of 128 events holds of them."""
STEPS, RATE = 80, 0.1


class Watched(Chunk):
    """A chunk that also records how tired the user was of each exposed item."""

    tired: Array
    rows: dict[str, Array]

    def _decide(self, r: np.random.Generator, day: int, rows: dict[str, Array], request_rank: Array) -> None:
        shown = self.shown.copy().ravel()
        super()._decide(r, day, rows, request_rank)
        cell = rows["user"].astype(np.int64) * len(self.catalogue) + rows["item"]
        rank = request_rank[rows["request"]]
        counts = np.zeros(len(cell), np.int64)
        for begin, end in itertools.pairwise(np.searchsorted(rank, np.arange(rank[-1] + 2 if len(rank) else 1))):
            at = cell[begin:end]
            counts[begin:end] = shown[at]
            shown[at] = np.where(rows["click"][begin:end], 0, np.minimum(counts[begin:end] + 1, 255))
        self.tired, self.rows = self.prefs.fatigue * np.log2(1 + counts), rows


@dataclass
class Scored:
    """One day's exposures of a chunk's people, N rows, and what their users clicked before."""

    user: Array
    """[N] rows of the chunk."""
    item: Array
    click: Array
    logit: Array
    """[N] float64 of the true probability."""
    fatigue: Array
    position: Array
    events: Array
    """[N] parts of the logit: what tires, what the place costs, and what earlier clicks and purchases add (intent, repeat, bought)."""
    clicks: Array
    """[users, items] float32: 1 where clicked before the day, of the newest `CLICKS`."""


def simulate(world: World, catalogue: Catalogue, chunk: int, day: int) -> tuple[Population, Scored]:
    """A chunk's days up to and with `day`."""
    n = min(world.chunk_users, world.users - chunk * world.chunk_users)
    people = Population(world.seed, world.preferences, world.traffic, catalogue, chunk, n)
    watched = Watched(world.seed, world.preferences, world.traffic, catalogue, people, chunk, world.start_ms)
    newest = np.full((n, len(catalogue)), -1, np.int64)
    for each in range(day + 1):
        people.live(world.seed, chunk, each)
        clicks = watched.day(each).clicks
        if each < day:
            np.maximum.at(newest, (clicks["user"], clicks["item"]), clicks["ts"])
    edge = -np.sort(-newest, axis=1)[:, CLICKS - 1 : CLICKS]
    rows = watched.rows
    human = np.isnan(people.forced[rows["user"]])
    p = np.where(human, rows["click_probability"], 0.5).astype(
        np.float64
    )  # a bot clicks with 0 or 0.97 for reasons of its own
    logit = np.log(p) - np.log1p(-p)
    found = Scored(
        user=rows["user"].astype(np.int64),
        item=rows["item"].astype(np.int64),
        click=rows["click"],
        logit=logit,
        fatigue=-watched.tired,
        position=-world.preferences.position * np.log2(1 + rows["position"]),
        events=logit - rows["logit"] + watched.tired,
        clicks=((newest >= 0) & (newest >= edge)).astype(np.float32),
    )
    rowwise = {k: v[human] for k, v in vars(found).items() if k != "clicks"}
    return people, Scored(**rowwise, clicks=found.clicks)


class Taste:
    """The generator's loadings, and users' tastes by them."""

    def __init__(self, world: World, catalogue: Catalogue, day: int) -> None:
        prefs: Preferences = world.preferences
        self.prefs, self.catalogue = prefs, catalogue
        # The draws of `Population`, in its order.
        shared = rng(world.seed, "taste")
        by_age = shared.normal(0, prefs.demographic, (len(AGES), prefs.latent))
        by_gender = shared.normal(0, prefs.demographic, (len(GENDERS), prefs.latent))
        by_gender[-1] = 0
        self.by_age = by_age - np.array([0.25, 0.3, 0.2, 0.15, 0.1]) @ by_age
        self.by_gender = by_gender - np.array([0.46, 0.46, 0.08]) @ by_gender
        kinds = ((prefs.category, catalogue.categories), (prefs.brand, prefs.brands), (prefs.style, prefs.styles))
        self.loadings = [shared.normal(0, s / np.sqrt(prefs.latent), (prefs.latent, k)) for s, k in kinds]
        self.of_item = [
            catalogue.category.astype(np.int64),
            catalogue.brand.astype(np.int64),
            catalogue.style.astype(np.int64),
        ]
        listed = catalogue.listed(day)
        price = np.full(len(catalogue), np.nan)
        price[:listed] = np.log(catalogue.price(day))
        self.relative = np.nan_to_num(price - catalogue.log_price_of_category[self.of_item[0]])

    def infer(self, people: Population, active: Array, clicks: Array | None) -> list[Array]:
        """Each user's (category taste, brand taste, style taste, price level), [users, kinds] each, from the clicks of `active`
        users (rows); of age and gender alone without clicks."""
        users = people.n
        prior = torch.tensor(self.by_age[people.age] + self.by_gender[people.gender], dtype=torch.float32)
        latent, personal = prior.clone(), torch.zeros(users, self.catalogue.categories)
        level = torch.zeros(users, 1)
        if clicks is not None:
            some = torch.from_numpy(active)
            parts = [prior[some], latent[some], personal[some], level[some]]
            self._climb(torch.from_numpy(clicks[active]), *parts)
            for whole, part in zip((latent, personal, level), parts[1:], strict=True):
                whole[some] = part
        z = latent.double().numpy()
        category, brand, style = (z @ loading for loading in self.loadings)
        return [category + personal.double().numpy(), brand, style, level.double().numpy()]

    def _climb(self, clicks: Tensor, prior: Tensor, latent: Tensor, personal: Tensor, level: Tensor) -> None:
        """Moves the three to the maximum of the posterior, by Adam with a rate that falls to nothing."""
        prefs, pull = self.prefs, 1 + self.prefs.policy_category
        category, brand, style = (torch.from_numpy(of) for of in self.of_item)
        c, b, s = (torch.tensor(loading, dtype=torch.float32) for loading in self.loadings)
        features = pull * c[:, category] + b[:, brand] + s[:, style]
        weight = torch.from_numpy(np.log(self.catalogue.weight) + self.catalogue.appeal)
        relative = torch.tensor(self.relative, dtype=torch.float32)
        parts = [part.requires_grad_() for part in (latent, personal, level)]
        adam, count = torch.optim.Adam(parts, lr=RATE), clicks.sum(1)
        for step in range(STEPS):
            adam.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            logits = (
                latent @ features + pull * personal[:, category] + weight - prefs.price * (relative - level).square()
            )
            fit = (count * torch.logsumexp(logits, 1) - (clicks * logits).sum(1)).sum()
            loss = fit + 0.5 * (
                (latent - prior).square().sum()
                + (personal / prefs.personal).square().sum()
                + (level / 0.7).square().sum()  # deviation of `Population.price_level`
            )
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        for part in parts:
            part.requires_grad_(False)

    def logit(self, tastes: list[Array], user: Array, item: Array) -> list[Array]:
        """[N] each: what category, brand, style and price add."""
        category, brand, style, level = tastes
        of = [taste[user, kind[item]] for taste, kind in zip((category, brand, style), self.of_item, strict=True)]
        return [*of, -self.prefs.price * (self.relative[item] - level[user, 0]) ** 2]


def rows_of(day: Scored, taste: Taste, people: Population) -> dict[str, Array]:
    """Row name -> [N] score."""
    true = taste.logit([people.category, people.brand, people.style, people.price_level[:, None]], day.user, day.item)
    seen = day.logit - day.position - day.fatigue
    rest = seen - np.sum(true, 0)
    rows = {"truth": day.logit, "without position": day.logit - day.position, "without position and fatigue": seen}
    for name, clicks in (("clicks", day.clicks), ("age and gender", None)):
        inferred = taste.logit(taste.infer(people, np.unique(day.user), clicks), day.user, day.item)
        rows[f"taste by {name}"] = rest + np.sum(inferred, 0)
        rows[f"taste by {name}, without intent, purchases, repeats"] = rest - day.events + np.sum(inferred, 0)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=6_000)
    parser.add_argument("--day", type=int, default=8, help="0 is 1 January")
    args = parser.parse_args()
    torch.manual_seed(0)
    world = World(users=args.users, days=DAYS, seed=0)
    catalogue = Catalogue(world.seed, world.preferences, world.items, world.days)
    taste = Taste(world, catalogue, args.day)
    found: dict[str, Predictions] = {}
    for chunk in range(world.chunks):
        people, day = simulate(world, catalogue, chunk, args.day)
        for name, logit in rows_of(day, taste, people).items():
            user = torch.from_numpy(day.user + chunk * world.chunk_users)
            score = torch.sigmoid(torch.from_numpy(logit))
            click = torch.from_numpy(day.click.astype(np.float32))
            found.setdefault(name, Predictions("binary")).update(user, click, score, torch.ones(len(click)))
    for name, predictions in found.items():
        gauc = predictions.compute(bootstrap=100, seed=0)["gauc"]
        print(f"{name:60s} {gauc.value:.4f} [{gauc.low:.4f}, {gauc.high:.4f}]")


if __name__ == "__main__":
    main()
