"""A batch's features in three launches on a GPU (`kernels.lookups`), in the place of `features`' and `embedding`'s feature by feature.

Written once, when a model is made: an instruction a feature that a kernel knows. What it doesn't know (kinds, vocabularies and transforms from
outside the package) is computed as everywhere else, and what comes of it is read by the kernels as a column: one more launch or few each.
Rows lie table by table in the order in which the tables want them, so that nothing is put together afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from genrank.kernels.dispatch import backend_for
from genrank.kernels.lookups.instructions import (
    PARTS,
    Columns,
    Encoding,
    GroupPlace,
    RowInstruction,
    RowPlace,
    Source,
    VectorInstruction,
    VectorPlace,
)
from genrank.schemas.features import Feature, HashedCross, TimeGap, TimePart
from genrank.schemas.schema import CANDIDATES, USER
from genrank.schemas.transforms import Dense
from genrank.schemas.vocabularies import Dynamic, Enumerated, Hashed, Identity
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.feature_kinds import GroupView, feature_values
from genrank.tokenization.features import GroupEncoder, GroupInputs, row_encoder
from genrank.tokenization.merged_vectors import Gathering, Matrix, Scales, Vectors
from genrank.tokenization.plan import Lookup, Plan
from genrank.tokenization.transforms import buckets_of
from genrank.tokenization.transforms.autodis import AutoDisInputs
from genrank.tokenization.transforms.scalars import ScalarInputs
from genrank.tokenization.vocabularies import vocabulary_rows
from genrank.tokenization.vocabularies.dynamic import DynamicRows
from genrank.tokenization.vocabularies.enumerated import EnumeratedRows
from genrank.tokenization.vocabularies.hashed import HashedRows
from genrank.tokenization.vocabularies.identity import IdentityRows

if TYPE_CHECKING:
    from genrank.kernels.lookups.gpu import RowProgram
    from genrank.tokenization.torch_tables import TorchTables

ALIGNED = 64
"""A group's matrix begins at a multiple of so many numbers, as torch's own would."""


class _Read(NamedTuple):
    """A feature that `rows_kernel` reads: an instruction and how a batch gives its column."""

    group: str
    name: str
    ragged: bool
    column: Callable[[GroupView], Tensor | Ragged] | None
    """None: there is none."""
    lookup: Lookup | None
    """None: a number."""


class _Block(NamedTuple):
    """A feature's columns in the matrix of its group."""

    group: str
    kind: Columns
    read: int
    """Place among the reads; of a block its family among the group's."""
    column: int
    dim: int
    first: int
    """Of a block: its first column of the family's."""


@dataclass
class Found:
    """What the first launch found, and where."""

    rows: dict[str, Tensor]
    """Merged table -> [K] int64: physical rows; before `Embeddings` has placed them, ids of dynamic tables."""
    ids: dict[str, Tensor]
    """Dynamic logical table -> its part of `rows`."""
    flat: Tensor
    """[K of all tables] int64: `rows`, one after another."""
    numbers: Tensor
    """float32: transformed numbers, NaN where missing."""
    at: list[int]
    """First place of each read among `flat`, or `numbers`."""
    sizes: list[int]
    """Values of each read."""
    offsets: list[Tensor | None]
    """[N+1] int64 of each list."""
    kept: list[Tensor]
    """Columns that were computed for the kernels, until they have run."""


class MergedLookups:
    """The instructions of a plan's features.

    Args:
        plan: which table each feature reads.
        encoders: of the plan's groups, whose constants the kernels share and which compute what these don't know.
        layout: group -> feature -> its columns.
        inputs: what makes columns of numbers, a group each.
    """

    def __init__(
        self,
        plan: Plan,
        encoders: Mapping[str, GroupEncoder],
        layout: Mapping[str, Mapping[str, slice]],
        inputs: Mapping[str, GroupInputs],
        boundaries: Mapping[str, Sequence[float]],
        device: torch.device,
    ) -> None:
        self.plan, self.encoders, self.inputs, self.device = plan, dict(encoders), dict(inputs), device
        self.groups = list(encoders)
        self.widths = {name: max((c.stop for c in layout[name].values()), default=0) for name in self.groups}
        self.reads: list[_Read] = []
        self.instructions: list[RowInstruction] = []
        self.scales: list[tuple[float, float]] = []
        self.operands: list[tuple[str, str, bool]] = []
        self._ids: list[tuple[int, int]] = []
        self._edges: list[float] = []
        self._searched = 1
        # In the order of the rows: table by table, and in one by logical table, whose ids then lie together.
        for table in plan.tables:
            for member in table.members:
                for lookup, _ in plan.readers_of(member.name):
                    self._add_lookup(lookup, boundaries)
        self.lookups = len(self.reads)
        self.families = {
            group: [f for f in inputs[group].families.values() if type(f) in (ScalarInputs, AutoDisInputs)]
            for group in self.groups
        }
        for group, families in self.families.items():
            for family in families:
                for name, transform in family.features:
                    self._add_number(group, name, transform if isinstance(transform, Dense) else None)
        self.blocks = [block for group in self.groups for block in self._blocks(group, layout[group])]
        tables = [table.name for table in plan.tables]
        self.vector_instructions = torch.tensor(
            [
                VectorInstruction(
                    block.kind,
                    tables.index(self._lookup(block).merged) if block.kind <= Columns.MEAN else 0,
                    self.groups.index(block.group),
                    block.column,
                    block.dim,
                    self.widths[block.group],
                )
                for block in self.blocks
            ]
            or torch.zeros(0, len(VectorInstruction._fields), dtype=torch.int64),
            dtype=torch.int64,
        ).to(device)
        self.widest = max((block.dim for block in self.blocks), default=1)
        self.program = self._program()

    # ------------------------------------------------------------------ rows and numbers

    def find(self, batch: Batch) -> Found:
        """Rows of tables, ids of dynamic ones, and numbers, of the whole batch."""
        from genrank.kernels.lookups.gpu import find_rows

        views = {name: encoder.view(batch) for name, encoder in self.encoders.items()}
        kept: list[Tensor] = []
        places: list[RowPlace] = []
        at: list[int] = []
        sizes: list[int] = []
        lists: list[Tensor | None] = []
        ends = [0, 0]
        for number, read in enumerate(self.reads):
            view, offsets = views[read.group], None
            count, address = len(view.group.ts), 0
            if read.column is not None:
                leaf = read.column(view)
                offsets = leaf.offsets.contiguous() if isinstance(leaf, Ragged) else None
                assert read.ragged == (offsets is not None), f"{read.group}.{read.name}: one value, or a list"
                values = (leaf.values if isinstance(leaf, Ragged) else leaf).contiguous()
                kept += [values] if offsets is None else [values, offsets]
                count, address = len(values), values.data_ptr()
            of_number = int(number >= self.lookups)
            places.append(RowPlace(address, count, ends[of_number]))
            at.append(ends[of_number])
            sizes.append(count)
            lists.append(offsets)
            ends[of_number] += count
        groups = []
        for name in self.groups:
            group = batch.groups[name]
            kept += [group.ts, group.offsets]
            groups.append(GroupPlace(group.ts.data_ptr(), group.offsets.data_ptr()))
        operands = []
        for owner, operand, of_user in self.operands:
            operand_ids = views[owner].stored(operand).contiguous()
            kept.append(operand_ids)
            operands.append((operand_ids.data_ptr(), int(of_user)))
        flat = torch.empty(ends[0], dtype=torch.int64, device=self.device)
        numbers = torch.empty(ends[1], dtype=torch.float32, device=self.device)
        find_rows(self.program, places, groups, operands, batch.candidate_sees, len(batch), flat, numbers)
        rows: dict[str, Tensor] = {}
        ids: dict[str, Tensor] = {}
        first = 0
        for table in self.plan.tables:
            begin = first
            for member in table.members:
                own = sum(sizes[i] for i in self._readers(member.name))
                if table.dynamic:
                    ids[member.name] = flat[first : first + own]
                first += own
            rows[table.name] = flat[begin:first]
        return Found(rows, ids, flat, numbers, at, sizes, lists, kept)

    def _readers(self, logical: str) -> list[int]:
        return [i for i, r in enumerate(self.reads) if r.lookup is not None and r.lookup.table == logical]

    # ------------------------------------------------------------------ vectors

    def vectors(
        self, batch: Batch, found: Found, tables: TorchTables, norms: Scales | None, *, learns: bool
    ) -> dict[str, Tensor]:
        """Group -> [N, width(group)] float32, at one scale where there are `norms`; in backward the rows that were read learn.

        Args:
            learns: False: no gradient reaches the tables.
        """
        computed = {key: block.contiguous() for key, block in self._computed(batch, found).items()}
        gathering = self._gathering(batch, found, {key: block.detach() for key, block in computed.items()}, norms)
        eps = None if norms is None else norms.eps
        matrices = Vectors.apply(tables.anchor, gathering, tables, eps, learns, *computed.values())  # type: ignore[no-untyped-call]
        return dict(zip(self.groups, matrices, strict=True))

    def _computed(self, batch: Batch, found: Found) -> dict[tuple[str, int], Tensor]:
        """(Group, family) -> [N, columns] float32: numbers that become columns by parameters, or by what no kernel knows."""
        computed = {}
        number = self.lookups
        for group in self.groups:
            inputs, encoder = self.inputs[group], self.encoders[group]
            for place, family in enumerate(inputs.families.values()):
                known = family in self.families[group]
                if known and isinstance(family, AutoDisInputs):
                    size = len(batch.groups[group].ts)
                    first = found.at[number]
                    prepared = found.numbers[first : first + len(family.features) * size].view(-1, size)
                    computed[group, place] = family(prepared)
                elif not known:
                    view = encoder.view(batch)
                    values = torch.stack([encoder.values(view, name) for name, _ in family.features])
                    computed[group, place] = family(family.prepare(values))
                number += len(family.features) if known else 0
        return computed

    def _gathering(
        self, batch: Batch, found: Found, blocks: Mapping[tuple[str, int], Tensor], norms: Scales | None
    ) -> Gathering:
        matrices: dict[str, Matrix] = {}
        size = 0
        for name in self.groups:
            matrices[name] = matrix = Matrix(size, len(batch.groups[name].ts), self.widths[name])
            size += -(-matrix.rows * matrix.width // ALIGNED) * ALIGNED
        grads: dict[tuple[str, int], int] = {}
        block_grads = 0
        for key, values in blocks.items():
            grads[key], block_grads = block_grads, block_grads + values.numel()
        table_first: dict[str, tuple[int, int]] = {}
        elements = entries = 0
        for table in self.plan.tables:
            table_first[table.name] = (elements, entries)
            elements += len(found.rows[table.name]) * table.dim
            entries += len(found.rows[table.name])
        places, inverse = [], 0
        for block in self.blocks:
            count, own, source, stride, offsets, grad, moments = len(batch.groups[block.group].ts), 0, 0, 0, 0, 0, 0
            if block.kind <= Columns.MEAN:
                source, own = found.at[block.read], found.sizes[block.read]
                first, before = table_first[self._lookup(block).merged]
                grad = first + (source - before) * block.dim
                lists = found.offsets[block.read]
                offsets = 0 if lists is None else lists.data_ptr()
            elif block.kind == Columns.BLOCK:
                values = blocks[block.group, block.read]
                stride, own = values.stride(0), count
                source = values.data_ptr() + block.first * values.element_size()
                grad = grads[block.group, block.read] + block.first
            else:
                source = found.at[block.read]
                if norms is not None:
                    moments = norms.moments(block.group, self.reads[block.read].name).data_ptr()
            places.append(
                VectorPlace(count, own, source, stride, offsets, matrices[block.group].first, inverse, grad, moments)
            )
            inverse += count if block.kind != Columns.NUMBER else 0
        return Gathering(
            *(self.vector_instructions, places, list(matrices.values()), size, inverse, block_grads, self.widest),
            *(found.rows, found.flat, found.numbers),
        )

    def _lookup(self, block: _Block) -> Lookup:
        lookup = self.reads[block.read].lookup
        assert lookup is not None
        return lookup

    # ------------------------------------------------------------------ instructions

    def _add_lookup(self, lookup: Lookup, boundaries: Mapping[str, Sequence[float]]) -> None:
        encoder = self.encoders[lookup.group]
        feature = encoder.features.get(lookup.feature)
        table, merged = self.plan.logical[lookup.table]
        start = 0 if merged.dynamic else lookup.start
        if feature is not None and (transform := feature.number_transform):
            finder = buckets_of(transform)
            assert finder is not None, f"{lookup.group}.{lookup.feature} has a table and no buckets"
            edges = finder.edges(transform, boundaries.get(f"{lookup.group}.{lookup.feature}"))
            self._searched = max(self._searched, len(edges))
            self._add(lookup.group, lookup.feature, lookup, Encoding.BUCKETS, len(edges), len(self._edges), start)
            self._edges += edges
            return
        vocabulary = table.vocabulary if feature is not None else Identity(size=table.vocabulary.size)
        kind, encoding, size, first = vocabulary_rows(vocabulary), Encoding.PASS, 0, 0
        if kind is IdentityRows and isinstance(vocabulary, Identity):
            encoding, size = Encoding.IDENTITY, vocabulary.size
        elif kind is HashedRows and isinstance(vocabulary, Hashed):
            encoding, size = Encoding.HASHED, vocabulary.size
        elif kind is EnumeratedRows and isinstance(vocabulary, Enumerated):
            rows = EnumeratedRows([vocabulary])
            pairs = list(zip(rows.values[0].tolist(), rows.rows[0].tolist(), strict=True))
            encoding, size, first = Encoding.ENUMERATED, len(pairs), len(self._ids)
            self._ids += pairs
            self._searched = max(self._searched, size)
        elif not (kind is DynamicRows and isinstance(vocabulary, Dynamic)):
            unknown = row_encoder(vocabulary).to(self.device)

            def computed(view: GroupView) -> Tensor | Ragged:
                values = feature_values(feature, view) if feature else view.stored(lookup.feature)
                if isinstance(values, Ragged):
                    return Ragged(unknown(values.values[None])[0], values.offsets)
                rows: Tensor = unknown(values[None])[0]
                return rows

            self._append(
                _Read(lookup.group, lookup.feature, bool(lookup.pooling), computed, lookup),
                RowInstruction(Source.IDS, Encoding.PASS, self.groups.index(lookup.group), 0, 0, 0, 0, start),
            )
            return
        self._add(lookup.group, lookup.feature, lookup, encoding, size, first, start)

    def _add_number(self, group: str, name: str, dense: Dense | None) -> None:
        encoding = Encoding.LOG if dense is None else Encoding.DENSE
        self._add(group, name, None, encoding, 0, 0, 0, (dense.shift, dense.scale) if dense else (0.0, 1.0))

    def _add(
        self,
        group: str,
        name: str,
        lookup: Lookup | None,
        encoding: Encoding,
        size: int,
        first: int,
        start: int,
        scale: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """A feature whose encoding the kernel knows, whatever its values come from."""
        feature = self.encoders[group].features.get(name)
        source, argument, operand, column = self._source(group, name, feature, encoding)
        of_group = self.groups.index(group)
        instruction = RowInstruction(source, encoding, of_group, argument, operand, size, first, start)
        read = _Read(group, name, bool(lookup and lookup.pooling), column, lookup)
        self._append(read, instruction, scale)

    def _append(self, read: _Read, instruction: RowInstruction, scale: tuple[float, float] = (0.0, 1.0)) -> None:
        self.reads.append(read)
        self.instructions.append(instruction)
        self.scales.append(scale)

    def _source(
        self, group: str, name: str, feature: Feature | None, encoding: Encoding
    ) -> tuple[Source, int, int, Callable[[GroupView], Tensor | Ragged] | None]:
        stored = Source.NUMBERS if encoding >= Encoding.BUCKETS else Source.IDS
        if feature is None:
            return stored, 0, 0, lambda view: view.stored(name)
        if type(feature) is TimePart and encoding < Encoding.BUCKETS:
            return Source.PART, PARTS.index(feature.part), 0, None
        if type(feature) is TimeGap and encoding >= Encoding.BUCKETS:
            if feature.column:
                return Source.SINCE_COLUMN, 0, 0, lambda view: view.stored(name)
            return Source.SINCE_VISIBLE if group == CANDIDATES else Source.SINCE_EVENT, 0, 0, None
        if type(feature) is HashedCross:
            first = len(self.operands)
            for each in feature.of:
                owner, _, short = each.rpartition(".")
                of_user = owner not in ("", group)
                self.operands.append((USER if of_user else group, short, of_user))
            return Source.CROSSED, len(feature.of), first, None
        return stored, 0, 0, lambda view: feature_values(feature, view)

    def _blocks(self, group: str, layout: Mapping[str, slice]) -> list[_Block]:
        blocks = []
        for read, each in enumerate(self.reads[: self.lookups]):
            lookup = each.lookup
            if lookup is None or lookup.group != group:
                continue
            kind = {None: Columns.SINGLE, "sum": Columns.SUM, "mean": Columns.MEAN}[lookup.pooling]
            blocks.append(_Block(group, kind, read, layout[lookup.feature].start, lookup.dim, 0))
        numbers = {(r.group, r.name): i for i, r in enumerate(self.reads) if i >= self.lookups}
        for place, family in enumerate(self.inputs[group].families.values()):
            first = 0
            for name, width in family.widths:
                if type(family) is ScalarInputs:
                    blocks.append(_Block(group, Columns.NUMBER, numbers[group, name], layout[name].start, width, 0))
                else:
                    blocks.append(_Block(group, Columns.BLOCK, place, layout[name].start, width, first))
                first += width
        return blocks

    def _program(self) -> RowProgram:
        from genrank.kernels.lookups.gpu import RowProgram

        encoder = next(iter(self.encoders.values()))
        moments, clocks = encoder.local_time.moments, encoder.local_time.offsets
        histories = [self.groups.index(name) for name in encoder.histories]
        realtime = -1 if encoder.realtime is None else self.groups.index(encoder.realtime)

        def constant(values: object, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device)

        return RowProgram(
            constant(self.instructions, torch.int64).view(-1, len(RowInstruction._fields)),
            constant(self.scales, torch.float32).view(-1, 2),
            constant([id_ for id_, _ in self._ids], torch.int64),
            constant([row for _, row in self._ids], torch.int64),
            constant(self._edges, torch.float64),
            moments.to(self.device),
            clocks.to(self.device),
            constant(histories, torch.int64),
            realtime,
            max(self._searched, len(moments)),
        )


def serves(tensor: Tensor) -> bool:
    """Whether the kernels run on a tensor's device."""
    return backend_for(tensor) == "triton"
