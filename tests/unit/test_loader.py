"""Rows are what the corpora hold, in the order's places; loaders keep the laws; replay says what they hand out."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.config import Config, ParallelConfig
from fmscale.corpus.batch import IGNORE, Batch, batch_hash, hash_hex
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.loader import Ask, LocalLoader, RowReader, heldout_places
from fmscale.corpus.order import order_from_config
from fmscale.corpus.replay import replay
from fmscale.corpus.rows import read_rows
from fmscale.corpus.shards import Corpus
from fmscale.corpus.sources import begin_ledger, open_run_data, pin_generations
from fmscale.corpus.steps import StepPlan
from fmscale.errors import DataError
from fmscale.topology import PADDING
from tests.corpora import damage, grow_corpus, make_corpus, run_config
from tests.laws import restore_at_every_step, same, same_global_batches

MIXED = {"web": 0.7, "books": 0.3}
STEPS = StepPlan.constant(10, 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    make_corpus(root / "web", chunks=11, seed=1)
    make_corpus(root / "books", chunks=5, heldout=2, seed=2)
    return root


Open = Callable[[Config, int], LocalLoader]


@pytest.fixture
def local() -> Iterator[Open]:
    """Opens LocalLoaders of (config, data rank), and closes them."""
    opened: list[LocalLoader] = []

    def start(config: Config, rank: int) -> LocalLoader:
        opened.append(LocalLoader(config, open_run_data(config), rank))
        return opened[-1]

    yield start
    for loader in opened:
        loader.close()


def with_ranks(config: Config, dp: int) -> Config:
    return replace(config, parallel=ParallelConfig(dp=dp))


def test_one_epoch_reads_every_token_of_the_corpus_once_as_input(root: Path) -> None:
    config = run_config(root, {"web": 1.0})
    data = open_run_data(config)
    corpus = data.train["web"]
    rows = data.order.rows_per_epoch(0)
    batch = RowReader(data).read(np.arange(rows))
    stream = np.concatenate([corpus.tokens(chunk)[:-1] for chunk in range(corpus.chunks)])
    at = data.order.locate(np.arange(rows))
    in_corpus = np.argsort(at.chunk * 256 + at.start)
    assert (batch.tokens[in_corpus].ravel() == stream).all()
    followers = np.concatenate([corpus.tokens(chunk)[1:] for chunk in range(corpus.chunks)])
    assert (batch.labels[in_corpus].ravel() == followers).all()


def test_padding_rows_read_nothing_and_count_for_nothing(root: Path) -> None:
    config = run_config(root, MIXED)
    data = open_run_data(config)
    reader = RowReader(data)
    batch = reader.read(np.array([5, PADDING, 9]))
    assert (batch.labels[1] == IGNORE).all()
    assert batch_hash(batch) == batch_hash(reader.read(np.array([9, 5])))
    assert batch.targets == 2 * 32


@pytest.mark.parametrize(("global_batch", "micro_batch"), [(10, 1), (10, 2), (9, 4), (8, 1)])
def test_the_same_global_batches_for_any_number_of_ranks(
    root: Path, local: Open, global_batch: int, micro_batch: int
) -> None:
    config = run_config(root, MIXED, global_batch=global_batch, micro_batch=micro_batch)
    hashes = same_global_batches(lambda world, rank: local(with_ranks(config, world), rank).batches(0), steps=4)
    assert [hash_hex(digest) for digest in hashes] == [record["batch_hash"] for record in replay(config, 1, 4, 3)]


def test_the_same_held_out_batches_for_any_number_of_ranks(root: Path, local: Open) -> None:
    """40 rows of two sources in batches of 9: the last one has 4 rows, on 8 ranks too."""
    config = run_config(root, MIXED, global_batch=9, micro_batch=2, seq_len=16)
    loaders = {(world, rank): local(with_ranks(config, world), rank) for world in (1, 2, 3, 8) for rank in range(world)}
    steps = len(list(loaders[1, 0].heldout_batches()))
    assert steps == 3
    same_global_batches(lambda world, rank: loaders[world, rank].heldout_batches(), steps, worlds=(1, 2, 3, 8))
    for loader in loaders.values():
        batches = list(loader.heldout_batches())
        assert len(batches) == steps
        assert len({batch.tokens.shape for batch in batches}) == 1, "a last batch of another shape"
        assert [batch.targets for batch in batches] == [16 * int((batch.rows >= 0).sum()) for batch in batches]


def test_held_out_rows_are_the_first_of_each_source_in_turn(root: Path) -> None:
    corpora = [Corpus.open(root / name, "heldout") for name in ("books", "web")]
    places = heldout_places(corpora, 16, 0)
    assert len(places.chunk) == 2 * 4 + 3 * 4
    stream = np.concatenate([corpora[1].tokens(chunk)[:-1] for chunk in range(3)])
    web = places.part(np.flatnonzero(places.source == 1))
    assert (read_rows(corpora, web, 16).tokens[:, :-1].ravel() == stream).all()
    first = heldout_places(corpora, 16, 5)
    assert first.source.tolist() == [0, 1, 0, 1, 0]
    assert (first.chunk * 64 + first.start).tolist() == [0, 0, 16, 16, 32]


class Sizes(NamedTuple):
    """All that `heldout_places` asks of a corpus."""

    chunks: int
    chunk_tokens: int


@given(
    st.lists(st.builds(Sizes, st.integers(0, 5), st.sampled_from([16, 64])), min_size=1, max_size=4),
    st.integers(0, 70),
    st.sampled_from([5, 16]),
)
def test_held_out_places_are_the_first_of_all_rows_in_turn(sizes: list[Sizes], limit: int, seq_len: int) -> None:
    slow = sorted(
        (turn, source, *divmod(turn, size.chunk_tokens // seq_len))
        for source, size in enumerate(sizes)
        for turn in range(size.chunks * (size.chunk_tokens // seq_len))
    )[: limit or None]
    places = heldout_places(sizes, seq_len, limit)
    found = zip(places.source.tolist(), places.chunk.tolist(), places.start.tolist(), strict=True)
    assert list(found) == [(source, chunk, slot * seq_len) for _, source, chunk, slot in slow]


def test_held_out_places_cost_what_is_asked_for_and_not_what_there_is() -> None:
    tracemalloc.start()
    places = heldout_places([Sizes(10**9, 2**20), Sizes(3, 2**20)], 4096, 256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(places.chunk) == 256
    assert peak < 200_000, f"{peak} bytes for 256 rows"


def test_going_on_at_any_step_gives_the_batches_of_the_whole_run(root: Path, local: Open) -> None:
    config = run_config(root, MIXED, dp=3)
    for rank in range(3):
        restore_at_every_step(local(config, rank).batches, config.train.global_batch, steps=8)


def test_replay_names_the_rows_of_each_rank(root: Path) -> None:
    records = replay(run_config(root, MIXED), 3, 2, 4)
    assert [record["step"] for record in records] == [3, 4]
    assert records[0]["rows_per_rank"] == [[20, 21], [22, 23, 24], [25, 26], [27, 28, 29]]


def test_replay_follows_the_ledger_of_the_run(root: Path) -> None:
    config = run_config(root, MIXED)
    plain = replay(config, 1, 6, 1)
    config.run_dir.mkdir(parents=True)
    skip = Ledger().append("skip", {"rows": 20}, from_row=20, rows_consumed=0, steps=STEPS)
    skip.save(config.run_dir / FILE_NAME)
    edited = replay(config, 1, 6, 1)
    (config.run_dir / FILE_NAME).unlink()
    hashes = [record["batch_hash"] for record in edited]
    assert hashes[:2] == [record["batch_hash"] for record in plain[:2]]
    assert set(hashes[2:]).isdisjoint(
        record["batch_hash"] for record in plain
    )  # other rows' tokens under these numbers


def test_a_damaged_chunk_stops_the_trainer_with_its_name_before_it_is_used(tmp_path: Path, local: Open) -> None:
    make_corpus(tmp_path / "web", chunks=4)
    config = run_config(tmp_path, {"web": 1.0})
    damage(tmp_path / "web", chunk=1)
    loader = local(config, 0)
    batches = loader.batches(0)
    with pytest.raises(DataError, match="chunk 1 is damaged"):
        list(islice(batches, 8))
    with pytest.raises(DataError, match="chunk 1 is damaged"):  # and again, rather than a wait without end
        next(batches)


def test_a_quarantined_chunk_is_not_read(tmp_path: Path, local: Open) -> None:
    make_corpus(tmp_path / "web", chunks=4)
    config = run_config(tmp_path, {"web": 1.0})
    damage(tmp_path / "web", chunk=1)
    payload = {"source": "web", "chunk": 1, "substitute": 2}
    config.run_dir.mkdir(parents=True)
    Ledger().append("quarantine", payload, from_row=0, rows_consumed=0, steps=STEPS).save(config.run_dir / FILE_NAME)
    assert len(list(islice(local(config, 0).batches(0), 8))) == 8


def test_the_thread_reads_no_further_than_asked_and_ends_with_the_loader(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Ask] = []
    read = LocalLoader._read

    def counted(self: LocalLoader, ask: Ask) -> Batch:
        reads.append(ask)
        return read(self, ask)

    monkeypatch.setattr(LocalLoader, "_read", counted)
    config = run_config(root, MIXED, prefetch_batches=2)
    loader = LocalLoader(config, open_run_data(config), 0)
    before = threading.active_count()
    batches = loader.batches(0)
    for taken in range(1, 4):
        assert next(batches).rows[0] == 10 * (taken - 1)
        most = taken + 2 + 1  # two wait, the thread holds a third
        deadline = time.monotonic() + 10
        while len(reads) < most and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # long enough for a hundred more
        assert len(reads) == most
    assert threading.active_count() == before + 1
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(AssertionError, match="the loader is closed"):
        next(batches)


def test_sources_mean_the_same_in_any_order_of_lines(root: Path) -> None:
    forth, back = run_config(root, MIXED), run_config(root, dict(reversed(MIXED.items())))
    assert list(forth.data.sources) != list(back.data.sources)
    assert replay(forth, 1, 3, 1) == replay(back, 1, 3, 1)


def test_a_corpus_that_grows_changes_no_run_that_has_begun(tmp_path: Path) -> None:
    make_corpus(tmp_path / "web", chunks=5)
    config = run_config(tmp_path, {"web": 1.0})
    before, fingerprint = replay(config, 1, 6, 1), open_run_data(config).order.fingerprint()
    begin_ledger(config)
    assert Ledger.load(config.run_dir / FILE_NAME) == Ledger()
    grow_corpus(tmp_path / "web", chunks=6)
    assert replay(config, 1, 6, 1) == before
    assert open_run_data(config).order.fingerprint() == fingerprint


def test_a_run_on_a_grown_corpus_is_planned_as_it_will_begin(tmp_path: Path) -> None:
    """It pins what there is and reads all of it in its first epoch; `order` and `data mix` say so beforehand."""
    make_corpus(tmp_path / "web", chunks=5)
    grow_corpus(tmp_path / "web", chunks=6)
    config = run_config(tmp_path, {"web": 1.0})
    planned, data = replay(config, 1, 6, 1), open_run_data(config)
    assert data.order.rows_per_epoch(0) == 11 * 8
    assert set(data.order.locate(np.arange(88)).chunk.tolist()) == set(range(11))
    assert len({row.tobytes() for row in RowReader(data).read(np.arange(88)).tokens}) == 88
    begin_ledger(config)
    assert Ledger.load(config.run_dir / FILE_NAME) == data.ledger == pin_generations(data.train, STEPS)
    assert replay(config, 1, 6, 1) == planned


def test_a_ledger_of_another_corpus_is_refused(root: Path) -> None:
    config = run_config(root, {"web": 1.0})
    payload = {"source": "web", "generation": 0, "chunks": 11, "content_hash": "f" * 64}
    ledger = Ledger().append("generation", payload, from_row=0, rows_consumed=0, steps=STEPS)
    with pytest.raises(DataError, match=r"entry 0 of the edit ledger \(generation\)(.*\n)*.*found: 11 chunks, "):
        order_from_config(config, open_run_data(config).train, ledger)


def test_laws_catch_ranks_that_hold_each_others_rows(root: Path, local: Open) -> None:
    """The law itself: two ranks with crossed shares, and with crossed tokens, are told from a sound pair."""
    config = run_config(root, MIXED)

    def crossed(world: int, rank: int) -> Iterator[Batch]:
        pairs = [local(with_ranks(config, world), r).batches(0) for r in range(world)]
        for batches in zip(*pairs, strict=True):
            other = batches[(rank + 1) % world]
            yield replace(other, rows=batches[rank].rows)

    with pytest.raises(AssertionError, match="step 0 differs between 1 and 2 ranks"):
        same_global_batches(crossed, steps=1, worlds=(1, 2))
    stuck = next(local(config, 0).batches(0))
    with pytest.raises(AssertionError, match="the batches do not differ"):
        restore_at_every_step(lambda row: iter([stuck] * 3), 10, 3)
    assert not same(stuck, replace(stuck, targets=1))
    assert same(stuck, partial(replace, stuck)())
