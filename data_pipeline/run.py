"""A recipe, carried out: in this process, or by any number of workers of a Ray that is connected. The same bytes.

    prepare(recipe)    pin inputs -> for each phase: scan all tasks -> join -> then tokenise all tasks -> finish

What is done is not done again. Tasks are cut by input bytes and pass on their results as files (plan.py), so workers
only decide who does what when.
A task whose worker or node dies is given to another one; if this process dies, the same command goes on from the
files. A lock keeps a second process out of the same output. The only module of the pipeline that knows Ray, which it
never starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from data_pipeline import passes
from data_pipeline.document import Document, through
from data_pipeline.finish import finish
from data_pipeline.inputs import Inputs, pin
from data_pipeline.join import join, part
from data_pipeline.phases import Phase, phases
from data_pipeline.pipeline import Recipe, check, fields, is_heldout
from data_pipeline.plan import Plan, Work
from data_pipeline.progress import Done, follow
from data_pipeline.quarantine import check_quarantine
from data_pipeline.read import EXPLAIN, check_bad_share, read_piece
from data_pipeline.registry import entries, steps_of
from data_pipeline.scan import scan
from data_pipeline.tokenise import tokenise
from fmscale.corpus.manifest import MARKER, Manifest
from fmscale.errors import ConfigError, DataError, FmscaleError, MachineError
from fmscale.tokenizer import Kind, Tokenizer
from fmscale.tokenizer import train as train_on_texts

RETRIES = 3
"""Times that a task is given to another worker after its worker or node was lost."""

Stage = Callable[[Work, int], Done]


class Workers(Protocol):
    """Who does the tasks. This is the whole surface."""

    def each(self, stage: Stage, work: Work, tasks: Sequence[int]) -> Iterator[Done]:
        """Do every task; yield what each has done, in any order."""
        ...


def prepare(recipe: Recipe, *, workers: int | None = None) -> Manifest:
    """Make the corpus that `recipe` describes at `recipe.output`; where it is, only hash the inputs to see that it is.

    workers: tasks at a time on the Ray that is connected; None takes all its CPUs, or this process where none is
    connected; 0 does all in this process.
    Raises ConfigError, DataError (docs/data.md), MachineError (workers keep dying).
    """
    check(recipe)
    pool = _workers(workers)
    inputs = _pin(recipe.inputs, recipe.task_bytes)
    fingerprint = Tokenizer.load(recipe.tokenizer).fingerprint
    plan = Plan(replace(recipe, tokenizer=os.path.abspath(recipe.tokenizer)), inputs, fingerprint)
    output = Path(recipe.output)
    if (output / MARKER).exists() and not (output / ".work").exists():
        return _prepared_before(plan, output)
    with _claim(output) as directory:
        if (output / MARKER).exists():  # by a process that was killed while it cleaned up
            return _prepared_before(plan, output)
        with _storage(output):
            work = _begin(plan, directory)
            for number, phase in enumerate(phases(recipe)):
                _phase(pool, work, number, phase)
            waiting = [task for task in work.tasks if not work.write_file(task).exists()]
            _do(pool, "tokenise", tokenise, work, waiting)
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

    recipe: where one is given, its steps are applied, its held-out documents or groups stay out of the sample, and
    its `text_field` counts. What the sample is without is said on stderr.
    Raises DataError and ConfigError like `prepare`, and ConfigError for a vocabulary that cannot be had or two
    different text fields.
    """
    if recipe and text_field not in (Recipe.text_field, recipe.text_field):
        raise ConfigError(
            "the recipe names another text field",
            expected=f"text_field {recipe.text_field}, as in the recipe, or none beside it",
            found=text_field,
            do="leave the option out, or correct the recipe's text_field",
        )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    texts = _texts(recipe or Recipe(text_field=text_field, heldout_fraction=0.0), _pin(inputs))
    return train_on_texts(texts, out, vocab_size, kind, sample_bytes=sample_bytes, threads=threads)


def _texts(recipe: Recipe, pinned: Inputs) -> Iterator[str]:
    """What training may see of `pinned`. Says at the end what was left out; raises DataError if too much was bad."""
    names = fields(recipe)
    steps = steps_of([entry for entry in entries(recipe.steps) if not entry.is_pass])
    pieces = [piece for task in pinned.tasks for piece in task]
    dropped: Counter[str] = Counter()
    records = 0

    def documents() -> Iterator[Document]:
        for piece, _ in zip(pieces, follow("sample", (p.stop - p.start for p in pieces), pinned.bytes), strict=True):
            yield from read_piece(pinned.files[piece.file], piece, names, recipe.max_bad_run)

    for document in through(documents(), steps, dropped):
        records += 1
        if document.dropped:
            continue
        if is_heldout(recipe, document):
            dropped["held out"] += 1
        else:
            yield document.text
    for reason, count in sorted(dropped.items()):
        print(f"not in the sample: {count} of {records} records, {EXPLAIN.get(reason, reason)}", file=sys.stderr)
    check_bad_share(dropped, records, recipe.max_bad_share, recipe.max_bad_run)


def _pin(patterns: Sequence[str], task_bytes: int = 0) -> Inputs:
    inputs = pin(patterns, task_bytes)
    if inputs.left_out:
        others = ", ".join(f"{count} {kind}" for kind, count in inputs.left_out.items())
        print(f"left out, of no known kind: {others}", file=sys.stderr)
    return inputs


def _phase(pool: Workers, work: Work, number: int, phase: Phase) -> None:
    """Scan what is not scanned, carry out the pass that the phase ends with."""
    waiting = [task for task in work.tasks if not work.scan_file(number, task).exists()]
    _do(pool, phase.title or "read", functools.partial(scan, phase=number), work, waiting)
    if not number:
        check_quarantine(work)
    if work.joined_file(number).exists():
        return
    if phase.ends:
        for _ in pool.each(functools.partial(part, phase=number), work, passes.of(phase.ends).parts(work)):
            pass
    join(work, number)


def _do(pool: Workers, title: str, stage: Stage, work: Work, tasks: Sequence[int]) -> None:
    if tasks:
        total = sum(work.plan().task_input_bytes(task) for task in tasks)
        for _ in follow(title, pool.each(stage, work, tasks), total):
            pass


@contextlib.contextmanager
def _storage(output: Path) -> Iterator[None]:
    """Raises MachineError where the block meets a disk that is full or cannot be written."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(output).free if output.exists() else 0
        raise MachineError(
            "the corpus could not be written; what is done is kept",
            expected=f"room at {output} for the tokens, and in between for the texts",
            found=f"{error.strerror or error}; {free:,} bytes free",
            do="make room (or mend that file system) and run the same command: it goes on from what is done",
        ) from error


def _begin(plan: Plan, directory: Path) -> Work:
    """The work directory of `plan`; what an earlier, different plan left beside it is thrown away."""
    work = Work.create(directory, plan)  # anew also for the same plan: the same files may stand elsewhere now
    others = [path for path in directory.iterdir() if path.is_dir() and path != work.directory]
    if others:
        print("the recipe, the inputs or the tokenizer changed: unfinished work starts over", file=sys.stderr)
    for path in others:
        shutil.rmtree(path, ignore_errors=True)  # a worker of a killed run may still be writing there, and harms nobody
    return work


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
        there = Work(work.directory.absolute())  # workers have a working directory of their own
        waiting = list(reversed(tasks))
        running: dict[Any, int] = {}
        losses: Counter[int] = Counter()
        try:
            while waiting or running:
                while waiting and len(running) < self._limit:
                    task = waiting.pop()
                    running[remote.remote(stage, there, task)] = task
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
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _call(stage: Stage, work: Work, task: int) -> Done:
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
        if isinstance(error.cause, FmscaleError):
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


def _workers(count: int | None) -> Workers:
    """Never starts Ray: how a cluster begins, and who may join it, is the launcher's business."""
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
