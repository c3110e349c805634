"""Raw input of our own words, with everything in it that the data pipeline must catch; and steps for recipes."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.document import Document, change, drop
from tests.word_corpora import WORDS, text


def unlike(number: int, words: int = 60) -> str:
    """A text that shares no 13 words in a row with any other number's."""
    return " ".join(
        f"{WORDS[(number * 3 + i * i) % len(WORDS)]}{number * 1000 + i if i % 5 == 0 else ''}" for i in range(words)
    )


def records() -> list[dict[str, Any]]:
    """640 records in 41 groups: unlike texts; some copied in or across groups, some quoted by others, some short."""
    made = [{"id": f"d{i}", "group": f"g{i % 40}", "text": unlike(i)} for i in range(600)]
    made += [{"id": f"copy{i}", "group": f"g{(i + i % 3) % 40}", "text": unlike(i)} for i in range(0, 60, 4)]
    made += [
        {"id": f"quote{i}", "group": "quotes", "text": f"As was said: {unlike(i)[40:300]}. So be it."}
        for i in range(15)
    ]
    made += [{"id": f"short{i}", "group": f"g{i}", "text": f"only {i} few words"} for i in range(10)]
    return made


def write_raw(directory: Path) -> int:
    """The records and some plain files below `directory`; how many documents and bad lines that is."""
    directory.mkdir(parents=True)
    lines = [json.dumps(record) for record in records()]
    third = len(lines) // 3
    bad = ["{not json", '{"id": "x", "group": "g1"}', "", '{"text": "no group"}']
    (directory / "a.jsonl").write_text("\n".join(lines[:third] + bad) + "\n")
    (directory / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[third : 2 * third]).encode()))
    (directory / "c.jsonl").write_text("\n".join(lines[2 * third :]))
    for number in range(3):
        folder = directory / f"folder{number}"
        folder.mkdir()
        (folder / "page.txt").write_text(text(number) * 20)
    (directory / "picture.png").write_bytes(b"\x89PNG")
    return len(lines) + len(bad) + 3


def no_ninety(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        yield drop(document, "ninety") if document.id.endswith("90") else document


def overtaken(documents: Iterable[Document]) -> Iterator[Document]:
    """Hands the documents on when the other preparation is under way, as a worker does that outlived its run."""
    Path(os.environ["MEETING"], "waiting").touch()
    wait_for(Path(os.environ["MEETING"], "begun"))
    yield from documents


def overtaking(documents: Iterable[Document]) -> Iterator[Document]:
    """Lets the worker that waits in `overtaken` end when most tasks are done."""
    for document in documents:
        if document.id == "d599":
            Path(os.environ["MEETING"], "begun").touch()
            wait_for(Path(os.environ["MEETING"], "over"))
        yield document


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.005)


def on_a_full_disk(documents: Iterable[Document]) -> Iterator[Document]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    yield from documents


def on_a_mount_that_went(documents: Iterable[Document]) -> Iterator[Document]:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/mnt/list.txt")
    yield from documents


def without_its_list(documents: Iterable[Document]) -> Iterator[Document]:
    Path("/nonexistent/list.txt").read_text()
    yield from documents


def sleepy(documents: Iterable[Document]) -> Iterator[Document]:
    """Sleeps at the first document, and says so by a file."""
    Path(os.environ["SLEEPY"]).touch()
    time.sleep(100)
    yield from documents


def deadly_twice(documents: Iterable[Document]) -> Iterator[Document]:
    """Kills its process at the first document, until two have died."""
    for life in range(2):
        with contextlib.suppress(FileExistsError):
            Path(f"{os.environ['DEATHS']}{life}").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    yield from documents


def deadly_once(documents: Iterable[Document]) -> Iterator[Document]:
    """Kills its process in the third of files of a hundred documents, the first time."""
    for document in documents:
        if document.id == "d250" and not Path(os.environ["DEATHS"]).exists():
            Path(os.environ["DEATHS"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield document


def deadly(documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
        if document.id == "d300":
            os.kill(os.getpid(), signal.SIGKILL)
        yield document


def untitled(documents: Iterable[Document]) -> Iterator[Document]:
    """A step that takes a field for granted."""
    return (change(document, document.meta["title"]) for document in documents)
