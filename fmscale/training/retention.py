"""Which checkpoints of a run that nobody trains may go, and how one goes: its COMMIT.json first.

What stays: the newest that holds, and with it the `keep` newest of the history; every one whose step is a multiple of
`keep_every`; the one that the newest term was opened from; damaged ones, since somebody may want to look.
All else goes: older ones, commits outside the history, saves that did not finish.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmscale.durable import fsync_directory
from fmscale.errors import CheckpointError
from fmscale.observe.faults import fault_point
from fmscale.observe.terms import load_term, newest_term
from fmscale.training.checkpoint_format import MARKER, Commit
from fmscale.training.history import checkpoint_names, history


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """A checkpoint directory that may go."""

    name: str
    bytes: int
    why: str


def doomed(
    root: Path, keep: int, keep_every: int, verify: Callable[[str], None], report: Callable[[str], None]
) -> Sequence[Doomed]:
    """What of the checkpoints below `root` may go; the run's lease is held, so that nobody writes meanwhile.

    verify: reads a checkpoint whole and raises CheckpointError if it does not hold; called for the newest, and for
    older ones until one does. report: is told of those that do not. keep_every: 0 keeps none by its step.
    Raises CheckpointError where there are commits in the history and none holds.
    """
    assert keep >= 1, "the newest stays"
    past: list[str] = []
    stay: set[str] = set()
    for name, found in history(root):
        if isinstance(found, Commit) and not past:
            try:
                verify(name)
            except CheckpointError as error:
                found = error
        if isinstance(found, Commit):
            past.append(name)
            if len(past) <= keep or (keep_every and found.step % keep_every == 0):
                stay.add(name)
        elif isinstance(found, CheckpointError):
            report(f"{name} does not hold, and stays: {found.found}")
            stay.add(name)
    if stay and not past:
        raise CheckpointError(
            "no checkpoint of this run holds, so none is removed",
            expected=f"one valid checkpoint in {root}",
            found=f"{len(stay)} damaged: {', '.join(sorted(stay)[:4])}",
            do="restore one from a copy",
        )
    if term := newest_term(root.parent):
        stay.add(load_term(root.parent, term).parent or "")
    return [
        Doomed(name=name, bytes=size_on_disk(root / name), why=_why(root / name, name in past))
        for name in checkpoint_names(root)
        if name not in stay
    ]


def _why(directory: Path, in_history: bool) -> str:
    if in_history:
        return "older than what is kept"
    return "outside the run's history" if (directory / MARKER).exists() else "a save that did not finish"


def size_on_disk(directory: Path) -> int:
    """Bytes of the files in `directory`."""
    return sum(path.stat().st_size for path in directory.iterdir())


def remove(directory: Path) -> None:
    """COMMIT.json goes first, durably: a half removed checkpoint is never believed."""
    (directory / MARKER).unlink(missing_ok=True)
    fsync_directory(directory)
    fault_point("ckpt.prune")
    shutil.rmtree(directory)
    fsync_directory(directory.parent)
