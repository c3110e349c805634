"""Where each chunk lies and what its bytes hash to: `index.bin`, one fixed-size record a chunk, memory-mapped.

    magic[16] version[u4] record_bytes[u4] chunks[u8]   then `chunks` records of CHUNK_DTYPE, all little-endian

A chunk's two tar members are one region of its shard, so one mapping slice or one range request gets them:

    start            docs_data        tokens_start      tokens_data            end
      | header | npy header | records | pad | header | npy header | tokens | pad |
      |------------- docs_hash ------------|------------- tokens_hash ----------|

80 bytes for each 2 MB of tokens: 14 million chunks (15 T tokens) have an index of 1.1 GB.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from fmscale import durable
from fmscale.corpus.manifest import IndexFile
from fmscale.errors import DataError

MAGIC = b"fmscale-index\0\0\0"
VERSION = 1
FILE = "index.bin"

CHUNK_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # number in the manifest's list of shards
        ("documents", "<u4"),  # records of its docs.npy
        ("start", "<u8"),  # offset in the tar of the docs member's header
        ("tokens_start", "<u8"),  # of the tokens member's header, where the docs member's padding ends
        ("end", "<u8"),  # where the tokens member's padding ends
        ("docs_data", "<u8"),  # of the first document record
        ("tokens_data", "<u8"),  # of the first token
        ("docs_hash", "V16"),  # xxh3_128 of [start, tokens_start)
        ("tokens_hash", "V16"),  # xxh3_128 of [tokens_start, end)
    ]
)
_HASHED_RECORDS = 1 << 16
"""Whose hashes are held at once."""
_HEADER = struct.Struct("<16sIIQ")


def region_hash(data: Any) -> bytes:
    """The 16 bytes (big-endian, as xxHash writes them) that the index keeps of a region."""
    digest: bytes = xxhash.xxh3_128_digest(data)
    return digest


def content_hash(records: npt.NDArray[np.void]) -> str:
    """sha256 over docs_hash and tokens_hash of each chunk in order: the identity of a corpus' content."""
    digest = hashlib.sha256()
    at = CHUNK_DTYPE.fields["docs_hash"][1]  # type: ignore[index]  # both hashes end the record
    rows = records.view(np.uint8).reshape(len(records), CHUNK_DTYPE.itemsize)
    for begin in range(0, len(rows), _HASHED_RECORDS):
        digest.update(rows[begin : begin + _HASHED_RECORDS, at:].tobytes())
    return digest.hexdigest()


def write_index(directory: Path, records: npt.NDArray[np.void]) -> IndexFile:
    """Write index.bin for `records` (CHUNK_DTYPE[chunks]) and say what it is."""
    assert records.dtype == CHUNK_DTYPE, f"records are {records.dtype}"
    data = _HEADER.pack(MAGIC, VERSION, CHUNK_DTYPE.itemsize, len(records)) + records.tobytes()
    durable.replace(directory / FILE, data)
    return IndexFile(file=FILE, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_index(directory: Path, file: IndexFile, content: str) -> npt.NDArray[np.void]:
    """Map the index: CHUNK_DTYPE[chunks], read-only.

    Raises DataError if it is not byte for byte what `file` says, or if its chunks are not those, in the order, that
    the manifest's content_hash, `content`, says.
    """
    path = directory / file.file
    try:
        with path.open("rb") as handle:
            view = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # ValueError: an empty file cannot be mapped
        raise _damaged(path, f"{file.bytes} bytes", "0 bytes" if path.exists() else "no such file") from None
    if (found := hashlib.sha256(view).hexdigest()) != file.sha256:
        raise _damaged(
            path, f"{file.bytes} bytes, sha256 {file.sha256[:16]}...", f"{len(view)} bytes, sha256 {found[:16]}..."
        )
    magic, version, record_bytes, chunks = _HEADER.unpack_from(view)
    if (magic, version, record_bytes) != (MAGIC, VERSION, CHUNK_DTYPE.itemsize):
        raise DataError(
            f"{path} is of a format that this version cannot read",
            expected=f"index version {VERSION}, records of {CHUNK_DTYPE.itemsize} bytes",
            found=f"version {version}, records of {record_bytes} bytes",
            do="use the fmscale that wrote it, or prepare the corpus again",
        )
    records = np.frombuffer(view, CHUNK_DTYPE, count=chunks, offset=_HEADER.size)
    if (found := content_hash(records)) != content:
        raise _damaged(
            path, f"chunks with content_hash {content[:16]}...", f"{found[:16]}...: other ones, or reordered"
        )
    return records


def _damaged(path: Path, expected: str, found: str) -> DataError:
    return DataError(
        f"{path} is damaged or missing",
        expected=expected,
        found=found,
        do="restore the corpus from a copy, or prepare it again",
    )
