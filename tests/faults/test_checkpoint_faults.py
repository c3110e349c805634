"""What may happen to checkpoints: any damaged byte, any kill -9, a power cut, zombies, roll-backs, a full disk.

In each case: the newest whole checkpoint of the run's history is taken, what was passed over is told, and the next save
works. Processes are real and so are their deaths.
"""

from __future__ import annotations

import functools
import itertools
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fmscale.durable
import fmscale.training.checkpoint
from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.terms import lineage, load_term, term_path
from fmscale.training.checkpoint_format import Commit
from fmscale.training.lease import Lease
from tests.checkpoints import Piece, assert_holds, pieces, save, start, store_of, two_checkpoints
from tests.savers import rig


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a process of its own; 0, minus the signal that ended it, or 1 for an exception (shown)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def newest(run_dir: Path) -> tuple[Commit | None, list[str]]:
    said: list[str] = []
    return store_of(run_dir).newest_valid(said.append), said


def assert_old_or_new(run_dir: Path, old: Commit, new_name: str) -> str:
    """A restart finds a whole checkpoint, and goes on from it: its own save works."""
    found, _ = newest(run_dir)
    assert found is not None
    assert found.name in (old.name, new_name)
    assert_holds(run_dir, found)
    term = start(run_dir, found)
    again = save(run_dir, 30, term, found.name)
    store_of(run_dir).prune(2, again, lambda text: None)
    assert newest(run_dir) == (again, [])
    assert_holds(run_dir, again)
    return found.name


# --- damage


def test_every_flipped_byte_is_found_before_use_and_the_one_before_is_taken(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    store, flips = store_of(tmp_path), 0
    for path in sorted((tmp_path / "checkpoints" / new.name).iterdir()):
        whole = path.read_bytes()
        for at in range(len(whole)):
            flips += 1
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
            with pytest.raises(CheckpointError, match=new.name):
                store.verify(new.name)
            if at % 61 == 0:
                found, said = newest(tmp_path)
                assert found == old
                assert new.name in said[0]
                assert path.name in said[0]
        path.write_bytes(whole)
    assert flips > 3000
    assert newest(tmp_path) == (new, [])


def test_every_truncation_is_found(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    for path in sorted((tmp_path / "checkpoints" / new.name).iterdir()):
        whole = path.read_bytes()
        for length in [0, 1, 7, 8, 9, *range(10, len(whole), 97), len(whole) - 1]:
            path.write_bytes(whole[:length])
            assert newest(tmp_path)[0] == old, (path.name, length)
        path.write_bytes(whole + b"\0")
        assert newest(tmp_path)[0] == old, path.name
        path.write_bytes(whole)
    assert newest(tmp_path) == (new, [])


def swap(a: Path, b: Path) -> None:
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@pytest.mark.parametrize("name", ["rank-00000.json", "rank-00001.safetensors", "COMMIT.json"])
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    old, new = two_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / new.name / name).unlink()
    found, said = newest(tmp_path)
    assert found == old
    assert ("never committed" in said[0]) if name == "COMMIT.json" else (name in said[0])


def test_a_foreign_file_is_found(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / new.name / "rank-00002.safetensors").write_bytes(b"")
    found, said = newest(tmp_path)
    assert found == old
    assert "a file that does not belong there" in said[0]


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_swapped_ranks_and_swapped_steps_are_found(tmp_path: Path, suffix: str) -> None:
    old, new = two_checkpoints(tmp_path)
    directory = tmp_path / "checkpoints" / new.name
    swap(directory / f"rank-00000{suffix}", directory / f"rank-00001{suffix}")
    assert newest(tmp_path)[0] == old
    swap(directory / f"rank-00000{suffix}", directory / f"rank-00001{suffix}")
    shutil.copy(tmp_path / "checkpoints" / old.name / f"rank-00000{suffix}", directory)
    assert newest(tmp_path)[0] == old


def test_parts_swapped_before_the_commit_are_refused(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, pieces(1))
    store.write_rank(1, term, 1, [])
    directory = tmp_path / "checkpoints" / "step-00000001.t0001"
    swap(directory / "rank-00000.json", directory / "rank-00001.json")
    with pytest.raises(CheckpointError, match="it was written for step 1, term 1, rank 1"):
        store.commit(1, term, 2, 4, None, {})


def test_a_part_cut_short_before_the_commit_is_refused(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, pieces(1))
    data = tmp_path / "checkpoints" / "step-00000001.t0001" / "rank-00000.safetensors"
    os.truncate(data, 100)
    with pytest.raises(CheckpointError, match=r"found: 100 bytes"):
        store.commit(1, term, 1, 4, None, {})
    data.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        store.commit(1, term, 1, 4, None, {})
    assert list(store.list()) == []


def test_a_directory_under_another_name_or_of_another_run_is_found(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path / "a")
    root = tmp_path / "a" / "checkpoints"
    shutil.copytree(root / old.name, root / "step-00000030.t0001")
    found, said = newest(tmp_path / "a")
    assert found == new
    assert f"it belongs to {old.name}" in said[0]
    other = tmp_path / "b"
    start(other)
    save(other, 40, 1, None)
    shutil.copytree(other / "checkpoints" / "step-00000040.t0001", root / "step-00000040.t0001")
    found, said = newest(tmp_path / "a")
    assert found == new
    assert "a commit of another run" in said[0]


def test_a_run_never_starts_over_by_itself(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    for commit in (old, new):
        (tmp_path / "checkpoints" / commit.name / "rank-00001.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be believed") as caught:
        newest(tmp_path)
    assert "2 damaged or missing" in str(caught.value)
    for commit in (old, new):
        (tmp_path / "checkpoints" / commit.name / "COMMIT.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be believed"):
        list(store_of(tmp_path).candidates(lambda text: None))


def test_without_any_commit_a_run_starts_from_nothing(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    term = start(tmp_path)
    store_of(tmp_path).write_rank(1, term, 0, pieces(1))
    found, said = newest(tmp_path)
    assert found is None
    assert "never committed" in said[0]


def test_damaged_or_lost_term_records_are_refused(tmp_path: Path) -> None:
    old, _ = two_checkpoints(tmp_path)
    path = term_path(tmp_path, 1)
    whole = path.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for content in (*flipped, whole[:-1], whole[:50], b"", whole + b"\n"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="a term record is damaged"):
            newest(tmp_path)
    with pytest.raises(CheckpointError, match=rf"found: {path}: its hash does not hold\n  do: restore that file"):
        newest(tmp_path)  # there is a line too many still
    path.unlink()
    with pytest.raises(CheckpointError, match="has checkpoints and no term records"):
        newest(tmp_path)
    path.write_bytes(whole)
    term_path(tmp_path, 2).write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"expected: the record of term 2 .*\n.*: it is the record of term 1\n"):
        newest(tmp_path)
    term_path(tmp_path, 2).unlink()
    (term_path(tmp_path, 2)).mkdir()
    with pytest.raises(CheckpointError, match="a term record cannot be read"):
        newest(tmp_path)
    assert start(tmp_path, old) == 3  # a user who names a checkpoint gets on
    assert newest(tmp_path)[0] == old


def test_the_parent_of_the_newest_term_is_missed_when_it_is_gone(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    start(tmp_path, new)
    shutil.rmtree(tmp_path / "checkpoints" / new.name)
    found, said = newest(tmp_path)
    assert found == old
    assert "the parent of term 2" in said[0]


def test_another_commit_in_the_place_of_the_pinned_parent_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_checkpoints(tmp_path)
    start(tmp_path, new)
    shutil.rmtree(tmp_path / "checkpoints" / new.name)
    monkeypatch.setattr(fmscale.training.checkpoint.CheckpointStore, "_fence", lambda self, term: None)
    other = save(tmp_path, 20, 1, old.name, world=1)  # a zombie of term 1 does its step 20 again
    assert other.name == new.name
    found, said = newest(tmp_path)
    assert found == old
    assert f"commit {other.commit_hash}" in said[0]
    assert "the parent of term 2" in said[0]


# --- history


def test_a_roll_back_is_not_undone_by_a_crash(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    term = start(tmp_path, old)  # a user rolls back from 20 to 10
    assert newest(tmp_path)[0] == old
    term = start(tmp_path, newest(tmp_path)[0])  # crash before anything was saved
    assert newest(tmp_path)[0] == old
    branch = save(tmp_path, 15, term, old.name)
    start(tmp_path, newest(tmp_path)[0])
    assert [commit.name for commit in store_of(tmp_path).candidates()] == [branch.name, old.name]
    assert new in store_of(tmp_path).list()
    start(tmp_path, new)  # and back again, on purpose
    assert newest(tmp_path)[0] == new


def test_a_zombie_is_refused_and_what_it_sneaked_in_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = two_checkpoints(tmp_path)
    store = store_of(tmp_path)
    store.write_rank(30, 1, 0, pieces(30))  # the holder of term 1 is stopped here, and another takes over
    assert start(tmp_path, new) == 2
    with pytest.raises(CheckpointError, match="term 1 may not write checkpoints of this run") as caught:
        store.commit(30, 1, 1, 120, new.name, {})
    assert "the newest term, 2" in str(caught.value)
    with pytest.raises(CheckpointError, match="term 1 may not write"):
        store.write_rank(31, 1, 0, pieces(31))
    with pytest.raises(CheckpointError, match="term 1 may not write"):
        store.prune(1, new)
    with monkeypatch.context() as patch:  # it passed its check an instant before the take-over
        patch.setattr(fmscale.training.checkpoint.CheckpointStore, "_fence", lambda self, term: None)
        sneaked = store.commit(30, 1, 1, 120, new.name, {})
    assert sneaked in store.list()
    assert newest(tmp_path) == (new, [])
    mine = save(tmp_path, 25, 2, new.name)
    assert [commit.name for commit in store.candidates()] == [mine.name, new.name, old.name]


def test_a_holder_stopped_inside_its_commit_learns_that_it_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real zombie: SIGSTOP after its last check, a take-over and a save of the new holder, SIGCONT."""
    old, new = two_checkpoints(tmp_path)
    monkeypatch.setenv("FAULTS", "ckpt.before_commit:stop")
    pid = os.fork()
    if pid == 0:
        try:
            save(tmp_path, 30, 1, new.name)
        except CheckpointError as error:
            os._exit(42 if "term 1 may not write" in str(error) else 43)
        os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    monkeypatch.delenv("FAULTS")
    mine = save(tmp_path, 15, start(tmp_path, old), old.name)
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert (tmp_path / "checkpoints" / "step-00000030.t0001" / "COMMIT.json").exists()
    assert newest(tmp_path) == (mine, [])


def test_of_several_processes_that_commit_at_once_one_does(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, pieces(1))
    children = []
    for i in range(4):
        if not (pid := os.fork()):
            try:
                store.commit(1, term, 1, 4, None, {"process": i})
            except CheckpointError as error:
                os._exit(1 if "is committed already" in str(error) else 2)
            os._exit(0)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert sorted(codes) == [0, 1, 1, 1]
    found, _ = newest(tmp_path)
    assert found is not None
    assert found.state == {"process": codes.index(0)}


def test_lineage_goes_down_through_the_terms(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    save(tmp_path, 40, start(tmp_path, new), new.name)
    start(tmp_path, old)
    spans = [(span.term.term, span.after, span.up_to) for span in lineage(tmp_path)]
    assert spans == [(3, 10, None), (1, -1, 10)]
    assert load_term(tmp_path, 3).parent_hash == old.commit_hash


# --- removal


def test_pruning_keeps_the_newest_and_the_pinned_parent(tmp_path: Path) -> None:
    store, term = store_of(tmp_path), start(tmp_path)
    parent: Commit | None = None
    for step in (10, 20, 30):
        parent = save(tmp_path, step, term, parent.name if parent else None)
    term = start(tmp_path, parent)
    (tmp_path / "checkpoints" / "step-00000035.t0001").mkdir()
    for step in (40, 50, 60):
        parent = save(tmp_path, step, term, parent.name)
    said: list[str] = []
    removed = store.prune(2, parent, said.append)
    assert removed == ["step-00000010.t0001", "step-00000020.t0001", "step-00000035.t0001", "step-00000040.t0002"]
    assert said == ["step-00000035.t0001 is removed: a save that did not finish"]
    assert [commit.step for commit in store.list()] == [30, 50, 60]
    assert store.prune(2, parent) == []


def test_pruning_never_trusts_a_newest_that_does_not_hold(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    target = tmp_path / "checkpoints" / new.name / "rank-00000.safetensors"
    target.write_bytes(target.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match=new.name):
        store_of(tmp_path).prune(1, new)
    assert newest(tmp_path)[0] == old


def test_an_abandoned_branch_goes_only_when_the_new_one_stands(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    term = start(tmp_path, old)
    first = save(tmp_path, 12, term, old.name)
    assert store_of(tmp_path).prune(2, first) == []
    second = save(tmp_path, 14, term, first.name)
    said: list[str] = []
    assert store_of(tmp_path).prune(2, second, said.append) == [new.name]
    assert said == [f"{new.name} is removed: outside the run's history"]


def test_a_damaged_one_takes_no_place_and_goes_with_its_age(tmp_path: Path) -> None:
    term, commits, said = start(tmp_path), [], []
    for step in (10, 20, 30, 40):
        commits.append(save(tmp_path, step, term, commits[-1].name if commits else None))
    for commit in (commits[1], commits[2]):
        (tmp_path / "checkpoints" / commit.name / "COMMIT.json").write_bytes(b"{}")
    store = store_of(tmp_path)
    assert store.prune(2, commits[3], said.append, keep_every=20) == []
    fifth = save(tmp_path, 50, term, commits[3].name)
    assert store.prune(2, fifth, said.append, keep_every=20) == [commits[0].name, commits[2].name]
    assert said == [f"{commits[2].name} is removed: damaged, and older than what is kept"]
    assert (store.root / commits[1].name).exists(), "its step was to be kept for ever"


# --- kills

POINTS = [
    "ckpt.before_rank/0",
    "ckpt.mid_rank/1",
    "ckpt.before_read_back/0",
    "ckpt.after_data/0",
    "ckpt.after_data/1",
    "ckpt.after_rank/1",
    "ckpt.before_commit",
    "ckpt.after_commit",
    "ckpt.prune",
]


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_a_fault_point_leaves_the_old_or_the_new(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, old = two_checkpoints(tmp_path)
    monkeypatch.setenv("FAULTS", f"{point}:kill")

    def run() -> None:
        commit = save(tmp_path, 25, 1, old.name)
        store_of(tmp_path).prune(1, commit)

    assert in_child(run) == -signal.SIGKILL
    monkeypatch.delenv("FAULTS")
    new = "step-00000025.t0001"
    if point == "ckpt.prune":  # half removed, and not believed any more
        assert [path.suffix for path in (tmp_path / "checkpoints" / older.name).glob("rank-00000*")] != []
        assert not (tmp_path / "checkpoints" / older.name / "COMMIT.json").exists()
    kept = assert_old_or_new(tmp_path, old, new)
    assert kept == (new if point in ("ckpt.after_commit", "ckpt.prune") else old.name)
    assert (
        tmp_path / "checkpoints" / older.name / "COMMIT.json"
    ).exists() is False  # removed by the next prune at last


def save_while_training(run_dir: Path, old: Commit) -> None:
    with rig(run_dir, 1, old, keep=2) as r:
        for step in (25, 26):
            r.save(step)
            while not r.exchange():
                r.train(99)


@pytest.mark.parametrize("passage", [1, 2])
@pytest.mark.parametrize("point", sorted({point.partition("/")[0] for point in POINTS}))
def test_kill_9_while_a_thread_saves_leaves_the_old_or_the_new(
    tmp_path: Path, point: str, passage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training changes the tensors meanwhile; keep=2, so that each of the two saves removes one."""
    _, old = two_checkpoints(tmp_path)
    monkeypatch.setenv("FAULTS", f"{point}:kill@{passage}")
    assert in_child(functools.partial(save_while_training, tmp_path, old)) == -signal.SIGKILL
    monkeypatch.delenv("FAULTS")
    before, new = (old.name, "step-00000025.t0001") if passage == 1 else ("step-00000025.t0001", "step-00000026.t0001")
    found, _ = newest(tmp_path)
    assert found is not None
    assert_holds(tmp_path, found)
    if point == "ckpt.after_rank":  # the committer may have been quicker
        assert found.name in (before, new)
    else:
        assert found.name == (new if point in ("ckpt.after_commit", "ckpt.prune") else before)
    again = save(tmp_path, 30, start(tmp_path, found), found.name)
    store_of(tmp_path).prune(2, again, lambda text: None)
    assert newest(tmp_path) == (again, [])


def save_watched(run_dir: Path, parent: str, at_line: Callable[[int], None]) -> None:
    """Save and prune, calling `at_line(n)` before the n-th line that runs in the product's own modules."""
    package, lines = str(Path(fmscale.training.checkpoint.__file__).parents[1]), itertools.count(1)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename.startswith(package):
            if event == "line":
                at_line(next(lines))
            return trace
        return None

    sys.settrace(trace)
    store_of(run_dir).prune(1, save(run_dir, 25, 1, parent))
    sys.settrace(None)


def test_kill_9_at_any_line_of_a_save_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From outside, without the product's fault points: killed after each change of the directory that a line sees."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses no page cache
    _, old = two_checkpoints(tmp_path / "origin")
    changes, before = [], ""

    def look(n: int) -> None:
        nonlocal before
        now = str(sorted((path, path.lstat().st_size) for path in (tmp_path / "watched").rglob("*")))
        if now != before:
            changes.append(n)
        before = now

    shutil.copytree(tmp_path / "origin", tmp_path / "watched")
    save_watched(tmp_path / "watched", old.name, look)
    assert len(changes) > 20, "a save changes its directory many times"
    kept = []
    for n in changes:
        run_dir = tmp_path / f"kill-{n}"
        shutil.copytree(tmp_path / "origin", run_dir)

        def kill(line: int, n: int = n) -> None:
            if line == n:
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(functools.partial(save_watched, run_dir, old.name, kill)) == -signal.SIGKILL
        kept.append(assert_old_or_new(run_dir, old, "step-00000025.t0001"))
    turns = sum(a != b for a, b in itertools.pairwise(kept))
    assert (kept[0], kept[-1], turns) == (old.name, "step-00000025.t0001", 1)


def test_nothing_a_commit_names_can_be_lost_with_the_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is fsynced before it gets its name, and its directory after, before the next depends on it."""
    old, _ = two_checkpoints(tmp_path)
    durable: set[int] = set()
    link, fsync, unsafe = os.link, os.fsync, []

    def checked_fsync(descriptor: int) -> None:
        durable.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked_link(source: Path, target: Path) -> None:
        needed = {Path(source)} | (
            {*target.parent.glob("rank-*"), target.parent} if target.name == "COMMIT.json" else set()
        )
        unsafe.extend(str(path) for path in needed if path.stat().st_ino not in durable)
        link(source, target)
        durable.discard(target.parent.stat().st_ino)  # the new name is not durable yet

    monkeypatch.setattr(os, "fsync", checked_fsync)
    monkeypatch.setattr(os, "link", checked_link)
    term = start(tmp_path, old)
    commit = save(tmp_path, 30, term, old.name)
    directory = tmp_path / "checkpoints" / commit.name
    assert unsafe == []
    for path in (directory, directory.parent, tmp_path / "lease"):
        assert path.stat().st_ino in durable, path


# --- the disk


def test_a_disk_that_fills_up_costs_the_new_checkpoint_only(tmp_path: Path) -> None:
    _, old = two_checkpoints(tmp_path)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(MachineError, match="a checkpoint could not be written; the last one stands") as caught:
            store_of(tmp_path).write_rank(30, 1, 0, pieces(30))
        assert "rank-00000.safetensors" in str(caught.value)
        assert "File too large" in str(caught.value)

    assert in_child(run) == 0
    assert list((tmp_path / "checkpoints" / "step-00000030.t0001").iterdir()) == []
    assert newest(tmp_path)[0] == old


def test_two_processes_that_open_a_term_at_once_get_one_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmscale.errors import RunHeldError

    start(tmp_path)
    lease = Lease(tmp_path)
    monkeypatch.setattr(lease, "newest_term", lambda: 0)  # it looked before the other's record appeared
    with pytest.raises(RunHeldError, match="another process opened term 1 of this run in the same moment"):
        lease.open_term(None)


def test_only_a_commit_of_this_run_can_be_a_parent(tmp_path: Path) -> None:
    old, _ = two_checkpoints(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"COMMIT\.json"):
        start(tmp_path / "b", old)
    two_checkpoints(tmp_path / "c")
    with pytest.raises(CheckpointError, match="another commit"):
        start(tmp_path / "c", old)


def test_the_piece_has_the_fields_of_the_engines_fragment() -> None:
    from dataclasses import fields

    from fmscale.training.engine import Fragment

    assert {f.name for f in fields(Piece)} == {f.name for f in fields(Fragment)}
