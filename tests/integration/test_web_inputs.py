"""Crawl files, Parquet, tar and JSONL in one directory, here and behind a URL -> one corpus; every record counts."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.pipeline import Recipe
from data_pipeline.run import prepare
from fmscale.tokenizer_training import train
from tests.crawl_files import http, packed, record
from tests.raw_text import unlike
from tests.web_server import Site, web_server


def page(number: int) -> bytes:
    html = f"<html><nav><a href='/'>Home</a></nav><article><p>{unlike(number)}</p></article></html>"
    return record(http(html.encode("utf-16-le"), "Content-Type: text/html; charset=utf-16le"), number=number)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty texts in four kinds of files, and what stands around them."""
    directory = tmp_path_factory.mktemp("web") / "raw"
    directory.mkdir()
    request, gone = record(b"GET / HTTP/1.1\r\n\r\n", "request"), record(http(b"<p>", status="404 Not Found"))
    image, void = record(http(b"GIF", "Content-Type: image/gif")), record(http(b"<html><img></html>"))
    records = [each for number in range(20) for each in (request, page(number))]
    (directory / "a.warc.gz").write_bytes(packed([*records, gone, image, void], "gz"))
    pq.write_table(pa.table({"text": [unlike(n) for n in range(20, 40)]}), directory / "b.parquet", row_group_size=7)
    with tarfile.open(directory / "c.tar", "w") as archive:
        for number in range(40, 60):
            text = unlike(number).encode()
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    lines = [json.dumps({"text": unlike(number)}) for number in range(60, 80)]
    (directory / "d.jsonl").write_text("\n".join(lines))
    train(
        (unlike(number) for number in range(80)), directory.parent / "tokenizer.model", 512, "bpe", sample_bytes=10**6
    )
    return directory


@pytest.fixture
def site(raw: Path) -> Iterator[Site]:
    with web_server() as running:
        running.files |= {f"raw/{path.name}": path.read_bytes() for path in raw.iterdir()}
        yield running


def corpus_of(inputs: str, raw: Path, output: Path) -> dict[str, Any]:
    recipe = Recipe(
        inputs=[inputs], output=str(output), tokenizer=str(raw.parent / "tokenizer.model"), steps=["extract"],
        heldout_fraction=0.0, chunk_tokens=256,
    )  # fmt: skip
    manifest = prepare(recipe, workers=0)
    return {"counts": manifest.counts, "content": manifest.content_hash}


def test_every_kind_of_input_makes_one_corpus(raw: Path, tmp_path: Path, site: Site) -> None:
    here = corpus_of(str(raw), raw, tmp_path / "here")
    assert here["counts"]["in"] == 20 * 5 + 3
    assert here["counts"]["train"] == 80, "each text once, and none of what stood around it"
    assert here["counts"]["dropped"] == {"skipped_record": 20, "http_status": 1, "not_text": 1, "extract/nothing": 1}
    there = corpus_of(site.url("raw/"), raw, tmp_path / "there")
    assert there == here
