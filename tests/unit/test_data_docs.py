"""docs/data.md names every reason and every setting, in words that match the code; and the progress that is shown."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from data_pipeline import progress
from data_pipeline.pipeline import Recipe
from data_pipeline.read import EXPLAIN

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def test_every_reason_is_documented() -> None:
    table = PAGE.split("## What is dropped")[1].split("## ")[0]
    assert set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))) == EXPLAIN.keys()


def test_every_setting_is_documented() -> None:
    table = PAGE.split("## The recipe")[1].split("Chosen by size")[0]
    named = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert sorted(named) == sorted(field.name for field in fields(Recipe))


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_passes_on_what_it_shows(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    amounts = [1_000_000, 3_000_000, 4_000_000]
    assert list(progress.follow("read", iter(amounts), 8_000_000)) == amounts
    shown = capsys.readouterr()
    assert shown.out == "", "stdout stays free"
    if not terminal:
        lines = shown.err.splitlines()
        assert [re.sub(r" in .*", "", line) for line in lines] == [f"read: {done}.0 of 8.0 MB" for done in (1, 4, 8)]
