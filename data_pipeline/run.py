"""A recipe, carried out: in this process, or by any number of workers of a Ray that is connected. The same bytes.

    prepare(recipe)    pin inputs -> for each phase: scan all tasks -> join -> then tokenise all tasks -> finish

What is done is not done again. Tasks are cut by input bytes and pass on their results as files (plan.py), so workers
only decide who does what when.
If this process dies, the same command goes on from the files. A lock keeps a second process out of the same output.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.document import Document, through
from data_pipeline.find import CORPUS
from data_pipeline.finish import DROPPED, finish
from data_pipeline.holdout import check_size
from data_pipeline.inputs import Inputs, pin
from data_pipeline.join import join, part, pass_at_end_of
from data_pipeline.phases import Phase, phases
from data_pipeline.pipeline import Recipe, check, fields, is_heldout
from data_pipeline.plan import Plan, Work
from data_pipeline.progress import follow
from data_pipeline.quarantine import check_quarantine
from data_pipeline.read import EXPLAIN, check_bad_share, read_piece
from data_pipeline.registry import entries, steps_of
from data_pipeline.scan import scan
from data_pipeline.tokenise import tokenise
from data_pipeline.workers import Stage, Workers, workers_of
from fmscale.corpus.manifest import MARKER, Manifest
from fmscale.errors import ConfigError, DataError, MachineError
from fmscale.tokenizer import Kind, Tokenizer
from fmscale.tokenizer_training import train as train_on_texts

DISK_FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO)
"""Of a disk that is written; inputs have errors of their own (DamagedInput)."""


def prepare(recipe: Recipe, *, workers: int | None = None) -> Manifest:
    """Make the corpus that `recipe` describes at `recipe.output`; where it is, only hash the inputs to see that it is.

    workers: tasks at a time on the Ray that is connected; None takes all its CPUs, or this process where none is
    connected; 0 does all in this process.
    Raises ConfigError, DataError (docs/data.md), MachineError (workers keep dying).
    """
    check(recipe)
    pool = workers_of(workers)
    inputs = _pin(recipe.inputs, recipe.task_bytes)
    if not inputs.tasks:
        raise DataError(
            "the inputs hold no document",
            expected="one at least",
            found=f"files without a byte: {len(inputs.files)}, the first of them {inputs.files[0].name}",
            do="look whether they were written to their end, or name others",
        )
    check_size(recipe, inputs.bytes)
    fingerprint = Tokenizer.load(recipe.tokenizer).fingerprint
    plan = Plan.of(recipe, inputs, fingerprint)
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
        nonlocal records
        for piece, _ in zip(pieces, follow("sample", (p.stop - p.start for p in pieces), pinned.bytes), strict=True):
            for document in read_piece(pinned.files[piece.file], piece, names, recipe.max_bad_run):
                records += 1
                yield document

    for document in through(documents(), steps, lambda rejected: dropped.update([rejected.dropped])):
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
        others = ", ".join(f"{count} {kind}" for kind, count in inputs.left_out.items() if kind != CORPUS)
        if others:
            print(f"left out, of no known kind: {others}", file=sys.stderr)
        if corpora := inputs.left_out.get(CORPUS):
            print(f"left out, as what was made of input before: {corpora} {CORPUS}", file=sys.stderr)
    return inputs


def _phase(pool: Workers, work: Work, number: int, phase: Phase) -> None:
    """Scan what is not scanned, carry out the pass that the phase ends with."""
    waiting = [task for task in work.tasks if not work.scan_file(number, task).exists()]
    _do(pool, phase.title, functools.partial(scan, phase=number), work, waiting)
    if not number:
        check_quarantine(work)
    if work.joined_file(number).exists():
        return
    for _ in pool.each(functools.partial(part, phase=number), work, pass_at_end_of(work, number).parts(work)):
        pass
    join(work, number)


def _do(pool: Workers, title: str, stage: Stage, work: Work, tasks: Sequence[int]) -> None:
    if tasks:
        total = sum(work.plan().task_input_bytes(task) for task in tasks)
        for _ in follow(title, pool.each(stage, work, tasks), total):
            pass


@contextlib.contextmanager
def _storage(output: Path) -> Iterator[None]:
    """Raises MachineError where the block meets a disk that is full or cannot be written, or a step a file it lacks."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS and not _is_below(error.filename, output):
            raise MachineError(
                "a file or a connection failed while the corpus was prepared; what is done is kept",
                expected="what the recipe's steps open to be there and readable on every node",
                found=f"{type(error).__name__}: {error.strerror or error} ({error.filename or 'no file is named'})",
                do="mend that, and run the same command; `fmscale --debug` shows where it happened",
            ) from error
        free = shutil.disk_usage(output).free if output.exists() else 0
        raise MachineError(
            "the corpus could not be written; what is done is kept",
            expected=f"room at {output} for the tokens, and in between for the texts",
            found=f"{error.strerror or error}; {free:,} bytes free",
            do="make room (or mend that file system) and run the same command: it goes on from what is done",
        ) from error


def _is_below(name: object, output: Path) -> bool:
    """Whether an error's file is the output's; workers name it by its absolute path."""
    return isinstance(name, str | Path) and Path(name).absolute().is_relative_to(output.absolute())


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
    if manifest.recipe.get("plan") == plan.id and plan.recipe.keep_dropped and not (output / DROPPED).is_dir():
        raise DataError(
            f"{output} was made without its dropped documents",
            expected=f"{output / DROPPED} (keep_dropped=true)",
            found="the corpus of this recipe, finished, and no such directory",
            do="choose another output, or remove that directory if nothing uses it; or leave keep_dropped out",
        )
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
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise MachineError(
            "the output cannot be written",
            expected=f"output={output}: a directory that this user may make and write, on a disk with room",
            found=f"{error.strerror or error} ({error.filename or directory})",
            do="set output to another place, or mend that one's permissions or mount",
        ) from error
    with lock:
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
