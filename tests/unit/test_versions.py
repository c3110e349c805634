"""F44: a run that goes on with other versions says which, or refuses, as `launch.other_versions` says."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from fmscale.config import Config, load
from fmscale.errors import ConfigError
from fmscale.observe.events import read_events
from launcher.snapshot import SNAPSHOT, changes, enter, other_versions
from tests.runs import Run


@pytest.fixture
def config(tmp_path: Path, words: Path) -> Config:
    arguments = Run(tmp_path, "drift", words).arguments()
    config = load(arguments[:1], arguments[1:])
    enter(config)
    return config


def pretend(config: Config, **versions: str) -> None:
    """The run's last start had these."""
    file = config.run_dir / SNAPSHOT
    content = json.loads(file.read_text())
    content["packages"] |= versions
    file.write_text(json.dumps(content))


def refusing(config: Config) -> Config:
    return replace(config, launch=replace(config.launch, other_versions="refuse"))


def told(config: Config) -> list[dict[str, str]]:
    return [event["changed"] for event in read_events(config.run_dir) if event["kind"] == "versions_changed"]


def test_the_same_versions_are_no_news(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    enter(refusing(config))
    assert told(config) == []
    assert capsys.readouterr().err == ""


def test_another_version_is_told_once_with_the_difference(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(config, torch="2.0.1", deepspeed="0.9")
    enter(config)
    (changed,) = told(config)
    assert changed.keys() == {"torch", "deepspeed"}
    assert changed["torch"] == f"2.0.1 -> {metadata.version('torch')}"
    said = capsys.readouterr().err
    assert "note: other versions than at the run's last start: deepspeed 0.9 -> " in said
    assert "; torch 2.0.1 -> " in said
    enter(config)  # the next start is like the last
    assert len(told(config)) == 1


def test_another_revision_or_a_lost_library_is_a_difference_too(config: Config) -> None:
    file = config.run_dir / SNAPSHOT
    content = json.loads(file.read_text())
    now = f"{content['revision']}{' with changes' if content['dirty'] else ''}"
    file.write_text(json.dumps(content | {"revision": "0" * 40, "dirty": True, "python": "3.9.1"}))
    pretend(config, apex="1.0")
    others = other_versions(config.run_dir)
    assert others["fmscale revision"] == f"{'0' * 40} with changes -> {now}"
    assert others["python"].startswith("3.9.1 -> 3.")
    assert others["apex"] == "1.0 -> None"


def test_where_the_policy_says_so_other_versions_are_refused_and_nothing_changes(config: Config) -> None:
    pretend(config, torch="2.0.1")
    before = {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()}
    for start in (changes, enter):
        with pytest.raises(ConfigError, match=r"launch\.other_versions=refuse") as caught:
            start(refusing(config))
        assert "found: torch 2.0.1 -> " in str(caught.value)
        assert "set launch.other_versions=warn" in str(caught.value)
    assert {path: path.read_bytes() for path in config.run_dir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", '{"packages": 3}'])
def test_a_snapshot_that_nobody_can_read_compares_with_nothing(config: Config, content: str) -> None:
    (config.run_dir / SNAPSHOT).write_text(content)
    enter(refusing(config))
    assert told(config) == []
    assert other_versions(config.run_dir) == {}
    assert json.loads((config.run_dir / SNAPSHOT).read_text())["packages"]["torch"]
