"""Saving while training goes on: what is committed is the state of the step boundary, one save at a time, and a disk
that fails costs checkpoints and not the run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.heartbeat import heartbeat_path
from fmscale.training import block_file, checkpoint, host_memory, save, saver
from fmscale.training.checkpoint_format import MARKER
from fmscale.training.fragment_file import LiveFragments, in_file_order, layout_of
from fmscale.training.host_image import HostImage
from fmscale.training.host_memory import Need, available_bytes, shortage
from fmscale.training.save import IDLE
from tests.checkpoints import SHAPES, Piece, assert_holds, deal, start, store_of, two_checkpoints, values
from tests.ranks import run_ranks
from tests.savers import rig


class SlowDisk:
    """Writes nothing until it is `open`ed; knows which files were written when."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.spans: list[tuple[float, float]] = []
        self._stream = block_file._stream

    def stream(self, *args: Any) -> str:
        started = time.monotonic()
        assert self.gate.wait(30), "nobody opened the gate"
        result = self._stream(*args)
        self.spans.append((started, time.monotonic()))
        return result


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(block_file, "_stream", disk.stream)
    yield disk
    disk.gate.set()


def test_what_is_committed_is_the_state_of_the_boundary_however_long_it_takes(tmp_path: Path, slow: SlowDisk) -> None:
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        for step in range(2, 6):  # training goes on, and in place
            assert not r.exchange()
            r.train(step)
        assert r.commits() == []
        slow.gate.set()
        r.saver.finish()
        (commit,) = r.commits()
        assert (commit.step, commit.rows, commit.state) == (1, 4, {"step": 1, "ledger": []})
        assert_holds(tmp_path, commit)
        assert r.exchange()
        assert r.saver.progress() == IDLE


def test_saves_come_one_after_another_and_the_next_one_waits(tmp_path: Path, slow: SlowDisk) -> None:
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        threading.Timer(0.4, slow.gate.set).start()
        r.save(2)
        r.save(3)
        r.saver.finish()
        commits = r.commits()
        assert [(c.step, c.parent) for c in commits] == [(1, None), (2, commits[0].name), (3, commits[1].name)]
        for commit in commits:
            assert_holds(tmp_path, commit)
        assert all(before[1] <= after[0] for before, after in zip(slow.spans, slow.spans[1:], strict=False))
        first, second, _ = r.events("checkpoint")
        assert first["pause_s"] < 0.3 < second["pause_s"] <= second["seconds"]  # the wait for the first one counts
        assert second["bytes"] == (tmp_path / "checkpoints" / commits[1].name / "rank-00000.safetensors").stat().st_size


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    _, new = two_checkpoints(tmp_path)
    with rig(tmp_path, start(tmp_path, new), new) as r:
        r.save(20)  # the step that the run goes on from
        assert r.saver.progress() == IDLE
        r.save(21)
        r.save(21)
        r.saver.finish()
        assert [commit.name for commit in r.commits()][2:] == ["step-00000021.t0002"]
        assert r.commits()[-1].parent == new.name


def test_without_asynchronous_a_save_stands_when_begin_returns(tmp_path: Path) -> None:
    with rig(tmp_path, start(tmp_path), asynchronous=False) as r:
        r.save(1)
        (commit,) = r.commits()
        r.train(2)
        assert_holds(tmp_path, commit)
        (event,) = r.events("checkpoint")
        assert event["pause_s"] == event["seconds"]


def test_memory_that_is_too_small_is_told_at_the_start_and_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 700)
    with rig(tmp_path, start(tmp_path)) as r:
        (remark,) = r.remarks()
        assert "checkpoints are written while training waits: their copies do not fit into memory" in remark
        assert "bytes of 1 ranks" in remark
        assert "found: 700 bytes available" in remark
        r.save(1)
        assert len(r.commits()) == 1


def test_ranks_of_a_node_share_its_memory() -> None:
    fits = [Need("a", 400, 1000), Need("a", 400, 1010), Need("b", 700, 900)]
    assert shortage(fits) is None
    text = shortage([*fits, Need("a", 1, 990)])
    assert text is not None
    assert "expected: 801 bytes of 3 ranks on a, at most 80% of what it has" in text
    assert "found: 990 bytes available" in text


# --- a disk that fails

FAILURES = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE]


@pytest.mark.parametrize("code", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["_create", "_stream", "_read_back", "link_new"])
def test_a_disk_that_fails_costs_a_checkpoint_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        r.saver.finish()
        with monkeypatch.context() as patch:
            patch.setattr(block_file, where, fail)
            r.save(2)
            while not r.exchange():
                pass
            assert os.listdir(tmp_path / "checkpoints") == ["step-00000001.t0001"]
            (remark,) = r.remarks()
            assert "no checkpoint at step 2, training goes on: a checkpoint could not be written" in remark
            assert f"bytes for {tmp_path / 'checkpoints' / 'step-00000002.t0001' / 'rank-00000.safetensors'}" in remark
            assert f"bytes free ({os.strerror(code)})" in remark
            with pytest.raises(MachineError, match=os.strerror(code)):
                r.saver.finish()
        r.save(3)
        r.saver.finish()
        assert [(c.step, c.parent) for c in r.commits()] == [(1, None), (3, "step-00000001.t0001")]
        assert r.remarks()[1:] == ["step-00000003.t0001 stands: checkpoints can be written again"]


def test_room_for_the_whole_checkpoint_is_asked_for_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    with rig(tmp_path, start(tmp_path)) as r:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        r.save(1)
        assert not (tmp_path / "checkpoints").exists()
        (remark,) = r.remarks()
        assert "step-00000001.t0001 (all ranks)\n  found: 100 bytes free (no room on the disk)" in remark
        monkeypatch.undo()
        r.save(1)
        r.saver.finish()
        assert [commit.step for commit in r.commits()] == [1]


def test_a_directory_that_is_gone_is_not_put_back_empty(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with rig(run_dir, start(run_dir)) as r:
        r.save(1)
        r.saver.finish()
        run_dir.rename(tmp_path / "unmounted")
        r.save(2)
        with pytest.raises(MachineError, match="No such file or directory"):
            r.saver.finish()
        assert not run_dir.exists()
        (tmp_path / "unmounted").rename(run_dir)
        r.save(3)
        r.saver.finish()
        assert [commit.step for commit in r.commits()] == [1, 3]
        assert "no checkpoint at step 2" in r.remarks()[0]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A run whose checkpoints stand on a tmpfs of 64 KiB."""
    run_dir = tmp_path / "run"
    start(run_dir)
    target = run_dir / "checkpoints"
    target.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(target)], capture_output=True)
    if done.returncode:
        pytest.skip(f"NOT RUN, cannot mount a tmpfs (the errno tests above stand in): {done.stderr.decode().strip()}")
    yield run_dir
    subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_file_system_that_is_really_full_and_then_is_not(mounted: Path) -> None:
    with rig(mounted, 1) as r:
        r.save(1)
        r.saver.finish()
        ballast = mounted / "checkpoints" / ".ballast"
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        r.save(2)
        with pytest.raises(MachineError, match=r"found: 0 bytes free"):
            r.saver.finish()
        os.truncate(ballast, 48 << 10)  # room as far as anyone can tell beforehand; a page short on the way
        r.save(3)
        with pytest.raises(MachineError, match=r"bytes free \(No space left on device\)"):
            r.saver.finish()
        assert sorted(path.name for path in (mounted / "checkpoints").iterdir()) == [".ballast", "step-00000001.t0001"]
        ballast.unlink()
        r.save(4)
        r.saver.finish()
        assert [commit.step for commit in r.commits()] == [1, 4]


def test_a_file_system_that_becomes_read_only(mounted: Path) -> None:
    with rig(mounted, 1) as r:
        r.save(1)
        r.saver.finish()
        subprocess.run(["mount", "-o", "remount,ro", str(mounted / "checkpoints")], check=True)
        r.save(2)
        with pytest.raises(MachineError, match=r"Read-only file system"):
            r.saver.finish()
        subprocess.run(["mount", "-o", "remount,rw", str(mounted / "checkpoints")], check=True)
        r.save(3)
        r.saver.finish()
        assert [commit.step for commit in r.commits()] == [1, 3]


def test_what_cannot_be_removed_does_not_undo_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmscale.training.checkpoint import CheckpointStore

    def fail(self: CheckpointStore, *args: Any, **more: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(CheckpointStore, "prune", fail)
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        r.saver.finish()
        assert [commit.step for commit in r.commits()] == [1]
        assert "step-00000001.t0001 stands, but older ones could not be removed" in r.remarks()[0]


def test_a_commit_that_does_not_read_back_is_withdrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmscale.training import checkpoint

    publish = checkpoint.publish_new

    def damaged(path: Path, content: bytes) -> None:
        publish(path, content.replace(b'"rows":8', b'"rows":9') if path.name == MARKER else content)

    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        r.saver.finish()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "publish_new", damaged)
            r.save(2)
            with pytest.raises(MachineError, match=r"COMMIT.json\n.*other bytes when they were read again"):
                r.saver.finish()
        assert os.listdir(tmp_path / "checkpoints") == ["step-00000001.t0001"]


def _a_rank_fails(rank: int, world: int, run_dir: Path) -> tuple[int, list[str], list[str]]:
    """Steps until the save was known to have ended, what was left of it, and what the run told."""
    os.environ["FAULTS"] = "ckpt.mid_rank/1:enospc"
    disk = SlowDisk()
    if rank == 2:  # still writing when it learns that rank 1 has failed
        block_file._stream = disk.stream
    with rig(run_dir, 1) as r:
        r.save(1)
        steps = 0
        while not r.exchange():
            steps += 1
            r.train(100 + steps)
            if steps == 5:
                disk.gate.set()
            time.sleep(0.01)
        assert r.saver.progress() is IDLE
        dist.barrier()
        left = os.listdir(run_dir / "checkpoints")
        dist.barrier()
        r.save(2)
        r.saver.finish()
        return steps, left, r.remarks()


@pytest.mark.processes
def test_all_ranks_learn_in_the_same_step_that_one_has_failed_and_nobody_writes_when_parts_are_removed(
    tmp_path: Path,
) -> None:
    start(tmp_path)
    results = run_ranks(_a_rank_fails, 3, tmp_path)
    steps, left, remarks = results[0]
    assert [result[0] for result in results] == [steps] * 3
    assert steps >= 5
    assert left == []
    assert "no checkpoint at step 1, training goes on: a checkpoint could not be written" in remarks[0]
    assert "rank-00001.safetensors" in remarks[0]
    (commit,) = store_of(tmp_path).list()
    assert (commit.step, commit.world) == (2, 3)
    assert_holds(tmp_path, commit)


# --- what never comes


def _on_directories_of_their_own(rank: int, world: int, root: Path) -> tuple[str, list[str], list[str]]:
    """What `finish` raised, what the run told, what is left."""
    save.SEEN_S = 0.5
    run_dir = root / f"node-{rank}"
    with rig(run_dir, 1) as r:
        r.save(1)
        while not r.exchange():
            time.sleep(0.01)
        with pytest.raises(MachineError) as caught:
            r.saver.finish()
        return str(caught.value), r.remarks(), os.listdir(run_dir / "checkpoints")


@pytest.mark.processes
def test_parts_that_rank_0_never_sees_are_told_and_training_goes_on(tmp_path: Path) -> None:
    """As where the run directory is each node's own."""
    for rank in range(2):
        start(tmp_path / f"node-{rank}")
    (error, remarks, left), (other, _, _) = run_ranks(_on_directories_of_their_own, 2, tmp_path)
    assert "the ranks have written step-00000001.t0001, and rank 0 does not see all of it" in error
    assert "within 0.5 s" in error
    assert "nothing from rank 1" in error
    assert "on storage that all nodes share" in error
    assert other == error
    assert remarks[0].startswith("no checkpoint at step 1, training goes on: the ranks have written")
    assert left == []


def _one_writes_slowly(rank: int, world: int, run_dir: Path) -> list[str]:
    save.SEEN_S = 0.2
    disk = SlowDisk()
    if rank == 1:
        block_file._stream = disk.stream
        threading.Timer(1.5, disk.gate.set).start()
    with rig(run_dir, 1) as r:
        r.save(1)
        r.saver.finish()
        return r.remarks()


@pytest.mark.processes
def test_a_rank_may_write_for_as_long_as_it_takes(tmp_path: Path) -> None:
    start(tmp_path)
    assert run_ranks(_one_writes_slowly, 2, tmp_path) == [[], []]
    (commit,) = store_of(tmp_path).list()
    assert_holds(tmp_path, commit)


def beats(run_dir: Path) -> int:
    return int(json.loads(heartbeat_path(run_dir, 0).read_bytes())["count"])


def test_a_disk_that_does_not_answer_is_no_sign_of_life_and_the_end_of_the_rank_in_the_end(
    tmp_path: Path, slow: SlowDisk
) -> None:
    """For whoever watches heartbeats it is a hang before that."""
    with rig(tmp_path, start(tmp_path), timeout_s=1.0) as r:
        r.save(1)
        before = beats(tmp_path)
        with pytest.raises(
            MachineError, match=r"rank 0 stands still in its part of step-00000001.t0001 \(write\)"
        ) as error:
            r.saver.finish()
        assert beats(tmp_path) <= before + 1
        assert "some progress within launch.timeout_s=1" in str(error.value)
        slow.gate.set()


def test_so_is_a_commit_that_does_not_come_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    publish_new = checkpoint.publish_new

    def late(path: Path, content: bytes) -> None:
        assert gate.wait(30), "nobody opened the gate"
        publish_new(path, content)

    monkeypatch.setattr(checkpoint, "publish_new", late)
    with rig(tmp_path, start(tmp_path), timeout_s=1.0) as r:
        r.save(1)
        with pytest.raises(MachineError, match=r"rank 0 stands still in its part of step-00000001.t0001 \(commit\)"):
            r.saver.finish()
        gate.set()


# --- ends


def test_another_holder_of_the_run_ends_this_one(tmp_path: Path, slow: SlowDisk) -> None:
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        assert start(tmp_path) == 2
        slow.gate.set()
        with pytest.raises(CheckpointError, match="term 1 may not write checkpoints of this run"):
            r.saver.finish()
        assert r.commits() == []


def test_who_closes_gives_up_what_is_under_way(tmp_path: Path, slow: SlowDisk) -> None:
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        threading.Timer(1.5, slow.gate.set).start()
        r.saver.close()
        assert r.commits() == []


def test_a_save_that_is_nearly_done_survives_the_end_of_training(
    tmp_path: Path, slow: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "FINISH_S", 10.0)  # on a busy machine half a second is short
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        threading.Timer(0.1, slow.gate.set).start()
    assert [commit.step for commit in r.commits()] == [1]


def test_an_error_of_the_program_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTS", "ckpt.after_data:raise")
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        with pytest.raises(RuntimeError, match="injected"):
            r.saver.finish()


# --- what stays


def test_checkpoints_at_an_interval_stay_for_ever(tmp_path: Path) -> None:
    with rig(tmp_path, start(tmp_path), keep=2, keep_every_steps=4) as r:
        for step in range(1, 11):
            r.save(step)
        r.saver.finish()
        assert [commit.step for commit in r.commits()] == [4, 8, 9, 10]


# --- the copy


@given(data=st.data(), world=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_the_copy_is_the_file(data: st.DataObject, world: int) -> None:
    cuts = {p: data.draw(st.lists(st.integers(0, len(values(p, "master", 0))), max_size=4)) for p in SHAPES}
    for before, after in zip(deal(1, world, cuts), deal(2, world, cuts), strict=True):
        image = HostImage(layout_of(in_file_order(before)))
        for part in (before, after):  # the memory is used again
            image.fill(iter(part))
            content = b"".join(image.blocks())
            want = b"".join(LiveFragments(part).blocks())
            assert content[: image.layout.bytes] == want
            assert len(content) % block_file.PAGE_BYTES == 0
            assert set(content[image.layout.bytes :]) <= {0}


def test_a_rank_that_owns_something_else_than_before_is_a_bug(tmp_path: Path) -> None:
    fragments = deal(1, 1)[0]
    image = HostImage(layout_of(in_file_order(fragments)))
    other = [Piece(f.param, f.kind, 0, f.tensor, f.shape) if f.param != "norm" else f for f in fragments]
    other[3] = Piece("nose", other[3].kind, 0, other[3].tensor, other[3].shape)
    with pytest.raises(AssertionError, match="where it owned"):
        image.fill(other)


def test_a_file_system_without_direct_access_is_written_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []
    really = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        opened.append(".safetensors" in str(path))
        return really(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    with rig(tmp_path, start(tmp_path)) as r:
        r.save(1)
        r.saver.finish()
        assert_holds(tmp_path, r.commits()[0])
    assert any(opened)


# --- memory


def cgroup(root: Path, version: int, path: str, **files: str) -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(f"0::{path}\n" if version == 2 else f"4:memory:{path}\n0::/\n")
    directory = root / "sys/fs/cgroup" / ("memory" if version == 1 else "") / path.lstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / f"memory.{name}").write_text(text)


def test_a_limit_of_a_control_group_counts_and_page_cache_does_not(tmp_path: Path) -> None:
    cgroup(tmp_path / "v2", 2, "/job", max="1000", current="700", stat="anon 600\ninactive_file 50\n")
    assert available_bytes(tmp_path / "v2") == 350
    cgroup(tmp_path / "v2", 2, "/job/step", max="max", current="700", stat="inactive_file 50\n")  # the parent's holds
    assert available_bytes(tmp_path / "v2") == 350
    old = {"limit_in_bytes": "900", "usage_in_bytes": "950", "stat": "total_inactive_file 40\n"}
    cgroup(tmp_path / "v1", 1, "/job", **old)
    assert available_bytes(tmp_path / "v1") == 0
    cgroup(tmp_path / "none", 2, "/", max="max", current="1", stat="")
    unlimited = available_bytes(tmp_path / "none")
    assert unlimited == pytest.approx(available_bytes(tmp_path / "nowhere"), rel=0.2)
    assert unlimited > 1 << 20


def test_a_real_control_group_limits_a_process(tmp_path: Path) -> None:
    import sys
    import uuid

    group = Path("/sys/fs/cgroup/memory") / f"fmscale-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(256 << 20))
    except OSError as error:
        pytest.skip(f"NOT RUN, cannot make a memory control group (the test above stands in): {error}")
    try:
        code = f"open('{group}/cgroup.procs', 'w').write('0')\n"
        code += "from fmscale.training.host_memory import available_bytes; print(available_bytes())"
        left = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        assert 128 << 20 < left < 256 << 20
    finally:
        group.rmdir()
