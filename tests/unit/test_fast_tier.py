"""The fast tier: the newest checkpoint that holds, wherever it stands, and nothing that is pinned stands there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.config import CheckpointConfig, Config, RunConfig
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.steps import StepPlan
from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.events import read_events
from fmscale.training import block_file, fast_tier, host_memory
from fmscale.training.agree import ROLL_BACK, agree_on_checkpoint
from fmscale.training.checkpoint_format import MARKER, Commit, data_name, json_name
from fmscale.training.checkpoint_reader import CheckpointReader
from fmscale.training.fast_tier import FastTier
from fmscale.training.lease import Lease
from tests.checkpoints import RANGES, assert_holds, made_format_1, ranges_of, save, start, store_of
from tests.faults.test_checkpoint_faults import in_child
from tests.ranks import run_ranks
from tests.savers import rig


def config_of(run_dir: Path, fast_dir: Path) -> Config:
    checkpoint = CheckpointConfig(fast_dir=str(fast_dir), fast_every_steps=5)
    return Config(run=RunConfig(root=str(run_dir.parent), name=run_dir.name), checkpoint=checkpoint)


def tier_of(run_dir: Path) -> FastTier:
    fast_dir = run_dir.parent / "fast"
    fast_dir.mkdir(exist_ok=True)
    return FastTier(fast_dir, store_of(run_dir))


def save_fast(run_dir: Path, step: int, term: int, parent: str | None) -> Commit:
    return save(run_dir, step, term, parent, store=tier_of(run_dir), ledger=[])


@contextlib.contextmanager
def alone() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        assert isinstance(dist.group.WORLD, dist.ProcessGroup)
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def agreed(run_dir: Path) -> Commit | None:
    """What a start of one rank goes on from."""
    config = config_of(run_dir, run_dir.parent / "fast")
    with alone() as control:
        store = store_of(run_dir)
        fast = FastTier.of(config, store, 0, control)
        return commit_of(agree_on_checkpoint(config, store, 0, 1, control, RANGES, fast))


def commit_of(reader: CheckpointReader | None) -> Commit | None:
    return reader.commit if reader else None


def passed_over(run_dir: Path) -> list[str]:
    return [event["text"] for event in read_events(run_dir) if event["kind"] == "checkpoint_passed_over"]


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)


DAMAGE = {
    "data": lambda directory: flip(directory / data_name(1)),
    "json": lambda directory: flip(directory / json_name(0)),
    "marker": lambda directory: flip(directory / MARKER),
    "uncommitted": lambda directory: (directory / MARKER).unlink(),
    "missing": lambda directory: (directory / data_name(0)).unlink(),
    "short": lambda directory: os.truncate(directory / data_name(1), 40),
    "foreign": lambda directory: (directory / "rank-00002.json").write_bytes(b"{}"),
}
STATES = st.sampled_from(["none", "whole", "whole", *DAMAGE])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), STATES), min_size=1, max_size=5))
def test_the_newest_that_holds_over_both_tiers_is_taken(
    tmp_path_factory: pytest.TempPathFactory, states: list[tuple[bool, str]]
) -> None:
    run_dir = tmp_path_factory.mktemp("law") / "run"
    run_dir.mkdir()
    term, parent, made = start(run_dir), None, []
    for number, (fast, state) in enumerate(states, 1):
        if state != "none":
            commit = (save_fast if fast else save)(run_dir, 5 * number, term, parent)
            parent = parent if fast else commit.name
            made.append((fast, state, commit))
    for fast, state, commit in made:
        root = tier_of(run_dir).root if fast else store_of(run_dir).root
        DAMAGE.get(state, lambda directory: None)(root / commit.name)
    best = max((commit.step for _, state, commit in made if state == "whole"), default=None)
    if best is None and any(not fast and state != "uncommitted" for fast, state, _ in made):
        with pytest.raises(CheckpointError, match="no checkpoint of this run can be believed"):
            agreed(run_dir)
        return
    found = agreed(run_dir)
    assert (found.step if found else None) == best
    told = passed_over(run_dir)
    for _, _, commit in made:
        if commit.step > (best or 0):
            assert any(text.startswith(f"{commit.name} is passed over") for text in told), (commit.name, told)
    if found is not None:
        shutil.rmtree(tier_of(run_dir).root, ignore_errors=True)  # what is pinned stands in the run directory
        assert_holds(run_dir, found)
        assert start(run_dir, found) == 2
        assert store_of(run_dir).newest_valid(lambda text: None) == found
        again = save(run_dir, 50, 2, found.name)
        store_of(run_dir).prune(2, again, lambda text: None)
        assert agreed(run_dir) == again


def crashed(tmp_path: Path) -> tuple[Path, Commit, Commit]:
    """A run that ended after a shared save of step 10 and a fast one of step 15."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shared = save(run_dir, 10, start(run_dir), None)
    return run_dir, shared, save_fast(run_dir, 15, 1, shared.name)


def test_one_of_an_older_term_is_passed_over(tmp_path: Path) -> None:
    """A zombie's, say, or of a start that did not know the fast tier."""
    run_dir, shared, fast = crashed(tmp_path)
    Lease(run_dir).open_term(shared)
    assert agreed(run_dir) == shared
    assert passed_over(run_dir) == [
        f"{fast.name} is passed over: it is not of the run's newest term (in the fast tier)"
    ]
    with pytest.raises(CheckpointError, match="term 1 may not write checkpoints of this run"):
        save_fast(run_dir, 20, 1, shared.name)


def test_one_of_another_run_is_passed_over(tmp_path: Path) -> None:
    run_dir, shared, fast = crashed(tmp_path)
    (tmp_path / "b").mkdir()
    _, _, other = crashed(tmp_path / "b")
    assert fast.name == other.name
    root = tier_of(run_dir).root
    shutil.rmtree(root)
    shutil.copytree(tier_of(tmp_path / "b" / "run").root, root)
    assert agreed(run_dir) == shared
    assert "not of the run's newest term" in passed_over(run_dir)[0]


def test_runs_of_one_name_do_not_share_a_directory(tmp_path: Path) -> None:
    fast = [FastTier(tmp_path, store_of(tmp_path / parent / "run")).root for parent in ("a", "b", "a")]
    assert fast[0] == fast[2] != fast[1]
    assert all(root.name.startswith("run-") for root in fast)


@pytest.mark.parametrize("from_row", [4 * 14, 4 * 15])
def test_one_that_trained_rows_that_were_edited_since_is_passed_over(tmp_path: Path, from_row: int) -> None:
    """`fmscale order edit` sees the checkpoints of the run directory alone, and may change what comes after those."""
    run_dir, shared, fast = crashed(tmp_path)
    steps = StepPlan.constant(4, 8)
    ledger = Ledger().append("skip", {"rows": 4}, from_row=from_row, rows_consumed=shared.rows, steps=steps)
    ledger.save(run_dir / FILE_NAME)
    edited = from_row < fast.rows
    assert agreed(run_dir) == (shared if edited else fast)
    told = f"{fast.name} is passed over: rows that it has trained were edited since (in the fast tier)"
    assert passed_over(run_dir) == [told] * edited


def test_a_roll_back_does_not_look_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, shared, _ = crashed(tmp_path)
    monkeypatch.setenv(ROLL_BACK, shared.name)
    assert agreed(run_dir) == shared


def test_a_run_whose_own_checkpoints_are_all_damaged_goes_on_from_the_fast_one(tmp_path: Path) -> None:
    run_dir, shared, fast = crashed(tmp_path)
    flip(store_of(run_dir).root / shared.name / MARKER)
    assert agreed(run_dir) == fast


def test_a_run_directory_that_is_full_costs_the_fast_one_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, shared, fast = crashed(tmp_path)
    real = block_file.require_room

    def none_left(path: Path, size: int, files: str = "") -> None:
        raise block_file._failed(str(path), size, 0, "no room on the disk", 28)

    monkeypatch.setattr(block_file, "require_room", none_left)
    assert agreed(run_dir) == shared
    assert "0 bytes free" in passed_over(run_dir)[0]
    assert not (store_of(run_dir).root / fast.name).exists()
    monkeypatch.setattr(block_file, "require_room", real)
    assert agreed(run_dir) == fast


def test_one_of_format_1_is_copied_as_it_is(tmp_path: Path) -> None:
    """The crash came before the update of the program."""
    run_dir, _, fast = crashed(tmp_path)
    directory = tier_of(run_dir).root / fast.name
    old = made_format_1(directory)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert agreed(run_dir) == old
    assert {path.name: path.read_bytes() for path in (store_of(run_dir).root / old.name).iterdir()} == files
    assert_holds(run_dir, old)
    new = save(run_dir, 20, start(run_dir, old), old.name)
    assert (new.version, store_of(run_dir).newest_valid()) == (2, new)


POINTS = [f"ckpt.mid_rank:kill@{n}" for n in range(1, 5)] + [f"ckpt.before_read_back:kill@{n}" for n in range(1, 5)]
POINTS += ["ckpt.before_commit:kill", "ckpt.after_commit:kill"]


@pytest.mark.parametrize("fault", POINTS)
def test_killed_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    run_dir, shared, fast = crashed(tmp_path)
    tier = tier_of(run_dir)

    def promote() -> None:
        monkeypatch.setenv("FAULTS", fault)
        tier.copy_share(fast, 0, 1)
        tier.publish(fast, 0)

    assert in_child(promote) == -signal.SIGKILL
    shutil.copytree(run_dir, tmp_path / "lost" / "run")  # whose fast tier went with the machine
    found = agreed(tmp_path / "lost" / "run")
    assert found == (fast if "after_commit" in fault else shared)
    assert agreed(run_dir) == fast
    assert_holds(run_dir, fast)
    term = start(run_dir, fast)
    assert save(run_dir, 20, term, fast.name).parent == fast.name


SAVING = ["before_rank", "mid_rank", "after_data", "before_read_back", "after_rank", "before_commit", "after_commit"]


@pytest.mark.parametrize("point", [*SAVING, "prune"])
def test_killed_while_a_fast_one_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    run_dir, shared, fast = crashed(tmp_path)

    def save_another() -> None:
        monkeypatch.setenv("FAULTS", f"ckpt.{point}:kill")
        tier_of(run_dir).prune(2, save_fast(run_dir, 20, 1, shared.name), read_back=False)

    assert in_child(save_another) == -signal.SIGKILL
    found = agreed(run_dir)
    assert found is not None
    assert found.step == (20 if point in ("after_commit", "prune") else fast.step)
    assert_holds(run_dir, found)
    assert save(run_dir, 30, start(run_dir, found), found.name).parent == found.name


def test_two_ranks_copy_it_and_pass_over_what_one_of_them_finds_damaged(tmp_path: Path) -> None:
    run_dir, shared, fast = crashed(tmp_path)
    shutil.copytree(tmp_path, copy := tmp_path.with_name("copy"))
    assert run_ranks(_agree, 2, run_dir, [tmp_path / "fast"] * 2) == [fast, fast]
    assert_holds(run_dir, fast)
    damaged = FastTier(copy / "fast", store_of(copy / "run"))
    shutil.move(copy / "fast" / tier_of(run_dir).root.name, damaged.root)
    flip(damaged.root / fast.name / data_name(1))
    assert run_ranks(_agree, 2, copy / "run", [copy / "fast"] * 2) == [shared, shared]
    assert "rank-00001.safetensors" in passed_over(copy / "run")[0]
    assert not (copy / "run" / "checkpoints" / fast.name).exists()


def _agree(rank: int, world: int, run_dir: Path, fast_dirs: list[Path]) -> Commit | None:
    config, store = config_of(run_dir, fast_dirs[rank]), store_of(run_dir)
    control = dist.group.WORLD
    assert isinstance(control, dist.ProcessGroup)
    fast = FastTier.of(config, store, rank, control)
    return commit_of(agree_on_checkpoint(config, store, rank, world, control, ranges_of(rank, world), fast))


@pytest.mark.parametrize(
    ("folders", "why"), [("ab", "ranks see different ones"), ("ac", "no such directory on rank 1")]
)
def test_ranks_that_do_not_see_one_directory_have_none(tmp_path: Path, folders: str, why: str) -> None:
    """As on several nodes: what the ranks of another one wrote cannot be read."""
    run_dir, shared, _ = crashed(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run_ranks(_agree, 2, run_dir, [tmp_path / folder for folder in folders]) == [shared, shared]
    (remark,) = [event["text"] for event in read_events(run_dir) if event["kind"] == "remark"]
    assert remark == f"there are no fast checkpoints in {tmp_path / 'a'}: {why}"


def test_one_that_was_committed_in_the_run_directory_too_is_not_copied(tmp_path: Path) -> None:
    """The run died before it removed the fast one."""
    run_dir, shared, _ = crashed(tmp_path)
    own = save(run_dir, 15, 1, shared.name)
    assert agreed(run_dir) == own
    assert not any(event["kind"] == "promote" for event in read_events(run_dir))
    flip(store_of(run_dir).root / own.name / data_name(0))
    assert agreed(run_dir) == shared
    assert len(passed_over(run_dir)) == 1


def test_another_commit_in_its_place_is_not_overwritten(tmp_path: Path) -> None:
    """A zombie was quicker."""
    run_dir, _, fast = crashed(tmp_path)
    tier = tier_of(run_dir)
    tier.copy_share(fast, 0, 1)
    marker = store_of(run_dir).root / fast.name / MARKER
    marker.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="a file that does not belong there"):
        tier.publish(fast, 0)
    tier.give_up(fast)
    assert marker.read_bytes() == b"{}"
    shutil.rmtree(tier.root)
    with pytest.raises(CheckpointError, match=r"expected: all of its files: .*\n  found: No such file"):
        tier.copy_share(fast, 0, 1)


def test_a_disk_that_gives_back_another_commit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, _, fast = crashed(tmp_path)
    tier = tier_of(run_dir)
    tier.copy_share(fast, 0, 1)
    other = replace(fast, rows=fast.rows + 1).to_bytes()
    monkeypatch.setattr(fast_tier, "publish_new", lambda path, content: path.write_bytes(other))
    with pytest.raises(CheckpointError, match=rf"expected: commit {fast.commit_hash}: .*\n  found: another commit"):
        tier.publish(fast, 0)


# --- saving


def test_without_memory_for_it_there_is_none_and_the_others_are_as_asynchronous_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    tier, term = tier_of(run_dir), start(run_dir)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 10_000)
    monkeypatch.setattr(tier, "in_memory", False)
    with rig(run_dir, term, fast=tier) as r:
        bytes_ = r.saver._bytes
        assert r.remarks() == []
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 2 * bytes_)
    monkeypatch.setattr(tier, "in_memory", True)
    with rig(run_dir, term, fast=tier) as r:
        (remark,) = r.remarks()
        assert "there are no fast checkpoints: their copies do not fit into memory" in remark
        assert f"expected: {3 * bytes_:,} bytes of 1 ranks" in remark
        r.save(5, fast=True)
        r.saver.finish()
        assert list(tier.list()) == []
        assert r.saver._image is not None


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_what_is_in_memory_is_known() -> None:
    assert host_memory.in_memory(Path("/dev/shm"))
    assert not host_memory.in_memory(Path("/proc"))
    assert not host_memory.in_memory(Path("/nowhere"))


def test_one_is_kept_until_a_newer_one_stands(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    tier = tier_of(run_dir)
    with rig(run_dir, start(run_dir), fast=tier) as r:
        for step in (5, 6):
            r.save(step, fast=True)
            r.saver.finish()
            assert [commit.name for commit in tier.list()] == [f"step-{step:08}.t0001"]
            assert r.saver.newest is None
        r.save(6)  # asked to stop there, say
        r.saver.finish()
        assert not tier.root.exists()
        r.save(7, fast=True)
        r.save(8, fast=True)
        r.saver.finish()
        (fast,), (own,) = tier.list(), r.commits()
        assert (own.step, own.parent) == (6, None)
        assert (fast.step, fast.parent, fast.rows, fast.state) == (8, own.name, 32, {"step": 8, "ledger": []})
        names = [[event["name"][:13] for event in r.events(kind)] for kind in ("fast_checkpoint", "checkpoint")]
        assert names == [[f"step-{step:08}" for step in (5, 6, 7, 8)], ["step-00000006"]]
        assert r.remarks() == []
    assert agreed(run_dir) == fast
    assert_holds(run_dir, fast)


def test_what_a_newer_holder_saved_is_not_cleared_by_an_older_one(tmp_path: Path) -> None:
    run_dir, shared, fast = crashed(tmp_path)
    again = save_fast(run_dir, 20, start(run_dir, shared), shared.name)
    tier = tier_of(run_dir)
    assert list(tier.list()) == [fast, again]
    tier.clear(1)  # of a zombie that committed in term 1 and was stopped right then
    assert list(tier.list()) == [again]
    tier.clear()
    assert not tier.root.exists()
    tier.clear()


def test_a_directory_that_is_gone_costs_fast_checkpoints_only(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    tier = tier_of(run_dir)
    with rig(run_dir, start(run_dir), fast=tier) as r:
        shutil.rmtree(tmp_path / "fast")
        r.save(5, fast=True)
        r.save(10)
        r.saver.finish()
        (tmp_path / "fast").mkdir()
        r.save(15, fast=True)
        r.saver.finish()
        failed, mended = r.remarks()
        assert "no fast checkpoint at step 5, training goes on: a checkpoint could not be written" in failed
        assert mended == "step-00000015.t0001 stands: checkpoints can be written to the fast tier again"
        assert [commit.step for commit in r.commits()] == [10]


def test_a_run_without_a_fast_tier_saves_nothing_there(tmp_path: Path) -> None:
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(5, fast=True)
        r.saver.finish()
        assert r.commits() == []


def test_a_failed_save_of_the_run_is_not_forgotten_for_a_fast_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with rig(run_dir, start(run_dir), fast=tier_of(run_dir)) as r:
        monkeypatch.setattr(block_file, "_read_back", lambda *a: ("other",))
        r.save(10)
        with pytest.raises(MachineError):
            r.saver.finish()
        monkeypatch.undo()
        r.save(15, fast=True)
        with pytest.raises(MachineError, match="other bytes when they were read again"):
            r.saver.finish()
