"""Files that a step's parameters name: they count by content; what cannot be read is refused before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash

from data_pipeline.document import Document
from data_pipeline.registry import STEPS, entries, rehearse
from data_pipeline.step_files import lines_of, once_per_file, reads_files
from fmscale.errors import ConfigError

HERE = __name__


@reads_files("lists", "model")
def listed(documents: Iterable[Document], *, lists: Sequence[str] = (), model: str = "") -> Iterator[Document]:
    for path in lists:
        list(lines_of(path))
    yield from documents


def recorded(step: str, **parameters: Any) -> Any:
    return entries([{step: parameters}])[0].record()[1]


def test_a_corpus_remembers_what_a_file_says_and_not_where_it_lies(tmp_path: Path) -> None:
    for name, content in (("a", b"one\n"), ("b", b"one\n"), ("c", b"two\n")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert recorded(f"{HERE}:listed", lists=[a, c], model=c) == {
        "lists": [xxhash.xxh3_128_hexdigest(b"one\n"), xxhash.xxh3_128_hexdigest(b"two\n")],
        "model": [xxhash.xxh3_128_hexdigest(b"two\n")],
    }
    assert recorded(f"{HERE}:listed", lists=[a]) == recorded(f"{HERE}:listed", lists=[b])
    before = recorded(f"{HERE}:listed", lists=[a])
    (tmp_path / "a").write_bytes(b"two\n")
    os.utime(a, ns=(1, 1))
    assert recorded(f"{HERE}:listed", lists=[a]) != before
    assert recorded(f"{HERE}:listed") == {"lists": [], "model": []}


@pytest.mark.parametrize(("value", "found"), [("none", "No such file"), (".", "Is a directory"), (3, "no path")])
def test_a_file_that_cannot_be_read_is_refused(value: Any, found: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"file that step .*listed reads cannot be read\n.*lists: a file.*\n.*{found}"
    ):
        entries([{f"{HERE}:listed": {"lists": [value]}}])


def test_a_rehearsal_finds_what_only_the_step_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, f"{HERE}:listed", f"{HERE}:listed")
    (tmp_path / "latin1").write_bytes("erste\nmüll\n".encode("latin-1"))
    checked = entries([{f"{HERE}:listed": {"lists": [str(tmp_path / "latin1")]}}])
    with pytest.raises(
        ConfigError, match=r"a list is no UTF-8\n.*\n  found: .*latin1, line 2: b'm.xfcll.*\n  do: convert"
    ):
        rehearse(checked)
    rehearse(entries([f"{HERE}:listed"]))


def makes_one(documents: Iterable[Document]) -> Iterator[Document]:
    yield Document("x", "y")


def test_a_step_that_makes_documents_of_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse(entries([f"{HERE}:makes_one"]))  # what others wrote is not run before its time
    monkeypatch.setitem(STEPS, f"{HERE}:makes_one", f"{HERE}:makes_one")
    with pytest.raises(AssertionError, match="makes_one made a document of nothing"):
        rehearse(entries([f"{HERE}:makes_one"]))


def test_lists_have_comments_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes("\ufeffone # first\n\n# nothing\n  two words \r\n".encode())
    assert list(lines_of(str(tmp_path / "list"))) == ["one", "two words"]


def test_a_file_is_loaded_once_until_it_changes(tmp_path: Path) -> None:
    loads: list[tuple[str, ...]] = []

    @once_per_file
    def load(paths: tuple[str, ...], suffix: str) -> str:
        loads.append(paths)
        return Path(paths[0]).read_text() + suffix

    path = tmp_path / "file"
    path.write_text("a")
    assert [load([str(path)], "!"), load([str(path)], "!"), load([str(path)], "?")] == ["a!", "a!", "a?"]
    path.write_text("bc")
    assert load([str(path)], "!") == "bc!"
    assert len(loads) == 3
