"""A run's checkpoints and terms in an object store: the second copy that a lost machine or cluster goes on from.

Keys are the names of the run directory, below `checkpoint.remote`/RUN, and so are the rules: COMMIT.json comes last
and goes first, created by a conditional put; a term record is created in the store before it is created here, so that
of two clusters without a common file system one alone opens a term, and the other's commits are refused from then on.
Choosing and pruning are CheckpointStore's own, on a mirror that holds term records and markers.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fmscale.corpus.ledger import FILE_NAME
from fmscale.durable import fsync_directory, publish_new, replace, temporary_name
from fmscale.errors import CheckpointError, MachineError, RunHeldError
from fmscale.observe.faults import fault_point
from fmscale.observe.terms import load_term, term_numbers, term_path
from fmscale.s3 import Bucket
from fmscale.training.block_file import storage
from fmscale.training.checkpoint import CheckpointStore, Report
from fmscale.training.checkpoint_format import (
    MARKER,
    Commit,
    check_file,
    damaged,
    foreign_files,
    parse_directory_name,
    read_rank,
)
from fmscale.training.file_record import FileCheck, FileRecord


class TakenOverError(CheckpointError):
    """Another process goes on with this run: this one is to stop."""


class RemoteStore:
    """What stands of the run `run_dir` below `url`. Not for several threads at once.

    Every method raises MachineError where the store does not answer within `limit_s` of the last `restart_clock`.
    """

    def __init__(self, url: str, run_dir: Path, limit_s: float, *, bucket: Bucket | None = None) -> None:
        self.run_dir, self.limit_s = Path(run_dir), limit_s
        self.bucket = bucket or Bucket(f"{url.rstrip('/')}/{self.run_dir.name}")
        self.restart_clock()

    def restart_clock(self) -> None:
        self.bucket.within(self.limit_s)

    # --- terms

    def open_term(self, term: int, record: bytes) -> None:
        """Create the record of `term` in the store, exclusively. Raises RunHeldError if another holder was first.

        Raises MachineError, too, for a store that takes a conditional put and ignores the condition.
        """
        key, probe = _term_key(term), "lease/probe"
        self.bucket.put_new(probe, record)
        if self.bucket.put_new(probe, record + b"again") is None:
            raise MachineError(
                "the object store ignores conditions, so it cannot keep two clusters apart",
                expected="412 for a put with If-None-Match on a key that exists",
                found=f"{self.bucket.url}/{probe} was overwritten",
                do="use a store that knows conditional puts, or set checkpoint.remote= to none",
            )
        if (other := self.bucket.put_new(key, record)) is not None:
            raise RunHeldError(
                f"another process opened term {term} of this run in the object store",
                expected=f"one process at a time on {self.bucket.url}",
                found=other[:300].decode(errors="replace").strip(),
                do="stop one of the two, or start another run with run.name=NEW",
            )
        ledger = self.run_dir / FILE_NAME
        if ledger.exists():  # edits that no checkpoint has seen yet
            self.bucket.put_new(_ledger_key(term), ledger.read_bytes())
        self.bucket.abort_uploads()

    def ledger_of(self, term: int) -> bytes | None:
        """The run's edit ledger as `term` began; None if that is not there."""
        return self.bucket.get(_ledger_key(term))

    def unknown_terms(self) -> Sequence[int]:
        """Terms that the store knows and this run directory does not. Raises CheckpointError as `sync_terms`."""
        there = {term for key in self.bucket.list("lease/") if (term := _term_of(key))}
        here = set(term_numbers(self.run_dir))
        if there - here:
            for term in there & here:
                if (other := self.bucket.get(_term_key(term))) != term_path(self.run_dir, term).read_bytes():
                    raise self._two_runs(term, other or b"")
        return sorted(there - here)

    def sync_terms(self) -> None:
        """Both sides have all term records. Raises CheckpointError where two records of one term differ."""
        there = {term for key in self.bucket.list("lease/") if (term := _term_of(key))}
        for term in sorted(there | set(term_numbers(self.run_dir))):
            path = term_path(self.run_dir, term)
            local = path.read_bytes() if path.exists() else None
            remote = self.bucket.put_new(_term_key(term), local) if local else self.bucket.get(_term_key(term))
            if local is not None and remote is not None:
                raise self._two_runs(term, remote)
            if local is None and remote is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                publish_new(path, remote)
                load_term(self.run_dir, term)

    def _two_runs(self, term: int, other: bytes) -> CheckpointError:
        return CheckpointError(
            f"term {term} of this run has two records: here and in the object store stand two different runs",
            expected=f"{self.bucket.url}/{_term_key(term)} as in {term_path(self.run_dir, term)}",
            found=f"{len(other):,} other bytes",
            do="start another run with run.name=NEW; or, if the record here is damaged, remove it",
        )

    def fence(self, term: int) -> None:
        """Raises CheckpointError unless `term` is the newest in the store, TakenOverError where a newer one is."""
        newest = max((_term_of(key) for key in self.bucket.list("lease/")), default=0)
        if newest != term:
            kind = TakenOverError if newest > term else CheckpointError
            raise kind(
                f"term {term} may not write checkpoints of this run to the object store",
                expected=f"the newest term, {newest}" if newest else f"its record in {self.bucket.url}/lease",
                found=f"term {term}",
                do="stop this process: another has taken the run over" if newest > term else "restore that record",
            )

    # --- reading

    @contextmanager
    def mirror(self) -> Iterator[CheckpointStore]:
        """What stands in the store, in the shape of a run directory with term records and markers, without tensors."""
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder) / self.run_dir.name
            for key in self.bucket.list():
                part = key.split("/")
                name = part[1] if part[0] == "checkpoints" and len(part) == 3 and parse_directory_name(part[1]) else ""
                if not name and not _term_of(key):
                    continue
                (run_dir / key).parent.mkdir(parents=True, exist_ok=True)
                if not name or part[2] == MARKER:
                    (run_dir / key).write_bytes(self.bucket.get(key) or b"")
            store = CheckpointStore(run_dir / "checkpoints")
            store.address = f"{self.bucket.url}/checkpoints"
            yield store

    def fetch(self, commit: Commit, reader: int, readers: int) -> int:
        """Bring the files that fall to `reader` of `readers` here, checked; bytes that were read from the store.

        Files that are here and hold are not read again. `publish` makes them a checkpoint once every reader is done.
        Raises CheckpointError for one that is missing or not as it was written.
        """
        directory, got = self.run_dir / "checkpoints" / commit.name, 0
        with storage(directory, 4096):
            directory.mkdir(parents=True, exist_ok=True)
        there = self.bucket.list(f"checkpoints/{commit.name}/")
        for rank in range(reader, commit.world, readers):
            got += self._fetch_file(directory, commit.ranks[rank], there)
            record = read_rank(directory, rank, step=commit.step, term=commit.term, listed=commit.ranks[rank])
            got += self._fetch_file(directory, record.data, there)
        return got

    def _fetch_file(self, directory: Path, record: FileRecord, there: dict[str, int]) -> int:
        path, key = directory / record.file, f"checkpoints/{directory.name}/{record.file}"
        if path.exists():
            try:
                check_file(directory, record)
                return 0
            except CheckpointError:
                pass  # it stays until there is a better one
        if there.get(key) != record.bytes:
            raise self._damaged(directory, record, f"{there.get(key, 0):,} bytes")
        temporary = temporary_name(path)
        temporary.unlink(missing_ok=True)
        try:
            with storage(path, record.bytes):
                check = FileCheck(record)
                self.bucket.fetch(key, temporary, record.bytes, check)
                if problem := record.wrong(check.hashes()):
                    raise self._damaged(directory, record, *problem)
                os.replace(temporary, path)
                fsync_directory(directory)
        finally:
            temporary.unlink(missing_ok=True)
        return record.bytes

    def publish(self, commit: Commit) -> None:
        """Mark the fetched files as a checkpoint of this run. Raises CheckpointError for a foreign file among them."""
        directory, content = self.run_dir / "checkpoints" / commit.name, commit.to_bytes()
        for error in foreign_files(directory, commit.world, marker=True):
            raise error
        with storage(directory / MARKER, len(content)):
            replace(directory / MARKER, content)
            fsync_directory(directory.parent)

    def _damaged(self, directory: Path, record: FileRecord, found: str, expected: str = "") -> CheckpointError:
        expected = expected or f"{record.bytes:,} bytes"
        return damaged(Path(directory.name), record.file, f"{found} in {self.bucket.url}", expected)

    # --- writing

    def push(self, commit: Commit, writer: int, writers: int) -> int:
        """Copy the files that fall to `writer` of `writers` into the store; bytes that were written.

        Raises CheckpointError for a file that is gone (pruned meanwhile) or has other bytes than it was written with.
        """
        directory, sent = self.run_dir / "checkpoints" / commit.name, 0
        there = self.bucket.list(f"checkpoints/{commit.name}/")
        for rank in range(writer, commit.world, writers):
            record = read_rank(directory, rank, step=commit.step, term=commit.term, listed=commit.ranks[rank])
            for file in (record.data, commit.ranks[rank]):
                key = f"checkpoints/{commit.name}/{file.file}"
                if there.get(key) == file.bytes:
                    continue  # an earlier process had come so far
                fault_point("remote.before_file", writer)
                try:
                    good = self.bucket.put_file(key, directory / file.file, file.bytes, FileCheck(file))
                except FileNotFoundError as error:
                    raise damaged(directory, file.file, "pruned before it was in the object store") from error
                if not good:
                    raise damaged(directory, file.file, "other bytes than were written")
                sent += file.bytes
        return sent

    def commit(self, commit: Commit, term: int) -> None:
        """Make what all writers pushed a checkpoint of the store, once; `term` is this process's own.

        Raises CheckpointError for files that are missing; TakenOverError where a newer term or another commit stands.
        """
        self.fence(term)
        there = self.bucket.list(f"checkpoints/{commit.name}/")
        directory = self.run_dir / "checkpoints" / commit.name
        records = [
            read_rank(directory, rank, step=commit.step, term=commit.term, listed=listed)
            for rank, listed in enumerate(commit.ranks)
        ]
        for file in (*commit.ranks, *(record.data for record in records)):
            if (size := there.get(f"checkpoints/{commit.name}/{file.file}")) != file.bytes:
                raise self._damaged(directory, file, f"{size or 0:,} bytes")
        fault_point("remote.before_commit")
        if self.bucket.put_new(f"checkpoints/{commit.name}/{MARKER}", commit.to_bytes()) is not None:
            raise TakenOverError(
                f"the object store has another commit of {commit.name}",
                expected="one commit per step and term",
                found=f"{self.bucket.url}/checkpoints/{commit.name}/{MARKER}",
                do="let one process train a run",
            )
        fault_point("remote.after_commit")
        self.fence(term)

    def prune(self, keep: int, term: int, report: Report, *, keep_every: int = 0) -> Sequence[str]:
        """Remove from the store what the rule of CheckpointStore.prune says, markers first; names."""
        with self.mirror() as there:
            newest = next(there.candidates(lambda text: None), None)
            if newest is None or newest.term != term:
                return ()  # nothing is removed before this term has a checkpoint there
            names = there.prune(keep, newest, report, keep_every=keep_every, read_back=False)
        for name in names:
            keys = self.bucket.list(f"checkpoints/{name}/")
            self.bucket.delete(sorted(keys, key=lambda key: not key.endswith(f"/{MARKER}")))
        return names


def _term_key(term: int) -> str:
    return f"lease/{term_path(Path(), term).name}"


def _ledger_key(term: int) -> str:
    return f"lease/ledger-{term:08d}.jsonl"


def _term_of(key: str) -> int:
    """0 for a key of something else."""
    match = re.fullmatch(r"lease/term-(\d{8})\.json", key)
    return int(match[1]) if match else 0
