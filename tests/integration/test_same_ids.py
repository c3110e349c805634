"""Documents with the id of an earlier one: they stay, and are told by number and file, whoever works and how often."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline import input_table, passes
from data_pipeline.pipeline import Recipe
from data_pipeline.report import Report
from data_pipeline.report_page import page
from data_pipeline.run import prepare
from fmscale.corpus.chunks import document_id
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.shards import Corpus
from tests.raw_text import unlike
from tests.word_corpora import GOLDEN

DOCUMENTS = [(f"d{number % 97}" if number % 10 else "", unlike(number)) for number in range(300)]
"""(id, text); every tenth has no id, of the others many have one of an earlier document."""


def expected(files: int) -> list[int]:
    """By file, counted one after another."""
    seen, again = set[str](), Counter[int]()
    for place, (name, _) in enumerate(DOCUMENTS):
        if name:
            again[place * files // len(DOCUMENTS)] += name in seen
            seen.add(name)
    return [again[number] for number in range(files)]


def write(directory: Path, files: int) -> None:
    directory.mkdir()
    for number in range(files):
        lines = [
            json.dumps({"text": text, **({"id": name} if name else {})})
            for place, (name, text) in enumerate(DOCUMENTS)
            if place * files // len(DOCUMENTS) == number
        ]
        # A text that stood before goes as a duplicate, whatever its id: that id then stands once.
        copy = json.dumps({"id": f"copy of {number}", "text": DOCUMENTS[0][1]})
        more = [copy, json.dumps({"id": f"copy of {number}", "text": unlike(1000 + number)})]
        (directory / f"{number}.jsonl").write_text("\n".join(lines + more) + "\n")


def recipe(raw: Path, output: Path, **changes: object) -> Recipe:
    sizes = {"chunk_tokens": 512, "heldout_fraction": 0.0, **changes}
    return Recipe(inputs=[str(raw)], output=str(output), tokenizer=str(GOLDEN / "tokenizer.model"), **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("task_bytes", [500, 5_000, 10_000_000])
@pytest.mark.parametrize("partitions", [1, 5])
def test_they_stay_and_are_counted(
    tmp_path: Path, task_bytes: int, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "raw", 3)
    monkeypatch.setattr(passes, "PARTITION_BYTES", (tmp_path / "raw/0.jsonl").stat().st_size * 3 // partitions)
    manifest = prepare(recipe(tmp_path / "raw", tmp_path / "c", task_bytes=task_bytes), workers=0)
    assert manifest.counts["out"] == 303
    assert manifest.counts["dropped"] == {"duplicate": 3}
    assert manifest.counts["duplicate_ids"] == sum(expected(3)) > 100
    lines, _ = input_table.largest(tmp_path / "c", 10)
    assert {line.file: line.same_id for line in lines} == {f"{n}.jsonl": c for n, c in enumerate(expected(3))}
    assert all(line.records == line.kept + sum(line.dropped.values()) for line in lines)
    docs = Corpus.open(tmp_path / "c", "train")
    kept = Counter(tuple(doc["id"].tolist()) for chunk in range(docs.chunks) for doc in docs.docs(chunk))
    assert kept[document_id("d1")] >= 3, "each of them is there"


def test_the_report_and_the_command_tell_them(tmp_path: Path) -> None:
    write(tmp_path / "raw", 2)
    settings = [f"inputs=[{tmp_path}/raw]", f"output={tmp_path}/c", f"tokenizer={GOLDEN}/tokenizer.model"]
    sizes = ["chunk_tokens=512", "heldout_fraction=0"]
    command = [sys.executable, "-m", "launcher.cli", "data", "prepare", *settings, *sizes, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    many = f"{sum(expected(2)):,} documents"
    assert f"{many} have the id of an earlier one" in done.stdout + done.stderr
    assert f"{many} came with the id of an earlier one" in page(Report.of(tmp_path / "c"))


def test_ids_that_stand_once_and_hashes_of_texts_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    lines = [json.dumps({"text": unlike(number // 2)}) for number in range(100)]  # two of each, without an id
    (tmp_path / "raw/a.jsonl").write_text("\n".join([*lines, json.dumps({"id": "x", "text": unlike(200)})]))
    manifest = prepare(recipe(tmp_path / "raw", tmp_path / "c", dedup="off"), workers=0)
    assert manifest.counts["out"] == 101
    assert "duplicate_ids" not in Manifest.load(tmp_path / "c").counts
    assert "ids do not name them" not in page(Report.of(tmp_path / "c"))
