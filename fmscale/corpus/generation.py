"""The chunks of one generation of one split: mapped from its shards, verified at first use, refused with their names.

A shard is mapped when a chunk of it is first asked for; a chunk's member is hashed when it is first asked for, and
from then on it is a slice of the mapping: no copy, and one page cache for all readers of a machine. A shard that is
mapped again after others took its place is hashed again if it is another file by then.

A mapping has one danger: a file that is cut after it was mapped kills whoever reads beyond its new end. So the size of
the file is asked for again and again, and its pages at the first use, both of which say so with an error.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from fmscale.corpus.chunks import DOC_DTYPE
from fmscale.corpus.index import CHECKED_AT_ONCE, Index, Shard, region_hash
from fmscale.corpus.manifest import Manifest
from fmscale.errors import DataError

Member = Literal["docs", "tokens"]
MEMBERS: tuple[Member, ...] = ("docs", "tokens")
"""Of a chunk, in their order in a shard."""
_MADV_POPULATE_READ = 22
"""Linux 5.14 and later: maps pages now, and says so with an error, not a signal, where there are none."""
_MAPPED_SHARDS = 256
"""Per generation. Each mapping keeps a file descriptor; the customary limit of a process is 1024."""
LOOK_AGAIN_S = 0.05
"""A mapped shard's size is looked at this often: at each use the look cost half as much as all hashing. A file that is
cut in place in between kills whoever reads the lost part (SIGBUS); what restarts it finds the cut at its opening."""
_OR_WITHOUT = {"train": ", or go on without: data.bad_chunks=quarantine", "heldout": ""}
_PLACES = 65536
"""Chunks whose shard's number is kept at hand: asked for at each row, and in the index it costs as much as a row."""


class DamagedChunk(DataError):
    """A chunk whose bytes are lost or not those that were written. Crosses processes with all that it says."""

    def __init__(self, split: str, chunk: int, corpus: Path, shard: Path, what: str, expected: str, found: str) -> None:
        super().__init__(
            f"chunk {chunk} is damaged: {what}",
            expected=expected,
            found=found,
            do=f"restore the shard from a copy{_OR_WITHOUT[split]}; `fmscale data verify` lists all damage",
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

    def __init__(self, corpus: Path, directory: Path, manifest: Manifest, split: str, index: Index, first: int) -> None:
        """index: of all splits, as `read_index` gives it. first: number of its first chunk in the corpus."""
        chosen = manifest.split(split)
        self.manifest = manifest
        self.directory = directory
        self.split, self.first, self.chunks = split, first, chosen.chunks
        self.read_s, self.verify_s = 0.0, 0.0
        """Seconds of first uses so far: until the kernel had read and mapped the chunks, and on their hashes."""
        self._corpus = corpus
        self._index = index.split(split)
        self.shards = self._index.shards
        self._dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
        self._count = chosen.chunk_tokens + 1
        self._mapped: dict[int, _Mapping] = {}
        self._known: dict[int, _Known] = {}
        """By number of the shard, of all that were ever mapped."""
        self._shard_of: dict[int, int] = {}
        self._check_when_mapped = False

    def check_shards(self) -> None:
        """Raises DataError unless all shards are there, have their sizes, and end in zeros.

        Of many shards each is checked when it is first mapped instead: opening does not grow with the corpus.
        """
        self._check_when_mapped = len(self.shards) > CHECKED_AT_ONCE
        if not self._check_when_mapped:
            for number in range(len(self.shards)):
                self.check_shard(number)

    def check_shard(self, number: int) -> None:
        """Raises DataError unless the shard is there, has its size, and ends in zeros after its last chunk."""
        shard = self.shards[number]
        path = self.directory / shard.file
        try:
            with path.open("rb") as file:
                self._check_file(path, shard, file)
        except FileNotFoundError:
            raise _wrong_size(path, shard, "no such file") from None
        except OSError as error:
            raise _unreadable(path, error) from error

    def _check_file(self, path: Path, shard: Shard, file: IO[bytes]) -> None:
        if (size := file.seek(0, os.SEEK_END)) != shard.bytes:
            raise _wrong_size(path, shard, f"{size} bytes")
        data_end = self._index.chunk(shard.end - 1).end
        file.seek(data_end)
        rest = file.read()
        if rest.strip(b"\0"):
            raise DataError(
                f"shard {path} is damaged at its end",
                expected=f"zeros from byte {data_end} on",
                found=f"byte {data_end + len(rest) - len(rest.lstrip(bytes(1)))} is not 0",
                do="restore the shard from a copy, or prepare the corpus again",
            )

    def key(self, chunk: int) -> tuple[str, int]:
        """Task and ordinal in the chunk's webdataset key: ("train-00003", 17)."""
        at = self._index.chunk(chunk).start
        view = self._map(chunk, "tokens_start").view
        name = view[at : at + 100].split(b"\0")[0].decode("ascii").split(".")[0]
        task, _, ordinal = name.rpartition("-")
        return task, int(ordinal)

    def region(self, chunk: int, member: Member) -> tuple[int, int, str]:
        """First byte of a member in its shard, first byte after it, and the hash in between, in hex."""
        at = self._index.chunk(chunk)
        docs = (at.start, at.tokens_start, at.docs_hash.hex())
        return docs if member == "docs" else (at.tokens_start, at.end, at.tokens_hash.hex())

    def tokens(self, chunk: int) -> npt.NDArray[np.unsignedinteger]:
        mapping = self._map(chunk)
        tokens = mapping.tokens.get(chunk)
        if tokens is None:
            record = self._index.chunk(chunk)
            region = (record.tokens_start, record.end, record.tokens_hash)
            tokens = self._read(chunk, mapping, "tokens", region, record.tokens_data, self._dtype, self._count)
            mapping.tokens[chunk] = tokens
        return tokens

    def docs(self, chunk: int) -> npt.NDArray[np.void]:
        mapping = self._map(chunk, "tokens_start")
        docs = mapping.docs.get(chunk)
        if docs is None:
            record = self._index.chunk(chunk)
            region = (record.start, record.tokens_start, record.docs_hash)
            docs = self._read(chunk, mapping, "docs", region, record.docs_data, DOC_DTYPE, record.documents)
            mapping.docs[chunk] = docs
        return docs

    def _read(
        self,
        chunk: int,
        mapping: _Mapping,
        member: Member,
        region: tuple[int, int, bytes],
        data: int,
        dtype: np.dtype[Any],
        count: int,
    ) -> npt.NDArray[Any]:
        """The member's array, which begins at byte `data`; hashed now if it has not been yet.

        Raises DamagedChunk unless it is as written.
        """
        verified, place = mapping.known.verified[member], chunk - mapping.shard.first
        if not verified[place]:
            started = time.perf_counter()
            begin, end, expected = region
            if not begin <= data <= data + count * dtype.itemsize <= end <= len(mapping.view):
                what = f"{self._where(chunk, member, region)}, do not hold what its index record says"
                raise self._damaged(chunk, what, "its array inside", f"bytes {data} to {data + count * dtype.itemsize}")
            self._populate(chunk, mapping.view, begin, end)
            self.read_s += (there := time.perf_counter()) - started
            with memoryview(mapping.view) as whole:
                found = region_hash(whole[begin:end])
            self.verify_s += time.perf_counter() - there
            if found != expected:
                where = self._where(chunk, member, region)
                raise self._damaged(chunk, where, f"xxh3_128 {expected.hex()}", found.hex())
            verified[place] = 1
        return np.frombuffer(mapping.view, dtype, count, data)

    def _where(self, chunk: int, member: Member, region: tuple[int, int, bytes]) -> str:
        return f"its {member}, bytes {region[0]} to {region[1]} of {self.path(chunk)}"

    def _map(self, chunk: int, until: Literal["tokens_start", "end"] = "end") -> _Mapping:
        """The mapping of the chunk's shard, which has all bytes up to that place of the chunk."""
        number = self._number_of(chunk)
        mapping = self._mapped.get(number)
        if mapping is None:
            mapping = self._open(chunk, number)
            while len(self._mapped) >= _MAPPED_SHARDS:
                self._mapped.pop(next(iter(self._mapped)), None)  # arrays handed out keep their mapping alive
            self._mapped[number] = mapping
        if (now := time.monotonic()) >= mapping.look_again:
            held = min(mapping.view.size(), len(mapping.view))
            if held < mapping.shard.bytes:
                if held < getattr(self._index.chunk(chunk), until):
                    raise self._cut_short(chunk, f"{held} bytes")
            else:
                mapping.look_again = now + LOOK_AGAIN_S
        return mapping

    def _number_of(self, chunk: int) -> int:
        """Number of the shard that holds a chunk."""
        number = self._shard_of.get(chunk)
        if number is None:
            if len(self._shard_of) >= _PLACES:
                self._shard_of = {}
            self._shard_of[chunk] = number = self._index.shard_of(chunk)
        return number

    def _open(self, chunk: int, number: int) -> _Mapping:
        shard, known = self.shards[number], self._known.get(number)
        path = self.directory / shard.file
        try:
            with path.open("rb") as file:
                if self._check_when_mapped and known is None:
                    self._check_file(path, shard, file)
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                state = os.fstat(file.fileno())
        except FileNotFoundError:
            raise self._cut_short(chunk, "no such file") from None
        except ValueError:  # an empty file cannot be mapped
            raise self._cut_short(chunk, "0 bytes") from None
        except OSError as error:
            if error.errno == errno.EIO:
                raise self._cut_short(chunk, os.strerror(errno.EIO)) from error
            raise _unreadable(path, error) from error
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if known is None or known.identity != identity:
            self._known[number] = known = _Known(identity, shard.chunks)
        return _Mapping(view, shard, known)

    def _populate(self, chunk: int, view: mmap.mmap, begin: int, end: int) -> None:
        """Have the kernel read the bytes now: a file cut meanwhile, or a bad sector, is an error here, else a kill."""
        page = begin - begin % mmap.PAGESIZE
        try:
            view.madvise(_MADV_POPULATE_READ, page, end - page)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel that does not know it
                raise self._cut_short(chunk, f"{view.size()} bytes: {error.strerror}") from error
            _ = view[page : end : mmap.PAGESIZE]

    def path(self, chunk: int) -> Path:
        """The shard that holds a chunk."""
        return self.directory / self.shards[self._number_of(chunk)].file

    def _cut_short(self, chunk: int, found: str) -> DamagedChunk:
        what = f"its shard {self.path(chunk)} is cut short or missing"
        return self._damaged(chunk, what, f"at least {self._index.chunk(chunk).end} bytes", found)

    def _damaged(self, chunk: int, what: str, expected: str, found: str) -> DamagedChunk:
        return DamagedChunk(self.split, self.first + chunk, self._corpus, self.path(chunk), what, expected, found)


class _Known:
    """What was found out about a shard: which of its chunks hold, for as long as it is the same file."""

    def __init__(self, identity: tuple[int, ...], chunks: int) -> None:
        self.identity = identity
        self.verified: dict[Member, bytearray] = {member: bytearray(chunks) for member in MEMBERS}


class _Mapping:
    """A mapped shard, and the arrays of those of its chunks that were verified: they go when it goes."""

    def __init__(self, view: mmap.mmap, shard: Shard, known: _Known) -> None:
        self.view, self.shard, self.known = view, shard, known
        self.look_again = 0.0
        """On the monotonic clock."""
        self.tokens: dict[int, npt.NDArray[np.unsignedinteger]] = {}
        self.docs: dict[int, npt.NDArray[np.void]] = {}


def _wrong_size(path: Path, shard: Shard, found: str) -> DataError:
    return DataError(
        f"shard {path} is cut short, overgrown or missing",
        expected=f"{shard.bytes} bytes",
        found=found,
        do="restore the shard from a copy, or prepare the corpus again; `fmscale data verify` tells what is lost",
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    """Nothing says that its bytes are damaged, so no chunk is given up for this."""
    return DataError(
        f"shard {path} cannot be read",
        expected="a readable file",
        found=error.strerror or str(error),
        do="mend its permissions, the mount, or the limit of open files; then run the command again",
    )
