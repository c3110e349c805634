"""Who holds a run: a lock for the living, term records for the history.

`acquire` takes a flock on `lease/lock`; the kernel frees it when the holder dies, however it dies. `open_term` writes
the next term record exclusively and pins the commit that the new term goes on from; from then on older terms' writers
are refused at commit time and ignored by readers (fmscale/observe/terms.py). So a holder that was only stopped, or cut
off, and wakes up later does no harm; the flock only spares honest users the surprise.

A lock may outlive its holder: a child that was forked while it was open keeps it. The lock's content names the holder
by boot, pid namespace, pid and the kernel's start time; where these say that it is dead, it is taken over at once. A
holder on another host is taken over by a user's word only.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmscale.durable import fsync_directory, publish_new, temporary_name
from fmscale.errors import RunHeldError
from fmscale.observe import pids
from fmscale.observe.events import utc_now
from fmscale.observe.heartbeat import age_s
from fmscale.observe.terms import Term, load_term, newest_term, term_numbers, term_path
from fmscale.training.checkpoint_format import Commit, damaged, read_commit


class Lease:
    """The hold on one run directory. Its lock goes with the process (or `release`); term records stay for ever."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self.directory = self.run_dir / "lease"
        self._lock: int | None = None

    def acquire(self, *, take_over: bool = False) -> None:
        """Take the lock. Raises RunHeldError naming the holder (host, pid, since when) if a live process has it.

        take_over: take it from a live holder too, which may be stopped or cut off. Only for a user who says so.
        """
        assert self._lock is None, "this lease is held already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(self.directory):
            self._acquire(self.directory / "lock", take_over)

    def _acquire(self, path: Path, take_over: bool) -> None:
        while True:
            opened = temporary_name(path) if take_over else path
            descriptor = os.open(opened, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held_by = os.pread(descriptor, 4096, 0)
                os.close(descriptor)
                if _is_dead(held_by):
                    take_over = True
                    continue
                raise _held(self.run_dir, held_by) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
            os.fsync(descriptor)
            if take_over:
                os.replace(opened, path)
            if _same_file(descriptor, path):
                self._lock = descriptor
                return
            os.close(descriptor)  # somebody took over between our open and our lock

    @contextmanager
    def held(self, *, take_over: bool = False) -> Iterator[None]:
        """`acquire`, the block, `release`."""
        self.acquire(take_over=take_over)
        try:
            yield
        finally:
            self.release()

    def still_held(self) -> bool:
        """Whether the lock is still this object's; False after another process took over."""
        return self._lock is not None and _same_file(self._lock, self.directory / "lock")

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def open_term(
        self,
        parent: Commit | None,
        *,
        holder: str = "",
        time: str = "",
        announce: Callable[[int, bytes], None] = lambda term, record: None,
    ) -> int:
        """Begin the next term, going on from `parent` (None: from nothing), and return its number.

        To roll back, pass an older commit. holder and time: for the record; this process and now by default.
        announce: is given number and record before they count here, and may refuse (fmscale/training/remote_store.py).
        Raises CheckpointError if `parent` is no commit of this run, RunHeldError if another process opens the term too.
        """
        if parent is not None:
            directory = self.run_dir / "checkpoints" / parent.name
            if read_commit(directory).commit_hash != parent.commit_hash:
                raise damaged(directory, "COMMIT.json", "another commit", f"commit {parent.commit_hash}")
        created = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        if created:
            fsync_directory(self.run_dir)
        term = self.newest_term() + 1
        record = Term(
            term=term,
            parent=parent.name if parent else None,
            parent_hash=parent.commit_hash if parent else None,
            parent_step=parent.step if parent else 0,
            parent_term=parent.term if parent else 0,
            holder=holder or f"{socket.gethostname()}:{os.getpid()}",
            time=time or utc_now(),
        )
        announce(term, record.to_bytes())
        try:
            publish_new(term_path(self.run_dir, term), record.to_bytes())
        except FileExistsError:
            other = load_term(self.run_dir, term)
            raise RunHeldError(
                f"another process opened term {term} of this run in the same moment",
                expected=f"one process at a time on {self.run_dir}",
                found=f"{other.holder} since {other.time}",
                do="stop one of the two",
            ) from None
        return term

    def newest_term(self) -> int:
        """0 before the first."""
        return newest_term(self.run_dir)

    def terms(self) -> list[Term]:
        """All term records, oldest first. Raises CheckpointError for a damaged one."""
        return [load_term(self.run_dir, term) for term in term_numbers(self.run_dir)]


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Two that find the same holder dead do not both take over. Held for the moment of taking the lock only."""
    descriptor = os.open(directory / ".taking", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)  # not inherited by forked children, unlike a flock
        yield
    finally:
        os.close(descriptor)


def _me() -> dict[str, Any]:
    """This process, so that another one of this machine can tell whether it is alive."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": utc_now(), **_machine()}
    me["started"] = pids.kernel_start(os.getpid())
    if job := os.environ.get("SLURM_JOB_ID"):
        me["job"] = job
    return me


def _machine() -> dict[str, str]:
    """What a process id is unique in, until the next boot; empty off Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def _is_dead(content: bytes) -> bool:
    """Whether the holder that wrote `content` is provably gone: of this boot and pid namespace, and not there."""
    try:
        holder = json.loads(content)
        here = {"boot": holder["boot"], "namespace": holder["namespace"]} == _machine()
        return here and pids.state(holder["pid"], holder["started"]) in ("gone", "Z")
    except (ValueError, KeyError, TypeError):
        return False


def _held(run_dir: Path, content: bytes) -> RunHeldError:
    try:
        holder = json.loads(content)
        job = f", Slurm job {holder['job']}" if "job" in holder else ""
        found = f"process {holder['pid']} on {holder['host']}{job}, since {holder['since']}"
        age = age_s(run_dir)
        found += f"; its ranks last moved {age:.0f} s ago" if age is not None else "; none of its ranks has moved yet"
        stop = f"wait for it, or stop it (kill {holder['pid']} on {holder['host']})"
    except (ValueError, KeyError, TypeError):
        found, stop = "a process that has not written its name yet", "wait for it"
    return RunHeldError(
        "another process holds this run",
        expected=f"no live process on {run_dir}",
        found=found,
        do=f"{stop}; if it is stuck or cut off: --take-over",
    )
