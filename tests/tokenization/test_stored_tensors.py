"""The index of a folder of tensors is read without running anything of it: every trick of a pickle ends in one line, and nothing happens."""

from __future__ import annotations

import builtins
import enum
import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from genrank.schemas.errors import UserError
from genrank.tokenization.stored_tensors import INDEX, read_index

STATE = {
    "item/weight/0": torch.arange(12.0).reshape(4, 3),
    "item/entries/ids": torch.arange(5),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensors")
    save(dict(STATE), checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "tensors"))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        for tensor in read_index(folder).values():
            tensor.read(folder)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_what_was_written_is_read(written: Path) -> None:
    index = read_index(written)
    assert index.keys() == STATE.keys()
    for key, value in STATE.items():
        read = index[key].read(written)
        assert torch.equal(read, value) and read.dtype == value.dtype, key


# ---------------------------------------------------------------------- hostile pickles


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def hostile(mark: Path) -> dict[str, object]:
    """Objects whose unpickling leaves `mark`."""
    touch = f"touch {mark}"
    return {
        "a shell command": Calls(os.system, touch),
        "eval": Calls(builtins.eval, f"__import__('os').system({touch!r})"),
        "exec": Calls(builtins.exec, f"import os; os.system({touch!r})"),
        "a nested call": Calls(builtins.list, Calls(builtins.map, os.system, [touch])),
        "an attribute": Calls(builtins.getattr, Calls(builtins.__import__, "os"), Calls(os.system, touch)),
        "torch's own unpickler": Calls(torch.load, str(mark)),
        "a file of its own": Calls(builtins.open, str(mark), "w"),
        "a method of an admitted class": Calls(Path.touch, mark),
    }


def metadata(**changes: object) -> Metadata:
    """An index of one tensor, with something else in a place."""
    shape = torch.Size([2])
    tensor = TensorStorageMetadata(
        TensorProperties(torch.float32), shape, [ChunkStorageMetadata(torch.Size([0]), shape)]
    )
    fields = {"state_dict_metadata": {"a": tensor}, "planner_data": {}, "storage_data": {MetadataIndex("a", [0]): None}}
    return Metadata(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", list(hostile(Path())))
@pytest.mark.parametrize(
    "place",
    ["all of it", "planner_data", "storage_data", "state_dict_metadata", "storage_meta", "a key", "a key of storage"],
)
def test_no_code_of_an_index_runs(folder: Path, tmp_path: Path, name: str, place: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    planted = hostile(mark)[name]
    document: object = planted
    if place == "a key":
        document = metadata(state_dict_metadata={planted: None})
    elif place == "a key of storage":
        document = metadata(storage_data={MetadataIndex("a", [0]): [planted]})
    elif place != "all of it":
        document = metadata(**{place: planted})
    try:
        (folder / INDEX).write_bytes(pickle.dumps(document, protocol))
    except (pickle.PicklingError, TypeError, RecursionError):
        pytest.skip("this protocol has no such pickle")
    assert "was refused: it is a pickle that would use" in refused(folder)
    assert not mark.exists()


def test_the_tricks_do_work_on_a_plain_unpickler(tmp_path: Path) -> None:
    """Or the test above would test nothing."""
    for name in (
        "a shell command",
        "eval",
        "exec",
        "a nested call",
        "a file of its own",
        "a method of an admitted class",
    ):
        mark = tmp_path / name.replace(" ", "-")
        pickle.loads(pickle.dumps(hostile(mark)[name]))
        assert mark.exists(), name


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\ngetattr\n(cos\npath\nVsys\ntRp0\n0g0\n.",
        b"\x80\x04\x8c\x05torch\x8c\x15Size.__base__.__base__\x93.",  # names with dots: attributes of admitted ones
        b"\x80\x04\x8c\x13torch.serialization\x8c\x0e_get_layout.__globals__\x93.",
        b"\x80\x04\x8c\x05torch\x8c\x0bload.system\x93.",
        b"\x80\x02Vname\nQ.",  # persistent ids
        b"Pname\n.",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"(i__main__\nos\n.",
        b"(ios\nsystem\n.",
    ],
)
def test_raw_pickles_are_refused(folder: Path, raw: bytes) -> None:
    (folder / INDEX).write_bytes(raw)
    assert refused(folder)


def test_members_of_enumerations_are_read_as_python_3_11_2_pickles_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `getattr(Enumeration, name)`, where later ones call the enumeration with the value."""

    def by_name(member: enum.Enum, protocol: int) -> tuple[object, ...]:
        return getattr, (type(member), member.name)

    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    save(dict(STATE), checkpoint_id=tmp_path, no_dist=True)
    assert b"getattr" in (tmp_path / ".metadata").read_bytes()
    for name, tensor in read_index(tmp_path).items():
        assert torch.equal(tensor.read(tmp_path), STATE[name])


def test_an_entry_of_bytes_is_refused(folder: Path) -> None:
    """torch.distributed.checkpoint would unpickle it, whatever it holds."""
    (folder / INDEX).write_bytes(pickle.dumps(metadata(state_dict_metadata={"a": BytesStorageMetadata()})))
    assert "BytesStorageMetadata" in refused(folder)


def test_a_pickle_that_changes_admitted_classes_changes_stand_ins(folder: Path) -> None:
    """BUILD with a tuple sets attributes of whatever is on the stack, a class too."""
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (folder / INDEX).write_bytes(name + b"(N(dVversion\nVplanted\nstb.")
    assert refused(folder)
    assert Metadata.version is None


@pytest.mark.parametrize("file", ["../outside.distcp", "/etc/hostname", "..", "nested/__0_0.distcp", ""])
def test_files_outside_of_the_folder_are_refused(folder: Path, file: str) -> None:
    index = pickle.loads((folder / INDEX).read_bytes())
    for stored in index.storage_data.values():
        stored.relative_path = file
    (folder / INDEX).write_bytes(pickle.dumps(index))
    assert "lies outside of the folder" in refused(folder)


def test_no_code_of_a_file_of_tensors_runs(folder: Path, tmp_path: Path) -> None:
    for name, planted in hostile(tmp_path / "mark").items():
        stored = io.BytesIO()
        try:
            torch.save({"a": planted}, stored)
        except (pickle.PicklingError, TypeError):
            continue
        index = pickle.loads((folder / INDEX).read_bytes())
        for part in index.storage_data.values():
            part.offset, part.length = 0, len(stored.getvalue())
        (folder / INDEX).write_bytes(pickle.dumps(index))
        (folder / "__0_0.distcp").write_bytes(stored.getvalue())
        assert "can't be read" in refused(folder), name
        assert not (tmp_path / "mark").exists(), name


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, 2**20), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_index_is_read_or_refused_in_one_line(written: Path, at: int, byte: int, cut: bool) -> None:
    whole = bytearray((written / INDEX).read_bytes())
    at %= len(whole)
    damaged = whole[:at] if cut else whole[:at] + bytes([byte]) + whole[at + 1 :]
    folder = written.parent / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_bytes(damaged)
    try:
        read_index(folder)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
