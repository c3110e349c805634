"""An object store slower than the saves: what is being copied is not removed here, and nothing else piles up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmscale import durable
from fmscale.config import CheckpointConfig, Config, RunConfig
from fmscale.errors import MachineError
from fmscale.observe.heartbeat import Heartbeat
from fmscale.training.checkpoint_format import Commit
from fmscale.training.lease import Lease
from fmscale.training.remote_store import RemoteStore
from fmscale.training.upload import Uploader, under_copy, uploaded
from tests.checkpoints import store_of
from tests.s3_server import BUCKET, Proxy, Request
from tests.savers import Rig, rig


def config_of(run_dir: Path) -> Config:
    run = RunConfig(root=str(run_dir.parent), name=run_dir.name)
    return Config(run=run, checkpoint=CheckpointConfig(remote=f"s3://{BUCKET}/runs", remote_timeout_s=60))


@contextmanager
def copying(run_dir: Path, parent: Commit | None = None) -> Iterator[Rig]:
    """A saver that keeps one checkpoint, and beside it an uploader."""
    config = config_of(run_dir)
    remote = RemoteStore(config.checkpoint.remote, run_dir, 20)
    term = Lease(run_dir).open_term(parent, announce=remote.open_term)
    with (
        rig(run_dir, term, parent, keep=1) as saving,
        Heartbeat(run_dir, 0) as heart,
        Uploader(config, 0, term, parent, heart),
    ):
        yield saving


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name[5:13]) for path in (run_dir / "checkpoints").iterdir())


def test_what_is_being_copied_stays_until_it_has_arrived_and_then_goes(tmp_path: Path, server: Proxy) -> None:
    run_dir = tmp_path / f"slow{random.getrandbits(32):x}"
    asked, let_go = threading.Event(), threading.Event()

    def waits(request: Request) -> None:
        if request.method == "PUT" and "step-00000001" in request.path and not asked.is_set():
            asked.set()
            let_go.wait(30)

    server.fate = waits
    with copying(run_dir) as r:
        r.save(1)
        assert asked.wait(20)
        for step in range(2, 7):
            r.save(step)
            r.saver.finish()
            assert steps(run_dir) == [1, step], "the one in copy and the newest, however many saves come meanwhile"
        let_go.set()
        wait_until(lambda: len(r.events("upload")) == 2)
        wait_until(lambda: not under_copy(run_dir, 1))
        r.save(7)
        r.saver.finish()
        assert steps(run_dir)[-1] == 7
        assert len(steps(run_dir)) <= 2
    assert [(event["name"][:13], event["error"]) for event in r.events("upload")] == [
        (f"step-{step:08d}", None) for step in (1, 6, 7)
    ]
    newest = store_of(run_dir).newest_valid()
    assert newest is not None
    assert uploaded(config_of(run_dir), newest)


def test_no_copy_is_lost_to_a_race_with_the_saves(
    tmp_path: Path, server: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow at just the wrong moment: between the look for the newest and the claim of it."""
    replace = durable.replace

    def slowly(path: Path, content: bytes) -> None:
        if path.name == "claim.json":
            time.sleep(random.random() / 10)
        replace(path, content)

    monkeypatch.setattr(durable, "replace", slowly)
    run_dir = tmp_path / f"race{random.getrandbits(32):x}"
    server.fate = lambda request: time.sleep(random.random() / 50)
    with copying(run_dir) as r:
        deadline, step = time.monotonic() + 30, 0
        while step < 60 or len(r.events("upload")) < 2:  # 60 saves of a fast disk may be done before the first copy is
            assert time.monotonic() < deadline
            step += 1
            r.save(step)
            r.saver.finish()
            assert len(steps(run_dir)) <= 2
    copies = r.events("upload")
    assert {event["error"] for event in copies} == {None}
    assert len(copies) < step, "the store was slower than the saves"
    assert copies[-1]["name"][:13] == f"step-{step:08d}"


def test_what_a_killed_term_was_copying_is_spared_no_more(tmp_path: Path, server: Proxy) -> None:
    run_dir = tmp_path / f"killed{random.getrandbits(32):x}"
    with copying(run_dir) as r:
        r.save(1)
        r.saver.finish()
    (claim := run_dir / "upload" / "claim.json").write_text('{"term": 1, "name": "step-00000001.t0001"}')
    assert under_copy(run_dir, 1) == ["step-00000001.t0001"]
    assert not under_copy(run_dir, 2)
    claim.unlink()
    assert not under_copy(run_dir, 1), "a run without an object store"


def test_a_run_directory_that_cannot_be_read_ends_the_copies_aloud(tmp_path: Path, server: Proxy) -> None:
    run_dir = tmp_path / f"gone{random.getrandbits(32):x}"
    config = config_of(run_dir)
    remote = RemoteStore(config.checkpoint.remote, run_dir, 20)
    term = Lease(run_dir).open_term(None, announce=remote.open_term)
    (run_dir / "checkpoints").write_text("no directory")
    unread = pytest.raises(MachineError, match=r"did not reach the object store[\s\S]*Not a directory: .*checkpoints")
    with unread, Heartbeat(run_dir, 0) as heart, Uploader(config, 0, term, None, heart):
        pass
