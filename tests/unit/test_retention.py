"""What may go of a run: the same whoever asks, and never what somebody may still want."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import CheckpointError
from fmscale.observe.terms import load_term
from fmscale.training.checkpoint_format import MARKER, Commit
from fmscale.training.history import checkpoint_names, history
from fmscale.training.retention import OLDER, doomed
from tests.checkpoints import save, start, store_of

LIVES = st.lists(
    st.tuples(
        st.integers(0, 4),  # how many commits of the history the next term goes back
        st.lists(st.sampled_from(["holds", "holds", "damaged", "unfinished"]), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=3,
)


def live(run_dir: Path, lives: list[tuple[int, list[str]]]) -> Commit:
    """Terms and saves as told; then the newest commit, which holds, of the newest term."""
    history, damaged = list[Commit](), list[Path]()
    for back, saves in lives:
        history = history[: len(history) - back]
        before = history[-1] if history else None
        term, step = start(run_dir, before), before.step if before else 0
        for fate in [*saves, "holds"]:
            step += 1
            directory = run_dir / "checkpoints" / f"step-{step:08d}.t{term:04d}"
            if fate == "unfinished":
                directory.mkdir(parents=True)
                continue
            before = save(run_dir, step, term, before.name if before else None, world=1)
            if fate == "damaged":
                damaged.append(directory)
            else:
                history.append(before)
    for directory in damaged:
        (directory / MARKER).write_bytes(b"{}")
    return history[-1]


@settings(max_examples=25, deadline=None)
@given(lives=LIVES, keep=st.integers(1, 4), keep_every=st.integers(0, 3))
def test_one_rule_for_all_and_what_it_promises(lives: list[tuple[int, list[str]]], keep: int, keep_every: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        newest = live(run_dir, lives)
        store = store_of(run_dir)
        past = list(history(store.root))
        whole = [found for _, found in past if isinstance(found, Commit)]
        damaged = [name for name, found in past if isinstance(found, CheckpointError)]
        names, before = checkpoint_names(store.root), {path: path.read_bytes() for path in files(run_dir)}

        asked = doomed(
            store.root, run_dir, past, keep=keep, keep_every=keep_every, verify=store.verify, report=lambda text: None
        )
        shutil.copytree(run_dir, copy := Path(folder) / "copy" / "run")
        said: list[str] = []
        removed = store_of(copy).prune(keep, newest, said.append, keep_every=keep_every)
        assert removed == [each.name for each in asked], "after a save as for a run that nobody trains"
        assert said == [f"{each.name} is removed: {each.why}" for each in asked if each.why != OLDER]

        left = [name for name in names if name not in removed]
        assert checkpoint_names(store_of(copy).root) == left
        assert {copy / path.relative_to(run_dir): raw for path, raw in before.items()}.items() >= {
            path: path.read_bytes() for path in files(copy)
        }.items()
        assert {commit.name for commit in whole[:keep]} <= set(left)
        oldest = (whole[:keep][-1].term, whole[:keep][-1].step)
        for name in damaged:
            step, term = int(name[5:13]), int(name[-4:])
            milestone = keep_every > 0 and step % keep_every == 0
            assert (name in left) == (milestone or (term, step) > oldest or len(whole) < keep)
        for commit in whole[keep:]:
            stays = (keep_every > 0 and commit.step % keep_every == 0) or commit.name == load_term(
                run_dir, newest.term
            ).parent
            assert (commit.name in left) == stays
        own = sum(commit.term == newest.term for commit in whole)
        for name in set(names) - {name for name, _ in past}:
            assert (name in removed) == (own >= keep or not (store.root / name / MARKER).exists())
        assert store_of(copy).prune(keep, newest, said.append, keep_every=keep_every) == []


def files(run_dir: Path) -> list[Path]:
    return [path for path in sorted(run_dir.rglob("*")) if path.is_file()]
