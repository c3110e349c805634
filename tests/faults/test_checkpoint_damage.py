"""F28 to F31: bytes flipped, files exchanged, markers that lie, formats of another time. None is ever loaded.

Every byte of a tiny checkpoint one after the other, every truncation, and missing, foreign and swapped files:
tests/faults/test_checkpoint_faults.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from fmscale.durable import canonical_json
from fmscale.errors import CheckpointError
from fmscale.observe.terms import digest
from fmscale.training.checkpoint_format import MARKER, Commit
from fmscale.training.file_record import HASH_BLOCK_BYTES
from tests.checkpoints import assert_holds, blocks_of, deal, ranges_of, save, start, store_of, two_checkpoints

FLIPS = 1000


def refused_by(run_dir: Path, commit: Commit, readers: int) -> list[int]:
    """Which of the ranks that resume find what they would read of the checkpoint wrong, before they read a tensor."""
    refused = []
    for rank in range(readers):
        try:
            store_of(run_dir).open(commit).verify(ranges_of(rank, readers))
        except CheckpointError:
            refused.append(rank)
    return refused


@pytest.mark.parametrize("block_bytes", [64, HASH_BLOCK_BYTES])
def test_1000_of_1000_flipped_bits_are_found_before_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """One bit of any byte of any file of a commit: resume takes the one before, and the ranks refuse it themselves."""
    blocks_of(block_bytes, monkeypatch)
    old, new = two_checkpoints(tmp_path)
    rng, found = random.Random(28), 0
    files = sorted((tmp_path / "checkpoints" / new.name).iterdir())
    sizes = [path.stat().st_size for path in files]
    for _ in range(FLIPS):
        path = rng.choices(files, sizes)[0]
        whole = path.read_bytes()
        at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        said: list[str] = []
        taken = store_of(tmp_path).newest_valid(said.append)
        if path.name == MARKER:  # rank 0 never offers it; otherwise a rank finds it in what it would read
            found += taken == old and path.name in said[0]
        else:
            found += taken == old and path.name in said[0] and refused_by(tmp_path, new, 3) != []
        path.write_bytes(whole)
    assert found == FLIPS
    assert store_of(tmp_path).newest_valid() == new


def other_run(tmp_path: Path) -> Path:
    """A run that saved the same steps, of the same sizes, from the same program: only its terms are its own."""
    two_checkpoints(tmp_path / "other")
    return tmp_path / "other" / "checkpoints"


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00000.json", MARKER])
def test_a_file_of_another_step_or_of_another_run_is_refused(tmp_path: Path, name: str) -> None:
    old, new = two_checkpoints(tmp_path / "run")
    root, there = tmp_path / "run" / "checkpoints", other_run(tmp_path)
    own = (root / new.name / name).read_bytes()
    for source in (root / old.name / name, there / old.name / name):
        shutil.copy(source, root / new.name / name)
        assert store_of(tmp_path / "run").newest_valid(lambda text: None) == old, source
    (root / new.name / name).write_bytes(own)
    if name == MARKER:  # the very step of another run, whose tensors are equal to the bit: not this run's past
        shutil.copy(there / new.name / name, root / new.name / name)
        said: list[str] = []
        assert store_of(tmp_path / "run").newest_valid(said.append) == old
        assert "a commit of another run" in said[0]


def put_marker(directory: Path, how: str, older: Path) -> None:
    """Do to COMMIT.json what may happen to a pointer."""
    marker = directory / MARKER
    content = marker.read_bytes()
    marker.unlink()
    if how == "empty":
        marker.write_bytes(b"")
    elif how == "dangling":
        marker.symlink_to("gone.json")
    elif how == "directory":
        marker.mkdir()
    elif how == "no permission to follow":
        marker.symlink_to(MARKER)  # a loop
    elif how == "newer than its data":
        marker.write_bytes(content)
        for path in directory.glob("rank-*"):
            shutil.copy(older / path.name, path)
    else:
        assert how == "missing"


@pytest.mark.parametrize(
    "how", ["missing", "empty", "dangling", "directory", "no permission to follow", "newer than its data"]
)
def test_a_marker_that_lies_is_not_followed(tmp_path: Path, how: str) -> None:
    old, new = two_checkpoints(tmp_path)
    root = tmp_path / "checkpoints"
    put_marker(root / new.name, how, root / old.name)
    said: list[str] = []
    assert store_of(tmp_path).newest_valid(said.append) == old
    assert new.name in said[0]
    assert_holds(tmp_path, old)
    term = start(tmp_path, old)  # and the run goes on, in a directory of its own
    mine = save(tmp_path, 20, term, old.name)
    assert store_of(tmp_path).newest_valid(lambda text: None) == mine


def test_there_is_no_pointer_to_the_latest_that_could_lie(tmp_path: Path) -> None:
    """Files that other libraries would follow mean nothing here, whatever they say and whenever they were written."""
    old, new = two_checkpoints(tmp_path)
    root = tmp_path / "checkpoints"
    for name in ("latest", "latest_universal", "last.ckpt"):
        (root / name).write_text(old.name)
    (root / "step-latest").symlink_to(old.name)
    os.utime(root / old.name / MARKER)  # the older one was touched last: clocks decide nothing
    assert store_of(tmp_path).newest_valid() == new


def of_version(path: Path, hash_name: str | None) -> None:
    """Version 3 of a file, with the hash that such a program would have written."""
    fields = json.loads(path.read_bytes())
    fields["version"] = 3
    if hash_name:
        del fields[hash_name]
        fields[hash_name] = digest(fields)
    path.write_bytes(canonical_json(fields))


def test_a_format_of_the_future_is_passed_over_with_both_versions(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    of_version(tmp_path / "checkpoints" / new.name / MARKER, "commit_hash")
    said: list[str] = []
    assert store_of(tmp_path).newest_valid(said.append) == old
    assert "it is fmscale-checkpoint version 3; this fmscale reads fmscale-checkpoint versions 1 and 2" in said[0]


def test_a_rank_file_or_a_term_of_the_future_is_refused_too(tmp_path: Path) -> None:
    term, store = start(tmp_path), store_of(tmp_path)
    for rank, part in enumerate(deal(10, 2)):
        store.write_rank(10, term, rank, part)
    of_version(tmp_path / "checkpoints" / "step-00000010.t0001" / "rank-00001.json", None)
    with pytest.raises(
        CheckpointError, match=r"fmscale-checkpoint-rank version 3; this fmscale reads .* versions 1 and 2"
    ):
        store.commit(10, term, 2, 40, None, {})
    of_version(tmp_path / "lease" / "term-00000001.json", "term_hash")
    with pytest.raises(CheckpointError, match="it is of another format version"):
        store.newest_valid()
