"""The whole declaration, validated when it is made, with its fingerprints."""

from __future__ import annotations

from functools import cached_property

from pydantic import model_validator

from genrank.schemas.base import CANDIDATES as CANDIDATES
from genrank.schemas.base import USER as USER
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.fingerprints import model_meaning, samples_meaning, whole_meaning
from genrank.schemas.digest import digest
from genrank.schemas.errors import SchemaError
from genrank.schemas.validate import mistakes


class Schema(SchemaDeclaration):
    """One ranking problem, declared once; Spark, the quality gate, Parquet, the tables, the tokens and the model read it."""

    @model_validator(mode="after")
    def _holds(self) -> Schema:
        if found := mistakes(self):
            raise SchemaError(f"schema {self.name!r}", found)
        return self

    # ------------------------------------------------------------------ identity

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over everything with meaning: the same for any order of declaration, any description or owner."""
        return digest(whole_meaning(self))

    @cached_property
    def samples_fingerprint(self) -> str:
        """Over only what decides the stored samples: equal where a change needs no rebuild, such as a vocabulary's or a dim's."""
        return digest(samples_meaning(self))

    @cached_property
    def model_fingerprint(self) -> str:
        """Over only what decides the model's parameters: equal where a checkpoint loads whole."""
        return digest(model_meaning(self))
