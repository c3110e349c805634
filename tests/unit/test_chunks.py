from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.corpus.chunks import Cutter, Stream, cut_chunks, document_id, join, make_docs

LENGTHS = st.lists(st.integers(1, 40), max_size=30)
CHUNK_TOKENS = st.sampled_from([1, 2, 8, 32, 64])


def stream(lengths: list[int], first: int = 0) -> Stream:
    """Every token a number of its own, so that any slip shows."""
    docs = make_docs(lengths, [(first, i) for i in range(len(lengths))], 3, np.arange(len(lengths)))
    return Stream(np.arange(first, first + sum(lengths), dtype=np.uint32), docs)


def origins(piece: Stream) -> list[tuple[int, int]]:
    """For each token, the document it says it is from and its place therein."""
    found = []
    for doc in piece.docs:
        assert doc["start"] == len(found)
        found += [(int(doc["id"][1]), int(doc["skipped"]) + k) for k in range(int(doc["length"]))]
    return found


@settings(deadline=None)
@given(LENGTHS, CHUNK_TOKENS)
def test_every_token_is_an_input_once_and_keeps_its_document(lengths: list[int], chunk_tokens: int) -> None:
    whole = stream(lengths)
    chunks, tail = cut_chunks(whole, chunk_tokens)
    inputs = np.concatenate([*(chunk.tokens[:-1] for chunk in chunks), tail.tokens])
    assert inputs.tolist() == whole.tokens.tolist()
    assert all(len(chunk.tokens) == chunk_tokens + 1 for chunk in chunks)
    assert len(tail.tokens) <= chunk_tokens
    for chunk, following in pairwise([*chunks, tail]):
        assert chunk.tokens[-1] == following.tokens[0]
    expected = origins(whole)
    for k, chunk in enumerate([*chunks, tail]):
        assert origins(chunk) == expected[k * chunk_tokens : k * chunk_tokens + len(chunk.tokens)]


@settings(deadline=None)
@given(st.lists(LENGTHS, max_size=6), CHUNK_TOKENS)
def test_cutting_piece_by_piece_is_cutting_the_whole(pieces: list[list[int]], chunk_tokens: int) -> None:
    streams = [stream(lengths, 1000 * i) for i, lengths in enumerate(pieces)]
    cutter = Cutter(chunk_tokens, np.uint32)
    chunks = [chunk for piece in streams for chunk in cutter.add(piece)]
    expected, tail = cut_chunks(join(streams, np.uint32), chunk_tokens)
    for got, want in zip([*chunks, cutter.tail], [*expected, tail], strict=True):
        assert got.tokens.tolist() == want.tokens.tolist()
        assert got.docs.tobytes() == want.docs.tobytes()


def test_chunk_sizes_are_powers_of_two() -> None:
    with pytest.raises(AssertionError, match="48 is no power of two"):
        Cutter(48, np.uint16)


def test_documents_must_cover_the_stream() -> None:
    with pytest.raises(AssertionError, match="of 5 tokens"):
        cut_chunks(Stream(np.arange(5), stream([2, 2]).docs), 2)


def test_document_ids_are_fixed() -> None:
    assert document_id("harbour/tide.txt") == (0xEFE50055FDE005E3, 0x6C7AB71912BB5286)
