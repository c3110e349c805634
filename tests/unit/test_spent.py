"""Where the time of reading rows went: each part is told as what it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.pack import pack
from fmscale.corpus import generation as generation_module
from fmscale.corpus.packing import Packed
from fmscale.corpus.rows import Places, read_rows
from fmscale.corpus.shards import Corpus
from tests.corpora import document_corpus

ROW = 32
DISK_S, HASH_S = 0.2, 0.3


@pytest.mark.parametrize("documents", [False, True])
def test_a_slow_disk_and_a_slow_hash_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: bool
) -> None:
    """Also of packed rows, which are put together from pieces: that is decoding, and takes no time here."""
    waited: list[float] = []

    def slow(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def worked(*arguments: Any) -> Any:
            waited.append(seconds)
            time.sleep(seconds)
            return work(*arguments)

        return worked

    document_corpus(tmp_path / "words", [[30, 20, 50, 7] * 20])
    pack(Corpus.open(tmp_path / "words"), ROW)
    monkeypatch.setattr(generation_module.Generation, "_populate", slow(generation_module.Generation._populate, DISK_S))
    monkeypatch.setattr(generation_module, "region_hash", slow(generation_module.region_hash, HASH_S))
    place = Places(np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64))
    for opened in (Corpus.open(tmp_path / "words"), Packed.open(Corpus.open(tmp_path / "words"), ROW)):
        waited.clear()
        started = time.perf_counter()
        first = read_rows([opened], place, ROW, documents).spent
        assert first.total() <= time.perf_counter() - started, "nothing counts twice"
        assert waited.count(DISK_S) == waited.count(HASH_S) > 0
        assert first.read_s >= sum(seconds for seconds in waited if seconds == DISK_S)
        assert first.verify_s >= sum(seconds for seconds in waited if seconds == HASH_S)
        assert first.decode_s < DISK_S
        again = read_rows([opened], place, ROW, documents).spent
        assert again.verify_s == 0.0
        assert again.read_s < DISK_S


def test_a_kernel_that_cannot_map_pages_ahead_reads_them_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 5.14 says EINVAL."""
    document_corpus(tmp_path / "words", [[30, 20, 50, 7] * 20])
    expected = Corpus.open(tmp_path / "words").tokens(0)
    monkeypatch.setattr(generation_module, "_MADV_POPULATE_READ", 12345)
    assert (Corpus.open(tmp_path / "words").tokens(0) == expected).all()
