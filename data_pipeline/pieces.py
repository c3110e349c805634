"""The documents of a generation as pieces of at most U tokens, group of chunks by group; only document tables are read.

    document tables of a group's chunks -> runs: a document in successive chunks -> pieces: a run cut every U tokens

Positions count input tokens over all chunks: chunk * C + offset. As the last token of a chunk is the first of the next
one of its task, a run is an interval of positions. A task's last chunk ends a run even if the document goes on (in the
chunks of the task "tails"); a group's does not: what is open there is carried into the next group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from fmscale.corpus.shards import Corpus

SPAN_DTYPE = np.dtype(
    [
        ("start", "i8"),  # position of the first token
        ("length", "i8"),  # input tokens
        ("begins", "?"),  # the document begins here
        ("goes_on", "?"),  # it has a token after these
    ]
)
Spans = npt.NDArray[np.void]
"""SPAN_DTYPE [spans], in the order of positions: records, runs or pieces."""


def groups_of_pieces(
    corpus: Corpus, chunks: range, row_tokens: int, groups: int, advance: Callable[[int], None], counts: Counter[str]
) -> Iterator[Spans]:
    """The pieces of each of `groups` groups of `chunks`, every input token of those in exactly one of them.

    The first and the last of `chunks` end a run: they are those of a generation.

    Adds to `counts`: documents, those cut_long (longer than U), cut_at_ends (others whose chunks end before they do),
    cut_by_slicing (by concatenate-and-slice at the same U). advance: told each chunk's bytes of tokens.
    """
    open_run = np.empty(0, SPAN_DTYPE)
    for group in range(groups):
        parts, joined = [open_run], [np.zeros(len(open_run), bool)]
        for chunk in chunks[len(chunks) * group // groups : len(chunks) * (group + 1) // groups]:
            records = _records(corpus, chunk)
            counts["cut_by_slicing"] += _cut_by_slicing(records, chunk, corpus.chunk_tokens, row_tokens)
            joined.append(np.zeros(len(records), bool))
            joined[-1][0] = parts[-1]["goes_on"][-1:].any() and _continues(corpus, chunk)
            parts.append(records)
            advance(chunk_bytes(corpus))
        runs = _join(np.concatenate(parts), np.concatenate(joined))
        open_run = runs[:0]
        if group + 1 < groups and runs["goes_on"][-1]:
            runs, open_run = _cut_last(runs, row_tokens)
        known = runs["length"] + runs["goes_on"]
        counts["documents"] += int(runs["begins"].sum())
        counts["cut_long"] += int((runs["begins"] & (known > row_tokens)).sum())
        counts["cut_at_ends"] += int((runs["begins"] & (known <= row_tokens) & runs["goes_on"]).sum())
        yield cut_pieces(runs, row_tokens)


def chunk_bytes(corpus: Corpus) -> int:
    """Bytes of a chunk's input tokens."""
    return corpus.chunk_tokens * np.dtype(corpus.manifest.token_dtype).itemsize


def cut_pieces(runs: Spans, row_tokens: int) -> Spans:
    """Each run as pieces of U tokens and the rest of it."""
    count = -(-runs["length"] // row_tokens)
    pieces = np.repeat(runs, count)
    nth = np.arange(len(pieces)) - np.repeat(np.cumsum(count) - count, count)
    rest = pieces["length"] - nth * row_tokens
    pieces["start"] += nth * row_tokens
    pieces["length"] = np.minimum(rest, row_tokens)
    pieces["begins"] &= nth == 0
    pieces["goes_on"] |= rest > row_tokens
    return pieces


def _records(corpus: Corpus, chunk: int) -> Spans:
    """The documents of a chunk, as far as they have input tokens in it."""
    docs, size = corpus.docs(chunk), corpus.chunk_tokens
    docs = docs[docs["start"] < size]
    spans = np.empty(len(docs), SPAN_DTYPE)
    end = docs["start"].astype(np.int64) + docs["length"]
    spans["start"] = docs["start"] + np.int64(chunk * size)
    spans["length"] = np.minimum(end, size) - docs["start"]
    spans["begins"] = docs["skipped"] == 0
    spans["goes_on"] = end > size
    return spans


def _continues(corpus: Corpus, chunk: int) -> bool:
    """Whether the first document of `chunk` is the last one of the chunk before, from the token that they share on."""
    before, first = corpus.docs(chunk - 1)[-1], corpus.docs(chunk)[0]
    same = all(np.array_equal(before[field], first[field]) for field in ("id", "file", "record"))
    return same and int(before["skipped"]) + int(before["length"]) - 1 == int(first["skipped"])


def _join(spans: Spans, joined: npt.NDArray[np.bool_]) -> Spans:
    """Spans with those that are `joined` to the one before as one with it."""
    heads = np.flatnonzero(~joined)
    runs = spans[heads]
    runs["length"] = np.add.reduceat(spans["length"], heads)
    runs["goes_on"] = spans["goes_on"][np.append(heads[1:], len(spans)) - 1]
    return runs


def _cut_last(runs: Spans, row_tokens: int) -> tuple[Spans, Spans]:
    """(`runs` with only the whole pieces of the last, which goes on; the rest of it, which may be empty so far)."""
    rest = runs[-1:].copy()
    whole = int(rest["length"][0]) // row_tokens * row_tokens
    rest["start"] += whole
    rest["length"] -= whole
    rest["begins"] &= whole == 0
    runs["length"][-1] = whole
    return runs if whole else runs[:-1], rest


def _cut_by_slicing(records: Spans, chunk: int, chunk_tokens: int, row_tokens: int) -> int:
    """Documents that begin in a chunk and are not whole in one of the rows sliced from it."""
    first = records["start"] - chunk * chunk_tokens
    last = first + records["length"] - 1
    across = (first // row_tokens != last // row_tokens) | (last // row_tokens >= chunk_tokens // row_tokens)
    return int((records["begins"] & (across | records["goes_on"])).sum())
