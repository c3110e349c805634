"""A rank's data file as readers see it: no byte is handed over before the block that holds it has been hashed.

A block is hashed once, at the first range that touches it or in `verify`, which goes through many ranges in the order
of the file, reading ahead. The bytes are then read again, out of the page cache as a rule: ranges may be far smaller
than blocks (ZeRO 3 of N ranks cuts every matrix in N), and to hash a block at each of them would cost N times as much.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from fmscale.training.checkpoint_format import DamagedError, damaged
from fmscale.training.file_record import FileRecord, hash_blocks


class VerifiedFile:
    """Every method raises DamagedError for a block that is not as it was written, or cannot be read."""

    def __init__(self, directory: Path, record: FileRecord) -> None:
        self._directory, self._record = directory, record
        self._file: io.FileIO | None = None
        self._verified: set[int] = set()

    def verify(self, spans: Iterable[tuple[int, int]]) -> None:
        """Hash the blocks that hold bytes [start, stop) of any of `spans` and have not been hashed yet."""
        blocks = {block for span in spans for block in self._record.blocks_of(*span)}
        wanted = sorted(blocks - self._verified)
        if not wanted:
            return
        try:
            for block, found in zip(wanted, hash_blocks(self._opened(), self._record, wanted), strict=True):
                if found != self._record.blocks[block]:
                    raise damaged(self._directory, self._record.file, *self._record.differ(block, found))
                self._verified.add(block)
        except OSError as error:
            raise self._unreadable(error.strerror or "unreadable") from error

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out`, of bytes, with those from `start` on."""
        self.verify([(start, start + len(out))])
        try:
            file, filled = self._opened(), 0
            file.seek(start)
            while filled < len(out):
                if not (got := file.readinto(out[filled:])):
                    raise self._unreadable(f"it ends at byte {start + filled:,}, and was longer when it was hashed")
                filled += got
        except OSError as error:
            raise self._unreadable(error.strerror or "unreadable") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> io.FileIO:
        if self._file is None:
            self._file = io.FileIO(self._directory / self._record.file)
        return self._file

    def _unreadable(self, why: str) -> DamagedError:
        return damaged(self._directory, self._record.file, why)
