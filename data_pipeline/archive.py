"""Archives to bytes, a little at a time: damage is found, and a bomb refused before it takes memory.

An archive is fed to its decompressor in pieces so small that none of them can become much. What it has given is
compared with what it has taken: text does not shrink to a 200th.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from typing import Any

from data_pipeline.inputs import DamagedInput, InputFile
from fmscale.errors import DataError

MAX_RATIO = 200
"""Of an archive's text to its bytes. JSON lines of text have 3 to 10, logs that repeat themselves up to 100."""
RATIO_FREE_BYTES = 1 << 23
"""What an archive may inflate to at any ratio."""
MAX_WINDOW_BYTES = 1 << 27
"""What a zstandard frame may have its reader remember; the tool's own default."""
_FEED_BYTES = {".gz": 1 << 14, ".zst": 1 << 10}
"""At once: what becomes 16 MiB at most of gzip (1 byte makes 1032), and 32 MiB of zstandard (4 bytes make 128 KiB)."""


def inflate(file: InputFile) -> Iterator[bytes]:
    """Decompressed bytes of all members of an archive. Raises DataError on a damaged or short one, and on a bomb."""
    if not file.bytes:
        raise _damaged(file, "it is empty; even an archive of nothing has a header")
    stream, fed = _decompressor(file), False
    members = taken = given = 0
    try:
        with open(file.path, "rb") as raw:
            while block := raw.read(_FEED_BYTES[file.compression]):
                taken += len(block)
                if members and not fed:
                    block = block.lstrip(b"\0")  # gzip allows zeros after the last member
                while block:
                    inflated = stream.decompress(block)
                    given += len(inflated)
                    if given > max(RATIO_FREE_BYTES, MAX_RATIO * taken):
                        raise _bomb(file, taken, given)
                    yield inflated
                    fed, block = True, b""
                    if stream.eof:
                        block = stream.unused_data.lstrip(b"\0")
                        stream, fed = _decompressor(file), False
                        members += 1
    except DataError:
        raise
    except Exception as error:  # zlib and zstandard have their own classes for damage
        raise _damaged(file, str(error)) from error
    if fed:
        raise _damaged(file, f"it ends inside a member, after {file.bytes} bytes")


def _decompressor(file: InputFile) -> Any:
    """Something with `decompress`, `eof` and `unused_data`, for one member."""
    if file.compression == ".gz":
        return zlib.decompressobj(wbits=31)
    try:
        zstandard = importlib.import_module("zstandard")  # optional: Python itself reads .zst from 3.14 on only
    except ImportError:
        raise DataError(
            "a .zst input needs the zstandard package",
            expected="zstandard, which is not among fmscale's own dependencies",
            found=file.name,
            do="pip install zstandard, or recompress the file as .gz",
        ) from None
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()


def _damaged(file: InputFile, found: str) -> DamagedInput:
    return DamagedInput(
        "a compressed input is damaged",
        expected=f"a whole {file.compression} file",
        found=f"{file.name}: {found}",
        do="fetch it again, or leave it out of inputs",
    )


def _bomb(file: InputFile, taken: int, given: int) -> DataError:
    return DataError(
        "a compressed input inflates to far more than text does",
        expected=f"at most {MAX_RATIO} times its bytes, once it is more than {RATIO_FREE_BYTES >> 20} MiB",
        found=f"{file.name}: its first {taken:,} bytes make {given:,}",
        do="leave it out of inputs; if it is text that you trust, decompress it first",
    )
