"""Which checkpoints of a run may go, and how one goes: its COMMIT.json first. One rule, whoever removes.

These stay: the `keep` newest of the history that hold; damaged ones that are not older than those, since somebody may
want to look at them (they take no place of one that holds); those of the history whose step is a multiple of
`keep_every`; the one that the newest term was opened from; the one that is being copied elsewhere. Others go: older
ones at once, commits outside the history (an abandoned branch, say) once the newest term has `keep` of its own,
unfinished saves once nobody can finish them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmscale.durable import fsync_directory
from fmscale.errors import CheckpointError
from fmscale.observe.faults import fault_point
from fmscale.observe.terms import load_term, newest_term
from fmscale.training.checkpoint_format import MARKER, Commit, parse_directory_name
from fmscale.training.history import checkpoint_names

OLDER = "older than what is kept"


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """A checkpoint directory that may go."""

    name: str
    why: str
    """OLDER, or something that a user is told even when nothing else is."""


def doomed(
    root: Path,
    run_dir: Path,
    past: Iterable[tuple[str, Commit | CheckpointError | str]],
    *,
    keep: int,
    keep_every: int = 0,
    spare: Collection[str] = (),
    writing: bool = False,
    verify: Callable[[str], None] = lambda name: None,
    report: Callable[[str], None] = lambda text: None,
) -> Sequence[Doomed]:
    """What of the checkpoints below `root` may go, in the order in which it should.

    run_dir: where the terms stand. past: as `history` gives it. keep_every: 0 keeps none by its step. spare: names
    that somebody is reading. writing: whether the newest term is being trained, so that its last saves may still be
    finished. verify: reads a checkpoint whole and raises CheckpointError if it does not hold; called for the newest,
    and for older ones until one does. report: is told of damaged ones that stay.
    Raises CheckpointError where there are commits in the history and none holds.
    """
    assert keep >= 1, "the newest stays"
    whole: list[Commit] = []
    damaged: list[str] = []
    stay = set(spare)
    for name, found in past:
        step, _ = parse_directory_name(name) or (0, 0)
        recent = len(whole) < keep
        if isinstance(found, Commit) and not whole:
            try:
                verify(name)
            except CheckpointError as error:
                found = error
        if isinstance(found, Commit):
            whole.append(found)
        elif isinstance(found, CheckpointError):
            damaged.append(name)
        else:
            continue
        if recent or (keep_every and step % keep_every == 0):
            stay.add(name)
            if isinstance(found, CheckpointError):
                report(f"{name} does not hold, and stays: {found.found}")
    if damaged and not whole:
        raise CheckpointError(
            "no checkpoint of this run holds, so none is removed",
            expected=f"one valid checkpoint in {root}",
            found=f"{len(damaged)} damaged: {', '.join(sorted(damaged)[:4])}",
            do="restore one from a copy",
        )
    if term := newest_term(run_dir):
        stay.add(load_term(run_dir, term).parent or "")
    own = [commit.step for commit in whole if commit.term == term]
    in_history = {commit.name for commit in whole}
    going = []
    for name in checkpoint_names(root):
        step, of_term = parse_directory_name(name) or (0, 0)
        if name in stay:
            continue
        if not (root / name / MARKER).exists():
            goes, why = not writing or of_term < term or bool(own and step < own[0]), "a save that did not finish"
        elif name in in_history:
            goes, why = True, OLDER
        elif name in damaged:
            goes, why = True, f"damaged, and {OLDER}"
        else:
            goes, why = len(own) >= keep, "outside the run's history"
        if goes:
            going.append(Doomed(name=name, why=why))
    return going


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
