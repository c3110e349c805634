"""Checkpoints in between, on the node's own disk or in its memory: saved more often, lost with the node.

Format, writers, commit and fences are those of all checkpoints, and so is the host image; only the files stand in
`checkpoint.fast_dir`, a directory for each run. The newest one is kept until a newer one stands in the run directory.
At a start one of the newest term that is newer than what the run directory has is copied there, read whole on the way,
before a term is opened from it: so whatever a term pins stands in the run directory, and losing the fast one costs
steps and nothing else. The price is one shared write at a restart after a crash.

All ranks must see one directory: no rank alone could read what the ranks of other nodes wrote.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch.distributed as dist
import xxhash

from fmscale.config import Config
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.durable import fsync_directory, publish_new
from fmscale.errors import CheckpointError
from fmscale.observe.events import EventLog
from fmscale.observe.faults import fault_point
from fmscale.observe.terms import load_term, newest_term
from fmscale.training.block_file import BLOCK_BYTES, storage, write_blocks
from fmscale.training.checkpoint import CheckpointStore, Report
from fmscale.training.checkpoint_format import (
    MARKER,
    Commit,
    check_file,
    check_names,
    check_size,
    damaged,
    parse_directory_name,
    read_commit,
    read_rank,
)
from fmscale.training.file_record import FileRecord
from fmscale.training.history import checkpoint_names
from fmscale.training.host_memory import in_memory


def _silent(text: str) -> None:
    return None


class FastTier(CheckpointStore):
    """The fast checkpoints of the run whose own ones are `shared`; candidates are those of the newest term.

    The directory carries the run's name and a hash of where the run stands: runs of one name share a node's memory.
    """

    where = "in the fast tier"

    def __init__(self, fast_dir: Path, shared: CheckpointStore) -> None:
        run_dir = shared.run_dir.resolve()
        super().__init__(fast_dir / f"{run_dir.name}-{xxhash.xxh3_64_hexdigest(str(run_dir).encode())[:8]}")
        self.run_dir, self._shared = shared.run_dir, shared
        self.in_memory = in_memory(fast_dir)

    @staticmethod
    def of(config: Config, shared: CheckpointStore, rank: int, control: dist.ProcessGroup) -> FastTier | None:
        """None on every rank, and a remark, where the ranks do not all see the same `checkpoint.fast_dir`."""
        if not config.checkpoint.fast_dir:
            return None
        folder = Path(config.checkpoint.fast_dir)
        seen: list[str] = [""] * dist.get_world_size(control)
        dist.all_gather_object(seen, _identity(folder), group=control)
        if all(seen) and len(set(seen)) == 1:
            return FastTier(folder, shared)
        if rank == 0:
            lacking = [str(rank) for rank, identity in enumerate(seen) if not identity]
            why = f"no such directory on rank {', '.join(lacking[:8])}" if lacking else "ranks see different ones"
            text = f"there are no fast checkpoints in {folder}: {why}"
            EventLog(config.run_dir).write("remark", text=text)
            print(text, flush=True)
        return None

    def _history(self) -> Iterator[tuple[str, Commit | CheckpointError | str]]:
        """What cannot be used is a remark, never an error: a run may lose all of this."""
        newest = newest_term(self.run_dir)
        for name in reversed(checkpoint_names(self.root)):
            yield name, _examine(self.root / name, load_term(self.run_dir, newest).term_hash if newest else "")

    def prune(
        self,
        keep: int,
        newest: Commit,
        report: Report = _silent,
        *,
        keep_every: int = 0,
        read_back: bool = True,
        spare: Collection[str] = (),
    ) -> Sequence[str]:
        """As of all checkpoints, but for one that is kept, and nobody else reads them."""
        return super().prune(1, newest, report, read_back=read_back)

    def clear(self, term: int | None = None) -> None:
        """Remove what stands there, whose use is over; of terms up to `term`, if that is given: a newer holder's stays.

        What does not go is passed over later: it is older than what the run directory has.
        """
        with contextlib.suppress(OSError):
            for name in checkpoint_names(self.root):
                _, of_term = parse_directory_name(name) or (0, 0)
                if term is None or of_term <= term:
                    shutil.rmtree(self.root / name, ignore_errors=True)
            self.root.rmdir()

    # --- into the run directory

    def candidates(self, report: Report = _silent) -> Iterator[Commit]:
        """The commits of the newest term, newest first, but for those that were committed in the run directory too."""

        def tell(text: str) -> None:
            report(f"{text} ({self.where})")

        entries = Ledger.load(self.run_dir / FILE_NAME).entries
        for commit in super().candidates(tell):
            since = entries[len(commit.state["ledger"]) :]
            if any(entry.from_row < commit.rows for entry in since):  # `order edit` knows the run directory only
                tell(f"{commit.name} is passed over: rows that it has trained were edited since")
            elif not (self._shared.root / commit.name / MARKER).exists():
                yield commit

    def copy_share(self, commit: Commit, rank: int, world: int) -> int:
        """Copy the files that fall to `rank` of `world`, each byte read, hashed, written and read back; bytes copied.

        Files that are there and hold stay. Raises CheckpointError for one here that is missing, foreign or damaged,
        MachineError where the run directory's file system fails.
        """
        source, target, copied = self.root / commit.name, self._shared.root / commit.name, 0
        with storage(target, 0):
            target.parent.mkdir(exist_ok=True)
            target.mkdir(exist_ok=True)
            fsync_directory(target.parent)
        try:
            check_names(source, commit.world, marker=True)
            for writer in range(rank, commit.world, world):
                listed = commit.ranks[writer]
                record = read_rank(source, writer, step=commit.step, term=commit.term, listed=listed)
                copied += _copy(source, target, record.data, rank)
                copied += _copy(source, target, listed, rank)
        except OSError as error:
            raise damaged(source, "", error.strerror or "unreadable", "all of its files") from error
        return copied

    def publish(self, commit: Commit, rank: int, copied: int = 0) -> None:
        """Rank 0 makes the copies, of `copied` bytes, a checkpoint of the run once all ranks are done.

        Raises as `copy_share`.
        """
        if rank:
            return
        target = self._shared.root / commit.name
        content = commit.to_bytes()
        with storage(target / MARKER, len(content)):
            check_names(target, commit.world, marker=False)
            fault_point("ckpt.before_commit")
            publish_new(target / MARKER, content)
        fault_point("ckpt.after_commit")
        if read_commit(target) != commit:
            raise damaged(target, MARKER, "another commit", f"commit {commit.commit_hash}")
        EventLog(self.run_dir).write("promote", name=commit.name, bytes=copied)
        print(f"{commit.name} was copied from {self.root}", flush=True)

    def give_up(self, commit: Commit) -> None:
        """Remove the copies of one that does not hold."""
        directory = self._shared.root / commit.name
        if not (directory / MARKER).exists():
            shutil.rmtree(directory, ignore_errors=True)


def _identity(folder: Path) -> str:
    """Of a directory of this machine, up to the next boot; empty if there is none."""
    if not folder.is_dir():
        return ""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not on macOS
        machine = platform.node()
    stat = folder.stat()
    return f"{machine} {stat.st_dev} {stat.st_ino}"


def _examine(directory: Path, term_hash: str) -> Commit | str:
    if not (directory / MARKER).exists():
        return "it was never committed: a save (or a removal) that did not finish"
    try:
        commit = read_commit(directory)
    except CheckpointError as error:
        return str(error)
    if commit.term_hash != term_hash:
        return "it is not of the run's newest term"
    return commit


def _copy(source: Path, target: Path, file: FileRecord, rank: int) -> int:
    path = target / file.file
    if path.exists():
        try:
            check_file(target, file)
            return 0
        except CheckpointError:
            path.unlink()
    check_size(source, file)
    written = write_blocks(path, _blocks(source / file.file), file.bytes, rank, block_bytes=file.block_bytes)
    if problem := file.wrong(written.blocks):
        path.unlink()
        raise damaged(source, file.file, *problem)
    return file.bytes


def _blocks(path: Path) -> Iterator[memoryview]:
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            yield memoryview(block)
