"""Who likes what: the preference model of the marketplace, its catalogue and its people.

The click of user u on item i, shown at time t in position p, is a Bernoulli draw from

    logit = base + appeal_i + <latent_u, category_c + brand_b + style_s> + personal_u,c - price * (log price_i - level_u)^2
          + intent(time since u last clicked in c, in b) - bought(u, c) - fatigue(u, i) + repeat(u, i)
          + position_p + scene + hour

so that three kinds of knowledge each pay: the long history (taste, written nowhere else), what the user just did (intent), and
user x item and user x category statistics (fatigue, repeat, bought). Everything here is drawn from generators keyed by (seed, purpose, day or
chunk), so that a day or a chunk of users never depends on how many others are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CATEGORIES = [
    "audio",
    "baby",
    "bags",
    "beauty",
    "books",
    "camera",
    "computers",
    "craft",
    "fitness",
    "food",
    "furniture",
    "games",
    "garden",
    "jewellery",
    "kitchen",
    "lighting",
    "music",
    "outdoor",
    "pets",
    "phones",
    "shoes",
    "stationery",
    "toys",
    "watches",
]
SCENES = ("home", "search", "detail", "cart")
DEVICES = ("android", "ios", "web")
AGES = ("18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("f", "m", "unknown")
MEMBERSHIPS = ("free", "silver", "gold")
CITIES = tuple(f"city_{i:02d}" for i in range(40))
HOUR_WEIGHTS = np.array([2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 7, 8, 10, 13, 15, 14, 10, 5], dtype=np.float64)


@dataclass(frozen=True)
class Preferences:
    """Strengths in logits (standard deviations where drawn per user or item). Ranges are those in which the world stays learnable."""

    # What never changes within the log: worth a long history.
    base: float = -2.55  # intercept; sets the overall click-through rate. -4..-2
    appeal: float = 0.40  # item popularity: sd over items. 0..0.8; 0.4 alone is worth a GAUC of about 0.60
    latent: int = 6  # dimensions of taste, shared by users, categories, brands and styles: few enough to be inferred from 20 clicks. 2..16
    category: float = 0.52  # what the category says about the taste for an item: sd of its part. 0..1
    brand: float = 0.38  # what the brand says. 0..0.8
    style: float = 0.36  # what the style says; an item's style is hidden, its tags reveal it 7 times in 10. 0..0.8
    personal: float = 0.20  # user x category taste outside the shared dimensions. 0..0.5
    demographic: float = 0.35  # how far age and gender move a user's latent taste (sd 1 within them). 0..1
    price: float = 0.18  # penalty per squared log-price distance from the user's level. 0..0.5
    # What the user just did: worth a realtime sequence.
    intent_category: float = 1.20  # after a click in the category, decaying. 0..2
    intent_brand: float = 0.70  # after a click on the brand, decaying. 0..1.5
    intent_minutes: float = 20.0  # the decay's time constant. 5..60
    bought: float = 1.20  # loss of interest in a category after buying in it. 0..2
    bought_days: float = 2.0  # for how long. 0.5..7
    # User x item statistics: worth cross features.
    fatigue: float = 0.90  # times log2(1 + showings without a click), showings halving every night. 0..1
    repeat: float = 1.20  # interest in an item clicked in the last days. 0..1.5
    repeat_days: int = 3
    # Where and when.
    position: float = 0.15  # loss per log2(1 + position). 0..0.5
    scene: tuple[float, ...] = (0.0, 0.35, 0.15, 0.25)  # one a scene
    hour: float = 0.15  # amplitude over the day, highest at 21h
    # Purchase, given a click.
    purchase_base: float = -3.5
    purchase_taste: float = 0.55  # share of the taste logit that carries over
    purchase_price: float = 0.35
    purchase_membership: float = 0.40  # per membership level
    purchase_repeat: float = 0.80  # coming back to an item
    purchase_hours: float = 2.0  # median delay; lognormal with sigma 1.1, cut at 23 h
    # Shape of the catalogue.
    brands: int = 120
    styles: int = 12
    new_items: float = 0.01  # cold items a day, as a share of the first day's catalogue
    # The recommender that logged the exposures: it knows a little of the taste.
    retarget: float = 0.40  # share of slots that show an item of an earlier day again
    explore: float = 0.05  # share of slots that show an item of the last three days
    policy_category: float = 0.60  # how strongly retrieval follows the user's category taste
    policy_rank: float = 0.20  # how strongly ranking follows the true static logit (noise has sd 1)


@dataclass(frozen=True)
class Traffic:
    """How much happens. A median user sees about 30 exposures a day."""

    sessions: float = 1.6  # mean a day, when active
    requests: float = 3.2  # mean a session
    slots: tuple[int, int] = (5, 20)  # exposures a request
    request_gap_seconds: float = 75.0  # median
    hot_rate: float = 0.001  # share of users with 100 times the median's exposures
    hot_factor: float = 100.0
    bot_rate: float = 0.002  # half never click, half click everything within milliseconds
    bot_requests: float = 45.0  # a day
    newcomer_rate: float = 0.15  # share of users who register during the first 20 days


def rng(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """An independent generator for (seed, purpose, keys)."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, *purpose.encode(), *keys])))


class Catalogue:
    """Items by creation day. Item index i has id i + 1; those of day d follow those of day d - 1."""

    def __init__(self, seed: int, prefs: Preferences, items: int, days: int) -> None:
        self.seed, self.prefs = seed, prefs
        self.categories = len(CATEGORIES)
        self.new_per_day = max(1, round(items * prefs.new_items))
        r = rng(seed, "brands")
        # A category carries 8 brands, a brand about 1.6 categories.
        self._carried = np.stack([r.choice(prefs.brands, 8, replace=False) for _ in CATEGORIES])
        self._category_share = r.dirichlet(np.full(self.categories, 4.0))
        self.log_price_of_category = r.normal(3.2, 0.6, self.categories)
        cohorts = [self._cohort(day, items if day == 0 else self.new_per_day) for day in range(days)]
        self.created, self.category, self.brand, self.style, self.seller, self.title_length = (
            np.concatenate([c[k] for c in cohorts]) for k in range(6)
        )
        self.appeal, self.weight, self.price_gap, self.rating = (
            np.concatenate([c[k] for c in cohorts]).astype(np.float32) for k in range(6, 10)
        )
        self.tags = [tags for c in cohorts for tags in c[10]]
        self.first_day_items = items

    def _cohort(self, day: int, n: int) -> tuple[Any, ...]:
        r, prefs = rng(self.seed, "items", day), self.prefs
        category = r.choice(self.categories, n, p=self._category_share).astype(np.int16)
        brand = self._carried[category, r.integers(8, size=n)].astype(np.int16)
        style = r.integers(prefs.styles, size=n).astype(np.int16)
        created = np.where(day, day, -r.integers(1, 400, size=n)).astype(np.int32)
        seller = (brand * 3 + r.integers(3, size=n)).astype(np.int32)
        title_length = r.poisson(32, n).astype(np.int32) + 4
        appeal = r.normal(0, prefs.appeal, n)
        weight = np.exp(0.8 * appeal + r.normal(0, 0.8, n))
        price_gap = r.normal(0, 0.8, n)
        revealed, noise = r.random(n) < 0.7, r.integers(60, size=(n, 2))
        tags = [
            ([f"style_{s}"] if t else []) + [f"{CATEGORIES[c]}_{a % 4}", f"tag_{b}"]
            for s, t, c, (a, b) in zip(
                style.tolist(), revealed.tolist(), category.tolist(), noise.tolist(), strict=True
            )
        ]
        rating = np.round(np.clip(4.1 + 0.4 * appeal + r.normal(0, 0.3, n), 1, 5), 1)
        return created, category, brand, style, seller, title_length, appeal, weight, price_gap, rating, tags

    def __len__(self) -> int:
        return len(self.created)

    def listed(self, day: int) -> int:
        """How many items exist on a day."""
        return self.first_day_items + self.new_per_day * day

    def discount(self, day: int) -> Array:
        """Price factor of each listed item on a day: one in ten is on offer."""
        r, n = rng(self.seed, "offers", day), self.listed(day)
        return np.where(r.random(n) < 0.1, r.uniform(0.6, 0.9, n), 1.0).astype(np.float32)

    def price(self, day: int) -> Array:
        """Price of each listed item on a day, discount included, in currency units to the cent."""
        n = self.listed(day)
        full = np.exp(self.log_price_of_category[self.category[:n]] + self.price_gap[:n])
        price: Array = np.round(full * self.discount(day), 2)
        return price

    def weights(self, day: int) -> Array:
        """Retrieval's weight of each listed item on a day."""
        n = self.listed(day)
        return self.weight[:n] * np.exp(rng(self.seed, "trend", day).normal(0, 0.3, n))


class Population:
    """One chunk of users: roles, profiles and taste. Row u has id `first + u`."""

    def __init__(
        self, seed: int, prefs: Preferences, traffic: Traffic, catalogue: Catalogue, chunk: int, n: int
    ) -> None:
        r = rng(seed, "users", chunk)
        self.n = n
        age_share, gender_share = np.array([0.25, 0.3, 0.2, 0.15, 0.1]), np.array([0.46, 0.46, 0.08])
        self.age = r.choice(len(AGES), n, p=age_share).astype(np.int8)
        self.gender = r.choice(len(GENDERS), n, p=gender_share).astype(np.int8)
        self.city = np.minimum(r.geometric(0.09, n) - 1, len(CITIES) - 1).astype(np.int8)
        self.membership = r.choice(len(MEMBERSHIPS), n, p=[0.7, 0.2, 0.1]).astype(np.int8)
        self.device = r.choice(len(DEVICES), n, p=[0.55, 0.3, 0.15]).astype(np.int8)
        newcomer = r.random(n) < traffic.newcomer_rate
        self.registered = np.where(newcomer, r.integers(0, 20, n), -r.integers(1, 900, n)).astype(np.int32)
        self.price_level = r.normal(0, 0.7, n).astype(np.float32)
        self.activity = r.beta(3, 2, n)
        self.sessions = traffic.sessions * r.lognormal(-0.25, 0.7, n)

        shared = rng(seed, "taste")
        by_age = shared.normal(0, prefs.demographic, (len(AGES), prefs.latent))
        by_gender = shared.normal(0, prefs.demographic, (len(GENDERS), prefs.latent))
        by_gender[-1] = 0
        # Centred: what everyone likes is an item's appeal, not taste.
        by_age, by_gender = by_age - age_share @ by_age, by_gender - gender_share @ by_gender
        latent = by_age[self.age] + by_gender[self.gender] + r.normal(0, 1, (n, prefs.latent))

        def pull(strength: float, kinds: int) -> Array:
            return latent @ shared.normal(0, strength / np.sqrt(prefs.latent), (prefs.latent, kinds))

        personal = r.normal(0, prefs.personal, (n, catalogue.categories))
        self.category = (pull(prefs.category, catalogue.categories) + personal).astype(np.float32)
        self.brand = pull(prefs.brand, prefs.brands).astype(np.float32)
        self.style = pull(prefs.style, prefs.styles).astype(np.float32)

        # The first chunk always holds a hot user and two bots, however small the world.
        least = 1 if chunk == 0 and n >= 20 else 0
        hot, bots = max(least, round(n * traffic.hot_rate)), max(2 * least, round(n * traffic.bot_rate))
        special = r.permutation(n)[: hot + bots]
        self.hot, self.bots = np.sort(special[:hot]), np.sort(special[hot:])
        self.activity[special], self.registered[special] = 1.0, -30
        per_day = traffic.sessions * traffic.requests * 0.6
        self.sessions[self.hot] = traffic.hot_factor * per_day / traffic.requests
        self.sessions[self.bots] = traffic.bot_requests / traffic.requests
        # A bot's click probability is its own: NaN for people.
        self.forced = np.full(n, np.nan, np.float32)
        self.forced[special[hot:]] = np.where(np.arange(bots) % 2, 0.97, 0.0)

    def live(self, seed: int, chunk: int, day: int) -> None:
        """Let a night pass: a few users move, and a few change membership."""
        r = rng(seed, "profiles", chunk, day)
        moved, changed = r.random(self.n) < 0.004, r.random(self.n) < 0.01
        self.city = np.where(moved, r.integers(len(CITIES), size=self.n), self.city).astype(np.int8)
        self.membership = np.where(changed, r.integers(len(MEMBERSHIPS), size=self.n), self.membership).astype(np.int8)
