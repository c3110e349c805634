"""The corpora of a run fit together or are refused; each is opened once; growing changes no evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmscale.corpus import shards
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.loader import LocalLoader
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.sources import begin_ledger, open_run_data, resolve
from fmscale.corpus.steps import StepPlan
from fmscale.errors import ConfigError, DataError
from tests.corpora import grow_corpus, make_corpus, run_config
from tests.laws import same


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    make_corpus(root / "web", chunks=3, seed=1)
    make_corpus(root / "books", chunks=2, heldout=2, seed=2)
    make_corpus(root / "stub", chunks=0)
    make_corpus(root / "other", chunks=2, pieces=461)
    return root


def test_the_vocabulary_is_that_of_the_corpora(root: Path) -> None:
    assert resolve(run_config(root, {"web": 0.7, "books": 0.3})).model.vocab_size == 460


def test_sources_of_different_tokenizers_are_refused(root: Path) -> None:
    web, other = (str(Manifest.load(root / name).tokenizer["fingerprint"])[:12] for name in ("web", "other"))
    with pytest.raises(ConfigError) as caught:
        resolve(run_config(root, {"web": 0.7, "other": 0.3}))
    assert str(caught.value).splitlines() == [
        "the sources were made with different tokenizers",
        "  expected: one tokenizer fingerprint",
        f"  found: web: {web}, other: {other}",
        "  do: prepare them again with the same tokenizer.model",
    ]


def test_a_source_without_a_chunk_to_train_on_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(run_config(root, {"web": 0.7, "stub": 0.3}))
    assert str(caught.value).splitlines() == [
        "source `stub` is too small to train on",
        "  expected: at least one chunk of 256 tokens",
        "  found: 7 tokens, all left over",
        "  do: add text, or prepare it again with a smaller chunk_tokens",
    ]


def test_rows_longer_than_the_chunks_of_a_split_are_refused(root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"does not fit into a chunk of source `web`\n  expected: data.seq_len <= 64 \(the heldout"
    ):
        resolve(run_config(root, {"web": 1.0}, seq_len=128))


def test_a_corpus_is_opened_once_for_both_splits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest, and the index's head: each is read and hashed once."""
    calls: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(shards, "read_index", counted("index", shards.read_index))
    monkeypatch.setattr(Manifest, "load", staticmethod(counted("manifest", Manifest.load)))
    open_run_data(run_config(root, {"web": 0.7, "books": 0.3}))
    assert calls == {"index": 2, "manifest": 2}


def held_out(config: Any) -> list[Any]:
    return list(LocalLoader(config, open_run_data(config), 0).heldout_batches())


def test_a_run_is_evaluated_on_the_rows_it_began_with(tmp_path: Path) -> None:
    make_corpus(tmp_path / "web", chunks=5, heldout=2)
    config = run_config(tmp_path, {"web": 1.0}, seq_len=16)
    config.run_dir.mkdir(parents=True)
    begin_ledger(config)
    before = held_out(config)
    grown = grow_corpus(tmp_path / "web", chunks=6, heldout=3)
    assert grown.splits["heldout"].chunks == 3
    assert len(before) == len(held_out(config)) == 1
    assert all(map(same, held_out(config), before))
    # The run takes the new text into its training: what it is evaluated on stays all the same.
    path = config.run_dir / FILE_NAME
    data = open_run_data(config)
    payload = {"source": "web", "generation": 1, "chunks": 11, "content_hash": data.train["web"].content_hash}
    Ledger.load(path).append("generation", payload, from_row=20, rows_consumed=0, steps=StepPlan.constant(10, 32)).save(
        path
    )
    assert set(open_run_data(config).order.locate(np.arange(20, 20 + 11 * 16)).chunk.tolist()) == set(range(11))
    assert all(map(same, held_out(config), before))
    # A run that begins now is evaluated on all there is.
    later = run_config(tmp_path, {"web": 1.0}, seq_len=16, name="later")
    later.run_dir.mkdir()
    begin_ledger(later)
    assert open_run_data(later).heldout["web"].chunks == 5
    assert len(held_out(later)) == 2
    assert open_run_data(later).heldout["web"].content_hash == open_run_data(later).train["web"].content_hash


def test_a_ledger_that_names_a_generation_that_is_gone_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path / "web", chunks=2)
    config = run_config(tmp_path, {"web": 1.0})
    config.run_dir.mkdir(parents=True)
    payload = {"source": "web", "generation": 1, "chunks": 5, "content_hash": "f" * 64}
    ledger = Ledger().append("generation", payload, from_row=0, rows_consumed=0, steps=StepPlan.constant(10, 32))
    ledger.save(config.run_dir / FILE_NAME)
    with pytest.raises(
        DataError, match=r"has no generation 1\n  expected: .*gen-0001/manifest.json\n  found: generations up to 0\n"
    ):
        open_run_data(config)


def test_a_view_up_to_a_generation_is_the_corpus_opened_so_far(tmp_path: Path) -> None:
    make_corpus(tmp_path, chunks=3)
    grow_corpus(tmp_path, chunks=4)
    for split in ("train", "heldout"):
        for generation in (0, 1):
            opened = shards.Corpus.open(tmp_path, split, generation=generation)
            view = shards.Corpus.open(tmp_path, split).up_to(generation)
            assert (view.chunks, view.content_hash, view.manifest) == (
                opened.chunks,
                opened.content_hash,
                opened.manifest,
            )
            assert all((view.tokens(i) == opened.tokens(i)).all() for i in range(view.chunks))
