"""A recipe, carried out: in this process, or on Ray with any number of workers. The bytes are the same.

    prepare(recipe)    pin inputs -> scan all tasks -> join -> write all tasks -> finish; what is done is not done again

Tasks are cut by input bytes and pass on their results as files (stages.py), so workers only decide who does what when.
A worker that dies is replaced by Ray; if this process dies, the same command goes on from the files. A lock keeps a
second process out of the same output. The only module of the pipeline that imports Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.document import Document, through
from data_pipeline.inputs import pin
from data_pipeline.pipeline import Recipe, check, fields, is_heldout, load_steps
from data_pipeline.plan import Plan, Work
from data_pipeline.progress import follow
from data_pipeline.read import read_piece
from data_pipeline.stages import finish, join, scan, write
from fmscale.corpus.manifest import MARKER, Manifest
from fmscale.errors import DataError, FmscaleError, MachineError
from fmscale.tokenizer import Kind, Tokenizer
from fmscale.tokenizer import train as train_on_texts

RETRIES = 3
"""Times that a task is given to a new worker after its worker died."""
OBJECT_STORE_BYTES = 100 << 20
"""Of a local Ray: results travel as files, so it holds next to nothing."""

Stage = Callable[[Work, int], int]


class Workers(Protocol):
    """Who does the tasks. This is the whole surface."""

    def each(self, stage: Stage, work: Work, tasks: Sequence[int]) -> Iterator[int]:
        """Do every task; yield the input bytes of each as it is done, in any order."""
        ...


def prepare(recipe: Recipe, *, ray_address: str | None = None, workers: int | None = None) -> Manifest:
    """Make the corpus that `recipe` describes at `recipe.output`; return at once if it is there.

    workers: tasks at a time; 0 does all in this process without Ray, None takes all CPUs of the cluster. A Ray that is
    connected is used and left alone; otherwise `ray_address` is joined, or a local one started and ended.
    Raises ConfigError, DataError (docs/data.md), MachineError (workers keep dying).
    """
    check(recipe)
    inputs = pin(recipe.inputs, recipe.task_bytes)
    if inputs.left_out:
        others = ", ".join(f"{count} {suffix}" for suffix, count in inputs.left_out.items())
        print(f"files of other kinds, left out: {others}", file=sys.stderr)
    fingerprint = Tokenizer.load(recipe.tokenizer).fingerprint
    plan = Plan(replace(recipe, tokenizer=os.path.abspath(recipe.tokenizer)), inputs, fingerprint)
    output = Path(recipe.output)
    if (output / MARKER).exists() and not (output / ".work").exists():
        return _prepared_before(plan, output)
    with _claim(output) as directory:
        if (output / MARKER).exists():  # by a process that was killed while it cleaned up
            return _prepared_before(plan, output)
        work = _begin(plan, directory)
        tasks = range(len(inputs.tasks))
        scans = [task for task in tasks if not work.scan_file(task).exists()]
        writes = [task for task in tasks if not work.write_file(task).exists()]
        with _workers(workers, ray_address) as pool:
            _do(pool, "read", scan, work, scans)
            if not work.join_file.exists():
                join(work)
            _do(pool, "tokenise", write, work, writes)
        manifest = finish(work, output)
    if recipe.heldout_fraction and not manifest.split("heldout").chunks:
        print(f"nothing is held out: no evaluation is possible. {manifest.counts}", file=sys.stderr)
    return manifest


def train_tokenizer(
    inputs: Sequence[str],
    text_field: str = "text",
    out: str | Path = "tokenizer.model",
    vocab_size: int = 32_768,
    kind: Kind = "bpe",
    sample_bytes: int = 100_000_000,
    threads: int = 2,
    recipe: Recipe | None = None,
) -> Tokenizer:
    """Train a tokenizer on a sample of `inputs`, chosen by hash of the text: the same sample for any order of files.

    recipe: where one is given, its steps are applied and its held-out documents or groups stay out of the sample.
    Raises DataError and ConfigError like `prepare`, and ConfigError for a vocabulary that cannot be had.
    """
    recipe = recipe or Recipe(text_field=text_field, heldout_fraction=0.0)
    pinned = pin(inputs)
    names, steps = fields(recipe), load_steps(recipe)

    pieces = [piece for task in pinned.tasks for piece in task]

    def documents() -> Iterator[Document]:
        for piece, _ in zip(pieces, follow("sample", (p.stop - p.start for p in pieces), pinned.bytes), strict=True):
            yield from read_piece(pinned.files[piece.file], piece, names, recipe.max_bad_run)

    kept = (d for d in through(documents(), steps, Counter()) if not d.dropped and not is_heldout(recipe, d))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    texts = (document.text for document in kept)
    return train_on_texts(texts, out, vocab_size, kind, sample_bytes=sample_bytes, threads=threads)


def _do(pool: Workers, title: str, stage: Stage, work: Work, tasks: Sequence[int]) -> None:
    plan = work.plan()
    total = sum(plan.task_input_bytes(task) for task in tasks)
    for _ in follow(title, pool.each(stage, work, tasks), total):
        pass


def _begin(plan: Plan, directory: Path) -> Work:
    """The work directory of `plan`; what an earlier, different plan left there is thrown away."""
    work = Work(directory)
    if work.plan_id() not in ("", plan.id):
        print("the recipe, the inputs or the tokenizer changed: unfinished work starts over", file=sys.stderr)
        for path in [*directory.glob("*.np[yz]"), *directory.glob("*.json"), *directory.glob("parts/*")]:
            path.unlink()
    return Work.create(directory, plan)  # anew also for the same plan: the same files may stand elsewhere now


def _prepared_before(plan: Plan, output: Path) -> Manifest:
    manifest = Manifest.load(output)
    if manifest.recipe.get("plan") != plan.id:
        raise DataError(
            f"{output} holds another corpus",
            expected=f"one of plan {plan.id[:16]}... (this recipe, these inputs, this tokenizer)",
            found=f"plan {str(manifest.recipe.get('plan'))[:16]}...",
            do="choose another output, or remove that directory if nothing uses it",
        )
    return manifest


@contextlib.contextmanager
def _claim(output: Path) -> Iterator[Path]:
    """OUTPUT/.work, locked; removed at the end if the corpus was published. The lock goes with the process."""
    directory = output / ".work"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another process is preparing {output}",
                expected="one at a time",
                found=f"a lock on {directory / 'lock'}",
                do="wait for it, or choose another output",
            ) from None
        try:
            yield directory
        finally:
            if (output / MARKER).exists():
                shutil.rmtree(directory, ignore_errors=True)  # a worker of a killed run may still be writing here


class InProcess:
    """Workers: this process, one task after another."""

    def each(self, stage: Stage, work: Work, tasks: Sequence[int]) -> Iterator[int]:
        return (stage(work, task) for task in tasks)


class OnRay:
    """Workers: up to `limit` Ray tasks at a time."""

    def __init__(self, limit: int | None) -> None:
        import ray

        self._limit = limit or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def each(self, stage: Stage, work: Work, tasks: Sequence[int]) -> Iterator[int]:
        import ray

        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(stage)
        there = Work(work.directory.absolute())  # workers have a working directory of their own
        waiting = list(reversed(tasks))
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._limit:
                    task = waiting.pop()
                    running[remote.remote(there, task)] = task
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    yield _result(reference, running.pop(reference), work)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(reference: Any, task: int, work: Work) -> int:
    import ray

    try:
        return int(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FmscaleError):
            raise error.cause from None  # as if it had happened here
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        first = work.plan().inputs.tasks[task][0]
        raise MachineError(
            f"the worker of task {task} died {RETRIES + 1} times",
            expected="memory for about ten times task_bytes",
            found=f"{type(error).__name__} at {work.plan().inputs.files[first.file].name}, byte {first.start}",
            do="run the same command with fewer workers or a smaller task_bytes; done tasks are kept",
        ) from error


@contextlib.contextmanager
def _workers(count: int | None, address: str | None) -> Iterator[Workers]:
    if count == 0:
        yield InProcess()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield OnRay(count)
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        ray.init(address=address, **quiet)
    else:
        cpus = count or len(os.sched_getaffinity(0))
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
        )
    try:
        yield OnRay(count)
    finally:
        ray.shutdown()
