"""Several tokens a row: which features each has, where candidates beside the rows see, separators, slots and sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_samples import BOUNDARIES, demo_schema, write_random_samples

import genrank.schemas as s
from genrank.schemas.derive.token_groups import token_groups
from genrank.schemas.errors import SchemaError, UserError
from genrank.schemas.review.diff import diff
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.tokens import Tokenizer
from genrank.tokenization.visibility import hstu
from genrank.tokenization.wants import AutoSplit, Chunks, DeclaredGroups, Groups, PerFeature, Wants

DAY = "2026-01-01"
DEMO = demo_schema()
SCHEMA = DEMO.replace(
    sequences=(
        DEMO.sequences[0].replace(interleave=("watched",)),
        s.EventSequence(name="shown", events=(s.Events(source="exposures"),), features=(s.Numeric(name="price"),)),
        DEMO.sequences[1].replace(interleave=("gap",)),
    )
)
DIM = 12


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    root: Path = write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, [DAY])
    return next(iter(SampleReader(root, SCHEMA, [DAY], token_budget=1500)))


def tokenizer(wants: Wants, schema: s.Schema = SCHEMA) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES), DIM, wants)


def test_by_default_features_of_one_source_make_a_token() -> None:
    assert token_groups(SCHEMA, "candidates") == {
        "context": ("age", "cents", "city_item", "hour", "item_id", "price", "since_seen"),
        "statistics": ("clicks_1h", "ctr", "last_item"),
    }
    assert token_groups(SCHEMA, "user") == {"context": ("weekday",), "users": ("age", "city", "tags", "tenure")}


def test_an_id_belongs_to_the_snapshot_it_is_the_key_of() -> None:
    items = s.Snapshot(name="items", path="items/dt={dt}", key="item_id", columns={"item_id": "int64", "kind": "int64"})
    kind = s.Categorical(name="kind", column="items.kind", vocabulary=s.Hashed(size=9), dim=4)
    candidates = DEMO.candidates.replace(features=(*DEMO.candidates.features, kind))
    schema = DEMO.replace(sources=(*DEMO.sources, items), candidates=candidates)
    assert token_groups(schema, "candidates")["items"] == ("item_id", "kind")


def declared(*groups: tuple[str, tuple[str, ...]]) -> s.Schema:
    made = tuple(s.TokenGroup(name=name, features=features) for name, features in groups)
    return DEMO.replace(user=DEMO.user.replace(token_groups=made))


def test_declared_groups_change_the_model_and_no_sample() -> None:
    schema = declared(("who", ("city", "age")), ("rest", ("tags", "tenure", "weekday")))
    assert token_groups(schema, "user") == {"who": ("city", "age"), "rest": ("tags", "tenure", "weekday")}
    assert schema.samples_fingerprint == DEMO.samples_fingerprint
    assert schema.model_fingerprint != DEMO.model_fingerprint
    assert s.from_yaml(s.to_yaml(schema)) == schema
    (change,) = diff(DEMO, schema)
    assert (change.where, change.cost) == ("user", "retrain")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("who", ("city", "agee")), ("rest", ("age", "tags", "tenure", "weekday"))), "'agee', which is not a feature"),
        ((("who", ("city", "age")),), "no token group has tags, tenure and weekday"),
        ((("who", ("city",)), ("rest", ("city", "age", "tags", "tenure", "weekday"))), "name 'city' twice"),
        ((("a", ("city", "age")), ("a", ("tags", "tenure", "weekday"))), "two token_groups are called 'a'"),
    ],
)
def test_groups_have_every_feature_once(groups: tuple[tuple[str, tuple[str, ...]], ...], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        declared(*groups)


CANDIDATE = tuple(feature.name for feature in sorted(SCHEMA.candidates.features, key=lambda f: f.name))


@pytest.mark.parametrize(
    ("grouping", "sets"),
    [
        (PerFeature(), None),
        (DeclaredGroups(), list(token_groups(SCHEMA, "candidates").values())),
        (Groups((CANDIDATE[4:], CANDIDATE[:4])), [CANDIDATE[4:], CANDIDATE[:4]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_candidates_tokens_read_their_features(batch: Batch, grouping, sets) -> None:
    """By perturbation: a feature's columns change its own token and no other."""
    made = tokenizer(Wants(candidate=grouping))
    matrix = made.embeddings(batch)["candidates"]
    layout = made.embeddings.layout["candidates"]
    sets = [(name,) for name in layout] if sets is None else sets
    x = made(batch).candidates.x
    assert x.shape == (len(batch.item), len(sets), DIM) and made.shape.candidate == len(sets)
    projection = made.projections["of_candidates"]
    whole = projection(matrix).unflatten(0, (-1, len(sets)))
    for name, columns in layout.items():
        moved = matrix.clone()
        moved[:, columns] += 1
        changed = (projection(moved).unflatten(0, (-1, len(sets))) != whole).any(2).any(0).tolist()
        assert changed == [name in names for names in sets], name


def test_auto_split_mixes_all_features_and_chunks_cut_them(batch: Batch) -> None:
    split, chunks = (tokenizer(Wants(candidate=grouping)) for grouping in (AutoSplit(3), Chunks(4)))
    matrix = split.embeddings(batch)["candidates"]
    projection = split.projections["of_candidates"]
    weight = torch.cat(list(projection.weights.parameters()), 1)
    columns = torch.cat([matrix[:, c] for c in split.embeddings.layout["candidates"].values()], 1)
    wanted = (columns @ weight.T + projection.bias).view(-1, 3, DIM)
    time = (split(batch).candidates.x - wanted).detach()  # one time encoding for all of a candidate's tokens
    torch.testing.assert_close(time, time[:, :1].expand_as(time), rtol=1e-4, atol=1e-5)

    cut = chunks.projections["of_candidates"]
    width = matrix.shape[1]
    for at in range(width):
        moved = matrix.clone()
        moved[:, at] += 1
        changed = (cut(moved) != cut(matrix)).view(-1, 4, DIM).any(2).any(0).nonzero().flatten().tolist()
        assert changed == [next(i for i in range(4) if at < width * (i + 1) // 4)]


def test_the_users_tokens_are_what_the_encoder_wants(batch: Batch) -> None:
    for grouping, count in ((PerFeature(), 5), (DeclaredGroups(), 2), (AutoSplit(3), 3), (None, 1)):
        made = tokenizer(Wants(user=grouping))
        tokens = made(batch)
        users = (tokens.group_ids == 0).view(-1)
        assert users.sum() == count * len(batch) and made.shape.user == count
        assert users[: count + 1].tolist() == [True] * count + [False]


def test_candidates_beside_the_rows_see_what_they_saw_as_rows(batch: Batch) -> None:
    for rule in (Wants().rule, hstu):
        rows, beside = (tokenizer(wants)(batch) for wants in (Wants(rule), Wants(rule, candidate=DeclaredGroups())))
        own = rows.group_ids != 3
        assert beside.candidates is not None and rows.candidates is None
        assert len(beside.candidate_rows) == 0
        assert torch.equal(beside.group_ids, rows.group_ids[own])
        for name in ("begin", "end", "timestamps"):
            assert torch.equal(getattr(beside, name), getattr(rows, name)[own])
            assert torch.equal(getattr(beside.candidates, name), getattr(rows, name)[rows.candidate_rows]), name
        assert torch.equal(beside.lengths, beside.offsets.diff().long())
        assert beside.max_length == int(beside.lengths.max())
        assert torch.equal(beside.candidates.owner.bincount(minlength=len(batch)), batch.candidates.lengths)


def test_separators_slots_and_sequences(batch: Batch) -> None:
    wants = Wants(user=DeclaredGroups(), separators=True, slots=True, sequence_ids=True)
    made = tokenizer(wants)
    tokens = made(batch)
    groups = batch.groups
    for b in range(len(batch)):
        n = [int(groups[name].lengths[b]) for name in ("history", "shown", "realtime", "candidates")]
        row = slice(int(tokens.offsets[b]), int(tokens.offsets[b + 1]))
        wanted = [0] * 2 + [1] * (2 * n[0] + 1) + [2] * (n[1] + 1) + [3] * (2 * n[2]) + [4] * n[3]
        assert tokens.sequence_ids[row].tolist() == wanted
        assert tokens.slots[row].tolist() == [1, 2] + [0] * (len(wanted) - 2 - n[3]) + [3] * n[3]
        first, second = 2 + 2 * n[0], 2 + 2 * n[0] + 1 + n[1]
        torch.testing.assert_close(tokens.x[row][first], made.separators["of_history"])
        torch.testing.assert_close(tokens.x[row][second], made.separators["of_shown"])
        assert tokens.group_ids[row][[first, second]].tolist() == [1, 1]
        assert int(tokens.history_lengths[b]) == 2 * n[0] + n[1] + 2
        # What was known before the window, separators included, is what everyone sees.
        assert int(tokens.end[row][0]) == second + 1


def test_without_events_a_sample_is_its_user(batch: Batch) -> None:
    tokens = tokenizer(Wants(sequence=False, candidate=DeclaredGroups()))(batch)
    assert tokens.x.shape == (len(batch), DIM) and tokens.candidates.end.tolist() == [1] * len(batch.item)
    alone = SCHEMA.replace(
        user=s.UserGroup(),
        candidates=DEMO.candidates.replace(features=tuple(f for f in DEMO.candidates.features if f.kind != "crossed")),
    )
    tokens = tokenizer(Wants(sequence=False, candidate=DeclaredGroups()), alone)(batch)
    assert tokens.x.shape == (0, DIM) and tokens.candidates.end.tolist() == [0] * len(batch.item)


def test_groups_that_are_not_the_schemas(batch: Batch) -> None:
    with pytest.raises(UserError, match="the schema has no nothing"):
        tokenizer(Wants(candidate=Groups((("nothing",), CANDIDATE))))
    with pytest.raises(UserError, match="no group has age"):
        tokenizer(Wants(candidate=Groups((CANDIDATE[1:],))))
