"""Archives to bytes, a little at a time: damage is found, and a bomb refused before it takes memory.

An archive is fed to its decompressor in pieces so small that none of them can become much. What it has given is
compared with what it has taken: text does not shrink to a 200th.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import zstandard

from data_pipeline.damage import DamagedInput
from data_pipeline.inputs import InputFile
from data_pipeline.limits import MAX_RATIO, RATIO_FREE_BYTES

MAX_WINDOW_BYTES = 1 << 27
"""What a zstandard frame may have its reader remember; the tool's own default."""
_FEED_BYTES = {".gz": 1 << 14, ".zst": 1 << 10}
"""At once: what becomes 16 MiB at most of gzip (1 byte makes 1032), and 32 MiB of zstandard (4 bytes make 128 KiB)."""


def inflate(file: InputFile, blocks: Iterable[bytes], ends: deque[int] | None = None) -> Iterator[bytes]:
    """The bytes of all members of an archive of `blocks`; `ends` is given the place in them where each member ends.

    Raises DamagedInput on a damaged or short one, and on a bomb.
    """
    if not file.bytes:
        raise _damaged(file, "it is empty; even an archive of nothing has a header")
    stream, fed = _decompressor(file), False
    members = taken = given = 0
    for block in _feed(blocks, _FEED_BYTES[file.compression]):
        taken += len(block)
        if members and not fed:
            block = block.lstrip(b"\0")  # gzip allows zeros after the last member
        while block:
            try:
                inflated = stream.decompress(block)
            except Exception as error:  # zlib and zstandard have their own classes for damage
                raise _damaged(file, str(error)) from error
            given += len(inflated)
            if given > max(RATIO_FREE_BYTES, MAX_RATIO * taken):
                raise bomb(file, taken, given)
            yield inflated
            fed, block = True, b""
            if stream.eof:
                block = stream.unused_data.lstrip(b"\0")
                stream, fed = _decompressor(file), False
                members += 1
                if ends is not None:
                    ends.append(given)
    if fed:
        raise _damaged(file, f"it ends inside a member, after {file.bytes} bytes")


def _feed(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    for block in blocks:
        for at in range(0, len(block), size):
            yield block[at : at + size]


def _decompressor(file: InputFile) -> Any:
    """Something with `decompress`, `eof` and `unused_data`, for one member."""
    if file.compression == ".gz":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()


def _damaged(file: InputFile, found: str) -> DamagedInput:
    return DamagedInput(
        "a compressed input is damaged",
        name=file.name,
        expected=f"a whole {file.compression} file",
        found=f"{file.name}: {found}",
        do="fetch it again, or leave it out of inputs",
    )


def bomb(file: InputFile, taken: int, given: int) -> DamagedInput:
    return DamagedInput(
        "a compressed input inflates to far more than text does",
        name=file.name,
        expected=f"at most {MAX_RATIO} times its bytes, once it is more than {RATIO_FREE_BYTES >> 20} MiB",
        found=f"{file.name}: its first {taken:,} bytes make {given:,}",
        do="leave it out of inputs; if it is text that you trust, decompress it first",
    )
