"""Who holds a run: one live process, freed by any death, taken over only on request."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from fmscale.errors import RunHeldError
from fmscale.observe.heartbeat import Heartbeat, heartbeat_path
from fmscale.observe.terms import Term
from fmscale.training.lease import Lease


def holder(run_dir: Path) -> int:
    """A live process that holds the run; its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        lease = Lease(run_dir)
        lease.acquire()
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    assert os.read(reader, 1) == b"x"
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    pid = holder(tmp_path)
    try:
        with pytest.raises(RunHeldError, match="another process holds this run") as caught:
            Lease(tmp_path).acquire()
        message = str(caught.value)
        assert f"process {pid} on {os.uname().nodename}, since 20" in message
        assert len(message.splitlines()) <= 6
        assert caught.value.exit_code == 5
    finally:
        end(pid)
    Lease(tmp_path).acquire()  # kill -9 has freed it


def forked_keeper(run_dir: Path) -> tuple[int, int]:
    """(holder, its forked child); the child keeps the lock's file open, as a child forked without exec does."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        lease = Lease(run_dir)
        lease.acquire()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, str(child).encode())
        time.sleep(60)
        os._exit(0)
    return pid, int(os.read(reader, 20))


@pytest.mark.parametrize("how", ["dead", "zombie"])
def test_a_dead_holder_is_taken_over_at_once_even_if_its_lock_lives_on(tmp_path: Path, how: str) -> None:
    pid, child = forked_keeper(tmp_path)
    try:
        with pytest.raises(RunHeldError, match=f"process {pid}"):
            Lease(tmp_path).acquire()
        os.kill(pid, signal.SIGKILL)
        if how == "dead":
            os.waitpid(pid, 0)
        else:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        mine = Lease(tmp_path)
        mine.acquire()
        assert mine.still_held()
        with pytest.raises(RunHeldError, match=f"process {os.getpid()}"):
            Lease(tmp_path).acquire()
    finally:
        os.kill(child, signal.SIGKILL)
        if how == "zombie":
            os.waitpid(pid, 0)


@pytest.mark.parametrize("change", [{"boot": "x"}, {"namespace": "x"}, {"host": "x", "boot": "x"}, {"started": None}])
def test_a_holder_of_another_machine_or_namespace_is_not_judged(tmp_path: Path, change: dict[str, str]) -> None:
    """Its pid means nothing here; only a user may take over."""
    pid, child = forked_keeper(tmp_path)
    lock = tmp_path / "lease" / "lock"
    holder = json.loads(lock.read_bytes())
    assert holder["pid"] == pid
    end(pid)
    try:
        lock.write_bytes(json.dumps({k: v for k, v in {**holder, **change}.items() if v is not None}).encode())
        with pytest.raises(RunHeldError, match="another process holds this run"):
            Lease(tmp_path).acquire()
        Lease(tmp_path).acquire(take_over=True)
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_holders_job_and_its_ranks_last_beat_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with Lease(tmp_path).held():
        with pytest.raises(RunHeldError, match=r"Slurm job 4711, since 20.*; none of its ranks has moved yet"):
            Lease(tmp_path).acquire()
        Heartbeat(tmp_path, 0)
        os.utime(heartbeat_path(tmp_path, 0), (time.time() - 100, time.time() - 90))
        with pytest.raises(
            RunHeldError, match=r"its ranks last moved 90 s ago\n  do: wait for it, or stop it.*--take-over"
        ):
            Lease(tmp_path).acquire()


def test_the_lock_is_released_with_the_block_and_with_the_object(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    with lease.held(), pytest.raises(RunHeldError, match=f"process {os.getpid()}"):
        Lease(tmp_path).acquire()
    with pytest.raises(KeyError), lease.held():
        raise KeyError
    with Lease(tmp_path).held():
        assert not lease.still_held()


def test_a_stopped_holder_is_taken_over_on_request_only(tmp_path: Path) -> None:
    pid = holder(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    try:
        mine, third = Lease(tmp_path), Lease(tmp_path)
        with pytest.raises(RunHeldError):
            mine.acquire()
        mine.acquire(take_over=True)
        assert mine.still_held()
        with pytest.raises(RunHeldError, match=f"process {os.getpid()}"):
            third.acquire()
        third.acquire(take_over=True)
        assert third.still_held()
        assert not mine.still_held()
    finally:
        end(pid)


def test_a_holder_without_a_name_is_still_a_holder(tmp_path: Path) -> None:
    with Lease(tmp_path).held():
        (tmp_path / "lease" / "lock").write_bytes(b"")
        with pytest.raises(RunHeldError, match="has not written its name yet"):
            Lease(tmp_path).acquire()


def test_terms_count_up_and_say_who_and_from_where(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    assert lease.newest_term() == 0
    assert lease.terms() == []
    assert [lease.open_term(None) for _ in range(3)] == [1, 2, 3]
    assert lease.newest_term() == 3
    records = lease.terms()
    assert [record.term for record in records] == [1, 2, 3]
    assert records[0].holder == f"{os.uname().nodename}:{os.getpid()}"
    assert (records[0].parent, records[0].parent_step) == (None, 0)
    raw = json.loads((tmp_path / "lease" / "term-00000003.json").read_bytes())
    assert (raw["format"], raw["version"]) == ("fmscale-term", 1)
    assert Term(**{k: v for k, v in raw.items() if k not in ("format", "version")}) == records[2]


def test_a_lock_that_was_replaced_between_opening_and_locking_it_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, other, calls = fcntl.flock, Lease(tmp_path), []

    def flock(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            other.acquire(take_over=True)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    mine = Lease(tmp_path)
    with pytest.raises(RunHeldError, match=f"process {os.getpid()}"):
        mine.acquire()
    assert other.still_held()
    assert not mine.still_held()
