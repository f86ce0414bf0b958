"""Mistakes in names of features, tables and vocabularies: a schema that makes each, and the start of its one line."""

from __future__ import annotations

from collections.abc import Callable

from schemas_shop import ITEMS, SHOP, candidates, sequence

from genrank.schemas import (
    Categorical,
    Dense,
    Dynamic,
    Enumerated,
    Hashed,
    Identity,
    Numeric,
    Schema,
    SparseOptimizer,
    TimeGap,
)

MISTAKES: dict[str, tuple[Callable[[], Schema], str]] = {
    "two features of one name": (
        lambda: candidates(Numeric(name="price", transform=Dense())),
        "candidates.price: two features of the group have this name; rename one (its `column` may stay)",
    ),
    "a reserved name in candidates": (
        lambda: candidates(Categorical(name="item", column="item_id", table=ITEMS)),
        "candidates.item: the sample keeps a column 'item' of its own in candidates; give the feature another name and column=\"item\"",
    ),
    "a reserved name in a sequence": (
        lambda: sequence(TimeGap(name="ts")),
        "history.ts: the sample keeps a column 'ts' of its own in history",
    ),
    "a reserved sequence name": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(name="mask"), SHOP.sequences[1])),
        "sequence mask: samples have a column of that name; call it history or realtime",
    ),
    "table and vocabulary": (
        lambda: candidates(Categorical(name="x", column="tab", table=ITEMS, vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: both table and vocabulary and dim are given; keep the table, or its own vocabulary and dim",
    ),
    "neither table nor vocabulary": (
        lambda: candidates(Categorical(name="x", column="tab")),
        "candidates.x: no table; give table=, or vocabulary= and dim= for one of its own",
    ),
    "vocabulary without dim": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Hashed(size=9))),
        "candidates.x: vocabulary without dim; give both, or a table",
    ),
    "dim without vocabulary": (
        lambda: candidates(Categorical(name="x", column="tab", dim=4)),
        "candidates.x: dim without vocabulary; give both, or a table",
    ),
    "two dims of one table": (
        lambda: candidates(Categorical(name="x", column="item_id", table=ITEMS.replace(dim=32))),
        "table items: history.item_id gives it dim 16, candidates.x 32; share one Table object, or name two tables",
    ),
    "two vocabularies of one table": (
        lambda: candidates(Categorical(name="x", column="item_id", table=ITEMS.replace(vocabulary=Hashed(size=100)))),
        "table items: history.item_id gives it vocabulary Dynamic(",
    ),
    "two optimizers of one table": (
        lambda: candidates(
            Categorical(name="x", column="item_id", table=ITEMS.replace(optimizer=SparseOptimizer(lr_scale=2)))
        ),
        "table items: history.item_id gives it optimizer SparseOptimizer(",
    ),
    "strings and integers in one table": (
        lambda: candidates(Categorical(name="x", column="tab", table=ITEMS)),
        "table items: it would mix integers of history.item_id and strings of candidates.x: equal ids that mean different things",
    ),
    "Identity of strings": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Identity(size=9), dim=4)),
        "candidates.x: 'tab' holds strings, which Identity can't index; use Enumerated, Hashed or Dynamic",
    ),
    "integers enumerated for strings": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Enumerated(values=(1, 2)), dim=4)),
        "candidates.x: 'tab' holds strings, but the vocabulary enumerates integers; write strings",
    ),
    "a value enumerated twice": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Enumerated(values=("a", "b", "a")), dim=4)),
        "candidates.x: the vocabulary enumerates 'a' twice",
    ),
    "ids evicted at once": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Dynamic(capacity=9, max_age="0d"), dim=4)),
        "candidates.x: max_age 0 evicts every id at once",
    ),
}
