"""Reader actors on a real Ray: the bytes of the in-process loader, also while readers are killed with SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray

from fmscale.config import Config
from fmscale.corpus import readers
from fmscale.corpus.batch import Batch
from fmscale.corpus.loader import LocalLoader
from fmscale.corpus.readers import RayLoader, start_readers
from fmscale.corpus.replay import replay
from fmscale.corpus.shards import DamagedChunk
from fmscale.corpus.sources import open_run_data
from fmscale.errors import MachineError
from fmscale.observe import pids
from tests.corpora import damage, make_corpus, run_config
from tests.laws import restore_at_every_step, same, same_global_batches, token_stream
from tests.three_sources import publish, three_sources

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

MIXED = {"web": 0.7, "books": 0.3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    make_corpus(root / "web", chunks=11, seed=1)
    make_corpus(root / "books", chunks=5, heldout=2, seed=2)
    return root


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    # A directory with a short name: a Unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def actors(root: Path) -> list[Any]:
    """Two readers that any test of the module may ask, and none may kill."""
    return start_readers(run_config(root, MIXED, readers_per_node=2), root)


def loader(config: Config, actors: list[Any], rank: int = 0) -> RayLoader:
    return RayLoader(actors, config, open_run_data(config), rank)


def local(config: Config, steps: int, rank: int = 0) -> list[Batch]:
    own = LocalLoader(config, open_run_data(config), rank)
    try:
        return list(islice(own.batches(0), steps))
    finally:
        own.close()


def pids_of(run_dir: Path, count: int) -> list[int]:
    """Process numbers of the living readers, once there are `count`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(found := living(run_dir)) == count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{count} living readers expected in {pids.read(run_dir)}")


def living(run_dir: Path) -> list[int]:
    return [entry["pid"] for entry in pids.read(run_dir) if entry["role"] == "reader" and pids.alive(entry)]


def test_the_same_global_batches_for_any_number_of_ranks(root: Path, actors: list[Any]) -> None:
    def batches(world: int, rank: int) -> Iterator[Batch]:
        return loader(run_config(root, MIXED, dp=world), actors, rank).batches(0)

    hashes = same_global_batches(batches, steps=3, worlds=(1, 2, 3))
    config = run_config(root, MIXED)
    assert hashes == same_global_batches(lambda world, rank: iter(local(config, 3)), steps=3, worlds=(1,))


def test_going_on_at_any_step_gives_the_batches_of_the_whole_run(root: Path, actors: list[Any]) -> None:
    restore_at_every_step(loader(run_config(root, MIXED), actors).batches, 10, steps=6)


@pytest.mark.parametrize(("request_bytes", "part_bytes"), [(1, 100), (1000, 300), (1 << 20, 1 << 20)])
def test_the_size_of_requests_does_not_show(
    root: Path, actors: list[Any], monkeypatch: pytest.MonkeyPatch, request_bytes: int, part_bytes: int
) -> None:
    """Batches asked for row by row, in parts, and many at a time."""
    monkeypatch.setattr(readers, "REQUEST_BYTES", request_bytes)
    monkeypatch.setattr(readers, "PART_BYTES", part_bytes)
    config = run_config(root, MIXED, dp=3)
    for rank in range(3):
        found = list(islice(loader(config, actors, rank).batches(0), 5))
        assert all(map(same, found, local(config, 5, rank)))


@pytest.mark.parametrize(("request_bytes", "group"), [(1, 1), (4000, 6), (1 << 30, readers.REQUEST_BATCHES)])
@pytest.mark.parametrize("ahead", [1, 4])
def test_the_next_request_is_under_way_before_the_last_batch_of_one_is_handed_out(
    root: Path, actors: list[Any], monkeypatch: pytest.MonkeyPatch, request_bytes: int, group: int, ahead: int
) -> None:
    monkeypatch.setattr(readers, "REQUEST_BYTES", request_bytes)
    requested: list[int] = []
    request = RayLoader._request

    def counted(self: RayLoader, asks: list[Any]) -> list[Any]:
        requested.append(len(asks))
        return request(self, asks)

    monkeypatch.setattr(RayLoader, "_request", counted)
    batches = loader(run_config(root, MIXED, prefetch_batches=ahead), actors).batches(0)
    for handed_out in range(1, 2 * readers.REQUEST_BATCHES + 3):
        next(batches)
        assert sum(requested) - handed_out >= ahead, "the step after this one waits for its whole request"
        assert sum(requested) - handed_out < max(ahead, group) + group, "more is requested than the settings allow"
    assert set(requested) == {group}


def test_held_out_batches_are_those_of_the_local_loader(root: Path, actors: list[Any]) -> None:
    config = run_config(root, MIXED, dp=2, seq_len=32)
    own = LocalLoader(config, open_run_data(config), 1)
    expected = list(own.heldout_batches())
    found = list(loader(config, actors, 1).heldout_batches())
    assert len(found) == len(expected) > 0
    assert all(map(same, found, expected))


def test_kill_9_of_the_only_reader_again_and_again_changes_no_batch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "REQUEST_BYTES", 1)
    config = run_config(root, MIXED)
    only = start_readers(config, tmp_path, register=pids.register)
    batches, found, killed = loader(config, only).batches(0), [], set()
    for step in range(20):
        if step in (3, 9, 15):
            (pid,) = pids_of(tmp_path, 1)
            killed.add(pid)
            if step == 9:  # it dies holding questions: stopped first, so that they pile up in front of it
                os.kill(pid, signal.SIGSTOP)
                threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
            else:
                os.kill(pid, signal.SIGKILL)
        found.append(next(batches))
    assert len(killed) == 3, "Ray did not start the reader again"
    assert all(map(same, found, local(config, 20)))
    ray.kill(only[0])


def test_another_reader_answers_for_a_dead_one(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader is stopped where it stands (it lives, so Ray does nothing): its questions go to the other."""
    monkeypatch.setattr(readers, "ASK_ANOTHER_AFTER_S", 0.1)
    monkeypatch.setattr(readers, "REQUEST_BYTES", 1)
    config = run_config(root, MIXED, readers_per_node=2)
    pair = start_readers(config, tmp_path, register=pids.register)
    batches = loader(config, pair).batches(0)
    found = [next(batches)]
    stuck = pids_of(tmp_path, 2)[0]
    os.kill(stuck, signal.SIGSTOP)
    try:
        found += islice(batches, 7)
        assert all(map(same, found, local(config, 8)))
        ray.kill(pair[0], no_restart=True)
        ray.kill(pair[1], no_restart=True)
        with pytest.raises(
            MachineError, match=r"no reader is left to answer(.*\n)*.*goes on from its newest checkpoint"
        ):
            list(islice(batches, 20))
    finally:
        os.kill(stuck, signal.SIGCONT)


def test_where_no_reader_answers_the_rank_reads_by_itself(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only one is stopped where it stands, and goes on later; the batches are the same."""
    monkeypatch.setattr(readers, "SILENCE_S", 1.0)
    monkeypatch.setattr(readers, "ASK_ANOTHER_AFTER_S", 0.1)
    monkeypatch.setattr(readers, "REQUEST_BYTES", 1)
    config = run_config(root, MIXED, readers_per_node=1)
    told: list[str] = []
    only = start_readers(config, tmp_path, register=pids.register)
    batches = RayLoader(only, config, open_run_data(config), 0, told.append).batches(0)
    found = [next(batches)]
    (stuck,) = pids_of(tmp_path, 1)
    os.kill(stuck, signal.SIGSTOP)
    try:
        found += islice(batches, 4)
        assert told == [
            "data rank 0 reads by itself: none of 1 readers has answered for 1 s; look at Ray's disk (`df`), its "
            "store (`ray memory`) and the readers' logs"
        ]
    finally:
        os.kill(stuck, signal.SIGCONT)
    while len(told) == 1:
        found.append(next(batches))
        assert len(found) < 1000, "it is asked again"
    assert told[1:] == ["data rank 0 reads by itself no more"]
    assert all(map(same, found, local(config, len(found))))


def test_a_damaged_chunk_is_the_data_error_that_names_it(tmp_path: Path) -> None:
    make_corpus(tmp_path / "web", chunks=4)
    config = run_config(tmp_path, {"web": 1.0})
    data = open_run_data(config)
    damage(tmp_path / "web", chunk=1)
    actors = start_readers(config, tmp_path)
    with pytest.raises(DamagedChunk, match="chunk 1 is damaged") as error:
        list(islice(RayLoader(actors, config, data, 0).batches(0), 8))
    assert (error.value.split, error.value.chunk, error.value.corpus) == ("train", 1, tmp_path / "web")
    assert len(str(error.value).splitlines()) <= 6, "a traceback of Ray's in the message"
    ray.kill(actors[0])


def test_a_closed_loader_ends(root: Path, actors: list[Any]) -> None:
    ray_loader = loader(run_config(root, MIXED), actors)
    batches = ray_loader.batches(0)
    next(batches)
    ray_loader.close()
    assert list(batches) == []


# ------------------------------------------------- the thousand batches of tests/unit/test_thousand_batches.py


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def eight(three: Path) -> Iterator[list[Any]]:
    """Readers of the three corpora, written down below `three`."""
    started = start_readers(three_sources(three, readers_per_node=8), three, register=pids.register)
    yield started
    for actor in started:
        ray.kill(actor)


def test_a_thousand_batches_through_one_to_eight_readers(three: Path, eight: list[Any]) -> None:
    config = three_sources(three)
    steps = [open_run_data(config).order.steps.step(number) for number in range(1, 1001)]
    streams = set()
    for count in range(1, 9):
        own = three_sources(three, dp=2 if count == 5 else 1, prefetch_batches=count)
        ranks = [loader(own, eight[:count], rank) for rank in range(own.parallel.dp)]
        shares = zip(*(islice(rank.batches(0), 1000) for rank in ranks), strict=True)
        streams.add((*(stream := token_stream(steps, shares)).hashes, stream.sha256))
    assert len(streams) == 1
    assert stream.hashes == [record["batch_hash"] for record in replay(config, 1, 1000, dp=1)]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_readers_die_and_others_ranks_go_on_without_a_row_lost_or_repeated(
    three: Path, eight: list[Any], monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """At random rows one of the readers is killed with SIGKILL; other ranks go on with other micro-batches and readers,
    from up to three steps before."""
    monkeypatch.setattr(readers, "ASK_ANOTHER_AFTER_S", 0.1)
    rng, last = random.Random(kills), 50 * kills
    config = three_sources(three, steps=last)
    steps = open_run_data(config).order.steps
    shares: dict[int, tuple[Batch, ...]] = {}
    position, killed = 0, set()
    for stop in [*sorted(rng.sample(range(5, last), kills)), last]:
        settings = {
            "dp": rng.choice((1, 2, 3, 5)),
            "micro_batch": rng.randint(1, 3),
            "prefetch_batches": rng.randint(1, 5),
        }
        own = three_sources(three, steps=last, **settings)
        some = rng.sample(eight, rng.randint(2, 8))
        ranks = [loader(own, some, rank).batches(steps.rows_after(position)) for rank in range(own.parallel.dp)]
        victim = rng.choice(living(three))
        for number in range(position + 1, stop + 1):
            if number == (position + stop) // 2 + 1 and len(killed) < kills:
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
            shares[number] = tuple(next(rank) for rank in ranks)
        position = stop if stop == last else max(0, stop - rng.randint(0, 3))
    assert len(killed) == kills
    stream = token_stream(map(steps.step, range(1, last + 1)), (shares[n] for n in range(1, last + 1)))
    assert stream.hashes == [record["batch_hash"] for record in replay(config, 1, last, dp=1)]
