"""Columns against Python's own string methods; batches of many against batches of one; `only` against starting anew."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import columns as columns_module
from data_pipeline.characters import ALPHA, BREAK, SPACE, kinds
from data_pipeline.columns import Columns, Pieces
from data_pipeline.rolling import Known, Rolling, hashes_of

PARTS = [
    "a",
    "b",
    "the ",
    "x.",
    " ",
    "\n",
    "\n",
    "\n\n",
    "\r",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u2028",
    "é",
    "𝔘",
]
texts = st.lists(st.sampled_from(PARTS), max_size=25).map("".join) | st.text(max_size=20)
batches = st.lists(texts, max_size=6)


def strings(columns: Columns, pieces: Pieces) -> list[list[str]]:
    """[documents][pieces]"""
    found: list[list[str]] = [[] for _ in range(len(columns))]
    rows = zip(pieces.document.tolist(), pieces.start.tolist(), pieces.stop.tolist(), strict=True)
    for document, start, stop in rows:
        found[document].append("".join(map(chr, columns.codes[start:stop])))
    return found


def paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split("\n\n+", text.strip()) if paragraph]


TABLES: list[tuple[str, Callable[[str], list[str]]]] = [
    ("pieces", str.split),
    ("broken_lines", str.splitlines),
    ("lines", lambda text: [line for line in text.split("\n") if line]),
    ("paragraphs", paragraphs),
]


@pytest.mark.parametrize(("name", "python"), TABLES)
@given(batch=batches)
def test_pieces_are_those_of_string_methods(name: str, python: Callable[[str], list[str]], batch: list[str]) -> None:
    columns = Columns(batch)
    assert strings(columns, getattr(columns, name)) == [python(text) for text in batch]
    assert columns.lengths.tolist() == [len(text) for text in batch]


@given(batches, st.data())
def test_what_only_keeps_is_what_they_have_alone(batch: list[str], data: st.DataObject) -> None:
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch))), bool)
    names = ["pieces", "words", "lines", "broken_lines", "paragraphs"]
    first = data.draw(st.lists(st.sampled_from([*names, "word_hashes", "line_repeats", "kinds"]), max_size=5))
    columns = Columns(batch)
    for name in first:  # what is there before must make no difference
        getattr(columns, name)
    some = columns.only(kept)
    alone = Columns([text for text, stays in zip(batch, kept, strict=True) if stays])
    assert list(some.texts) == list(alone.texts)
    for name in names:
        assert strings(some, getattr(some, name)) == strings(alone, getattr(alone, name))
    assert (some.word_hashes == alone.word_hashes).all()
    assert (some.line_repeats == alone.line_repeats).all()
    assert (some.words.kinds == alone.words.kinds).all()
    assert (some.words.counts == alone.words.counts).all()


@given(batches)
def test_hashes_and_repeats_do_not_hang_on_the_batch(batch: list[str]) -> None:
    columns = Columns(batch)
    alone = [Columns([text]) for text in batch]
    assert columns.word_hashes.tolist() == [value for one in alone for value in one.word_hashes.tolist()]
    assert columns.line_repeats.tolist() == [value for one in alone for value in one.line_repeats.tolist()]
    lines = strings(columns, columns.lines)
    assert columns.line_repeats.tolist() == [line in of[:at] for of in lines for at, line in enumerate(of)]


@given(batches)
def test_sums_are_sums(batch: list[str]) -> None:
    columns = Columns(batch)
    assert columns.words.sums(columns.words.lengths).tolist() == [len("".join(text.split())) for text in batch]


@given(st.text(min_size=1, max_size=30), st.data())
def test_equal_stretches_and_no_others_have_equal_hashes(text: str, data: st.DataObject) -> None:
    text = text + text
    codes = np.array([*map(ord, text)], np.uint32)
    cut = st.integers(0, len(text))
    a, b = sorted([data.draw(cut), data.draw(cut)])
    c, d = sorted([data.draw(cut), data.draw(cut)])
    hashes = Rolling(codes).hashes(np.array([a, c, 0]), np.array([b, d, len(text) // 2]))
    assert (hashes[0] == hashes[1]) == (text[a:b] == text[c:d])
    assert hashes[2] == hashes_of([text[: len(text) // 2]])[0]


def test_known_strings_are_found_among_others() -> None:
    words = [f"word{i}" for i in range(300)]
    places, which = Known(words[::7]).find(hashes_of(words))
    assert places.tolist() == list(range(0, 300, 7))
    assert [words[::7][i] for i in which] == [words[i] for i in places]


def test_kinds_are_those_of_string_methods() -> None:
    table = kinds()
    for code in [*range(0x3000), *range(0x3000, 0x110000, 97)]:
        if 0xD800 <= code < 0xE000:
            continue
        letter = chr(code)
        assert bool(table[code] & SPACE) == letter.isspace(), hex(code)
        assert bool(table[code] & ALPHA) == letter.isalpha(), hex(code)
        assert bool(table[code] & BREAK) == (len(f"a{letter}b".splitlines()) == 2), hex(code)


def test_of_a_giant_only_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_module, "JUDGED_CHARACTERS", 10)
    columns = Columns(["one two three four", "five"])
    assert strings(columns, columns.words) == [["one", "two", "th"], ["five"]]
    assert columns.lengths.tolist() == [10, 4]
