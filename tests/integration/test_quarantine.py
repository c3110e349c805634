"""Training across damaged chunks: real ranks, real damage before and during a run, and what the ledger says of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.pack import pack
from fmscale.config import Config
from fmscale.corpus.batch import Batch
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.loader import LocalLoader
from fmscale.corpus.packing import Packed
from fmscale.corpus.repair import repair_report
from fmscale.corpus.replay import replay
from fmscale.corpus.shards import Corpus
from fmscale.corpus.sources import open_run_data, resolve
from fmscale.corpus.verify import survey
from fmscale.errors import ConfigError, DataError
from fmscale.observe import pids
from fmscale.observe.events import read_events
from fmscale.observe.metrics import series
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from launcher.edits import edit, log
from launcher.snapshot import enter
from launcher.start import check
from tests.corpora import document_corpus, make_corpus
from tests.integration.test_train import config_of, go, hashes
from tests.ranks import RankError
from tests.runs import Run

pytestmark = pytest.mark.processes

QUARANTINE = ("data.bad_chunks=quarantine", "data.window_chunks=2", "eval.rows=6", "data.bad_chunk_budget=0.1")
PACKED = (*QUARANTINE, "data.packing=best_fit", "eval.every_steps=0")
CHUNKS, CHUNK_TOKENS = 300, 256  # 4 rows of 64 each: a step of 8 reads two chunks' worth; three shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quarantine")


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    make_corpus(root / "whole", chunks=CHUNKS, heldout=6, chunk_tokens=CHUNK_TOKENS)
    return root / "whole"


@pytest.fixture
def corpus(tmp_path: Path, whole: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(whole, tmp_path / "corpus")
    return tmp_path / "corpus"


def shards(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("train-*.tar"))


def flip(corpus: Path, chunks: list[int]) -> None:
    """A bit of each chunk's tokens, in place: other processes have the file mapped."""
    opened = Corpus.open(corpus, lenient=True)
    raw = [shard.read_bytes() for shard in shards(corpus)]
    for chunk in chunks:
        wanted = np.asarray(opened.tokens(chunk)).tobytes()
        (number,) = [i for i, content in enumerate(raw) if wanted in content]
        with shards(corpus)[number].open("r+b") as file:
            file.seek(raw[number].index(wanted) + 100)
            file.write(bytes([raw[number][raw[number].index(wanted) + 100] ^ 8]))


def packed_corpora(directory: Path) -> tuple[Path, Path, int]:
    """A packed corpus, a copy to be damaged, and a chunk that several blocks read."""
    lengths = [[20 + 7 * (i % 11) for i in range(100)] for _ in range(3)]
    document_corpus(directory / "whole", lengths, chunk_tokens=256)
    packed = pack(Corpus.open(directory / "whole"), 64)
    shutil.copytree(directory / "whole", directory / "corpus")
    return directory / "whole", directory / "corpus", 11 if len(packed.blocks_of(11)) > 1 else 12


def packed_of(corpus: Path) -> Packed:
    return Packed.open(Corpus.open(corpus), 64)


def chunks_in_order(config: Config) -> list[list[int]]:
    """Chunks that each step reads, as the ledger stands."""
    order = open_run_data(config).order
    steps = [order.steps.step(number) for number in range(1, config.train.steps + 1)]
    return [order.locate(np.arange(s.first_row, s.first_row + s.rows)).chunk.tolist() for s in steps]


def stands_still(run: Run) -> bool:
    before = len(run.steps())
    time.sleep(1.0)
    return len(run.steps()) == before


def ledger_of(config: Config) -> Ledger:
    return Ledger.load(config.run_dir / FILE_NAME)


def replayed(config: Config, whole: Path, steps: int) -> list[str]:
    """Batch hashes by the run's ledger, read from the corpus before its damage."""
    sources = {"words": replace(config.data.sources["words"], corpus=str(whole))}
    sound = replace(config, data=replace(config.data, sources=sources))
    return [record["batch_hash"] for record in replay(sound, 1, steps, dp=1)]


def assert_losses_are_told_exactly(config: Config) -> None:
    """Events and log list the rows that would read the chunk, were nothing quarantined: by looking at every row."""
    order = open_run_data(config).order
    plain = replace(order, ledger=Ledger())
    rows = np.arange(order.steps.rows_after(config.train.steps))
    at = plain.locate(rows)
    told = [event for event in read_events(config.run_dir) if event["kind"] == "quarantine"]
    entries = order.ledger.entries
    assert [(event["chunk"], event["substitute"], event["from_row"]) for event in told] == [
        (entry.payload["chunk"], entry.payload["substitute"], entry.from_row) for entry in entries
    ]
    for event, logged in zip(told, log(config.run_dir)[0], strict=True):
        expected = rows[(at.chunk == event["chunk"]) & (rows >= event["from_row"])].tolist()
        assert event["rows"] == expected == logged.to_json()["lost_rows"]
        assert event["tokens"] == len(expected) * config.data.seq_len == logged.to_json()["lost_tokens"]


class DamagesAhead(LocalLoader):
    """When rank 0 is handed its fourth batch, what a later step reads is damaged on the disk."""

    def batches(self, first_row: int) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(first_row)):
            path = Path(self._config.data.sources["words"].corpus)
            if number == 3 and self._data_rank == 0 and not (path.parent / "done").exists():
                for spoil in json.loads((path.parent / "spoil.json").read_text()):
                    if isinstance(spoil, int):
                        flip(path, [spoil])
                    else:
                        getattr(Path(spoil[0]), spoil[1])(*spoil[2:])
                (path.parent / "done").touch()
            yield batch


@pytest.mark.parametrize("ranks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_a_run_goes_on_across_damage_and_its_ledger_says_it_all(
    root: Path, whole: Path, corpus: Path, ranks: int
) -> None:
    name = f"across-{ranks}"
    config = config_of(root, corpus, name, *QUARANTINE, "train.steps=20", f"parallel.dp={ranks}")
    reads = chunks_in_order(resolve(config))
    at_once, later = reads[0][0], reads[14][0]
    assert later not in chain(*reads[:13])
    flip(corpus, [at_once])
    (corpus.parent / "spoil.json").write_text(json.dumps([later]))
    go(config, make_loader=DamagesAhead)

    entries = ledger_of(config).entries
    assert [entry.payload["chunk"] for entry in entries] == [at_once, later]
    assert [entry.from_row for entry in entries] == [0, 8 * min(i for i, c in enumerate(reads) if later in c)]
    assert hashes(config) == replayed(config, whole, 20)
    assert hashes(config)[:1] != replayed(config_of(root, whole, "none", *QUARANTINE), whole, 1)
    assert_losses_are_told_exactly(config)
    # Other ranks, from the same checkpoint on: the same batches, and no entry more.
    others = config_of(root, corpus, name, *QUARANTINE, "train.steps=24", f"parallel.dp={4 - ranks}")
    go(others)
    assert ledger_of(others).entries[:2] == entries
    assert hashes(others) == replayed(others, whole, 24)


def test_a_shard_that_is_missing_and_one_that_is_cut_short(root: Path, whole: Path, corpus: Path) -> None:
    config = config_of(root, corpus, "shards", *QUARANTINE, "train.steps=4", "data.bad_chunk_budget=0.9")
    first, second, _ = shards(corpus)
    first.unlink()
    with second.open("r+b") as file:
        file.truncate(second.stat().st_size // 3)
    go(config)
    gone = {entry.payload["chunk"] for entry in ledger_of(config).entries}
    substitutes = set(open_run_data(config).order.substitutes(0).values())
    assert gone
    assert max(gone) < 256
    assert not gone & substitutes
    assert any(chunk < 128 for chunk in gone)
    assert any(128 <= chunk < 256 for chunk in gone)
    assert hashes(config) == replayed(config, whole, 4)
    assert_losses_are_told_exactly(config)


@pytest.mark.slow
def test_a_shard_that_is_taken_away_and_one_that_is_cut_while_they_are_read(
    root: Path, whole: Path, corpus: Path
) -> None:
    config = config_of(
        root, corpus, "cut-later", *QUARANTINE, "train.steps=12", "data.bad_chunk_budget=0.9", "parallel.dp=2"
    )
    first, second, _ = map(str, shards(corpus))
    size = Path(second).stat().st_size
    (corpus.parent / "spoil.json").write_text(json.dumps([[first, "rename", first + ".gone"]]))
    go(config, make_loader=DamagesAhead)
    assert hashes(config) == replayed(config, whole, 12)
    (corpus.parent / "done").unlink()
    with Path(second).open("r+b") as file:
        file.truncate(size // 4)
    longer = config_of(
        root, corpus, "cut-later", *QUARANTINE, "train.steps=16", "data.bad_chunk_budget=0.9", "parallel.dp=1"
    )
    go(longer)
    assert hashes(longer) == replayed(longer, whole, 16)
    assert any(entry.payload["chunk"] < 256 for entry in ledger_of(longer).entries)


def test_a_damaged_substitute_is_replaced_again_also_before_the_step_of_an_edit(
    root: Path, whole: Path, corpus: Path
) -> None:
    """The user has edited a chunk away from step 5 on; at step 2 it is found damaged, and so is its substitute."""
    config = config_of(root, corpus, "edited", *QUARANTINE, "train.steps=6", "parallel.dp=2")
    enter(check(config))
    bad = chunks_in_order(resolve(config))[1][3]
    (made,) = edit(config.run_dir, "quarantine", ["words", str(bad)], from_step=5)
    flip(corpus, [bad, made.entry.payload["substitute"]])
    go(config)
    entries = [(entry.payload["chunk"], entry.from_row) for entry in ledger_of(config).entries]
    assert entries[0] == (bad, 32)
    assert [chunk for chunk, _ in entries[1:]] == [bad, made.entry.payload["substitute"]]
    assert max(row for _, row in entries[1:]) < 32
    reads = open_run_data(config).order.substitutes(0)
    assert reads[bad] == reads[made.entry.payload["substitute"]] not in reads
    assert hashes(config) == replayed(config, whole, 6)


def test_the_budget_stops_the_run_on_all_ranks(root: Path, corpus: Path) -> None:
    config = config_of(
        root, corpus, "budget", *QUARANTINE, "train.steps=10", "parallel.dp=2", "data.bad_chunk_budget=0.008"
    )
    reads = list(dict.fromkeys(chain(*chunks_in_order(resolve(config)))))
    flip(corpus, reads[3:6])
    with pytest.raises(RankError, match="more chunks of source `words` are damaged than the run may replace"):
        go(config, env={"FMSCALE_INCARNATION": "tested"})
    for rank in range(2):
        said = json.loads((config.run_dir / f"logs/failures/tested-rank-{rank:05d}.json").read_text())
        assert said["kind"] == "DataError"
        assert said["message"].splitlines() == [
            "more chunks of source `words` are damaged than the run may replace",
            "  expected: 2 of 300 chunks at most (data.bad_chunk_budget=0.008)",
            "  found: 3 quarantined",
            "  do: restore the shards (`fmscale data verify CORPUS --repair-report FILE` lists all damage), or allow "
            "more: data.bad_chunk_budget=0.01 is enough for these 3",
        ]
    assert len(ledger_of(config).entries) <= 2, "only what was within the budget stands"


def test_fail_stops_and_names_the_chunk(root: Path, corpus: Path) -> None:
    config = config_of(root, corpus, "fail", "data.window_chunks=2", "eval.rows=6", "train.steps=10", "parallel.dp=2")
    chunk = chunks_in_order(resolve(config))[5][0]
    flip(corpus, [chunk])
    with pytest.raises(RankError, match=rf"DamagedChunk: chunk {chunk} is damaged(?s:.*)data\.bad_chunks=quarantine"):
        go(config)
    assert ledger_of(config).entries == ()
    assert len(series(config.run_dir)) < 10


def test_held_out_text_has_no_substitute(root: Path, corpus: Path) -> None:
    config = config_of(root, corpus, "heldout", *QUARANTINE, "train.steps=2")
    heldout = next(corpus.glob("heldout-*.tar"))
    kept = heldout.read_bytes()
    tokens = Corpus.open(corpus, "heldout").tokens(2).tobytes()
    raw = bytearray(kept)
    raw[raw.index(tokens) + 3] ^= 1
    heldout.write_bytes(raw)
    with pytest.raises(RankError, match="DamagedChunk: chunk 2 is damaged"):
        go(config)
    assert ledger_of(config).entries == ()
    heldout.unlink()
    with pytest.raises(DataError, match=r"shard .*heldout.* is cut short, overgrown or missing"):
        open_run_data(config)  # what every command begins with, and every rank


def test_one_chunk_in_a_hundred_and_a_kill_9_after_the_ledger_was_written(
    root: Path, whole: Path, corpus: Path
) -> None:
    """The second start finds an entry that no checkpoint knows of yet, and nothing is lost."""
    config = config_of(root, corpus, "killed", *QUARANTINE, "train.steps=16", "parallel.dp=2")
    reads = chunks_in_order(resolve(config))
    flip(corpus, [reads[5][0], reads[7][-1], reads[13][0]])  # 3 of 300
    with pytest.raises(RankError, match="rank 0 of 2 failed first:\ndied without a word, exit code -9"):
        go(config, env={"FAULTS": "ledger.saved:kill@2"})
    written = ledger_of(config).entries
    assert len(written) == 2
    newest = CheckpointStore(config.run_dir / "checkpoints").list()[-1]
    assert newest.state["ledger"] == [], "the checkpoint is from before the damage was found"
    go(config_of(root, corpus, "killed", *QUARANTINE, "train.steps=16", "parallel.dp=3"))
    assert ledger_of(config).entries[:2] == written
    assert {entry.payload["chunk"] for entry in ledger_of(config).entries} == {
        reads[5][0],
        reads[7][-1],
        reads[13][0],
    }
    assert hashes(config) == replayed(config, whole, 16)
    assert [line["step"] for line in series(config.run_dir)] == list(range(1, 17))
    assert_losses_are_told_exactly(config)


def test_a_holder_that_was_taken_over_writes_no_entry(root: Path, corpus: Path) -> None:
    """F37: stopped right after one entry, woken up when the run's next term is another's."""
    config = config_of(root, corpus, "zombie", *QUARANTINE, "train.steps=16", "checkpoint.every_steps=0")
    reads = chunks_in_order(resolve(config))
    flip(corpus, [reads[5][0], reads[13][0]])
    failed: list[BaseException] = []

    def train() -> None:
        try:
            go(config, env={"FAULTS": "ledger.saved:stop"})
        except RankError as error:
            failed.append(error)

    zombie = threading.Thread(target=train)
    zombie.start()
    until = time.monotonic() + 60
    while not ledger_of(config).entries:
        assert time.monotonic() < until, "no chunk was quarantined"
        time.sleep(0.05)
    written = ledger_of(config).entries
    Lease(config.run_dir).open_term(None)
    (rank,) = [entry["pid"] for entry in pids.read(config.run_dir) if entry["role"] == "rank"]
    while pids.state(rank, pids.kernel_start(rank)) != "T":
        time.sleep(0.01)
    os.kill(rank, signal.SIGCONT)
    zombie.join()
    assert "another process took this run over" in str(failed[0])
    assert "term 1 to be the newest, as the edit ledger is to be written" in str(failed[0])
    assert "found: term 2" in str(failed[0])
    assert ledger_of(config).entries == written


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_damaged_chunk_of_packed_rows_is_always_allowed(root: Path, tmp_path: Path, ranks: int) -> None:
    """To the order a chunk is then a block of rows: all that read a damaged chunk of the corpus go at once."""
    whole, corpus, bad = packed_corpora(tmp_path)
    # More than an epoch, so that each block is read; a budget of no block but what one chunk spoils.
    settings = [*PACKED, "data.bad_chunk_budget=0.001", f"parallel.dp={ranks}"]
    config = config_of(root, corpus, f"packed-{ranks}", *settings, "train.steps=40")
    spoilt = packed_of(whole).blocks_of(bad)
    assert len(spoilt) > 1
    assert packed_of(whole).blocks * packed_of(whole).rows_per_block < 8 * 40
    flip(corpus, [bad])
    go(config)
    entries = ledger_of(config).entries
    assert [entry.payload["chunk"] for entry in entries] == spoilt
    assert len({entry.from_row for entry in entries}) == 1
    assert not {entry.payload["substitute"] for entry in entries} & set(spoilt)
    assert hashes(config) == replayed(config, whole, 40)
    assert_losses_are_told_exactly(config)
    edits, _ = log(config.run_dir)
    assert f"quarantine: source words: block {spoilt[0]} is quarantined from row" in str(edits[0])
    assert {event["unit"] for event in read_events(config.run_dir) if event["kind"] == "quarantine"} == {"block"}


def test_a_second_damaged_chunk_of_packed_rows_is_within_the_budget_or_told_in_blocks(
    root: Path, tmp_path: Path
) -> None:
    _, corpus, bad = packed_corpora(tmp_path)
    packed = packed_of(corpus)
    spoilt = [packed.blocks_of(chunk) for chunk in (bad, bad + 12)]
    count, most = len({*spoilt[0], *spoilt[1]}), max(map(len, spoilt))
    assert count > most
    flip(corpus, [bad, bad + 12])
    settings = [*PACKED, "train.steps=24", "data.bad_chunk_budget=0.001"]
    config = config_of(root, corpus, "packed-two", *settings)
    with pytest.raises(RankError, match="more blocks of source `words` are damaged than the run may replace") as error:
        go(config)
    written = {entry.payload["chunk"] for entry in ledger_of(config).entries}
    assert written in [set(each) for each in spoilt], "one of them, whole"
    told = re.search(
        rf"  expected: (\d+) of {packed.blocks} blocks at most \(data\.bad_chunk_budget=0\.001\)\n  found: {count} "
        r"quarantined\n  do: .* allow more: data\.bad_chunk_budget=(\S+) is enough for these",
        str(error.value),
    )
    assert told is not None, str(error.value)
    assert int(told[1]) <= most
    enough = config_of(root, corpus, "packed-two", *settings, f"data.bad_chunk_budget={told[2]}")
    go(enough)
    assert {entry.payload["chunk"] for entry in ledger_of(enough).entries} == {*spoilt[0], *spoilt[1]}
    assert len(series(enough.run_dir)) == 24


def test_a_chunk_of_packed_rows_is_quarantined_by_the_number_that_verify_tells(root: Path, tmp_path: Path) -> None:
    """Under the default policy: the run stops at the chunk, the user gives it up, and the run goes on."""
    whole, corpus, bad = packed_corpora(tmp_path)
    spoilt = packed_of(whole).blocks_of(bad)
    flip(corpus, [bad])
    config = config_of(root, corpus, "by-hand", *PACKED, "data.bad_chunks=fail", "train.steps=24")
    with pytest.raises(RankError, match=rf"chunk {bad} is damaged"):
        go(config)
    (command,) = repair_report(corpus, survey(corpus))["order_edits"]
    assert command.split()[-3:] == ["quarantine", "SOURCE", str(bad)]
    dry = edit(config.run_dir, "quarantine", ["words", str(bad)], dry_run=True)
    assert ledger_of(config).entries == ()
    made = edit(config.run_dir, "quarantine", ["words", str(bad)])
    assert [each.to_json() for each in made] == [each.to_json() for each in dry]
    assert [each.entry.payload["chunk"] for each in made] == spoilt
    assert ledger_of(config).entries == tuple(each.entry for each in made)
    assert "source words: block" in str(made[0])
    go(config)
    assert hashes(config) == replayed(config, whole, 24)
    for argument, words in (
        (str(bad), "the chunk is quarantined already"),
        (str(packed_of(whole).corpus.chunks), "has no such chunk"),  # of the corpus: there are more blocks
    ):
        with pytest.raises(ConfigError, match=words):
            edit(config.run_dir, "quarantine", ["words", argument])
    corpus.rename(corpus.parent / "away")
    edits, _ = log(config.run_dir)
    assert f"quarantine: source words, block {spoilt[0]}, substitute " in str(edits[0])


def test_a_chunk_whose_packed_rows_fill_no_block_costs_nothing_and_the_budget_holds_for_blocks(
    root: Path, tmp_path: Path
) -> None:
    lengths = [20 + 7 * (i % 11) for i in range(300)]
    first = document_corpus(tmp_path / "c", [lengths], chunk_tokens=64)
    document_corpus(tmp_path / "c" / "gen-0001", [[70]], chunk_tokens=64, parent=first)
    packed = pack(Corpus.open(tmp_path / "c"), 64)
    last = packed.corpus.chunks - 1
    assert packed.blocks_of(last) == []
    config = config_of(root, tmp_path / "c", "left-over", *PACKED, "data.bad_chunk_budget=0")
    enter(check(config))
    with pytest.raises(ConfigError, match=f"no block of packed rows reads chunk {last} of source `words`"):
        edit(config.run_dir, "quarantine", ["words", str(last)])
    assert len(edit(config.run_dir, "quarantine", ["words", "40"])) == len(packed.blocks_of(40))
    with pytest.raises(DataError, match="more blocks of source `words` are damaged"):
        edit(config.run_dir, "quarantine", ["words", "100"])
    quarantined = [entry for entry in ledger_of(config).entries if entry.kind == "quarantine"]
    assert len(quarantined) == len(packed.blocks_of(40)), "of the second one, nothing"


def test_chunks_of_a_shard_that_is_cut_are_given_up_by_hand(root: Path, whole: Path, corpus: Path) -> None:
    """Under the default policy a cut shard is no corpus to open, unless its chunks are given up."""
    config = config_of(root, corpus, "cut", "eval.rows=6", "data.window_chunks=2", "train.steps=4")
    enter(check(config))
    shard = shards(corpus)[2]  # 44 chunks
    os.truncate(shard, shard.stat().st_size - 30_000)
    (damage,) = survey(corpus).damage
    assert len(damage.chunks) > 1
    with pytest.raises(DataError, match="is cut short, overgrown or missing"):
        edit(config.run_dir, "skip", ["1"])
    for chunk in damage.chunks:
        edit(config.run_dir, "quarantine", ["words", str(chunk)])
    assert [entry.payload["chunk"] for entry in ledger_of(config).entries] == list(damage.chunks)
    go(config)
    assert hashes(config) == replayed(config, whole, 4)


@pytest.mark.slow
def test_in_a_pipeline_every_stage_reads_the_substitute(root: Path, whole: Path, corpus: Path) -> None:
    place = ("engine=pipe", "parallel.pp=2", "parallel.dp=2")
    config = config_of(root, corpus, "pipeline", *QUARANTINE, "train.steps=8", *place)
    reads = chunks_in_order(resolve(config))
    flip(corpus, [reads[2][0], reads[6][-1]])
    go(config)
    assert {entry.payload["chunk"] for entry in ledger_of(config).entries} == {reads[2][0], reads[6][-1]}
    assert hashes(config) == replayed(config, whole, 8)


@pytest.mark.slow
def test_on_ray_damage_is_replaced_and_a_stopped_reader_is_named(tmp_path: Path, whole: Path, corpus: Path) -> None:
    """Damage before and while readers run; then the only reader stands still for a while, and the run says so."""
    settings = [*QUARANTINE, "launch.backend=ray", "parallel.dp=2", "eval.every_steps=0", "checkpoint.every_steps=100"]
    settings += ["train.steps=300"]
    config = config_of(tmp_path, corpus, "ray", *settings)
    reads = chunks_in_order(resolve(config))
    later = reads[149][-1]
    assert later not in chain(*reads[:149])  # beyond all that may be read ahead at the first step
    flip(corpus, [reads[20][0]])
    run = Run(tmp_path, "ray", corpus, settings)
    run.start()
    run.wait_for_step(1)
    flip(corpus, [later])
    run.wait_for_step(160)
    (reader,) = run.pids("reader")
    os.kill(reader, signal.SIGSTOP)
    run.wait_for(lambda: stands_still(run))
    os.kill(reader, signal.SIGCONT)
    assert run.finish() == 0, run.output()
    assert {entry.payload["chunk"] for entry in ledger_of(config).entries} == {reads[20][0], later}
    assert hashes(config) == replayed(config, whole, 300)
    assert_losses_are_told_exactly(config)
    remarks = [event["text"] for event in read_events(config.run_dir) if event["kind"] == "remark"]
    assert [text for text in remarks if "of it for `queue`: readers are busy, dead or asked too late" in text], remarks
    waits = [(line["data_wait_s"], line["data_wait_queue_s"]) for line in run.steps()]
    assert max(waits)[1] > 0.8 * max(waits)[0] > 0.4
