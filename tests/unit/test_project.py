"""What of the project travels: code and configs; no data, no secrets, nothing that lies about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fmscale.errors import ConfigError
from launcher.jobs.project import ROOT, copy_project, pinned, project_files


def test_all_modules_travel_and_nothing_else(tmp_path: Path) -> None:
    copy_project(tmp_path)
    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert copied == set(project_files())
    assert {path.parts[0] for path in copied} == {
        "launcher",
        "fmscale",
        "data_pipeline",
        "configs",
        "pyproject.toml",
        "constraints.txt",
    }
    modules = {p.relative_to(ROOT) for n in ("launcher", "fmscale", "data_pipeline") for p in (ROOT / n).rglob("*.py")}
    assert modules <= copied
    assert (tmp_path / "launcher/cli.py").read_bytes() == (ROOT / "launcher/cli.py").read_bytes()


def test_what_lies_about_stays(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for name in (
        "launcher/cli.py",
        "launcher/.env.py",
        "launcher/__pycache__/cli.py",
        "launcher/key.pem",
        "configs/a.yaml",
        "configs/.secret.yaml",
        "configs/token",
        ".env",
        "runs/a/config.yaml",
        "data/mine.yaml",
        ".venv/x.py",
        "notes.yaml",
        "pyproject.toml",
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("x")
    (tmp_path / "netrc.yaml").write_text("secret")
    (here / "configs/link.yaml").symlink_to(tmp_path / "netrc.yaml")
    copy_project(there, here)
    copied = sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
    assert copied == ["configs/a.yaml", "launcher/cli.py", "pyproject.toml"]


def test_the_pinned_environment_is_what_pyproject_asks_for_at_the_versions_of_constraints() -> None:
    pins = pinned()
    assert "ray[default]==2.60.0" in pins
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.+-]+", pin) for pin in pins)
    asked = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("\n]")[0]
    assert len(pins) == len(re.findall(r'^  "', asked, re.MULTILINE))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert {re.sub(r"\[.*\]", "", pin) for pin in pins} <= set(lines)


def test_without_pins_there_is_no_pinned_environment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the pinned environment is not known here"):
        pinned(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch==2.13.0", "my_lib[x]>=2"]\n')
    (tmp_path / "constraints.txt").write_text("# all\ntorch==2.13.0\n")
    with pytest.raises(ConfigError, match="a dependency has no pinned version") as refused:
        pinned(tmp_path)
    assert "found: my_lib[x]>=2" in str(refused.value)
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\nMy-Lib==2.5\n")
    assert pinned(tmp_path) == ["torch==2.13.0", "my_lib[x]==2.5"]
