"""Heartbeats: how far each rank is, so that one that stands still is found, named and shown.

A rank overwrites one short line in RUN/heartbeats/rank-NNNNN at each phase of a step; whoever owns the ranks reads the
files and times their changes with its own clock, so no two clocks are compared. A line is a `pwrite` in place (some
microseconds; visible at once on the host, after the attribute cache's time on NFS) and not a mapped page, which a full
disk would turn into SIGBUS. All ranks stop soon after one does, since they wait for it: the missing one is the one
furthest behind, and a process that is stopped (state T) or gone is named before any other.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fmscale.observe.events import utc_now
from fmscale.observe.pids import kernel_start, state

PHASES = ("start", "read", "exchange", "step", "eval", "save", "done")
"""In the order in which they follow each other within a step."""

STACKS_SIGNAL = signal.SIGUSR2
"""Makes a rank write the stacks of all its threads, even if it is stuck in C code or holds the interpreter's lock."""

LINE_BYTES = 512
LOOK_EVERY_S = 0.25


def heartbeat_path(run_dir: Path, rank: int) -> Path:
    return run_dir / "heartbeats" / f"rank-{rank:05d}"


def stacks_path(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"stacks-rank-{rank:05d}.txt"


def last_beat(run_dir: Path, rank: int, incarnation: str) -> dict[str, Any] | None:
    """What a rank of `incarnation` wrote last; None: nothing yet, or it is caught while it is written."""
    try:
        said: dict[str, Any] = json.loads(heartbeat_path(run_dir, rank).read_bytes())
        return said if _belongs(said["incarnation"], incarnation) else None
    except (OSError, ValueError, KeyError):
        return None


def age_s(run_dir: Path) -> float | None:
    """Seconds since any rank of a run moved, for people: by file times, so clocks of two hosts enter. None: never."""
    times = [path.stat().st_mtime for path in (run_dir / "heartbeats").glob("rank-*")]
    return max(0.0, time.time() - max(times)) if times else None


class Heartbeat:
    """A rank's own, made anew at each attempt; `beat` is called by the thread that trains."""

    def __init__(self, run_dir: Path, rank: int, incarnation: str = "", world: int = 1) -> None:
        """incarnation: by default that of the environment. Lines of other incarnations mean nothing to a watch.

        world: ranks of this attempt.
        """
        path, stacks = heartbeat_path(run_dir, rank), stacks_path(run_dir, rank)
        for each in (path, stacks):
            each.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._stacks = open(stacks, "a")  # noqa: SIM115 - as long as the process
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True, chain=False)
        self._who = {
            "rank": rank,
            "world": world,
            "incarnation": incarnation or os.environ.get("FMSCALE_INCARNATION", ""),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": kernel_start(os.getpid()),
        }
        self._count, self._first = 0, 0
        self.beat("start", 0)

    def beat(self, phase: str, step: int) -> None:
        """This rank is alive, in `phase` of `step`. A disk that takes no byte costs the beat, not the run."""
        assert phase in PHASES, f"{phase} is no phase"
        self._count += 1
        if phase != "start":
            self._first = self._first or step
        line = {"count": self._count, "step": step, "phase": phase, "first": self._first, **self._who}
        with contextlib.suppress(OSError):  # `HeartbeatWatch` gives no verdict while the directory takes no writes
            os.pwrite(self._file, json.dumps(line).encode().ljust(LINE_BYTES - 1) + b"\n", 0)
        self._last = (phase, step)

    def again(self) -> None:
        """This rank is alive where it was."""
        self.beat(*self._last)

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The rank has done all it had to, or leaves a last beat where its error was."""
        if error is None:
            self.beat("done", 0)
        os.close(self._file)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank was seen last."""

    rank: int
    phase: str = "start"
    step: int = 0
    silent_s: float = 0.0
    """Since its last beat, by the watch's clock."""
    host: str = ""
    pid: int = 0
    first: bool = True
    """Whether its process has not finished a step yet."""
    state: str = ""
    """Of the process, if it is on this host: R, S, D, T (stopped), Z, or "gone"."""

    @property
    def order(self) -> tuple[int, int]:
        """How far it has come."""
        return (self.step if self.phase != "done" else 1 << 62, PHASES.index(self.phase))

    def __str__(self) -> str:
        at = {"start": "starting", "done": "finished"}.get(self.phase, f"in {self.phase} of step {self.step}")
        process = f", process {self.pid} on {self.host}" if self.pid else ""
        states = {"T": ", stopped by a signal", "t": ", stopped by a debugger", "D": ", waiting for a device or file"}
        more = states.get(self.state, ", gone" if self.state in ("Z", "gone") else "")
        return f"rank {self.rank} ({at} for {self.silent_s:.1f} s{process}{more})"


@dataclass(frozen=True, kw_only=True)
class Hang:
    """The verdict that a run stands still."""

    missing: tuple[Place, ...]
    """Those that the others wait for: stopped or gone, else furthest behind and silent; several where that alone does
    not tell, and then the stacks do."""
    places: tuple[Place, ...]
    """All ranks."""
    limit_s: float

    def __str__(self) -> str:
        shown = ", ".join(str(place) for place in self.missing[:4])
        more = f" and {len(self.missing) - 4} more" if len(self.missing) > 4 else ""
        alone = "is stuck" if len(self.missing) == 1 else "one of them is stuck"
        return f"{shown}{more}: {alone}, no beat for {self.limit_s:g} s"


@dataclass(kw_only=True)
class HeartbeatWatch:
    """Call `look` a few times a second from whoever owns the ranks."""

    run_dir: Path
    world: int
    limit_s: float
    """Longest silence of a rank that has finished a step."""
    start_s: float
    """Longest silence before that (imports, meeting, loading, the first step) and after the last (leaving)."""
    incarnation: str
    elastic: bool = False
    """Whether each attempt may have another number of ranks: then what rank 0 said last; `world` until it has."""
    clock: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    """Rank -> its last line and when it was new."""
    _looked: float = -math.inf

    def look(self) -> Hang | None:
        """The verdict as soon as one rank has been silent for longer than it may, else None. Reads files at most every
        LOOK_EVERY_S seconds."""
        now = self.clock()
        if now - self._looked < LOOK_EVERY_S:
            return None
        late = now - self._looked > max(self.limit_s, 5.0) if self._seen else False
        self._looked = now
        if self.elastic and (first := last_beat(self.run_dir, 0, self.incarnation)) is not None:
            if first["world"] != self.world:
                self.forgive()
            self.world = first["world"]
        places = [self._place(rank, now) for rank in range(self.world)]
        if late:  # this process was stopped itself: what happened meanwhile it cannot tell
            self.forgive()
            return None
        done = [place for place in places if place.phase == "done"]
        waiting = done if len(done) == self.world else [place for place in places if place.phase != "done"]
        overdue = [place for place in waiting if place.silent_s > self._limit(place)]
        if len(done) == self.world and len(overdue) < self.world:
            return None  # the last one to finish may be writing the run's summary
        if not overdue or not self._can_be_trusted():
            return None
        limit = self._limit(overdue[0])
        return Hang(missing=_missing(waiting, limit / 2), places=tuple(places), limit_s=limit)

    def stopped(self) -> list[Place]:
        """Ranks of this host that were stopped by a signal and have not moved for a second: worth a remark at once."""
        now = self.clock()
        quiet = [rank for rank, (_, since) in self._seen.items() if now - since > 1.0]
        return [place for place in (self._place(rank, now) for rank in quiet) if place.state == "T"]

    def forgive(self) -> None:
        """Count every rank's silence from now: after a recovery, or after this process itself stood still."""
        now = self.clock()
        self._seen = {rank: (line, now) for rank, (line, _) in self._seen.items()}

    def _place(self, rank: int, now: float) -> Place:
        try:
            line = heartbeat_path(self.run_dir, rank).read_bytes()
        except OSError:
            line = b""
        before, since = self._seen.get(rank, (None, now))
        if line != before:
            since = now
        self._seen[rank] = (line, since)
        try:
            said = json.loads(line)
            mine = _belongs(said["incarnation"], self.incarnation)
        except (ValueError, KeyError):  # not there yet, or caught while it was written
            mine = False
        if not mine:
            return Place(rank=rank, silent_s=now - since)
        return Place(
            rank=rank,
            phase=said["phase"],
            step=said["step"],
            silent_s=now - since,
            host=said["host"],
            pid=said["pid"],
            first=said["phase"] != "done" and said["step"] <= said["first"],
            state=state(said["pid"], said["started"]) if said["host"] == socket.gethostname() else "",
        )

    def _limit(self, place: Place) -> float:
        return self.start_s if place.first or place.phase == "done" else self.limit_s

    def _can_be_trusted(self) -> bool:
        """Whether the directory takes writes: where it does not, silence says nothing of the ranks."""
        probe = self.run_dir / "heartbeats" / ".watch"
        try:
            probe.write_bytes(b"x" * LINE_BYTES)
        except OSError:
            return False
        return True


def _belongs(name: str, incarnation: str) -> bool:
    """Attempts of an incarnation are named INCARNATION.NUMBER."""
    return name == incarnation or name.startswith(f"{incarnation}.")


def _missing(places: Sequence[Place], silent_s: float) -> tuple[Place, ...]:
    """Of those furthest behind, one that still beats does not stand still: it waits there, for a save of another's."""
    halted = tuple(place for place in places if place.state in ("T", "t", "Z", "gone"))
    last = min(place.order for place in places)
    behind = tuple(place for place in places if place.order == last)
    return halted or tuple(place for place in behind if place.silent_s > silent_s) or behind


def dump_stacks(run_dir: Path, why: str, incarnation: str) -> list[Path]:
    """Have every rank of this host write the stacks of its threads below `why`; the files, once they have grown.

    A stopped process cannot: its file says so. On several hosts, call it on each. Takes at most two seconds.
    """
    expected: dict[Path, int] = {}
    for path in sorted((run_dir / "heartbeats").glob("rank-*")):
        try:
            said = json.loads(path.read_bytes())
            ours = _belongs(said["incarnation"], incarnation) and said["host"] == socket.gethostname()
        except (OSError, ValueError, KeyError):
            continue
        process = state(said["pid"], said["started"]) if ours else "gone"
        if process in ("gone", "Z"):
            continue
        stacks = stacks_path(run_dir, said["rank"])
        can = process not in ("T", "t")
        note = "" if can else "this process is stopped by a signal and cannot show its stacks\n"
        with contextlib.suppress(OSError):
            with stacks.open("a") as file:
                file.write(f"== {utc_now()} process {said['pid']}: {why}\n{note}")
            expected[stacks] = stacks.stat().st_size if can else -1
            if can:
                os.kill(said["pid"], STACKS_SIGNAL)
    until = time.monotonic() + 2.0
    while any(path.stat().st_size <= size for path, size in expected.items()) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.1)  # a stack is written line by line
    return list(expected)
