"""Tensors in a folder of torch.distributed.checkpoint, read without running any code of the folder's.

The folder's index, `.metadata`, is a pickle, and torch.distributed.checkpoint unpickles it as it comes: a pickle can call anything. Its
planner also unpickles entries that an index declares to be bytes. Neither is used here:

    read_index(folder)     {key: StoredTensor}; only ADMITTED names are resolved, and to inert stand-ins, never to the classes themselves
    stored.read(folder)    one tensor, by torch.load(weights_only=True) on its part of a file of the folder
"""

from __future__ import annotations

import io
import pickle
import types
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from genrank.schemas.errors import UserError

INDEX = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DTYPES |= {"int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8}
_DTYPES |= {"uint8": torch.uint8, "bool": torch.bool}
ADMITTED: frozenset[tuple[str, str]] = frozenset(
    {
        (_METADATA, "Metadata"),
        (_METADATA, "MetadataIndex"),
        (_METADATA, "StorageMeta"),
        (_METADATA, "TensorStorageMetadata"),
        (_METADATA, "ChunkStorageMetadata"),
        (_METADATA, "TensorProperties"),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
        *(("torch", name) for name in _DTYPES),
    }
)
"""(module, name) of everything that the index of a folder of tensors names. BytesStorageMetadata is not among them: we store none."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    """Of the folder, by its name."""
    begin: int
    size: int
    """Bytes of the file, from `begin`, that hold it."""

    def read(self, folder: Path) -> Tensor:
        """The tensor, on the CPU.

        Raises:
            UserError: the file's part is no such tensor, or holds something else than tensors.
        """
        path = folder / self.file
        try:
            with path.open("rb") as file:
                file.seek(self.begin)
                value = torch.load(io.BytesIO(file.read(self.size)), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a hostile or torn part makes of the reader
            raise UserError(
                f"{path}: {self.key} can't be read ({_first_line(error)}); take an earlier checkpoint"
            ) from None
        if not isinstance(value, Tensor) or tuple(value.shape) != self.shape or value.dtype != self.dtype:
            raise UserError(f"{path}: {self.key} is not the tensor that {INDEX} says; take an earlier checkpoint")
        return value


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder, by its key.

    Raises:
        UserError: the index is missing, torn, or names anything but tensors in files of the folder.
    """
    path = folder / INDEX
    try:
        index = _Inert(io.BytesIO(path.read_bytes())).load()
        return _tensors(index)
    except _Refused as error:
        raise UserError(f"{path} was refused: {error}; take an earlier checkpoint, or one that you trust") from None
    except FileNotFoundError:
        raise UserError(f"{path} is missing; take an earlier checkpoint") from None
    except Exception as error:  # whatever a hostile or torn pickle makes of the reader
        raise UserError(f"{path} is torn or not ours ({_first_line(error)}); take an earlier checkpoint") from None


# ---------------------------------------------------------------------- the index


class _Refused(Exception):
    """The index asks for something that no index of ours does."""


class _StandIn:
    """What a pickle makes of an admitted name: keeps what it is made of, and does nothing."""

    arguments: tuple[object, ...]
    fields: dict[str, object]
    state: object

    def __new__(cls, *arguments: object) -> _StandIn:
        made = object.__new__(cls)
        vars(made).update(arguments=arguments, fields={}, state=None)
        return made

    def __setstate__(self, state: object) -> None:
        vars(self).update(state=state, fields=dict(state) if isinstance(state, dict) else {})

    def __hash__(self) -> int:
        return id(self)


def _member(owner: object, name: object) -> _StandIn:
    """A member of an enumeration, as Python before 3.11.4 pickles it: `getattr(owner, name)`, of stand-ins alone.

    Raises:
        _Refused: of anything else.
    """
    if not (isinstance(owner, type) and issubclass(owner, _StandIn) and isinstance(name, str) and name.isidentifier()):
        raise _Refused("it is a pickle that would use builtins.getattr, which no checkpoint of genrank does")
    return owner(name)


class _Inert(pickle.Unpickler):
    """Resolves ADMITTED names to stand-ins made for this pickle alone: one that sets attributes of a class sets those of a stand-in."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._made: dict[tuple[str, str], object] = {}

    def find_class(self, module: str, name: str, /) -> object:
        """A stand-in, or the dtype."""
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in ADMITTED:
            used = ascii(f"{module}.{name}")[1:-1]  # one line, whatever a damaged file names
            raise _Refused(f"it is a pickle that would use {used}, which no checkpoint of genrank does")
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in self._made:
            self._made[module, name] = types.new_class(name, (_StandIn,))
        return self._made[module, name]

    def persistent_load(self, pid: object, /) -> NoReturn:
        """Refused."""
        raise _Refused("it is a pickle that names objects outside of it")


def _tensors(index: object) -> dict[str, StoredTensor]:
    tensors = _dict(_of(index, "Metadata").get("state_dict_metadata"))
    parts: dict[str, dict[str, object]] = {}
    for key, stored in _dict(_of(index, "Metadata").get("storage_data")).items():
        parts[_text(_of(key, "MetadataIndex").get("fqn"))] = _of(stored, "_StorageInfo")
    found = {}
    for key, entry in tensors.items():
        name, tensor = _text(key), _of(entry, "TensorStorageMetadata")
        chunks = tensor.get("chunks")
        if not isinstance(chunks, list) or len(chunks) != 1 or name not in parts:
            raise _Refused(f"{name} is not one tensor in one file")
        part, shape = parts[name], _sizes(tensor.get("size"))
        chunk = _of(chunks[0], "ChunkStorageMetadata")
        if _sizes(chunk.get("sizes")) != shape or any(_sizes(chunk.get("offsets"))):
            raise _Refused(f"{name} is not one tensor in one file")
        file = _text(part.get("relative_path"))
        if Path(file).name != file or file in ("", ".", ".."):
            raise _Refused(f"{name} lies outside of the folder, at {file}")
        if part.get("transform_descriptors"):
            raise _Refused(f"{name} is stored in a way that no checkpoint of genrank is")
        begin, size = _number(part.get("offset")), _number(part.get("length"))
        found[name] = StoredTensor(name, shape, _dtype(tensor.get("properties")), file, begin, size)
    return found


def _of(value: object, name: str) -> dict[str, object]:
    """The fields of a stand-in."""
    if not isinstance(value, _StandIn) or type(value).__name__ != name:
        raise _Refused(f"it holds {_kind(value)} where {name} belongs")
    return value.fields


def _dict(value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        raise _Refused(f"it holds {_kind(value)} where a dict belongs")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Refused(f"it holds {_kind(value)} where a name belongs")
    if not value.isprintable():
        raise _Refused(f"it holds {value!a} where a name belongs")
    return value


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise _Refused(f"it holds {_kind(value)} where a number of bytes or rows belongs")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, _StandIn) or type(value).__name__ != "Size" or len(value.arguments) != 1:
        raise _Refused(f"it holds {_kind(value)} where a shape belongs")
    (sizes,) = value.arguments
    if not isinstance(sizes, list | tuple):
        raise _Refused(f"it holds {_kind(sizes)} where a shape belongs")
    return tuple(map(_number, sizes))


def _dtype(properties: object) -> torch.dtype:
    _of(properties, "TensorProperties")
    state = properties.state if isinstance(properties, _StandIn) else None
    if not isinstance(state, tuple) or not state or not isinstance(state[0], torch.dtype):
        raise _Refused("a tensor has no dtype")
    return state[0]


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
