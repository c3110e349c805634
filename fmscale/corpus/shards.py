"""Reading a corpus: verified, memory-mapped chunks by number.

    corpus = Corpus.open("data/web", "train")      # marker, manifest, index, shard sizes: checked before any use
    corpus.tokens(7)[:10]                          # chunk 7, hashed at its first use, then only a slice of a mapping

Nothing is read that has not been verified, and nothing is verified twice. Opening costs the hash of the index, and one
`stat` and one small read per shard; a first use costs xxh3 over the chunk, later uses a slice of the mapping.
A corpus that has grown (gen-0001/ ...) reads as one sequence of chunks, generation after generation.
"""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmscale.corpus.chunks import DOC_DTYPE
from fmscale.corpus.index import read_index, region_hash
from fmscale.corpus.manifest import MARKER, SPLITS, TOKENIZER_FILE, Manifest, Shard, generation_directory
from fmscale.errors import DataError

_MAPPED_SHARDS = 256
"""Per generation. Each mapping keeps a file descriptor; the customary limit of a process is 1024."""


class Corpus:
    """The chunks of one split of one corpus. Not for use while someone rewrites the files below it.

    Safe for several threads. It holds mappings: hand `path`, not the object, to another process.
    """

    def __init__(self, path: Path, split: str, generations: list[Generation]) -> None:
        newest = generations[-1].manifest
        self.path = path
        self.split = split
        self.manifest = newest
        """Of the newest generation opened."""
        self.chunk_tokens = newest.split(split).chunk_tokens
        """C: `tokens(i)` has C + 1."""
        self.vocab_size = newest.vocab_size
        hashes = [generation.manifest.content_hash for generation in generations]
        self.content_hash = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        """Identity of what was opened: the manifest's, or for several generations the sha256 of theirs joined."""
        self._generations = generations
        self._ends = list(accumulate(generation.chunks for generation in generations))
        self.chunks = self._ends[-1]

    @staticmethod
    def open(
        path: str | Path, split: str = "train", *, generation: int | None = None, verify_all: bool = False
    ) -> Corpus:
        """Open `split`, which may have no chunks.

        generation: the last generation to include; None takes all that are published. verify_all: hash every chunk of
        the split now rather than at its first use.
        Raises DataError: missing marker, damaged manifest, index or tokenizer, missing shard or one of a wrong size.
        """
        corpus = open_splits(path, (split,), generation=generation)[split]
        if verify_all:
            for chunk in range(corpus.chunks):
                corpus.tokens(chunk)
                corpus.docs(chunk)
        return corpus

    def up_to(self, generation: int) -> Corpus:
        """The corpus as it was at `generation`, over the same mappings: nothing is opened or read again.

        Raises DataError if this one does not go that far.
        """
        if generation > self.manifest.generation:
            raise DataError(
                f"the corpus {self.path} has no generation {generation}",
                expected=f"{generation_directory(self.path, generation) / MARKER}",
                found=f"generations up to {self.manifest.generation}",
                do="restore the corpus as it was when the run used it",
            )
        return Corpus(self.path, self.split, self._generations[: generation + 1])

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER_FILE

    def tokens(self, chunk: int) -> npt.NDArray[np.unsignedinteger]:
        """Tokens [C + 1] of a chunk, uint16 or uint32: a read-only view of the mapping.

        Raises DataError, naming shard, chunk and offset, if the bytes are not those that were written.
        """
        generation, number = self._locate(chunk)
        return generation.tokens(number)

    def docs(self, chunk: int) -> npt.NDArray[np.void]:
        """DOC_DTYPE [documents] of a chunk: a read-only view, verified like `tokens`."""
        generation, number = self._locate(chunk)
        return generation.docs(number)

    def _locate(self, chunk: int) -> tuple[Generation, int]:
        assert 0 <= chunk < self.chunks, f"chunk {chunk} of {self.chunks}"
        which = bisect_right(self._ends, chunk)
        generation = self._generations[which]
        return generation, chunk - self._ends[which] + generation.chunks


def open_splits(
    path: str | Path, splits: Iterable[str] = SPLITS, *, generation: int | None = None
) -> dict[str, Corpus]:
    """Splits of a corpus by name, from one reading of its manifests and indices; otherwise as `Corpus.open`."""
    base = Path(path)
    opened: dict[str, list[Generation]] = {split: [] for split in splits}
    for directory, manifest in manifests(base, generation):
        index = read_index(directory, manifest.index)
        check_tokenizer(directory, manifest)
        for split, generations in opened.items():
            generations.append(Generation(directory, manifest, split, index))
            generations[-1].check_shards()
    return {split: Corpus(base, split, generations) for split, generations in opened.items()}


def manifests(base: Path, newest: int | None = None) -> Iterator[tuple[Path, Manifest]]:
    """Directory and manifest of generations 0 to `newest` (None: of all that are published), each fit to its parent.

    Raises DataError: a marker or manifest that cannot be believed, or a generation missing below another.
    """
    published = [int(path.parent.name[4:]) for path in base.glob(f"gen-[0-9][0-9][0-9][0-9]/{MARKER}")]
    last = max(published, default=0) if newest is None else newest
    parent: Manifest | None = None
    for number in range(last + 1):
        directory = generation_directory(base, number)
        manifest = Manifest.load(directory)
        if parent:
            manifest.check_follows(parent, directory)
        yield directory, manifest
        parent = manifest


class Generation:
    """One generation's chunks of one split, numbered from 0."""

    def __init__(self, directory: Path, manifest: Manifest, split: str, index: npt.NDArray[np.void]) -> None:
        """index: of all splits, as `read_index` gives it."""
        chosen = manifest.split(split)
        self.manifest = manifest
        self.directory = directory
        self.chunks = chosen.chunks
        self.shards = [shard for shard in manifest.shards if shard.split == split]
        self.ends = list(accumulate(shard.chunks for shard in self.shards))
        """Chunks of the split up to and with each shard."""
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
        view = self._map(int(record["shard"]))
        at = int(record["start"])
        name = view[at : at + 100].split(b"\0")[0].decode("ascii").split(".")[0]
        task, _, ordinal = name.rpartition("-")
        return task, int(ordinal)

    def tokens(self, chunk: int) -> npt.NDArray[np.unsignedinteger]:
        record = self._index[chunk]
        view = self._map(int(record["shard"]))
        if not self._tokens_verified[chunk]:
            self._verify(chunk, view, "tokens", int(record["tokens_start"]), int(record["end"]))
            self._tokens_verified[chunk] = 1
        return np.frombuffer(view, self._dtype, self._count, int(record["tokens_data"]))

    def docs(self, chunk: int) -> npt.NDArray[np.void]:
        record = self._index[chunk]
        view = self._map(int(record["shard"]))
        if not self._docs_verified[chunk]:
            self._verify(chunk, view, "docs", int(record["start"]), int(record["tokens_start"]))
            self._docs_verified[chunk] = 1
        return np.frombuffer(view, DOC_DTYPE, int(record["documents"]), int(record["docs_data"]))

    def _verify(self, chunk: int, view: mmap.mmap, member: str, begin: int, end: int) -> None:
        record = self._index[chunk]
        expected = record[f"{member}_hash"].tobytes()
        with memoryview(view) as whole:
            found = region_hash(whole[begin:end])
        if found != expected:
            path = self.directory / self.manifest.shards[int(record["shard"])].file
            raise DataError(
                f"chunk {chunk} is damaged: its {member}, bytes {begin} to {end} of {path}",
                expected=f"xxh3_128 {expected.hex()}",
                found=found.hex(),
                do="restore the shard from a copy, or quarantine the chunk; `fmscale data verify` lists all damage",
            )

    def _map(self, number: int) -> mmap.mmap:
        view = self._mapped.get(number)
        if view is None:
            shard = self.manifest.shards[number]
            with (self.directory / shard.file).open("rb") as file:
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(view) != shard.bytes:
                raise _wrong_size(self.directory / shard.file, shard, f"{len(view)} bytes")
            while len(self._mapped) >= _MAPPED_SHARDS:
                self._mapped.pop(next(iter(self._mapped)), None)  # arrays handed out keep their mapping alive
            self._mapped[number] = view
        return view


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
