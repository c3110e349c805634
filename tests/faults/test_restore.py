"""What a start goes on from, when the run directory or the object store is damaged or lacks something."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmscale.config import CheckpointConfig, Config, RunConfig
from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.events import read_events
from fmscale.training.agree import ROLL_BACK, agree_on_checkpoint
from fmscale.training.checkpoint_format import MARKER, Commit, data_name, json_name
from fmscale.training.lease import Lease
from fmscale.training.remote_store import RemoteStore
from tests.checkpoints import RANGES, assert_holds, ranges_of, save, store_of
from tests.ranks import RankError, run_ranks
from tests.s3_server import BUCKET, Proxy, Request
from tests.unit.test_fast_tier import alone, commit_of, flip, passed_over

FILES = [data_name(0), data_name(1), json_name(0), json_name(1)]


def config_of(run_dir: Path) -> Config:
    checkpoint = CheckpointConfig(remote=f"s3://{BUCKET}/runs", remote_timeout_s=20)
    return Config(run=RunConfig(root=str(run_dir.parent), name=run_dir.name), checkpoint=checkpoint)


def remote_of(run_dir: Path) -> RemoteStore:
    return RemoteStore(f"s3://{BUCKET}/runs", run_dir, 20)


def new_run(tmp_path: Path) -> Path:
    return tmp_path / f"run{uuid.uuid4().hex}"


def open_term(run_dir: Path, parent: Commit | None = None) -> int:
    return Lease(run_dir).open_term(parent, announce=remote_of(run_dir).open_term)


def upload(run_dir: Path, commit: Commit, term: int) -> None:
    remote = remote_of(run_dir)
    remote.push(commit, 0, 1)
    remote.commit(commit, term)


def in_both(tmp_path: Path, *steps: int) -> tuple[Path, list[Commit]]:
    """A run of one term whose checkpoints stand here and in the store."""
    run_dir, commits = new_run(tmp_path), list[Commit]()
    term = open_term(run_dir)
    for step in steps:
        commits.append(save(run_dir, step, term, commits[-1].name if commits else None))
        upload(run_dir, commits[-1], term)
    return run_dir, commits


def agreed(run_dir: Path) -> Commit | None:
    """What a start of one rank goes on from."""
    with alone() as control:
        return commit_of(agree_on_checkpoint(config_of(run_dir), store_of(run_dir), 0, 1, control, RANGES))


def aws() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _agree(rank: int, world: int, run_dir: Path, credentials: dict[str, str]) -> Commit | None:
    os.environ.update(credentials)  # ranks have the environment of the first test that started any
    (run_dir / f"pid-{rank}").write_text(str(os.getpid()))
    control = dist.group.WORLD
    assert isinstance(control, dist.ProcessGroup)
    wanted = ranges_of(rank, world)
    return commit_of(agree_on_checkpoint(config_of(run_dir), store_of(run_dir), rank, world, control, wanted))


def fetched(run_dir: Path) -> list[tuple[str, int]]:
    return [(event["name"], event["bytes"]) for event in read_events(run_dir) if event["kind"] == "fetch"]


def here(run_dir: Path, commit: Commit) -> Path:
    return run_dir / "checkpoints" / commit.name


def spoil_there(run_dir: Path, commit: Commit, file: str) -> None:
    bucket = remote_of(run_dir).bucket
    content = bytearray(bucket.get(f"checkpoints/{commit.name}/{file}") or b"")
    content[len(content) // 2] ^= 4
    bucket._put(f"checkpoints/{commit.name}/{file}", bytes(content))


# --- the law


@dataclass(frozen=True)
class Copy:
    """What became of one copy of a checkpoint."""

    bad: frozenset[str]
    """Files with a flipped bit."""
    marker: str
    """whole, flipped or missing."""
    foreign: bool = False


MARKERS = st.sampled_from(["whole", "whole", "whole", "flipped", "missing"])
BAD = st.frozensets(st.sampled_from(FILES), max_size=2) | st.just(frozenset[str]())
HERE = st.builds(Copy, bad=BAD, marker=MARKERS, foreign=st.sampled_from([False, False, False, True]))
THERE = st.builds(Copy, bad=BAD, marker=MARKERS)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(copies=st.lists(st.tuples(st.none() | HERE, st.none() | THERE), min_size=1, max_size=3))
def test_the_newest_that_holds_in_either_place_or_in_both_together_is_taken(
    tmp_path_factory: pytest.TempPathFactory, server: Proxy, copies: list[tuple[Copy | None, Copy | None]]
) -> None:
    run_dir, commits = in_both(tmp_path_factory.mktemp("law"), *(10 * n for n in range(1, len(copies) + 1)))
    bucket, best, markers = remote_of(run_dir).bucket, 0, 0
    for commit, (local, remote) in zip(commits, copies, strict=True):
        directory = here(run_dir, commit)
        if local is None:
            shutil.rmtree(directory)
        else:
            for file in [*local.bad, *([MARKER] if local.marker == "flipped" else [])]:
                flip(directory / file)
            if local.marker == "missing":
                (directory / MARKER).unlink()
            if local.foreign:
                (directory / "rank-00002.json").write_bytes(b"{}")
        if remote is None:
            bucket.delete(bucket.list(f"checkpoints/{commit.name}/"))
        else:
            for file in [*remote.bad, *([MARKER] if remote.marker == "flipped" else [])]:
                spoil_there(run_dir, commit, file)
            if remote.marker == "missing":
                bucket.delete([f"checkpoints/{commit.name}/{MARKER}"])
        foreign = local is not None and local.foreign
        by_itself = local is not None and local.marker == "whole" and not local.bad
        lacking = frozenset(FILES) if local is None else local.bad
        together = remote is not None and remote.marker == "whole" and not lacking & remote.bad
        if (by_itself or together) and not foreign:
            best = commit.step
        markers += sum(each is not None and each.marker != "missing" for each in (local, remote))
    if not best and markers:
        with pytest.raises(CheckpointError, match="no checkpoint of this run can be believed"):
            agreed(run_dir)
        return
    found = agreed(run_dir)
    assert (found.step if found else 0) == best
    told = passed_over(run_dir)
    assert not any("/tmp/tmp" in text for text in told), "messages name the bucket, not the place it was mirrored to"
    for commit, pair in zip(commits, copies, strict=True):
        if commit.step > best and pair != (None, None):
            assert any(text.startswith(f"{commit.name} is passed over") for text in told), (commit.name, told)
    if found is not None:
        assert store_of(run_dir).newest_valid(lambda text: None) == found
        assert_holds(run_dir, found)
        before = len(fetched(run_dir))
        assert open_term(run_dir, found) == 2
        assert agreed(run_dir) == found
        assert len(fetched(run_dir)) == before, "it stands here now"


# --- cases of it, and what is said


def test_a_damaged_file_costs_its_own_bytes(tmp_path: Path, server: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, (_, new) = in_both(tmp_path, 10, 20)
    flip(here(run_dir, new) / data_name(1))
    size = (here(run_dir, new) / data_name(1)).stat().st_size
    assert agreed(run_dir) == new
    assert_holds(run_dir, new)
    assert fetched(run_dir) == [(new.name, size)]
    (text,) = passed_over(run_dir)
    assert text.startswith(f"{new.name} is passed over: ")
    assert data_name(1) in text
    url = f"s3://{BUCKET}/runs/{run_dir.name}"
    assert f"{new.name} was damaged here and is whole again: {size:,} bytes from {url}\n" in capsys.readouterr().out


def test_one_that_is_missing_here_is_fetched_though_an_older_one_stands(
    tmp_path: Path, server: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, (_, new) = in_both(tmp_path, 10, 20)
    shutil.rmtree(here(run_dir, new))
    assert agreed(run_dir) == new
    assert f"{new.name} was fetched: " in capsys.readouterr().out


def test_the_damaged_file_stays_to_be_looked_at_unless_there_is_a_better_one(tmp_path: Path, server: Proxy) -> None:
    run_dir, (old, new) = in_both(tmp_path, 10, 20)
    flip(file := here(run_dir, new) / data_name(1))
    spoil_there(run_dir, new, data_name(1))
    raw = file.read_bytes()
    assert agreed(run_dir) == old
    assert file.read_bytes() == raw
    locally, remotely = passed_over(run_dir)
    assert f"in s3://{BUCKET}/runs/{run_dir.name}" in remotely
    assert remotely.startswith(f"{new.name} is passed over in the object store: ")
    assert locally.startswith(f"{new.name} is passed over: ")


def test_a_store_that_lacks_what_the_newest_term_went_on_from_is_no_matter(tmp_path: Path, server: Proxy) -> None:
    """As when the last checkpoint did not arrive, and the run was started again."""
    run_dir = new_run(tmp_path)
    commit = save(run_dir, 10, open_term(run_dir), None)
    open_term(run_dir, commit)
    assert agreed(run_dir) == commit
    flip(here(run_dir, commit) / data_name(0))
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be believed") as caught:
        agreed(run_dir)
    assert f"one valid checkpoint in s3://{BUCKET}/runs/{run_dir.name}/checkpoints" in str(caught.value)


@pytest.mark.parametrize("place", ["here", "there", "both", "nowhere"])
def test_a_roll_back_takes_it_from_either_place(
    tmp_path: Path, server: Proxy, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run_dir, (old, _) = in_both(tmp_path, 10, 20)
    monkeypatch.setenv(ROLL_BACK, old.name)
    if place in ("there", "nowhere"):
        flip(here(run_dir, old) / data_name(0))
    if place in ("here", "nowhere"):
        spoil_there(run_dir, old, data_name(0))
    if place == "nowhere":
        with pytest.raises(CheckpointError, match="the checkpoint that was asked for is damaged"):
            agreed(run_dir)
        return
    assert agreed(run_dir) == old
    assert bool(fetched(run_dir)) == (place == "there")
    assert_holds(run_dir, old)
    flip(here(run_dir, old) / MARKER)
    if place == "both":
        assert agreed(run_dir) == old
        monkeypatch.setenv(ROLL_BACK, "step-00000030.t0001")
        with pytest.raises(CheckpointError, match="this run has no checkpoint of that name"):
            agreed(run_dir)


def test_a_store_that_is_down_ends_the_start_on_every_rank(tmp_path: Path, server: Proxy) -> None:
    run_dir, (commit,) = in_both(tmp_path, 10)
    flip(here(run_dir, commit) / data_name(0))
    server.fate = lambda request: "403" if data_name(0) in request.path else None
    with pytest.raises(MachineError, match=r"does not let us read[\s\S]*ExpiredToken"):
        agreed(run_dir)
    assert here(run_dir, commit).exists(), "nothing is given up for that"
    server.forget()
    assert agreed(run_dir) == commit


@pytest.mark.processes
def test_two_ranks_share_what_is_to_be_fetched(tmp_path: Path, server: Proxy) -> None:
    run_dir, (_, new) = in_both(tmp_path, 10, 20)
    files = [here(run_dir, new) / data_name(rank) for rank in (0, 1)]
    for file in files:
        flip(file)
    server.forget()
    assert run_ranks(_agree, 2, run_dir, aws()) == [new, new]
    assert_holds(run_dir, new)
    assert fetched(run_dir) == [(new.name, sum(file.stat().st_size for file in files))]
    assert sum(request.method == "GET" and "safetensors" in request.path for request in server.requests) == 2


@pytest.mark.slow
@pytest.mark.processes
def test_a_rank_that_is_killed_while_it_heals_costs_nothing(tmp_path: Path, server: Proxy) -> None:
    run_dir, (_, new) = in_both(tmp_path, 10, 20)
    for at in itertools.count(1):
        for rank in (0, 1):
            flip(here(run_dir, new) / data_name(rank))
        server.forget()
        seen = itertools.count(1)

        def kills(request: Request, at: int = at, seen: itertools.count[int] = seen) -> str | None:
            if request.method == "GET" and "safetensors" in request.path and next(seen) == at:
                server.victim = int((run_dir / f"pid-{int(data_name(1) in request.path)}").read_text())
                return "done-kill"
            return None

        server.fate = kills
        try:
            results = run_ranks(_agree, 2, run_dir, aws())
        except RankError:
            server.forget()
            assert run_ranks(_agree, 2, run_dir, aws()) == [new, new]
            assert_holds(run_dir, new)
            continue
        assert results == [new, new]
        assert at == 3, "each of the two files was asked for once"
        break
