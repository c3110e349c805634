"""Real ranks for tests: `run_ranks(function, world, *args)` calls `function(rank, world, *args)` in `world` processes.

The processes are joined by gloo over a file store (no ports to collide) and forked from a server that has imported
torch and DeepSpeed once, so that a world starts in tenths of a second instead of five. Whatever goes wrong ends the
whole world: the exception that came first is raised here with its traceback, and a world that is silent longer than
`timeout_s` is killed, with the stack on which each rank stood.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_scratch = ""
"""In a rank: a directory of this try of its world alone."""
_TELL = signal.SIGRTMIN
"""Has a rank write down its stacks: the signals of users are those of the run."""
_CONTEXT = multiprocessing.get_context("forkserver")
# Everything slow that an engine imports. A thread pool does not survive a fork, but importing starts none.
_CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"])


_MEETING = "while the ranks were meeting"
_HANDSHAKE = "Gloo connectFullMesh failed"


class RankError(AssertionError):
    """A world did not return: the text names the rank, and holds its traceback or stack."""


class MeetingError(RankError):
    """The ranks could not form a process group; the function was not called."""


@dataclass
class _Rank:
    number: int
    process: BaseProcess
    pipe: Connection
    stack: Path

    def receive(self) -> tuple[float | None, Any]:
        """(None, result), or (time of failure, its description)."""
        try:
            failed_at, value = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join(timeout=2.0)
            # Time 0: what its peers then complain about is the consequence.
            return 0.0, f"died without a word, exit code {self.process.exitcode}"
        return failed_at, value

    def standing(self) -> str:
        """The stack on which the rank stands."""
        with contextlib.suppress(OSError, TypeError):
            os.kill(self.process.pid, _TELL)  # type: ignore[arg-type]
            time.sleep(0.2)
        return self.stack.read_text(errors="replace") if self.stack.exists() else "(no stack)"


def run_ranks(
    function: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = 60.0,
    collective_timeout_s: float | None = None,
    threads: int = 1,
) -> list[Any]:
    """Results of `function(rank, world, *args)`, by rank. Function, arguments and results must be picklable.

    timeout_s is for all of it; collective_timeout_s for one operation of the process group, by default as long.

    Raises RankError: the first rank that raised or died, or after `timeout_s` seconds all that had not returned.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed chooses at import, which is in the fork server
    call = (collective_timeout_s or timeout_s, threads, function)
    for _ in range(4):
        # Seen now and then beside other busy Ray clusters: gloo's first handshake was closed or refused by a peer.
        # A run is restarted by its supervisor then; a test asks something else and tries again.
        with contextlib.suppress(MeetingError):
            return _world(call, world, args, timeout_s)
    return _world(call, world, args, timeout_s)


def meeting_store(name: object, world: int) -> Any:
    """In a rank: a store where all ranks meet, of this try alone: a used one has the addresses of dead ranks."""
    import torch.distributed as dist

    return dist.FileStore(f"{_scratch}/meeting-{name}", world)  # type: ignore[attr-defined]


def _world(call: tuple[Any, ...], world: int, args: tuple[Any, ...], timeout_s: float) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        ranks: list[_Rank] = []
        try:
            for number in range(world):
                ours, theirs = _CONTEXT.Pipe(duplex=False)
                process = _CONTEXT.Process(target=_run, args=(theirs, scratch, *call, number, world, args), daemon=True)
                process.start()
                theirs.close()
                ranks.append(_Rank(number, process, ours, Path(scratch) / f"stack-{number}"))
            return _collect(ranks, time.monotonic() + timeout_s, timeout_s)
        finally:
            for rank in ranks:
                rank.process.join(timeout=2.0)
                rank.process.kill()
                rank.process.join()
                rank.pipe.close()


def _collect(ranks: list[_Rank], deadline: float, timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[tuple[float, int, str]] = []
    while len(results) < len(ranks) and not failures:
        waiting = [rank for rank in ranks if rank.number not in results]
        if not wait([rank.pipe for rank in waiting], timeout=max(0.0, deadline - time.monotonic())):
            stacks = "\n".join(f"--- rank {rank.number}\n{rank.standing()}" for rank in waiting)
            for rank in ranks:
                rank.process.kill()
            missing = [rank.number for rank in waiting]
            raise RankError(f"ranks {missing} of {len(ranks)} did not return within {timeout_s} s\n{stacks}")
        for rank in waiting:
            if rank.pipe.poll():
                failed_at, value = rank.receive()
                if failed_at is None:
                    results[rank.number] = value
                else:
                    failures.append((failed_at, rank.number, value))
    if failures:
        time.sleep(0.3)  # peers that fail because of the first may have been quicker to say so
        known = {number for _, number, _ in failures} | results.keys()
        for rank in ranks:
            if rank.number not in known and rank.pipe.poll():
                failed_at, value = rank.receive()
                if failed_at is not None:
                    failures.append((failed_at, rank.number, value))
        for rank in ranks:
            rank.process.kill()
        _, number, text = min(failures)
        met = not (all(_MEETING in text for _, _, text in failures) or _HANDSHAKE in text)
        kind = RankError if met else MeetingError
        raise kind(f"rank {number} of {len(ranks)} failed first:\n{text}")
    return [results[rank.number] for rank in ranks]


def _run(
    pipe: Connection,
    scratch: str,
    collective_timeout_s: float,
    threads: int,
    function: Callable[..., Any],
    rank: int,
    world: int,
    args: tuple[Any, ...],
) -> None:
    import faulthandler

    import torch
    import torch.distributed as dist

    global _scratch
    _scratch = scratch
    stack = open(Path(scratch) / f"stack-{rank}", "w")  # noqa: SIM115 (open until the process ends)
    faulthandler.register(_TELL, file=stack)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    torch.set_num_threads(threads)
    gc.freeze()  # DeepSpeed collects garbage a dozen times in a start: not among all that was imported
    meeting = True
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{scratch}/store",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=collective_timeout_s),
        )
        meeting = False
        value = function(rank, world, *args)
        if dist.is_initialized():
            dist.barrier()  # nobody leaves while a peer may still need it
            dist.destroy_process_group()
        pipe.send((None, value))
    except BaseException:
        pipe.send((time.time(), traceback.format_exc() + (_MEETING if meeting else "")))
    finally:
        pipe.close()
