"""Which checkpoint is the run's state: written by all ranks, committed by one file, chosen by ancestry and hash.

Each rank publishes its tensors and a JSON; the committer waits for the JSONs on disk (no collective), checks that they
cover every element once, and creates COMMIT.json exclusively. A directory is named by step and term, never renamed, and
nothing points to "the latest": resume takes the newest commit of the run's lineage (fmscale/observe/terms.py) whose
every byte holds, else the one before, loudly. Fragments carry canonical names and ranges, so any number of ranks under
any engine reads its own ranges of what any other number wrote.
"""

from __future__ import annotations

import bisect
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmscale.errors import CheckpointError
from fmscale.observe.faults import fault_point
from fmscale.observe.publish import fsync_directory, publish_new
from fmscale.observe.terms import Span, lineage, load_term, newest_term
from fmscale.training.checkpoint_format import (
    KINDS,
    MARKER,
    Commit,
    RankRecord,
    check_coverage,
    check_file,
    check_names,
    damaged,
    data_name,
    directory_name,
    json_name,
    parse_directory_name,
    read_commit,
    read_rank,
)
from fmscale.training.fragment_file import FileRecord, FragmentLike, hash_file, map_tensors, write_fragment_file

Report = Callable[[str], None]
"""Is told, in one message each, of everything that was passed over or removed."""

_warn: Report = logging.getLogger("fmscale.checkpoint").warning


class CheckpointStore:
    """The checkpoints of one run: `root` is `runs/NAME/checkpoints`; term records stand in `runs/NAME/lease`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.run_dir = self.root.parent

    # --- writing

    def write_rank(self, step: int, term: int, rank: int, fragments: Iterable[FragmentLike]) -> None:
        """Publish what `rank` owns; every rank calls it, once per step and term.

        Raises CheckpointError when `term` is not the run's newest or the rank's part exists already; MachineError when
        there is no room. A failed call leaves nothing of its own behind.
        """
        self._fence(term)
        fault_point("ckpt.before_rank", rank)
        directory = self.root / directory_name(step, term)
        directory.mkdir(parents=True, exist_ok=True)
        fsync_directory(self.root)
        try:
            data, records = write_fragment_file(directory / data_name(rank), fragments, rank)
            fault_point("ckpt.after_data", rank)
            record = RankRecord(step=step, term=term, rank=rank, data=data, fragments=tuple(records))
            publish_new(directory / json_name(rank), record.to_bytes())
        except FileExistsError as error:
            raise CheckpointError(
                f"rank {rank} has written checkpoint {directory.name} before",
                expected="one writer per rank, step and term",
                found=str(error.filename2 or error.filename),
                do="let one process train a run; a restarted run opens a new term",
            ) from error
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
    ) -> Commit:
        """Wait for the parts of all `world` ranks and make them the run's newest checkpoint. One process calls it.

        parent: name of the checkpoint before it in this term, else of the one that the term was opened from.
        Raises CheckpointError: a term that is not the newest (before or after), ranks that did not publish in
        `timeout_s`, parts that leave gaps, overlap or are foreign, a checkpoint that is committed already.
        """
        self._fence(term)
        record = load_term(self.run_dir, term)
        before = parse_directory_name(parent) if parent else None
        assert parent == record.parent or (before and before[1] == term), f"{parent} is no parent in term {term}"
        assert before is None or (before[0], before[1]) < (step, term), f"step {step} does not come after {parent}"
        in_term = parent if parent != record.parent else None
        parent_hash = read_commit(self.root / in_term).commit_hash if in_term else record.parent_hash
        directory = self.root / directory_name(step, term)
        self._await_ranks(directory, term, world, timeout_s)
        records = [read_rank(directory, rank, step=step, term=term) for rank in range(world)]
        check_names(directory, world, marker=(directory / MARKER).exists())
        for part in records:
            if (size := (directory / part.data.file).stat().st_size) != part.data.bytes:
                raise damaged(directory, part.data.file, f"{size:,} bytes", f"{part.data.bytes:,} bytes")
        commit = Commit(
            step=step,
            term=term,
            term_hash=record.term_hash,
            rows=rows,
            parent=parent,
            parent_hash=parent_hash,
            world=world,
            params=dict(check_coverage(directory, records, kinds)),
            ranks=tuple(_file_record(directory / json_name(rank)) for rank in range(world)),
            state=state,
        )
        content = commit.to_bytes()
        commit = Commit.from_bytes(content)  # what cannot be read back is never published
        self._fence(term)
        fault_point("ckpt.before_commit")
        try:
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
        return commit

    def _await_ranks(self, directory: Path, term: int, world: int, timeout_s: float) -> None:
        deadline, pause = time.monotonic() + timeout_s, 0.005
        missing = list(range(world))
        while missing := [rank for rank in missing if not (directory / json_name(rank)).exists()]:
            self._fence(term)
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"checkpoint {directory.name} is not committed: ranks did not finish writing",
                    expected=f"the parts of {world} ranks within {timeout_s:g} s",
                    found=f"nothing from rank {', '.join(map(str, missing[:8]))}{' ...' if missing[8:] else ''}",
                    do="look at those ranks' logs; training goes on from memory, the checkpoint before stands",
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _fence(self, term: int) -> None:
        newest = newest_term(self.run_dir)
        if newest != term:
            raise CheckpointError(
                f"term {term} may not write checkpoints of this run",
                expected=f"the newest term, {newest}" if newest else "a term opened by Lease.open_term",
                found=f"term {term} of process {os.getpid()}",
                do="stop this process: another has taken the run over" if newest > term else "open a term first",
            )

    # --- choosing

    def list(self) -> Sequence[Commit]:
        """All commits whose COMMIT.json holds, in or out of the lineage, oldest first; their files are not read."""
        commits = []
        for name in self._names():
            try:
                commits.append(read_commit(self.root / name))
            except CheckpointError:
                continue
        return commits

    def _names(self) -> Sequence[str]:
        """Names of checkpoint directories, committed or not, oldest first."""
        try:
            found = [(parse_directory_name(path.name), path.name) for path in self.root.iterdir()]
        except FileNotFoundError:
            return []
        return [name for numbers, name in sorted((n, name) for n, name in found if n)]

    def candidates(self, report: Report = _warn) -> Iterator[Commit]:
        """The commits of the run's lineage, newest first. Their COMMIT.json holds; their other files are not read yet.

        What stands in the lineage and cannot be a candidate is reported. Raises CheckpointError where term records are
        damaged or lost, and at the end if there were commits and not one is a candidate.
        """
        good, lost = 0, []
        for name, found in self._lineage():
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
        for name, found in self._lineage():
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
            expected=f"one valid checkpoint in {self.root}",
            found=f"{len(names)} damaged or missing: {', '.join(names[:4])}",
            do="restore one from a copy, or start a new run with run.name=NEW",
        )

    def _lineage(self) -> Iterator[tuple[str, Commit | CheckpointError | str]]:
        """(name, its commit, what is wrong with it, or a remark), newest first along the lineage."""
        names = [(parse_directory_name(name) or (0, 0), name) for name in reversed(self._names())]
        if not newest_term(self.run_dir) and any((self.root / name / MARKER).exists() for _, name in names):
            raise CheckpointError(
                "this run has checkpoints and no term records",
                expected=str(self.run_dir / "lease" / "term-00000001.json"),
                found="no such file",
                do="restore the run's lease directory: it says which checkpoints belong to the run",
            )
        child: Span | None = None
        for span in lineage(self.run_dir):
            inside = [
                name
                for (step, term), name in names
                if term == span.term.term and (span.up_to is None or step <= span.up_to)
            ]
            if child and child.up_to is None and child.term.parent not in inside:  # older terms' parents may be pruned
                parent = str(child.term.parent)
                yield parent, damaged(self.root / parent, MARKER, "no such file", f"the parent of {child.term.term}")
            for name in inside:
                yield name, self._examine(name, span, child)
            child = span

    def _examine(self, name: str, span: Span, child: Span | None) -> Commit | CheckpointError | str:
        """child: the span that goes on from `span`."""
        directory = self.root / name
        pinned = child.term if child and child.term.parent == name else None
        if not (directory / MARKER).exists() and not pinned:
            return "it was never committed (a save that did not finish)"
        try:
            commit = read_commit(directory)
        except CheckpointError as error:
            return error
        if commit.term_hash != span.term.term_hash:
            return damaged(directory, MARKER, "a commit of another run", f"one of this run's term {span.term.term}")
        if pinned and pinned.parent_hash != commit.commit_hash:
            return damaged(directory, MARKER, f"commit {commit.commit_hash}", f"the parent of term {pinned.term}")
        return commit

    # --- reading

    def open(self, commit: Commit) -> CheckpointReader:
        """Raises CheckpointError where the ranks' JSONs do not hold; tensors are for `verify_share` to check."""
        return CheckpointReader(self.root / commit.name, commit)

    def verify(self, name: str) -> None:
        """Read every byte of checkpoint `name`. Raises CheckpointError for the first wrong, missing or foreign file."""
        self.open(read_commit(self.root / name)).verify_share(0, 1)

    # --- removing

    def prune(self, keep: int, newest: Commit, report: Report = _warn) -> Sequence[str]:
        """Remove what is older than the `keep` newest of the lineage; names of what was removed.

        newest: what `commit` returned. It is read whole first; if it does not hold, CheckpointError and nothing is
        removed. The one that the newest term was opened from stays. Saves that did not finish are removed and reported, once they cannot finish;
        abandoned commits (zombies', rolled back, damaged) once this term has `keep` commits of its own. COMMIT.json
        goes first, so that a half removed directory is never believed.
        """
        term = newest.term
        self._fence(term)
        assert keep >= 1, "prune keeps the newest"
        self.verify(newest.name)
        history = [found for _, found in self._lineage() if isinstance(found, Commit)]
        assert history[0].commit_hash == newest.commit_hash, f"{newest.name} is not the newest of the lineage"
        stay = {commit.name for commit in history[:keep]} | {load_term(self.run_dir, term).parent}
        own = [commit for commit in history if commit.term == term]
        in_lineage = {commit.name for commit in history}
        removed = []
        for name in self._names():
            step, of_term = parse_directory_name(name) or (0, 0)
            committed = (self.root / name / MARKER).exists()
            if name in stay:
                continue
            if not committed:
                doomed, why = of_term < term or bool(own and step < own[0].step), "a save that did not finish"
            elif name in in_lineage:
                doomed, why = True, ""
            else:
                doomed, why = len(own) >= keep and step < own[keep - 1].step, "outside the run's lineage, or damaged"
            if doomed:
                self._remove(self.root / name)
                removed.append(name)
                if why:
                    report(f"{name} is removed: {why}")
        return removed

    def _remove(self, directory: Path) -> None:
        (directory / MARKER).unlink(missing_ok=True)
        fsync_directory(directory)
        fault_point("ckpt.prune")
        shutil.rmtree(directory)
        fsync_directory(self.root)


class CheckpointReader:
    """Any range of any parameter of one checkpoint. The ranks' JSONs are checked on opening."""

    def __init__(self, directory: Path, commit: Commit) -> None:
        self.directory, self.commit = directory, commit
        self.step, self.rows, self.state, self.params = commit.step, commit.rows, commit.state, commit.params
        self._records = [
            read_rank(directory, rank, step=commit.step, term=commit.term, listed=listed)
            for rank, listed in enumerate(commit.ranks)
        ]
        self._ranges: dict[tuple[str, str], list[tuple[int, int, int, int]]] = defaultdict(list)
        for record in self._records:
            for f in record.fragments:
                self._ranges[f.param, f.kind].append((f.start, f.numel, record.rank, f.offset))
        for ranges in self._ranges.values():
            ranges.sort()
        self._maps: dict[int, dict[str, np.memmap]] = {}

    def verify_share(self, rank: int, world: int) -> None:
        """Read the files that fall to `rank` of `world` readers; together they read each byte once.

        Raises CheckpointError for a byte that is wrong, and on every reader for a file that is missing or foreign.
        """
        check_names(self.directory, self.commit.world, marker=True)
        for record in self._records[rank::world]:
            check_file(self.directory, record.data)

    def read(self, param: str, kind: str, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of the flattened parameter or moment: 1-D fp32, a copy.

        Raises CheckpointError for a parameter, kind or range that the checkpoint does not hold.
        """
        ranges = self._ranges.get((param, kind), [])
        total = int(np.prod(self.params[param], dtype=np.int64)) if ranges else 0
        if not (ranges and start >= 0 and numel >= 0 and start + numel <= total):
            raise CheckpointError(
                f"checkpoint {self.commit.name} does not fit this model",
                expected=f"{param} ({kind}), elements {start} to {start + numel}",
                found=f"{total} elements of it" if ranges else "no such parameter",
                do="use the model settings of the run's config.yaml",
            )
        out = np.empty(numel, np.float32)
        at = bisect.bisect_right(ranges, start, key=lambda r: r[0]) - 1
        filled = 0
        while filled < numel:
            first, length, rank, offset = ranges[at]
            skip = start + filled - first
            take = min(length - skip, numel - filled)
            out[filled : filled + take] = self._tensor(rank, kind)[offset + skip : offset + skip + take]
            filled, at = filled + take, at + 1
        return torch.from_numpy(out)

    def _tensor(self, rank: int, kind: str) -> np.memmap:
        if rank not in self._maps:
            self._maps[rank] = map_tensors(self.directory / data_name(rank))
        return self._maps[rank][kind]


def _file_record(path: Path) -> FileRecord:
    return FileRecord(file=path.name, bytes=path.stat().st_size, hash=hash_file(path))
