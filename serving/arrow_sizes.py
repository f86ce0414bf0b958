"""How many bytes an Arrow IPC stream takes in memory, found without decompressing it.

A few kilobytes of zstd make gigabytes of zeros. What a record batch will take stands in its metadata (a FlatBuffers table: Arrow's Message.fbs) and,
for compressed buffers, in the eight bytes before each: its length before compression, or -1 where it is stored as it is. Buffers that overlap in
the body count as often as they are read.
"""

from __future__ import annotations

import struct

import pyarrow as pa

HEADER, BUFFERS, COMPRESSION = 2, 2, 3
"""Fields' places: `Message.header`, `RecordBatch.buffers` and `RecordBatch.compression`."""
BUFFER = struct.Struct("<qq")
"""offset, length."""
LENGTH = struct.Struct("<q")


def decompressed_bytes(body: bytes) -> int:
    """Bytes of all record batches' buffers.

    Raises:
        ValueError: it is no such stream, or a buffer lies outside of its body or says a length that can't be.
        pyarrow.ArrowException: likewise.
    """
    total = 0
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return total
        if message.type == "record batch":
            total += _of_batch(bytes(message.metadata), memoryview(message.body))


def _of_batch(metadata: bytes, body: memoryview) -> int:
    try:
        message = _u32(metadata, 0)
        batch = _target(metadata, _field(metadata, message, HEADER))
        buffers = _target(metadata, _field(metadata, batch, BUFFERS))
        compressed = bool(_field(metadata, batch, COMPRESSION))
        total, first = 0, buffers + 4
        for offset, length in BUFFER.iter_unpack(metadata[first : first + BUFFER.size * _u32(metadata, buffers)]):
            if offset < 0 or length < 0 or offset + length > len(body):
                raise ValueError("a buffer lies outside of its body")
            whole = LENGTH.unpack_from(body, offset)[0] if compressed and length else length
            if whole < -1:
                raise ValueError("a compressed buffer has a negative length")
            total += length if whole == -1 else whole
        return total
    except struct.error as error:
        raise ValueError(f"its metadata is damaged: {error}") from None


def _field(table: bytes, at: int, number: int) -> int:
    """Where a table's field lies; 0: it isn't there."""
    entries = at - struct.unpack_from("<i", table, at)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", table, entries)[0]:
        return 0
    offset = int(struct.unpack_from("<H", table, entries + place)[0])
    return at + offset if offset else 0


def _target(table: bytes, at: int) -> int:
    if not at:
        raise ValueError("a record batch has no buffers")
    return at + _u32(table, at)


def _u32(table: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", table, at)[0])
