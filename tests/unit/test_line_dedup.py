"""Lines repeated in the corpus, against plain Python."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import line_dedup, ngrams
from data_pipeline.document import Document
from data_pipeline.line_dedup import LineCounts, RepeatedLines, write_verdicts
from fmscale.errors import DataError

LINE = st.sampled_from(["", "a", "A.", " a b", "a  b", "b a", "--", "b c d e f g h", "B, c, d, e, f, g, h!", "é 日本"])
TEXT = st.one_of(st.lists(LINE, max_size=8).map("\n".join), st.text(alphabet="ab \n,日", max_size=30))


def write_lines(path: Path, batches: list[list[str]], partitions: int, *, min_characters: int = 20) -> None:
    counts = LineCounts(min_characters)
    for texts in batches:
        counts.add(texts)
    counts.write(path, partitions)


def split(line: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\u3041-\u9fff]|[a-zé]+", line.lower()))


def counts(line: str, min_characters: int) -> bool:
    return bool(split(line)) and len(re.sub(r"^[^a-zA-Zé日本]*", "", line)) >= min_characters


def reference(texts: list[str], min_characters: int, min_count: int) -> list[str]:
    total = Counter(split(line) for text in texts for line in text.split("\n") if counts(line, min_characters))
    seen: set[tuple[str, ...]] = set()
    cleaned = []
    for text in texts:
        kept = []
        for line in text.split("\n"):
            repeated = counts(line, min_characters) and total[split(line)] >= min_count
            if not (repeated and split(line) in seen):
                kept.append(line)
            if repeated:
                seen.add(split(line))
        cleaned.append("\n".join(kept))
    return cleaned


def clean(
    folder: Path, tasks: list[list[str]], partitions: int, min_characters: int, min_count: int, records: int = 1 << 20
) -> list[str]:
    lines = [folder / f"lines-{number}" for number in range(len(tasks))]
    for file, texts in zip(lines, tasks, strict=True):
        write_lines(file, [texts[:2], texts[2:]], partitions, min_characters=min_characters)
    verdicts = [folder / f"verdicts-{partition}" for partition in range(partitions)]
    for partition, file in enumerate(verdicts):
        write_verdicts(file, lines, partition, min_count=min_count, records=records)
    cleaned: list[str] = []
    for number, texts in enumerate(tasks):
        repeated = RepeatedLines(lines[number], verdicts, number)
        for batch in (texts[:1], texts[1:]):
            found = repeated.strip(batch)
            assert [
                text.count("\n") - new.count("\n") for (new, gone), text in zip(found, batch, strict=True) if new
            ] == [gone for new, gone in found if new]
            cleaned += [text for text, _ in found]
    return cleaned


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_all_but_the_first_go_for_any_tasks_and_partitions(data: st.DataObject) -> None:
    texts = data.draw(st.lists(TEXT, min_size=1, max_size=8))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=3)))
    tasks = [texts[a:b] for a, b in zip([0, *cuts], [*cuts, len(texts)], strict=True)]
    min_characters, min_count = data.draw(st.sampled_from([0, 1, 2, 5])), data.draw(st.integers(2, 4))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_SLICE", 16)
        patch.setattr(line_dedup, "_CHARACTERS", 7)
        patch.setattr(line_dedup, "_COUNTED_AT_ONCE", 3)
        found = clean(
            Path(folder),
            tasks,
            data.draw(st.integers(1, 4)),
            min_characters,
            min_count,
            data.draw(st.integers(1, 5)),
        )
    assert found == reference(texts, min_characters, min_count)


MENU = "Home, about us, contact, imprint"


def test_as_a_step_it_tallies_what_goes_and_drops_what_is_empty(tmp_path: Path) -> None:
    texts = [f"{MENU}\nOne.", f"Two.\n{MENU}\n\n{MENU.upper()}", MENU, "three"]
    write_lines(tmp_path / "lines", [texts], 2)
    for partition in range(2):
        write_verdicts(tmp_path / f"verdicts-{partition}", [tmp_path / "lines"], partition)
    step = RepeatedLines(tmp_path / "lines", [tmp_path / "verdicts-0", tmp_path / "verdicts-1"], 0).step
    one, two, empty, three = step(Document(str(number), text) for number, text in enumerate(texts))
    assert [one.text, two.text, three.text] == [texts[0], "Two.\n", "three"]
    assert [dict(document.tally) for document in (one, two, empty, three)] == [
        {},
        {"line_dedup/lines": 2, "line_dedup/characters": 2 * len(MENU) + 2},
        {"line_dedup/lines": 1, "line_dedup/characters": len(MENU)},
        {},
    ]
    assert [document.dropped for document in (one, two, empty, three)] == ["", "", "line_dedup/nothing_left", ""]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    lines, verdicts = [tmp_path / "a", tmp_path / "b"], tmp_path / "verdicts"
    for file in lines:
        write_lines(file, [[MENU]], 1)
    write_verdicts(verdicts, lines, 0)
    write_lines(tmp_path / "longer", [[MENU]], 1, min_characters=30)
    with pytest.raises(
        DataError, match=r"longer is of another(.|\n)*expected: 1 partitions, lines of 20 (.|\n)*found: .* of 30 "
    ):
        write_verdicts(tmp_path / "out", [lines[0], tmp_path / "longer"], 0)
    write_lines(lines[1], [[MENU, "another line of some length"]], 1)
    with pytest.raises(DataError, match=r"expected: 2 verdicts on task 1(.|\n)*found: 1"):
        RepeatedLines(lines[1], [verdicts], 1)
    whole = lines[0].read_bytes()
    lines[0].write_bytes(whole[:-1])
    with pytest.raises(DataError, match="a is damaged or missing"):
        write_verdicts(tmp_path / "out", lines, 0)
    lines[0].write_bytes(whole[:20] + b"?" + whole[21:])
    with pytest.raises(DataError, match="a is damaged or missing"):
        write_verdicts(tmp_path / "out", lines, 0)
    assert not (tmp_path / "out").exists()
