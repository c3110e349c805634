"""The kernel's count of processes killed for memory, in both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmscale.observe.oom import oom_kills

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
V2 = "low 0\nhigh 0\nmax 7\noom 4\noom_kill 3\noom_group_kill 0\n"


def place(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("inside", [True, False], ids=["own cgroup", "a container that sees it as the root"])
@pytest.mark.parametrize("version", [1, 2])
def test_both_versions(tmp_path: Path, version: int, inside: bool) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("4:cpu,memory:/jobs/7\n3:cpuset:/\n0::/\n" if version == 1 else "0::/jobs/7\n")
    own = Path("jobs/7") if inside else Path()
    file = root / "memory" / own / "memory.oom_control" if version == 1 else root / own / "memory.events"
    place(file, V1 if version == 1 else V2)
    assert oom_kills(root, membership) == (2 if version == 1 else 3)


def test_where_there_is_no_counter_nothing_was_killed(tmp_path: Path) -> None:
    assert oom_kills(tmp_path, tmp_path / "missing") == 0
    (tmp_path / "cgroup").write_text("0::/\n")
    assert oom_kills(tmp_path, tmp_path / "cgroup") == 0
    place(tmp_path / "memory.events", "low 0\n")
    assert oom_kills(tmp_path, tmp_path / "cgroup") == 0


def test_this_machine_can_be_asked() -> None:
    assert oom_kills() >= 0
