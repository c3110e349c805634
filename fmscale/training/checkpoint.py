"""Which checkpoint is the run's state: written by all ranks, committed by one file, chosen by ancestry and hash.

Each rank publishes its tensors and a JSON; the committer waits for the JSONs on disk (no collective), checks that they
cover every element once, and creates COMMIT.json exclusively. A directory is named by step and term, never renamed, and
nothing points to "the latest": resume takes the newest commit of the run's lineage (fmscale/observe/terms.py) whose
every byte holds, else the one before, loudly. Fragments carry canonical names and ranges, so any number of ranks under
any engine reads its own ranges of what any other number wrote.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fmscale.durable import publish_new
from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.faults import fault_point
from fmscale.observe.terms import load_term, newest_term
from fmscale.training.block_file import storage
from fmscale.training.checkpoint_format import KINDS, MARKER, Commit, directory_name, parse_directory_name, read_commit
from fmscale.training.checkpoint_reader import CheckpointReader
from fmscale.training.fragment_file import FragmentLike, Part
from fmscale.training.history import checkpoint_names, history
from fmscale.training.parts import add_up, await_parts, publish_part
from fmscale.training.retention import OLDER, doomed, remove

Report = Callable[[str], None]
"""Is told, in one message each, of everything that was passed over or removed."""

Check = Callable[[], None]
"""Is called now and then by what takes long, and raises to end it."""

_warn: Report = logging.getLogger("fmscale.checkpoint").warning


class CheckpointStore:
    """The checkpoints of one run: `root` is `runs/NAME/checkpoints`; term records stand in `runs/NAME/lease`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.run_dir = self.root.parent
        self.address = str(root)
        """What messages call it."""
        self._newest: Commit | None = None
        """That this object made."""

    # --- writing

    def write_rank(
        self, step: int, term: int, rank: int, fragments: Iterable[FragmentLike] | Part, check: Check = lambda: None
    ) -> None:
        """Publish what `rank` owns; every rank calls it, once per step and term. The data is read back on the way.

        Raises CheckpointError when `term` is not the run's newest or the rank's part exists already; MachineError when
        there is no room, or the file system fails. What a failed call leaves behind is for `abandon`.
        """
        self._fence(term)
        fault_point("ckpt.before_rank", rank)
        publish_part(self.root / directory_name(step, term), step, term, rank, fragments, check)
        fault_point("ckpt.after_rank", rank)

    def commit(
        self,
        step: int,
        term: int,
        world: int,
        rows: int,
        parent: str | None,
        state: dict[str, Any],
        timeout_s: float = 600.0,
        kinds: Sequence[str] = KINDS,
        check: Check = lambda: None,
    ) -> Commit:
        """Wait for the parts of all `world` ranks and make them the run's newest checkpoint. One process calls it.

        parent: name of the checkpoint before it in this term, else of the one that the term was opened from.
        Raises CheckpointError: a term that is not the newest (before or after), ranks that did not publish in
        `timeout_s`, parts that leave gaps, overlap or are foreign, a checkpoint that is committed already. MachineError
        when there is no room, the file system fails, or COMMIT.json is another when it is read back.
        """
        self._fence(term)
        with storage(self.run_dir, 0):
            record = load_term(self.run_dir, term)
        before = parse_directory_name(parent) if parent else None
        assert parent == record.parent or (before and before[1] == term), f"{parent} is no parent in term {term}"
        assert before is None or (before[0], before[1]) < (step, term), f"step {step} does not come after {parent}"
        in_term = parent if parent != record.parent else None
        with storage(self.root, 0):
            parent_hash = self._hash_of(in_term) if in_term else record.parent_hash
        directory = self.root / directory_name(step, term)

        def check_all() -> None:
            self._fence(term)
            check()

        await_parts(directory, world, timeout_s, check_all)
        with storage(directory / MARKER, 0):
            commit = add_up(directory, step, record, world, rows, parent, parent_hash, state, kinds)
        content = commit.to_bytes()
        self._fence(term)
        try:
            with storage(directory / MARKER, len(content)):
                fault_point("ckpt.before_commit")
                publish_new(directory / MARKER, content)
        except FileExistsError as error:
            raise CheckpointError(
                f"checkpoint {directory.name} is committed already",
                expected="one commit per step and term",
                found=str(directory / MARKER),
                do="let one process train a run; a restarted run opens a new term",
            ) from error
        fault_point("ckpt.after_commit")
        self._fence(term)
        self._read_back(directory, commit)
        self._newest = commit
        return commit

    def _hash_of(self, name: str) -> str:
        """Of a commit of this process, most often: then its file is not needed again."""
        known = self._newest
        if known is not None and known.name == name:
            return known.commit_hash
        return read_commit(self.run_dir / "checkpoints" / name).commit_hash  # also of a fast one: its parent is shared

    def _read_back(self, directory: Path, commit: Commit) -> None:
        try:
            found = "another commit" * (read_commit(directory) != commit)
        except CheckpointError as error:
            found = " ".join(str(error).split())
        if found:
            with storage(directory / MARKER, 0):
                (directory / MARKER).unlink()  # ours, and nobody believes it
            raise MachineError(
                "a checkpoint could not be written; the last one stands",
                expected=f"the bytes that were written to {directory / MARKER}",
                found=f"other bytes when they were read again ({found})",
                do="check the disk and the memory of that machine",
            )

    def _fence(self, term: int) -> None:
        with storage(self.root, 0):
            (self.run_dir / "lease").stat()  # a file system that is gone is no take-over
        newest = newest_term(self.run_dir)
        if newest != term:
            raise CheckpointError(
                f"term {term} may not write checkpoints of this run",
                expected=f"the newest term, {newest}" if newest else "a term opened by Lease.open_term",
                found=f"term {term} of process {os.getpid()}",
                do="stop this process: another has taken the run over" if newest > term else "open a term first",
            )

    # --- choosing

    def _history(self) -> Iterator[tuple[str, Commit | CheckpointError | str]]:
        """As fmscale/training/history.py says; a fast tier's is another (fmscale/training/fast_tier.py)."""
        return history(self.root)

    def list(self) -> Sequence[Commit]:
        """All commits whose COMMIT.json holds, in or out of the lineage, oldest first; their files are not read."""
        commits = []
        for name in checkpoint_names(self.root):
            try:
                commits.append(read_commit(self.root / name))
            except CheckpointError:
                continue
        return commits

    def candidates(self, report: Report = _warn) -> Iterator[Commit]:
        """The commits of the run's lineage, newest first. Their COMMIT.json holds; their other files are not read yet.

        What stands in the lineage and cannot be a candidate is reported. Raises CheckpointError where term records are
        damaged or lost, and at the end if there were commits and not one is a candidate.
        """
        good, lost = 0, []
        for name, found in self._history():
            if isinstance(found, Commit):
                good += 1
                yield found
                continue
            report(f"{name} is passed over: {found}")
            if isinstance(found, CheckpointError):
                lost.append(name)
        if lost and not good:
            raise self.none_holds(lost)

    def newest_valid(self, report: Report = _warn) -> Commit | None:
        """The newest candidate of which every byte holds; None if the run never committed one.

        Raises CheckpointError when there were some and none holds: a run never starts over by itself.
        """
        lost = []
        for name, found in self._history():
            if isinstance(found, Commit):
                try:
                    self.verify(name)
                    return found
                except CheckpointError as error:
                    found = error
            report(f"{name} is passed over: {found}")
            if isinstance(found, CheckpointError):
                lost.append(name)
        if lost:
            raise self.none_holds(lost)
        return None

    def none_holds(self, names: Sequence[str]) -> CheckpointError:
        """The error for a run whose every candidate (`names`) was refused."""
        return CheckpointError(
            "no checkpoint of this run can be believed",
            expected=f"one valid checkpoint in {self.address}",
            found=f"{len(names)} damaged or missing: {', '.join(names[:4])}",
            do="restore one from a copy, or start a new run with run.name=NEW",
        )

    # --- reading

    def open(self, commit: Commit) -> CheckpointReader:
        """Raises DamagedError where files are missing, foreign or cut, or JSONs do not hold; `read` checks tensors."""
        return CheckpointReader(self.root / commit.name, commit)

    def verify(self, name: str) -> None:
        """Read every byte of checkpoint `name`. Raises CheckpointError for the first wrong, missing or foreign file."""
        self.open(read_commit(self.root / name)).verify()

    # --- removing

    def prune(
        self,
        keep: int,
        newest: Commit,
        report: Report = _warn,
        *,
        keep_every: int = 0,
        read_back: bool = True,
        spare: Collection[str] = (),
    ) -> Sequence[str]:
        """Remove what fmscale/training/retention.py says of a run that is trained; names of what was removed.

        newest: what `commit` returned. It is read whole first (read_back=False: the ranks have just done so, each its
        own part); if it does not hold, CheckpointError and nothing is removed. report: is told of all that was no
        checkpoint of the history or is damaged. spare: names of what somebody reads, which stay. COMMIT.json goes
        first, so that a half removed directory is never believed.
        """
        self._fence(newest.term)
        if read_back:
            self.verify(newest.name)
        past = list(self._history())
        first = next(found for _, found in past if isinstance(found, Commit))
        assert first.commit_hash == newest.commit_hash, f"{newest.name} is not the newest of the lineage"
        going = doomed(self.root, self.run_dir, past, keep=keep, keep_every=keep_every, spare=spare, writing=True)
        for each in going:
            remove(self.root / each.name)
            if each.why != OLDER:
                report(f"{each.name} is removed: {each.why}")
        return [each.name for each in going]

    def abandon(self, step: int, term: int) -> None:
        """Remove the parts of a save that failed, and so make room; no rank is writing any more."""
        directory = self.root / directory_name(step, term)
        if directory.exists():
            assert not (directory / MARKER).exists(), f"{directory.name} is committed"
            remove(directory)
