"""The checkpoint format: what is read is what was written, and what does not add up is not committed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fmscale.errors import CheckpointError, MachineError
from fmscale.observe.terms import load_term
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import KINDS, Commit, parse_directory_name
from fmscale.training.fragment_file import LiveFragments
from fmscale.training.history import checkpoint_names
from fmscale.training.lease import Lease
from tests.checkpoints import (
    SHAPES,
    Piece,
    assert_holds,
    blocks_of,
    deal,
    pieces,
    save,
    start,
    store_of,
    two_checkpoints,
    values,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint-2"
GOLDEN_1 = GOLDEN.with_name("checkpoint")
"""Written by a program that knew format 1 only."""


@settings(max_examples=40, deadline=None)
@given(data=st.data(), world=st.integers(1, 5))
def test_any_range_reads_back_to_the_bit_whoever_wrote_it(data: st.DataObject, world: int) -> None:
    sizes = {param: len(values(param, "master", 0)) for param in SHAPES}
    cuts = {param: data.draw(st.lists(st.integers(0, size), max_size=6)) for param, size in sizes.items()}
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory)
        store, term = store_of(run_dir), start(run_dir)
        for rank, part in enumerate(deal(3, world, cuts)):
            store.write_rank(3, term, rank, data.draw(st.permutations(part)))
        reader = store.open(store.commit(3, term, world, 12, None, {}, timeout_s=5))
        for param, size in sizes.items():
            first = data.draw(st.integers(0, size))
            numel = data.draw(st.integers(0, size - first))
            for kind in KINDS:
                got = reader.read(param, kind, first, numel)
                assert got.dtype == torch.float32
                assert torch.equal(got, values(param, kind, 3)[first : first + numel])


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, -1, 0x7F800000, -(2**31), 1, 0], dtype=torch.int32)  # NaNs, inf, -0, denormal
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, [Piece("x", kind, 0, bits.view(torch.float32), (6,)) for kind in KINDS])
    reader = store.open(store.commit(1, term, 1, 1, None, {}))
    assert torch.equal(reader.read("x", "master", 0, 6).view(torch.int32), bits)


def test_a_rank_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    commit = save(tmp_path, 10, start(tmp_path), None, world=1)
    with safe_open(tmp_path / "checkpoints" / commit.name / "rank-00000.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(KINDS)
        want = torch.cat([values(param, "exp_avg", 10) for param in SHAPES])
        assert torch.equal(file.get_tensor("exp_avg"), want)


def test_a_rank_may_own_nothing(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, pieces(1))
    store.write_rank(1, term, 1, [])
    commit = store.commit(1, term, 2, 4, None, {})
    store.verify(commit.name)
    assert_holds(tmp_path, commit)


def test_what_commit_returns_is_what_is_listed(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    assert list(store_of(tmp_path).list()) == [old, new]
    assert (new.parent, new.parent_hash, new.rows, new.world) == (old.name, old.commit_hash, 80, 2)
    assert new.params == {name: SHAPES[name] for name in sorted(SHAPES)}
    assert parse_directory_name(new.name) == (20, 1)
    assert new.term_hash == load_term(tmp_path, 1).term_hash


def broken(fragments: list[Piece], how: str) -> list[Piece]:
    first = fragments[0]
    if how == "gap":
        return [Piece(first.param, first.kind, 1, first.tensor[1:], first.shape), *fragments[1:]]
    if how == "overlap":
        return [*fragments, Piece(first.param, first.kind, 0, first.tensor[:2], first.shape)]
    if how == "tail":
        return [Piece(first.param, first.kind, 0, first.tensor[:-1], first.shape), *fragments[1:]]
    if how == "kind":
        return [f for f in fragments if (f.param, f.kind) != ("norm", "exp_avg_sq")]
    if how == "unknown":
        return [*fragments, Piece("norm", "momentum", 0, torch.zeros(5), (5,))]
    return [*fragments, Piece("norm", "master", 0, torch.zeros(5), (1, 5))]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gap", "nothing for [0, 1)"),
        ("overlap", "[2, 21) twice"),
        ("tail", "nothing for [20, 21)"),
        ("kind", "norm (exp_avg_sq)"),
        ("unknown", "norm (momentum) exactly once\n  found: a kind besides "),
        ("shape", "shape (1, 5) from rank 0"),
    ],
)
def test_parts_that_do_not_add_up_are_not_committed(tmp_path: Path, how: str, words: str) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, broken(list(pieces(1)), how))
    with pytest.raises(CheckpointError, match="do not add up; it is not committed") as caught:
        store.commit(1, term, 1, 4, None, {})
    if how == "overlap":
        assert "twice (ranks 0 and 0)" in str(caught.value)
    else:
        assert words in str(caught.value)
    assert list(store.list()) == []


def test_a_fragment_outside_its_parameter_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="beyond the parameter's end"):
        LiveFragments([Piece("p", "master", 2, torch.zeros(4), (5,))])
    with pytest.raises(AssertionError, match="1-D fp32"):
        LiveFragments([Piece("p", "master", 0, torch.zeros(4, dtype=torch.bfloat16), (4,))])


def test_a_rank_that_never_writes_is_named(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 1, pieces(1))
    with pytest.raises(CheckpointError, match="nothing from rank 0, 2") as caught:
        store.commit(1, term, 3, 4, None, {}, timeout_s=0.05)
    assert "a restart goes on from it" in str(caught.value)


def test_a_second_commit_and_a_second_part_are_refused(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, pieces(1))
    commit = store.commit(1, term, 1, 4, None, {})
    before = (tmp_path / "checkpoints" / commit.name / "COMMIT.json").read_bytes()
    with pytest.raises(CheckpointError, match="is committed already"):
        store.commit(1, term, 1, 5, None, {"other": True})
    with pytest.raises(CheckpointError, match=r"rank 0 has written checkpoint .* before"):
        store.write_rank(1, term, 0, pieces(2))
    assert (tmp_path / "checkpoints" / commit.name / "COMMIT.json").read_bytes() == before
    store.verify(commit.name)


def test_parts_of_too_many_ranks_are_not_committed(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    for rank, part in enumerate(deal(1, 3)):
        store.write_rank(1, term, rank, part)
    with pytest.raises(CheckpointError, match="a file that does not belong there"):
        store.commit(1, term, 2, 4, None, {})


def test_state_that_does_not_survive_json_is_never_published(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, pieces(1))
    with pytest.raises(ValueError, match="hash does not hold"):
        store.commit(1, term, 1, 4, None, {"rng": {9: "a", 10: "b"}})  # integer keys sort otherwise once read back
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.commit(1, term, 1, 4, None, {"loss": float("nan")})
    assert store.commit(1, term, 1, 4, None, {"rng": {"9": "a"}}).state == {"rng": {"9": "a"}}


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    commit = save(tmp_path, 10, start(tmp_path), None)
    reader = store_of(tmp_path).open(commit)
    for request in (("nose", "master", 0, 1), ("norm", "momentum", 0, 1)):
        with pytest.raises(CheckpointError, match="no such parameter"):
            reader.read(*request)
    for request in (("norm", "master", 0, 6), ("norm", "master", -1, 2)):
        with pytest.raises(CheckpointError, match="5 elements of it"):
            reader.read(*request)


def test_no_room_is_known_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    term, store = start(tmp_path), store_of(tmp_path)
    with pytest.raises(MachineError, match="100 bytes free") as caught:
        store.write_rank(1, term, 0, pieces(1))
    assert "rank-00000.safetensors" in str(caught.value)
    assert list((tmp_path / "checkpoints" / "step-00000001.t0001").iterdir()) == []


@pytest.mark.parametrize("name", ["step-00000001.t0001", "rank-00000.json", "COMMIT.json"])
def test_a_disk_that_fills_up_at_any_file_is_told_and_the_parts_can_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    term, store = start(tmp_path), store_of(tmp_path)

    def full(*paths: object, **more: object) -> None:
        if any(Path(str(path)).name == name for path in paths):
            raise OSError(errno.ENOSPC, "No space left on device")
        before(*paths, **more)

    owner, function = (os, "mkdir") if name.startswith("step") else (os, "link")
    before = getattr(owner, function)
    monkeypatch.setattr(owner, function, full)
    with pytest.raises(MachineError, match=rf"bytes for .*{name}\n.*free \(No space left on device\)"):
        write_and_commit(store, term)
    store.abandon(1, term)
    assert checkpoint_names(store.root) == []
    monkeypatch.undo()
    assert write_and_commit(store, term).step == 1


def test_a_file_system_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mount whose server has forgotten it: neither files nor room can be asked for."""
    term, store = start(tmp_path), store_of(tmp_path)
    store.write_rank(1, term, 0, pieces(1))

    def stale(*paths: object, **more: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "link", stale)
    monkeypatch.setattr(os, "statvfs", stale)
    with pytest.raises(
        MachineError, match=r"found: no file system that answers \(Stale file handle\)\n  do: mend that file system"
    ):
        store.commit(1, term, 1, 4, None, {})


def test_nothing_is_written_before_a_term_is_open(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    with pytest.raises(
        CheckpointError,
        match=r"expected: a term opened by Lease\.open_term\n  found: term 1 .*\n  do: open a term first",
    ):
        store_of(tmp_path).write_rank(1, 1, 0, pieces(1))


def write_and_commit(store: CheckpointStore, term: int) -> Commit:
    store.write_rank(1, term, 0, pieces(1))
    return store.commit(1, term, 1, 4, None, {})


def test_what_is_committed_is_not_given_up(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    commit = write_and_commit(store, term)
    with pytest.raises(AssertionError, match="is committed"):
        store.abandon(1, term)
    store.verify(commit.name)


def test_only_a_caller_whose_ranks_have_read_it_prunes_without_reading(tmp_path: Path) -> None:
    term = start(tmp_path)
    commits = [save(tmp_path, 10, term, None)]
    for step in (20, 30):
        commits.append(save(tmp_path, step, term, commits[-1].name))
    file = tmp_path / "checkpoints" / commits[-1].name / "rank-00001.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="rank-00001"):
        store_of(tmp_path).prune(2, commits[-1])
    assert list(store_of(tmp_path).list()) == commits
    assert store_of(tmp_path).prune(2, commits[-1], read_back=False) == [commits[0].name]


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    commit = save(tmp_path, 10, start(tmp_path), None)
    marker = tmp_path / "checkpoints" / commit.name / "COMMIT.json"
    from fmscale.durable import canonical_json
    from fmscale.observe.terms import digest

    fields = json.loads(marker.read_bytes())
    del fields["commit_hash"]
    fields["version"] = 3
    marker.write_bytes(canonical_json({**fields, "commit_hash": digest(fields)}))
    with pytest.raises(CheckpointError, match="version 3; this fmscale reads fmscale-checkpoint versions 1 and 2"):
        store_of(tmp_path).verify(commit.name)


def golden_checkpoint(run_dir: Path) -> Commit:
    """What made tests/golden/checkpoint-2, in blocks of 128 bytes."""
    term = Lease(run_dir).open_term(None, holder="golden:1", time="2026-01-01T00:00:00.000+00:00")
    return save(run_dir, 10, term, None)


def test_the_golden_checkpoint_is_written_and_read_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(128, monkeypatch)
    golden_checkpoint(tmp_path)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    kept = {p.relative_to(GOLDEN): p.read_bytes() for p in GOLDEN.rglob("*") if p.is_file()}
    assert made == kept
    (commit,) = store_of(GOLDEN).candidates()
    store_of(GOLDEN).verify(commit.name)
    assert_holds(GOLDEN, commit)


def test_the_golden_checkpoint_of_format_1_is_read_and_gone_on_from(tmp_path: Path) -> None:
    (commit,) = store_of(GOLDEN_1).candidates()
    assert commit.version == 1
    store_of(GOLDEN_1).verify(commit.name)
    assert_holds(GOLDEN_1, commit)
    marker = GOLDEN_1 / "checkpoints" / commit.name / "COMMIT.json"
    assert commit.to_bytes() == marker.read_bytes(), "copies of it are it"
    shutil.copytree(GOLDEN_1, tmp_path, dirs_exist_ok=True)
    new = save(tmp_path, 20, start(tmp_path, commit), commit.name)
    assert (new.version, new.parent_hash) == (2, commit.commit_hash)
    assert [c.version for c in store_of(tmp_path).candidates()] == [2, 1]
    assert store_of(tmp_path).newest_valid() == new
