"""The ledger is a chain that cannot be changed, cut or begun in the past without being refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fmscale.corpus.ledger import FILE_NAME, GENESIS, Ledger
from fmscale.corpus.steps import StepPlan
from fmscale.errors import DataError, MachineError

STEPS = StepPlan.constant(32, 64)
GOLDEN = Path(__file__).parents[1] / "golden" / "ledger.jsonl"
SOURCE = {
    "source": "code",
    "corpus": "data/code",
    "generation": 0,
    "chunks": 7,
    "chunk_tokens": 1024,
    "content_hash": "cd" * 32,
    "weights": {"code": 0.5, "web": 0.5},
}
EDITS: list[tuple[str, dict[str, Any], int]] = [
    ("weights", {"weights": {"books": 0.25, "wéb": 3}}, 64),
    ("quarantine", {"source": "wéb", "chunk": 5, "substitute": 2}, 64),
    ("skip", {"rows": 96}, 128),
    ("generation", {"source": "books", "generation": 1, "chunks": 12, "content_hash": "ab" * 32}, 160),
    ("stages", {"stages": [{"from_row": 192, "weights": {"web": 1}}, {"from_row": 256, "weights": {"web": 2}}]}, 192),
    ("source", SOURCE, 320),
]


def ledger_of(edits: list[tuple[str, dict[str, Any], int]]) -> Ledger:
    ledger = Ledger()
    for kind, payload, from_row in edits:
        ledger = ledger.append(kind, payload, from_row=from_row, rows_consumed=0, steps=STEPS)
    return ledger


def test_golden(tmp_path: Path) -> None:
    ledger_of(EDITS).save(tmp_path / FILE_NAME)
    assert (tmp_path / FILE_NAME).read_bytes() == GOLDEN.read_bytes()
    assert Ledger.load(GOLDEN) == ledger_of(EDITS)


def test_no_file_is_an_empty_ledger(tmp_path: Path) -> None:
    assert Ledger.load(tmp_path / FILE_NAME) == Ledger()
    assert Ledger().head == GENESIS


def test_travels_as_json() -> None:
    ledger = ledger_of(EDITS)
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger


def test_append_leaves_the_shorter_ledger_as_it_was() -> None:
    short = ledger_of(EDITS[:2])
    long = short.append("skip", {"rows": 1}, from_row=320, rows_consumed=300, steps=STEPS)
    assert len(short.entries) == 2
    assert short.is_prefix_of(long)
    assert not long.is_prefix_of(short)
    assert long.head != short.head


@pytest.mark.parametrize(("from_row", "consumed", "use"), [(32, 64, 64), (33, 0, 64), (65, 65, 96), (96, 97, 128)])
def test_an_entry_begins_on_the_edge_of_a_batch_to_come(from_row: int, consumed: int, use: int) -> None:
    with pytest.raises(
        DataError, match=rf"from row {from_row}\n.*use from row {use}, where step {use // 32 + 1} begins"
    ) as error:
        Ledger().append("skip", {"rows": 1}, from_row=from_row, rows_consumed=consumed, steps=STEPS)
    assert f"the first row of a step, {consumed} or more" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("skip", {}),
        ("skip", {"rows": 0}),
        ("skip", {"rows": True}),
        ("skip", {"rows": 1.5}),
        ("skip", {"rows": 1, "more": 2}),
        ("weights", {"weights": {"web": -1.0}}),
        ("weights", {"weights": {"web": float("nan")}}),
        ("weights", {"weights": {"web": 0}}),
        ("weights", {"weights": {1: 1}}),
        ("weights", {"weights": [1.0]}),
        ("quarantine", {"source": "web", "chunk": -1, "substitute": 0}),
        ("generation", {"source": "web", "generation": 1, "chunks": 0, "content_hash": ""}),
        ("generation", {"source": "", "generation": 1, "chunks": 2, "content_hash": "a"}),
        ("stages", {"stages": []}),
        ("stages", {"stages": [{"from_row": 64, "weights": {"web": 1}, "more": 1}]}),
        ("stages", {"stages": [{"from_row": 64, "weights": {"web": 1}}, {"from_row": 64, "weights": {"web": 2}}]}),
        ("stages", {"stages": [{"from_row": 64, "weights": {"web": 1}}, {"from_row": 96, "weights": {"code": 2}}]}),
        ("source", {**SOURCE, "chunks": 0}),
        ("source", {**SOURCE, "corpus": ""}),
        ("source", {name: value for name, value in SOURCE.items() if name != "weights"}),
    ],
)
def test_a_malformed_payload_is_refused(kind: str, payload: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=rf"the new entry\)\n  expected: {kind} with ") as error:
        Ledger().append(kind, payload, from_row=0, rows_consumed=0, steps=STEPS)
    assert len(str(error.value).splitlines()) <= 6


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"one of the kinds weights, stages, source, generation, quarantine, skip\n.*kind rewind"
    ):
        Ledger().append("rewind", {}, from_row=0, rows_consumed=0, steps=STEPS)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    raw, path = GOLDEN.read_bytes(), tmp_path / FILE_NAME
    for i in range(len(raw)):
        damaged = bytearray(raw)
        damaged[i] ^= 1 << (i % 8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="the edit ledger is not as it was written"):
            Ledger.load(path)


def test_every_cut_is_refused_by_the_file_or_by_the_checkpoint(tmp_path: Path) -> None:
    raw, path, whole = GOLDEN.read_bytes(), tmp_path / FILE_NAME, Ledger.load(GOLDEN)
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(DataError, match=r"not as it was written|does not continue the one in step-7"):
            whole.require_prefix_of(Ledger.load(path), "step-7")


def test_the_messages_of_damage_say_where(tmp_path: Path) -> None:
    path, raw = tmp_path / FILE_NAME, GOLDEN.read_text(encoding="utf-8")
    lines = raw.splitlines(keepends=True)
    cases = {
        lines[0] + "{\n": r"ledger.jsonl, line 2\)\n  expected: a JSON object\n  found: Expecting property name",
        '{"from_row": NaN}\n': r"line 1\)\n  expected: a JSON object\n  found: NaN is no number in JSON",
        "[" * 100_000 + "\n": r"line 1\)\n  expected: a JSON object\n  found: maximum recursion depth exceeded",
        lines[1]: r"entry 0\)\n  expected: seq 0 after the hash 0000000000000000\n  found: seq 1 after ",
        lines[0] + lines[2]: r"entry 1\)\n  expected: seq 1 after the hash ",
        raw.replace("0.25", "0.75"): r"entry 0\)\n  expected: hash [0-9a-f]{16}, computed\n  found: hash ",
        raw.replace(
            '"version": 1', '"version": 2'
        ): r"entry 0\)\n  expected: an entry of version 1\n  found: version 2",
        "[]\n": r"entry 0\)\n  expected: an entry of version 1\n  found: version list",
        raw.replace(", ", ",  ", 1): r"\)\n  expected: one entry a line, as JSON writes it\n",
    }
    for text, message in cases.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            Ledger.load(path)


def test_a_save_never_takes_entries_back(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    ledger_of(EDITS).save(path)
    with pytest.raises(DataError, match=re.escape(f"does not continue the one in {path}")):
        ledger_of(EDITS[:3]).save(path)
    ledger_of(EDITS).append("skip", {"rows": 2}, from_row=320, rows_consumed=320, steps=STEPS).save(path)
    assert len(Ledger.load(path).entries) == len(EDITS) + 1
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_a_disk_that_takes_no_ledger_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        MachineError, match=r"the edit ledger cannot be written\n  expected: room for .* bytes"
    ) as error:
        ledger_of(EDITS).save(tmp_path / "gone" / FILE_NAME)
    assert len(str(error.value).splitlines()) <= 6
