"""Hugging Face data sets: a directory of files opened as one; the hub itself is not asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from data_pipeline.damage import DamagedInput
from data_pipeline.inputs import Inputs, pin
from data_pipeline.read import Fields
from fmscale.errors import ConfigError, DataError
from tests.crawl_files import read_all


@pytest.mark.parametrize("spec", ["hf:", "hf:?split=train", "hf:name?column=x"])
def test_what_names_no_data_set(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"no data set's name\n  expected: hf:NAME\?split=train.*\n  found: hf:"):
        pin([spec])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError, match=r"an hf: input needs the package datasets\n.*\n.*\n  do: pip install 'datasets'"
    ):
        pin(["hf:someone/something"])


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of five rows."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    directory = tmp_path / "set"
    directory.mkdir()
    for file in range(3):
        made = [{"text": f"text {file} {row}", "id": f"{file}-{row}", "tags": ["x"], "n": row} for row in range(5)]
        path = directory / f"train-{file:05d}-of-00003.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in made))
    return directory


def test_a_directory_is_read_shard_by_shard(rows: Path) -> None:
    pinned = pin([f"hf:{rows}?split=train"])
    third = sum(path.stat().st_size for path in rows.iterdir()) // 3
    assert [(f.name, f.kind, f.bytes) for f in pinned.files] == [
        (f"hf:set/default/train/{number:05d}", "hub", third) for number in range(3)
    ]
    assert Inputs.from_json(pinned.to_json()) == pinned == pin([f"hf:{rows}?split=train"])
    found = read_all(f"hf:{rows}")
    assert [(d.id, d.text) for d in found] == [(f"{f}-{r}", f"text {f} {r}") for f in range(3) for r in range(5)]
    assert [(d.file, d.record) for d in found] == [(f, r) for f in range(3) for r in range(5)]
    assert found[1].meta == {"id": "0-1", "tags": ["x"], "n": 1}


def test_what_is_not_in_it(rows: Path) -> None:
    with pytest.raises(DataError, match=r"data set cannot be opened\n.*\n  found: hf:.*nosplit: ValueError: Bad split"):
        pin([f"hf:{rows}?split=nosplit"])
    with pytest.raises(DataError, match=r"data set cannot be opened\n.*\n  found: hf:/nowhere: "):
        pin(["hf:/nowhere"])
    with pytest.raises(
        DamagedInput, match=r"data set has no such text\n  expected: a column `body`.*\n.*columns text, id"
    ):
        read_all(f"hf:{rows}", Fields(text="body"))


def test_one_that_changed_or_broke_since(rows: Path) -> None:
    from data_pipeline.read import read_piece

    pinned = pin([f"hf:{rows}"])
    pieces = [piece for task in pinned.tasks for piece in task]
    file = rows / "train-00001-of-00003.jsonl"
    file.write_text('{"text": "other", "id": "x", "tags": [], "n": 1}\n')
    with pytest.raises(DamagedInput, match="changed while the corpus was being prepared") as error:
        list(read_piece(pinned.files[0], pieces[0], Fields(), 100))
    assert not error.value.passing
    file.write_text("no JSON\n")
    pinned = pin([f"hf:{rows}"])
    with pytest.raises(DamagedInput, match=r"data set cannot be read\n.*\n  found: ") as error:
        list(read_piece(pinned.files[1], pinned.tasks[0][1], Fields(), 100))
    assert error.value.passing
