"""S14: in a /tmp that others share, nothing of ours is predictable, readable or somebody else's."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmscale.errors import MachineError
from launcher import ray_cluster

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture
def tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As /tmp is: everybody's, sticky. Short, for Ray's sockets."""
    directory = Path("/tmp") / f"fs{os.getpid()}"
    directory.mkdir()
    directory.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(ray_cluster.tempfile, "tempdir", None)
    yield directory
    ray_cluster.tempfile.tempdir = None
    shutil.rmtree(directory)


def ours(tmp: Path) -> Path:
    return tmp / f"fmscale-ray-{os.getuid()}"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_rays_directory_and_token_are_the_users_alone(tmp: Path) -> None:
    code = (
        "import os, stat, sys; os.umask(0); from launcher.ray_cluster import *\n"
        "with private_environment():\n"
        "    token, directory = os.environ['RAY_AUTH_TOKEN_PATH'], os.environ[DIRECTORY]\n"
        "    for path in (token, directory, os.path.dirname(directory)):\n"
        "        print(oct(stat.S_IMODE(os.lstat(path).st_mode)))\n"
        "    print(len(open(token).read()), os.environ['RAY_AUTH_MODE'])\n"
        "print(os.path.exists(directory))\n"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["0o600", "0o700", "0o700", "64", "token", "False"], done.stderr


def test_a_directory_that_others_could_write_is_closed_first(tmp: Path) -> None:
    ours(tmp).mkdir()
    ours(tmp).chmod(0o777)
    directory = ray_cluster._private_directory()
    assert (mode(ours(tmp)), mode(directory)) == (0o700, 0o700)


@pytest.mark.parametrize("how", ["link to a directory", "dangling link", "file", "somebody's"])
def test_what_somebody_put_in_its_place_is_refused(tmp: Path, how: str) -> None:
    elsewhere = tmp / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "999999999").mkdir()
    if how == "link to a directory":
        ours(tmp).symlink_to(elsewhere)
    elif how == "dangling link":
        ours(tmp).symlink_to(tmp / "gone")
    elif how == "file":
        ours(tmp).write_text("")
    elif os.getuid() != 0:
        pytest.skip("SKIPPED LOUDLY: no directory can be given to another user here (needs root)")
    else:
        ours(tmp).mkdir()
        os.chown(ours(tmp), NOBODY, NOBODY)
    with pytest.raises(MachineError, match=r"the directory for Ray's sockets belongs to somebody else"):
        ray_cluster._private_directory()
    assert not (tmp / "gone").exists()
    assert (elsewhere / "999999999").exists(), "nothing is swept where a link leads"


def test_links_in_the_directory_are_removed_and_not_followed(tmp: Path) -> None:
    precious = tmp / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    ours(tmp).mkdir(mode=0o700)
    (ours(tmp) / str(os.getpid())).symlink_to(precious)
    (ours(tmp) / "old").symlink_to(precious)
    directory = ray_cluster._private_directory()
    assert not directory.is_symlink()
    assert (precious / "file").exists()


def test_no_other_name_in_tmp_is_predictable() -> None:
    """Temporary files come from tempfile: random names, O_EXCL, mode 0600."""
    pattern = re.compile(r"""["']/tmp/|mktemp\(|gettempdir\(""")
    found = {
        path.name: len(pattern.findall(path.read_text()))
        for folder in ("launcher", "data_pipeline", "fmscale")
        for path in (ROOT / folder).rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert found.keys() <= {"ray_cluster.py", "parquet.py"}, found  # parquet.py asks for room there, no name
