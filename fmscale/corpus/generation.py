"""The chunks of one generation of one split: mapped from its shards, verified at first use, refused with their names.

A shard is mapped when a chunk of it is first asked for; a chunk's member is hashed when it is first asked for, and
from then on it is a slice of the mapping: no copy, and one page cache for all readers of a machine. A mapping has one
danger: a file that is cut after it was mapped kills whoever reads beyond its new end. So the size of the file is asked
for at each use, and its pages at the first one, both of which say so with an error.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmscale.corpus.chunks import DOC_DTYPE
from fmscale.corpus.index import region_hash
from fmscale.corpus.manifest import TOKENIZER_FILE, Manifest, Shard
from fmscale.errors import DataError

_MADV_POPULATE_READ = 22
"""Linux 5.14 and later: maps pages now, and says so with an error, not a signal, where there are none."""
_MAPPED_SHARDS = 256
"""Per generation. Each mapping keeps a file descriptor; the customary limit of a process is 1024."""


class DamagedChunk(DataError):
    """A chunk whose bytes are lost or not those that were written. Crosses processes with all that it says."""

    def __init__(self, split: str, chunk: int, corpus: Path, shard: Path, what: str, expected: str, found: str) -> None:
        super().__init__(
            f"chunk {chunk} is damaged: {what}",
            expected=expected,
            found=found,
            do="restore the shard from a copy, or go on without the chunk: data.bad_chunks=quarantine; "
            "`fmscale data verify` lists all damage",
        )
        self.split = split
        self.chunk = chunk
        """Its number in the Corpus of this split, all generations counted."""
        self.corpus = corpus
        self.shard = shard
        """The file that holds it, or should."""
        self.place: tuple[int, int] | None = None
        """(number of the source, chunk) in a run's order, where it was asked for as a row of one."""
        self._given = (split, chunk, corpus, shard, what, expected, found)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given, self.__dict__


class Generation:
    """One generation's chunks of one split, numbered from 0."""

    def __init__(
        self, corpus: Path, directory: Path, manifest: Manifest, split: str, index: npt.NDArray[np.void], first: int
    ) -> None:
        """index: of all splits, as `read_index` gives it. first: number of its first chunk in the corpus."""
        chosen = manifest.split(split)
        self.manifest = manifest
        self.directory = directory
        self.split = split
        self.first = first
        self.chunks = chosen.chunks
        self.shards = [shard for shard in manifest.shards if shard.split == split]
        self.ends = list(accumulate(shard.chunks for shard in self.shards))
        """Chunks of the split up to and with each shard."""
        self.verify_s = 0.0
        """Seconds spent on hashes so far."""
        self._corpus = corpus
        self._index = index[chosen.first_chunk : chosen.first_chunk + chosen.chunks]
        self._dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
        self._count = chosen.chunk_tokens + 1
        self._tokens_verified = bytearray(self.chunks)
        self._docs_verified = bytearray(self.chunks)
        self._mapped: dict[int, mmap.mmap] = {}

    def check_shards(self) -> None:
        """Raises DataError unless all shards are there, have their sizes, and end in zeros."""
        for number in range(len(self.shards)):
            self.check_shard(number)

    def check_shard(self, number: int) -> None:
        """Raises DataError unless the shard is there, has its size, and ends in zeros after its last chunk."""
        shard = self.shards[number]
        path = self.directory / shard.file
        data_end = int(self._index["end"][self.ends[number] - 1])
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size != shard.bytes:
                    raise _wrong_size(path, shard, f"{size} bytes")
                file.seek(data_end)
                rest = file.read()
        except FileNotFoundError:
            raise _wrong_size(path, shard, "no such file") from None
        except OSError as error:
            raise _unreadable(path, error) from error
        if rest.strip(b"\0"):
            raise DataError(
                f"shard {path} is damaged at its end",
                expected=f"zeros from byte {data_end} on",
                found=f"byte {data_end + len(rest) - len(rest.lstrip(bytes(1)))} is not 0",
                do="restore the shard from a copy, or prepare the corpus again",
            )

    def key(self, chunk: int) -> tuple[str, int]:
        """Task and ordinal in the chunk's webdataset key: ("train-00003", 17)."""
        record = self._index[chunk]
        view = self._map(chunk, int(record["shard"]), int(record["tokens_start"]))
        at = int(record["start"])
        name = view[at : at + 100].split(b"\0")[0].decode("ascii").split(".")[0]
        task, _, ordinal = name.rpartition("-")
        return task, int(ordinal)

    def tokens(self, chunk: int) -> npt.NDArray[np.unsignedinteger]:
        record = self._index[chunk]
        end = int(record["end"])
        view = self._map(chunk, int(record["shard"]), end)
        if not self._tokens_verified[chunk]:
            self._verify(chunk, view, "tokens", int(record["tokens_start"]), end)
            self._tokens_verified[chunk] = 1
        return np.frombuffer(view, self._dtype, self._count, int(record["tokens_data"]))

    def docs(self, chunk: int) -> npt.NDArray[np.void]:
        record = self._index[chunk]
        end = int(record["tokens_start"])
        view = self._map(chunk, int(record["shard"]), end)
        if not self._docs_verified[chunk]:
            self._verify(chunk, view, "docs", int(record["start"]), end)
            self._docs_verified[chunk] = 1
        return np.frombuffer(view, DOC_DTYPE, int(record["documents"]), int(record["docs_data"]))

    def _verify(self, chunk: int, view: mmap.mmap, member: str, begin: int, end: int) -> None:
        started = time.perf_counter()
        expected = self._index[chunk][f"{member}_hash"].tobytes()
        self._populate(chunk, view, begin, end)
        with memoryview(view) as whole:
            found = region_hash(whole[begin:end])
        self.verify_s += time.perf_counter() - started
        if found != expected:
            what = f"its {member}, bytes {begin} to {end} of {self._path(chunk)}"
            raise self._damaged(chunk, what, f"xxh3_128 {expected.hex()}", found.hex())

    def _map(self, chunk: int, number: int, end: int) -> mmap.mmap:
        """The mapping of a shard that has at least `end` bytes, which `chunk` needs.

        The size is asked for again at each use, because a read of a mapping beyond the file's end kills the process.
        """
        view = self._mapped.get(number)
        if view is None:
            view = self._open(chunk, number)
            while len(self._mapped) >= _MAPPED_SHARDS:
                self._mapped.pop(next(iter(self._mapped)), None)  # arrays handed out keep their mapping alive
            self._mapped[number] = view
        if (size := min(view.size(), len(view))) < end:
            raise self._cut_short(chunk, f"{size} bytes", end)
        return view

    def _open(self, chunk: int, number: int) -> mmap.mmap:
        path = self.directory / self.manifest.shards[number].file
        try:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise self._cut_short(chunk, "no such file") from None
        except ValueError:  # an empty file cannot be mapped
            raise self._cut_short(chunk, "0 bytes") from None
        except OSError as error:
            if error.errno == errno.EIO:
                raise self._cut_short(chunk, os.strerror(errno.EIO)) from error
            raise _unreadable(path, error) from error

    def _populate(self, chunk: int, view: mmap.mmap, begin: int, end: int) -> None:
        """Have the kernel read the bytes now: a file cut meanwhile, or a bad sector, is an error here, else a kill."""
        page = begin - begin % mmap.PAGESIZE
        try:
            view.madvise(_MADV_POPULATE_READ, page, end - page)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel that does not know it
                raise self._cut_short(chunk, f"{view.size()} bytes: {error.strerror}", end) from error

    def _path(self, chunk: int) -> Path:
        return self.directory / self.manifest.shards[int(self._index[chunk]["shard"])].file

    def _cut_short(self, chunk: int, found: str, end: int = 0) -> DamagedChunk:
        what = f"its shard {self._path(chunk)} is cut short or missing"
        return self._damaged(chunk, what, f"at least {end or int(self._index[chunk]['end'])} bytes", found)

    def _damaged(self, chunk: int, what: str, expected: str, found: str) -> DamagedChunk:
        return DamagedChunk(self.split, self.first + chunk, self._corpus, self._path(chunk), what, expected, found)


def check_tokenizer(directory: Path, manifest: Manifest) -> None:
    """Raises DataError unless tokenizer.model is the one that the manifest names."""
    path = directory / TOKENIZER_FILE
    expected = str(manifest.tokenizer["fingerprint"])
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
    if found != expected:
        raise DataError(
            f"{path} is damaged or missing",
            expected=f"sha256 {expected}",
            found=found,
            do="restore the corpus from a copy, or prepare it again",
        )


def _wrong_size(path: Path, shard: Shard, found: str) -> DataError:
    return DataError(
        f"shard {path} is cut short, overgrown or missing",
        expected=f"{shard.bytes} bytes",
        found=found,
        do="restore the shard from a copy, or prepare the corpus again",
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    """Nothing says that its bytes are damaged, so no chunk is given up for this."""
    return DataError(
        f"shard {path} cannot be read",
        expected="a readable file",
        found=error.strerror or str(error),
        do="mend its permissions, the mount, or the limit of open files; then run the command again",
    )
