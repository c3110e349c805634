"""Reading a corpus: verified, memory-mapped chunks by number.

    corpus = Corpus.open("data/web", "train")      # marker, manifest, index: checked before any use
    corpus.tokens(7)[:10]                          # chunk 7, hashed at its first use, then only a slice of a mapping

Nothing is read that has not been verified, and nothing is verified twice. Opening costs the manifest, the head of the
index, and a look at each shard of splits that have up to 256; in larger ones, a shard is looked at when it is first
used. A chunk's first use costs its block of the index and xxh3 over the chunk, later ones a slice of a mapping.
A corpus that has grown (gen-0001/ ...) reads as one sequence of chunks, generation after generation.

A chunk that cannot be believed is a `DamagedChunk`, which says which one. An opening refuses a corpus that lacks a
shard or part of one; a lenient opening takes what there is, and only the chunks whose bytes are lost are refused.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmscale.corpus.generation import DamagedChunk, Generation
from fmscale.corpus.index import read_index
from fmscale.corpus.manifest import MARKER, SPLITS, TOKENIZER_FILE, Manifest, check_tokenizer, generation_directory
from fmscale.errors import DataError

__all__ = ["Corpus", "DamagedChunk", "manifests", "open_splits"]

_LOOK_BEYOND = 32
"""Missing generations in a row, after which no further one is looked for."""


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
        path: str | Path,
        split: str = "train",
        *,
        generation: int | None = None,
        verify_all: bool = False,
        lenient: bool = False,
    ) -> Corpus:
        """Open `split`, which may have no chunks.

        generation: the last generation to include; None takes all that are published. verify_all: hash every chunk of
        the split now rather than at its first use. lenient: shards that are missing, of a wrong size or damaged at
        their end are no reason to refuse; DamagedChunk then says which chunks are lost, each when it is asked for.
        Raises DataError: missing marker, damaged manifest, index or tokenizer, missing shard or one of a wrong size. A
        split with more than 256 shards in a generation is opened without a look at them, which then comes when a
        shard is first used: `tokens` and `docs` raise the same errors. `fmscale data verify` looks at everything.
        """
        corpus = open_splits(path, (split,), generation=generation, lenient=lenient)[split]
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

    def check_shards(self) -> None:
        """Raises DataError unless all shards are there and have their sizes: what a lenient opening left out.

        Of more than 256 shards each is checked when it is first used instead, as after any opening that is not lenient.
        """
        for generation in self._generations:
            generation.check_shards()

    @property
    def read_s(self) -> float:
        """Seconds that first uses of its chunks have waited for the kernel to read and map them so far."""
        return sum(generation.read_s for generation in self._generations)

    @property
    def verify_s(self) -> float:
        """Seconds that this process has spent on hashes of its chunks so far."""
        return sum(generation.verify_s for generation in self._generations)

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER_FILE

    def tokens(self, chunk: int) -> npt.NDArray[np.unsignedinteger]:
        """Tokens [C + 1] of a chunk, uint16 or uint32: a read-only view of the mapping.

        Raises DamagedChunk, naming shard, chunk and offset, if the bytes are not there or not those that were written;
        DataError if its part of the index is damaged, or the shard is there but cannot be opened.
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
    path: str | Path, splits: Iterable[str] = SPLITS, *, generation: int | None = None, lenient: bool = False
) -> dict[str, Corpus]:
    """Splits of a corpus by name, from one reading of its manifests and indices; otherwise as `Corpus.open`."""
    base = Path(path)
    opened: dict[str, list[Generation]] = {split: [] for split in splits}
    for directory, manifest in manifests(base, generation):
        index = read_index(directory, manifest)
        check_tokenizer(directory, manifest)
        for split, generations in opened.items():
            first = sum(generation.chunks for generation in generations)
            generations.append(Generation(base, directory, manifest, split, index, first))
            if not lenient:
                generations[-1].check_shards()
    return {split: Corpus(base, split, generations) for split, generations in opened.items()}


def manifests(base: Path, newest: int | None = None) -> Iterator[tuple[Path, Manifest]]:
    """Directory and manifest of generations 0 to `newest` (None: of all that are published), each fit to its parent.

    Raises DataError: a marker or manifest that cannot be believed, or a generation missing below another.
    """
    parent: Manifest | None = None
    for number in range((_newest(base) if newest is None else newest) + 1):
        directory = generation_directory(base, number)
        manifest = Manifest.load(directory)
        if parent:
            manifest.check_follows(parent, directory)
        yield directory, manifest
        parent = manifest


def _newest(base: Path) -> int:
    """The last generation that is published, by asking for each: a directory of 10^5 shards takes long to list.

    Missing ones are looked beyond, so that a corpus that lost a generation is not taken for an older one.
    """
    newest = 0
    for number in range(1, 10_000):
        if (generation_directory(base, number) / MARKER).exists():
            newest = number
        elif number - newest > _LOOK_BEYOND:
            break
    return newest
