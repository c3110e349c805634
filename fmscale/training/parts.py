"""The parts of one checkpoint: each rank publishes its own; the committer waits for all of them and adds them up.

They meet on the file system alone: a rank's JSON appears once its data has been read back, and rank 0 polls for the
JSONs. So no thread but the training thread ever takes part in a collective operation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fmscale.durable import fsync_directory, look_anew, publish_new
from fmscale.errors import CheckpointError
from fmscale.observe.faults import fault_point
from fmscale.observe.terms import Term
from fmscale.training.block_file import storage, write_blocks
from fmscale.training.checkpoint_format import (
    MARKER,
    Commit,
    RankRecord,
    check_coverage,
    check_names,
    check_size,
    data_name,
    json_name,
    read_rank,
)
from fmscale.training.file_record import record_of
from fmscale.training.fragment_file import FragmentLike, LiveFragments, Part


def publish_part(
    directory: Path,
    step: int,
    term: int,
    rank: int,
    fragments: Iterable[FragmentLike] | Part,
    check: Callable[[], None],
) -> None:
    """Write the data file of `rank`, then its JSON. Raises as `CheckpointStore.write_rank`."""
    part = fragments if isinstance(fragments, Part) else LiveFragments(fragments)
    with storage(directory, part.layout.bytes):
        directory.parent.mkdir(exist_ok=True)  # not its parents: where a mount is gone, nothing is put in its place
        directory.mkdir(exist_ok=True)
        fsync_directory(directory.parent)
    try:
        size, aligned = part.layout.bytes, part.aligned
        data = write_blocks(directory / data_name(rank), part.blocks(), size, rank, aligned=aligned, check=check)
        fault_point("ckpt.after_data", rank)
        content = RankRecord(step=step, term=term, rank=rank, data=data, fragments=part.layout.records).to_bytes()
        check()
        with storage(directory / json_name(rank), len(content)):
            publish_new(directory / json_name(rank), content)
    except FileExistsError as error:
        raise CheckpointError(
            f"rank {rank} has written checkpoint {directory.name} before",
            expected="one writer per rank, step and term",
            found=str(error.filename2 or error.filename),
            do="let one process train a run; a restarted run opens a new term",
        ) from error


def await_parts(directory: Path, world: int, timeout_s: float, check: Callable[[], None]) -> None:
    """Until all JSONs are there. check: called at each look; what it raises ends the waiting.

    Raises CheckpointError naming the ranks that did not publish in `timeout_s`.
    """
    deadline, pause = time.monotonic() + timeout_s, 0.005
    missing: Sequence[int] = range(world)
    while missing := missing_parts(directory, missing):
        check()
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"checkpoint {directory.name} is not committed: ranks did not finish writing",
                expected=f"the parts of {world} ranks within {timeout_s:g} s",
                found=f"nothing from rank {', '.join(map(str, missing[:8]))}{' ...' if missing[8:] else ''}",
                do="look at those ranks' logs; the checkpoint before stands, and a restart goes on from it",
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def missing_parts(directory: Path, ranks: Sequence[int]) -> list[int]:
    """Those of `ranks` whose JSON is not there."""
    look_anew(directory)
    return [rank for rank in ranks if not (directory / json_name(rank)).exists()]


def add_up(
    directory: Path,
    step: int,
    record: Term,
    world: int,
    rows: int,
    parent: str | None,
    parent_hash: str | None,
    state: dict[str, Any],
    kinds: Sequence[str],
) -> Commit:
    """The commit of parts that hold each element once. Raises CheckpointError for what is missing, foreign or twice."""
    records = [read_rank(directory, rank, step=step, term=record.term) for rank in range(world)]
    check_names(directory, world, marker=(directory / MARKER).exists())
    for part in records:
        check_size(directory, part.data)
    commit = Commit(
        step=step,
        term=record.term,
        term_hash=record.term_hash,
        rows=rows,
        parent=parent,
        parent_hash=parent_hash,
        world=world,
        params=dict(check_coverage(directory, records, kinds)),
        ranks=tuple(record_of(directory / json_name(rank)) for rank in range(world)),
        state=state,
    )
    return Commit.from_bytes(commit.to_bytes())  # what cannot be read back is never published
