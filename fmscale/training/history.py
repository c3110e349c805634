"""Which checkpoint directories are a run's history, newest first, and what is wrong with those that are not usable.

Walk the lineage of terms (fmscale/observe/terms.py) from the newest: of each term the directories whose step the term
owns, newest first. A commit counts if COMMIT.json holds, was made under this run's record of that term, and, where a
newer term pinned it, is the very commit that was pinned. Directories outside the lineage do not occur here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fmscale.errors import CheckpointError
from fmscale.observe.terms import Span, lineage, newest_term
from fmscale.training.checkpoint_format import MARKER, Commit, damaged, parse_directory_name, read_commit


def checkpoint_names(root: Path) -> list[str]:
    """Names of all checkpoint directories below `root`, committed or not, by (step, term)."""
    try:
        found = [(parse_directory_name(path.name), path.name) for path in root.iterdir()]
    except FileNotFoundError:
        return []
    return [name for numbers, name in sorted((numbers, name) for numbers, name in found if numbers)]


def history(root: Path) -> Iterator[tuple[str, Commit | CheckpointError | str]]:
    """(directory name, its commit; or what is wrong with it; or, for a save that did not finish, a remark).

    Raises CheckpointError where a term record is damaged (on reaching it) or where all of them are lost.
    """
    run_dir = root.parent
    names = [(parse_directory_name(name), name) for name in reversed(checkpoint_names(root))]
    if not newest_term(run_dir) and any((root / name / MARKER).exists() for _, name in names):
        raise CheckpointError(
            "this run has checkpoints and no term records",
            expected=str(run_dir / "lease" / "term-00000001.json"),
            found="no such file",
            do="restore the run's lease directory: it says which checkpoints belong to the run",
        )
    child: Span | None = None
    for span in lineage(run_dir):
        inside = [name for numbers, name in names if numbers and _owns(span, *numbers)]
        if child and child.up_to is None and child.term.parent not in inside:  # older terms' parents may be pruned
            lost = root / str(child.term.parent)
            yield lost.name, damaged(lost, MARKER, "no such file", f"the parent of term {child.term.term}")
        for name in inside:
            yield name, _examine(root / name, span, child)
        child = span


def _owns(span: Span, step: int, term: int) -> bool:
    return term == span.term.term and (span.up_to is None or step <= span.up_to)


def _examine(directory: Path, span: Span, child: Span | None) -> Commit | CheckpointError | str:
    """child: the span that goes on from `span`."""
    pinned = child.term if child and child.term.parent == directory.name else None
    must_exist = pinned is not None and child is not None and child.up_to is None
    if not must_exist and not (directory / MARKER).exists():
        return "it was never committed: a save (or a removal) that did not finish"
    try:
        commit = read_commit(directory)
    except CheckpointError as error:
        return error
    if commit.term_hash != span.term.term_hash:
        return damaged(directory, MARKER, "a commit of another run", f"one of term {span.term.term} of this run")
    if pinned and pinned.parent_hash != commit.commit_hash:
        return damaged(directory, MARKER, f"commit {commit.commit_hash}", f"the parent of term {pinned.term}")
    return commit
