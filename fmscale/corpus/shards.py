"""Reading a corpus: verified, memory-mapped chunks by number.

    corpus = Corpus.open("data/web", "train")      # marker, manifest, index, shard sizes: checked before any use
    corpus.tokens(7)[:10]                          # chunk 7, hashed at its first use, then only a slice of a mapping

Nothing is read that has not been verified, and nothing is verified twice. Opening costs the hash of the index and one
`stat` and one small read per shard; a first use costs xxh3 over the chunk (2 MB: about 0.2 ms); later uses microseconds.
A corpus that has grown (gen-0001/ ...) reads as one sequence of chunks, generation after generation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmscale.corpus.manifest import Manifest


class Corpus:
    """The chunks of one split of one corpus. Not for use while someone rewrites the files below it.

    Safe for several threads. It holds mappings, so hand the path, not the object, to another process.
    """

    path: Path
    split: str
    chunks: int
    chunk_tokens: int
    """C: `tokens(i)` has C + 1."""
    vocab_size: int
    manifest: Manifest
    """Of the newest generation opened."""
    content_hash: str
    """Identity of what was opened: the manifest's, or for several generations the sha256 of theirs joined."""

    @staticmethod
    def open(
        path: str | Path, split: str = "train", *, generation: int | None = None, verify_all: bool = False
    ) -> Corpus:
        """Open `split`, which may have no chunks.

        generation: the last generation to include; None takes all that are published. verify_all: hash every chunk of
        the split now rather than at its first use.
        Raises DataError: missing marker, damaged manifest, index or tokenizer, missing shard or one of a wrong size.
        """
        raise NotImplementedError

    @property
    def tokenizer_path(self) -> Path:
        raise NotImplementedError

    def tokens(self, chunk: int) -> npt.NDArray[np.unsignedinteger]:
        """Tokens [C + 1] of a chunk, uint16 or uint32: a read-only view of the mapping.

        Raises DataError, naming shard, chunk and offset, if the bytes are not those that were written.
        """
        raise NotImplementedError

    def docs(self, chunk: int) -> npt.NDArray[np.void]:
        """DOC_DTYPE [documents] of a chunk: a read-only view, verified like `tokens`."""
        raise NotImplementedError
