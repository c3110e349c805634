"""Where tokens came from: which document, of which record of which input file; and where a document's tokens are.

A chunk's table of documents says it, the inputs of its generation name the file. Text is the tokens, decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.corpus.chunks import document_id
from fmscale.corpus.inputs import read_inputs
from fmscale.corpus.shards import Corpus, manifests
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Place:
    """A document's part of one chunk."""

    chunk: int
    first_token: int
    """Of the split: chunk * C + place in the chunk."""
    tokens: int
    skipped: int
    """The document's tokens before these."""
    id: str
    """32 hex digits: the hash of the document's name."""
    file: str
    """The input file, as the corpus's inputs name it."""
    record: int
    """Ordinal of the record in that file."""
    text: str
    """The beginning of what these tokens say."""


class Provenance:
    """Looks up documents of one split of a corpus."""

    def __init__(self, corpus: Corpus, text_tokens: int = 64) -> None:
        """text_tokens: of the text that is shown. Raises DataError where inputs.jsonl or the tokenizer is damaged."""
        self._corpus, self._text_tokens = corpus, text_tokens
        self._tokenizer = Tokenizer.load(corpus.tokenizer_path)
        self._files: list[tuple[int, list[dict[str, Any]]]] = []  # (chunks up to here, inputs) of each generation
        end = 0
        for directory, manifest in manifests(corpus.path, corpus.manifest.generation):
            end += manifest.split(corpus.split).chunks
            self._files.append((end, read_inputs(directory, manifest)))

    def of_token(self, token: int) -> Place:
        """The document that token `token` of the split belongs to. Raises DataError beyond the split."""
        size = self._corpus.chunk_tokens
        if not 0 <= token < self._corpus.chunks * size:
            raise self._beyond("token", token, self._corpus.chunks * size)
        chunk, place = divmod(token, size)
        docs = self._corpus.docs(chunk)
        return self._place(chunk, docs[np.searchsorted(docs["start"], place, side="right") - 1])

    def of_chunk(self, chunk: int) -> Iterator[Place]:
        """All documents of a chunk. Raises DataError beyond the split."""
        if not 0 <= chunk < self._corpus.chunks:
            raise self._beyond("chunk", chunk, self._corpus.chunks)
        return (self._place(chunk, doc) for doc in self._corpus.docs(chunk))

    def of_document(self, name: str) -> list[Place]:
        """Where the tokens of the document named `name` are: a part in each chunk that it has tokens in.

        name: the document's id, or its hash in 32 hex digits. Every chunk's table is looked at. Raises DataError if no
        document has it.
        """
        as_hash = len(name) == 32 and set(name) <= set("0123456789abcdef")
        wanted = {document_id(name), (int(name[:16], 16), int(name[16:], 16))} if as_hash else {document_id(name)}
        found = []
        for chunk in range(self._corpus.chunks):
            docs = self._corpus.docs(chunk)
            for high, low in wanted:
                same = (docs["id"][:, 0] == np.uint64(high)) & (docs["id"][:, 1] == np.uint64(low))
                found += [self._place(chunk, doc) for doc in docs[same]]
        if not found:
            raise DataError(
                f"no document {name} in {self._corpus.path}, split {self._corpus.split}",
                expected="the id of a document as its record gives it; without one, `xxh3:` and the hash of its text",
                found=f"{self._corpus.chunks} chunks without it",
                do="try the other split; inputs.csv counts what was dropped, keep_dropped=true keeps it",
            )
        return found

    def _place(self, chunk: int, doc: Any) -> Place:
        start, length = int(doc["start"]), int(doc["length"])
        shown = self._corpus.tokens(chunk)[start : start + min(length, self._text_tokens)]
        inputs = next(inputs for end, inputs in self._files if chunk < end)
        return Place(
            chunk=chunk,
            first_token=chunk * self._corpus.chunk_tokens + start,
            tokens=length,
            skipped=int(doc["skipped"]),
            id="".join(f"{half:016x}" for half in doc["id"].tolist()),
            file=str(inputs[int(doc["file"])]["path"]),
            record=int(doc["record"]),
            text=self._tokenizer.decode(shown),
        )

    def _beyond(self, what: str, found: int, count: int) -> DataError:
        return DataError(
            f"the split {self._corpus.split} of {self._corpus.path} has no {what} {found}",
            expected=f"0 to {count - 1:,}",
            found=str(found),
            do="`fmscale data inspect CORPUS` says what it has",
        )


def open_provenance(path: str | Path, split: str = "train") -> Provenance:
    """Raises DataError as `Corpus.open` does."""
    return Provenance(Corpus.open(path, split))
