"""The order of rows: each once an epoch, a chunk in one window, weights within a known bound, edits only ahead."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.corpus.ledger import Ledger
from fmscale.corpus.mixture import PERIOD, Stage, quantise
from fmscale.corpus.order import Location, Order
from fmscale.corpus.quarantine import quarantined
from fmscale.corpus.sequence import Sequence, SourceSpec
from fmscale.corpus.steps import StepPlan
from fmscale.errors import ConfigError, DataError

STEPS = StepPlan.constant(8, 64)
GOLDEN = Path(__file__).parents[1] / "golden" / "order.jsonl"


def source(name: str, chunks: int, chunk_tokens: int = 256) -> SourceSpec:
    return SourceSpec(name=name, chunks=chunks, chunk_tokens=chunk_tokens, content_hash=name * 4)


def sequence(chunks: int, *, name: str = "web", window: int = 4, tokens: int = 64, seed: int = 0) -> Sequence:
    return Sequence(source=source(name, chunks), seed=seed, row_tokens=tokens, window_chunks=window)


def order_of(weights: dict[str, float], ledger: Ledger | None = None, chunks: int = 13, **changes: Any) -> Order:
    plain: dict[str, Any] = {"seed": 5, "row_tokens": 64, "steps": STEPS, "window_chunks": 4}
    plain["stages"] = (Stage(0, quantise(list(weights.values()), list(weights))),)
    sources = tuple(source(name, chunks + 7 * i) for i, name in enumerate(weights))
    return Order(sources, **(plain | changes), ledger=ledger or Ledger())


def edits(*entries: tuple[str, int, dict[str, Any]]) -> Ledger:
    ledger = Ledger()
    for kind, from_row, payload in entries:
        ledger = ledger.append(kind, payload, from_row=from_row, rows_consumed=0, steps=STEPS)
    return ledger


def rows_of(location: Location) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in location), strict=True))


# One source.


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 300), st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_each_row_once_and_each_chunk_in_one_window(
    chunks: int, window: int, tokens: int, seed: int
) -> None:
    tokens = min(tokens, 256)
    rows = sequence(chunks, window=window, tokens=tokens, seed=seed)
    assert rows.rows_per_epoch == chunks * (256 // tokens)
    assert rows.tokens_cut_per_epoch == chunks * 256 - rows.rows_per_epoch * tokens
    for epoch in (0, 3):
        n = rows.rows_per_epoch
        at = rows.at(np.arange(epoch * n, (epoch + 1) * n))
        assert set(at.epoch.tolist()) == {epoch}
        every = {(chunk, slot * tokens) for chunk in range(chunks) for slot in range(256 // tokens)}
        assert Counter(zip(at.chunk.tolist(), at.start.tolist(), strict=True)) == Counter(every)
        in_window = np.arange(n) // (window * rows.rows_per_chunk)
        windows_of_chunk = Counter(chunk for _, chunk in set(zip(in_window.tolist(), at.chunk.tolist(), strict=True)))
        assert set(windows_of_chunk.values()) == {1}, "a chunk is needed in two windows"
        assert in_window[-1] + 1 == ceil(chunks / window)


def test_seeds_epochs_names_and_windows_do_not_alias() -> None:
    orders = set()
    for name in ("web", "books"):
        for seed in range(-3, 4):
            rows = sequence(64, name=name, seed=seed)
            n = rows.rows_per_epoch
            for epoch in range(5):
                at = rows.at(np.arange(epoch * n, (epoch + 1) * n))
                orders.add((at.chunk.tobytes(), at.start.tobytes()))
    assert len(orders) == 2 * 7 * 5
    at = sequence(64, window=4).at(np.arange(64 * 4))
    inside = [tuple(at.start[w * 16 : (w + 1) * 16]) for w in range(16)]
    assert len(set(inside)) == 16, "windows are shuffled alike"


def test_a_batch_mixes_the_chunks_of_its_window_as_a_drawn_one_would() -> None:
    """Pairs of rows of one chunk in batches of 128: expected for drawn rows, and within 5 standard deviations of it."""
    rows = sequence(512, window=128, tokens=1)  # 256 rows a chunk, 4 windows of 32,768 rows
    chunks = rows.at(np.arange(512 * 256)).chunk.reshape(-1, 128)
    pairs = sum(
        int((np.bincount(batch, minlength=512) * (np.bincount(batch, minlength=512) - 1)).sum() // 2)
        for batch in chunks
    )
    expected = len(chunks) * (128 * 127 / 2) * 255 / 32767
    assert abs(pairs - expected) < 5 * sqrt(expected)


def test_a_source_without_chunks_or_with_short_chunks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"source `web` has no chunk to train on\n(.*\n)*.*smaller chunk_tokens"):
        sequence(0)
    with pytest.raises(
        ConfigError, match=r"rows are longer than the chunks of source `web`(.*\n)*.*data.seq_len=256 or less"
    ):
        sequence(3, tokens=257)


# Mixtures: the law of shares is in test_mixture.py.


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 0.7, "b": 0.3}, {"a": 3, "b": 1, "c": 0.01}])
def test_each_source_is_read_row_by_row_and_shares_count_it(weights: dict[str, float]) -> None:
    order = order_of(weights)
    at = order.locate(np.arange(3 * PERIOD))
    for s in range(len(weights)):
        own = at.position[at.source == s]
        assert (own == np.arange(len(own))).all()
        place = sequence(13 + 7 * s, name=order.sources[s].name, seed=5).at(own)
        assert (place.chunk == at.chunk[at.source == s]).all()
        assert (place.epoch == at.epoch[at.source == s]).all()
    for rows in (0, 1, 7, PERIOD - 1, PERIOD, PERIOD + 1, 3 * PERIOD):
        assert order.shares(rows).tolist() == np.bincount(at.source[:rows], minlength=len(weights)).tolist()


# Any row, at any time, at one price.


@given(st.permutations(range(64)), st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_rows_asked_for_in_any_company_are_the_same(shuffled: list[int], first: int) -> None:
    order = order_of({"a": 0.7, "b": 0.3}, edits(("skip", 2**30, {"rows": 5})))
    rows = first + np.array(shuffled)
    together = rows_of(order.locate(rows))
    assert together == [rows_of(order.locate(row))[0] for row in rows]
    assert together == rows_of(replace(order).locate(rows)), "the order keeps state"


def test_a_seek_costs_the_same_at_the_end_of_a_trillion_rows() -> None:
    order = order_of({"a": 0.7, "b": 0.3}, chunks=7_300_001, window_chunks=64)
    order.locate([0])

    def cost(first: int) -> float:
        times = []
        for _ in range(20):
            started = time.perf_counter()
            order.locate(np.arange(first, first + 8))
            times.append(time.perf_counter() - started)
        return min(times)

    assert cost(10**12) < 5 * cost(0) + 0.001
    shares = order.shares(10**12)
    assert shares.sum() == 10**12
    assert abs(shares[0] - 10**12 * 45875 / PERIOD) <= 1, "0.7 is 45875 / 65536"


def test_padding_has_no_place() -> None:
    with pytest.raises(AssertionError, match="padding has no place"):
        order_of({"a": 1}).locate([-1])


def test_no_rows() -> None:
    assert order_of({"a": 1}).locate(np.zeros(0, np.int64)).chunk.size == 0


# Edits. In all of them: what was before `from_row` stays.

BEFORE = 104
MIXED = {"a": 0.7, "b": 0.3}


def edited(*entries: tuple[str, int, dict[str, Any]], weights: dict[str, float] = MIXED) -> tuple[Location, Location]:
    """Rows 0 to 399 without and with the entries; those before BEFORE are compared here."""
    plain = order_of(weights).locate(np.arange(400))
    order = order_of(weights, edits(*entries))
    changed = order.locate(np.arange(400))
    assert rows_of(changed)[:BEFORE] == rows_of(plain)[:BEFORE]
    assert rows_of(changed)[BEFORE:] != rows_of(plain)[BEFORE:]
    return plain, changed


def test_new_weights_go_on_where_each_source_stands() -> None:
    _, changed = edited(("weights", BEFORE, {"weights": {"a": 1, "b": 3}}))
    for s, share in ((0, 0.25), (1, 0.75)):
        own = changed.position[changed.source == s]
        assert (own == np.arange(len(own))).all(), "rows of a source lost or repeated"
        assert (changed.source[BEFORE:] == s).mean() == pytest.approx(share, abs=0.01)
    order = order_of(MIXED, edits(("weights", BEFORE, {"weights": {"a": 1, "b": 3}})))
    for rows in (50, BEFORE, 400):
        assert order.shares(rows).tolist() == np.bincount(changed.source[:rows], minlength=2).tolist()


def test_a_source_of_weight_zero_rests() -> None:
    _, changed = edited(
        ("weights", BEFORE, {"weights": {"a": 0, "b": 1}}), ("weights", 200, {"weights": {"a": 1, "b": 0}})
    )
    assert set(changed.source[BEFORE:200].tolist()) == {1}
    assert set(changed.source[200:].tolist()) == {0}
    own = changed.position[changed.source == 0]
    assert (own == np.arange(len(own))).all()


def test_what_skipped_rows_would_have_read_is_left_out() -> None:
    """Each source goes on behind what it would have given to the skipped rows; which rows it gets stays planned."""
    plain, changed = edited(("skip", BEFORE, {"rows": 40}), ("skip", 200, {"rows": 8}))
    assert (changed.source == plain.source).all()
    for s in range(2):
        own = changed.position[changed.source == s]
        left_out = plain.position[BEFORE : BEFORE + 40][plain.source[BEFORE : BEFORE + 40] == s].tolist()
        assert not set(left_out) & set(own.tolist())
        again = np.count_nonzero(plain.source[200:208] == s)
        assert sorted({*own.tolist(), *left_out}) == sorted(
            set(range(own.max() + 1)) - set(range(*_gap(changed, s, again)))
        )
    order = order_of(MIXED, edits(("skip", BEFORE, {"rows": 40})))
    assert order.shares(300).tolist() == np.bincount(order.locate(np.arange(300)).source, minlength=2).tolist()


def _gap(changed: Location, s: int, length: int) -> tuple[int, int]:
    """Positions of source s between its last row before row 200 and its first from there on."""
    before = int(changed.position[:200][changed.source[:200] == s].max()) + 1
    assert int(changed.position[200:][changed.source[200:] == s].min()) == before + length
    return before, before + length


def test_a_skip_does_not_move_the_stages_of_training() -> None:
    stages = {"stages": [{"from_row": 0, "weights": {"a": 1, "b": 0}}, {"from_row": 160, "weights": {"a": 0, "b": 1}}]}
    at = order_of(MIXED, edits(("stages", 0, stages), ("skip", 80, {"rows": 24}))).locate(np.arange(400))
    assert at.source.tolist() == [0] * 160 + [1] * 240
    assert at.position.tolist() == [*range(80), *range(104, 184), *range(240)]


def test_planned_stages_replace_all_weights_from_their_row_on() -> None:
    stages = [{"from_row": BEFORE, "weights": {"a": 1, "b": 3}}, {"from_row": 240, "weights": {"a": 0, "b": 1}}]
    _, changed = edited(("stages", BEFORE, {"stages": stages}))
    assert (changed.source[BEFORE:240] == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert set(changed.source[240:].tolist()) == {1}
    for s in range(2):
        own = changed.position[changed.source == s]
        assert (own == np.arange(len(own))).all()


def test_a_further_source_joins_and_the_others_go_on() -> None:
    new = {"source": "c", "corpus": "data/c", "generation": 0, "chunks": 5, "chunk_tokens": 256, "content_hash": "c"}
    ledger = edits(("source", BEFORE, {**new, "weights": {"a": 1, "b": 1, "c": 2}}))
    _, changed = edited(*((entry.kind, entry.from_row, entry.payload) for entry in ledger.entries))
    order = order_of(MIXED, ledger)
    assert [spec.name for spec in order.sources] == ["a", "b", "c"]
    assert (changed.source[BEFORE:] == 2).mean() == pytest.approx(0.5, abs=0.01)
    for s in range(3):
        own = changed.position[changed.source == s]
        assert (own == np.arange(len(own))).all()
    for rows in (BEFORE, BEFORE + 1, 400):
        assert order.shares(rows).tolist() == np.bincount(changed.source[:rows], minlength=3).tolist()
    assert order.epochs(BEFORE)[2] == 0
    assert order.epochs(400)[2] == pytest.approx(148 / 20)


@given(st.integers(0, 12), st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_the_readers_of_a_chunk_are_the_rows_that_stand_in_it(chunk: int, first: int, length: int) -> None:
    grown = {"source": "a", "generation": 1, "chunks": 17, "content_hash": "new"}
    order = order_of(
        MIXED,
        edits(("skip", 40, {"rows": 9}), ("generation", 96, grown), ("weights", 200, {"weights": {"a": 1, "b": 1}})),
    )
    at = order.locate(np.arange(600))
    for s in range(2):
        rows = np.flatnonzero((at.source == s) & (at.chunk == chunk))
        expected = rows[(rows >= first) & (rows < first + length)]
        assert order.readers_of(s, chunk, first, first + length).tolist() == expected.tolist()


def test_shares_and_losses_cost_little_more_through_a_thousand_quarantines() -> None:
    """Each is an entry; chunks are found to be damaged one by one, and every step asks for the shares so far."""
    entries = [("quarantine", 8 * i, {"source": "a", "chunk": i, "substitute": 5000 + i}) for i in range(1000)]
    order, plain = order_of(MIXED, edits(*entries), chunks=10_000), order_of(MIXED, chunks=10_000)
    assert order.shares(10**6).tolist() == plain.shares(10**6).tolist()
    assert order.readers_of(0, 7, 56, 10**6).tolist() == plain.readers_of(0, 7, 56, 10**6).tolist()

    def cost(of: Order) -> float:
        started = time.process_time()
        for row in range(10**6, 10**6 + 20):
            of.shares(row)
            of.epochs(row)
            of.readers_of(0, 7, 56, row)
        return time.process_time() - started

    assert cost(order) < 20 * cost(plain) + 0.05


# Each kind of entry: the past does not change, and the future is a function of the ledger alone.

AHEAD = 120
KINDS_OF_EDITS: dict[str, dict[str, Any]] = {
    "weights": {"weights": {"a": 1, "b": 3}},
    "stages": {
        "stages": [{"from_row": AHEAD, "weights": {"a": 1, "b": 3}}, {"from_row": 240, "weights": {"a": 2, "b": 1}}]
    },
    "source": {
        "source": "c",
        "corpus": "data/c",
        "generation": 0,
        "chunks": 5,
        "chunk_tokens": 256,
        "content_hash": "c",
        "weights": {"a": 1, "b": 1, "c": 1},
    },
    "generation": {"source": "a", "generation": 1, "chunks": 17, "content_hash": "new"},
    "quarantine": {"source": "a", "chunk": 2, "substitute": 9},
    "skip": {"rows": 13},
}
EARLIER = st.lists(
    st.tuples(
        st.sampled_from(
            [
                ("weights", {"weights": {"a": 5, "b": 1}}),
                ("skip", {"rows": 3}),
                ("quarantine", {"source": "b", "chunk": 1, "substitute": 3}),
                ("generation", {"source": "b", "generation": 1, "chunks": 25, "content_hash": "b1"}),
            ]
        ),
        st.integers(0, AHEAD // 8),
    ),
    max_size=3,
    unique_by=lambda edit: edit[0][0],
)


@pytest.mark.parametrize("kind", sorted(KINDS_OF_EDITS))
@given(earlier=EARLIER, planned=st.booleans())
@settings(max_examples=15, deadline=None)
def test_an_edit_leaves_the_past_alone_and_is_all_that_the_future_depends_on(
    kind: str, earlier: list[tuple[tuple[str, dict[str, Any]], int]], planned: bool
) -> None:
    """Whatever was edited before, and whether or not the run was begun with stages of its own."""
    stages = (Stage(0, quantise([7, 3], "ab")), *([Stage(104, quantise([1, 9], "ab"))] if planned else []))
    before = edits(*((name, 8 * step, payload) for (name, payload), step in earlier))
    after = before.append(kind, KINDS_OF_EDITS[kind], from_row=AHEAD, rows_consumed=AHEAD, steps=STEPS)
    plain, changed = (order_of(MIXED, ledger, stages=stages).locate(np.arange(480)) for ledger in (before, after))
    assert rows_of(changed)[:AHEAD] == rows_of(plain)[:AHEAD]
    assert rows_of(changed)[AHEAD:] != rows_of(plain)[AHEAD:]
    again = Ledger.from_json(json.loads(json.dumps(after.to_json())))
    assert rows_of(order_of(MIXED, again, stages=stages).locate(np.arange(479, -1, -1))) == rows_of(changed)[::-1]
    shares = order_of(MIXED, after, stages=stages).shares(480)
    assert shares.tolist() == np.bincount(changed.source, minlength=len(shares)).tolist()


def test_a_quarantined_chunk_is_replaced_wherever_it_would_be_read() -> None:
    one = ("quarantine", BEFORE, {"source": "a", "chunk": 3, "substitute": 6})
    plain, changed = edited(one)
    after = np.arange(400) >= BEFORE
    hit = after & (plain.source == 0) & (plain.chunk == 3)
    assert hit.any()
    assert (changed.chunk[hit] == 6).all()
    assert (changed.chunk[~hit] == plain.chunk[~hit]).all()
    assert (changed.start == plain.start).all()
    # The substitute is found to be damaged too: what stood on it moves on.
    _, twice = edited(one, ("quarantine", BEFORE + 8, {"source": "a", "chunk": 6, "substitute": 1}))
    later = twice.chunk[(np.arange(400) >= BEFORE + 8) & (twice.source == 0)]
    assert not {3, 6} & set(later.tolist())


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=10))
@settings(max_examples=40, deadline=None)
def test_what_is_read_for_a_chunk_is_a_sound_one(pairs: list[tuple[int, int]]) -> None:
    """Whichever chunks turn out damaged in whichever order, substitutes and the twice quarantined among them."""
    reads = dict(zip(range(13), range(13), strict=True))
    entries = []
    for bad, substitute in pairs:
        if bad == substitute or reads[substitute] != substitute:
            continue  # refused
        reads = {chunk: substitute if bad in (chunk, now) else now for chunk, now in reads.items()}
        entries.append(("quarantine", 0, {"source": "a", "chunk": bad, "substitute": substitute}))
    rows = np.arange(52)
    plain = order_of({"a": 1}).locate(rows).chunk.tolist()
    found = order_of({"a": 1}, edits(*entries)).locate(rows).chunk.tolist()
    assert found == [reads[chunk] for chunk in plain]
    assert all(bad not in found for bad in (entry[2]["chunk"] for entry in entries))


def test_a_quarantine_from_a_row_before_edits_that_were_written_earlier() -> None:
    """A run finds damage at a step before one for which the user has edited it already."""
    grown = {"source": "a", "generation": 1, "chunks": 40, "content_hash": "new"}
    later = [("generation", 200, grown), ("quarantine", 208, {"source": "a", "chunk": 6, "substitute": 3})]
    for bad in range(13):
        order = order_of(MIXED, edits(*later))
        assert order.as_of(199).substitutes(0) == {}
        assert order.as_of(208).substitutes(0) == {6: 3}
        ledger = quarantined(order, 0, [bad], 80)
        at = replace(order, ledger=ledger).locate(np.arange(400))
        plain = order_of(MIXED, edits(later[0])).locate(np.arange(400))
        assert (at.chunk[:80] == plain.chunk[:80]).all()
        assert bad not in at.chunk[80:][at.source[80:] == 0]
        assert 6 not in at.chunk[208:][at.source[208:] == 0]
        assert at.chunk[80:200][at.source[80:200] == 0].max() < 13, "a chunk that is not yet there"
        assert (at.position == plain.position).all()


def test_a_source_of_which_every_chunk_is_damaged() -> None:
    order = order_of({"a": 1}, chunks=3)
    for bad in range(2):
        order = replace(order, ledger=quarantined(order, 0, [bad], 8))
    message = r"no chunk of source `a` is left to read in place of chunk 2\n.*\n  found: 3 of 3 chunks damaged\n"
    with pytest.raises(DataError, match=message):
        quarantined(order, 0, [2], 8)


def test_a_grown_corpus_goes_on_in_a_new_epoch_over_all_of_it() -> None:
    grown = {"source": "a", "generation": 1, "chunks": 17, "content_hash": "new"}
    _, changed = edited(("generation", BEFORE, grown), weights={"a": 1})
    assert (changed.position == np.arange(400)).all()
    epochs = changed.epoch.tolist()
    # 13 chunks of 4 rows: rows 52 to 103 are epoch 1, whole at row 104; so the next one is epoch 2, of 17 chunks.
    assert epochs[:BEFORE] == [0] * 52 + [1] * 52
    assert epochs[BEFORE : BEFORE + 69] == [2] * 68 + [3]
    assert set(changed.chunk[BEFORE : BEFORE + 68].tolist()) == set(range(17))
    order = order_of({"a": 1}, edits(("generation", BEFORE, grown)))
    assert order.rows_per_epoch(0) == 68
    # In the middle of an epoch: that epoch is cut short, its number is not used again.
    _, middle = edited(("generation", BEFORE + 8, grown), weights={"a": 1})
    assert middle.epoch[BEFORE + 7] == 2
    assert middle.epoch[BEFORE + 8] == 3


def test_a_generation_at_row_0_is_how_a_run_on_a_grown_corpus_begins() -> None:
    grown = {"source": "a", "generation": 1, "chunks": 17, "content_hash": "new"}
    at = order_of({"a": 1}, edits(("generation", 0, grown))).locate(np.arange(68))
    place = sequence(17, name="a", seed=5).at(np.arange(68))
    assert (at.chunk == place.chunk).all()
    assert (at.epoch == 0).all()


def test_entries_hold_by_row_then_by_age() -> None:
    """An entry for nearer rows may come after one for farther rows, as after a roll-back."""
    far, near = ("skip", 200, {"rows": 8}), ("weights", 120, {"weights": {"a": 1, "b": 9}})
    forth = order_of(MIXED, edits(far, near)).locate(np.arange(400))
    back = order_of(MIXED, edits(near, far)).locate(np.arange(400))
    assert rows_of(forth) == rows_of(back)


@given(st.lists(st.tuples(st.sampled_from(["weights", "quarantine", "generation"]), st.integers(0, 40)), max_size=6))
@settings(max_examples=30, deadline=None)
def test_without_skips_no_edit_loses_or_repeats_a_row_of_a_source(kinds: list[tuple[str, int]]) -> None:
    payloads: dict[str, dict[str, Any]] = {
        "weights": {"weights": {"a": 1, "b": 3}},
        "quarantine": {"source": "a", "chunk": 1, "substitute": 2},
        "generation": {"source": "b", "generation": 1, "chunks": 23, "content_hash": "n"},
    }
    ledger = edits(*((kind, 8 * step, payloads[kind]) for kind, step in kinds))
    order = order_of(MIXED, ledger)
    at = order.locate(np.arange(400))
    for s in range(2):
        own = at.position[at.source == s]
        assert (own == np.arange(len(own))).all()
    assert order.shares(400).tolist() == np.bincount(at.source, minlength=2).tolist()


@pytest.mark.parametrize(
    ("kind", "payload", "message"),
    [
        (
            "weights",
            {"weights": {"a": 1}},
            r"\(weights\) does not fit this run\n  expected: weights of a, b\n  found: a\n",
        ),
        ("quarantine", {"source": "c", "chunk": 1, "substitute": 2}, r"expected: a source: a, b\n  found: c"),
        (
            "quarantine",
            {"source": "a", "chunk": 1, "substitute": 1},
            r"another, sound chunk below 13.*\n  found: chunk 1 by 1",
        ),
        ("quarantine", {"source": "a", "chunk": 1, "substitute": 13}, r"sound chunk below 13"),
        ("quarantine", {"source": "a", "chunk": 6, "substitute": 5}, r"found: chunk 6 by 5"),  # 6 is read for 5
        (
            "stages",
            {"stages": [{"from_row": 0, "weights": {"a": 1, "b": 1}}]},
            r"\(stages\) does not fit(.*\n)*.*expected: stages from the first rows of steps: \[8\]\n  found: \[0\]",
        ),
        (
            "stages",
            {"stages": [{"from_row": 8, "weights": {"a": 1, "b": 1}}, {"from_row": 21, "weights": {"a": 1, "b": 1}}]},
            r"expected: stages from the first rows of steps: \[8, 24\]\n  found: \[8, 21\]",
        ),
        (
            "source",
            {**KINDS_OF_EDITS["source"], "source": "b"},
            r"expected: a name other than a, b\n  found: b",
        ),
        (
            "source",
            {**KINDS_OF_EDITS["source"], "weights": {"a": 1, "b": 1}},
            r"expected: weights of a, b, c\n  found: a, b",
        ),
        (
            "generation",
            {"source": "a", "generation": 1, "chunks": 12, "content_hash": "n"},
            r"13 chunks or more.*\n  found: 12",
        ),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(kind: str, payload: dict[str, Any], message: str) -> None:
    known = ("quarantine", 0, {"source": "a", "chunk": 5, "substitute": 6})
    with pytest.raises(DataError, match=message) as error:
        order_of(MIXED, edits(known, (kind, 8, payload)))
    assert str(error.value).startswith("entry 1 of the edit ledger")


# Identity.


def test_the_fingerprint_sees_everything_but_the_ledger() -> None:
    order = order_of(MIXED)
    others = [replace(order, **{name: getattr(order, name) * 2}) for name in ("seed", "row_tokens", "window_chunks")]
    others += [replace(order, steps=StepPlan.constant(16, 64)), replace(order, steps=StepPlan.constant(8, 32))]
    others += [order_of({"a": 0.6, "b": 0.4}), replace(order, begun_with=order.begun_with[::-1])]
    others += [replace(order, stages=(*order.stages, Stage(8, (1, PERIOD - 1))))]
    others += [
        replace(order, begun_with=(replace(order.begun_with[0], **change), order.begun_with[1]))
        for change in ({"name": "c"}, {"chunks": 12}, {"chunk_tokens": 512}, {"content_hash": "x"})
    ]
    assert len({order.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)
    assert replace(order, ledger=edits(("skip", 8, {"rows": 1}))).fingerprint() == order.fingerprint()
    assert order_of({"a": 1.4, "b": 0.6}).fingerprint() == order.fingerprint()


def golden() -> str:
    """Places of rows near and far, of two mixtures, one of them edited in all ways."""
    every_kind = edits(
        ("weights", 40, {"weights": {"books": 1, "web": 1}}),
        ("quarantine", 80, {"source": "web", "chunk": 3, "substitute": 4}),
        ("generation", 120, {"source": "books", "generation": 1, "chunks": 29, "content_hash": "later"}),
        ("skip", 160, {"rows": 24}),
        ("source", 192, {**KINDS_OF_EDITS["source"], "source": "code", "weights": {"books": 1, "web": 2, "code": 3}}),
        (
            "stages",
            400,
            {
                "stages": [
                    {"from_row": 400, "weights": {"books": 1, "web": 0, "code": 1}},
                    {"from_row": 800_000, "weights": {"books": 0, "web": 1, "code": 1}},
                ]
            },
        ),
    )
    weights = {"books": 0.2, "web": 0.8}
    lines = []
    for label, order in (("plain", order_of(weights)), ("edited", order_of(weights, every_kind))):
        lines.append({"order": label, "fingerprint": order.fingerprint(), "ledger": order.ledger.head})
        for row in (0, 1, 2, 39, 40, 41, 80, 95, 120, 121, 160, 200, 65535, 65536, 10**6, 10**9, 10**12):
            place = {name: int(column[0]) for name, column in order.locate(row)._asdict().items()}
            lines.append({"row": row, **place})
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_golden() -> None:
    """What was trained must stay reproducible: a change here is a new version of the order."""
    assert golden() == GOLDEN.read_text()
