"""Each token's document, and each document's tokens: looked up from both ends, over generations too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.run import prepare
from fmscale.corpus.provenance import Provenance, open_provenance
from fmscale.corpus.shards import Corpus
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer
from tests.integration.test_prepare import MODEL, recipe_of
from tests.raw_text import unlike


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, int, str]]]:
    """(corpus, id -> (file, record, text))"""
    directory = tmp_path_factory.mktemp("provenance")
    (directory / "raw").mkdir()
    written: dict[str, tuple[str, int, str]] = {}
    for part in range(2):
        lines = []
        for record in range(100):
            name, text = f"d{100 * part + record}", unlike(100 * part + record)
            written[name] = (f"{part}.jsonl", record, text)
            lines.append(json.dumps({"id": name, "text": text}))
        (directory / "raw" / f"{part}.jsonl").write_text("\n".join(lines))
    changes: dict[str, Any] = {"heldout_fraction": 0.0, "heldout_by": "document"}
    prepare(recipe_of(directory / "raw", directory / "c", **changes), workers=0)
    return directory / "c", written


def test_a_token_leads_to_its_record(made: tuple[Path, dict[str, tuple[str, int, str]]]) -> None:
    path, written = made
    corpus, provenance = Corpus.open(path), open_provenance(path)
    by_record = {(file, record): text for file, record, text in written.values()}
    tokenizer = Tokenizer.load(MODEL)
    for token in range(0, corpus.chunks * corpus.chunk_tokens, 97):
        place = provenance.of_token(token)
        assert place.first_token <= token < place.first_token + place.tokens
        text = by_record[place.file, place.record]
        ids = tokenizer.encode(text)
        assert place.text == tokenizer.decode(ids[place.skipped : place.skipped + min(place.tokens, 64)])


def test_a_document_leads_to_its_tokens(made: tuple[Path, dict[str, tuple[str, int, str]]]) -> None:
    path, written = made
    provenance = Provenance(Corpus.open(path), text_tokens=1 << 30)
    for name in ("d0", "d57", "d150"):
        places = provenance.of_document(name)
        assert {(place.file, place.record) for place in places} == {written[name][:2]}
        assert [place.skipped for place in places] == sorted(place.skipped for place in places)
        assert places[0].skipped == 0
        assert written[name][2].startswith(places[0].text)
        assert provenance.of_document(places[0].id) == places, "the hash is a name too"


def test_a_chunk_is_tiled_by_its_documents(made: tuple[Path, dict[str, tuple[str, int, str]]]) -> None:
    corpus, provenance = Corpus.open(made[0]), open_provenance(made[0])
    for chunk in range(corpus.chunks):
        places = list(provenance.of_chunk(chunk))
        assert sum(place.tokens for place in places) == corpus.chunk_tokens + 1
        assert places[0].first_token == chunk * corpus.chunk_tokens


def test_what_is_not_there_is_said(made: tuple[Path, dict[str, tuple[str, int, str]]]) -> None:
    provenance = open_provenance(made[0])
    with pytest.raises(DataError, match=r"has no token -1\n  expected: 0 to [\d,]+\n  found: -1\n  do: `fmscale data"):
        provenance.of_token(-1)
    with pytest.raises(DataError, match="has no token 10000000"):
        provenance.of_token(10_000_000)
    with pytest.raises(DataError, match="has no chunk 10000"):
        provenance.of_chunk(10_000)
    with pytest.raises(
        DataError, match=r"no document nobody in .*, split train\n  expected: the id .*\n.*\n  do: try the"
    ):
        provenance.of_document("nobody")
