"""The newest checkpoint goes to the object store in the background; training does not wait, and hears if it fails.

Rank 0's thread looks on the run's file system for a commit of its term that is newer than the one it tried last, and
writes a request there. Each rank's thread polls for requests, copies its share of the files and leaves a word; when all
have, rank 0 creates the marker in the store and prunes there. So at most one checkpoint is under way, saves that come
meanwhile are passed over for the newest, and nothing of this needs a collective operation or a word from the saver.

The one under way is not removed here before it has arrived, however slow the store: before the first byte rank 0
writes its name down (`under_copy`) and looks whether it is still the newest. Only what is not the newest is removed,
and by rank 0 alone, which reads that name after the commit of a newer one; so either sees what the other did.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

from fmscale import durable
from fmscale.config import Config
from fmscale.errors import FmscaleError, MachineError, StopRequested
from fmscale.observe.events import EventLog
from fmscale.observe.heartbeat import Heartbeat
from fmscale.training import records
from fmscale.training.checkpoint_format import MARKER, Commit, parse_directory_name, read_commit
from fmscale.training.history import checkpoint_names
from fmscale.training.remote_store import RemoteStore, TakenOverError

POLL_S = 0.1
DONE, CLAIM = "done", "claim"
"""What was copied last, in RUN/upload/done.json; what is being copied, beside it."""


class Uploader:
    """One rank's part in it, as a context manager around the training; of rank 0 also the decisions.

    Where the block ends well, it waits until the newest checkpoint is in the store, at most two times
    `checkpoint.remote_timeout_s`; rank 0 raises MachineError if it is not, or CheckpointError if another process has
    taken the run over. Where the run was asked to stop, it waits for half of `launch.grace_s` and raises nothing.
    """

    def __init__(self, config: Config, rank: int, term: int, start: Commit | None, heart: Heartbeat) -> None:
        """start: what the run goes on from; it is copied first, unless it came from the store."""
        self._heart = heart
        self._config, self._rank, self._world, self._term = config, rank, config.world_size, term
        self._remote = RemoteStore(config.checkpoint.remote, config.run_dir, config.checkpoint.remote_timeout_s)
        _path(config.run_dir, DONE).parent.mkdir(parents=True, exist_ok=True)
        self._events = EventLog(config.run_dir)
        self._start = start if start and not uploaded(config, start) else None
        self._tried = ""
        self._ending, self._given_up = threading.Event(), threading.Event()
        self._failure: FmscaleError | None = None
        """Of the newest checkpoint that was tried; None once one has succeeded."""
        self._thread = threading.Thread(target=self._lead if rank == 0 else self._follow, daemon=True, name="upload")

    def __enter__(self) -> Uploader:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        asked = isinstance(error, StopRequested)
        if error is not None and not asked:
            self._given_up.set()
            return
        # For one that is under way, and the last; of the time that a run asked to stop has, half.
        self._wait(self._config.launch.grace_s / 2 if asked else 2 * self._remote.limit_s)
        if self._rank > 0:
            self._given_up.set()
            return
        late = self._thread.is_alive()
        self._given_up.set()
        self._write("request", {"number": -1})  # lets the others go
        if asked:
            return
        if isinstance(self._failure, TakenOverError):
            raise self._failure
        if late or self._failure:
            raise MachineError(
                "the last checkpoint did not reach the object store",
                expected=f"it in {self._remote.bucket.url} within {self._remote.limit_s:g} s",
                found=" ".join(str(self._failure or "still under way").split())[:400],
                do="mend the store and start the same command again; the checkpoint is whole in the run directory",
            )

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._thread.is_alive() and (left := until - time.monotonic()) > 0:
            self._heart.again()
            self._thread.join(min(left, 1.0))

    # --- rank 0

    def _next(self) -> str | None:
        """Name of the newest commit of this term, once it is one that was not tried; None at the end."""
        if self._start:
            name, self._start = self._start.name, None
            return name
        while True:
            ending = self._ending.is_set()  # before the look: what is there when the training ends is found
            if self._given_up.is_set():
                return None
            name = self._newest()
            if name and name != self._tried:
                return name
            if ending:
                return None
            self._ending.wait(POLL_S)

    def _newest(self) -> str:
        """Name of the newest commit of this term; empty before the first."""
        root = self._config.run_dir / "checkpoints"
        for name in reversed(checkpoint_names(root)):
            if (parse_directory_name(name) or (0, 0))[1] == self._term and (root / name / MARKER).exists():
                return name
        return ""

    def _lead(self) -> None:
        number = 0
        try:
            while (name := self._next()) is not None:
                self._tried, number = name, number + 1
                self._try(number, name)
        except OSError as error:  # the thread must not end silently
            self._failure = MachineError(f"{error.strerror}: {error.filename}")
            self._say(f"no checkpoint goes to the object store any more: {self._failure}")

    def _try(self, number: int, name: str) -> None:
        begun, before, failed, sent = time.monotonic(), self._remote.bucket.retries, self._failure, 0
        try:
            self._write(CLAIM, {"name": name})
            if self._newest() not in (name, ""):
                return  # it may have been removed before it was claimed
            self._remote.restart_clock()
            sent = self._upload(number, name)
            self._failure = None
        except FmscaleError as error:
            self._failure = error
        except Exception as error:  # the thread must not end silently
            self._failure = MachineError(f"{type(error).__name__}: {error}")
        if isinstance(self._failure, TakenOverError):
            self._learn_of_it()
        if self._failure:
            self._say(f"{name} is not in the object store: {self._failure}")
        elif failed:
            self._say(f"the object store takes checkpoints again: {name} is there")
        self._events.write(
            "upload",
            name=name,
            error=str(self._failure).splitlines()[0] if self._failure else None,
            bytes=sent,
            retries=self._remote.bucket.retries - before,
            seconds=time.monotonic() - begun,
        )
        with contextlib.suppress(OSError):  # then it stays until the next is claimed
            self._write(CLAIM, {"name": ""})

    def _learn_of_it(self) -> None:
        """With the newer term's record here, this process's next save is refused, and that ends the run."""
        try:
            self._remote.sync_terms()
        except FmscaleError as error:
            self._say(f"the newer term's record could not be fetched: {error}")

    def _say(self, text: str) -> None:
        self._events.write("remark", text=text)
        print(text, flush=True)

    def _upload(self, number: int, name: str) -> int:
        """Bytes that all ranks sent."""
        self._remote.fence(self._term)
        commit = read_commit(self._config.run_dir / "checkpoints" / name)
        self._write("request", {"number": number, "name": name})
        sent = self._remote.push(commit, 0, self._world)
        waiting = list(range(1, self._world))
        while waiting:
            for rank in list(waiting):
                word = self._read(_answer(rank))
                if word.get("number") != number:
                    continue
                if word["error"]:
                    raise MachineError(f"rank {rank}: {word['error']}")
                sent += word["bytes"]
                waiting.remove(rank)
            if waiting and time.monotonic() > self._remote.bucket.deadline:
                raise MachineError(
                    f"{commit.name} did not reach the object store in time",
                    expected=f"all files within checkpoint.remote_timeout_s={self._remote.limit_s:g}",
                    found=f"rank {', '.join(map(str, waiting[:8]))} not done",
                    do="look at those ranks' logs, or raise checkpoint.remote_timeout_s",
                )
            time.sleep(POLL_S if waiting else 0)
        sent += records.push(self._remote, commit.name)
        self._remote.commit(commit, self._term)
        rule = self._config.checkpoint
        self._remote.prune(rule.keep, self._term, self._say, keep_every=rule.keep_every_steps)
        durable.replace(
            _path(self._config.run_dir, DONE), json.dumps({"name": commit.name, "hash": commit.commit_hash}).encode()
        )
        return sent

    # --- other ranks

    def _follow(self) -> None:
        done = 0
        while not self._given_up.is_set():
            request = self._read("request")
            if request.get("number") == -1:
                return
            if request.get("number", 0) > done:
                done, sent, problem = request["number"], 0, ""
                try:
                    self._remote.restart_clock()
                    commit = read_commit(self._config.run_dir / "checkpoints" / request["name"])
                    sent = self._remote.push(commit, self._rank, self._world)
                except Exception as error:
                    problem = str(error) or repr(error)
                self._write(_answer(self._rank), {"number": done, "bytes": sent, "error": problem})
            self._given_up.wait(POLL_S)

    # --- words between ranks, by files: the run's directory is common to them

    def _write(self, name: str, word: dict[str, Any]) -> None:
        durable.replace(_path(self._config.run_dir, name), json.dumps({"term": self._term, **word}).encode())

    def _read(self, name: str) -> dict[str, Any]:
        """Empty before the first word of this term."""
        word = _word(self._config.run_dir, name)
        return word if word.get("term") == self._term else {}


def uploaded(config: Config, commit: Commit) -> bool:
    """Whether `commit` is what was copied last to the run's object store; true for a run that has none."""
    return not config.checkpoint.remote or _word(config.run_dir, DONE).get("hash") == commit.commit_hash


def under_copy(run_dir: Path, term: int) -> Collection[str]:
    """Name of the checkpoint that is being copied in `term`, if there is one: it must not be removed."""
    word = _word(run_dir, CLAIM)
    return [word["name"]] if word.get("term") == term and word["name"] else []


def _word(run_dir: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(_path(run_dir, name).read_bytes()))
    except FileNotFoundError:
        return {}


def _path(run_dir: Path, name: str) -> Path:
    return run_dir / "upload" / f"{name}.json"


def _answer(rank: int) -> str:
    return f"rank-{rank:05d}"
