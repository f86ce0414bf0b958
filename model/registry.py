"""What `--model` takes: names of models, and `path.py:NAME` for one of one's own.

    MODELS[name] -> ModelSpec(name, config, build, task)
    choose_model(name, settings) -> ChosenModel, whose `build` makes the model and whose `task` is what it learns

An encoder adds its presets by one line in `model.encoders.ENCODERS`; any other model by one line here. docs/extending.md shows both from
outside the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from genrank.model.baselines.boosted_trees import BoostedTrees, BoostedTreesConfig
from genrank.model.baselines.dcn import Dcn, DcnConfig
from genrank.model.baselines.din import Din, DinConfig
from genrank.model.baselines.dlrm import Dlrm, DlrmConfig
from genrank.model.baselines.sasrec import Sasrec, SasrecConfig
from genrank.model.documents import ModelIdentity
from genrank.model.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder
from genrank.model.encoders.mtgr import PAPER
from genrank.model.heads import HeadConfig
from genrank.model.interface import Model
from genrank.model.ranker import Ranker
from genrank.model.retrieval_config import PRESETS as RETRIEVERS
from genrank.model.retriever import Retriever
from genrank.model.tasks import make_task
from genrank.model.tasks.base import AnyTask
from genrank.model.validation import Checked, ConfigError
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.features import fitted_features
from genrank.tokenization.plan import Plan, make_plan

Config = TypeVar("Config", bound=Checked)
Build = Callable[[Embeddings, Sequence[str], Any, HeadConfig], Model]
"""(the schema's embeddings, names of its labels, the configuration, that of the heads) -> the model."""


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be trained."""

    name: str
    """What reports call it, and `--model` where it is one of MODELS."""
    config: Checked
    """Its fields, a frozen dataclass, as they are without `--set`."""
    build: Build
    task: str = "ranking"
    """A key of `model.tasks.TASKS`: what it learns, and how it is judged."""
    heads: bool = True
    """Whether it has heads a label, which `--set head.FIELD` changes."""
    by_steps: bool = True
    """Whether the trainer's steps learn it; if not, `Model.learn` does (`model.whole_fit`), and it gets no embedding tables."""


def encoder_spec(name: str, config: EncoderConfig, encoder: Callable[[Any], Encoder[Any]] = build_encoder) -> ModelSpec:
    """A ranker on an encoder.

    Args:
        encoder: its class, or what else makes it from `config`; by default the one of `model.encoders.ENCODERS` that has such a configuration.
    """

    def build(embeddings: Embeddings, labels: Sequence[str], own: EncoderConfig, head: HeadConfig) -> Model:
        return Ranker(embeddings, labels, own, head, encoder)

    return ModelSpec(name, config, build)


def _retriever(embeddings: Embeddings, labels: Sequence[str], config: Any, head: HeadConfig) -> Model:
    return Retriever(embeddings, config)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        *(encoder_spec(name, config) for encoder in ENCODERS for name, config in encoder.presets.items()),
        ModelSpec("dlrm", DlrmConfig(), Dlrm),
        ModelSpec("din", DinConfig(), Din),
        ModelSpec("dcn", DcnConfig(), Dcn),
        ModelSpec("sasrec", SasrecConfig(), Sasrec),
        ModelSpec("lightgbm", BoostedTreesConfig(), BoostedTrees, heads=False, by_steps=False),
        *(ModelSpec(name, config, _retriever, "retrieval", heads=False) for name, config in RETRIEVERS.items()),
    )
}
"""By name; one line a model."""


@dataclass(frozen=True)
class ChosenModel:
    """A model of MODELS or of a user's file, with its fields changed."""

    spec: ModelSpec
    config: Checked
    head: HeadConfig

    def build(self, embeddings: Embeddings, labels: Sequence[str] | None = None) -> Model:
        """The model, with fresh weights.

        Args:
            labels: names of those it predicts; by default all of the schema's.

        Raises:
            UserError: the schema lacks what the model needs.
        """
        names = [label.name for label in embeddings.plan.schema.labels] if labels is None else labels
        return self.spec.build(embeddings, names, self.config, self.head)

    def embeddings(
        self,
        schema: Schema,
        *,
        device: torch.device | str,
        boundaries: Mapping[str, Sequence[float]] | None = None,
        **tables: Any,
    ) -> Embeddings:
        """A schema's embeddings as the model reads them: none, and no boundaries, for one that looks nothing up.

        Args:
            boundaries: fitted boundaries of numbers in quantile buckets.
            tables: other arguments of `Embeddings`.
        """
        if self.spec.by_steps:
            return Embeddings(make_plan(schema), device=device, boundaries=boundaries, **tables)
        unfitted = {f"{group}.{name}": [0.0] for group, name, _ in fitted_features(schema)}
        return Embeddings(Plan(schema, (), ()), backend="torch", device=device, boundaries=unfitted)

    def fields(self) -> dict[str, str]:
        """Every field that `--set` can change, as text that `choose_model` reads."""
        heads = _texts(self.head, "head.") if self.spec.heads else {}
        return {**_texts(self.config, ""), **heads}

    def task(self, schema: Schema) -> AnyTask:
        """What the model learns of samples of a schema."""
        return make_task(self.spec.task, schema)


DEFAULTS_BEFORE: dict[str, dict[str, str]] = {
    **{f"mtgr-{size}": PAPER for size in ("small", "medium", "large")},
    "mtgr-tiny": {**PAPER, "divisor": "visible"},
    **{
        name: {"divisor": "length"}
        for name in ("hstu-small", "hstu-large", "hstu-retrieval-small", "hstu-retrieval-large")
    },
}
"""Defaults of presets as they were when checkpoints didn't record their models' fields: release 0.1's."""


def choose_model(name: str, settings: Mapping[str, str] | None = None) -> ChosenModel:
    """A model by what `--model` takes, with fields changed: `{"divisor": "length", "layers": "4", "head.kind": "mmoe"}`.

    Raises:
        UserError: no such model, no such field, or a value of the wrong type or out of range.
    """
    return _chosen(_from_file(name) if _is_file(name) else _registered(name), settings or {})


def recorded_model(identity: ModelIdentity, changed: Mapping[str, str] | None = None) -> ChosenModel:
    """The model of a checkpoint, whatever the defaults of this release are.

    Args:
        changed: fields that are set anew.

    Raises:
        UserError: as `choose_model`.
    """
    spec = choose_model(identity.name).spec
    if identity.fields is None:
        return _chosen(spec, {**DEFAULTS_BEFORE.get(identity.name, {}), **identity.settings, **(changed or {})})
    known = ChosenModel(spec, spec.config, HeadConfig()).fields()
    kept = {
        field: text for field, text in identity.fields.items() if field in known
    }  # others a model's file has dropped
    return _chosen(spec, {**kept, **(changed or {})})


def _chosen(spec: ModelSpec, settings: Mapping[str, str]) -> ChosenModel:
    own = {k: v for k, v in settings.items() if not k.startswith("head.")}
    head = {k.removeprefix("head."): v for k, v in settings.items() if k.startswith("head.")}
    if head and not spec.heads:
        raise UserError(f"--set head.{next(iter(head))}: {spec.name} has no heads of labels; leave it out")
    return ChosenModel(spec, _replaced(spec.config, own, ""), _replaced(HeadConfig(), head, "head."))


def _registered(name: str) -> ModelSpec:
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1, 0.3)
        raise UserError(
            f"--model {name}: no such model; {f'did you mean {near[0]}? ' if near else ''}There are {', '.join(MODELS)}, and"
            " path/to/file.py:NAME for one of your own"
        )
    return MODELS[name]


# ---------------------------------------------------------------------- a model of one's own


def _is_file(name: str) -> bool:
    return name.partition(":")[0].endswith(".py")


def _from_file(name: str) -> ModelSpec:
    """The ModelSpec at `path.py:NAME`."""
    path_text, _, attribute = name.partition(":")
    path, where = Path(path_text), f"--model {name}"
    if not path.is_file():
        raise UserError(
            f"{where}: there is no file {path.absolute()}; give the path from this folder (a checkpoint is loaded with the path it was"
            " trained with: start in the same folder, or put the file there)"
        )
    found = _run(path, where)
    spec = found.get(attribute)
    if not isinstance(spec, ModelSpec):
        names = sorted(key for key, value in found.items() if isinstance(value, ModelSpec))
        has = f"it has {', '.join(names)}" if names else "assign one: NAME = ModelSpec(...) (docs/extending.md)"
        raise UserError(f"{where}: {path} has no ModelSpec {attribute!r}; {has}")
    return spec


def _run(path: Path, where: str) -> dict[str, object]:
    """The names a Python file defines."""
    name = f"genrank_model_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()]
        line = f"{path}:{frames[-1].lineno}" if frames else str(path)
        raise UserError(f"{where}: {line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return dict(vars(module))


# ---------------------------------------------------------------------- --set


def _replaced(config: Config, settings: Mapping[str, str], prefix: str) -> Config:
    hints = get_type_hints(type(config), include_extras=True)
    changes: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.3)
            raise UserError(f"--set {prefix}{key}: no such field{f'; did you mean {prefix}{near[0]}?' if near else ''}")
        try:
            changes[key] = TypeAdapter(hints[key]).validate_python(_value(text))
        except ValidationError as error:
            raise UserError(f"--set {prefix}{key}={text}: {error.errors()[0]['msg'].lower()}") from None
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ConfigError as error:
        given = settings.get(error.field, getattr(config, error.field))
        raise UserError(f"--set {prefix}{error.field}={given}: {error.remedy}") from None


def _texts(config: Checked, prefix: str) -> dict[str, str]:
    """Numbers, words, and tuples of them: what `--set` takes."""
    found = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        each = value if isinstance(value, tuple) else (value,)
        if all(isinstance(part, int | float | str | None) for part in each):
            found[prefix + field.name] = json.dumps(value)
    return found


def _value(text: str) -> object:
    """`3`, `0.5`, `true`, `null` and `[64, 32]` by JSON; a bare word is itself."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text
