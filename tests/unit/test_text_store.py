"""What is written between two passes comes back as it was; damage anywhere is an error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.document import Document
from data_pipeline.text_store import lines_writer, read_texts, text_writer
from fmscale.errors import DataError

DOCUMENTS = st.builds(
    Document,
    id=st.text(st.characters(), max_size=9),
    text=st.text(max_size=200),
    source=st.text(max_size=9),
    meta=st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3),
    file=st.integers(0, 1000),
    record=st.integers(0, 10**12),
    row=st.integers(0, 2**32 - 2),
)


@pytest.mark.parametrize("value", [{1, 2}, np.float32(3), b"x"])
def test_what_has_no_json_form_is_told(tmp_path: Path, value: Any) -> None:
    with (
        pytest.raises(
            DataError,
            match=r"no JSON form\n  expected: meta of texts, .*\n  found: .*is not JSON serializable, in record 4 of",
        ),
        text_writer(tmp_path / "texts") as texts,
    ):
        texts.write(Document("a", "text", "a.jsonl", {"x": value}, record=4))
    assert not (tmp_path / "texts").exists()


def test_dropped_documents_are_valid_json_whatever_stands_in_them(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    meta = {"x": math.inf, "y": [math.nan, -math.inf, 1.5], "z": {"a": {1}}, "n": np.float32(0.5), (1, 2): None}
    dropped = [
        Document("a", "text", meta={**meta}, dropped="r", found=math.nan),
        Document("b", "text", meta={"deep": deep}, dropped="r"),
        Document("c", "text", meta={"x": 1.5}, dropped="r", found=2),
    ]
    with lines_writer(tmp_path / "dropped") as write:
        for document in dropped:
            write(document)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = zstandard.ZstdDecompressor().stream_reader((tmp_path / "dropped").read_bytes()).read().decode()
    first, second, third = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert (first["found"], first["meta"]["x"], first["meta"]["y"]) == ("nan", "inf", ["nan", "-inf", 1.5])
    assert (first["meta"]["z"], first["meta"]["n"], first["meta"]["(1, 2)"]) == ({"a": "{1}"}, "0.5", None)
    assert str(second["meta"]["deep"]).count("[") == 63
    assert (third["meta"], third["found"]) == ({"x": 1.5}, 2)


@settings(deadline=None)
@given(st.lists(DOCUMENTS, max_size=20))
def test_documents_come_back(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> None:
    path = tmp_path_factory.mktemp("store") / "texts.zst"
    with text_writer(path) as texts:
        for document in documents:
            texts.write(document)
    assert list(read_texts(path)) == documents


def test_what_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"), text_writer(tmp_path / "a") as texts:
        texts.write(Document("a", "\ud800"))
    assert not list(tmp_path.iterdir())


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "texts.zst"
    with text_writer(path) as texts:
        for row in range(50):
            texts.write(Document(str(row), f"text {row} " * row, row=row))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(
            DataError, match=r"unfinished work is damaged\n.*texts\.zst.*\n.*\n  do: remove that directory"
        ):
            list(read_texts(path))
    text = zstandard.ZstdDecompressor().decompress(whole, max_output_size=1 << 20)
    path.write_bytes(zstandard.compress(text.replace(b"text 7 ", b"text 8 ")))
    with pytest.raises(DataError, match="found: its hash is another one"):
        list(read_texts(path))
    path.unlink()
    with pytest.raises(DataError, match="unfinished work is damaged"):
        list(read_texts(path))
