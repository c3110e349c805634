"""Who does the tasks of a preparation: this process, or Ray tasks on any number of nodes.

A task whose worker or node dies is given to another one. The only module of the pipeline that knows Ray, which it never
starts.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from data_pipeline.plan import Work
from data_pipeline.progress import Done
from data_pipeline.web import PRIVATE_HOSTS
from fmscale.errors import ConfigError, FmscaleError, MachineError

RETRIES = 3
"""Times that a task is given to another worker after its worker or node was lost."""

Stage = Callable[[Work, int], Done]


class Workers(Protocol):
    """Who does the tasks. This is the whole surface."""

    def each(self, stage: Stage, work: Work, tasks: Sequence[int]) -> Iterator[Done]:
        """Do every task; yield what each has done, in any order."""
        ...


class InProcess:
    """Workers: this process, one task after another."""

    def each(self, stage: Stage, work: Work, tasks: Sequence[int]) -> Iterator[Done]:
        return (stage(work, task) for task in tasks)


class OnRay:
    """Workers: up to `limit` Ray tasks at a time."""

    def __init__(self, limit: int | None) -> None:
        import ray

        self._limit = limit or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def each(self, stage: Stage, work: Work, tasks: Sequence[int]) -> Iterator[Done]:
        import ray

        remote = ray.remote(num_cpus=1, max_retries=0)(_call)  # counted here: Ray has no bound for want of memory
        # Workers have a working directory of their own, and an environment. Sent once: a million signed URLs are large.
        there = ray.put(Work(work.directory.absolute(), work.queries))
        allowed = os.environ.get(PRIVATE_HOSTS, "")
        waiting = list(reversed(tasks))
        running: dict[Any, int] = {}
        losses: Counter[int] = Counter()
        try:
            while waiting or running:
                while waiting and len(running) < self._limit:
                    task = waiting.pop()
                    running[remote.remote(stage, there, task, allowed)] = task
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    task = running.pop(reference)
                    try:
                        amount = _result(reference)
                    except _Lost as loss:
                        losses[task] += 1
                        if losses[task] > RETRIES:
                            raise _gave_up(work, task, str(loss)) from loss
                        waiting.append(task)
                    else:
                        yield amount
        except BaseException as error:
            # Not at an interrupt: whoever is interrupted leaves Ray next, which ends them, and Ray may abort if a task
            # that is being cancelled by force is not yet pending.
            for reference in running if not isinstance(error, KeyboardInterrupt) else ():
                ray.cancel(reference, force=True)
            raise


def _call(stage: Stage, work: Work, task: int, allowed: str) -> Done:
    if not work.is_here():
        raise MachineError(
            "a node of the Ray cluster does not have the directory of the corpus",
            expected=f"{work.directory} on a disk that all nodes share",
            found=f"no such directory on {socket.gethostname()}",
            do="set output to a shared disk (NFS, Lustre, a mounted volume), or mount it on that node",
        )
    os.environ[PRIVATE_HOSTS] = allowed
    return stage(work, task)


class _Lost(Exception):
    """Where a task ran, or what it returned, is gone; done again elsewhere it may well succeed."""


def _result(reference: Any) -> Done:
    """What the task returned. Raises what the task raised, or _Lost with the name of Ray's exception."""
    import ray

    try:
        done: Done = ray.get(reference)
        return done
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FmscaleError | OSError):
            raise error.cause from None  # as if it had happened here
        raise
    except ray.exceptions.RayError as error:  # of a worker, its node, its memory, or an object on them
        raise _Lost(type(error).__name__) from error


def _gave_up(work: Work, task: int, found: str) -> MachineError:
    first = work.plan().inputs.tasks[task][0]
    return MachineError(
        f"task {task} lost its worker {RETRIES + 1} times",
        expected="nodes that stay, with memory for about ten times task_bytes a worker",
        found=f"{found} at {work.plan().inputs.files[first.file].name}, byte {first.start}",
        do="run the same command with fewer workers or a smaller task_bytes; done tasks are kept",
    )


def workers_of(count: int | None) -> Workers:
    """Never starts Ray: how a cluster begins, and who may join it, is the launcher's business."""
    if count is not None and count < 0:
        raise ConfigError(
            "the number of workers is negative",
            expected="0 (all in this process) or more; none stands for all CPUs of the cluster",
            found=f"workers={count}",
            do="set 1 or more, or leave workers out",
        )
    ray = sys.modules.get("ray")  # what is not imported is not connected
    if count != 0 and ray is not None and ray.is_initialized():
        return OnRay(count)
    if count:
        raise ConfigError(
            "workers need a Ray that is connected",
            expected="ray.init before prepare, as `fmscale data prepare` does",
            found=f"workers={count}, and no Ray",
            do="connect first, or leave workers out: then all is done in this process",
        )
    return InProcess()
